"""Questions to a chat model: behind any OpenAI-compatible endpoint, or another that answers in the same way.

An `Asker` is used by any number of threads. It asks again where that helps (busy servers, broken connections, replies
that cannot be read), keeps every answer in a file, so that a run which was stopped pays for none twice, and counts
tokens. What differs from question to question is given by the caller: the messages, and what reads the reply.
"""

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import httpx
import xxhash

from puna.artifact import digest_of
from puna.errors import PunaError
from puna.recipe.endpoint import Endpoint as Knobs

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
HOPELESS = (401, 403, 404, 405)
LONGEST_WAIT = 120.0  # seconds
FAILURES = 20  # questions in a row that end a run

Messages = list[dict[str, str]]
T = TypeVar("T")
R = TypeVar("R")


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
    """Requests for one answer, at most; the waits between them double from `wait` seconds."""
    wait: float = 1.0
    max_tokens: int = 32
    named: str = "the address, the model and the key"
    """What a user checks when the endpoint refuses: where these are set."""


class Answer(NamedTuple):
    text: str
    finish: str = "stop"
    """"length" where it was cut off."""
    tokens_in: int = 0
    tokens_out: int = 0


class GiveUpError(Exception):
    """This question gets no answer; others may."""


class BusyError(Exception):
    """The model may answer the same request a while later."""

    def __init__(self, problem: str, seconds: str | None = None) -> None:
        super().__init__(problem)
        self.seconds = seconds
        """What the server asks to wait, as it says it."""


class Model(Protocol):
    """What answers a request of /chat/completions. BusyError, GiveUpError, or PunaError if nothing has a chance."""

    def complete(self, request: dict[str, Any]) -> Answer: ...

    def close(self) -> None: ...


class HttpModel:
    """A model behind an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.client = httpx.Client(
            base_url=endpoint.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            timeout=endpoint.timeout,
            limits=httpx.Limits(max_connections=endpoint.concurrency),
        )

    def complete(self, request: dict[str, Any]) -> Answer:
        try:
            response = self.client.post("chat/completions", json=request)
        except httpx.TransportError as error:
            raise BusyError(f"{type(error).__name__} {error}".strip()) from None
        if response.status_code != 200:
            raise self._refused(response)
        try:
            return read_answer(response)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise BusyError(f"the answer is not a chat completion ({type(error).__name__} {error})") from None

    def close(self) -> None:
        self.client.close()

    def _refused(self, response: httpx.Response) -> Exception:
        problem = f"status {response.status_code}: {response.text[:200].strip()}"
        if response.status_code in HOPELESS:
            return PunaError(f"{self.endpoint.url} refused the request, {problem}; check {self.endpoint.named}")
        if response.status_code not in RETRIED:  # for example a text that is too long for the model
            return GiveUpError(problem)
        return BusyError(problem, response.headers.get("Retry-After"))


def read_answer(response: httpx.Response) -> Answer:
    """A chat completion's text. Raises what a malformed one makes Python raise."""
    body = response.json()
    choice = body["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    usage = body.get("usage") or {}
    counts = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(text, choice.get("finish_reason") or "stop", *counts)


class Answers:
    """The answers of earlier requests: in memory, and in a file of JSONL that any death leaves whole."""

    def __init__(self, path: Path | None = None) -> None:
        self._found: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._file = None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            for line in whole_lines(path):
                try:
                    key, *answer = json.loads(line)
                    self._found[key] = Answer(*answer)
                except (ValueError, TypeError) as error:
                    raise PunaError(f"{path}: {line[:60]!r} is no answer ({error}); remove the file") from error
            self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def key(request: dict[str, Any]) -> str:
        return digest_of(request)

    def get(self, request: dict[str, Any]) -> Answer | None:
        return self._found.get(self.key(request))

    def put(self, request: dict[str, Any], answer: Answer) -> None:
        key = self.key(request)
        with self._lock:
            self._found[key] = answer
            if self._file:
                self._file.write(json.dumps([key, *answer]) + "\n")
                self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


class Asker:
    """Asks a model, in any number of threads.

    Args:
        model: whom to ask.
        endpoint: its name and how often to try; of its address nothing is used here.
        answers: a file of answers, which is asked first. None: every question is asked.
    """

    def __init__(self, model: Model, endpoint: Endpoint, answers: Path | None = None) -> None:
        self.model, self.endpoint = model, endpoint
        self.answers = Answers(answers) if answers else None
        self.stop = threading.Event()
        self.asked = self.repeated = self.remembered = self.tokens_in = self.tokens_out = 0
        self._lock = threading.Lock()

    def ask(
        self,
        name: str,
        messages: Messages,
        read: Callable[[str], T | None],
        again: str,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> tuple[T, Answer]:
        """What `read` makes of the reply, and the reply with the tokens of all that were needed.

        A reply that `read` returns None for is answered with `again`, and the model has another try. `name` spreads
        the waits. GiveUpError when no reply can be used, PunaError when no question has a chance.
        """
        first, tokens, problem = list(messages), [0, 0], ""
        for attempt in range(self.endpoint.tries):
            try:
                answer = self._answer(messages, temperature, seed, attempt)
            except BusyError as error:
                problem = str(error)
                self._wait(name, attempt, error.seconds)
                continue
            tokens = [tokens[0] + answer.tokens_in, tokens[1] + answer.tokens_out]
            found = read(answer.text)
            if found is not None:
                return found, answer._replace(tokens_in=tokens[0], tokens_out=tokens[1])
            problem = f"{answer.text[:80]!r} cannot be used"
            messages = [*first, {"role": "assistant", "content": answer.text}, {"role": "user", "content": again}]
        raise GiveUpError(problem)

    def text(self, name: str, messages: Messages, temperature: float = 0.0, seed: int | None = None) -> Answer:
        """A reply as it is, if it is not empty."""
        return self.ask(name, messages, lambda text: text.strip() or None, "Please answer.", temperature, seed)[1]

    def close(self) -> None:
        """End the waits, so that the threads end, and let go of files and connections."""
        self.stop.set()
        self.model.close()
        if self.answers:
            self.answers.close()

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def account(self) -> str:
        """What was asked, in words."""
        return (
            f"{self.asked:,} requests, {self.repeated:,} of them repeated; {self.remembered:,} answers from before; "
            f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out"
        )

    def _answer(self, messages: Messages, temperature: float, seed: int | None, attempt: int) -> Answer:
        request: dict[str, Any] = {"model": self.endpoint.model, "messages": messages, "temperature": temperature}
        request |= {"max_tokens": self.endpoint.max_tokens} | ({} if seed is None else {"seed": seed})
        if self.answers and (answer := self.answers.get(request)):
            with self._lock:
                self.remembered += 1
            return answer
        with self._lock:
            self.asked += 1
            self.repeated += bool(attempt)
        answer = self.model.complete(request)
        with self._lock:
            self.tokens_in += answer.tokens_in
            self.tokens_out += answer.tokens_out
        if self.answers:
            self.answers.put(request, answer)
        return answer

    def _wait(self, name: str, attempt: int, asked: str | None) -> None:
        """Twice as long each time, spread so that threads do not ask all at once; as long as the server asks for."""
        if attempt + 1 == self.endpoint.tries:
            return
        spread = xxhash.xxh3_64_intdigest(f"{name} {attempt}".encode()) / 2**64
        delay = self.endpoint.wait * 2**attempt * (0.5 + spread / 2)
        if asked and asked.replace(".", "", 1).isdigit():
            delay = max(delay, float(asked))
        if self.stop.wait(min(delay, LONGEST_WAIT)):
            raise GiveUpError("stopped")


def open_asker(knobs: Knobs, section: str, answers: Path) -> Asker:
    """The model that a section of the recipe names, and a file for its answers. PunaError where it cannot be asked."""
    key = os.environ.get(knobs.key_env) if knobs.key_env else None
    if knobs.key_env and not key:
        raise PunaError(f"{section}.key_env = {knobs.key_env!r}: there is no such environment variable")
    endpoint = Endpoint(
        knobs.url, knobs.model, key, knobs.concurrency, knobs.timeout, knobs.tries, 1.0, knobs.max_tokens,
        f"{section}.url, .model = {knobs.model!r} and the key (.key_env)",
    )  # fmt: skip
    if not Path(knobs.url).is_dir():
        if not knobs.url.startswith(("http://", "https://")):
            raise PunaError(f"{section}.url = {knobs.url!r} is no http:// or https:// address and no model's directory")
        return Asker(HttpModel(endpoint), endpoint, answers)
    from puna.infer.local import LocalModel  # here, for it imports torch

    digest = xxhash.xxh3_128_hexdigest(b"".join(path.read_bytes() for path in model_files(Path(knobs.url))))
    return Asker(LocalModel.load(Path(knobs.url)), replace(endpoint, model=digest), answers)


def model_files(directory: Path) -> list[Path]:
    """The files that decide what a model's directory answers."""
    return sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".json", ".jinja"))


def ask_in_order(
    items: Iterable[T], work: Callable[[T], R], concurrency: int, stop: threading.Event, what: str = "questions"
) -> Generator[tuple[T, R | GiveUpError], None, None]:
    """The result of every item, in the items' order, worked on by so many threads, a few ahead of what is read.

    `stop` is set when nothing more is read, so that threads which wait give up. PunaError after 20 items in a row that
    were given up.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    owed, streak = iter(items), 0
    pool = ThreadPoolExecutor(concurrency)
    try:
        while True:
            for item in islice(owed, 4 * concurrency - len(waiting)):
                waiting.append((item, pool.submit(work, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            try:
                result = future.result()
                streak = 0
            except GiveUpError as error:
                result = error
                streak += 1
            yield item, result
            if streak == FAILURES and isinstance(result, GiveUpError):
                raise PunaError(
                    f"{FAILURES} {what} in a row failed, the last with: {result}; what was answered is kept, so the "
                    "same command goes on"
                )
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that is appended to; after them a last line that was cut off is removed from it."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            yield line
    os.truncate(path, end)
