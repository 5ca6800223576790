"""How processes are laid out: the paper's four axes (section 3.3.2), the innermost with the most communication first.

tp  tensor parallelism: each matrix is cut, and between them the sequence
cp  context parallelism: each row is cut; keys and values are gathered
pp  pipeline parallelism: the layers are cut
dp  data parallelism: other rows; parameters, gradients and moments are sharded over it, and over cp (FSDP)
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puna.errors import PunaError
from puna.model.llama import LlamaConfig

AXES = ("dp", "pp", "cp", "tp")
"""Outermost first: neighbouring ranks differ in the last."""
FSDP_AXIS = "dp_cp"


@dataclass(frozen=True)
class Layout:
    """The size of each axis."""

    tp: int = 1
    cp: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def size(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    def check(self, config: LlamaConfig, seq_len: int) -> None:
        """PunaError naming the axis that a model or its rows cannot be cut by."""
        for name, value in (
            ("kv_heads", config.kv_heads),
            ("ffn_dim", config.ffn_dim),
            ("vocab_size", config.vocab_size),
        ):
            if value % self.tp:
                raise PunaError(f"tp = {self.tp} does not divide {name} = {value}; use a divisor")
        if seq_len % (2 * self.cp * self.tp):
            raise PunaError(
                f"seq_len = {seq_len} is not a multiple of 2 x cp x tp = {2 * self.cp * self.tp}; change one of them"
            )
        if self.pp > config.layers + 2:
            raise PunaError(
                f"pp = {self.pp}: {config.layers} layers, embedding and output make {config.layers + 2} parts"
            )


def make_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The mesh of all processes, with the axis that FSDP shards over. Raises PunaError if they are too many or few."""
    if dist.get_world_size() != layout.size:
        raise PunaError(f"{layout} needs {layout.size} processes, there are {dist.get_world_size()}")
    mesh = init_device_mesh(device_type, tuple(getattr(layout, axis) for axis in AXES), mesh_dim_names=AXES)
    mesh["dp", "cp"]._flatten(FSDP_AXIS)
    return mesh
