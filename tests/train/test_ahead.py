"""Reading ahead changes no item, no order and no error, and stops with whoever reads."""

import threading
from collections.abc import Iterator

import pytest

from puna.train.ahead import ahead


def count_to(number: int, made: list[int]) -> Iterator[int]:
    for item in range(number):
        made.append(item)
        yield item


def test_the_items_come_in_order_from_another_thread():
    makers: set[int] = set()
    items = (makers.add(threading.get_ident()) or item for item in range(200))
    assert list(ahead(items)) == list(range(200))
    assert makers
    assert threading.get_ident() not in makers
    assert list(ahead(())) == []


def test_no_more_is_made_than_was_asked_for():
    made: list[int] = []
    reader = ahead(count_to(100, made), count=3)
    assert next(reader) == 0
    reader.close()  # waits for the thread
    assert len(made) <= 1 + 3 + 2
    assert not any(thread.name == "read ahead" for thread in threading.enumerate())


def test_an_error_is_raised_where_its_item_is_asked_for():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("a broken row")

    reader = ahead(items())
    assert next(reader) == 1
    with pytest.raises(ValueError, match="a broken row"):
        next(reader)
