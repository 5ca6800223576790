"""What may be asked: the bodies of /v1/chat/completions, /v1/completions and /v1/embeddings, and the other requests
that are not of the Responses API.

A field that is not here is refused. A field of OpenAI's that this server cannot honour is here with only those values
that change nothing (`Neutral` ones); one that never changes a reply (`user`, for example) is taken and left alone.
"""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from puna.errors import PunaError
from puna.infer.engine import Sampling

MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS = 128, 16, 20
Speculate = Literal["off", "ngram", "draft"]
Zero = Annotated[float, Field(ge=0, le=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenText = Annotated[str, Field(pattern="^[0-9]{1,7}$")]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
FunctionName = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,64}$")]
BuiltinName = Literal["brave_search", "wolfram_alpha", "code_interpreter"]
Prompts = str | Annotated[list[str], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)]


class Body(BaseModel):
    # Strict: "3" is no number and true no 1.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class Common(Body):
    """What every request for text may say."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    # Of no consequence for a reply.
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # Ours (as in vLLM).
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    stop_token_ids: list[Token] | None = None
    ignore_eos: bool = False
    regex: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None


class Generation(Common):
    """What requests for chat completions and completions share."""

    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    logit_bias: dict[TokenText, Bias] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Neutral: only what changes nothing.
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream(self) -> None:
        if self.stream_options and not self.stream:
            raise PunaError("stream_options is for streams; set stream to true or leave it out")


# Chat


class TextPart(Body):
    type: Literal["text"]
    text: str


Content = str | list[TextPart]


def text_of(content: Content | None) -> str:
    return content or "" if not isinstance(content, list) else "".join(part.text for part in content)


class CalledFunction(Body):
    name: str
    arguments: str


class Call(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Body):
    role: Literal["user"]
    content: Content


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[Call] | None = None
    # As they come with a reply, and go back empty.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def schema_for_model(self) -> dict[str, Any]:
        """What the model reads about it; the same order of keys whatever order the client has."""
        given = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {key: value for key, value in given.items() if value is not None}}


class FunctionTool(Body):
    type: Literal["function"]
    function: Function


class BuiltinTool(Body):
    type: BuiltinName


class NamedFunction(Body):
    name: str


class NamedChoice(Body):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Body):
    type: Literal["text"]


class JsonFormat(Body):
    type: Literal["json_object"]


class Schema(Body):
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: Schema


Format = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(Generation):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: Format | None = None
    tools: list[FunctionTool | BuiltinTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    # Neutral.
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None
    reasoning_effort: Literal["none"] | None = None
    audio: None = None
    functions: None = None
    function_call: None = None
    prediction: None = None
    web_search_options: None = None

    @property
    def most_tokens(self) -> int | None:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PunaError("max_tokens and max_completion_tokens differ; give max_completion_tokens alone")
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Generation):
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    add_special_tokens: bool = Field(True, description="Begin prompts that are text with begin_of_text.")
    json_schema: dict[str, Any] | None = Field(None, description="Ours: the output is JSON of this schema.")
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None


# The others


class EmbeddingRequest(Body):
    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    dimensions: None = None


class TokenizeRequest(Body):
    """Text, or a chat as it would be put to the model."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[FunctionTool | BuiltinTool] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[Token]


def sampling_of(
    body: Common,
    max_tokens: int,
    *,
    json_schema: dict[str, Any] | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    speculate: Speculate = "off",
) -> Sampling:
    """The engine's form of what a request asks for; a request without a seed gets one."""
    more: dict[str, Any] = {}
    seed = None
    if isinstance(body, Generation):
        stop, seed = body.stop, body.seed
        more["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        more["logit_bias"] = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    return Sampling(
        max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(63) if seed is None else seed % 2**64,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        stop_ids=tuple(body.stop_token_ids or ()),
        ignore_stop=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        json_schema=None if json_schema is None else json.dumps(json_schema),
        regex=body.regex,
        speculate=speculate,
        **more,
    )
