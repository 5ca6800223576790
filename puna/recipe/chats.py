"""Your own chats and preferences: the [chats] section."""

from pydantic import Field

from puna.recipe.endpoint import Endpoint
from puna.recipe.knobs import Knobs


class Chats(Knobs):
    """Chats and preferences in published forms, thinned out and balanced (section 4.2.3). The paper prints no
    threshold, so every value here is ours."""

    sources: list[str] = []
    """Files of JSONL (.gz, .zst, .bz2, .lz4 too) or folders of them, as `PATH` or `FORM:PATH`; without a form, one of
    openai, sharegpt, alpaca, completion and preference, the keys of each line show it. A file's name is the `source`
    of its chats, for `sft.weights`. Empty: the stage `chats` is not made."""
    only: bool = False
    """SFT and DPO learn from these alone, and from nothing that is synthesized."""
    max_emoji: float = Field(3.0, ge=0)
    """Emoji in 100 words of the assistant's; with more a chat is dropped (section 4.2.3 names emoji, exclamation
    marks and apologies). A lone one passes."""
    max_exclamations: float = Field(5.0, ge=0)
    """Exclamation marks in 100 words of the assistant's, code left out; a lone one passes."""
    max_apology_share: float = Field(0.02, ge=0, le=1)
    """Share of the chats, at most, in which the assistant apologises; the worst of those are dropped."""
    reward_model: str | None = None
    """A reward model's directory; chats that it scores below `quality_quantile` are dropped (section 4.2.3: the top
    quartile stays)."""
    quality_quantile: float = Field(0.75, ge=0, lt=1)
    """Share of the chats that a reward model takes away."""
    judge: Endpoint = Endpoint()  # pyright: ignore[reportCallIssue]
    """A model that grades every chat, with three points or, of code, two; one with all of them stays, also where a
    reward model would drop it (section 4.2.3)."""
    max_cosine: float = Field(0.9, gt=0, le=1)
    """Of chats that are more alike than this the best stays; 1 drops only equal ones."""
    max_source_share: float = Field(1.0, gt=0, le=1)
    """Share of the chats from one source, at most."""
    max_topic_share: float = Field(1.0, gt=0, le=1)
    """Share of the chats with one fine topic, at most."""
