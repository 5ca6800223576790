"""Does the engine's memory grow? Requests of all kinds for a bounded time; the resident memory of each tenth of it.

OMP_NUM_THREADS=1 python benchmarks/soak.py --minutes 3
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch

from puna.infer.engine import Engine, Sampling
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

KINDS: list[dict[str, Any]] = [
    {}, {"temperature": 1.0, "top_p": 0.9}, {"logprobs": 3, "prompt_logprobs": 1}, {"speculate": "ngram"},
    {"regex": "[a-f ]{1,30}", "temperature": 1.0}, {"stop": ("e", "tt")},
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Llama(replace(PRESETS["1m"], vocab_size=272, max_seq_len=1024)).init_weights()
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    engine = Engine(model, tokenizer, blocks=300, rows=32)
    random, process = np.random.default_rng(0), psutil.Process()
    alive: list[int] = []
    requests, tenth, used = 0, 60 * args.minutes / 10, []
    start = time.monotonic()
    while len(used) < 10:
        while len(alive) < 40:
            prompt = random.integers(random.choice([4, 256]), size=random.integers(1, 300)).tolist()
            sampling = Sampling(int(random.integers(1, 100)), **KINDS[requests % len(KINDS)])
            alive.append(engine.add(prompt, sampling, requests))
            requests += 1
        if random.random() < 0.05:
            engine.abort(alive[random.integers(len(alive))])
        ended = {output.request for output in engine.step() if output.finish}
        alive = [request for request in alive if request not in ended]
        if time.monotonic() - start > tenth * (len(used) + 1):
            used.append(process.memory_info().rss / 2**20)
            print(f"{requests:,} requests, {used[-1]:.1f} MiB", flush=True)
    print(f"growth from the second tenth to the last: {100 * (used[-1] / used[1] - 1):.2f}%")


if __name__ == "__main__":
    main()
