"""Rules against tones that people's data have too much of: emoji, exclamation marks, apologies (section 4.2.3)."""

import re
from collections.abc import Sequence

from puna.posttrain.data.sample import Dropped, Sample, answers
from puna.recipe import Chats
from puna.text.message import Chat

_EMOJI = re.compile("[\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001faff\u2639\u263a\u2728\u2764]")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_EXCLAMATION = re.compile(r"(?<=[\w!?)])!(?![=\[(])")  # of prose: not ! -d, not !=, not ![image](), not println!()
_APOLOGY = re.compile(r"\b(?:i(?:'|\u2019)?m (?:so |very |really )?sorry|i (?:do )?apologi[sz]e|my apologies)\b", re.I)


def tone(chat: Chat, knobs: Chats) -> tuple[str, str] | None:
    """The reason and the detail for which a chat's tone drops it, or None."""
    text = _CODE.sub(" ", answers(chat))
    words = max(1, len(text.split()))
    rules = (("emoji", _EMOJI, knobs.max_emoji), ("exclamations", _EXCLAMATION, knobs.max_exclamations))
    for reason, pattern, limit in rules:
        count = len(pattern.findall(text))
        if count > 1 and 100 * count > limit * words:
            return reason, f"{count} in {words} words"
    return None


def apologises(chat: Chat) -> bool:
    return _APOLOGY.search(answers(chat)) is not None


def drop_apologies(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Dropped]]:
    """As many apologising chats as make up `share` of what stays; the best of them."""
    sorry = [sample for sample in samples if apologises(sample.chat)]
    others = len(samples) - len(sorry)
    room = len(sorry) if share == 1 else int(share * others / (1 - share))
    worst = sorted(sorry, key=lambda sample: -sample.rank)[room:]
    gone = {id(sample) for sample in worst}
    detail = f"{len(sorry)} of {len(samples)} chats apologise"
    dropped = [Dropped.of(sample, "apologies", detail) for sample in samples if id(sample) in gone]
    return [sample for sample in samples if id(sample) not in gone], dropped
