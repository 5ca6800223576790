"""A Llama in parts over the processes of a mesh, as the training loop sees it."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from puna.errors import PunaError
from puna.log import Log
from puna.machine import training_dtype
from puna.model.llama import Llama
from puna.model.weights import empty_model
from puna.parallel.checkpoint import PartsCheckpoints, mapped_weights
from puna.parallel.context import View, apply_context_parallel
from puna.parallel.flex import BlockView, apply_flex
from puna.parallel.float8 import apply_float8
from puna.parallel.mesh import check, fsdp_mesh, make_mesh
from puna.parallel.pipeline import Part, Pipeline, micro_batches_of
from puna.parallel.place import local, where
from puna.parallel.recompute import apply_recompute
from puna.parallel.shard import apply_fsdp
from puna.parallel.tensor import apply_tensor_parallel, overlap_tensor_parallel, whole_sequence
from puna.recipe import Training
from puna.train.batches import Batch
from puna.train.checkpoint import Checkpoints, found
from puna.train.launch import World
from puna.train.losses import Loss, tally_of


class Parts:
    """Cuts `model` by the layout of the options; it lends its weights, if it has some (else `fill` brings them), and is
    empty until `finish`.

    Parameters, gradients and moments are fp32 DTensors; the parameters are gathered in the training's precision.
    """

    def __init__(self, model: Llama, loss: Loss, options: Training, world: World, compiled: bool) -> None:
        self.layout = options.layout.over(world.size)
        check(self.layout, model.config, options.seq_len)
        if self.layout.cp > 1 and getattr(loss, "whole_rows", True):
            raise PunaError(f"layout.cp = {self.layout.cp}: {type(loss).__name__} needs whole rows; set cp = 1")
        if self.layout.async_tp and (world.device.type != "cuda" or not compiled):
            what = "compiled layers" if compiled else "layers that are not compiled"
            raise PunaError(f"layout.async_tp is for compiled layers on GPUs, not {what} on {world.device.type}")
        if not dist.is_initialized():
            dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
        self.model, self.loss, self.world, self.micro_rows = model, loss, world, options.micro_rows
        self.dtype, self.float8 = training_dtype(options, world.device), options.float8
        kind = world.device.type  # "meta": to see whether a layout fits, without its memory
        self.mesh = make_mesh(self.layout, "cpu" if kind == "meta" else kind)
        if self.layout.async_tp:
            overlap_tensor_parallel(self.mesh["tp"])
        self.own: float | None = None  # processes wait for each other within layers
        self.share = (self.mesh.get_local_rank("dp"), self.mesh["dp"].size())
        view = BlockView if kind == "cuda" else View
        self.view = view(self.layout.cp, self.mesh.get_local_rank("cp"))
        shell = empty_model(model.config)
        shell.lm_head = nn.Linear(model.config.dim, model.lm_head.out_features, bias=False, device="meta")
        self.pipeline = Pipeline(shell, self.mesh["pp"], self.layout, self.view) if self.layout.pp > 1 else None
        whole = range(model.config.layers)
        self.parts = self.pipeline.parts if self.pipeline else [Part(shell, whole, True, True, self.view)]
        for part in self.parts:
            self._cut(part, compiled)
            part.to_empty(device=world.device).train()
        self.parameters = {name: p for part in self.parts for name, p in part.named_parameters()}
        self.module: nn.Module = nn.ModuleList(self.parts)
        if not model.embed_tokens.weight.is_meta:
            self.fill(model.state_dict().items())
            model.to("meta")

    def _cut(self, part: Part, compiled: bool) -> None:
        if isinstance(self.view, BlockView):
            apply_flex(part)
        if self.float8:
            apply_float8(part)
        if self.layout.cp > 1:
            apply_context_parallel(part, self.mesh["cp"])
        if self.layout.tp > 1:
            apply_tensor_parallel(part, self.mesh["tp"])
        apply_recompute(part, self.layout.recompute)
        for layer in part.layers.values() if compiled else ():
            layer.compile(dynamic=False)
        apply_fsdp(part, fsdp_mesh(self.mesh), self.dtype, reshard=self.layout.pp == 1)

    @torch.no_grad()
    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take what this process holds of the whole model's weights, (name, whole value) one by one."""
        for name, value in weights:
            if name in self.parameters:
                parameter = self.parameters[name]
                local(parameter).copy_(value[where(parameter)])

    @contextmanager
    def training(self) -> Iterator[None]:
        yield

    def sum_counts(self, counts: Tensor) -> Tensor:
        dist.all_reduce(counts, group=self.mesh.get_group("dp"))
        return counts

    def step(self, micro_batches: Sequence[Batch], rows: int, counts: Tensor) -> Tensor:
        """The gradients of this process's micro-batches of a step of so many rows, summed over processes into the
        parameters; returns what its part of the loss is, to be summed over all processes.

        All processes go through the same number of micro-batches; what a share lacks is filled up with others at
        weight zero.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        wanted = micro_batches_of(self.layout, -(-rows // (self.micro_rows * self.share[1])))
        there = len(micro_batches)
        batches = [*micro_batches, *[micro_batches[0]] * (wanted - there)]
        tokens = [self.view.cut(batch.tokens) for batch in batches]
        cut = [dataclasses.replace(batch, **self._cut_rows(batch)) for batch in batches]

        # By micro-batch: a pipeline's schedule tries the loss before it begins, on nothing in particular.
        tally, tallies = tally_of(self.loss), dict[int, Tensor]()

        def loss(hidden: Tensor, number: int) -> Tensor:
            head = next(part.lm_head.weight for part in self.parts if part.lm_head is not None)
            with torch.autocast(hidden.device.type, self.dtype, enabled=self.dtype != torch.float32):
                value = self.loss(whole_sequence(hidden, head), head, cut[number], counts)
            tallies[number] = tally.take(hidden.device)
            return value if number < there else value * 0

        documents = [batch.documents for batch in batches]
        if self.pipeline:
            total = self.pipeline.step(tokens, documents, loss)
        else:
            total = torch.zeros((), device=counts.device)
            for number in range(wanted):
                value = loss(self.parts[0](tokens[number], documents[number]), number)
                value.backward()
                total += value.detach()
        tally.put(tallies[number] for number in tallies if number < there)
        return total / self.layout.tp  # every rank of `tp` has the whole of it

    def _cut_rows(self, batch: Batch) -> dict[str, Tensor]:
        if self.layout.cp == 1:
            return {}
        values = {name: getattr(batch, name) for name in ("tokens", "labels", "documents", "sources")}
        return {name: self.view.cut(value) for name, value in values.items() if value is not None}

    def norm(self) -> Tensor:
        """Of the whole model's gradient; a value that several processes hold is counted once."""
        squares = torch.zeros((), device=self.world.device)
        for parameter in self.parameters.values():
            gradient = parameter.grad
            assert isinstance(gradient, DTensor)
            sizes = zip(gradient.placements, gradient.device_mesh.shape)
            copies = 1
            for placement, size in sizes:
                copies *= size if isinstance(placement, Replicate) else 1
            squares += gradient.to_local().float().square().sum() / copies
        dist.all_reduce(squares)
        return squares.sqrt()

    def scale(self, factor: Tensor) -> None:
        for parameter in self.parameters.values():
            assert isinstance(parameter.grad, DTensor)
            parameter.grad.to_local().mul_(factor)

    def checkpoints(
        self, folder: Path, optimizer: torch.optim.Optimizer, memory: Mapping[str, Tensor], options: Training, log: Log
    ) -> PartsCheckpoints:
        return PartsCheckpoints(
            folder, self.parameters, optimizer, memory, options, log, self.world.rank, config=self.model.config
        )

    def finish(self, checkpoints: Checkpoints, steps: int) -> None:
        """Save, and give the process of rank 0 the whole model back, its weights mapped from files beside."""
        folder = checkpoints.folder
        if not any(step == steps for step, _ in found(folder)):
            checkpoints.save(steps)
        checkpoints.wait()
        dist.barrier()
        if self.world.rank == 0:
            last = next(path for step, path in found(folder) if step == steps)
            self.model.load_state_dict(mapped_weights(last, folder / "whole"), assign=True)
            self.model.rope.to_empty(device="cpu")
        dist.barrier()
