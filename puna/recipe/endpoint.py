"""A model that is asked while data are made: [synthesize.endpoint] and [chats.judge]."""

from pydantic import Field

from puna.recipe.knobs import Knobs


class Endpoint(Knobs):
    """A chat model: behind an OpenAI-compatible endpoint (`puna serve` is one), or in a directory. All values ours."""

    url: str = ""
    """The endpoint, up to /v1, as http://localhost:8000/v1; or a model's directory. Empty: no model is asked."""
    model: str = ""
    """Its name at the endpoint."""
    key_env: str = ""
    """The environment variable that holds the key."""
    concurrency: int = Field(8, ge=1)
    """Questions at once."""
    timeout: float = Field(300.0, gt=0)
    """Seconds for one answer."""
    tries: int = Field(6, ge=1)
    """Requests for one answer, at most."""
    max_tokens: int = Field(2048, ge=1)
    """Longest answer; models that think aloud need more."""
    llama: str | None = None
    """The release of Llama that it is or descends from, as "3.1", whose licence then goes with all that learns from it;
    by default what its name or the licence in its directory says. "": none, whatever its name."""
