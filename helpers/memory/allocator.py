"""torch's caching allocator in miniature: where blocks lie, which are free, and what torch reserves for them."""

import contextlib
from bisect import bisect_left, insort

from helpers.memory.labels import ROUNDING
from helpers.memory.programs import Program
from helpers.memory.sizes import PAGE
from helpers.memory.tally import Tally

SMALL = 2**20 // PAGE  # up to here blocks come from the small pool; in the large one, more than this is split off


class Allocator(Tally):
    """A heap with torch's rules: best fit, splitting, merging, segments that are never given back.

    Rules from torch 2.11 `c10/cuda/CUDACachingAllocator.cpp`: sizes are rounded to 512 bytes; up to 1 MiB come from
    2 MiB segments, up to 10 MiB from 20 MiB ones, larger ones from their own, rounded to 2 MiB; a block is split if
    more than 1 MiB is left (512 bytes in the small pool). What is not split off counts as allocated: so a block is at
    most 1 MiB and 511 bytes larger than what it holds, in the small pool 511 bytes. That is the label ROUNDING.

    A block is (address, pages, label, bytes asked for). `parts` counts bytes by label, `at_peak` is what they were at the
    peak, and `moment_of_peak` what `moment` was.
    """

    def __init__(self) -> None:
        super().__init__()
        # Free blocks as (pages, address), in order: the best fit is the first that fits.
        self.small: list[tuple[int, int]] = []
        self.large: list[tuple[int, int]] = []
        self.aside: tuple[list, list] = ([], [])  # the same of another stream
        self.ends: dict[int, int] = {}  # of each free block: address -> end
        self.starts: dict[int, int] = {}  # and end -> address
        self.segments: dict[int, int] = {}  # address -> pages
        self.end = self.reserved = self.peak_reserved = 0
        self.parts, self.at_peak = {ROUNDING: 0}, {ROUNDING: 0}
        self.moment_of_peak = ""

    def play(self, program: Program, held: dict) -> None:
        for slot, need, label, size in program.steps:
            if need > 0:
                held[slot] = self._take(need, label, size)
            else:
                self._give(held[slot])

    def _take(self, need: int, label: str, asked: int) -> tuple:
        pool = self.small if need <= SMALL else self.large
        place = bisect_left(pool, (need, 0))
        if place < len(pool):
            size, start = pool.pop(place)
            end = self.ends.pop(start)
            del self.starts[end]
        else:
            start, size = self._segment(need)
            end = start + size
        rest = size - need
        if rest > SMALL or (rest and need <= SMALL):
            size, after = need, start + need
            self.ends[after], self.starts[end] = end, after
            insort(pool, (rest, after))
        parts = self.parts
        parts[label] = parts.get(label, 0) + asked
        parts[ROUNDING] += size * PAGE - asked
        self.allocated += size
        if self.allocated > self.peak:
            self.peak, self.at_peak, self.moment_of_peak = self.allocated, parts.copy(), self.moment
        return start, size, label, asked

    def _segment(self, need: int) -> tuple[int, int]:
        """A new segment for a block: (address, pages)."""
        size = 2 * SMALL if need <= SMALL else 20 * SMALL if need < 10 * SMALL else -(-need // (2 * SMALL)) * 2 * SMALL
        start, self.end = self.end, self.end + size + 1  # the gap keeps segments from being merged
        self.segments[start] = size
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return start, size

    def _give(self, block: tuple) -> None:
        """Free a block, merged with free neighbours."""
        start, size, label, asked = block
        pool, end = self.small if size <= SMALL else self.large, start + size
        self.allocated -= size
        self.parts[label] -= asked
        self.parts[ROUNDING] -= size * PAGE - asked
        if end in self.ends:
            after = self.ends.pop(end)
            del self.starts[after], pool[bisect_left(pool, (after - end, end))]
            end = after
        if start in self.starts:
            before = self.starts.pop(start)
            del self.ends[before], pool[bisect_left(pool, (start - before, before))]
            start = before
        self.ends[start], self.starts[end] = end, start
        insort(pool, (end - start, start))

    def copy(self, kind: "type[Allocator] | None" = None):
        """An allocator, of another kind if one is given, in the same state; its peaks are counted from here."""
        other = (kind or Allocator)()  # not copy.copy(self): Python reads the attributes of that a quarter slower
        for name in ("small", "large", "ends", "starts", "segments", "parts"):
            setattr(other, name, getattr(self, name).copy())
        other.end, other.at_peak = self.end, self.parts.copy()
        other.allocated = other.peak = self.allocated
        other.reserved = other.peak_reserved = self.reserved
        return other

    @contextlib.contextmanager
    def elsewhere(self):
        """Within, blocks come from and go to another stream's free blocks: torch gives one stream nothing of another's."""
        own = self.small, self.large
        self.small, self.large = self.aside
        yield
        self.aside = self.small, self.large
        self.small, self.large = own

    def empty_cache(self) -> None:
        """Give back every segment that is wholly free (`torch.cuda.empty_cache`)."""
        for start, size in list(self.segments.items()):
            if self.ends.get(start) == start + size:
                (self.small if size == 2 * SMALL else self.large).remove((size, start))
                del self.ends[start], self.starts[start + size], self.segments[start]
                self.reserved -= size
