"""The stage `chats`: your own chats and preferences, and what became of every line of them."""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from puna.endpoint import Asker, open_asker
from puna.errors import PunaError
from puna.log import Log
from puna.model.licence import carry_terms
from puna.posttrain.data.balance import drop_excess
from puna.posttrain.data.clean import drop_apologies, tone
from puna.posttrain.data.forms import InvalidError, Preference
from puna.posttrain.data.judge import judge
from puna.posttrain.data.read import find_files, read
from puna.posttrain.data.sample import REASONS, Dropped, Sample, plain
from puna.posttrain.data.score import difficulty, drop_low, reward_scores
from puna.posttrain.data.similar import drop_alike
from puna.posttrain.data.topics import topic
from puna.recipe import Chats, Recipe
from puna.run import figure, write_text
from puna.train.batches import rng

Ranked = tuple[Sample, Preference]


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Files -> chats.jsonl, preferences.jsonl, dropped.jsonl with a reason for each, and account.json."""
    knobs = recipe.chats
    if not knobs.sources:
        raise PunaError('chats.sources is empty; name files, as in chats.sources=["my-chats.jsonl"]')
    chats, preferences, dropped = collect(knobs)
    read_count = len(chats) + len(preferences) + len(dropped)
    asker = open_asker(knobs.judge, "chats.judge", log.folder / "answers.jsonl") if knobs.judge.url and chats else None
    with asker or nullcontext():
        chats, gone = thin(chats, knobs, recipe.seed, asker)
    if asker:
        log.message(f"the judge: {asker.account}")
        carry_terms(knobs.judge, out)
    dropped += gone
    if not chats and not preferences:
        raise PunaError(f"nothing is left of {read_count} lines: {_summary(dropped)}; loosen the knobs of [chats]")
    _write(out / "chats.jsonl", (_chat_line(sample) for sample in chats))
    _write(out / "preferences.jsonl", (_preference_line(*ranked) for ranked in preferences))
    _write(out / "dropped.jsonl", (_without_none(vars(each)) for each in dropped))
    write_text(out / "account.json", json.dumps(account(chats, preferences, dropped), indent=1, sort_keys=True) + "\n")
    log.message(f"{len(chats):,} chats and {len(preferences):,} preferences of {read_count:,} lines")
    log.message(f"dropped: {_summary(dropped) or 'nothing'}")
    counts = Counter(each.reason for each in dropped)
    return {
        "chats.read": figure(read_count),
        "chats.kept": figure(len(chats)),
        "chats.preferences": figure(len(preferences)),
    } | {f"chats.dropped.{reason}": figure(counts[reason]) for reason in REASONS if counts[reason]}


def collect(knobs: Chats) -> tuple[list[Sample], list[Ranked], list[Dropped]]:
    """All lines of the sources: chats and preferences of a good tone, labelled, each once; and the others."""
    chats: list[Sample] = []
    preferences: list[Ranked] = []
    dropped: list[Dropped] = []
    first: dict[str, str] = {}
    for file in find_files(knobs.sources):
        for source, number, found in read(file):
            if isinstance(found, InvalidError):
                dropped.append(Dropped(source, number, found.reason, found.detail))
                continue
            sample = Sample(found.best if isinstance(found, Preference) else found, source, number)
            before = first.setdefault(_key(found), sample.name)
            wrong = ("duplicate", f"as {before}") if before != sample.name else tone(sample.chat, knobs)
            if wrong:
                dropped.append(Dropped.of(sample, *wrong))
                continue
            sample.topic, sample.difficulty = topic(sample.chat), round(difficulty(sample.chat), 4)
            if isinstance(found, Preference):
                preferences.append((sample, found))
            else:
                chats.append(sample)
    return chats, preferences, dropped


def thin(
    chats: list[Sample], knobs: Chats, seed: int, asker: Asker | None = None
) -> tuple[list[Sample], list[Dropped]]:
    """Quality, by the judge that `asker` asks too, likeness, balance of sources, then of topics, and apologies; each
    share is of what its step leaves."""
    dropped: list[Dropped] = []
    if (knobs.reward_model or asker) and chats:
        scores = reward_scores(chats, Path(knobs.reward_model)) if knobs.reward_model else None
        chats, gone = drop_low(chats, scores, knobs.quality_quantile, judge(chats, asker) if asker else None)
        dropped += gone
    chats, gone = drop_alike(chats, knobs.max_cosine, rng(seed, "clusters of chats"))
    dropped += gone
    chats, gone = drop_excess(chats, lambda sample: sample.source, knobs.max_source_share, "source")
    dropped += gone
    chats, gone = drop_excess(chats, lambda sample: sample.topic, knobs.max_topic_share, "topic")
    dropped += gone
    chats, gone = drop_apologies(chats, knobs.max_apology_share)
    return chats, dropped + gone


def account(chats: list[Sample], preferences: list[Ranked], dropped: list[Dropped]) -> dict[str, Any]:
    """Counts by source and by topic."""
    sources: dict[str, Counter[str]] = {}
    ranked = [sample for sample, _ in preferences]
    outcomes = [(sample.source, "chats") for sample in chats] + [(sample.source, "preferences") for sample in ranked]
    for source, outcome in [*outcomes, *((each.source, f"dropped: {each.reason}") for each in dropped)]:
        sources.setdefault(source, Counter())[outcome] += 1
    topics = {"chats": Counter(each.topic for each in chats), "preferences": Counter(each.topic for each in ranked)}
    reasons = {each.reason: REASONS[each.reason] for each in dropped}
    return {"sources": sources, "topics": topics, "reasons": reasons}


def _key(found: Any) -> str:
    if isinstance(found, Preference):
        parts = [found.prompt.messages, [found.chosen], [found.rejected], [found.edited] if found.edited else []]
        return json.dumps([plain(messages) for messages in parts])
    return json.dumps([[message.role, plain([message])] for message in found.messages])


def _chat_line(sample: Sample) -> dict[str, Any]:
    line = {"messages": [message.to_dict() for message in sample.chat.messages], "tools": sample.chat.tools}
    about = {name: getattr(sample, name) for name in ("source", "line", "topic", "quality", "difficulty")}
    return _without_none(line | about)


def _preference_line(sample: Sample, found: Preference) -> dict[str, Any]:
    answers = {"chosen": found.chosen, "rejected": found.rejected, "edited": found.edited}
    return _without_none(
        {"messages": [message.to_dict() for message in found.prompt.messages], "tools": found.prompt.tools}
        | {name: message.to_dict() if message else None for name, message in answers.items()}
        | {"strength": found.strength, "source": sample.source, "line": sample.line, "topic": sample.topic}
    )


def _without_none(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if value is not None}


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _summary(dropped: list[Dropped]) -> str:
    counts = Counter(each.reason for each in dropped)
    return ", ".join(f"{counts[reason]:,} {reason}" for reason in REASONS if counts[reason])
