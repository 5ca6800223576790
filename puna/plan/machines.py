"""Processors by their data sheets, and clusters of them by name: '64 x 8 h100', '1 x rtx4090', 'this'.

FLOP/s are dense matrix products. Bandwidths are bytes a second, one way, for one processor. What a data sheet cannot
know, the share of the peak that real products reach, is the one fitted number here and says where it comes from.
"""

import dataclasses
import re
from dataclasses import dataclass

from puna.errors import PunaError

GIB = 2**30


@dataclass(frozen=True)
class Processor:
    """One GPU, or one core of a CPU."""

    name: str
    bf16: float
    """Peak FLOP/s."""
    fp8: float | None
    """Peak FLOP/s, None where there is no FP8."""
    memory: float
    """Bytes. A data sheet's "80 GB" is 80 GiB less what the driver keeps."""
    bandwidth: float
    """Of its memory."""
    node: int
    """Processors that the fast link connects."""
    link: float
    """To a neighbour in the node."""
    network: float
    """To another node."""
    watts: float | None
    """Thermal design power of the processor alone; None where it is not known."""
    matmul: float
    """Share of the bf16 peak that large matrix products reach in training."""
    attention: float
    """Share of the bf16 peak that FlashAttention reaches, causal FLOPs counted once."""
    source: str
    """Where `matmul` comes from."""
    mfu: float | None = None
    """Whole training MFU where only that was measured; the time model is then not used."""
    outside: float = 1.5 * GIB
    """Bytes outside the allocator, of the CUDA context and NCCL; ours."""


# Data sheets: NVIDIA H100, H200, A100 80GB SXM, L40S, Ada whitepaper (RTX 4090, fp32 accumulation), Blackwell.
# NVLink is stated both ways by NVIDIA and halved here; 50 GB/s is 400 Gb/s a GPU (paper, section 3.3.1).
# Attention: FlashAttention-2 reaches 35% of an H100 (arXiv 2407.08608, abstract) and 50-73% of an A100
# (arXiv 2307.08691, abstract; 60% is taken).
# The 500 W part's attention is slower by as much as its products, our assumption.
# matmul: fitted on the one row named; puna/plan/published.py holds that row and all those that were not used.
_H100 = Processor(
    "H100", 989e12, 1979e12, 79.6 * GIB, 3.35e12, 8, 450e9, 50e9, 700, 0.56, 0.35,
    "fitted on the paper's 400 TFLOP/s on 16,384 GPUs, table 4",
)  # fmt: skip
_A100 = Processor(
    "A100", 312e12, None, 79.6 * GIB, 2.04e12, 8, 300e9, 25e9, 400, 0.634, 0.60,
    "fitted on torchtitan's 8B on 64 A100",
)  # fmt: skip
PROCESSORS: dict[str, Processor] = {
    "h100": _H100,
    # torchtitan's benchmark machine: less power, slower and larger memory (its benchmarks of December 2024)
    "h100-500w": dataclasses.replace(
        _H100, name="H100 500 W", memory=94.5 * GIB, bandwidth=2.4e12, watts=500, matmul=0.457, attention=0.286,
        source="fitted on torchtitan's compiled 8B on 8 GPUs",
    ),
    "h200": dataclasses.replace(
        _H100, name="H200", memory=140.4 * GIB, bandwidth=4.8e12, source="the H100's, our assumption"
    ),
    "b200": dataclasses.replace(
        _H100, name="B200", bf16=2250e12, fp8=4500e12, memory=178 * GIB, bandwidth=7.7e12, link=900e9, watts=1000,
        source="the H100's share of the peak, our assumption",
    ),
    "a100": _A100,
    "l40s": dataclasses.replace(
        _A100, name="L40S", bf16=362e12, fp8=733e12, memory=44.5 * GIB, bandwidth=864e9, link=25e9, watts=350,
        matmul=0.60, source="our assumption",
    ),
    "rtx4090": dataclasses.replace(
        _A100, name="RTX 4090", bf16=165e12, fp8=330e12, memory=23.5 * GIB, bandwidth=1008e9, link=25e9, network=1.25e9,
        watts=450, source="the A100's share of the peak, our assumption",
    ),
    "rtx3090": dataclasses.replace(
        _A100, name="RTX 3090", bf16=71e12, memory=23.5 * GIB, bandwidth=936e9, link=12e9, network=1.25e9, watts=350,
        source="the A100's share of the peak, our assumption",
    ),
}  # fmt: skip

LINK_EFFICIENCY = 0.8
"""Share of a link's bandwidth that large collectives reach; ours (NCCL's bus bandwidth is commonly 75-90%)."""


@dataclass(frozen=True)
class Machine:
    """Equal processors in equal nodes."""

    processor: Processor
    count: int

    @property
    def name(self) -> str:
        """As the user would write it."""
        p = self.processor
        nodes = self.count // p.node
        return f"{nodes:,} x {p.node} {p.name}" if nodes > 1 else f"{self.count} x {p.name}"


def find_machine(text: str) -> Machine:
    """`this` or `this laptop`; a processor; several: `8 x h100`; nodes of several: `64 x 8 h100`.

    Raises PunaError that lists the processors.
    """
    words = text.lower().replace(",", "").split()
    if words[:1] == ["this"]:
        return this_machine()
    found = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x?)?([a-z][a-z0-9-]*)", "".join(words))
    known = PROCESSORS.get(found[3]) if found else None
    if not found or not known:
        raise PunaError(
            f"machine {text!r} is not known; use `this`, {', '.join(PROCESSORS)}, several: '8 x h100', "
            "or nodes of several: '64 x 8 h100'"
        )
    per_node = int(found[2] or 1)
    count = int(found[1] or 1) * per_node
    if count < 1:
        raise PunaError(f"machine {text!r} has no processor")
    node = per_node if found[1] and found[2] else min(count, known.node)
    if count % node:
        raise PunaError(f"machine {text!r}: {count} is not a multiple of the {node} {known.name} in a node")
    return Machine(dataclasses.replace(known, node=node), count)


def this_machine() -> Machine:
    """The machine we are on, its peak measured in about a second."""
    import platform

    import psutil
    import torch

    from puna.machine import cpu_dtype, peak_flops, physical_cores

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        like = next((p for p in PROCESSORS.values() if p.name.lower() in properties.name.lower()), PROCESSORS["a100"])
        gpu = dataclasses.replace(
            like,
            name=properties.name,
            memory=properties.total_memory,
            bf16=max(like.bf16, peak_flops(torch.device("cuda"), torch.bfloat16)),
            node=count,
        )
        return Machine(gpu, count)
    cores = physical_cores()
    core = Processor(
        name=f"core of {platform.machine()}",
        bf16=peak_flops(torch.device("cpu"), cpu_dtype()),
        fp8=None,
        memory=psutil.virtual_memory().total / cores,
        # not used while mfu is given; 10 GB/s a core is our assumption for what decoding can read
        bandwidth=10e9,
        node=cores,
        link=5e9,
        network=1e9,
        watts=None,
        matmul=1.0,
        attention=1.0,
        source="small models on CPUs, measured by puna's authors; --calibrate measures this recipe's",
        mfu=0.35,
        outside=0.3 * GIB,
    )
    return Machine(core, cores)
