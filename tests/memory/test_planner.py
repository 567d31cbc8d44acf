"""Plans: the fastest setting that fits, found as trying everything would, and what "fits" means."""

import dataclasses
import itertools
import math

import pytest

from helpers.memory import GPUS, CannotPredict, RunSpec, fits, plan, predict, shape_of
from helpers.memory.planner import MARGIN, SPARE, cost_per_token
from helpers.memory.replay import least_peak
from helpers.models import PRESETS
from tests.memory.cases import LEAN, MISTRAL, STORED, forget
from tests.pace import paces

GIB = 2**30


def needs(prediction, gpu: str) -> int:
    """The smallest GPU that the run fits, in bytes: what it holds, and what is kept free."""
    return math.ceil(prediction.held_bytes(gpu) / (1 - SPARE))


def test_what_fits_is_what_torch_reserves_and_the_cuda_context_with_a_hundredth_of_the_gpu_free():
    predicted = predict(MISTRAL, LEAN, "t4")
    assert predicted.held_bytes("t4") == predicted.peak_reserved + GPUS["t4"].context_bytes
    assert SPARE == 1 / 100
    needed = needs(predicted, "t4")
    assert fits(predicted, "t4", needed)
    assert not fits(predicted, "t4", needed - 2)
    assert fits(predicted, "t4")
    assert not fits(dataclasses.replace(predicted, peak_reserved=GPUS["t4"].total_bytes), "t4"), (
        "the context has no room"
    )


def test_a_margin_is_asked_of_tensors_besides():
    predicted = predict(MISTRAL, LEAN, "t4")
    tight = dataclasses.replace(predicted, peak_allocated=96, peak_reserved=0)
    total = needs(tight, "t4")
    assert fits(tight, "t4", total, margin=0.05)
    assert not fits(dataclasses.replace(tight, peak_allocated=total - 1), "t4", total, margin=0.05)
    assert fits(dataclasses.replace(tight, peak_allocated=total - 1), "t4", total)


@pytest.mark.parametrize("gpu", GPUS)
def test_whatever_fits_leaves_its_hundredth_free_and_a_plan_is_held_to_it_too(gpu):
    total, predicted = GPUS[gpu].total_bytes, predict(MISTRAL, LEAN, gpu)
    most = int((1 - SPARE) * total) - GPUS[gpu].context_bytes
    for margin in (0.0, None):
        assert fits(dataclasses.replace(predicted, peak_reserved=most), gpu, margin=margin)
        assert not fits(dataclasses.replace(predicted, peak_reserved=most + 2), gpu, margin=margin)


def test_of_several_gpus_each_leaves_it_free():
    predicted = predict(MISTRAL, LEAN, "t4")
    full = dataclasses.replace(predicted, peak_reserved=GPUS["t4"].total_bytes - GPUS["t4"].context_bytes)
    assert fits(dataclasses.replace(predicted, each=(predicted, predicted)), "t4")
    assert not fits(dataclasses.replace(predicted, each=(predicted, full)), "t4")


def test_an_unknown_gpu_has_no_room():
    with pytest.raises(CannotPredict, match="gpu: 'k80' is not known"):
        fits(predict(MISTRAL, LEAN), "k80")


@pytest.mark.parametrize("stored", STORED["plans"], ids=lambda stored: "-".join(map(str, stored[:3])))
def test_plans_are_what_they_were(stored):
    model, gpu, length, *chosen = stored
    spec = {"rank": 16, "seq_len": length, "repeat_kv": GPUS[gpu].kernels == "t4"}
    found = plan(PRESETS[model].shape, GPUS[gpu].total_bytes, spec, gpu=gpu)
    names = ("batch_size", "checkpoint_every", "checkpoint_offload", "optimizer")
    assert [getattr(found.spec, name) for name in names] == chosen
    assert fits(found.prediction, gpu, margin=MARGIN)


@pytest.mark.parametrize("model", PRESETS)
def test_a_plan_over_the_default_choices_takes_at_most_two_seconds_with_nothing_remembered(model):
    def planned():
        forget()
        assert plan(PRESETS[model].shape, GPUS["t4"].total_bytes).considered == 156

    assert paces(planned, 2) < 200  # two seconds where a unit takes 10 ms


def test_plan_finds_what_trying_everything_finds():
    choices = {"batch_size": (1, 2, 4), "checkpoint_every": (0, 1, 3), "optimizer": ("paged_adamw_8bit", "adamw_torch")}
    budget = 11 * GIB
    found = plan(MISTRAL, budget, LEAN, choices)
    shape, fitting = shape_of(MISTRAL), []
    for values in itertools.product(*choices.values()):
        spec = dataclasses.replace(LEAN, **dict(zip(choices, values, strict=True)))
        predicted = predict(shape, spec, "t4")
        if predicted.peak_allocated <= 0.95 * budget and predicted.held_bytes("t4") <= 0.99 * budget:
            fitting.append((cost_per_token(shape, spec), predicted.peak_allocated))
    assert (found.cost, found.prediction.peak_allocated) == min(fitting)
    assert set(found.reasons) == {*choices, "room"}
    assert found.considered == 18
    assert len(fitting) <= found.fitting < 18


def test_plan_turns_down_what_fits_but_for_the_context():
    """On an H100 the context is three times a T4's: a budget between the two needs is enough for the one alone."""
    spec = dataclasses.replace(LEAN, attention_kernels="t4")
    only = {"batch_size": (4,)}
    budget = needs(predict(MISTRAL, spec, "t4"), "t4")
    assert plan(MISTRAL, budget, spec, only, gpu="t4", margin=0).spec.batch_size == 4
    with pytest.raises(CannotPredict, match="the smallest of 1 settings"):
        plan(MISTRAL, budget, spec, only, gpu="h100", margin=0)


def test_reasons_name_what_the_faster_alternatives_would_need():
    found = plan(MISTRAL, 14.56 * GIB)
    faster = dataclasses.replace(found.spec, batch_size=4)
    needs = least_peak(shape_of(MISTRAL), faster, "t4") / GIB
    assert f"less time but needs {needs:.2f} GiB" in found.reasons["batch_size"]


def test_plan_leaves_the_margin_it_was_told_to_leave():
    budget = 14.56 * GIB
    for margin in (0.0, 0.2, 0.4):
        found = plan(MISTRAL, budget, margin=margin)
        assert found.prediction.peak_allocated <= budget * (1 - margin)
        assert found.prediction.peak_reserved <= budget
        stated = f"takes {found.prediction.peak_allocated / GIB:.2f} of {(1 - margin) * 14.56:.2f} GiB: {margin:.0%} of"
        assert stated in found.reasons["room"]


def test_more_room_never_makes_a_slower_plan():
    costs = [plan(MISTRAL, gib * GIB).cost for gib in (6, 8, 12, 16, 24, 48)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (3e9, "the weights alone take"),
        (4.3e9, "the smallest of"),
        (0, "budget_bytes is 0"),
        ("8GB", "budget_bytes is '8GB'"),
        (float("nan"), "budget_bytes is nan"),
    ],
)
def test_a_budget_too_small_says_what_it_would_take(budget, message):
    with pytest.raises(CannotPredict, match=message):
        plan(MISTRAL, budget)


def test_choices_that_cannot_be_are_refused():
    with pytest.raises(CannotPredict, match="choices has no value for rank"):
        plan(MISTRAL, 14 * GIB, choices={"rank": ()})
    with pytest.raises(CannotPredict, match="choices has no value for rank"):
        plan(MISTRAL, 14 * GIB, choices={"rank": 8})
    with pytest.raises(CannotPredict, match="rank is 0"):
        plan(MISTRAL, 14 * GIB, RunSpec(), choices={"rank": (8, 0)})
