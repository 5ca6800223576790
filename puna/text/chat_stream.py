"""Calls of tools out of a model's output while it is being written.

`CallStream` takes the output piece by piece and gives what a chat API streams: content, the start of a call, pieces of
its arguments as JSON. All forms that `chat_parse.parse` reads are read, and the parts add up to what it gives for the
whole output, but for one difference: a call is told as soon as its name and its first bracket are there. When such an
output turns out not to be wholly calls, what follows the call becomes content.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from puna.text.chat_parse import call_at, calls_in
from puna.text.message import BUILTIN_ARGUMENT, ToolCall
from puna.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CallStart:
    """The `index`-th call of the output begins."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the JSON of that call's arguments."""

    index: int
    text: str


Delta = str | CallStart | CallArguments  # str: content

_SEPARATOR = re.compile(r"\s*[;,]?\s*")
_TYPE, _PARAMETERS = r'"type"\s*:\s*"function"\s*', r'"(?:parameters|arguments)"\s*:\s*'
_JSON_HEAD = re.compile(
    rf'\{{\s*(?:{_TYPE},\s*)?"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:parameters|arguments)"\s*:\s*(?=\{{)'
)
_JSON_END, _JSON_END_BEGUN = re.compile(rf"\s*(?:,\s*{_TYPE})?\}}"), re.compile(r"\s*(?:,[^}]{0,40})?\Z")
_TAG_HEAD, _TAG_END = re.compile(r"<function=([^<>{}\s]+)>\s*(?=\{)"), re.compile(r"\s*</function>")
_BUILTIN_HEAD = re.compile(rf'({"|".join(BUILTIN_ARGUMENT)})\.call\((\w+)="')
# A quote in the argument of a built-in call is not escaped: only what follows tells which one ends it.
_BUILTIN_END = re.compile(r'"\)(?=\s*[;,]\s*(?:\{|<function=|\w+\.call\())')
_BUILTIN_END_BEGUN = re.compile(r'"(?:\)\s*(?:[;,]\s*(?:<\w*|\w*(?:\.\w*)?)?)?)?\Z')
_FIRST_KEY = re.compile(r'\{\s*(?:"([^"]*)("?))?')
_LIST_BEGUN = re.compile(r"\[\s*(?:[A-Za-z_]\w*\s*(?:\(.*)?)?\Z", re.DOTALL)
_TAG_BEGUN = re.compile(r"<function=[^<>{}\s]*(?:>\s*)?\Z")
_KEYS = ("name", "type", "parameters", "arguments")


class CallStream:
    """Deltas of one output.

    Args:
        names: the functions and built-in tools that the model was given; others, which may be no calls at all, are told
            when they have ended.
        tokenizer: whose ids `push` is given; built-in calls and code follow its python_tag.
    """

    def __init__(self, names: Collection[str], tokenizer: Tokenizer) -> None:
        self.calls = 0
        self._names, self._tokenizer = frozenset(names), tokenizer
        self._state: Callable[[], Iterator[Delta]] = self._begin
        self._held = ""  # text that no delta has told yet
        self._received = 0  # characters
        self._ids: list[int] = []  # until the tag
        self._tag_at: int | None = None  # in characters
        self._tagged = False

    def push(self, text: str, ids: Sequence[int]) -> list[Delta]:
        """Deltas after another piece; `text` may lag behind `ids`, as where a stop string may have begun."""
        self._look_for_tag(ids)
        deltas: list[Delta] = []
        if self._tag_at is not None and not self._tagged:
            before = self._tag_at - self._received
            deltas += self._take(text[:before])
            text = text[before:] if before >= 0 else text
            if self._received >= self._tag_at:
                deltas += self._turn_to_body()
        return deltas + self._take(text)

    def finish(self, cut: bool = False) -> Sequence[Delta]:
        """What is left at the end; `cut` leaves the arguments of an unfinished call as they are."""
        held, self._held = self._held, ""
        if self._state == self._begin:
            return list(self._rest(held))
        if self._state == self._value:
            whole = held.rstrip().endswith('")')
            value = held.rstrip()[:-2] if whole else held
            return [self._piece(_escaped(value))] + ([] if cut and not whole else [self._piece('"}')])
        if self._state == self._code:
            return [] if cut else [self._piece('"}')]
        return []

    # Where the tag is

    def _look_for_tag(self, ids: Sequence[int]) -> None:
        for index in ids if self._tag_at is None else ():
            if index == self._tokenizer.python_tag_id:
                self._tag_at = len(self._tokenizer.decode(self._ids, skip_special=True))
                return
            self._ids.append(index)

    def _turn_to_body(self) -> Iterator[Delta]:
        """What stood before the tag is content, even if it might have become a call."""
        self._tagged = True
        if self._state in (self._begin, self._text):
            held, self._held, self._state = self._held, "", self._begin
            if held:
                yield held

    # States: each tells what it can of the held text, and which state is next

    def _take(self, text: str) -> list[Delta]:
        self._held += text
        self._received += len(text)
        deltas: list[Delta] = []
        state = None
        while self._held and state != self._state:
            state = self._state
            deltas += state()
        return deltas

    def _begin(self) -> Iterator[Delta]:
        """At the start, or after a call: a call, something that may become one, or neither."""
        separator = _SEPARATOR.match(self._held) if self.calls else re.match(r"\s*", self._held)
        text = self._held[separator.end() if separator else 0 :]
        if not text:
            return
        json_head, tag_head, builtin = _JSON_HEAD.match(text), _TAG_HEAD.match(text), _BUILTIN_HEAD.match(text)
        if json_head and json_head[1] in self._names:
            yield from self._call(json_head[1], text[json_head.end() :], self._arguments)
            self._after = self._json_end
        elif tag_head:
            yield from self._call(tag_head[1], text[tag_head.end() :], self._arguments)
            self._after = self._tag_end
        elif builtin and builtin[1] in self._names:
            yield from self._call(builtin[1], text[builtin.end() :], self._value)
            yield self._piece(f'{{"{builtin[2]}": "')
        elif whole := _whole_call(text):
            call, end = whole
            yield from self._tell([call])
            self._held = text[end:]
            yield from self._begin()
        elif self._may_become_call(text):
            return
        elif self._tagged and not self.calls:
            yield from self._call("code_interpreter", self._held, self._code)
            yield self._piece('{"code": "')
        else:
            self._state = self._text

    def _text(self) -> Iterator[Delta]:
        held, self._held = self._held, ""
        yield held

    def _code(self) -> Iterator[Delta]:
        held, self._held = self._held, ""
        yield self._piece(_escaped(held))

    def _arguments(self) -> Iterator[Delta]:
        """A JSON object up to its closing bracket; control characters in its strings, which are not JSON but which
        models write, are escaped."""
        told = []
        for place, character in enumerate(self._held):
            if self._in_string:
                told.append(character if character >= " " else _escaped(character))
                self._in_string = self._escaping or character != '"'
                self._escaping = character == "\\" and not self._escaping
                continue
            told.append(character)
            self._in_string = character == '"'
            self._depth += (character in "{[") - (character in "}]")
            if not self._depth:
                self._held, self._state = self._held[place + 1 :], self._after
                break
        else:
            self._held = ""
        yield self._piece("".join(told))

    def _json_end(self) -> Iterator[Delta]:
        if end := _JSON_END.match(self._held):
            self._held, self._state = self._held[end.end() :], self._begin
        elif not _JSON_END_BEGUN.match(self._held):
            self._state = self._text
        yield from ()

    def _tag_end(self) -> Iterator[Delta]:
        if end := _TAG_END.match(self._held):
            self._held, self._state = self._held[end.end() :], self._begin
        elif not "</function>".startswith(self._held.strip()):
            self._state = self._begin
        yield from ()

    def _value(self) -> Iterator[Delta]:
        """The text of a built-in call, held back from the first quote that may end it."""
        end = _BUILTIN_END.search(self._held)
        held = self._held
        if end:
            self._held, self._state = held[end.end() :], self._begin
            yield self._piece(_escaped(held[: end.start()]) + '"}')
        else:
            begun = _BUILTIN_END_BEGUN.search(held)
            place = begun.start() if begun else len(held)
            self._held = held[place:]
            if place:
                yield self._piece(_escaped(held[:place]))

    # Parts of the states

    def _call(self, name: str, rest: str, state: Callable[[], Iterator[Delta]]) -> Iterator[Delta]:
        yield CallStart(self.calls, name)
        self.calls += 1
        self._held, self._state = rest, state
        self._depth, self._in_string, self._escaping = 0, False, False

    def _piece(self, text: str) -> CallArguments:
        return CallArguments(self.calls - 1, text)

    def _tell(self, calls: Sequence[ToolCall]) -> Iterator[Delta]:
        for call in calls:
            yield CallStart(self.calls, call.name)
            self.calls += 1
            yield self._piece(json.dumps(call.arguments, ensure_ascii=False))

    def _may_become_call(self, text: str) -> bool:
        """Whether more text can make a call of `text`, in a form that only its end decides or whose head is not
        there yet."""
        if _LIST_BEGUN.match(text):
            return True
        if text.startswith("{"):
            key = _FIRST_KEY.match(text)
            if key is None or key[1] is None:
                return text[1:].strip() == ""
            known = key[1] in _KEYS if key[2] else any(word.startswith(key[1]) for word in _KEYS)
            return known and not _is_json(text)
        if text.startswith("<"):
            return "<function=".startswith(text) or bool(_TAG_BEGUN.match(text))
        heads = [f'{name}.call({BUILTIN_ARGUMENT[name]}="' for name in BUILTIN_ARGUMENT]
        return any(head.startswith(text[: len(head)]) for head in heads)

    def _rest(self, held: str) -> Iterator[Delta]:
        """The end of an output whose last part was not yet known for a call."""
        separator = _SEPARATOR.match(held) if self.calls else None
        calls = calls_in(held[separator.end() if separator else 0 :])
        if calls:
            yield from self._tell(calls)
        elif self._tagged and held.strip() and not self.calls:
            yield from self._tell([ToolCall("code_interpreter", {"code": held})])
        elif held and not (self.calls and separator and separator.end() == len(held)):
            yield held


def _whole_call(text: str) -> tuple[ToolCall, int] | None:
    """A complete call in JSON, and where it ends."""
    if text[0] == "{":
        try:
            return call_at(text, 0)
        except (ValueError, RecursionError):
            pass
    return None


def _is_json(text: str) -> bool:
    try:
        json.JSONDecoder(strict=False).raw_decode(text)
    except RecursionError:
        return True  # nested too deep to be a call
    except ValueError:
        return False
    return True


def _escaped(text: str) -> str:
    """Text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
