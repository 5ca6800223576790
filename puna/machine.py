"""What machines can do: published peaks for the planner, a measured one for the machine we are on."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from puna.errors import PunaError
from puna.recipe import Training


@dataclass(frozen=True)
class Machine:
    """One or many equal processors. FLOP/s are dense bf16 matrix products, as the vendor states them."""

    name: str
    processors: int
    flops: float
    """Peak FLOP/s of one processor."""
    memory: float
    """Bytes of one processor."""
    utilization: float
    """Share of the peak that training reaches (MFU)."""
    source: str
    """Where the utilization comes from."""


KNOWN = {
    "h100": Machine("h100", 1, 989e12, 80e9, 0.41, "41% on 16,384 H100, table 4 of the paper"),
    "h200": Machine("h200", 1, 989e12, 141e9, 0.41, "the paper's H100 figure, table 4"),
    "a100": Machine("a100", 1, 312e12, 80e9, 0.50, "our assumption"),
    "rtx4090": Machine("rtx4090", 1, 165e12, 24e9, 0.40, "our assumption"),
}


def find_machine(text: str) -> Machine:
    """`this`, a known name, or several of one: `8 x h100`."""
    count, times, name = text.lower().replace(" ", "").rpartition("x") if text[0].isdigit() else ("1", "x", text)
    name = name.lower()
    if name == "this":
        return this_machine()
    if name not in KNOWN or not times or not count.isdigit():
        raise PunaError(f"machine {text!r} is not known; use `this`, {', '.join(KNOWN)}, or several: '8 x h100'")
    known = KNOWN[name]
    return Machine(text, int(count), known.flops, known.memory, known.utilization, known.source)


def this_machine() -> Machine:
    """The machine we are on, its peak measured in about a second."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        flops = peak_flops(torch.device("cuda"), torch.bfloat16)
        source = "our assumption, of a measured peak"
        return Machine(properties.name, torch.cuda.device_count(), flops, properties.total_memory, 0.4, source)
    cores = physical_cores()
    flops = peak_flops(torch.device("cpu"), cpu_dtype())
    memory = psutil.virtual_memory().total / cores
    name = f"{platform.machine()}, {cores} cores"
    return Machine(name, cores, flops, memory, 0.35, "small models on CPUs, measured by puna's authors")


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one processor (one core of a CPU), the best of a few large matrix products."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(8):
        start = time.perf_counter()
        torch.matmul(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 2 * size**3 / best


def describe_machine() -> str:
    """This machine in a few words, for a person."""
    processor = platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", cpu_info.read_text(), re.MULTILINE)):
        processor = re.sub(r"\((R|TM)\)| CPU| Processor|@.*", "", found[1]).strip()
    return f"{processor}, {physical_cores()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads counted once."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@cache
def cpu_dtype() -> torch.dtype:
    """bf16 where the CPU multiplies it natively, else fp32: emulated bf16 is slower than fp32."""
    if sys.platform == "linux" and Path("/proc/cpuinfo").exists():
        flags = set(Path("/proc/cpuinfo").read_text().split())
        return torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16"} else torch.float32
    return torch.float32


def training_dtype(options: Training, device: torch.device) -> torch.dtype:
    if options.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else cpu_dtype()
    return torch.bfloat16 if options.precision == "bf16" else torch.float32


@cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile can work: Triton for a GPU; for a CPU a C++ compiler, OpenMP and Python's headers."""
    if device_type == "cuda":
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return False
    import sysconfig

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text("#include <Python.h>\n#include <omp.h>\nint main() { return 0; }\n")
        include = f"-I{sysconfig.get_path('include')}"
        command = [compiler, "-fsyntax-only", "-fopenmp", include, str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
