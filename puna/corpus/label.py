"""Labels for documents, asked of a chat model behind any OpenAI-compatible endpoint (section 3.1.1).

The paper gives Llama 2 a description of what a text must be like and asks whether a document meets it; classifiers
are trained on the answers.

The output is JSONL in the order of the documents, one line for each answer: `id`, `label`, the `text` that was shown,
`tokens` in and out. A run that was stopped goes on after the last whole line; documents that failed are asked again.
"""

import heapq
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import httpx
import xxhash

from puna.corpus.records import read_records
from puna.corpus.tasks import Task
from puna.errors import PunaError
from puna.log import Log

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
HOPELESS = (401, 403, 404, 405)
LONGEST_WAIT = 120.0  # seconds
FAILURES = 20  # documents in a row that end a run


@dataclass(frozen=True)
class Endpoint:
    """Whom to ask, and how."""

    url: str
    """Up to and without /chat/completions, for example http://localhost:8000/v1."""
    model: str
    key: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    """Seconds for one answer."""
    tries: int = 6
    """Requests for one document, at most; the waits between them double from `wait` seconds."""
    wait: float = 1.0
    max_tokens: int = 32


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


class _GiveUpError(Exception):
    """This document cannot be labelled."""


def label(
    documents: Iterable[tuple[str, str]], task: Task, endpoint: Endpoint, out: Path, log: Log, characters: int = 8000
) -> Account:
    """Ask for a label of each (id, text) that `out` does not hold, and append the answers in the documents' order.

    Only `characters` of a text are shown. PunaError when the endpoint refuses the key, the model or the address, or
    when nothing but failures comes back; all answers until then are kept.
    """
    account = Account()
    done = finish_lines(out)
    client = httpx.Client(
        base_url=endpoint.url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
        timeout=endpoint.timeout,
        limits=httpx.Limits(max_connections=endpoint.concurrency),
    )
    asker = _Asker(client, task, endpoint)
    pool = ThreadPoolExecutor(endpoint.concurrency)
    waiting: deque[tuple[str, str, Future[tuple[str, int, int]]]] = deque()
    streak = 0
    owed = _owed(documents, done, account, characters)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with out.open("a", encoding="utf-8") as handle:
            while True:
                for name, text in islice(owed, 4 * endpoint.concurrency - len(waiting)):
                    waiting.append((name, text, pool.submit(asker.ask, name, text)))
                if not waiting:
                    break
                name, text, future = waiting.popleft()
                try:
                    answer, tokens_in, tokens_out = future.result()
                except _GiveUpError as error:
                    streak += 1
                    account.failed += 1
                    account.failures = [*account.failures[-9:], f"{name}: {error}"]
                    if streak == FAILURES:
                        raise PunaError(
                            f"{FAILURES} documents in a row failed, the last with: {error}; what was labelled is kept "
                            f"in {out}, so the same command goes on"
                        ) from None
                    continue
                streak = 0
                line = {"id": name, "label": answer, "text": text, "tokens": [tokens_in, tokens_out]}
                handle.write(json.dumps(line, ensure_ascii=False) + "\n")
                handle.flush()
                account.labelled += 1
                account.tokens_in += tokens_in
                account.tokens_out += tokens_out
                if account.labelled % 1000 == 0:
                    log.message(f"{account.labelled:,} labelled, {account.failed:,} failed")
    finally:
        asker.stop.set()
        pool.shutdown(cancel_futures=True)
        client.close()
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


class _Asker:
    """Asks for one label at a time, in any number of threads."""

    def __init__(self, client: httpx.Client, task: Task, endpoint: Endpoint) -> None:
        self.client, self.task, self.endpoint = client, task, endpoint
        self.stop = threading.Event()
        self.repeated = 0
        self._lock = threading.Lock()

    def ask(self, name: str, text: str) -> tuple[str, int, int]:
        """The label, and tokens in and out of all answers. _GiveUpError, or PunaError if no document has a chance."""
        messages = self.task.messages(text)
        tokens = [0, 0]
        problem = ""
        for attempt in range(self.endpoint.tries):
            if attempt:
                with self._lock:
                    self.repeated += 1
            request = {"model": self.endpoint.model, "messages": messages, "temperature": 0}
            try:
                response = self.client.post("chat/completions", json=request | {"max_tokens": self.endpoint.max_tokens})
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
                self._wait(name, attempt, None)
                continue
            if response.status_code != 200:
                problem = self._refused(response)
                self._wait(name, attempt, response.headers.get("Retry-After"))
                continue
            try:
                answer, used = read_answer(response)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem = f"the answer is not a chat completion ({type(error).__name__} {error})"
                self._wait(name, attempt, None)
                continue
            tokens = [tokens[0] + used[0], tokens[1] + used[1]]
            if found := self.task.parse(answer):
                return found, tokens[0], tokens[1]
            problem = f"{answer[:80]!r} is none of the labels"
            again = f"That is none of the labels. Reply with one of: {', '.join(self.task.labels)}"
            messages = [*messages[:2], {"role": "assistant", "content": answer}, {"role": "user", "content": again}]
        raise _GiveUpError(problem)

    def _refused(self, response: httpx.Response) -> str:
        """What the server says; raises where asking again is no use."""
        problem = f"status {response.status_code}: {response.text[:200].strip()}"
        if response.status_code in HOPELESS:
            raise PunaError(
                f"{self.endpoint.url} refused the request, {problem}; check --url, --model {self.endpoint.model} and "
                "the key (--key-env)"
            )
        if response.status_code not in RETRIED:  # for example a document that is too long for the model
            raise _GiveUpError(problem)
        return problem

    def _wait(self, name: str, attempt: int, asked: str | None) -> None:
        """Twice as long each time, spread so that threads do not ask all at once; as long as the server asks for."""
        if attempt + 1 == self.endpoint.tries:
            return
        spread = xxhash.xxh3_64_intdigest(f"{name} {attempt}".encode()) / 2**64
        delay = self.endpoint.wait * 2**attempt * (0.5 + spread / 2)
        if asked and asked.replace(".", "", 1).isdigit():
            delay = max(delay, float(asked))
        if self.stop.wait(min(delay, LONGEST_WAIT)):
            raise _GiveUpError("stopped")


def read_answer(response: httpx.Response) -> tuple[str, tuple[int, int]]:
    """Text and (prompt, completion) tokens of a chat completion. Raises what a malformed one makes Python raise."""
    body = response.json()
    answer = body["choices"][0]["message"]["content"]
    if not isinstance(answer, str):
        raise TypeError(f"content is {type(answer).__name__}")
    usage = body.get("usage") or {}
    return answer, (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def finish_lines(path: Path) -> set[str]:
    """The ids in a file of labels, from which a last line that was cut off is removed."""
    if not path.exists():
        return set()
    done: set[str] = set()
    end = 0
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                done.add(json.loads(line)["id"])
            except (ValueError, KeyError, TypeError) as error:
                raise PunaError(
                    f"{path}, line {number}: no label ({error}); name another file, or mend this"
                ) from error
    os.truncate(path, end)
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
