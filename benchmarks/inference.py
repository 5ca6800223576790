"""Inference on a CPU beside llama.cpp and transformers: the same random weights, in turns, one process, CPU time.

    python benchmarks/inference.py [--rounds 5] [--threads 1] [--only NAME ...]

126M parameters: 12 layers, width 768, 12 heads on 4 key-value heads, feed-forward 2,048, vocabulary 32,768. puna is
measured through its engine, so that scheduling and the choice of a token count; llama.cpp through llama_decode(), and
transformers through the model's forward, without either. llama.cpp comes with `llama-cpp-python`, compiled for this
machine (pip builds it from source); the GGUF files are those that puna exports. docs/inference.md has the results.
"""

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from spread import spread

from puna.infer.engine import Engine, Sampling
from puna.model.gguf import save_gguf
from puna.model.int8 import to_int8
from puna.model.llama import Llama, LlamaConfig
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train.save import save_model

SPECIAL = 256
CONFIG = LlamaConfig(32_768, dim=768, layers=12, heads=12, kv_heads=4, ffn_dim=2048, rope_scaling=None)
PROMPT, CONTEXT, ROWS = 512, 128, 16
PUNA = {"puna fp32": "fp32", "puna bf16": "bf16", "puna int8": "int8", "puna int8, weights only": "int8_weights"}
LLAMA_CPP = {"llama.cpp F16": "fp16", "llama.cpp BF16": "bf16", "llama.cpp Q8_0": "q8_0"}
TRANSFORMERS = {"transformers bf16": torch.bfloat16, "transformers fp32": torch.float32}
GOALS = [
    ("decode, batch 1", "puna bf16", ("llama.cpp F16", "llama.cpp BF16"), 1.0),
    ("decode, batch 1", "puna bf16", ("transformers bf16", "transformers fp32"), 3.0),
    ("decode, batch 1", "puna int8", ("llama.cpp Q8_0",), 1.0),
    ("prefill 512", "puna bf16", ("llama.cpp F16", "llama.cpp BF16"), 1.1),
    ("decode, batch 16", "puna bf16", ("llama.cpp F16", "llama.cpp BF16"), 1.3),
    ("prefill 512", "puna int8", ("llama.cpp Q8_0",), 1.1),
    ("decode, batch 16", "puna int8", ("llama.cpp Q8_0",), 1.3),
]
Task = tuple[Callable[[], Any], int, int]
"""A step, the tokens that it computes, and how many steps make a turn."""


def random_tokens(rows: int, length: int) -> list[list[int]]:
    return torch.randint(CONFIG.vocab_size - SPECIAL, (rows, length)).tolist()


def tasks(prefill: Callable[[], Any], decode: Callable[[int], Callable[[], Any]]) -> dict[str, Task]:
    """`decode(rows)` starts that many sequences of CONTEXT tokens and gives the step that adds one to each."""
    return {
        "prefill 512": (prefill, PROMPT, 1),
        "decode, batch 1": (decode(1), 1, 24),
        "decode, batch 16": (decode(ROWS), ROWS, 4),
    }


def puna(folder: Path, precision: str) -> dict[str, Task]:
    model, tokenizer = make_model(), make_tokenizer()
    if precision in ("int8", "int8_weights"):
        model = to_int8(model, precision)  # pyright: ignore[reportArgumentType]
    model = model.float() if precision == "fp32" else model

    def prefill() -> None:
        request = engines[0].add(random_tokens(1, PROMPT)[0], Sampling(max_tokens=8, ignore_stop=True))
        while not any(output.tokens for output in engines[0].step()):
            pass
        engines[0].abort(request)
        engines[0].step()

    def decode(rows: int) -> Callable[[], Any]:
        engine = Engine(model, tokenizer, blocks=1024)
        for prompt in random_tokens(rows, CONTEXT):
            engine.add(prompt, Sampling(max_tokens=800, ignore_stop=True))
        while sum(len(output.tokens) for output in engine.step()) < rows:
            pass
        return engine.step

    engines = [Engine(model, tokenizer, blocks=1024)]
    return tasks(prefill, decode)


def llama_cpp(folder: Path, form: str) -> dict[str, Task]:
    api: Any = importlib.import_module("llama_cpp")

    path = folder / f"{form}.gguf"
    if not path.exists():
        save_gguf(make_model(), make_tokenizer(), path, form, "random")
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())

    def context(rows: int) -> tuple[Any, Any]:
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 1024 * rows, PROMPT, PROMPT, rows
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        return api.llama_init_from_model(model, params), api.llama_batch_init(PROMPT, 0, 1)

    def run(made: tuple[Any, Any], entries: list[tuple[int, int, int, bool]]) -> None:
        """Entries: token, position, sequence, whether its logits are wanted."""
        batch = made[1]
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if api.llama_decode(made[0], batch):
            raise RuntimeError("llama_decode failed")

    def prefill() -> None:
        api.llama_memory_clear(api.llama_get_memory(whole[0]), False)
        tokens = random_tokens(1, PROMPT)[0]
        run(whole, [(token, i, 0, i == PROMPT - 1) for i, token in enumerate(tokens)])

    def decode(rows: int) -> Callable[[], Any]:
        made = context(rows)
        for row, prompt in enumerate(random_tokens(rows, CONTEXT)):
            run(made, [(token, i, row, i == CONTEXT - 1) for i, token in enumerate(prompt)])
        place = [CONTEXT]

        def step() -> None:
            run(made, [(7 * row + place[0], place[0], row, True) for row in range(rows)])
            place[0] += 1

        return step

    whole = context(1)
    return tasks(prefill, decode)


def transformers(folder: Path, dtype: torch.dtype) -> dict[str, Task]:
    from transformers import AutoModelForCausalLM, DynamicCache

    if not (folder / "hf").exists():
        save_model(make_model(), make_tokenizer(), folder / "hf")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=dtype)

    @torch.inference_mode()
    def run(tokens: list[list[int]], cache: Any) -> None:
        model(torch.tensor(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1)

    def decode(rows: int) -> Callable[[], Any]:
        cache = DynamicCache()
        run(random_tokens(rows, CONTEXT), cache)
        return lambda: run(random_tokens(rows, 1), cache)

    return tasks(lambda: run(random_tokens(1, PROMPT), DynamicCache()), decode)


def make_model() -> Llama:
    return Llama(CONFIG).init_weights(torch.Generator().manual_seed(1)).to(torch.bfloat16).eval()


def make_tokenizer() -> Tokenizer:
    """A vocabulary of the right size, which nothing here reads: single bytes, then pairs."""
    words = [bytes([i]) for i in range(256)]
    words += [bytes([i // 256, i % 256]) for i in range(CONFIG.vocab_size - SPECIAL - 256)]
    return Tokenizer({word: rank for rank, word in enumerate(words)}, special_names(SPECIAL))


def measure(contestants: dict[str, dict[str, Task]], rounds: int) -> dict[tuple[str, str], list[float]]:
    """(task, contestant) -> tokens per CPU-second in each round; all take turns, the first round is thrown away."""
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for task in next(iter(contestants.values())):
            for name, theirs in contestants.items():
                step, tokens, steps = theirs[task]
                start = time.process_time()
                for _ in range(steps):
                    step()
                speed = tokens * steps / (time.process_time() - start)
                if number:
                    found.setdefault((task, name), []).append(speed)
    return found


def report(found: dict[tuple[str, str], list[float]]) -> None:
    names, titles = list(dict.fromkeys(n for _, n in found)), list(dict.fromkeys(t for t, _ in found))
    print(f"| tokens per CPU-second | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}")
    for name in names:
        print(
            f"| {name} | {' | '.join(spread(found[title, name], 0 if title != titles[1] else 1) for title in titles)} |"
        )
    print("\n| | ratio | goal |\n|---|---|---|")
    for title, ours, peers, goal in GOALS:
        there = [peer for peer in peers if (title, peer) in found]
        if there and (title, ours) in found:
            best = max(there, key=lambda peer: statistics.median(found[title, peer]))
            ratios = [a / b for a, b in zip(found[title, ours], found[title, best])]
            print(f"| {title}: {ours} / {best} | {spread(ratios, 2)} | >= {goal} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[*PUNA, *LLAMA_CPP, *TRANSFORMERS], metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    contestants = {}
    with tempfile.TemporaryDirectory() as folder:
        makers: list[tuple[dict[str, Any], Callable[[Path, Any], dict[str, Task]]]]
        makers = [(PUNA, puna), (LLAMA_CPP, llama_cpp), (TRANSFORMERS, transformers)]
        for table, make in makers:
            for name in [name for name in table if name in options.only]:
                try:
                    contestants[name] = make(Path(folder), table[name])
                except ImportError as error:
                    print(f"{name} left out: {error}", file=sys.stderr)
        report(measure(contestants, options.rounds))


if __name__ == "__main__":
    main()
