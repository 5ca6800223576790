"""K samples of one prompt, its blocks shared, against the same prompts without anything to share.

Both contestants are the same engine on the same work; the other's prompts differ in their first token, so that no
block is like another. Turns are taken within one process, in CPU time; the ratio of each round, then the median and
the range over the rounds.

    OMP_NUM_THREADS=1 python benchmarks/shared_prompt.py
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from puna.infer.engine import Engine, Sampling
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="16m", choices=PRESETS)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--output", type=int, default=32, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", action="store_true", help="PyTorch instead of the compiled kernels")
    args = parser.parse_args()
    torch.set_num_threads(1)

    config = replace(PRESETS[args.preset], vocab_size=272, max_seq_len=8192)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0))
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    sampling = Sampling(args.output, 1.0, ignore_stop=True)
    ids = np.random.default_rng(0).integers(256, size=args.prompt).tolist()

    def seconds(prompts: list[list[int]], n: int) -> float:
        engine = Engine(model, tokenizer, native=not args.torch)
        engine.generate([[1]], Sampling(1))
        start = time.process_time()
        engine.generate(prompts, sampling, n)
        return time.process_time() - start

    alike, unlike = [ids], [[i, *ids[1:]] for i in range(args.samples)]
    seconds(alike, 1)
    ratios = []
    for turn in range(args.rounds):
        shared, apart = seconds(alike, args.samples), seconds(unlike, 1)
        ratios.append(apart / shared)
        print(f"round {turn + 1}: shared {shared:.2f} s, apart {apart:.2f} s, ratio {ratios[-1]:.2f}", flush=True)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    what = f"{args.samples} samples of {args.output} tokens, prompt of {args.prompt}, {args.preset}"
    print(f"{what}: {middle:.2f} ({low:.2f}-{high:.2f}) times the speed")


if __name__ == "__main__":
    main()
