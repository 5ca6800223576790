"""Shared fixtures. References and real data are optional: a test that lacks them skips and says why."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Locate one file or folder of the development data, or skip the test."""

    def locate(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs the development data {name}, which is not part of the repository")
        return path

    return locate


@pytest.fixture(autouse=True)
def single_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    """Single bytes and 140 words of three letters."""
    words = (f" {''.join(letters)}".encode() for letters in product("aeiou", "lmnpqrt", "aeio"))
    entries = [*(bytes([i]) for i in range(256)), *words]
    return Tokenizer({entry: number for number, entry in enumerate(entries)}, special_names(16))
