"""A heap that only adds up, for the planner: a run on it takes the least that any allocator could take."""

import contextlib

from helpers.memory.programs import Program
from helpers.memory.sizes import pages


class Tally:
    """A heap lends blocks. In this one a block is as large as what it holds, in pages, and lies nowhere.

    `allocated` and `peak` are in pages. `moment` says what the run is doing.
    """

    def __init__(self, allocated: int = 0):
        self.allocated = self.peak = allocated
        self.moment = ""

    def take(self, label: str, size: int):
        """A block of this size in bytes."""
        return self._take(pages(size), label, size)

    def give(self, *blocks) -> None:
        """Free blocks, one after the other."""
        for block in blocks:
            self._give(block)

    def borrow(self, label: str, *sizes: int) -> None:
        """Take blocks of these sizes in bytes, one after the other, and then give all of them."""
        self.give(*[self.take(label, size) for size in sizes])

    def replace(self, block, label: str, size: int):
        """A new block in place of another, which goes when the new one is there."""
        fresh = self.take(label, size)
        self._give(block)
        return fresh

    def elsewhere(self):
        """A context in which another stream's blocks are taken and given: here they are all one."""
        return contextlib.nullcontext()

    def play(self, program: Program, held: dict) -> None:
        """Play a program; `held` has the blocks by slot, before and after."""
        rise, net, left = program.sums
        self.peak = max(self.peak, self.allocated + rise)
        self.allocated += net
        held |= left

    def _take(self, need: int, label: str, asked: int):
        self.allocated += need
        self.peak = max(self.peak, self.allocated)
        return need

    def _give(self, block) -> None:
        self.allocated -= block
