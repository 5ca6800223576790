"""Peak memory of the loss at Llama 3's vocabulary, above the hidden states and the output matrix, beside torch's own.

    python benchmarks/loss_memory.py

4,096 tokens, dim 512, 128,256 words, with both gradients; each way in a process of its own, on a CPU.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.train.batches import Batch
from puna.train.losses import NextToken

TOKENS, DIM, VOCAB = 4096, 512, 128_256
WAYS = {
    "puna, fp32": torch.float32,
    "puna, fp32 matrix and bf16 products": torch.float32,
    "puna, bf16 matrix": torch.bfloat16,
    "cross_entropy of torch on all logits, bf16 matrix": torch.bfloat16,
    "linear_cross_entropy of torch, bf16 matrix": torch.bfloat16,
}


def loss_of(way: str, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    if "linear_cross_entropy" in way:
        return F.linear_cross_entropy(hidden, weight, labels)
    if "cross_entropy" in way:
        return F.cross_entropy((hidden @ weight.t()).float(), labels)
    batch = Batch(labels[None], labels[None], torch.zeros_like(labels)[None])
    loss = NextToken(compiled=False)
    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in way):
        return loss(hidden[None], weight, batch, loss.counts(batch))


def measure(way: str) -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.empty(TOKENS, DIM, dtype=WAYS[way]).normal_(generator=random).requires_grad_()
    weight = torch.empty(VOCAB, DIM, dtype=WAYS[way]).normal_(0, 0.02, generator=random).requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,), generator=random)
    loss_of(way, hidden[:8], weight[:64], labels[:8] % 64).backward()  # what the libraries take at their first call
    weight.grad = None
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    loss_of(way, hidden, weight, labels).backward()
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"| {way} | {rise:.2f} | {time.process_time() - start:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of the loss")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    way = parser.parse_args().way
    if way:
        measure(way)
        return
    print("| way | GiB above the inputs, gradients included | CPU seconds |\n|---|---|---|", flush=True)
    for each in WAYS:
        subprocess.run([sys.executable, __file__, "--way", each], check=True)


if __name__ == "__main__":
    main()
