"""The Llama 3.1 message format: from a chat to tokens, with a loss mask.

    <|begin_of_text|>                                     once, at the start
    <|start_header_id|>ROLE<|end_header_id|>\\n\\nCONTENT<|eot_id|>     each message

The roles are system, user, assistant and ipython, the format's name for the output of a tool. A message of
the assistant ends in <|eot_id|> when its turn is finished, in <|eom_id|> when it waits for a tool. Calls of
built-in tools, and code to run, follow <|python_tag|>.

Meta and Hugging Face agree on this frame but not on what goes into it, so there are two profiles. `hf` is
the chat template published with Llama-3.1-8B-Instruct (chat_template.jinja, which is ours, gives the same
bytes); `meta` is prompt_format.md for 3.1 in Meta's llama-models:

|                    | hf                                  | meta                                            |
|--------------------|-------------------------------------|-------------------------------------------------|
| system message     | always, with two dates              | only if there is something in it                |
| content            | stripped of white space             | as it is                                        |
| result of a tool   | as a JSON string, in quotes         | as it is                                        |
| call of a function | {"name": ..., "parameters": ...}    | <|python_tag|>{"type": "function", "name": ...} |
| code               | code_interpreter.call(code="...")   | the code itself                                 |
| end of a call      | eom if builtin_tools, otherwise eot | eom                                             |
| text beside a call | left out                            | before the call                                 |

Neither escapes quotes in the argument of a built-in call. The types are in message.py, the
way back from tokens to a message in chat_parse.py.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from puna.text.chat_parse import parse
from puna.text.message import BUILTIN_ARGUMENT, Chat, Message, ToolCall
from puna.text.tokenizer import Tokenizer

__all__ = ["Chat", "Message", "Profile", "Rendered", "ToolCall", "parse", "render", "render_text"]

Profile = Literal["hf", "meta"]
BEGIN, PYTHON_TAG = "<|begin_of_text|>", "<|python_tag|>"
END_OF_TURN, END_OF_MESSAGE = "<|eot_id|>", "<|eom_id|>"
KNOWLEDGE = "Cutting Knowledge Date: December 2023"
HF_DATE = "26 Jul 2024"  # the published template's default


class Rendered(NamedTuple):
    """Token ids, and for each whether the model has to produce it: an answer and its end, never a header."""

    ids: list[int]
    mask: list[bool]


def render(chat: Chat, tokenizer: Tokenizer, *, profile: Profile = "hf", generation_prompt: bool = False) -> Rendered:
    """Tokens of a chat; with `generation_prompt`, up to where the model's next answer starts.

    Content is encoded apart from the frame, so nothing a user writes becomes a special token.
    """
    rendered = Rendered([], [])
    for piece in _pieces(chat, profile, generation_prompt):
        ids = [tokenizer.special[piece.text]] if piece.special else tokenizer.encode(piece.text)
        rendered.ids.extend(ids)
        rendered.mask.extend([piece.learn] * len(ids))
    return rendered


def render_text(chat: Chat, *, profile: Profile = "hf", generation_prompt: bool = False) -> str:
    """The same as text, for people: it cannot tell a special token from a user who wrote its name."""
    return "".join(piece.text for piece in _pieces(chat, profile, generation_prompt))


# The frame, common to both profiles


class _Turn(NamedTuple):
    """A message as its profile words it."""

    role: str
    content: str
    calls: str = ""
    python_tag: bool = False
    end: str = END_OF_TURN
    learn: bool = False


class _Piece(NamedTuple):
    """A special token, or text that is encoded as a whole."""

    text: str
    special: bool = False
    learn: bool = False


def _pieces(chat: Chat, profile: Profile, generation_prompt: bool) -> Iterator[_Piece]:
    if profile not in ("hf", "meta"):
        raise ValueError(f'profile={profile!r}: choose "hf" or "meta"')
    yield _Piece(BEGIN, special=True)
    for turn in _hf_turns(chat) if profile == "hf" else _meta_turns(chat):
        yield from _header(turn.role)
        yield _Piece(turn.content, learn=turn.learn)
        if turn.python_tag:
            yield _Piece(PYTHON_TAG, special=True, learn=turn.learn)
        yield _Piece(turn.calls, learn=turn.learn)
        yield _Piece(turn.end, special=True, learn=turn.learn)
    if generation_prompt:
        yield from _header("assistant")


def _header(role: str) -> Iterator[_Piece]:
    yield _Piece("<|start_header_id|>", special=True)
    yield _Piece(role)
    yield _Piece("<|end_header_id|>", special=True)
    yield _Piece("\n\n")


def _split_system(chat: Chat) -> tuple[str, list[Message]]:
    """The content of a system message at the start, and the other messages."""
    if chat.messages and chat.messages[0].role == "system":
        return chat.messages[0].content, chat.messages[1:]
    return "", chat.messages


def _has_environment(chat: Chat) -> bool:
    return chat.tools is not None or chat.builtin_tools is not None


def _named_tools(chat: Chat) -> list[str]:
    """The built-in tools to name; the environment alone stands for the code interpreter."""
    return [name for name in chat.builtin_tools or [] if name != "code_interpreter"]


def _learned(message: Message) -> bool:
    return message.role == "assistant" and message.learn


def _builtin_call(call: ToolCall) -> str:
    for name, value in call.arguments.items():
        if not isinstance(value, str):
            raise ValueError(f"{call.name}: {name}={value!r}; a built-in tool takes text")
    arguments = ", ".join(f'{name}="{value}"' for name, value in call.arguments.items())
    return f"{call.name}.call({arguments})"


# Profile hf

_HF_TOOLS_IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call."
)
_HF_TOOLS_IN_USER = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
)
_HF_TOOLS_FORMAT = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)


def _hf_turns(chat: Chat) -> Iterator[_Turn]:
    system, messages = _split_system(chat)
    tools = "" if chat.tools is None else _hf_tools(chat.tools)
    tools_in_system = _HF_TOOLS_IN_SYSTEM + tools if tools and not chat.tools_in_user_message else ""
    yield _Turn("system", _hf_environment(chat) + tools_in_system + system.strip())
    if tools and chat.tools_in_user_message:
        if not messages or messages[0].role != "user":
            raise ValueError(
                "the tools belong in the first user message, but the chat does not begin with one: "
                "set tools_in_user_message=False"
            )
        yield _Turn("user", _HF_TOOLS_IN_USER + tools + messages[0].content.strip())
        messages = messages[1:]
    for message in messages:
        if message.tool_calls:
            yield _hf_calls(message, chat.builtin_tools)
        elif message.role == "tool":
            yield _Turn("ipython", json.dumps(message.content, ensure_ascii=False))
        else:
            yield _Turn(message.role, message.content.strip(), learn=_learned(message))


def _hf_environment(chat: Chat) -> str:
    lines = ["Environment: ipython"] if _has_environment(chat) else []
    if chat.builtin_tools is not None:
        # With code_interpreter alone nothing follows "Tools: ", as published.
        lines += [f"Tools: {', '.join(_named_tools(chat))}", ""]
    lines += [KNOWLEDGE, f"Today Date: {HF_DATE if chat.date is None else chat.date}", "", ""]
    return "\n".join(lines)


def _hf_tools(tools: list[dict[str, Any]]) -> str:
    listed = (json.dumps(tool, ensure_ascii=False, indent=4) + "\n\n" for tool in tools)
    return _HF_TOOLS_FORMAT + "".join(listed)


def _hf_calls(message: Message, builtin_tools: list[str] | None) -> _Turn:
    """The published template writes one call and refuses more; more are written here as models write them."""
    calls, any_builtin = [], False
    for call in message.tool_calls:
        if call.name in (builtin_tools or []):
            calls.append(_builtin_call(call))
            any_builtin = True
        else:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            calls.append(f'{{"name": "{call.name}", "parameters": {arguments}}}')
    end = END_OF_TURN if builtin_tools is None else END_OF_MESSAGE
    return _Turn("assistant", "", "; ".join(calls), any_builtin, end, message.learn)


# Profile meta

_META_TOOLS = (
    "Answer the user's question by making use of the following functions if needed.\n"
    "If none of the function can be used, please say so.\n"
    "Here is a list of functions in JSON format:\n"
)


def _meta_turns(chat: Chat) -> Iterator[_Turn]:
    system, messages = _split_system(chat)
    tools = "" if chat.tools is None else _meta_tools(chat.tools)
    tools_in_system = "" if chat.tools_in_user_message else tools
    paragraphs = [text for text in (_meta_environment(chat), tools_in_system, system) if text]
    if paragraphs:
        yield _Turn("system", "\n\n".join(paragraphs))
    if tools and chat.tools_in_user_message:
        yield _Turn("user", tools)
    for message in messages:
        if message.tool_calls:
            # Meta's encoder (chat_format.py) writes the tag before code only; its document before any call.
            calls = _meta_calls(message.tool_calls)
            yield _Turn("assistant", message.content, calls, True, END_OF_MESSAGE, message.learn)
        else:
            role = "ipython" if message.role == "tool" else message.role
            yield _Turn(role, message.content, learn=_learned(message))


def _meta_environment(chat: Chat) -> str:
    lines = ["Environment: ipython"] if _has_environment(chat) else []
    if _named_tools(chat):
        lines.append(f"Tools: {', '.join(_named_tools(chat))}")
    elif lines and chat.date is not None:
        lines.append("")
    if chat.date is not None:
        lines += [KNOWLEDGE, f"Today Date: {chat.date}"]
    return "\n".join(lines)


def _meta_tools(tools: list[dict[str, Any]]) -> str:
    listed = "".join(_meta_json(tool) + "\n" for tool in tools)
    return f"{_META_TOOLS}{listed}\nReturn function calls in JSON format."


def _meta_calls(calls: list[ToolCall]) -> str:
    if len(calls) == 1 and calls[0].name == "code_interpreter":
        code = calls[0].arguments.get("code")
        if not isinstance(code, str):
            raise ValueError(f"code_interpreter: code={code!r}; it takes text")
        return code
    return "; ".join(_meta_call(call) for call in calls)


def _meta_call(call: ToolCall) -> str:
    if call.name == "code_interpreter":
        raise ValueError("code_interpreter: in the meta profile code stands alone; give it its own message")
    if call.name in BUILTIN_ARGUMENT:
        return _builtin_call(call)
    return json.dumps({"type": "function", "name": call.name, "parameters": call.arguments})


def _meta_json(value: Any, indent: str = "") -> str:
    """JSON by four spaces, with a list of plain values on one line, as in prompt_format.md."""
    inner = indent + "    "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key)}: {_meta_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = [inner + _meta_json(item, inner) for item in value]
        return "[\n" + ",\n".join(items) + "\n" + indent + "]"
    return json.dumps(value)
