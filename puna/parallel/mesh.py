"""How processes are laid out: the paper's four axes (section 3.3.2), the innermost with the most communication first.

tp  tensor parallelism: each matrix is cut, and between them the sequence
cp  context parallelism: each row is cut; keys and values are gathered
pp  pipeline parallelism: the layers are cut
dp  data parallelism: other rows; parameters, gradients and moments are sharded over it, and over cp (FSDP), whole or
    in part: then `copies` of what `shard` ranks hold together (hybrid sharding)
"""

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puna.errors import PunaError
from puna.model.llama import LlamaConfig
from puna.recipe.layout import Layout

AXES = ("copies", "shard", "pp", "cp", "tp")
"""Outermost first: neighbouring ranks differ in the last. dp is copies x shard."""


def check(layout: Layout, config: LlamaConfig, seq_len: int) -> None:
    """PunaError naming the axis that a model or its rows cannot be cut by."""
    for name, value in (
        ("kv_heads", config.kv_heads),
        ("ffn_dim", config.ffn_dim),
        ("vocab_size", config.vocab_size),
    ):
        if value % layout.tp:
            raise PunaError(f"tp = {layout.tp} does not divide {name} = {value}; use a divisor")
    pieces = layout.tp * (2 * layout.cp if layout.cp > 1 else 1)
    if seq_len % pieces:
        axes = "2 x cp x tp" if layout.cp > 1 else "tp"
        raise PunaError(f"seq_len = {seq_len} is not a multiple of {axes} = {pieces}; change one of them")
    stages = layout.pp * layout.stages
    if layout.pp > 1 and stages > config.layers + 2:
        raise PunaError(
            f"pp = {layout.pp} with {layout.stages} stages each: {config.layers} layers, embedding and output make "
            f"{config.layers + 2} parts"
        )
    if layout.stages > 1 and (layout.pp == 1 or layout.schedule == "1f1b"):
        raise PunaError(
            f"stages = {layout.stages} needs pp above 1 and another schedule than 1f1b (pp = {layout.pp}, "
            f"schedule = {layout.schedule})"
        )
    if layout.schedule == "zbv" and layout.stages != 2:
        raise PunaError(f"schedule zbv needs stages = 2, not {layout.stages}")


def make_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The mesh of all processes, with `dp`, and `shard_cp` that FSDP shards over. Raises PunaError if the processes are
    too many or few."""
    layout = layout.over(dist.get_world_size())
    assert isinstance(layout.dp, int)
    assert isinstance(layout.shard, int)
    sizes = (layout.dp // layout.shard, layout.shard, layout.pp, layout.cp, layout.tp)
    mesh = init_device_mesh(device_type, sizes, mesh_dim_names=AXES)
    mesh["copies", "shard"]._flatten("dp")
    mesh["shard", "cp"]._flatten("shard_cp")
    return mesh


def fsdp_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Over what FSDP shards: one axis, or two where there are copies of the shards."""
    return mesh["copies", "shard_cp"] if mesh["copies"].size() > 1 else mesh["shard_cp"]
