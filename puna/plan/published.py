"""What others measured and published, to hold the plan against; the tests print the difference for every row.

The paper: arXiv 2407.21783. torchtitan: its benchmarks of December 2024 (benchmarks/llama3_h100_202412_torchtitan.md;
H100 with 96 GB and 500 W, memory as reserved by the allocator, GiB) and docs/performance.md (A100).
NeMo: 8B on 8 H100 in FP8, of which only the speed is known here; the layout is our guess.
"""

from dataclasses import dataclass
from typing import Any

from puna.plan.layout import parse_layout

GPU_HOURS = {"8b": (15e12, 1.46e6), "70b": (15e12, 7.0e6), "405b": (15.6e12, 30.84e6)}
"""Training tokens and H100 hours (model card; the tokens of 8B and 70B are printed as "15T+")."""

# Failures: 54 days on 16,384 GPUs, table 5 and section 3.3.4.
FAILURE_DAYS, FAILURE_GPUS = 54, 16_384
UNEXPECTED, PLANNED = 419, 47


@dataclass(frozen=True)
class TrainingRow:
    """One measured training setting."""

    source: str
    preset: str
    machine: str
    layout: dict[str, Any]
    seq_len: int
    batch_rows: int
    tokens_per_second: float | None = None
    """For each processor."""
    tflops: float | None = None
    memory: float | None = None
    """GiB."""
    job: dict[str, Any] | None = None
    fitted: bool = False
    """A constant was fitted on this row's speed: it shows nothing about the model."""


_FP8 = {"fp8": True, "whole_logits": True}
_BF16 = {"whole_logits": True}
_EAGER = {"whole_logits": True, "compiled": False}


def _paper(machine: str, layout: str, seq_len: int, tflops: float, **rest: Any) -> TrainingRow:
    """Batches of 16M tokens. V is not reported; ours is 8, one layer each. Nothing is recomputed (section 3.3.2)."""
    degrees = parse_layout(f"{layout},tp=8,pp=16,stages=8,shard=2")
    return TrainingRow("paper, table 4", "405b", machine, degrees, seq_len, 2**24 // seq_len, tflops=tflops, **rest)


def _titan(table: int, preset: str, layout: str, seq_len: int, rows: int, speed: float, **rest: Any) -> TrainingRow:
    degrees = parse_layout(layout)
    gpus = degrees["dp"] * degrees.get("tp", 1) * degrees.get("cp", 1) * degrees.get("pp", 1)  # pyright: ignore
    machine = f"{gpus // 8} x 8 {'h100-500w' if table else 'a100'}"  # pyright: ignore
    source = f"torchtitan, table {table}" if table else "torchtitan, performance.md"
    return TrainingRow(source, preset, machine, degrees, seq_len, rows, speed, **rest)


_SELECTIVE = "micro=2,shard=3,recompute=selective"
_FULL = "shard=3,recompute=full"
# the number of micro-batches is not published; torchtitan's default was the pipeline's degree
_PIPE = "tp=8,pp=8,shard=1,recompute=full"

ROWS: list[TrainingRow] = [
    _paper("1024 x 8 h100", "dp=64", 8192, 430),
    _paper("2048 x 8 h100", "dp=128", 8192, 400, fitted=True),
    _paper("2048 x 8 h100", "cp=16,dp=8", 131_072, 380),  # DP is printed as 4: 8 x 16 x 16 x 4 are 8,192 GPUs
    _titan(1, "8b", f"dp=8,{_SELECTIVE}", 8192, 16, 5762, memory=82.4, job=_EAGER, fitted=True),
    _titan(1, "8b", f"dp=8,{_SELECTIVE}", 8192, 16, 6667, memory=77.0, job=_BF16, fitted=True),
    _titan(1, "8b", f"dp=8,{_SELECTIVE}", 8192, 16, 8532, memory=76.8, job=_FP8, fitted=True),
    _titan(2, "8b", f"dp=8,{_FULL}", 32_768, 8, 3890, memory=83.9, job=_FP8),
    _titan(2, "8b", f"dp=4,cp=2,{_FULL}", 65_536, 4, 2540, memory=84.2, job=_FP8),
    _titan(2, "8b", f"dp=2,cp=4,{_FULL}", 131_072, 2, 1071, memory=84.0, job=_FP8),
    _titan(2, "8b", f"dp=1,cp=8,{_FULL}", 262_144, 1, 548, memory=84.5, job=_FP8),
    _titan(3, "8b", f"dp=128,{_SELECTIVE}", 8192, 256, 5605, memory=67.0, job=_EAGER),
    _titan(3, "8b", f"dp=128,{_SELECTIVE}", 8192, 256, 6514, memory=62.0, job=_BF16),
    _titan(3, "8b", f"dp=128,{_SELECTIVE}", 8192, 256, 8380, memory=61.8, job=_FP8),
    _titan(4, "70b", "tp=8,dp=32,micro=16,shard=3,recompute=full", 8192, 512, 829, memory=71.9, job=_FP8),
    _titan(5, "405b", f"{_PIPE},dp=8,micro=4", 8192, 256, 100, memory=82.5, job=_FP8),
    _titan(5, "405b", f"{_PIPE},dp=8,micro=4,stages=2", 8192, 256, 128, memory=72.7, job=_FP8),
    _titan(6, "405b", f"{_PIPE},dp=8", 32_768, 64, 76, memory=75.3, job=_FP8),
    _titan(6, "405b", f"{_PIPE},dp=4,cp=2", 65_536, 32, 47, memory=75.9, job=_FP8),
    _titan(6, "405b", f"{_PIPE},dp=2,cp=4", 131_072, 16, 31, memory=77.1, job=_FP8),
    _titan(6, "405b", f"{_PIPE},dp=1,cp=8", 262_144, 8, 16, memory=84.9, job=_FP8),
    _titan(0, "8b", "dp=64,shard=3,recompute=selective", 8192, 64, 2973, job=_EAGER, fitted=True),
    _titan(0, "70b", "dp=64,shard=3,recompute=full", 8192, 64, 331, job=_EAGER),
    TrainingRow("NeMo", "8b", "1 x 8 h100", parse_layout("dp=8,shard=1"), 8192, 128, 12_273, job={"fp8": True}),
]
