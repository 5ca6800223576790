"""Talking to a model in a terminal."""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.log import console
from puna.text.chat import Chat, Message, ToolCall
from puna.tools import Toolbox, ToolResult
from puna.tools.loop import Dialogue, stream

HELP = (
    "/new starts over, /tools lists the tools, /files lists the files of the Python tool, /put FILE gives it one, "
    "/get NAME takes one into this folder, /quit ends (so does Ctrl-D)"
)


class Conversation:
    """A chat with an engine: tools are run as the model calls them."""

    def __init__(self, engine: Engine, toolbox: Toolbox, sampling: Sampling, system: str | None = None) -> None:
        self.engine, self.toolbox, self.sampling, self.system = engine, toolbox, sampling, system
        self.new()

    def new(self) -> None:
        self.toolbox.reset()
        self.chat = Chat([Message("system", self.system)] if self.system else [])

    def say(self, text: str) -> Iterator[str | ToolCall | ToolResult]:
        """Answer a message: pieces of text as they come, each call before it runs and its result after."""
        self.chat.messages.append(Message("user", text))
        dialogue = Dialogue(self.chat, self.toolbox, self.engine.tokenizer)
        yield from stream(self.engine, dialogue, self.sampling)
        if dialogue.finish == "steps":
            yield f"(stopped after {dialogue.most} calls in a row)"


def converse(conversation: Conversation, message: str | None) -> None:
    """One question, or a conversation until the input ends."""
    if message is not None:
        _show(conversation, message)
        return
    interactive = sys.stdin.isatty()
    if interactive:
        names = ", ".join(tool.name for tool in conversation.toolbox.tools) or "none"
        console.print(f"[dim]tools: {names}. {HELP}[/]")
    while True:
        try:
            text = (console.input("[bold green]you[/]   ") if interactive else input()).strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text.startswith("/"):
            try:
                _command(conversation, *text.split(maxsplit=1))
            except (PunaError, OSError) as error:
                console.print(f"[red]{escape(str(error))}[/]")
        elif text:
            _show(conversation, text)


def _command(conversation: Conversation, word: str, rest: str = "") -> None:
    toolbox = conversation.toolbox
    match word:
        case "/new":
            conversation.new()
        case "/tools":
            for tool in toolbox.tools:
                console.print(f"  {tool.name}: {tool.description}", highlight=False, markup=False)
        case "/files":
            for name, size in toolbox.files().items():
                console.print(f"  {name}: {size:,} bytes", highlight=False, markup=False)
        case "/put" if rest:
            toolbox.put_file(Path(rest).name, Path(rest).read_bytes())
        case "/get" if rest:
            Path(Path(rest).name).write_bytes(toolbox.get_file(rest))
        case _:
            console.print(HELP)


def _show(conversation: Conversation, text: str) -> None:
    """Print a reply as it comes: text to stdout, calls and their results beside it on stderr."""
    if sys.stdin.isatty():
        console.print("[bold magenta]llama[/] ", end="")
    try:
        for piece in conversation.say(text):
            if isinstance(piece, str):
                print(_plain(piece), end="", flush=True)
            elif isinstance(piece, ToolCall):
                arguments = ", ".join(f"{name}={value!r}" for name, value in piece.arguments.items())
                console.print(f"[dim]{escape(_plain(f'{piece.name}({arguments})'))}[/]", highlight=False)
            else:
                images = "".join(f" [image in {_keep(image)}]" for image in piece.images)
                console.print(f"[dim]{escape(_plain(f'-> {piece.text}{images}'))}[/]", highlight=False)
    except PunaError as error:  # the conversation grew too long for the model
        console.print(f"[red]{escape(str(error))}[/]; /new starts over")
    except KeyboardInterrupt:
        console.print("[dim](cut short)[/]")
    print()


def _plain(text: str) -> str:
    """Text without the characters that steer a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def _keep(image: bytes) -> str:
    """Write an image where the user finds it."""
    with tempfile.NamedTemporaryFile(prefix="puna-", suffix=".png", delete=False) as file:
        file.write(image)
    return file.name
