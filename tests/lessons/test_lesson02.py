"""Lesson 02: its calculator is quick and says what is so, and estimators.json is what was measured and predicted."""

import dataclasses
import json
import random
import statistics
import threading
import time

import pytest

from helpers import COURSE_ROOT
from helpers.machine import GIB
from helpers.memory import GPUS, fits, gpu_of, labels, predict
from helpers.memory.planner import MARGIN
from helpers.records import read_rows
from helpers.widgets import calculator
from tests.memory.cases import forget
from tests.pace import paces

COMPARED = json.loads((COURSE_ROOT / "measurements" / "estimators.json").read_text())
MEASURED = read_rows(COURSE_ROOT / "measurements" / COMPARED["measured"])
FITS = calculator.AT_START
TOO_LARGE = calculator.AT_START | {"batch_size": 32, "seq_len": 2048, "checkpointing": "off"}


def random_settings(number: int) -> list[dict]:
    chance = random.Random(0)
    values = {name: values for name, (_, values, _) in calculator.SETTINGS.items()}
    return [{name: chance.choice(options) for name, options in values.items()} for _ in range(number)]


# The calculator.


def with_nothing_remembered() -> None:
    forget()
    calculator.predicted.cache_clear()
    calculator._planned.cache_clear()


def test_calculator_redraws_while_a_hand_still_moves_with_nothing_remembered():
    def redraw(settings):
        with_nothing_remembered()
        prediction, _ = calculator.describe(**settings)
        calculator.bar_html(prediction, settings["gpu"])

    redraw(FITS)
    units = [paces(lambda s=settings: redraw(s), 3) for settings in random_settings(12)]
    assert statistics.median(units) < 12  # 0.12 s where a unit takes 10 ms
    assert max(units) < 15


def test_advice_takes_at_most_two_seconds_with_nothing_remembered():
    def advise(settings):
        with_nothing_remembered()
        calculator.advice(settings["model"], settings["gpu"], calculator.spec_in(settings))

    assert max(paces(lambda s=settings: advise(s), 1) for settings in random_settings(6)) < 200


class Controls:
    """The calculator's panel: its controls by name, and the HTML of its verdict, bar and advice."""

    def __init__(self, **settings):
        columns, self.line, self.bar, self.hints = calculator._panel(FITS | settings).children
        boxes = [box for column in columns.children for box in column.children]
        self.controls = dict(zip(calculator.SETTINGS, boxes, strict=True))

    def advice(self) -> str:
        """What the advice is once it is there."""
        end = time.monotonic() + 60
        while "opacity" in self.hints.value and time.monotonic() < end:
            time.sleep(0.01)
        return self.hints.value


def test_the_bar_is_redrawn_before_the_advice_is_thought_out(monkeypatch):
    thought, begun, asked = threading.Event(), threading.Event(), []

    def slow(model, gpu, spec):
        asked.append(spec.batch_size)
        begun.set()
        assert thought.wait(60)
        return [f"advice for {spec.batch_size} rows"]

    monkeypatch.setattr(calculator, "advice", slow)
    panel = Controls()
    assert begun.wait(60)
    for rows in (8, 16, 2):  # a hand that moves a slider, while the first advice is still awaited
        before = panel.bar.value
        panel.controls["batch_size"].value = rows
        prediction, words = calculator.describe(**FITS | {"batch_size": rows})
        assert panel.line.value == f"<b>{words}</b>"
        assert panel.bar.value == calculator.bar_html(prediction, "t4") != before
        assert "opacity" in panel.hints.value, "what is not yet thought out is grey"
    thought.set()
    assert "advice for 2 rows" in panel.advice()
    assert asked == [FITS["batch_size"], 2], "what was overtaken is not thought about"


def test_the_advice_of_the_panel_is_that_of_its_setting():
    panel = Controls(**TOO_LARGE)
    first, *reasons = calculator.advice(TOO_LARGE["model"], "t4", calculator.spec_in(TOO_LARGE))
    shown = panel.advice()
    assert first in shown
    assert all(f"<li>{reason}</li>" in shown for reason in reasons)


def test_calculator_finds_a_plan_again_when_only_what_plan_chooses_moves():
    calculator.advice(FITS["model"], FITS["gpu"], calculator.spec_in(FITS))
    before = calculator._planned.cache_info().misses
    moved = FITS | {"batch_size": 1, "optimizer": "adamw_8bit", "checkpointing": "off"}
    calculator.advice(moved["model"], moved["gpu"], calculator.spec_in(moved))
    assert calculator._planned.cache_info().misses == before


def test_verdict_of_a_setting_that_fits_names_what_is_left():
    prediction, words = calculator.describe(**FITS)
    left = (GPUS["t4"].total_bytes - prediction.peak_allocated) / GIB
    assert words.startswith("Fits: ")
    assert f"{left:.2f} GiB are left" in words
    assert prediction == predict(calculator.PRESETS[FITS["model"]].shape, calculator.spec_in(FITS), "t4")


def test_verdict_of_a_setting_that_does_not_fit_names_what_is_missing():
    prediction, words = calculator.describe(**TOO_LARGE)
    missing = (prediction.peak_allocated - GPUS["t4"].total_bytes) / GIB
    assert missing > 0
    assert words.startswith("Does not fit: ")
    assert f"{missing:.2f} GiB more" in words


def test_verdict_follows_the_gpu():
    assert calculator.describe(**TOO_LARGE | {"batch_size": 2, "gpu": "h200"})[1].startswith("Fits: ")
    assert calculator.describe(**TOO_LARGE | {"batch_size": 2, "gpu": "t4"})[1].startswith("Does not fit: ")


def test_the_verdict_is_that_of_fits_with_the_margin_and_without():
    words = set()
    for settings in random_settings(40):
        prediction, said = calculator.describe(**settings)
        kind = said.split(":")[0]
        words.add(kind)
        assert (kind == "Fits") == fits(prediction, settings["gpu"], margin=MARGIN)
        assert (kind == "Does not fit") == (not fits(prediction, settings["gpu"]))
    assert {"Fits", "Does not fit"} <= words


def changed(**figures):
    return dataclasses.replace(calculator.describe(**FITS)[0], **figures)


def test_settings_within_a_twentieth_of_the_gpu_are_too_tight():
    assert calculator.verdict_on(changed(peak_allocated=int(0.97 * GPUS["t4"].total_bytes)), "t4").startswith(
        "Too tight: "
    )


def test_what_leaves_no_room_for_the_cuda_context_does_not_fit_and_is_told_why():
    said = calculator.verdict_on(changed(peak_reserved=GPUS["t4"].total_bytes - 1), "t4")
    assert said.startswith("Does not fit: the peak is ")
    assert "torch reserves 14.56 GiB and CUDA holds 0.25 GiB besides" in said


@pytest.mark.parametrize("settings", [FITS, TOO_LARGE, *random_settings(8)], ids=str)
def test_groups_of_the_bar_add_up_to_the_peak(settings):
    prediction, _ = calculator.describe(**settings)
    groups = calculator.grouped(prediction)
    assert sum(groups.values()) == prediction.peak_allocated
    named = {part for parts in calculator.GROUPS.values() for part in parts}
    assert named <= set(labels.LABELS)
    nameless = {labels.WORKSPACES, labels.INPUT_IDS, labels.ROUNDING}
    assert set(prediction.parts) - named <= nameless, "a part belongs to no group"


def test_advice_for_a_setting_that_does_not_fit_is_one_that_does():
    advice = calculator.advice(TOO_LARGE["model"], "t4", calculator.spec_in(TOO_LARGE))
    assert float(advice[0].split("take ")[1].split(" GiB")[0]) <= 0.95 * GPUS["t4"].total_bytes / GIB
    assert any(line.startswith("batch_size 32 → ") for line in advice)


def test_advice_says_so_where_nothing_fits():
    settings = FITS | {"model": "llama-3.1-8b", "seq_len": 8192, "rank": 128}
    spec = calculator.spec_in(settings)
    tiny = {**GPUS, "t4": dataclasses.replace(GPUS["t4"], total_bytes=6 * GIB)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.widgets.calculator.GPUS", tiny)
        calculator._planned.cache_clear()
        advice = calculator.advice(settings["model"], "t4", spec)
    calculator._planned.cache_clear()
    assert advice == ["plan finds no setting of this model, rank and length that fits a GPU of type t4."]


def test_advice_follows_itself():
    """Whoever takes the advice is told to change nothing more."""
    spec = calculator.spec_in(FITS)
    found = calculator._planned(
        FITS["model"], "t4", type(spec)(**vars(spec) | {"batch_size": 1, "optimizer": "paged_adamw_8bit"})
    ).spec
    assert calculator.advice(FITS["model"], "t4", found) == [
        "plan would change nothing: this is the fastest setting that fits."
    ]


def shown(monkeypatch) -> dict:
    outputs = []
    monkeypatch.setattr("IPython.core.display_functions.display", lambda data, **_: outputs.append(data))
    calculator.calculate()
    return outputs[0]


def test_calculator_shows_a_still_figure_beside_the_controls(monkeypatch):
    output = shown(monkeypatch)
    assert output["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in output
    assert "model_id" not in output["text/plain"], "nbval compares this text, so it must not vary"
    assert "Fits: the peak is" in output["text/plain"]
    assert output["text/plain"] == shown(monkeypatch)["text/plain"]


def test_calculator_without_ipywidgets_shows_the_still_figure_alone(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    assert set(shown(monkeypatch)) == {"text/plain", "image/png"}


# The other estimators.


def test_estimators_json_holds_every_measured_row():
    hint = "run python measurements/compare_estimators.py"
    assert [entry["row"] for entry in COMPARED["rows"]] == [i for i, row in enumerate(MEASURED) if not row["error"]], (
        hint
    )
    assert COMPARED["number"] == len(COMPARED["rows"])
    assert COMPARED["versions"] == {"fitcheck-llm": "0.3.1", "canifinetune": "0.4.1"}


def test_estimators_json_agrees_with_the_measured_rows():
    for entry in COMPARED["rows"]:
        row = MEASURED[entry["row"]]
        assert (entry["model"], entry["role"]) == (row["model"], row["role"])
        for key, size in entry["measured"].items():
            assert size == row["measured"][key], (entry["row"], key)


def test_our_numbers_in_estimators_json_are_todays():
    for entry in COMPARED["rows"]:
        row = MEASURED[entry["row"]]
        today = predict(row["config"], row["spec"], gpu_of(row["device"]))
        ours = {"tensors": today.peak_allocated, "total": today.peak_reserved, "notes": list(today.notes)}
        assert entry["ours"] == ours, f"row {entry['row']}: run python measurements/compare_estimators.py"


@pytest.mark.parametrize("name", COMPARED["versions"])
def test_each_estimator_answers_or_says_what_it_has_no_word_for(name):
    answered = [entry for entry in COMPARED["rows"] if "cannot" not in entry[name]]
    assert COMPARED["answered"][name] == len(answered) > len(COMPARED["rows"]) / 2
    for entry in COMPARED["rows"]:
        answer = entry[name]
        assert answer.get("cannot") or answer["total"] >= answer["tensors"] > 0


def test_runs_that_no_estimator_can_be_told_have_no_answer():
    for entry in COMPARED["rows"]:
        spec = MEASURED[entry["row"]]["spec"]
        if spec["checkpoint_every"] > 1 or spec["checkpoint_offload"]:
            assert all("cannot" in entry[name] for name in COMPARED["versions"])
