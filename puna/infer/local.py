"""A model's directory asked as an endpoint is: one engine that answers many threads in one batch."""

import queue
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import xxhash

from puna.endpoint import Answer, GiveUpError
from puna.errors import PunaError
from puna.infer.engine import Engine
from puna.infer.request import Sampling
from puna.text.chat import Chat, Message, render


class LocalModel:
    """Answers requests of /chat/completions with an engine, which belongs to one thread of this object's.

    An answer depends on its request alone, not on what else is in the batch: a request without a seed gets one from
    its content.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[tuple[list[int], Sampling, Future[Answer]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="local model", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, directory: Path) -> "LocalModel":
        return cls(Engine.load(directory))

    def complete(self, request: dict[str, Any]) -> Answer:
        chat = Chat([Message(each["role"], each["content"]) for each in request["messages"]])
        prompt = render(chat, self._engine.tokenizer, generation_prompt=True).ids
        seed = request.get("seed")
        seed = xxhash.xxh3_64_intdigest(repr(prompt).encode()) if seed is None else seed % 2**64
        future: Future[Answer] = Future()
        self._inbox.put((prompt, Sampling(request["max_tokens"], request["temperature"], seed=seed), future))
        return future.result()

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()

    def _work(self) -> None:
        going: dict[int, tuple[Future[Answer], list[str], int]] = {}
        try:
            while True:
                while not going or not self._inbox.empty():
                    job = self._inbox.get()
                    if job is None:
                        return
                    self._add(*job, going)
                for output in self._engine.step():
                    future, texts, tokens = going[output.request]
                    texts.append(output.text)
                    going[output.request] = future, texts, tokens + len(output.tokens)
                    if output.finish:
                        del going[output.request]
                        future.set_result(Answer("".join(texts), output.finish, 0, tokens + len(output.tokens)))
        except BaseException as error:  # whoever waits has to know
            for future, _, _ in going.values():
                future.set_exception(PunaError(f"the engine stopped: {error}"))
            raise
        finally:
            for future, _, _ in going.values():
                if not future.done():
                    future.set_exception(GiveUpError("the engine was closed"))

    def _add(
        self,
        prompt: list[int],
        sampling: Sampling,
        future: Future[Answer],
        going: dict[int, tuple[Future[Answer], list[str], int]],
    ) -> None:
        try:
            going[self._engine.add(prompt, sampling)] = future, [], 0
        except PunaError as error:  # for example a prompt that is too long
            future.set_exception(GiveUpError(str(error)))
