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
from puna.model.licence import carry_licences, note_llama
from puna.posttrain.data.read import digest as file_digest
from puna.posttrain.synthesis import execution, tool_use
from puna.posttrain.synthesis.checks import linter
from puna.posttrain.synthesis.found import Drop, Line
from puna.posttrain.synthesis.signatures import find_functions
from puna.posttrain.synthesis.snippets import choose, find_snippets
from puna.recipe import Recipe, Synthesize
from puna.run import figure, write_text
from puna.score import proportion

Made = tuple[list[Line], list[Drop]]
Documents = list[tuple[str, str]]
"""(id, text) of every training document, in the corpus' order."""


def make(recipe: Recipe, corpus: Path, out: Path, log: Log) -> tuple[list[Line], dict[str, Any]]:
    """The chats that the recipe asks for and figures of them; writes dropped.jsonl and, of a Llama, its notice.

    What the model answered is kept beside the run's logs: a run that goes on, or that asks for more, asks nothing
    twice.
    """
    knobs, seed = recipe.synthesize, recipe.seed
    wanted = [name for name, (asked, _) in KINDS.items() if asked(knobs)]
    if not wanted:
        return [], {}
    documents = _documents(corpus)
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
    finally:
        if asker:
            log.message(f"the model: {asker.account}")
            asker.close()
    if knobs.endpoint.url:
        carry_terms(knobs.endpoint.url, knobs.endpoint.model, knobs.endpoint.llama, out, log)
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
    found = [file_digest(paths)] if paths else []
    found += [linter()] if knobs.execution else []
    return " ".join(found) or None


def carry_terms(url: str, model: str, llama: str | None, out: Path, log: Log) -> None:
    """Let the licence of a model that wrote or judged go with the data: its files, or the notice of a Llama's."""
    if Path(url).is_dir():
        carry_licences([Path(url)], out)
    if release := note_llama(out, model, llama):
        log.message(f"Llama {release} wrote: its licence goes with these data and with all that learns from them")


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


def _needed(asker: Asker | None) -> Asker:
    if asker is None:
        raise PunaError("synthesize.endpoint.url is empty; name the model that is to write")
    return asker


Maker = Callable[[Synthesize, Documents, int, Asker | None], Made]
KINDS: dict[str, tuple[Callable[[Synthesize], Any], Maker]] = {
    "functions": (lambda knobs: knobs.functions, _functions),
    "execution": (lambda knobs: knobs.execution, _execution),
}
"""By name: whether a recipe asks for it, and what makes it."""
