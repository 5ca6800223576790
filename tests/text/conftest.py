"""A small trained tokenizer, and its saved directory, for every test of the text half."""

import argparse
import tarfile
import typing
from pathlib import Path

import pytest

from puna.text.tokenizer import Tokenizer

PHRASES = [
    "The llama's wool isn't warm: it's 12,345.67 grams; WE'LL see.\n\n\tDon't\r\n  hurry  ",
    "Größe, naïveté, año, œuvre — «оно» 日本語の文章です。 ภาษาไทย हिन्दी 🦙🦙 ١٢٣٤",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|eot_id|><|reserved_special_token_3|>",
    "x" * 70 + " " * 70 + "\n" * 9 + "=" * 30 + "0123456789" * 3,
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real text that is always there: the standard library's own, and a few phrases."""
    modules = (argparse, tarfile, typing)
    return [Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules] + PHRASES


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts, vocab_size=1500, specials=256)


@pytest.fixture(scope="session")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory)
    return directory
