"""What a recipe asks for beyond rules over numbers: chats for SFT, and an account of what was dropped."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from puna.endpoint import Asker, model_files, open_asker
from puna.errors import PunaError
from puna.log import Log
from puna.model.licence import carry_terms
from puna.posttrain.data.read import digest as file_digest
from puna.posttrain.synthesis import back_translation, execution, long_context, teacher, tool_use
from puna.posttrain.synthesis.checks import linter
from puna.posttrain.synthesis.found import Drop, Line
from puna.posttrain.synthesis.signatures import find_functions
from puna.posttrain.synthesis.snippets import choose, find_snippets
from puna.recipe import Recipe, Synthesize
from puna.run import figure, write_text
from puna.score import proportion
from puna.text.tokenizer import Tokenizer

Made = tuple[list[Line], list[Drop]]
Documents = list[tuple[str, str]]
"""(id, text) of every training document, in the corpus' order."""


def make(
    recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log, others: int
) -> tuple[list[Line], dict[str, Any]]:
    """The chats that the recipe asks for and figures of them; writes dropped.jsonl and, of a Llama, its notice. There
    are `others` already, of which long ones are a share, too.

    What the model answered is kept beside the run's logs: a run that goes on, or that asks for more, asks nothing
    twice.
    """
    knobs, seed = recipe.synthesize, recipe.seed
    wanted = [name for name, (asked, _) in KINDS.items() if asked(knobs)]
    if not wanted and not knobs.long_lengths:
        return [], {}
    documents = _documents(inputs["corpus"])
    asker = (
        open_asker(knobs.endpoint, "synthesize.endpoint", log.folder / "answers.jsonl") if knobs.endpoint.url else None
    )
    lines: list[Line] = []
    drops: list[Drop] = []
    try:
        for name in wanted:
            chats, gone = KINDS[name][1](knobs, documents, seed, asker)
            counts = Counter(drop.reason for drop in gone)
            log.message(f"{name}: {len(chats):,} chats; dropped: {_told(counts) or 'nothing'}")
            lines, drops = lines + chats, drops + gone
        if knobs.long_lengths:
            count = round(knobs.long_share / (1 - knobs.long_share) * (others + len(lines)))
            chats, gone = _long(knobs, documents, Tokenizer.load(inputs["tokenizer"]), count, seed, asker)
            log.message(f"long-context: {len(chats):,} chats of the {count:,} that are {knobs.long_share:.2%}")
            lines, drops = lines + chats, drops + gone
    finally:
        if asker:
            log.message(f"the model: {asker.account}")
            asker.close()
    if asker and (release := carry_terms(knobs.endpoint, out)):
        log.message(f"Llama {release} wrote: its licence goes with these data and with all that learns from them")
    write_text(out / "dropped.jsonl", "".join(json.dumps(vars(drop), ensure_ascii=False) + "\n" for drop in drops))
    sources = Counter(line["source"] for line in lines)
    figures = {f"synthesize.{name}": figure(count) for name, count in sorted(sources.items())}
    if repaired := [line["repairs"] > 0 for line in lines if line["source"] == execution.SOURCE]:
        figures["synthesize.execution.repaired"] = proportion(repaired)
    return lines, figures


def source_digest(recipe: Recipe) -> str | None:
    """Changes with what the stage reads from outside the run; None where that is nothing."""
    knobs = recipe.synthesize
    folder = Path(knobs.endpoint.url) if knobs.endpoint.url else None
    paths = model_files(folder) if folder and folder.is_dir() else []
    paths += [path for name in knobs.teacher_prompts if (path := Path(name)).is_file()]
    paths += model_files(Path(knobs.teacher_reward_model)) if knobs.teacher_reward_model else []
    paths += [path for name in knobs.repositories for path in sorted(Path(name).rglob("*.py")) if path.is_file()]
    found = [file_digest(paths)] if paths else []
    found += [linter()] if knobs.execution else []
    return " ".join(found) or None


def _documents(corpus: Path) -> Documents:
    tables = (pq.read_table(path, columns=["id", "text"]) for path in sorted((corpus / "documents").glob("*.parquet")))
    return [(row["id"], row["text"]) for table in tables for row in table.to_pylist()]


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def _functions(knobs: Synthesize, documents: Documents, seed: int, asker: Asker | None) -> Made:
    functions, drops = find_functions(documents)
    chats, gone = tool_use.dialogues(functions, knobs.functions, seed, asker if knobs.reword else None)
    return chats, drops + gone


def _execution(knobs: Synthesize, documents: Documents, seed: int, asker: Asker | None) -> Made:
    snippets = choose(find_snippets(documents), knobs.execution, seed, "execution")
    return execution.dialogues(snippets, _needed(asker), knobs.repairs)


def _back_translation(knobs: Synthesize, documents: Documents, seed: int, asker: Asker | None) -> Made:
    snippets = choose(find_snippets(documents), knobs.back_translation, seed, "back-translation")
    return back_translation.dialogues(snippets, _needed(asker))


def _teacher(knobs: Synthesize, documents: Documents, seed: int, asker: Asker | None) -> Made:
    found = list(teacher.read_prompts([Path(path) for path in knobs.teacher_prompts]))
    prompts = [each for each in found if isinstance(each, teacher.Prompt)]
    reward = Path(knobs.teacher_reward_model) if knobs.teacher_reward_model else None
    chats, drops = teacher.dialogues(prompts, _needed(asker), knobs.teacher_answers, knobs.teacher_temperature, reward)
    return chats, [each for each in found if isinstance(each, Drop)] + drops


def _long(
    knobs: Synthesize, documents: Documents, tokenizer: Tokenizer, count: int, seed: int, asker: Asker | None
) -> Made:
    """`count` chats: half of them on repositories, where there are some, the others on documents."""
    folders = [Path(folder) for folder in knobs.repositories]
    half = count if asker is None else (count + 1) // 2 if folders else 0
    chats, drops = long_context.repositories(folders, tokenizer, knobs.long_lengths, knobs.importers, half, seed)
    if asker and len(chats) < count:
        lengths, rest = knobs.long_lengths, count - len(chats)
        found, short = long_context.contexts(documents, tokenizer, lengths, knobs.long_chunk, rest, seed)
        written, gone = long_context.dialogues(found, tokenizer, asker, seed)
        chats, drops = chats + written, drops + short + gone
    return chats, drops


def _needed(asker: Asker | None) -> Asker:
    if asker is None:
        raise PunaError("synthesize.endpoint.url is empty; name the model that is to write")
    return asker


Maker = Callable[[Synthesize, Documents, int, Asker | None], Made]
KINDS: dict[str, tuple[Callable[[Synthesize], Any], Maker]] = {
    "functions": (lambda knobs: knobs.functions, _functions),
    "execution": (lambda knobs: knobs.execution, _execution),
    "back-translation": (lambda knobs: knobs.back_translation, _back_translation),
    "teacher": (lambda knobs: knobs.teacher_prompts, _teacher),
}
"""By name: whether a recipe asks for it, and what makes it."""
