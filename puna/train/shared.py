"""Sums over the processes of one machine in memory that they share, instead of through sockets.

For small models on a CPU adding up is a good part of a step. Between two processes, 1.8 million gradients take gloo
9 ms and 1.3 ms here; two single numbers take it 4 ms, since its threads wait for a busy core, and here next to nothing.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")  # files in memory, where the system has them
SMALL = 64


class Neighbours:
    """What the processes of one machine meet by: a barrier for all, and a folder that they can write to."""

    def __init__(self, rank: int, size: int, folder: Path, barrier: Any) -> None:
        self.folder, self.barrier = folder, barrier
        self._small = SharedVectors(SMALL, rank, size, self)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of up to 64 numbers over the processes, in place."""
        mine = self._small.mine[: tensor.numel()].view_as(tensor)
        mine.copy_(tensor)
        self._small.sum()
        return tensor.copy_(mine)


class SharedVectors:
    """[processes, length] fp32 that all see; each process fills a row, `mine`."""

    def __init__(self, length: int, rank: int, size: int, neighbours: Neighbours) -> None:
        self.barrier = neighbours.barrier
        self.part = slice(rank * length // size, (rank + 1) * length // size)
        path = place(neighbours.folder, 4 * length * size)
        if rank == 0:
            with path.open("wb") as file:  # written, not only sized: a full disk must fail here, not at a store
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


def place(folder: Path, size: int) -> Path:
    """A file for `size` bytes: in memory where there is room, for a disk would be written to now and then."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    return (SHARED_MEMORY if roomy else folder) / f"puna-{folder.name}"
