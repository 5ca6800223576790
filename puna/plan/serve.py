"""What serving takes: weights and KV cache against the memory of nodes, and the speeds that bandwidth allows.

Tensor parallel in a node, pipeline parallel over nodes, as the paper serves the 405B (section 6.1). Speeds are limits,
not expectations: weights and cache read once a step at full bandwidth, products at the processor's share of its peak.
"""

import math
from dataclasses import dataclass
from typing import Literal

from puna.errors import PunaError
from puna.model.llama import LlamaConfig, count_parameters
from puna.plan.machines import GIB, Machine

Precision = Literal["bf16", "fp8", "int8"]
USABLE = 0.9
"""Share of memory for weights and cache; vLLM's default gpu_memory_utilization."""
PREFILL_CHUNK = 8192
"""Tokens that go through the model at once; ours."""


@dataclass(frozen=True)
class Serving:
    """Bytes over all processors, unless said."""

    precision: Precision
    context: int
    batch: int
    weights: float
    cache_per_token: float
    cache: float
    activations: float
    processors: int
    tp: int
    pp: int
    each: float
    """Bytes of one processor."""
    usable: float
    fits: bool
    most_tokens: float
    """Tokens of cache that the memory left by the weights holds."""
    decode_limit: float
    """Tokens a second, all sequences together."""
    decode_limit_one: float
    """The same for a single short sequence: one node works at a time."""
    prefill_limit: float
    smallest: str
    """Fewest processors of this kind that hold it."""


def weight_bytes(config: LlamaConfig, precision: Precision) -> float:
    """bf16: two bytes each. fp8: the FFN's matrices but those of the first and last layer in one byte, with a scale a
    row in fp32 (paper, section 6.2). int8: every matrix of the blocks."""
    c, parameters = config, count_parameters(config)
    ffn = 3 * c.dim * c.ffn_dim
    if precision == "bf16":
        return 2.0 * parameters
    if precision == "fp8":
        layers, narrow, rows = max(0, c.layers - 2), ffn, 2 * c.ffn_dim + c.dim
    else:
        kv = c.kv_heads * c.head_dim
        narrow = ffn + 2 * c.dim * (c.dim + kv)
        layers, rows = c.layers, 2 * c.ffn_dim + 3 * c.dim + 2 * kv
    return 2.0 * parameters - layers * narrow + 4 * layers * rows


def kv_bytes(config: LlamaConfig) -> int:
    """Keys and values of one token in bf16."""
    return 2 * 2 * config.layers * config.kv_heads * config.head_dim


def product_seconds(config: LlamaConfig, machine: Machine, precision: Precision) -> float:
    """Of the matrix products for one token, with every processor busy. int8 weights are widened to bf16."""
    p = machine.processor
    rate = p.matmul if p.mfu is None else p.mfu
    total = count_parameters(config) - config.vocab_size * config.dim
    narrow = max(0, config.layers - 2) * 3 * config.dim * config.ffn_dim if precision == "fp8" else 0
    return 2 * ((total - narrow) / p.bf16 + narrow / (p.fp8 or p.bf16)) / (rate * machine.count)


def serving(config: LlamaConfig, machine: Machine, precision: Precision, context: int, batch: int) -> Serving:
    """`batch` sequences of `context` tokens at once on the whole machine.

    Raises PunaError where the processor has no FP8 and where the context is longer than the model's.
    """
    p = machine.processor
    if precision == "fp8" and not p.fp8 and p.watts is not None:
        raise PunaError(f"precision fp8: a {p.name} has no FP8 products; use bf16 or int8")
    if context > config.max_seq_len:
        raise PunaError(f"context {context:,} is longer than the model's max_seq_len {config.max_seq_len:,}")
    weights, token = weight_bytes(config, precision), kv_bytes(config)
    cache = float(token * context * batch)

    def each(n: int) -> float:
        """Keys and values cannot be split further than their heads in a node; PP halves the layers."""
        tp = math.gcd(min(n, p.node), config.heads)
        pp = max(1, n // tp)
        return weights / (tp * pp) + cache / (min(tp, config.kv_heads) * pp) + activations / tp

    activations = 2.0 * min(PREFILL_CHUNK, context) * (6 * config.dim + 3 * config.ffn_dim)
    usable = USABLE * p.memory
    n = machine.count
    tp = math.gcd(min(n, p.node), config.heads)
    steps = [2**i for i in range(12)]
    smallest = next((s for s in steps if each(s) <= usable), None)
    room = (usable - weights / n - activations / tp) * n
    # what a decoding step reads: everything but the input embedding's table
    read = weights - 2.0 * config.vocab_size * config.dim
    product = product_seconds(config, machine, precision)
    step = max((read + cache) / (p.bandwidth * n), batch * product)
    attention = 2.0 * context * config.dim * config.layers / (p.bf16 * p.attention * n)
    return Serving(
        precision, context, batch, weights, token, cache, activations, n, tp, max(1, n // tp), each(n), usable,
        each(n) <= usable, max(0.0, room / token), batch / step, p.bandwidth * tp / read, 1 / (product + attention),
        f"{smallest} x {p.name}" if smallest else f"more than {steps[-1]:,} x {p.name} of {p.memory / GIB:.0f} GiB",
    )  # fmt: skip
