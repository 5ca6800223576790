"""Which language a text is in (section 3.1.1: fastText over 176 languages; here py3langid, which knows 140)."""

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from puna.errors import PunaError

SAMPLE = 1000  # characters from the beginning, and as many from the middle


def identify(text: str) -> tuple[str, float]:
    """ISO 639-1 code of the most probable language, and its probability among all that the model knows."""
    middle = len(text) // 2
    sample = text if len(text) <= 2 * SAMPLE else f"{text[:SAMPLE]}\n{text[middle : middle + SAMPLE]}"
    return _identifier().classify(sample)


def check_languages(codes: list[str]) -> None:
    """PunaError where a language to keep is none that can be recognised."""
    for code in codes:
        if code not in _identifier().labels:
            known = ", ".join(sorted(_identifier().labels))
            raise PunaError(f"corpus.languages: {code!r} cannot be recognised; use some of {known}")


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
