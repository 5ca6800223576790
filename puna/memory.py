"""How much memory a stage takes at most."""

import threading

import psutil


class PeakMemory:
    """Samples the resident memory of this process and its children, shared pages counted once for each."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # it ended between the listing and the reading
            self.peak = max(self.peak, total)
            if self._ended.wait(0.5):
                return

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.peak
