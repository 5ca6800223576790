"""Bytes that training needs on the fullest rank, by what holds them.

State: fp32 weights and two AdamW moments, fp32 gradients, and a bf16 copy of the weights for the products (mixed
precision as in FSDP2 and section 3.3.2). Activations: what backward reads again, in bf16. The formulas count tensors of
puna/model/llama.py; published.py compares them with torchtitan's published readings.
"""

from dataclasses import astuple, dataclass

from puna.model.llama import LlamaConfig
from puna.plan.layout import Job, Layout
from puna.train.losses import CHUNK

FRAGMENTATION = 1.05
"""Memory that an allocator reserves over what is in use; ours."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest rank."""

    weights: float
    """fp32 master and bf16 copy."""
    gradients: float
    optimizer: float
    activations: float
    """Kept from forward to backward, over all micro-batches in flight."""
    gathered: float
    """Weights and gradients of the blocks that FSDP has whole at the moment."""
    working: float
    """The larger of the logits and one block in backward, which come and go at different times."""

    @property
    def total(self) -> float:
        return sum(astuple(self))

    @property
    def reserved(self) -> float:
        """As an allocator reports it."""
        return self.total * FRAGMENTATION


def layer_parameters(config: LlamaConfig) -> int:
    attention = 2 * config.dim * config.head_dim * (config.heads + config.kv_heads)
    return attention + 3 * config.dim * config.ffn_dim + 2 * config.dim


def kept(config: LlamaConfig, recompute: str) -> float:
    """Bytes a token and layer that forward keeps.

    none: input, q and the attention's output, sum, both norms' outputs, k, v, three of the FFN. selective: input, q, v,
    the attention's output, the FFN's gate and output; the other products are done again. full: the input.
    """
    d, kv, f = config.dim, config.kv_heads * config.head_dim, config.ffn_dim
    elements = {"none": 6 * d + 2 * kv + 3 * f, "selective": 4 * d + kv + f, "full": d}[recompute]
    return 2 * elements


def in_flight(layout: Layout, job: Job) -> float:
    """Micro-batches, of all the layers of the first rank, whose activations are kept at once.

    1F1B keeps PP of them; interleaving keeps 2 (PP - 1) + (V - 1) PP + 1 of V-ths (arXiv 2104.04473, section 2.2).
    """
    pp, v, m = layout.pp, layout.stages, layout.micro_batches(job)
    if pp == 1:
        return 1
    return min(m, pp) if v == 1 else min(m * v, 2 * (pp - 1) + (v - 1) * pp + 1) / v


def training_memory(job: Job, layout: Layout) -> Memory:
    """The larger of the first rank (most micro-batches in flight) and the last (the logits)."""
    return max((_rank(job, layout, last) for last in (False, True)), key=lambda memory: memory.total)


def _rank(job: Job, layout: Layout, last: bool) -> Memory:
    c, tp = job.config, layout.tp
    whole = layout.pp == 1
    layers = layout.layers_of(c) - (0 if whole else 1)  # the end stages have a layer less
    vocabulary = c.vocab_size * c.dim
    parameters = (layers * layer_parameters(c) + vocabulary * (2 if whole else 1) + c.dim) / tp
    share = layout.dp * layout.cp  # FSDP shards over both
    tokens = layout.micro * job.seq_len / layout.cp

    copy, gathered = 2 * parameters, 0.0  # the bf16 copy
    if layout.shard == 3:  # two blocks and both ends are gathered at once, one block's gradients reduced
        ends = vocabulary * (2 if whole else 1)
        copy, gathered = 0.0, (2 * (2 * layer_parameters(c) + ends) + 6 * max(layer_parameters(c), vocabulary)) / tp
    elif layout.shard == 2:
        gathered = 4 * layers / layout.stages * layer_parameters(c) / tp
    weights = 4 * parameters / (share if layout.shard else 1) + copy
    gradients = 4 * parameters / (share if layout.shard >= 2 else 1)
    if layout.shard == 1:  # the reduced shard beside the sum
        gradients += 4 * parameters / share
    optimizer = 8 * parameters / (share if layout.shard else 1)

    pending = 1.0 if last else in_flight(layout, job)
    activations = layers * kept(c, layout.recompute) * tokens / tp * pending
    # a block's activations (made again under recomputation) with the gradients of its FFN and residual stream
    block = (kept(c, "none") if layout.recompute != "none" else 0) + 2 * (3 * c.ffn_dim + 3 * c.dim)
    working = block * tokens / tp
    logits = _logits(job, tokens, tp) / tp if last or whole else 0.0
    if (
        tp > 1
    ):  # [tokens, dim] gathered: input and partial sum of attention and of FFN; of the output, with its gradient
        working, logits = working + 8 * c.dim * tokens, logits + 4 * c.dim * tokens
    return Memory(weights, gradients, optimizer, activations, gathered, max(working, logits))


def _logits(job: Job, tokens: float, tp: int) -> float:
    """At their peak, in backward: log-probabilities and two gradients in fp32, 12 bytes each; a softmax over shares of
    the vocabulary has one more. puna's chunks need the weight's gradient in fp32 beside them."""
    c = job.config
    each = 12 if tp == 1 else 16
    if job.whole_logits:
        return each * tokens * c.vocab_size
    return each * min(CHUNK, tokens) * c.vocab_size + 4 * c.vocab_size * c.dim + 2 * tokens * c.dim
