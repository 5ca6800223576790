"""From a short context to a long one, in stages: the [extend] section."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from puna.recipe.knobs import Knobs


class Extend(Knobs):
    """Stages of longer and longer rows, each with a gate, and the anneal (sections 3.4.2 and 3.4.3).

    What is not here is as in [pretrain]: the mix, the optimizer, the precision.
    """

    lengths: list[PositiveInt] = []
    """Tokens of a row in each stage; empty: the context stays `pretrain.seq_len`. Section 3.4.2 has six stages from
    8,192 to 131,072 and does not print those between."""
    tokens: int = Field(133_000_000_000, ge=1)
    """Training tokens before a stage is at its gate (about 800B in six stages, section 3.4.2)."""
    attempts: int = Field(1, ge=1)
    """How often a stage may come to its gate, with as many tokens before each time; the paper goes on until the model
    has adapted. It cannot change a model that passes: a failed stage goes on when this is raised."""
    batch_tokens: int = Field(16_777_216, ge=1)
    """Tokens of a step, one row at least (table 4)."""
    peak_lr: float = Field(8e-7, gt=0)
    """Learning rate of the stages: the end of the cosine (section 3.4.1)."""
    final_lr: float = Field(1.0, ge=0, le=1)
    """The rate before a gate as a fraction of that, to which it falls linearly; 1 keeps it constant. Ours: a model that
    takes few and large steps finds more needles when the last ones are small."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up before every gate; the optimizer starts anew."""
    needle_share: float = Field(0.0, ge=0, lt=1)
    """As `pretrain.needle_share`."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; every length is compiled anew, which short stages do not earn back."""

    needle_gate: float = Field(1.0, ge=0, le=1)
    """Share of the needles that must be found at the length of a stage (1 in section 3.4.2)."""
    short_gate: float = Field(0.01, ge=0)
    """How far the held-out loss in rows of `pretrain.seq_len` may lie above the pretrained model's, as a share of it.
    The paper asks for full recovery of its short-context evaluations."""
    depths: int = Field(10, ge=1, le=16)
    """Needles in a haystack of the evaluation, one at each depth."""
    haystacks: int = Field(10, ge=1)
    """Haystacks of each length in the evaluation."""
    held_out_tokens: int = Field(1_000_000, ge=1)
    """Held-out tokens for the short-context loss, at most."""

    anneal_tokens: int = Field(0, ge=0)
    """Training tokens after the last stage, in its length, over which the learning rate falls linearly to zero
    (40M for the 405B model, section 3.4.3)."""
    anneal_mix: dict[str, float] = {}
    """Shares of the parts in those tokens; as `pretrain.mix` if empty."""
    average: int = Field(0, ge=0)
    """As `pretrain.average`, over that anneal."""

    @model_validator(mode="after")
    def lengths_grow(self) -> "Extend":
        if self.lengths != sorted(set(self.lengths)):
            raise ValueError(f"lengths={self.lengths} must grow from stage to stage")
        return self
