"""The loop of calls: the model answers, what it calls is run, it reads the results, until it calls nothing more.

A `Dialogue` is one chat with its toolbox. It knows no engine: it gives a prompt and takes the model's reply, so that a
terminal can stream one (`stream`) and sampling can run hundreds in a batch (`run_all`) by the same rules.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.text.chat import Chat, Message, Profile, ToolCall, parse, render
from puna.text.tokenizer import Tokenizer
from puna.tools.functions import ToolResult
from puna.tools.toolbox import Toolbox

MOST_STEPS = 8
"""Replies of the model to one message before it is stopped; ours."""


@dataclass(frozen=True)
class Step:
    """A reply of the model: its tokens, the message they are, and the results of its calls, in their order."""

    ids: list[int]
    message: Message
    results: list[ToolResult] = field(default_factory=list)


class Dialogue:
    """A chat in which calls are run, from the user's message to the model's answer.

    Args:
        chat: ends with a user's message; gets the toolbox's tools, and every reply and result as a message.
        toolbox: whose tools the model may call.
        most: steps after which the model is stopped.

    Attributes:
        steps: what has happened since the chat was given.
        finish: None while the model has to go on, "answer" when it called nothing, "steps" when it was stopped,
            "length" when the chat outgrew the model (in `run_all`; `stream` raises the engine's PunaError).
    """

    def __init__(
        self, chat: Chat, toolbox: Toolbox, tokenizer: Tokenizer, most: int = MOST_STEPS, profile: Profile = "hf"
    ) -> None:
        self.chat, self.toolbox, self.tokenizer, self.most = chat, toolbox, tokenizer, most
        self.profile: Profile = profile
        chat.tools, chat.builtin_tools = toolbox.schemas(), toolbox.builtins()
        self.steps: list[Step] = []
        self.finish: Literal["answer", "steps", "length"] | None = None

    def prompt(self) -> list[int]:
        """The tokens after which the model's next reply begins."""
        return render(self.chat, self.tokenizer, profile=self.profile, generation_prompt=True).ids

    def read(self, ids: Sequence[int]) -> Message:
        """A reply as a message."""
        message = parse(ids, self.tokenizer)
        for call in message.tool_calls:
            if call.name in (self.chat.builtin_tools or []):  # which take text, and are written so
                call.arguments = {k: v if isinstance(v, str) else json.dumps(v) for k, v in call.arguments.items()}
        return message

    def take(self, ids: Sequence[int], message: Message | None = None) -> Step:
        """Run the calls of a reply; what goes wrong in one is a result that the model reads."""
        message = message or self.read(ids)
        results = self.toolbox.run(message.tool_calls) if message.tool_calls else []
        step = Step(list(ids), message, results)
        self.steps.append(step)
        self.chat.messages += [message, *(Message("tool", result.text) for result in results)]
        if not message.tool_calls:
            self.finish = "answer"
        elif len(self.steps) >= self.most:
            self.finish = "steps"
        return step


def stream(engine: Engine, dialogue: Dialogue, sampling: Sampling) -> Iterator[str | ToolCall | ToolResult]:
    """Pieces of text as they come; the calls of a reply before they run, and their results after."""
    while dialogue.finish is None:
        ids: list[int] = []
        shown = yield from _text(engine, dialogue.prompt(), sampling, ids)
        message = dialogue.read(ids)
        yield from message.tool_calls
        step = dialogue.take(ids, message)
        yield from step.results
        if not step.results and not shown:
            yield message.content


def run_all(engine: Engine, dialogues: Sequence[Dialogue], sampling: Sampling, first: int = 0) -> None:
    """Bring dialogues to their ends, all those that still go on in one batch at a time.

    The i-th dialogue's replies draw from (seed, first + i + step * number of dialogues): who shares a batch, and who
    has finished, changes nothing.
    """
    for step in range(max((dialogue.most for dialogue in dialogues), default=0)):
        going = [(i, dialogue) for i, dialogue in enumerate(dialogues) if dialogue.finish is None]
        if not going:
            return
        _reply(engine, {first + i + step * len(dialogues): dialogue for i, dialogue in going}, sampling)


def _reply(engine: Engine, going: dict[int, Dialogue], sampling: Sampling) -> None:
    """The next step of each dialogue, given by the number that its reply draws from."""
    requests: dict[int, tuple[Dialogue, list[int]]] = {}
    try:
        for number, dialogue in going.items():
            try:
                requests[engine.add(dialogue.prompt(), sampling, number)] = dialogue, []
            except PunaError:
                dialogue.finish = "length"
        while requests:
            for output in engine.step():
                if output.request in requests:
                    dialogue, ids = requests[output.request]
                    ids += output.tokens
                    if output.finish:
                        del requests[output.request]
                        dialogue.take(ids)
    finally:
        for request in requests:
            engine.abort(request)


def _text(engine: Engine, prompt: list[int], sampling: Sampling, ids: list[int]) -> Iterator[str]:
    """The reply's text, held back while it may still be a call; true if it was shown."""
    tokenizer = engine.tokenizer
    decoder = tokenizer.stream_decoder()
    held, call, shown = "", False, False
    for token in engine.stream(prompt, sampling):
        ids.append(token)
        if token in tokenizer.stop_ids:
            break
        call = call or token == tokenizer.python_tag_id
        held += decoder.push(token)
        call = call or (not shown and held.lstrip()[:1] in ("{", "[", "<"))
        if not call and held.strip():
            shown = True
            yield held
            held = ""
    return shown
