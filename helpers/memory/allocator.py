"""torch's caching allocator in miniature, and a tally without one: two heaps on which the same run can be played.

A heap takes and gives blocks, each with a label (helpers/memory/terms.py) and the bytes that were asked for. What is
played often is a Program: takings and givings in a fixed order, each block in a slot.
"""

import functools
from bisect import bisect_left, insort

from helpers.memory.terms import ROUNDING

PAGE = 512  # bytes: what sizes are rounded up to, and the unit of sizes and addresses here
SMALL = 2**20 // PAGE  # up to here blocks come from the small pool; in the large one, more than this is split off


def pages(size) -> int:
    """Bytes in units of 512, rounded up, at least one."""
    return -(-int(size) // PAGE) or 1


class Program:
    """Takings and givings in order, each of a slot: (slot, pages, label, bytes asked for), with 0 pages for a giving.

    `pages` has the size of each slot's block. Programs that share slots share this list.
    """

    def __init__(self, slots: int, sharing: "Program | None" = None):
        self.steps: list[tuple[int, int, str, int]] = []
        self.pages: list[int] = sharing.pages if sharing else [0] * slots

    def expect(self, slot: int, size: int) -> None:
        """A block that somebody else puts into its slot."""
        self.pages[slot] = pages(size)

    def take(self, slot: int, size: int, label: str) -> None:
        self.pages[slot] = pages(size)
        self.steps.append((slot, self.pages[slot], label, int(size)))

    def give(self, slot: int) -> None:
        self.steps.append((slot, 0, "", 0))

    @functools.cached_property
    def rise(self) -> tuple[int, int]:
        """How far it goes above where it began, and where it ends, in pages."""
        now = top = 0
        for slot, taken, *_ in self.steps:
            now += taken or -self.pages[slot]
            top = max(top, now)
        return top, now


class Tally:
    """A heap in which every block is as large as what it holds in whole pages: what a run takes at the very least."""

    def __init__(self, allocated: int):
        self.allocated = self.peak = allocated
        self.moment = ""

    def take(self, label: str, *sizes) -> list[int]:
        """Blocks of these sizes in bytes, one after the other; here a block is its number of pages."""
        blocks = [pages(size) for size in sizes]
        self.allocated += sum(blocks)
        self.peak = max(self.peak, self.allocated)
        return blocks

    def give(self, *blocks) -> None:
        self.allocated -= sum(blocks)

    def play(self, program: Program, held: list) -> None:
        """Play a program; `held` has a place for each slot."""
        rise, net = program.rise
        self.peak = max(self.peak, self.allocated + rise)
        self.allocated += net
        held[:] = program.pages


class Allocator:
    """Best fit, splitting, merging, segments that are never given back.

    Rules from torch 2.11 `c10/cuda/CUDACachingAllocator.cpp`: sizes are rounded to 512 bytes; up to 1 MiB come from
    2 MiB segments, up to 10 MiB from 20 MiB ones, larger ones from their own, rounded to 2 MiB; a block is split if
    more than 1 MiB is left (512 bytes in the small pool). What is not split off counts as allocated: so a block is at
    most 1 MiB and 511 bytes larger than what it holds, in the small pool 511 bytes. That is the label ROUNDING.

    A block is (address, pages, label, bytes asked for). `parts` counts bytes by label, `at_peak` is what they were at the
    peak, and `moment_of_peak` what `moment` was.
    """

    def __init__(self):
        self.small, self.large = (
            [],
            [],
        )  # free blocks as (pages, address), in order: the best fit is the first that fits
        self.ends, self.starts = {}, {}  # of each free block: address -> end, and end -> address
        self.segments = {}  # address -> pages
        self.end = self.allocated = self.reserved = self.peak = self.peak_reserved = 0
        self.parts, self.at_peak = {ROUNDING: 0}, {}
        self.moment = self.moment_of_peak = ""

    def take(self, label: str, *sizes) -> list[tuple]:
        """Blocks of these sizes in bytes, one after the other."""
        return [self._take(pages(size), label, int(size)) for size in sizes]

    def give(self, *blocks) -> None:
        """Free blocks, each merged with free neighbours."""
        for block in blocks:
            self._give(block)

    def play(self, program: Program, held: list) -> None:
        """Play a program; `held` has a place for each slot."""
        for slot, need, label, size in program.steps:
            if need:
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

    def copy(self) -> "Allocator":
        """Another allocator in the same state, whose peaks are counted from here."""
        other = Allocator()
        other.small, other.large = self.small[:], self.large[:]
        other.ends, other.starts, other.segments = self.ends.copy(), self.starts.copy(), self.segments.copy()
        other.end, other.parts, other.at_peak = self.end, self.parts.copy(), self.parts.copy()
        other.allocated = other.peak = self.allocated
        other.reserved = other.peak_reserved = self.reserved
        return other

    def empty_cache(self) -> None:
        """Give back every segment that is wholly free (`torch.cuda.empty_cache`)."""
        for start, size in list(self.segments.items()):
            if self.ends.get(start) == start + size:
                (self.small if size == 2 * SMALL else self.large).remove((size, start))
                del self.ends[start], self.starts[start + size], self.segments[start]
                self.reserved -= size
