"""A limit on the memory of a process and its children: the kernel's own on what is private, a watchman's on what is resident.

A control group would be the one limit for both, but an ordinary user, and most CI machines, may not make one. So:
RLIMIT_DATA, which Linux enforces, bounds each process's private writable memory (setrlimit(2)); and a thread reads the
resident memory of the whole tree every 20 ms and kills it when the sum is over the limit. Pages that two processes
share count twice, so the sum is never too small.
"""

import contextlib
import os
import resource
import signal
import threading
import time
from pathlib import Path

HALF_OF_FREE_COLAB = 6 * 10**9  # bytes; free Colab has 12.7 GB
PAGE = os.sysconf("SC_PAGE_SIZE")


class MemoryLimit:
    """From `start` to `stop`: no more than `limit` bytes for process `pid` and its children. `peak`: what they took."""

    def __init__(self, pid: int, limit: int = HALF_OF_FREE_COLAB, interval: float = 0.02):
        self.pid, self.limit, self.interval = pid, limit, interval
        self.peak, self.samples, self.exceeded = 0, 0, False
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._watch, daemon=True)

    def start(self):
        resource.prlimit(self.pid, resource.RLIMIT_DATA, (self.limit, self.limit))  # children inherit it
        self._thread.start()
        return self

    def stop(self):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        family, looked = [self.pid], 0.0
        while not self._stop.wait(self.interval):
            if time.monotonic() - looked > 0.2:
                family, looked = [self.pid, *_descendants(self.pid)], time.monotonic()
            now = sum(map(_resident, family))
            self.peak, self.samples = max(self.peak, now), self.samples + 1
            if now > self.limit:
                self.exceeded = True
                for pid in reversed(family):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # it has ended
        return 0


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found
