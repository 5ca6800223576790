"""Low-rank adapters: the [sft.lora], [reward.lora] and [dpo.lora] tables."""

from typing import Literal, get_args

from pydantic import Field

from puna.recipe.knobs import Knobs

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Lora(Knobs):
    """Train small factors beside frozen matrices (arXiv 2106.09685). All values are ours: the paper trains all weights.

    Adapters want a higher `peak_lr` than full weights: about ten times.
    """

    rank: int = Field(default=0, ge=0)
    """Columns of the factors; 0 trains the full weights."""
    alpha: float = Field(default=32.0, gt=0)
    """The product of the factors is multiplied by alpha / rank..."""
    rslora: bool = False
    """...or by alpha / sqrt(rank), which lets a higher rank learn more (arXiv 2312.03732)."""
    targets: list[Target] = Field(default_factory=lambda: list(get_args(Target)), min_length=1)
    """The matrices of every layer that get an adapter."""

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
