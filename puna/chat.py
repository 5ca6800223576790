"""Talking to a model in a terminal."""

import sys
from collections.abc import Iterator

from rich.markup import escape

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.log import console
from puna.text.chat import Chat, Message, ToolCall, parse, render
from puna.tools import Tool, run_call

HELP = "/new starts over, /tools lists the tools, /quit ends (so does Ctrl-D)"
MOST_CALLS = 8
"""Calls in a row before the model is stopped."""


class Conversation:
    """A chat with an engine: tools are run as the model calls them."""

    def __init__(self, engine: Engine, tools: list[Tool], sampling: Sampling, system: str | None = None) -> None:
        self.engine, self.tools, self.sampling, self.system = engine, tools, sampling, system
        self.new()

    def new(self) -> None:
        messages = [Message("system", self.system)] if self.system else []
        self.chat = Chat(messages, tools=[tool.schema for tool in self.tools] or None)

    def say(self, text: str) -> Iterator[str | tuple[ToolCall, str]]:
        """Answer a message: pieces of text as they come, and each tool call with its result."""
        self.chat.messages.append(Message("user", text))
        for _ in range(MOST_CALLS):
            ids: list[int] = []
            shown = yield from self._stream(ids)
            message = parse(ids, self.engine.tokenizer)
            self.chat.messages.append(message)
            if not message.tool_calls:
                if not shown:
                    yield message.content
                return
            results = [run_call(call, self.tools) for call in message.tool_calls]
            yield from zip(message.tool_calls, results)
            self.chat.messages += [Message("tool", result) for result in results]
        yield f"(stopped after {MOST_CALLS} calls in a row)"

    def _stream(self, ids: list[int]) -> Iterator[str]:
        """The reply's text, held back while it may still be a call; true if it was shown."""
        tokenizer = self.engine.tokenizer
        decoder = tokenizer.stream_decoder()
        prompt = render(self.chat, tokenizer, generation_prompt=True).ids
        held, call = "", False
        shown = False
        for token in self.engine.stream(prompt, self.sampling):
            ids.append(token)
            if token in tokenizer.stop_ids:
                break
            call = call or token == tokenizer.python_tag_id
            held += decoder.push(token)
            call = call or (not shown and held.lstrip()[:1] in ("{", "["))
            if not call and held.strip():
                shown = True
                yield held
                held = ""
        return shown


def converse(conversation: Conversation, message: str | None) -> None:
    """One question, or a conversation until the input ends."""
    if message is not None:
        _show(conversation, message)
        return
    interactive = sys.stdin.isatty()
    if interactive:
        names = ", ".join(tool.name for tool in conversation.tools) or "none"
        console.print(f"[dim]tools: {names}. {HELP}[/]")
    while True:
        try:
            text = (console.input("[bold green]you[/]   ") if interactive else input()).strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text == "/new":
            conversation.new()
        elif text == "/tools":
            for tool in conversation.tools:
                console.print(f"  {tool.name}: {tool.schema['function']['description']}", highlight=False)
        elif text.startswith("/"):
            console.print(HELP)
        elif text:
            _show(conversation, text)


def _show(conversation: Conversation, text: str) -> None:
    """Print a reply as it comes: text to stdout, calls and their results beside it on stderr."""
    if sys.stdin.isatty():
        console.print("[bold magenta]llama[/] ", end="")
    try:
        for piece in conversation.say(text):
            if isinstance(piece, str):
                print(piece, end="", flush=True)
            else:
                call, result = piece
                arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
                console.print(f"[dim]{escape(f'{call.name}({arguments}) -> {result}')}[/]", highlight=False)
    except PunaError as error:  # the conversation grew too long for the model
        console.print(f"[red]{escape(str(error))}[/]; /new starts over")
    except KeyboardInterrupt:
        console.print("[dim](cut short)[/]")
    print()
