"""The parts of a peak are what is alive then; a fault in any of them is noticed."""

import dataclasses
import weakref

import pytest

from helpers.memory import RunSpec, adapter_bytes, labels, predict, shape_of, weight_bytes
from helpers.memory.allocator import Allocator
from helpers.memory.programs import Program
from helpers.memory.replay import least_peak
from helpers.memory.runs import targets_of
from helpers.memory.sizes import PAGE
from tests.memory.cases import EARLIER, FIGURES, LEAN, MISTRAL, ROWS, STORED, forget, settings_nobody_measured, spec_in

SMALL_MODEL = {**MISTRAL, "num_hidden_layers": 5}


@pytest.mark.parametrize(
    "row", ROWS + EARLIER[:1], ids=lambda row: f"{row['model']}-{row['spec']['batch_size']}x{row['spec']['seq_len']}"
)
def test_parts_add_up_to_the_peak_and_rounding_is_a_small_part(row):
    predicted = predict(row["config"], row["spec"])
    assert sum(predicted.parts.values()) == predicted.peak_allocated
    assert set(predicted.parts) <= set(labels.LABELS)
    # 2.2% at most: the peaks of a row without checkpointing, where many tensors of odd sizes are alive at once
    assert predicted.parts[labels.ROUNDING] < 0.025 * predicted.peak_allocated
    assert all(size > 0 for size in predicted.parts.values())
    assert predicted.after_load <= predicted.before_training <= predicted.peak_allocated <= predicted.peak_reserved


def test_a_run_takes_at_least_its_tensors_and_little_more():
    """What `plan` ranks settings by is at most the peak, and at most 3% below it."""
    for shape, spec in settings_nobody_measured(60):
        peak = predict(shape, spec).peak_allocated
        assert 0 <= peak - least_peak(shape, spec, "h200") < 0.03 * peak, (shape.model_type, spec)


@pytest.mark.parametrize("spec", [LEAN, dataclasses.replace(LEAN, checkpoint_every=0, upcast_non_quantized=True)])
def test_parts_are_the_blocks_alive_at_the_peak_and_their_rounding_is_the_allocators_rule(spec, monkeypatch):
    """Told from outside: whoever watches every block taken and given finds the same parts."""
    alive, peak, take, give = {}, {"pages": 0}, Allocator._take, Allocator._give

    def watched_take(self, need, label, asked):
        block = take(self, need, label, asked)
        assert block[0] not in alive, "two blocks in one place"
        alive[block[0]] = block
        pages = sum(size for _, size, *_ in alive.values())
        if pages > peak["pages"]:
            peak.update(pages=pages, blocks=list(alive.values()))
        return block

    def watched_give(self, block):
        assert alive.pop(block[0]) == block
        give(self, block)

    forget()
    monkeypatch.setattr(Allocator, "_take", watched_take)
    monkeypatch.setattr(Allocator, "_give", watched_give)
    predicted = predict(SMALL_MODEL, spec)
    assert PAGE * peak["pages"] == predicted.peak_allocated
    found = dict.fromkeys(predicted.parts, 0)
    for _, size, label, asked in peak["blocks"]:
        beyond = size * PAGE - asked
        assert 0 <= beyond < PAGE or (asked > 2**20 and beyond < 2**20 + PAGE), "see Allocator"
        found[label] += asked
        found[labels.ROUNDING] += beyond
    assert found == predicted.parts
    forget()


def test_what_stays_is_counted_as_its_closed_form_says():
    """The terms that lessons reckon by themselves, up to the rounding of their tensors."""
    shape, spec = shape_of(MISTRAL), LEAN
    parts, weights = predict(shape, spec, "t4").parts, weight_bytes(shape, "nf4", True)
    adapters = adapter_bytes(targets_of(shape, spec), shape.layers, spec.rank, 4)
    for label, size in {**weights, labels.ADAPTERS: adapters}.items():
        assert abs(parts[label] - size) <= PAGE * 6 * 7 * shape.layers, label
    assert parts[labels.CODES] == weights[labels.CODES], "whole blocks, all of them"
    assert parts[labels.WORKSPACES] == 2 * 8320 * 1024
    stream = spec.batch_size * spec.seq_len * shape.hidden * 2
    last = int(predict(shape, spec, "t4").moment.removeprefix("backward pass of layer ").split()[0])
    assert parts[labels.INPUTS] == (last + 1) * stream, "of the layers that backward has yet to pass"


@pytest.mark.parametrize("quant_type", ["nf4", None])
def test_gradients_of_weights_are_as_large_as_what_is_trained(quant_type):
    """All are there when the optimizer steps, and there this run peaks: its states and scratch are large."""
    spec = RunSpec(quant_type=quant_type, rank=256, batch_size=1, seq_len=8, optimizer="adamw_torch")
    parts = (predicted := predict(SMALL_MODEL, spec)).parts
    assert predicted.moment == "optimizer step"
    assert (
        parts[labels.WEIGHT_GRADIENTS] == parts[labels.STEPPING] == parts[labels.ADAPTERS] == parts[labels.STATES] / 2
    )


@pytest.mark.parametrize("index", STORED["parts"])
def test_parts_of_some_rows_are_what_they_were(index):
    row = ROWS[int(index)]
    assert predict(row["config"], spec_in(row)).parts == STORED["parts"][index]


def halved(size, first):
    return size // 2


def doubled(size, first):
    return 2 * size


def one_missing(size, first):
    return 0 if first else size


def plant(fault, label, monkeypatch) -> None:
    """Program.take and Allocator.take with a fault: `fault(size, first)` is the size of what has this label.

    `first`: it is the first in its program, or as large as the first outside of programs, where each step takes it anew.
    """
    of_program, of_heap, sizes = Program.take, Allocator.take, weakref.WeakKeyDictionary()

    def program_take(self, slot, size, name):
        first = name == label and self not in sizes
        if first:
            sizes[self] = size
        of_program(self, slot, fault(size, first) if name == label else size, name)

    def heap_take(self, name, size):
        first = name == label and sizes.setdefault(self, size) == size
        return of_heap(self, name, fault(size, first) if name == label else size)

    monkeypatch.setattr(Program, "take", program_take)
    monkeypatch.setattr(Allocator, "take", heap_take)


@pytest.mark.parametrize("fault", [halved, doubled, one_missing])
@pytest.mark.parametrize("label", [label for label in labels.LABELS if label not in (labels.ROUNDING, labels.GATHERED)])
def test_a_fault_in_any_part_changes_what_is_stored(label, fault, monkeypatch):
    """The rows whose figures are stored are enough to notice it: those that have their parts stored."""
    plant(fault, label, monkeypatch)
    forget()
    noticed = 0
    for index in STORED["parts"]:
        row, stored = ROWS[int(index)], STORED["rows"]["h200_memory_rows.jsonl"][int(index)]
        predicted = predict(row["config"], spec_in(row))
        noticed += [getattr(predicted, name) for name in FIGURES] != stored
    forget()
    assert noticed
