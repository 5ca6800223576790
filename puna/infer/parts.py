"""The part of a model that one of several processes holds when they serve it together.

Tensor parallel in a node, pipeline parallel over nodes, as the paper serves the 405B (section 6.1). A stage holds some
consecutive layers; embedding and output count as one each, so the first and the last stage hold fewer. Within a stage
the matrices are cut as puna.parallel.tensor's table says, by Megatron's scheme (arXiv 1909.08053): by outputs, or by
inputs and then the results are added up. Norms and activations are whole on every process.
"""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from puna.errors import PunaError
from puna.model.llama import Llama, LlamaConfig
from puna.model.weights import Piece
from puna.parallel.pipeline import split
from puna.parallel.tensor import table


def check_layout(config: LlamaConfig, tp: int, pp: int) -> None:
    """PunaError naming what a model cannot be cut by."""
    for name in ("heads", "kv_heads", "ffn_dim", "vocab_size"):
        if (value := getattr(config, name)) % tp:
            raise PunaError(f"--tp {tp} does not divide the model's {name} = {value:,}; use a divisor")
    if not all(split(config.layers, pp)):
        raise PunaError(f"--pp {pp} leaves a stage without any of the model's {config.layers} layers; use fewer")


def cut(model: Llama, mesh: DeviceMesh) -> dict[str, Piece]:
    """Make a model that is still empty this process's part of the mesh [pp, tp].

    Returns which pieces of the whole model's tensors belong to it, by their names there. What a stage has not got
    becomes nn.Identity, so that `hidden` takes activations in place of tokens, or gives them.
    """
    stage, stages = mesh.get_local_rank("pp"), mesh["pp"].size()
    layers = split(model.config.layers, stages)[stage]
    dims = cut_dims(model) if mesh["tp"].size() > 1 else {}
    rank, size = mesh.get_local_rank("tp"), mesh["tp"].size()
    pieces = {}
    for name, tensor in model.state_dict().items():
        if (place := name_in_part(name, layers, stage == 0, stage == stages - 1)) is None:
            continue
        dim = dims.get(name.rpartition(".")[0])
        # The scales of an FP8 matrix, one an output, go with a cut of the outputs.
        where = () if dim is None or tensor.shape[dim] == 1 else piece_of(tensor.shape, dim, rank, size)
        pieces[name] = Piece(place, where)
    _shrink(model, layers, stage == 0, stage == stages - 1)
    model.config = replace(model.config, layers=len(layers), kv_heads=model.config.kv_heads // size)
    if size > 1:
        _parallelize(model, {piece.name: piece.where for piece in pieces.values()}, mesh.get_group("tp"))
    return pieces


def cut_dims(model: nn.Module) -> dict[str, int]:
    """The dim along which each module's weight is cut."""
    dims = {}
    for pattern, style in table().items():
        for name, module in model.named_modules():
            there = fnmatchcase(name, pattern) and not isinstance(module, nn.Identity)  # on another stage
            if there and isinstance(style, (ColwiseParallel, RowwiseParallel)):
                by_outputs = isinstance(style, ColwiseParallel) or isinstance(module, nn.Embedding)
                dims[name] = 0 if by_outputs else 1
    return dims


def piece_of(shape: torch.Size, dim: int, rank: int, size: int) -> tuple[slice, ...]:
    """The rank-th of `size` equal pieces along `dim`."""
    width = shape[dim] // size
    return tuple(slice(rank * width, (rank + 1) * width) if d == dim else slice(n) for d, n in enumerate(shape))


def name_in_part(name: str, layers: range, first: bool, last: bool) -> str | None:
    """A tensor's name in the part that holds these layers; None if it is elsewhere."""
    module, _, rest = name.partition(".")
    if module != "layers":
        return name if (first if module == "embed_tokens" else last) else None
    number, _, rest = rest.partition(".")
    return f"layers.{int(number) - layers.start}.{rest}" if int(number) in layers else None


def _shrink(model: Llama, layers: range, first: bool, last: bool) -> None:
    """Drop what other stages hold; layers count from 0 again."""
    model.layers = model.layers[layers.start : layers.stop]
    for number, layer in enumerate(model.layers):
        layer.get_submodule("self_attn").layer = number  # pyright: ignore[reportArgumentType]
    if not first:
        model.set_submodule("embed_tokens", nn.Identity())
    if not last:
        model.set_submodule("norm", nn.Identity())
        model.set_submodule("lm_head", nn.Identity())


def _parallelize(model: Llama, where: dict[str, tuple[slice, ...]], group: dist.ProcessGroup) -> None:
    """Give parameters the shapes of their pieces, and add up what row-parallel matrices give."""
    for name, parameter in list(model.named_parameters()):
        if where[name]:
            module, _, kind = name.rpartition(".")
            piece = nn.Parameter(parameter.detach()[where[name]], requires_grad=parameter.requires_grad)
            model.get_submodule(module).register_parameter(kind, piece)
    for name, dim in cut_dims(model).items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            model.set_submodule(name, PartialEmbedding(module.weight, where[f"{name}.weight"][0].start, group))
        elif dim == 1:
            module.register_forward_hook(Sum(group))


class Sum:
    """A hook that adds up a module's outputs over the processes of a group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        dist.all_reduce(output, group=self.group)
        return output


class PartialEmbedding(nn.Module):
    """An embedding of which this process holds the rows from `first` on."""

    def __init__(self, weight: Tensor, first: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self.first, self.group = nn.Parameter(weight, requires_grad=False), first, group

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S] -> [B, S, dim], whole on every process."""
        place = tokens - self.first
        mine = (place >= 0) & (place < len(self.weight))
        x = F.embedding(torch.where(mine, place, 0), self.weight) * mine[..., None]
        dist.all_reduce(x, group=self.group)
        return x
