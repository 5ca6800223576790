"""Chats of the corpus, of a model and of a sandbox: the part of [synthesize] that is off by default."""

from pydantic import Field, model_validator

from puna.recipe.endpoint import Endpoint
from puna.recipe.knobs import Knobs


class Synthesis(Knobs):
    """Synthetic data (sections 4.3.1, 4.3.4 and 4.3.5). Counts are ours: the paper's are of another order."""

    endpoint: Endpoint = Endpoint()  # pyright: ignore[reportCallIssue]
    """The model that writes."""
    functions: int = Field(0, ge=0)
    """Dialogues that call functions found in the corpus, made by rule (section 4.3.5)."""
    reword: bool = False
    """Let the model put their questions into its own words."""
    execution: int = Field(0, ge=0)
    """Pieces of the corpus' code, of each of which the model makes a problem, a program and its tests; a dialogue is
    kept if the tests, run in the sandbox, pass (section 4.3.1: about a million dialogues)."""
    repairs: int = Field(2, ge=0)
    """Times that the model may mend a program, told what failed. In the paper 20% of the programs were mended."""
    back_translation: int = Field(0, ge=0)
    """Pieces of the corpus' code that the model explains or documents; the words are kept if the code can be written
    again from them (section 4.3.1: about 1.2 million dialogues)."""
    teacher_prompts: list[str] = []
    """Files of JSONL with prompts that the model answers, as a teacher: {"prompt"} or chats in the forms of [chats],
    with `tests` (Python) or an `answer` by which an answer is checked, where there are some."""
    teacher_answers: int = Field(10, ge=1)
    """Answers to each prompt, of which the best right one is kept (10 to 30, section 4.2.2)."""
    teacher_temperature: float = Field(0.6, ge=0, le=2)
    teacher_reward_model: str | None = None
    """A reward model's directory, which chooses among the right answers; else the first is taken."""
    long_lengths: list[int] = []
    """Tokens of chats on long texts, in turn, as [16_384, 32_768, 65_536, 131_072] (section 4.3.4); empty: there are
    none. SFT leaves out what does not fit into `sft.seq_len`."""
    long_share: float = Field(0.001, ge=0, lt=1)
    """Share of the stage's chats that are on long texts (section 4.3.4)."""
    long_chunk: int = Field(8192, ge=16)
    """Tokens of a part that the model reads at once (section 4.3.4)."""
    repositories: list[str] = []
    """Folders of Python code; every other chat on long texts asks for a file that is missing there (section 4.3.4)."""
    importers: int = Field(5, ge=1)
    """Files that import such a file, at least (section 4.3.4)."""

    @model_validator(mode="after")
    def what_is_written_has_a_writer(self) -> "Synthesis":
        if self.long_lengths and min(self.long_lengths) < 256:
            raise ValueError(f"long_lengths = {self.long_lengths}: a long text has 256 tokens or more")
        if self.long_lengths and not self.repositories and not self.endpoint.url:
            raise ValueError("long_lengths asks a model; give synthesize.endpoint.url, or repositories alone")
        asked = [name for name in ("reword", "execution", "back_translation", "teacher_prompts") if getattr(self, name)]
        if asked and not self.endpoint.url:
            raise ValueError(f"{asked[0]} = {getattr(self, asked[0])!r} asks a model; give synthesize.endpoint.url")
        return self
