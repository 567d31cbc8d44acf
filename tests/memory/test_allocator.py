"""The allocator's rules, one by one."""

from helpers.memory.allocator import Allocator
from helpers.memory.labels import ROUNDING
from helpers.memory.programs import Program
from helpers.memory.sizes import PAGE
from helpers.memory.tally import Tally

MIB = 2**20


def test_allocator_reuses_splits_and_merges_blocks():
    heap, units = Allocator(), MIB // PAGE
    first, second = heap.take("x", 3 * MIB), heap.take("x", 3 * MIB)
    assert heap.reserved == 20 * units
    assert heap.allocated == 6 * units
    heap.give(first)
    third = heap.take("x", 5 * MIB // 2)
    assert third[0] == first[0], "best fit"
    assert heap.allocated == 6 * units, "half a MiB is not split off"
    before = heap.copy()
    heap.give(third, second)
    assert heap.allocated == 0
    assert len(heap.large) == 1, "neighbours are merged"
    heap.take("x", 100)
    assert heap.allocated == 1
    assert heap.reserved == 22 * units
    heap.empty_cache()
    assert heap.reserved == 2 * units
    assert (before.allocated, before.reserved) == (6 * units, 20 * units), "a copy goes its own way"
    before.give(third, second)
    assert before.large == [(20 * units, 0)]


def test_a_block_counts_what_was_asked_for_and_what_it_has_beyond_under_two_labels():
    heap = Allocator()
    block = heap.take("x", 3 * MIB)
    heap.give(block)
    heap.take("y", 100)
    block = heap.take("x", 5 * MIB // 2 - 100)
    assert heap.parts == {"x": 2.5 * MIB - 100, "y": 100, ROUNDING: 412 + 100}
    other = heap.take("x", 17 * MIB - 1)  # of the 17.5 MiB that are left
    assert heap.parts[ROUNDING] == 412 + 100 + MIB / 2 + 1, "what is not split off"
    heap.give(block, other)
    assert heap.parts == {"x": 0, "y": 100, ROUNDING: 412}


def test_at_the_peak_the_parts_and_the_moment_are_remembered():
    heap = Allocator()
    heap.moment = "rising"
    taken = heap.take("x", 1024), heap.take("x", 2048)
    heap.moment = "falling"
    heap.give(*taken)
    heap.take("y", 2048)
    assert (heap.at_peak, heap.moment_of_peak, PAGE * heap.peak) == ({"x": 3072, ROUNDING: 0}, "rising", 3072)


def test_a_tally_plays_a_program_as_the_allocator_does_where_nothing_is_rounded():
    program = Program()
    for slot, size in ((0, 2 * MIB), (1, 4 * MIB)):
        program.take(slot, size, "x")
    program.give(0, 2 * MIB)
    program.take(2, MIB, "x")
    tally, heap = Tally(7), Allocator()
    left: dict = {}
    tally.play(program, left)
    heap.play(program, {})
    assert left == {1: 4 * MIB // PAGE, 2: MIB // PAGE}
    assert (tally.allocated - 7, tally.peak - 7) == (heap.allocated, heap.peak) == (5 * MIB // PAGE, 6 * MIB // PAGE)
