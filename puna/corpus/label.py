"""Labels for documents, asked of a chat model behind any OpenAI-compatible endpoint (section 3.1.1).

The paper gives Llama 2 a description of what a text must be like and asks whether a document meets it; classifiers
are trained on the answers.

The output is JSONL in the order of the documents, one line for each answer: `id`, `label`, the `text` that was shown,
`tokens` in and out. A run that was stopped goes on after the last whole line; documents that failed are asked again.
"""

import heapq
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from puna.corpus.records import read_records
from puna.corpus.tasks import Task
from puna.endpoint import Answer, Asker, Endpoint, GiveUpError, HttpModel, ask_in_order, whole_lines
from puna.errors import PunaError
from puna.log import Log


@dataclass
class Account:
    """What a run of label() has done."""

    labelled: int = 0
    already: int = 0
    failed: int = 0
    repeated: int = 0
    """Requests that had to be made again."""
    tokens_in: int = 0
    tokens_out: int = 0
    failures: list[str] = field(default_factory=list)
    """The last of them, each with its document."""


def label(
    documents: Iterable[tuple[str, str]], task: Task, endpoint: Endpoint, out: Path, log: Log, characters: int = 8000
) -> Account:
    """Ask for a label of each (id, text) that `out` does not hold, and append the answers in the documents' order.

    Only `characters` of a text are shown. PunaError when the endpoint refuses the key, the model or the address, or
    when nothing but failures comes back; all answers until then are kept in `out`.
    """
    account = Account()
    owed = _owed(documents, finish_lines(out), account, characters)
    again = f"That is none of the labels. Reply with one of: {', '.join(task.labels)}"

    def ask(document: tuple[str, str]) -> tuple[str, Answer]:
        return asker.ask(document[0], task.messages(document[1]), task.parse, again)

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        Asker(HttpModel(endpoint), endpoint) as asker,
        out.open("a", encoding="utf-8") as handle,
        closing(ask_in_order(owed, ask, endpoint.concurrency, asker.stop, "documents")) as results,
    ):
        for (name, text), result in results:
            if isinstance(result, GiveUpError):
                account.failed += 1
                account.failures = [*account.failures[-9:], f"{name}: {result}"]
                continue
            found, answer = result
            line = {"id": name, "label": found, "text": text, "tokens": [answer.tokens_in, answer.tokens_out]}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
            handle.flush()
            account.labelled += 1
            account.tokens_in += answer.tokens_in
            account.tokens_out += answer.tokens_out
            if account.labelled % 1000 == 0:
                log.message(f"{account.labelled:,} labelled, {account.failed:,} failed")
    account.repeated = asker.repeated
    return account


def _owed(
    documents: Iterable[tuple[str, str]], done: set[str], account: Account, characters: int
) -> Iterator[tuple[str, str]]:
    for name, text in documents:
        if name in done:
            account.already += 1
        else:
            done.add(name)  # the same document once more is not asked again
            yield name, text[:characters]


def finish_lines(path: Path) -> set[str]:
    """The ids in a file of labels, from which a last line that was cut off is removed."""
    done: set[str] = set()
    for number, line in enumerate(whole_lines(path), 1):
        try:
            done.add(json.loads(line)["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise PunaError(f"{path}, line {number}: no label ({error}); name another file, or mend this") from error
    return done


def read_documents(path: str | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of records with `text`; the id is theirs, or the hash of the text."""
    for number, record in enumerate(read_records(path), 1):
        text = record.get("text")
        if not isinstance(text, str):
            raise PunaError(f"{path}: record {number} has no `text`; it has {', '.join(record)}")
        if text.strip():
            yield str(record.get("id") or f"{xxhash.xxh3_64_intdigest(text.encode('utf-8', 'replace')):016x}"), text


def read_labels(path: str | Path) -> Iterator[tuple[str, str]]:
    """(label, text) of records with both; a label that is a whole number or a truth value counts as its digits."""
    for number, record in enumerate(read_records(path), 1):
        value, text = record.get("label"), record.get("text")
        if value is None or isinstance(value, list | dict) or not isinstance(text, str):
            raise PunaError(f"{path}: record {number} needs `text` and `label`; it has {', '.join(record)}")
        yield str(int(value)) if isinstance(value, bool | float) and value == int(value) else str(value), text


def choose(pairs: Iterable[tuple[str, str]], limit: int, seed: int) -> list[tuple[str, str]]:
    """At most `limit` of pairs that end in a text, chosen and ordered by the text's hash; only these are in memory."""
    return heapq.nsmallest(
        limit, pairs, key=lambda pair: xxhash.xxh3_64_digest(pair[1].encode("utf-8", "replace"), seed)
    )
