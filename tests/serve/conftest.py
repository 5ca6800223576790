"""One live server over a small random Llama, for all tests that only ask."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.serve.kit import random_engine, serving


@pytest.fixture(scope="package")
def live() -> Iterator[SimpleNamespace]:
    with serving(random_engine()) as server:
        yield server
