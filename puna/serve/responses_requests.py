"""The body of /v1/responses, and the chat request that asks for the same."""

from typing import Annotated, Any, Literal

from pydantic import Field

from puna.serve.requests import (
    MOST_LOGPROBS,
    AssistantMessage,
    Body,
    BuiltinTool,
    Call,
    CalledFunction,
    ChatMessage,
    Common,
    Format,
    Function,
    FunctionName,
    FunctionTool,
    JsonFormat,
    NamedChoice,
    NamedFunction,
    Schema,
    SchemaFormat,
    SystemMessage,
    TextFormat,
    ToolMessage,
    UserMessage,
)

Status = Literal["in_progress", "completed", "incomplete"]


class Part(Body):
    """A piece of text of ours or of the client's; what else comes with one of ours is taken back unread."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[Part]
    id: str | None = None
    status: Status | None = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class ResultItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]
    id: str | None = None
    status: Status | None = None


class FlatFunction(Function):
    """A function as this API writes it, without the level between."""

    type: Literal["function"]


class FlatChoice(Body):
    type: Literal["function"]
    name: str


class FlatSchemaFormat(Body):
    type: Literal["json_schema"]
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    format: Annotated[TextFormat | JsonFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: bool = False


class ResponsesRequest(Common):
    input: str | Annotated[list[MessageItem | CallItem | ResultItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[FlatFunction | BuiltinTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    # Neutral: this server keeps no responses, and its models have no hidden reasoning.
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: None = None
    conversation: None = None
    reasoning: None = None
    prompt: None = None
    max_tool_calls: None = None

    def messages(self) -> list[ChatMessage]:
        found: list[ChatMessage] = []
        if self.instructions:
            found.append(SystemMessage(role="system", content=self.instructions))
        if isinstance(self.input, str):
            return [*found, UserMessage(role="user", content=self.input)]
        for item in self.input:
            if isinstance(item, ResultItem):
                found.append(ToolMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id))
            elif isinstance(item, CallItem):
                call = Call(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
                if found and isinstance(found[-1], AssistantMessage):  # the calls of one message are items in a row
                    found[-1].tool_calls = [*(found[-1].tool_calls or ()), call]
                else:
                    found.append(AssistantMessage(role="assistant", tool_calls=[call]))
            elif item.role == "assistant":
                found.append(AssistantMessage(role="assistant", content=_text(item.content)))
            elif item.role == "user":
                found.append(UserMessage(role="user", content=_text(item.content)))
            else:
                found.append(SystemMessage(role="system", content=_text(item.content)))
        return found

    def chat_tools(self) -> list[FunctionTool | BuiltinTool]:
        return [
            tool
            if isinstance(tool, BuiltinTool)
            else FunctionTool(type="function", function=Function(**tool.model_dump(exclude={"type"})))
            for tool in self.tools or ()
        ]

    def chat_choice(self) -> str | NamedChoice | None:
        if isinstance(self.tool_choice, FlatChoice):
            return NamedChoice(type="function", function=NamedFunction(name=self.tool_choice.name))
        return self.tool_choice

    def chat_format(self) -> Format | None:
        form = self.text.format if self.text else None
        if isinstance(form, FlatSchemaFormat):
            return SchemaFormat(type="json_schema", json_schema=Schema(name=form.name, schema=form.schema_))
        return form


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
