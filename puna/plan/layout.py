"""How a model is laid over processors: [TP, CP, PP, DP], innermost first (paper, section 3.3.2).

TP splits every matrix and the sequence between them, CP splits the sequence, PP the layers, DP the batch; FSDP spreads
state over DP and CP together.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from puna.errors import PunaError
from puna.model.llama import LlamaConfig
from puna.plan.machines import Machine

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Job:
    """What is to be trained, whatever the layout."""

    config: LlamaConfig
    seq_len: int
    batch_rows: int
    """Rows of an optimizer step."""
    fp8: bool = False
    """The blocks' matrix products in FP8."""
    compiled: bool = True
    """Elementwise operations fused."""
    whole_logits: bool = False
    """The logits of a micro-batch at once, in fp32, as torchtitan had it; puna goes in chunks."""

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.seq_len


@dataclass(frozen=True)
class Layout:
    tp: int = 1
    cp: int = 1
    pp: int = 1
    dp: int = 1
    stages: int = 1
    """Pipeline stages a rank (V): above 1 the schedule is interleaved."""
    micro: int = 1
    """Rows of a micro-batch."""
    shard: int = 0
    """FSDP: 0 nothing, 1 the optimizer, 2 and the gradients, 3 and the weights."""
    recompute: Recompute = "none"
    """Activation checkpointing: none; selective, every second matrix product again (torchtitan's); full, all again."""

    @property
    def degrees(self) -> tuple[int, int, int, int]:
        return self.tp, self.cp, self.pp, self.dp

    @property
    def processors(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    def micro_batches(self, job: Job) -> int:
        """Micro-batches of a step in each pipeline (M)."""
        return job.batch_rows // (self.dp * self.micro)

    def bubble(self, job: Job) -> float:
        """Idle time over busy time: (PP - 1) / (V M) (section 3.3.2); V = 1 is 1F1B."""
        return (self.pp - 1) / (self.stages * self.micro_batches(job))

    def layers_of(self, config: LlamaConfig) -> int:
        """Layers of the fullest rank; embedding and output count as one each (section 3.3.2)."""
        return math.ceil((config.layers + (2 if self.pp > 1 else 0)) / self.pp)

    def __str__(self) -> str:
        text = f"TP{self.tp} CP{self.cp} PP{self.pp} DP{self.dp}"
        return text + (f" V{self.stages}" if self.stages > 1 else "")


def parse_layout(text: str) -> dict[str, int | str]:
    """`tp=8,cp=1,pp=16,dp=128` and, where wanted, stages, micro, shard, recompute: what the user fixes."""
    names = [field.name for field in dataclasses.fields(Layout)]
    given: dict[str, int | str] = {}
    for part in text.replace(" ", "").lower().split(","):
        name, _, value = part.partition("=")
        if name not in names:
            raise PunaError(f"layout {part!r}: write NAME=VALUE with {', '.join(names)}")
        if name == "recompute":
            if value not in get_args(Recompute):
                raise PunaError(f"layout {part!r}: recompute is {', '.join(get_args(Recompute))}")
            given[name] = value
        elif not value.isdigit() or (int(value) < 1 and name != "shard") or (name == "shard" and int(value) > 3):
            raise PunaError(f"layout {part!r}: {'0 to 3' if name == 'shard' else 'a positive whole number'} is needed")
        else:
            given[name] = int(value)
    return given


def why_not(layout: Layout, job: Job, machine: Machine) -> str | None:
    """What makes a layout impossible, or None."""
    c, n = job.config, machine.count
    if layout.processors != n:
        others = layout.processors // layout.dp
        mend = f"dp={n // others} would fill it" if n % others == 0 else f"tp*cp*pp must divide {n:,}"
        return (
            f"{layout.tp} x {layout.cp} x {layout.pp} x {layout.dp} = {layout.processors:,} processors, "
            f"the machine has {n:,}: {mend}"
        )
    if c.kv_heads % layout.tp or c.vocab_size % layout.tp:
        return f"tp={layout.tp} does not divide {c.kv_heads} KV heads and {c.vocab_size:,} vocabulary entries"
    if job.seq_len % (2 * layout.cp * layout.tp) and layout.cp * layout.tp > 1:
        return f"2 x cp x tp = {2 * layout.cp * layout.tp} chunks do not divide a row of {job.seq_len:,} tokens"
    if layout.pp * layout.stages > c.layers + 2:
        return f"pp x stages = {layout.pp * layout.stages} is more than {c.layers} layers, embedding and output"
    if layout.stages > 1 and layout.pp == 1:
        return "stages above 1 need pp above 1"
    if job.batch_rows % (layout.dp * layout.micro):
        return f"dp x micro = {layout.dp * layout.micro:,} does not divide batch_rows = {job.batch_rows:,}"
    if layout.stages > 1 and layout.micro_batches(job) < layout.pp:
        return f"interleaving runs {layout.pp} micro-batches in a row, a step has {layout.micro_batches(job)}"
    if layout.shard and layout.dp * layout.cp == 1:
        return f"shard={layout.shard} has nobody to share with: dp x cp = 1"
    return None


def layouts(job: Job, machine: Machine, given: dict[str, int | str] | None = None) -> Iterator[Layout]:
    """Every layout worth looking at that the machine, the model and what is `given` allow, simple ones first."""
    given = given or {}
    n = machine.count

    def choices(name: str, values: list[int]) -> list[int]:
        return [int(given[name])] if name in given else values

    powers = [2**i for i in range(11)]
    for pp in choices("pp", [p for p in powers if p <= min(64, n)]):
        for tp in choices("tp", [p for p in powers if p <= machine.processor.node]):
            for cp in choices("cp", [p for p in powers if p == 1 or job.seq_len // p >= 4096]):
                for dp in choices("dp", [n // (tp * cp * pp)]):
                    for micro in choices("micro", [1, 2, 4]):
                        for v in choices("stages", [1, 2, 4, 8] if pp > 1 else [1]):
                            for shard in choices("shard", [0, 1, 2, 3] if dp * cp > 1 else [0]):
                                for recompute in [given["recompute"]] if "recompute" in given else get_args(Recompute):
                                    layout = Layout(tp, cp, pp, dp, v, micro, shard, recompute)  # pyright: ignore
                                    if dp and why_not(layout, job, machine) is None:
                                        yield layout
