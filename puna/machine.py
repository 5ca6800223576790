"""The machine we are on: its cores, its precision, its measured peak. Others are in puna/plan/machines.py."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import psutil
import torch

from puna.recipe import Training


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, for the next step to use.

    glibc gives large pieces back to the system at once, and asking anew costs a page fault for every 4 KB: 12% of a
    compiled bf16 step of the "1m" preset. Other C libraries are left as they are.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, 1 << 25)  # the most that glibc takes
        mallopt(trim_threshold, 1 << 30)


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
