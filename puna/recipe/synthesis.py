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

    @model_validator(mode="after")
    def what_is_written_has_a_writer(self) -> "Synthesis":
        asked = [name for name in ("reword", "execution", "back_translation", "teacher_prompts") if getattr(self, name)]
        if asked and not self.endpoint.url:
            raise ValueError(f"{asked[0]} = {getattr(self, asked[0])!r} asks a model; give synthesize.endpoint.url")
        return self
