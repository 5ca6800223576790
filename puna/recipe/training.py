"""The architecture, what every training stage has, and pretraining: the [model] and [pretrain] sections."""

from typing import Literal, NamedTuple

from pydantic import Field, PositiveInt, model_validator

from puna.recipe.knobs import Knobs
from puna.recipe.layout import Layout


class Model(Knobs):
    """The architecture: a preset of puna/model/llama.py, and what differs from it; or a model that is there already."""

    start: str | None = None
    """A directory with a model, in Hugging Face's form or Meta's: pretraining goes on from its weights, with its
    architecture and its tokenizer; with pretrain.tokens = 0 the model is taken as it is."""
    preset: str = "8b"
    dim: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn_dim: int | None = None
    max_seq_len: int | None = None
    rope_theta: float | None = None
    """Base of the rotary wavelengths; the presets have Llama 3's 500,000."""

    @property
    def name(self) -> str:
        return self.start or self.preset

    @property
    def overrides(self) -> dict[str, int | float]:
        return {k: v for k, v in self.model_dump(exclude={"start", "preset"}).items() if v is not None}

    @model_validator(mode="after")
    def start_has_its_sizes(self) -> "Model":
        if self.start and self.overrides:
            raise ValueError(f"{', '.join(self.overrides)}: a model that is there already (start) has its own")
        return self


class Stretch(NamedTuple):
    """Neighbouring steps of one batch shape."""

    steps: int
    batch_rows: int
    seq_len: int

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.seq_len


class Training(Knobs):
    """What every training stage has: batch, schedule, optimizer, precision, checkpoints."""

    seq_len: int = Field(8192, ge=8)
    """Tokens in a packed row."""
    batch_rows: int = Field(512, ge=1)
    """Rows in an optimizer step, over all processes."""
    micro_rows: int = Field(1, ge=1)
    """Rows that go through the model at once in each process; the rest is gradient accumulation."""
    peak_lr: float = Field(3e-4, gt=0)
    """Learning rate at the end of the warm-up (8B: 3e-4, table 3)."""
    warmup_steps: int = Field(8000, ge=0)
    """Steps of linear warm-up (section 3.4.1)."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after the warm-up."""
    final_lr: float = Field(0.01, ge=0, le=1)
    """Learning rate at the last step, as a fraction of the peak (8e-7 of 8e-5, section 3.4.1)."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay of matrices; norms are not decayed. The paper gives no value."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm. The paper gives no value."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; auto is bf16 where the hardware has it. Weights and sums stay fp32."""
    float8: bool = False
    """The layers' matrix products in FP8 with a scale for each tensor (needs torchao; for GPUs from the H100 on)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on where a C++ compiler (CPU) or Triton (GPU) is found."""
    processes: PositiveInt | Literal["auto"] = "auto"
    """Data-parallel processes on this machine; auto is one for each core or GPU that divides the batch. A single one
    on a CPU uses all cores."""
    checkpoint_seconds: float = Field(30.0, gt=0)
    """At most this much work is lost when the run is killed."""
    keep_checkpoints: int = Field(2, ge=1)
    """The newest so many."""
    keep_every: int = Field(0, ge=0)
    """A checkpoint at every so many steps, kept as long as the stage is in the making; 0 for none."""
    spike: float = Field(0.0, ge=0)
    """A step is not taken when its gradient norm is more than so many times the median of the last 64; 0 leaves out
    only those that are not finite."""
    patience: int = Field(3, ge=1)
    """After so many steps in a row that were not taken training goes back to an older checkpoint..."""
    rewind_steps: int = Field(100, ge=1)
    """...which is at least so many steps older than the first of them..."""
    max_rewinds: int = Field(3, ge=0)
    """...and not more often than this."""
    hang_seconds: float = Field(600.0, gt=0)
    """Processes that wait for each other longer than this end, and name the one that they waited for."""
    straggler: float = Field(1.5, ge=0)
    """The log names a process that for some time takes so many times as long as the median of all; 0 names none."""
    profile_steps: tuple[PositiveInt, PositiveInt] | None = None
    """The first and the last step of which torch's profiler writes a trace into the log's folder."""
    layout: Layout = Layout()

    @model_validator(mode="after")
    def batch_divides(self) -> "Training":
        if self.batch_rows % self.micro_rows:
            raise ValueError(f"batch_rows={self.batch_rows} is not a multiple of micro_rows={self.micro_rows}")
        return self

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.seq_len

    @property
    def anneal_steps(self) -> int:
        """The last steps, in which the learning rate falls linearly to zero."""
        return 0

    def stretches(self, rows: int) -> list[Stretch]:
        """The shapes of the batches of a training on so many rows, in order."""
        return [Stretch(rows // self.batch_rows, self.batch_rows, self.seq_len)]


class Pretrain(Training):
    """Next-token prediction on the mixed shards (section 3.4)."""

    tokens: int = Field(15_600_000_000_000, ge=0)
    """Training tokens in all (section 3.2); 0 only with model.start, which is then taken as it is."""
    ramp: list[tuple[PositiveInt, PositiveInt, PositiveInt]] = []
    """Smaller batches at the start: [[until token, rows of a step, tokens of a row], ...]; after the last of them come
    `batch_rows` and `seq_len`, the longest row. Section 3.4.1 has rows of 4,096 tokens for 252M tokens, steps of 4M and
    8M tokens until 2.87T, then 16M."""
    mix: dict[str, float] = {"general": 0.50, "math": 0.25, "code": 0.17, "multilingual": 0.08}
    """Share of each part of the corpus in the training tokens (section 3.1.2)."""
    weights: dict[str, float] = {}
    """How many times as often as others of its part a document is read, by `source:NAME`, `language:NAME` and
    `topic:NAME`; where several fit, their product."""
    max_epochs: float = Field(4.0, gt=0)
    """No document is read more often than this; a part that runs out gives its share to the others."""
    anneal_tokens: int = Field(0, ge=0)
    """In the last so many tokens the learning rate falls linearly to zero, from where the schedule has it then, and the
    text is drawn from `anneal_mix` (40M for the 405B model, section 3.4.3)."""
    anneal_mix: dict[str, float] = {}
    """Shares of the parts in those tokens; as `mix` if empty."""
    anneal_weights: dict[str, float] = {}
    """`weights` for those tokens; the paper up-samples sources of very high quality."""

    needle_share: float = Field(0.0, ge=0, lt=1)
    """Share of the rows that are haystacks with needles (puna/text/needle.py). Ours: a model that reads a few million
    tokens does not learn from text alone to look something up."""
    spike: float = Field(20.0, ge=0)
    """See above; healthy steps of a small model reach seven times the median."""

    average: int = Field(0, ge=0)
    """The model is the mean of its weights at so many steps, evenly spread over the anneal, the last one among them
    (section 3.4.3; the paper gives no number); 0 keeps the last alone."""

    @property
    def steps(self) -> int:
        return sum(stretch.steps for stretch in self.stretches(0))

    @property
    def trained_tokens(self) -> int:
        """`tokens`, in whole steps."""
        return sum(stretch.steps * stretch.batch_tokens for stretch in self.stretches(0))

    @property
    def anneal_steps(self) -> int:
        return min(self.steps, self.anneal_tokens // self.batch_tokens)

    def stretches(self, rows: int) -> list[Stretch]:
        """Those that `ramp` and `tokens` ask for, whatever there is in rows."""
        found, done = [], 0
        if not self.tokens:
            return found
        for until, batch_rows, seq_len in (*self.ramp, (self.tokens, self.batch_rows, self.seq_len)):
            steps = max(1, (until - done) // (batch_rows * seq_len))
            found.append(Stretch(steps, batch_rows, seq_len))
            done += steps * batch_rows * seq_len
        return found

    @model_validator(mode="after")
    def mix_is_shares(self) -> "Pretrain":
        for name, mix in (("mix", self.mix), ("anneal_mix", self.anneal_mix or {"": 1.0})):
            if not mix or min(mix.values()) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
                raise ValueError(f"{name}={mix} must be shares that sum to 1, not {sum(mix.values()):g}")
        for name, weights in (("weights", self.weights), ("anneal_weights", self.anneal_weights)):
            for key, weight in weights.items():
                if key.partition(":")[0] not in ("source", "language", "topic") or ":" not in key or weight < 0:
                    raise ValueError(f"{name}: {key!r} = {weight:g}; write source:, language: or topic:NAME, 0 or more")
        ends = [0, *(until for until, _, _ in self.ramp), self.tokens or 1]
        if ends != sorted(set(ends)):
            raise ValueError(f"ramp={self.ramp}: its ends must grow and stay below tokens={self.tokens:,}")
        for until, batch_rows, seq_len in self.ramp:
            if batch_rows % self.micro_rows or self.seq_len % seq_len:
                raise ValueError(
                    f"ramp until {until:,}: {batch_rows} rows of {seq_len} must be a multiple of "
                    f"micro_rows={self.micro_rows} and a divisor of seq_len={self.seq_len}"
                )
        if self.average > self.anneal_steps:
            raise ValueError(f"average={self.average} needs an anneal of as many steps; raise anneal_tokens")
        if self.anneal_tokens > self.tokens:
            raise ValueError(f"anneal_tokens={self.anneal_tokens:,} is more than tokens={self.tokens:,}")
        if (self.anneal_mix or self.anneal_weights) and not self.anneal_tokens:
            raise ValueError("anneal_mix and anneal_weights need anneal_tokens")
        return self
