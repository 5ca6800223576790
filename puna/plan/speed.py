"""Seconds of a training step: products, attention, memory traffic, what communication is not hidden, the bubble.

Every term is counted from shapes; the shares of the peaks are the processor's (machines.py). Communication that the
layout can run beside computation counts only where it is longer: FSDP's beside the blocks of the same micro-batch.
Tensor parallelism waits for its collectives, pipeline sends are asynchronous (section 3.3.2).
"""

import math
from dataclasses import astuple, dataclass

from puna.model.llama import LlamaConfig, flops_per_token
from puna.plan.layout import Job, Layout
from puna.plan.machines import LINK_EFFICIENCY, Machine, Processor
from puna.plan.memory import layer_parameters

EAGER = 3.5
"""Memory traffic of elementwise operations without a compiler over with one: ours, fp32 copies of norms and rotations;
fitted on torchtitan's 5,762 tokens/s beside its 6,667 compiled."""
LATENCY = 1e-5
"""Seconds for each step of a ring over the network, one step for each other rank; ours."""
FLASH_BACKWARD = 2.5
"""Products of FlashAttention's backward over its forward: five to two, the scores are made again."""
FP8_CAST = 13
"""Bytes of traffic for each element that enters an FP8 product: maximum, cast, and both again for the transpose; fitted
on torchtitan's 8,532 tokens/s."""


@dataclass(frozen=True)
class Volume:
    """Bytes that a rank receives in a step over each axis."""

    tp: float
    cp: float
    pp: float
    dp: float


@dataclass(frozen=True)
class Step:
    """Seconds of an optimizer step on the busiest rank."""

    products: float
    attention: float
    elementwise: float
    """Norms, rotations, SwiGLU, softmax: bound by memory bandwidth; FP8 casts."""
    recompute: float
    tp: float
    """Exposed communication, as cp and dp."""
    cp: float
    dp: float
    optimizer: float
    bubble: float

    @property
    def seconds(self) -> float:
        return sum(astuple(self))


def step_volume(job: Job, layout: Layout) -> Volume:
    """Bytes received by a rank in a step."""
    c, m = job.config, layout.micro_batches(job)
    tokens = layout.micro * job.seq_len / layout.cp
    layers = layout.layers_of(c)
    # all-gather and reduce-scatter of [tokens, dim] around attention and FFN, forward and backward, and forward again
    # when everything is done again
    passes = 12 if layout.recompute == "full" else 8
    tp = m * layers * passes * 2 * tokens * c.dim * (layout.tp - 1) / layout.tp
    kv = 2 * 2 * c.kv_heads * c.head_dim * layout.micro * job.seq_len / layout.tp  # keys and values of the whole row
    # gathered in forward and in backward, their gradients reduced in fp32
    cp = m * layers * kv * 4 * (layout.cp - 1) / layout.cp
    pp = 2 * m * layout.stages * 2 * tokens * c.dim / layout.tp if layout.pp > 1 else 0.0
    gather, reduce, times = _fsdp(job, layout)
    return Volume(tp, cp, pp, gather * times[0] + reduce * times[1])


def _fsdp(job: Job, layout: Layout) -> tuple[float, float, tuple[int, int]]:
    """Bytes of one gathering of the rank's weights (bf16) and one reduction of its gradients (fp32), and how often."""
    share = layout.dp * layout.cp
    if share == 1:
        return 0.0, 0.0, (0, 0)
    parameters = (layout.layers_of(job.config) * layer_parameters(job.config)) / layout.tp
    if layout.pp == 1:
        parameters += 2 * job.config.vocab_size * job.config.dim / layout.tp
    m, part = layout.micro_batches(job), (share - 1) / share
    gather, reduce = 2 * parameters * part, 4 * parameters * part
    if layout.shard == 0:  # an all-reduce is both, of gradients
        return 0.0, 2 * reduce, (0, 1)
    gathers = {1: 1, 2: 1, 3: 2 * m}[layout.shard]
    # interleaving runs PP micro-batches of a stage in a row and reduces their sum (section 3.3.2's N = PP)
    reductions = {1: 1, 2: math.ceil(m / layout.pp) if layout.stages > 1 else m, 3: m}[layout.shard]
    return gather, reduce, (gathers, reductions)


def elementwise_bytes(job: Job) -> float:
    """Memory traffic of a layer's forward for one token: two norms, rotation, SwiGLU, two sums, each read and write
    once in bf16."""
    c = job.config
    traffic = 2 * (11 * c.dim + 3 * c.ffn_dim) * (1 if job.compiled else EAGER)
    inputs = 3 * c.dim + c.ffn_dim  # of q k v, o, gate and up, down
    return traffic + (FP8_CAST * inputs if job.fp8 else 0)


def step_time(job: Job, layout: Layout, machine: Machine) -> Step:
    """Where the seconds of a step go."""
    c, p, m = job.config, machine.processor, layout.micro_batches(job)
    tokens = layout.micro * job.seq_len / layout.cp
    layers = layout.layers_of(c)
    if p.mfu is not None:
        flops = flops_per_token(c, job.seq_len) * job.batch_tokens
        return Step(flops / (p.bf16 * p.mfu * machine.count), 0, 0, 0, 0, 0, 0, 0, 0)

    # forward seconds of one micro-batch on a rank
    peak = (p.fp8 if job.fp8 and p.fp8 else p.bf16) * p.matmul
    products = layers * 2 * (layer_parameters(c) - 2 * c.dim) * tokens / layout.tp / peak
    head = 2 * c.vocab_size * c.dim * tokens / layout.tp / (p.bf16 * p.matmul)
    products += head if layout.pp == 1 else 0.0  # with PP the output counts as one of the layers
    attention = layers * 2 * job.seq_len * c.dim * tokens / layout.tp / (p.bf16 * p.attention)  # half of the square
    elementwise = layers * elementwise_bytes(job) * tokens / layout.tp / p.bandwidth
    again = {
        "none": 0.0,
        "selective": _selective(c) * products + elementwise,
        "full": products + attention + elementwise,
    }
    forward = products + attention + elementwise
    recompute = again[layout.recompute]

    # exposed communication of one micro-batch
    volume = step_volume(job, layout)
    tp = volume.tp / m / (p.link * LINK_EFFICIENCY)
    cp = volume.cp / m / (bandwidth(p, layout, "cp") * LINK_EFFICIENCY)
    # the loss passes over bf16 and fp32 logits and gradients (about 30 bytes each), the update over weight, copy,
    # gradient and two moments (as much); the output of a pipeline is in its layers
    softmax = 30 * c.vocab_size * tokens / layout.tp / p.bandwidth if layout.pp == 1 else 0.0
    state = 30 * c.layers * layer_parameters(c) / (layout.tp * layout.pp) / p.bandwidth
    state /= layout.dp * layout.cp if layout.shard else 1
    backward = 2 * (products + elementwise) + FLASH_BACKWARD * attention + recompute
    dp = _exposed_fsdp(job, layout, p, forward, backward)
    busy = m * (forward + backward + tp + cp + softmax)
    return Step(
        products=3 * m * products,
        attention=(1 + FLASH_BACKWARD) * m * attention,
        elementwise=m * (3 * elementwise + softmax),
        recompute=m * recompute,
        tp=m * tp,
        cp=m * cp,
        dp=dp,
        optimizer=state,
        bubble=busy * layout.bubble(job),
    )


def _selective(config: LlamaConfig) -> float:
    """Share of a layer's products done again: k, o and one of the FFN's three."""
    c = config
    again = c.dim * c.kv_heads * c.head_dim + c.dim * c.dim + c.dim * c.ffn_dim
    return again / (layer_parameters(c) - 2 * c.dim)


def _exposed_fsdp(job: Job, layout: Layout, p: Processor, forward: float, backward: float) -> float:
    """Seconds of FSDP's communication in a step that no computation hides."""
    gather, reduce, times = _fsdp(job, layout)
    speed = bandwidth(p, layout, "dp") * LINK_EFFICIENCY
    share, m = layout.dp * layout.cp, layout.micro_batches(job)
    ring = 0.0 if speed == p.link * LINK_EFFICIENCY else LATENCY * (share - 1) * layout.layers_of(job.config)
    gather, reduce = gather / speed + ring, reduce / speed + ring
    if layout.shard == 3:
        return m * (max(0.0, gather - forward) + max(0.0, gather + reduce - backward))
    return max(0.0, times[0] * gather - forward) + times[1] * max(0.0, reduce - backward)


def bandwidth(p: Processor, layout: Layout, axis: str) -> float:
    """Bytes a second for each rank in a collective over an axis: the node's link while the axis and all inside it fit
    in a node; else the network, of which a group has one port for each of its members in the node."""
    inner = {"tp": 1, "cp": layout.tp, "dp": layout.tp * layout.pp}[axis]
    size = {"tp": layout.tp, "cp": layout.cp, "dp": layout.dp * layout.cp}[axis]
    if inner * size <= p.node:
        return p.link
    members = max(1, p.node // inner)
    return min(p.link, p.network * min(members, size))
