"""From a request to the prompt: messages and tools to a chat, text or tokens to tokens."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.errors import PunaError
from puna.serve.errors import ApiError
from puna.serve.requests import (
    AssistantMessage,
    BuiltinTool,
    ChatMessage,
    ChatRequest,
    Format,
    FunctionTool,
    JsonFormat,
    NamedChoice,
    Prompts,
    SchemaFormat,
    ToolMessage,
    text_of,
)
from puna.serve.served import Served
from puna.text.chat import Chat, Message, render
from puna.text.message import BUILTIN_ARGUMENT

ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Tools:
    """The tools of a request.

    Attributes:
        functions: their schemas as the model reads them.
        builtins: names out of BUILTIN_ARGUMENT.
        strict: whether a function asks for arguments of exactly its schema.
    """

    functions: tuple[dict[str, Any], ...] = ()
    builtins: tuple[str, ...] = ()
    strict: bool = False

    @property
    def names(self) -> list[str]:
        return [function["function"]["name"] for function in self.functions] + list(self.builtins)

    def call_schema(self, name: str) -> dict[str, Any]:
        """JSON schema of a call of one of them, in the form that the model was told to use."""
        if name in self.builtins:
            argument = BUILTIN_ARGUMENT[name]
            parameters: Any = _object({argument: {"type": "string"}})
        else:
            function = next(tool["function"] for tool in self.functions if tool["function"]["name"] == name)
            parameters = {"type": "object"} | (function.get("parameters") or {})
        return _object({"name": {"const": name}, "parameters": parameters})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def read_tools(tools: Sequence[FunctionTool | BuiltinTool] | None) -> Tools:
    """Functions and built-in tools; a function that bears a built-in tool's name is that tool."""
    functions, builtins, strict = [], [], False
    for tool in tools or ():
        name = tool.type if isinstance(tool, BuiltinTool) else tool.function.name
        if name in BUILTIN_ARGUMENT:
            builtins.append(name)
        elif isinstance(tool, FunctionTool):
            functions.append(tool.function.schema_for_model())
            strict |= bool(tool.function.strict)
    result = Tools(tuple(functions), tuple(builtins), strict)
    if len(set(result.names)) < len(result.names):
        raise ApiError("two tools have the same name; rename one of them", param="tools")
    return result


def grammar(tools: Tools, choice: str | NamedChoice | None, form: Format | None) -> dict[str, Any] | None:
    """The JSON schema that the output must have, from `tool_choice` and `response_format`; None for free text."""
    form_schema = _form_schema(form)
    named = choice.function.name if isinstance(choice, NamedChoice) else None
    forced = named is not None or choice == "required"
    if forced and not tools.names:
        raise ApiError("tool_choice asks for a call, but there are no tools", param="tool_choice")
    if named is not None and named not in tools.names:
        raise ApiError(f"tool_choice names {named!r}, which is not among the tools", param="tool_choice")
    if forced and form_schema is not None:
        raise ApiError("tool_choice asks for a call and response_format for JSON; drop one", param="response_format")
    if named is not None:
        return tools.call_schema(named)
    if forced:
        schemas = [tools.call_schema(name) for name in tools.names]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if tools.names and choice != "none":
        if tools.strict:
            raise ApiError(
                "strict is kept where a call is certain: set tool_choice to required or to a function, or strict to "
                "false",
                param="tools",
            )
        if form_schema is not None:
            raise ApiError(
                "response_format leaves no room for calls; set tool_choice to none, or drop one",
                param="response_format",
            )
    return form_schema


def _form_schema(form: Format | None) -> dict[str, Any] | None:
    if isinstance(form, SchemaFormat):
        return ANY_OBJECT if form.json_schema.schema_ is None else form.json_schema.schema_
    return ANY_OBJECT if isinstance(form, JsonFormat) else None


def chat_of(messages: Sequence[ChatMessage], tools: Tools) -> Chat:
    """The chat of a request's messages. ApiError where results do not belong to calls."""
    found: list[Message] = []
    waiting: dict[str, int] = {}  # calls without a result: their ids -> their places
    results: dict[int, Message] = {}
    for message in messages:
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in waiting:
                raise ApiError(
                    f"tool_call_id {message.tool_call_id!r} is not that of a call in the message before",
                    param="messages",
                )
            results[waiting.pop(message.tool_call_id)] = Message("tool", text_of(message.content))
            continue
        # The format has no ids: results stand in the order of their calls.
        found += [results[place] for place in sorted(results)]
        results = {}
        if waiting:
            raise ApiError(f"the calls {', '.join(waiting)} have no result", param="messages")
        found.append(_message(message))
        if isinstance(message, AssistantMessage):
            waiting = {call.id: place for place, call in enumerate(message.tool_calls or ())}
    found += [results[place] for place in sorted(results)]
    if waiting:
        raise ApiError(f"the calls {', '.join(waiting)} have no result", param="messages")
    begins_with_user = [message.role for message in found if message.role != "system"][:1] == ["user"]
    return Chat(found, list(tools.functions) or None, list(tools.builtins) or None, None, begins_with_user)


def _message(message: ChatMessage) -> Message:
    data: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    data["content"] = text_of(message.content)
    if isinstance(message, AssistantMessage):
        calls = message.tool_calls or []
        if message.content is None and not calls:
            raise ApiError("a message of the assistant has neither content nor calls", param="messages")
        data["tool_calls"] = [{"name": call.function.name, "arguments": call.function.arguments} for call in calls]
    try:
        return Message.from_dict(data)
    except ValueError as error:
        raise ApiError(str(error), param="messages") from None


async def chat_prompt(served: Served, chat: Chat, generation_prompt: bool = True) -> list[int]:
    """Token ids; nothing in a message becomes a special token."""

    def ids() -> list[int]:
        return render(chat, served.tokenizer, profile=served.profile, generation_prompt=generation_prompt).ids

    try:
        return await asyncio.to_thread(ids)
    except PunaError:
        raise
    except (ValueError, RecursionError) as error:  # the chat cannot be written in the format
        raise ApiError(str(error), param="messages") from None


async def prompt_ids(served: Served, prompts: Prompts, bos: bool, param: str = "prompt") -> list[list[int]]:
    """Token ids of each prompt. Text begins with begin_of_text if `bos`; to tokens nothing is added."""
    many: Any = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
    for prompt in many:
        if not isinstance(prompt, str):
            served.check_tokens(prompt, param)

    def encode() -> list[list[int]]:
        encoder = served.tokenizer.encode
        return [encoder(prompt, bos=bos) if isinstance(prompt, str) else list(prompt) for prompt in many]

    found = await asyncio.to_thread(encode)
    if not all(found):
        raise ApiError("an empty prompt cannot be continued", param=param)
    return found


def check_bias(served: Served, bias: Mapping[str, float] | None) -> None:
    served.check_tokens(map(int, bias or ()), "logit_bias")


def wants_calls(body: ChatRequest, tools: Tools) -> bool:
    return bool(tools.names) and body.tool_choice != "none"
