"""Read ahead: the next step's rows are cut from the shards while this one trains."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def ahead(items: Iterable[T], count: int = 2) -> Generator[T]:
    """The same items in the same order, made by one thread at most `count` of them before they are asked for.

    An error in making one is raised where that one is asked for. When the taking ends early, so does the making.
    """
    ready: queue.Queue[Any] = queue.Queue(count)
    ended = threading.Event()

    def put(item: Any) -> None:
        while not ended.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if ended.is_set():
                    return
            put(END)
        except BaseException as error:  # whatever it is, it belongs to whoever asks
            put(_Failure(error))

    maker = threading.Thread(target=make, daemon=True, name="read ahead")
    maker.start()
    try:
        while (item := ready.get()) is not END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        ended.set()
        maker.join()
