"""The runs that scaling laws are fitted to: the [scaling] section."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from puna.recipe.knobs import Knobs

Points = Annotated[list[tuple[PositiveFloat, PositiveFloat]], Field(min_length=1)]
"""A power law by points that it goes through."""


class Scaling(Knobs):
    """IsoFLOP runs for scaling laws: at each budget of compute, models of several sizes (section 3.2.1)."""

    budgets: list[PositiveFloat] = Field([6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21, 1e22], min_length=1)
    """FLOPs of a run, forward and backward, attention included (figure 2)."""
    sizes: int = Field(5, ge=1)
    """Models at each budget. The paper does not say how many."""
    tokens_per_parameter: tuple[PositiveFloat, PositiveFloat] = (4.0, 120.0)
    """Tokens for each parameter of a budget's largest and of its smallest model; the others lie evenly between, in
    logarithms. The optimum has to lie inside. Ours; the paper's models have 40M to 16B parameters."""
    seeds: int = Field(1, ge=1)
    """Runs of each size, with different initial weights and another order of the data."""
    seq_len: int = Field(8192, ge=8)
    """Tokens in a packed row."""
    batch_tokens: Points = [(6e18, 250_000.0), (1e22, 4_000_000.0)]
    """Tokens of a step by budget: [[FLOPs, tokens], ...], a power law between the points and beyond (the paper gives
    the ends)."""
    peak_lr: Points = [(40e6, 4e-4), (16e9, 2e-4)]
    """Learning rate after the warm-up by size: [[parameters, rate], ...], a power law between the points and beyond
    (the paper gives the ends)."""
    warmup_steps: int = Field(2000, ge=0)
    """Steps of linear warm-up (section 3.2.1)."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """The warm-up takes at most this share of the steps."""
    final_lr: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end of the cosine, as a fraction of the peak (section 3.2.1)."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay of a step as a fraction of the current learning rate (section 3.2.1)."""
    mixes: dict[str, dict[str, float]] = {}
    """Candidates for pretrain.mix by name: one model a budget on each tells which serves a large model (section
    3.1.2)."""
    probes: list[str] = []
    """Parts to anneal on: models of the largest budget, half trained, see what the part adds (section 3.1.3)."""
    probe_share: float = Field(0.3, gt=0, le=1)
    """Share of the probed part; the rest is the default mix (section 3.1.3)."""
    micro_tokens: int = Field(8192, ge=1)
    """Tokens that go through a model at once, at most, but one row at least; the rest is gradient accumulation."""
    max_epochs: float = Field(1.0, gt=0)
    """No document is read more often than this in a run: repetition would bend the law."""
    held_out_tokens: int = Field(1_000_000, ge=1)
    """Held-out tokens on which every run's loss is taken, at most."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; it takes half a minute for each shape, which small runs do not earn back."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Runs side by side on this machine, each in one process; auto is one for each core or GPU."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """At most this much of a run's work is lost when it is killed."""

    @model_validator(mode="after")
    def mixes_can_be_compared(self) -> "Scaling":
        for name, mix in self.mixes.items():
            if not mix or min(mix.values()) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
                raise ValueError(f"mixes.{name}={mix} must be shares that sum to 1, not {sum(mix.values()):g}")
        if self.mixes and (len(self.mixes) < 2 or len(self.budgets) < 3):
            raise ValueError(
                f"{len(self.mixes)} mixes at {len(self.budgets)} budgets cannot be compared by a law; "
                "give two mixes or more, and three budgets"
            )
        return self
