"""Programs: a layer's tape as takings and givings of memory in their order, which every layer of its kind plays."""

import functools
from collections import defaultdict
from typing import NamedTuple

from helpers.memory.decoder_layer import decoder_layer
from helpers.memory.labels import ACTIVATIONS, CASTS, KEPT
from helpers.memory.runs import Kind
from helpers.memory.sizes import pages
from helpers.memory.tape import Tape

LEFT_OUT = 4096  # bytes: smaller tensors of a layer are not played


class Program:
    """Steps, each with a block's slot: (slot, pages, label, bytes asked for); a giving has its pages below zero.

    Who plays it keeps the blocks by slot, in a dictionary: what is there before, and what is left, passes through that.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, str, int]] = []

    def take(self, slot: int, size: int, label: str) -> None:
        self.steps.append((slot, pages(size), label, size))

    def give(self, slot: int, size: int) -> None:
        self.steps.append((slot, -pages(size), "", 0))

    @functools.cached_property
    def sums(self) -> tuple[int, int, dict[int, int]]:
        """In pages: how far it goes above where it began, where it ends, and what it leaves behind by slot."""
        now, top, left = 0, 0, {}
        for slot, change, *_ in self.steps:
            now += change
            top = max(top, now)
            left[slot] = change
        return top, now, {slot: change for slot, change in left.items() if change > 0}


class LayerPrograms(NamedTuple):
    """A layer's two programs, whose slots are the numbers of its tape's buffers."""

    tape: Tape
    forward: Program
    backward: Program
    casts: list[int]  # slots of autocast's copies, which live until the forward pass of all layers ends


tape_of = functools.lru_cache(maxsize=1024)(Tape)


@functools.lru_cache(maxsize=1024)
def layer_programs(kind: Kind, checkpoint: bool, first: bool, out_label: str) -> LayerPrograms:
    """A layer as programs. Its input and its output's gradient are given to it; its output gets a label of its own.

    What forward makes and backward still uses counts as kept.
    """
    tape = tape_of(kind, decoder_layer, checkpoint, first)
    found = LayerPrograms(tape, Program(), Program(), [])
    given = (tape.source, tape.gradient)
    played = [x for x in tape.buffers if x.size >= LEFT_OUT or x is tape.out or x in given]
    ending = defaultdict(list)
    for x in played:
        ending[x.last].append(x)
    for x in tape.buffers:
        in_forward = x.made < tape.forward
        program = found.forward if in_forward else found.backward
        if (x.size >= LEFT_OUT or x is tape.out) and x not in given:
            label = x.label
            if x is tape.out:
                label = out_label
            elif in_forward and label == ACTIVATIONS and x.last >= tape.forward:
                label = KEPT
            program.take(x.made, x.size, label)
        for gone in ending[x.made]:
            if in_forward and gone.label == CASTS:
                found.casts.append(gone.made)
            else:
                program.give(gone.made, gone.size)
    return found
