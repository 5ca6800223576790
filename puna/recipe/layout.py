"""How a training stage is laid over processes: the [STAGE.layout] tables of a recipe."""

from typing import Literal

from pydantic import PositiveInt, model_validator

from puna.errors import PunaError
from puna.recipe.knobs import Knobs


class Layout(Knobs):
    """Sizes of the axes (section 3.3.2, table 4) and how they are used. All of it is ours; it changes no result beyond
    the rounding of sums, so a run goes on with another."""

    tp: PositiveInt = 1
    """Tensor parallelism: each matrix, and the sequence between them, is cut over so many neighbouring processes."""
    cp: PositiveInt = 1
    """Context parallelism: each row is cut; keys and values are gathered."""
    pp: PositiveInt = 1
    """Pipeline parallelism: the layers are cut."""
    dp: PositiveInt | Literal["auto"] = "auto"
    """Data parallelism: other rows; auto is whatever the number of processes leaves."""
    shard: PositiveInt | Literal["auto"] = "auto"
    """Of dp, over how many processes weights, gradients and moments are cut (FSDP; with cp besides). Auto is all; on a
    CPU with no other axis it is none: each process holds a copy."""
    schedule: Literal["1f1b", "interleaved", "zero-bubble", "zbv"] = "1f1b"
    """In which order a pipeline's micro-batches go forward and backward."""
    stages: PositiveInt = 1
    """Parts of the model that each process of a pipeline holds; more than 1 needs another schedule than 1f1b."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again to save memory: nothing, attention, or whole layers."""
    async_tp: bool = False
    """Let the products of tensor parallelism begin on the pieces that have come, instead of waiting for the gathering
    of all: torch's, for compiled layers on GPUs that reach one another's memory."""

    @model_validator(mode="after")
    def async_tp_needs_tp(self) -> "Layout":
        if self.async_tp and self.tp == 1:
            raise ValueError("async_tp = true with tp = 1: there is nothing to wait for; leave it out")
        return self

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model between them."""
        return self.tp * self.cp * self.pp

    @property
    def is_plain(self) -> bool:
        """Whether each process may hold the whole model."""
        return self.model_size == 1 and self.shard == "auto" and self.recompute == "none"

    def over(self, processes: int) -> "Layout":
        """With dp and shard as numbers, for so many processes; PunaError when they do not come out."""
        dp, rest = divmod(processes, self.model_size)
        if rest or dp == 0 or self.dp not in ("auto", dp):
            sizes = f"tp {self.tp} x cp {self.cp} x pp {self.pp} x dp {self.dp}"
            raise PunaError(f"layout {sizes} does not make {processes} processes; change an axis or their number")
        shard = dp if self.shard == "auto" else self.shard
        if dp % shard:
            raise PunaError(f"layout.shard = {shard} does not divide dp = {dp}; use a divisor")
        return self.model_copy(update={"dp": dp, "shard": shard})
