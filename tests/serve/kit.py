"""Live servers over a small random Llama, or over an engine whose outputs a test writes."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import torch
import uvicorn

from puna.infer.engine import Engine, Output, Sampling
from puna.infer.text import OutputText
from puna.model.llama import PRESETS, Llama
from puna.serve.app import create_app
from puna.serve.guard import Access
from puna.serve.metrics import Metrics
from puna.serve.served import Served
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.tools import open_toolbox

VOCAB, MAX_LEN = 256 + 16, 2048
BYTES = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
TAG = "<|python_tag|>"


def ids_of(output: str) -> list[int]:
    """Token ids of what a model might write; `TAG` stands for the special token."""
    parts = output.split(TAG)
    return BYTES.encode(parts[0]) + [i for part in parts[1:] for i in (BYTES.python_tag_id, *BYTES.encode(part))]


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Scripted:
    """An engine that says what it was told to, a token a step, and then ends its turn.

    Attributes:
        script: from (prompt, number of the completion) to the output's text.
        gate: steps wait for it, so that a test can hold the engine.
    """

    def __init__(self, script: Callable[[Sequence[int], int], str] = lambda prompt, number: "Hello there!") -> None:
        self.script = script
        self.tokenizer = BYTES
        self.model: Any = SimpleNamespace(config=SimpleNamespace(max_seq_len=4096))
        self.total_blocks = self.free_blocks = 1000
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0
        self.fail: Exception | None = None
        self.asked: list[tuple[list[int], Sampling]] = []
        self.aborted: list[tuple[int, int]] = []
        """(request, steps by then)"""
        self._going: dict[int, tuple[list[int], Sampling, OutputText, int]] = {}
        self.waiting = 0

    @property
    def running(self) -> int:
        return len(self._going)

    def grammar(self, sampling: Sampling) -> Any:
        return None

    def add(self, prompt: Sequence[int], sampling: Sampling, number: int = 0, grammar: Any = None) -> int:
        request = len(self.asked)
        self.asked.append((list(prompt), sampling))
        ids = [*ids_of(self.script(prompt, number)), BYTES.eot_id]
        self._going[request] = ids, sampling, OutputText(BYTES, sampling.stop), sampling.max_tokens
        return request

    def abort(self, request: int) -> None:
        del self._going[request]
        self.aborted.append((request, self.steps))

    def step(self) -> list[Output]:
        assert self.gate.wait(10)
        self.steps += 1
        if self.fail:
            raise self.fail
        outputs = []
        for request, (ids, sampling, text, room) in list(self._going.items()):
            token, *rest = ids
            output = Output(request, [token])
            if token == BYTES.eot_id:
                output.finish = "stop"
            else:
                output.text = text.push(token) if token < 256 else ""
                output.finish = "stop" if text.stopped else "length" if room == 1 else None
            if output.finish:
                output.text += text.finish()
                del self._going[request]
            else:
                self._going[request] = rest, sampling, text, room - 1
            outputs.append(output)
        return outputs


@contextmanager
def serving(
    *engines: Any, access: Access | None = None, most: int = 64, tools: Sequence[str] = (), profile: Any = "hf"
) -> Iterator[SimpleNamespace]:
    """A live server for engines, named m0, m1, ...: .url, .client, .models, .server."""
    metrics = Metrics()
    models = [Served(f"m{i}", engine, metrics, profile, most) for i, engine in enumerate(engines)]
    app = create_app(models, metrics, access or Access(), open_toolbox(tools) if tools else None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=20) as client:
            yield SimpleNamespace(url=url, client=client, models=models, server=server, thread=thread)
    finally:
        for engine in engines:
            getattr(engine, "gate", threading.Event()).set()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def random_engine(max_len: int = MAX_LEN) -> Engine:
    """A Llama with nothing to say; its logits are far enough apart for greedy choice to be stable."""
    config = replace(
        PRESETS["1m"], vocab_size=VOCAB, dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=64, max_seq_len=max_len
    )
    torch.set_num_threads(1)
    return Engine(Llama(config).init_weights(torch.Generator().manual_seed(3)), BYTES, blocks=256)
