"""A vector in memory that processes of one machine share, to add up gradients without sending them.

For small models on a CPU the sum over processes is a good part of a step: 1.8 million fp32 gradients take gloo 9 ms
between two processes, through sockets, and 1.3 ms where each process reads the other's memory.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")  # files in memory, where the system has them


class SharedVectors:
    """[processes, length] fp32 in one file that all map; each process owns a row."""

    def __init__(self, length: int, rank: int, size: int, barrier: Any, folder: Path) -> None:
        self.barrier, self.part = barrier, slice(rank * length // size, (rank + 1) * length // size)
        path = file_for(4 * length * size, folder)
        if rank == 0:
            with path.open("wb") as file:  # written, not only sized: a full disk must fail here and not at a store later
                for _ in range(size):
                    file.write(bytes(4 * length))
        dist.barrier()
        self.all = torch.from_file(str(path), shared=True, size=length * size).view(size, length)
        dist.barrier()
        if rank == 0:
            path.unlink()  # the memory is freed with the last process, however it ends
        self.mine = self.all[rank]

    def sum(self) -> None:
        """Make every row the sum of all: each process adds up its part of the length, for all of them."""
        self.barrier.wait()
        self.all[:, self.part] = self.all[:, self.part].sum(0)
        self.barrier.wait()


def file_for(size: int, folder: Path) -> Path:
    """Where `size` bytes have room: in memory by preference, for a disk would write them out now and then."""
    in_memory = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    return (SHARED_MEMORY if in_memory else folder) / f"puna-{folder.name}"
