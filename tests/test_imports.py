"""Imports run one way: the shared half never imports a stage, a stage never imports another."""

import ast
from collections.abc import Iterator
from pathlib import Path

import puna

ROOT = Path(puna.__file__).parent
SHARED = {
    *(
        "model",
        "text",
        "train",
        "parallel",
        "infer",
        "tools",
        "recipe",
        "endpoint",
        "errors",
        "artifact",
        "memory",
        "log",
        "machine",
        "run",
    ),
    "score",
}
STAGES = {"corpus", "scaling", "pretrain", "posttrain", "evals", "report"}
REFERENCES = {
    *("transformers", "llama_models", "accelerate", "trl", "peft", "lm_eval", "gguf"),
    *("pytest", "hypothesis", "schemathesis", "openai", "playwright"),
}
"""What parity is tested against is never needed to run."""


def imports() -> Iterator[tuple[str, str, str]]:
    """(unit, file, imported module) for every import under puna/, also those inside functions."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are absolute here"
                module = node.module or ""
                # `from puna import x` names the unit after the import
                modules = [f"puna.{a.name}" for a in node.names] if module == "puna" else [module]
            for module in modules:
                yield name.parts[0].removesuffix(".py"), str(name), module


def units() -> set[tuple[str, str, str]]:
    """(unit, file, unit of puna that it imports)."""
    ours = ((unit, file, module.split(".")) for unit, file, module in imports() if module.startswith("puna."))
    return {(unit, file, parts[1]) for unit, file, parts in ours}


def test_the_walk_sees_what_is_there():
    assert ("posttrain", "posttrain/dpo.py", "train") in units()
    assert ("train", "train/loop.py", "model") in units()
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there >= SHARED | STAGES


def test_the_shared_half_imports_only_itself():
    assert not [(file, unit) for importer, file, unit in units() if importer in SHARED and unit not in SHARED]


def test_a_stage_imports_the_shared_half_and_itself():
    assert not [
        (file, unit) for importer, file, unit in units() if importer in STAGES and unit not in SHARED | {importer}
    ]


def test_references_are_never_imported():
    assert not [(file, module) for _, file, module in imports() if module.split(".")[0] in REFERENCES]
