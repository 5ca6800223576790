"""The engine on several devices: processes that hold a model together (parts.py), started by torchrun.

The process of rank 0 owns the engine: it schedules, samples and tells the others what each step computes. They follow,
keep the keys and values of their own layers and heads, and send the logits of their part of the vocabulary back.

Stages work at the same time where a step's tokens are cut into micro-batches, one a stage. A step of few tokens is not
cut: a stage reads all its weights for each micro-batch, which costs it as much as computing about a hundred tokens.
"""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puna.errors import PunaError
from puna.infer.cache import default_blocks, new_cache
from puna.infer.engine import Engine
from puna.infer.parts import check_layout, cut
from puna.infer.runner import TorchRunner
from puna.model.llama import Llama
from puna.model.weights import load_hf, read_config
from puna.text.tokenizer import Tokenizer

MICRO_BATCH = 128
"""Fewest tokens in a micro-batch."""
PATIENCE = timedelta(days=3650)
"""Nobody may ask a server anything for long. That a process has ended shows at once, whatever this is."""


class Batch(NamedTuple):
    """The arguments of Runner.step but for the cache, int32 on the CPU; `wanted` ascends."""

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    tables: Tensor
    wanted: Tensor

    def between(self, start: int, end: int) -> "Batch":
        """Some of the tokens, with the requests that bring them; the ones before must have been computed."""
        starts = self.starts.clamp(start, end)
        held = starts.diff() > 0
        brought = torch.cat([starts[:1], starts[1:][held]]) - start
        lengths = self.lengths - (self.starts - starts)[1:]
        wanted = self.wanted[(self.wanted >= start) & (self.wanted < end)] - start
        return Batch(self.tokens[start:end], brought, lengths[held], self.tables[held], wanted)


def micro_batches(batch: Batch, most: int, least: int) -> Iterator[Batch]:
    """Up to `most` parts with about as many tokens each, at least `least`; a long prompt may go on in the next."""
    count = max(1, min(most, len(batch.tokens) // least))
    for start, end in pairwise(len(batch.tokens) * i // count for i in range(count + 1)):
        yield batch.between(start, end)


class ParallelRunner:
    """Runs steps of a model with the other processes of a mesh [pp, tp], of which each makes one around its part; a
    puna.infer.runner.Runner in the first, whose followers are in `follow`."""

    def __init__(self, model: Llama, dim: int, mesh: DeviceMesh, micro_batch: int = MICRO_BATCH) -> None:
        """`dim`: the width of the model's activations."""
        self._runner, self._dim, self._micro_batch = TorchRunner(model), dim, micro_batch
        self._dtype, self._vocab = next(model.parameters()).dtype, model.config.vocab_size
        self._ranks, self._everyone = mesh.mesh.tolist(), mesh._flatten().get_group()
        self._stage, self._part = mesh.get_local_rank("pp"), mesh.get_local_rank("tp")
        self._runner.sharing //= len(self._ranks[0])  # the configuration counts all heads, and keys of this part
        self._failed = False

    @property
    def _first(self) -> int:
        return self._ranks[0][0]

    def step(
        self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor, wanted: Tensor
    ) -> Tensor:
        """As Runner.step. A step that fails leaves the processes waiting for each other: there is no next one."""
        if self._failed:
            raise PunaError("the processes that hold the model are out of step since an error; start them again")
        self._failed = True
        batch = Batch(tokens, starts, lengths, block_tables, wanted)
        self._tell(batch)
        logits = self._run(batch, cache)
        self._failed = False
        return logits

    def follow(self, cache: Tensor) -> None:
        """Take part in the first process's steps until it closes."""
        while (batch := self._listen()) is not None:
            self._run(batch, cache)

    def close(self) -> None:
        """Let the followers go."""
        dist.broadcast(torch.zeros(len(Batch._fields), dtype=torch.int64), self._first, self._everyone)

    def _tell(self, batch: Batch) -> None:
        dist.broadcast(torch.tensor([len(part.flatten()) for part in batch]), self._first, self._everyone)
        dist.broadcast(torch.cat([part.flatten().int() for part in batch]), self._first, self._everyone)

    def _listen(self) -> Batch | None:
        sizes = torch.empty(len(Batch._fields), dtype=torch.int64)
        dist.broadcast(sizes, self._first, self._everyone)
        if not sizes.any():
            return None
        parts = torch.empty(int(sizes.sum()), dtype=torch.int32)
        dist.broadcast(parts, self._first, self._everyone)
        tokens, starts, lengths, tables, wanted = parts.split(sizes.tolist())
        return Batch(tokens, starts, lengths, tables.view(len(lengths), -1), wanted)

    @torch.inference_mode()
    def _run(self, batch: Batch, cache: Tensor) -> Tensor:
        """This process's part of a step; the logits in the first process."""
        last = self._stage == len(self._ranks) - 1
        sent, logits = [], [torch.empty(0, self._vocab, device=self._runner.device)]
        for part in micro_batches(batch, len(self._ranks), self._micro_batch):
            row = self._runner.row(*part[:4], cache)
            x = self._runner.hidden(row.tokens if self._stage == 0 else self._receive(row.tokens.shape[1]), row)
            if last and len(part.wanted):
                logits.append(self._runner.logits(x, row, part.wanted))
            elif not last:
                sent.append((dist.isend(x, self._ranks[self._stage + 1][self._part]), x))  # x lives until it has gone
        for work, _ in sent:
            work.wait()
        mine = torch.cat(logits[1:]) if len(logits) > 1 else None
        return self._gather(mine, len(batch.wanted)) if len(batch.wanted) else logits[0]

    def _receive(self, tokens: int) -> Tensor:
        """Activations [1, tokens, dim] from the stage before."""
        x = torch.empty(1, tokens, self._dim, dtype=self._dtype, device=self._runner.device)
        dist.recv(x, self._ranks[self._stage - 1][self._part])
        return x

    def _gather(self, mine: Tensor | None, rows: int) -> Tensor:
        """The logits [rows, vocab] of all parts of the last stage in the first process; elsewhere its own."""
        rank, senders = self._ranks[self._stage][self._part], self._ranks[-1]
        if rank != self._first:
            if mine is not None:
                dist.send(mine.contiguous(), self._first)
            return torch.empty(0)
        parts = []
        for sender in senders:
            if sender == rank and mine is not None:
                parts.append(mine)
                continue
            parts.append(torch.empty(rows, self._vocab // len(senders), device=self._runner.device))
            dist.recv(parts[-1], sender)
        return torch.cat(parts, 1)


def load_engine(directory: str | Path, tp: int = 1, pp: int = 1, **options: Any) -> Engine | None:
    """Engine.load, on tp x pp devices under torchrun. There, the process of rank 0 gets the engine and must close it;
    the others take part until then and get None.

    Raises PunaError where the model cannot be cut so, or the processes are too many or few.
    """
    if tp == pp == 1:
        return Engine.load(directory, **options)
    if options.pop("precision", None):
        raise PunaError("int8 is for one CPU; drop --tp and --pp, or take another --dtype")
    check_layout(read_config(directory), tp, pp)
    mesh = join(tp, pp)
    engine = load_part(directory, mesh, **options)
    if engine is None:
        dist.destroy_process_group()
    return engine


def join(tp: int, pp: int) -> DeviceMesh:
    """The mesh [pp, tp] of torchrun's processes; those next to each other share a stage."""
    size = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(size) != tp * pp:
        raise PunaError(
            f"--tp {tp} and --pp {pp} need {tp * pp} processes, and this is one of {size}; start them with "
            f"`torchrun --nproc-per-node {tp * pp} -m puna ...`, or --nnodes and fewer on each"
        )
    if os.environ.get("LOCAL_WORLD_SIZE") == size:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are here: never ask the network for our own name
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    return init_device_mesh(kind, (pp, tp), mesh_dim_names=("pp", "tp"))


def load_part(
    directory: str | Path,
    mesh: DeviceMesh,
    dtype: torch.dtype | None = None,
    blocks: int | None = None,
    rows: int = 256,
    micro_batch: int = MICRO_BATCH,
    **options: Any,
) -> Engine | None:
    """load_engine for a process of a mesh."""
    kind = mesh.device_type
    dtype = dtype or (torch.float32 if kind == "cpu" else torch.bfloat16)
    device = torch.device("cpu") if kind == "cpu" else torch.device(kind, torch.cuda.current_device())
    model = load_hf(directory, dtype, device, lambda whole: cut(whole, mesh)).eval()
    runner = ParallelRunner(model, read_config(directory).dim, mesh, micro_batch)
    fewest = torch.tensor(blocks or default_blocks(model, rows))
    dist.all_reduce(fewest, dist.ReduceOp.MIN, mesh._flatten().get_group())
    blocks = int(fewest)
    if dist.get_rank() == mesh.mesh[0, 0]:
        return Engine(model, Tokenizer.load(directory), blocks=blocks, rows=rows, runner=runner, **options)
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process ends what it has begun, and then us
        signal.signal(number, signal.SIG_IGN)
    runner.follow(new_cache(model.config, blocks + 1, dtype, device))
    return None
