"""Lesson 09: its verdicts notice their faults, its words are what was measured, its script runs without the course."""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import numpy
import psutil
import pytest
import torch
from safetensors.torch import save_file

from helpers import COURSE_ROOT, CourseError
from helpers.commands._job import Job
from helpers.commands._training import Training
from helpers.course import disk as course
from helpers.files import safetensors_shapes
from helpers.lesson.exercises import l09
from helpers.machine import ALL_GPUS, hardware
from helpers.memory import GPUS, RunSpec, fits, labels, predict, shape_of
from helpers.models import BUNDLED_MODEL, PRESETS, recipe_for
from helpers.plots import diagrams
from helpers.plots.several_gpus import HELD, HOST
from helpers.quick import by_file, killed_by_file, train_by_file
from helpers.records import measured_runs, measured_two_gpus, read_rows
from helpers.training import Way, planning
from tests.cells import Finished, stored, tagged
from tests.scripts import measuring_script

LESSON = course.find_lesson("09")
SOURCE = LESSON.read_text(encoding="utf-8")
NOTEBOOK = course.to_notebook(LESSON)
PROSE = re.sub(r"\s+", " ", " ".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"))
CODE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code")
PAIR = measured_two_gpus()
measure_lengths = measuring_script("measure_lengths")


# --- each verdict, and the fault that it notices -------------------------------------------------------------------


def made_up(config, dry_run=False):
    """What `train_by_file` gives, without a training: stored notebooks hold the real ones."""
    job = Job.read(config)
    if dry_run:
        return {"words": job.outlook()}
    (job.folder / "adapter").mkdir(exist_ok=True)
    tensors = {f"layers.{n}.lora_A.weight": torch.full((2, 3), float(n + 1)) for n in range(4)}
    save_file(tensors, job.folder / "adapter" / "adapter_model.safetensors")
    return {
        "machine": "CPU, no GPU: computes in float32", "losses": [2.0, 1.0], "heldout_loss_after": 1.0, "peak_bytes": [],
        "rows_per_step": job.parameters["batch_size"] * job.way.processes, "resumed_from": "checkpoint-4" if dies(job) else None,
    }  # fmt: skip


def dies(job) -> bool:
    return job.folder.name == "broken"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.quick.train_by_file", made_up)
        patch.setattr("helpers.quick.killed_by_file", lambda config, kill_at, processes: f"checkpoint-{kill_at}")
        return Finished(NOTEBOOK, tmp_path_factory.mktemp("run"))


def too_far(names):
    return {"apart": lambda name, other: 0.02}


def always_the_middle(names):
    real = names["predict"]
    return {"predict": lambda config, spec, gpu, gpus, way, layers=None: real(config, spec, gpu, gpus, way, [14, 14])}


def other_peaks(names):
    pair = names["pair"].copy()
    pair["peak_bytes"] = [[1.002 * peak for peak in peaks] for peaks in pair.peak_bytes]
    return {"pair": pair}


def without_tensors(*empty):
    return lambda names: {"adapter": lambda name: {} if name in empty else names["adapter"](name)}


def says_as_before(names):
    return {"train_by_file": lambda config, dry_run: {"words": "8 steps of 16 rows, 16 at once"}}


def held_like(way, other):
    return lambda names: {"at_peak": names["at_peak"] | {way: names["at_peak"][other]}}


def padding_costs_little(names):
    slower = names["measured_runs"]("lengths_rows")
    slower.loc[slower.recipe == "padding-free", "tokens_per_busy_second"] /= 2
    return {"measured_runs": lambda name: slower}


FAULTS = [  # the cell's tag, words of the claim, what is changed
    ("even", "equally many", lambda names: {"second": [names["even"][3][:2]]}),
    ("uneven", "an equal share", lambda names: {"gradient": lambda rows, tokens=None: names["gradient"](rows)}),
    ("uneven", "an equal share", lambda names: {"gradient": lambda rows, tokens=None: 1.0}),
    ("same-adapters", "one process that had the same rows", too_far),
    ("per-process", "twice as many rows", says_as_before),
    ("even-peaks", "within 2%", always_the_middle),
    ("held-out", "within a thousandth", other_peaks),
    ("fsdp2", "the adapter of copies", too_far),
    ("damaged", "one number in fifty", lambda names: {"shares": {"float16": 0.001, "bfloat16": 0.001}}),
    ("damaged", "one number in fifty", lambda names: {"codes": torch.full_like(names["codes"], 0x11)}),
    ("whole-adapters", "all of them", without_tensors("divided")),
    ("whole-adapters", "all of them", without_tensors("one", "copies", "divided")),
    ("resumed", "the unbroken run", too_far),
    ("resumed", "the unbroken run", lambda names: {"last": "checkpoint-2"}),
    ("real-lengths", "at least 1.4 times", padding_costs_little),
    ("left-free", "with divided layers", held_like("split", "ddp")),
    ("left-free", "with divided layers", held_like("fsdp2", "split")),
    ("left-free", "with divided layers", held_like("ddp", "split")),
]  # fmt: skip


def test_all_verdicts_of_the_lesson_are_tried_below():
    said = re.findall(r'verdict\(\s*"([^"]+)"', CODE)
    assert len(said) == len(set(said)) == len(re.findall(r"^ *verdict\(", CODE, re.MULTILINE)) <= 20
    assert [claim for claim in said if not any(words in claim for _, words, _ in FAULTS)] == []


@pytest.mark.parametrize(("tag", "words", "fault"), FAULTS, ids=[f"{tag} {i}" for i, (tag, *_) in enumerate(FAULTS)])
def test_each_verdict_notices_its_fault(tag, words, fault, finished):
    finished.again(tag)
    with pytest.raises(AssertionError, match=words):
        finished.again(tag, **fault(finished))


def test_on_two_gpus_the_model_is_divided_too_and_nothing_is_claimed_of_its_last_digits(finished, capsys):
    """On GPUs in float16 the adapters may be an update apart: what comes out there is shown, and no verdict."""

    def on_gpus(config, dry_run=False):
        return made_up(config) | {"machine": "Tesla T4", "layers": [2, 4], "peak_bytes": [10**8, 2 * 10**8]}

    finished.again("split", on_cpu=False, train_by_file=on_gpus)
    assert "layers [2, 4], held-out loss 1.000, peaks 0.10 GB and 0.20 GB" in capsys.readouterr().out
    for tag in ("same-adapters", "fsdp2"):
        names = finished.again(tag, on_cpu=False, apart=lambda name, other: 0.02)
        assert names["distance"] == 0.02
        assert capsys.readouterr().out == "2.0% apart\n"


def test_the_stored_notebook_trained_in_processes_and_every_verdict_held():
    text = "".join(str(out) for cell in stored("09").cells if cell.cell_type == "code" for out in cell.outputs)
    assert text.count("OK: ") == len(re.findall(r"^ *verdict\(", CODE, re.MULTILINE))
    assert "went on from checkpoint-4; the unbroken run from None" in text
    assert "NOT SO" not in text


# --- what the words say --------------------------------------------------------------------------------------------


def test_the_part_that_only_several_gpus_have_is_explained():
    spec, config = RunSpec(rank=8), PRESETS["qwen2.5-7b"].shape
    alone = predict(config, spec, "t4").parts
    several = {
        part
        for way in ("ddp", "split", "fsdp2")
        for part in predict(
            config, RunSpec(rank=8, optimizer="adamw_torch") if way == "fsdp2" else spec, "t4", 2, way
        ).parts
    }
    assert labels.GATHERED in several - set(alone)
    assert f"**{labels.GATHERED}**" in PROSE


def between(column, low, middle, high) -> bool:
    return column[low] < column[middle] < column[high]


def both(pair, name, of=max):
    return of(pair.peak_bytes[name])


# A sentence of the lesson: whether the rows bear it out, and the row whose step, made ten times as long, makes it fail.
SENTENCES = {
    "Copies are faster and save no memory. Divided layers save nearly half of the memory and are not faster.": (
        lambda pair: pair.tokens_per_second["7b-ddp-qkvo"] > 1.5 * pair.tokens_per_second["7b-one-qkvo"]
        and both(pair, "7b-ddp-qkvo") >= both(pair, "7b-one-qkvo")
        and 0.5 < both(pair, "7b-split-qkvo") / both(pair, "7b-one-qkvo") < 0.6
        and pair.step_seconds["7b-split-qkvo"] > pair.step_seconds["7b-one-qkvo"],
        "7b-ddp-qkvo",
    ),
    "Divided weights lie between the two, in both.": (
        lambda pair: both(pair, "7b-split-qkvo") < both(pair, "7b-fsdp2-qkvo") < both(pair, "7b-ddp-qkvo")
        and between(pair.tokens_per_second, "7b-split-qkvo", "7b-fsdp2-qkvo", "7b-ddp-qkvo"),
        "7b-fsdp2-qkvo",
    ),
    "On two GPUs copies computed 1.7 times as many tokens.": (
        lambda pair: round(pair.tokens_per_second["7b-ddp-qkvo"] / pair.tokens_per_second["7b-one-qkvo"], 1) == 1.7,
        "7b-one-qkvo",
    ),
    "In the first table the step took even a little longer than on one GPU": (
        lambda pair: 1 < pair.step_seconds["7b-split-qkvo"] / pair.step_seconds["7b-one-qkvo"] < 1.2,
        "7b-split-qkvo",
    ),
    "they trained 17 to 27% fewer tokens a second than copies": (
        lambda pair: [round(pair.tokens_per_second[f"7b-fsdp2-{which}"] / pair.tokens_per_second[f"7b-ddp-{which}"], 2)
                      for which in ("all-2048", "qkvo")] == [0.83, 0.73],
        "7b-fsdp2-all-2048",
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_stands_in_the_lesson_and_is_what_was_measured(sentence):
    holds, row = SENTENCES[sentence]
    assert sentence in PROSE, "the lesson says it otherwise: what it says now needs its test"
    assert holds(PAIR)
    false = copy.deepcopy(PAIR)
    false.loc[row, "step_seconds"] *= 10
    false.loc[row, "tokens_per_second"] /= 10
    assert not holds(false)


def test_numbers_of_the_prose_are_those_of_rows_and_predictions(finished):
    large, small = PAIR.loc["32b-split-all-2048"], PAIR.loc["3b-split-tied-qkvo-2048"]
    assert "there the tensors took 11.60 and 11.63 GB" in PROSE
    assert [f"{peak / 1e9:.2f}" for peak in large.peak_bytes] == ["11.60", "11.63"]
    assert "Llama-3.2-3B has 28 layers, a vocabulary of 128,256 words, and a *tied* head" in PROSE
    shape = shape_of(small.config)
    assert (shape.layers, shape.vocab, shape.tied) == (28, 128_256, True)
    well = finished["well"]
    copies = PAIR.tokens_per_second["7b-ddp-qkvo"]
    assert well["fused Adam"] == pytest.approx(copies, rel=0.05), "as many tokens as the two copies"
    assert 1.4 < well["every third layer"] / copies < 1.6, "half as many again"
    assert "each GPU sets some 50 MB more aside" in PROSE
    longer = [PAIR.step_seconds[name] for name in ("7b-ddp-qkvo", "7b-ddp-qkvo-2048")]
    assert "took {:.2f} s, and one of 2 × 2,048 tokens took {:.2f} s".format(*longer) in PROSE
    assert f"twice the tokens, in {longer[1] / longer[0]:.1f} times the time" in PROSE
    assert 45e6 < 2 * (GPUS["h200"].workspace_bytes - GPUS["t4"].workspace_bytes) < 55e6
    assert "Qwen's vocabulary has 152,064 words" in PROSE
    assert shape_of(PAIR.config["14b-fsdp2-all-2048"]).vocab == 152_064
    halved = finished["halved"], finished["whole"]
    assert halved[0].peak_allocated > 0.6 * halved[1].peak_allocated  # "more than half of what one GPU would"
    assert "some five hundred times as much" in PROSE
    assert 2 * finished["weights"] / finished["exchanged"] == pytest.approx(531, rel=0.01)
    assert "20 to 79% off" in (COURSE_ROOT / "helpers/training/divided.py").read_text()
    assert "A T4 cannot hold a 32B model even for that moment" in PROSE
    assert finished["at_peak"]["one"].after_load > GPUS["t4"].total_bytes
    assert "the whole model, 19 GB for each process" in PROSE
    assert round(finished["at_peak"]["one"].after_load / 1e9) == 19
    assert "14.56 GiB" in PROSE
    assert f"{GPUS['t4'].total_bytes / 2**30:.2f}" == "14.56"


def test_the_numbers_of_section_6_are_those_of_the_rows(finished):
    timed = finished["timed"]
    busy = timed.gpu_busy_seconds
    assert [f"{busy[name]:.2f}" for name in ("source", "recorded")] == ["0.68", "0.26"]
    assert "from 0.68 to 0.26 seconds" in CODE
    assert "from 0.68 s with the tutorials' recipe to 0.26 s with CUDA graphs" in CODE
    saved = (-busy.diff()).sort_values(ascending=False)
    assert list(saved.index[:4]) == ["repeated heads", "no upcast", "Liger", "every third layer"]
    assert "fused attention brings most, then no float32" in CODE
    walks = measured_runs("h200_speed").query("rules == 't4' and recipe == 'fewer walks'").step_seconds
    assert len(walks) == 3, "less than what their times vary by"
    assert walks.max() - walks.min() > abs(timed.step_seconds["one operation"] - timed.step_seconds["fewer walks"])
    assert f"the least by the data sheet is {finished['least']['H200']:.2f} s" in CODE
    clock = timed.step_seconds
    assert f"By the clock it falls from {clock['source']:.2f} to {clock['recorded']:.2f} s" in CODE
    assert f"from {clock['nothing recomputed']:.2f} to {clock['recorded']:.2f} s, by GPU time it did not" in PROSE
    assert busy["recorded"] >= busy["nothing recomputed"]
    assert "At the 24 that it keeps up, as lesson 03 says, the least is 4.9 s." in PROSE
    assert f"{finished['operations'] / planning.T4_SUSTAINED:.1f}" == "4.9"
    assert f"({clock['every third layer']:.2f} and {clock['nothing recomputed']:.2f} s)" in PROSE
    lengths = finished["lengths"]
    for words, rates in (
        ("Tokens a second of GPU time", lengths.tokens_per_busy_second),
        ("By the clock", lengths.tokens_per_clock_second),
    ):
        assert f"{words}: {', '.join(f'{name} {round(rate, -2):,.0f}' for name, rate in rates.items())}" in CODE
    assert lengths.tokens_per_clock_second.idxmax() == "packed", "Packing needs least of Python"
    again = measured_runs("unsloth_rows").query("recipe == 'ours, real' and rules == 't4'").iloc[0]
    twice = again.tokens_per_clock_second, lengths.tokens_per_clock_second["padding-free"]
    assert "came to {:,.0f} tokens a second, and not {:,.0f}".format(*twice) in PROSE
    gain = lengths.tokens_per_busy_second["padding-free"] / lengths.tokens_per_busy_second["padded"]
    assert f"trains {gain:.1f} times the tokens of the default" in CODE
    assert f"If 37% is padding, leaving it out gives {1 / (1 - lengths.padding['padded']):.1f} times" in PROSE
    assert f"Where does the rest of {gain:.1f} come from?" in PROSE
    assert f"{lengths.padding['padded']:.0%}" == "37%"
    sorted_rows = sorted(measure_lengths.lengths())
    assert sorted_rows[128] <= 96  # "half of the rows have fewer than 95 tokens"
    assert sum(n > 300 for n in sorted_rows) < 8  # "few have more than 300"
    factor = busy["repeated heads"] / busy["every third layer"]
    assert f"by GPU time they bring a factor of {factor:.1f}" in PROSE
    seconds = f"{busy['repeated heads']:.2f} s of GPU time against {busy['every third layer']:.2f} s"
    assert f"{seconds}, a factor of {factor:.1f}, and copies on two GPUs brought a factor of 1.7" in PROSE


def test_what_the_text_says_of_unsloth_is_what_the_rows_say(finished):
    beside = finished["beside"]
    ahead = {}  # (lengths, what is measured) -> this course's fastest over Unsloth's
    for lengths_are in ("one", "real"):
        of = beside.filter(regex=f", {lengths_are}", axis="index")
        ours = of.index.str.startswith("ours")
        for measure in ("busy", "clock"):
            rates = of[f"tokens_per_{measure}_second"]
            ahead[lengths_are, measure] = rates[ours].max() / rates[~ours].max()
    assert f"this course has {ahead['one', 'busy']:.2f} times the speed of Unsloth" in PROSE
    assert f"and with real lengths {ahead['real', 'busy']:.2f} times" in PROSE
    assert f"the course is {ahead['one', 'clock']:.2f} times as fast with rows of one length" in PROSE
    assert f"Unsloth is {1 / ahead['real', 'clock']:.2f} times as fast with real lengths" in PROSE
    default = beside.index.isin(["Unsloth, one", "Unsloth, real"])
    peaks = beside.peak_bytes / 1e9
    assert "it takes 5 GB where the other settings take 12 to 14" in PROSE
    assert {round(peak) for peak in peaks[default]} == {5}
    assert (round(peaks[~default].min()), round(peaks[~default].max())) == (12, 14)
    assert set(finished["tried"]) == set(beside.index), "none is left out"


def test_both_figures_of_results_say_in_words_what_they_show(finished):
    assert [round(n) for n in finished["billions"].values()] == [24, 40, 47]
    assert "two GPUs with divided layers trained 40 and 47 billion weights, one GPU 24" in CODE
    largest = measured_runs("h200_memory_rows").query("model == 'Mistral-Small-24B'")
    held = largest.reserved_bytes + GPUS["t4"].context_bytes
    assert (held[largest.seq_len == 512] < GPUS["t4"].total_bytes).all()  # "with one row of 512 tokens"
    assert (held[largest.seq_len > 512] > GPUS["t4"].total_bytes).all()
    sizes = [max(each.held_bytes("t4") for each in p.each or (p,)) / 1e9 for p in finished["at_peak"].values()]
    assert [f"{size:.1f}" for size in sizes] == ["23.2", "23.3", "12.6", "17.5"]
    assert "hold 23 GB each, above a T4's 15.6; divided layers 12.6 GB on" in CODE


def test_the_map_of_the_lesson_is_the_one_that_the_command_loads_by(finished):
    for layers, tied in (((2, 3), False), ((1, 4), True), ((2, 2, 2), False)):
        assert finished["device_map"](layers, tied) == Way("split", len(layers), layers).device_map(sum(layers), tied)


def test_the_table_of_calls_is_what_each_way_tells_the_libraries():
    assert Way("ddp", 2).arguments(None) == {"ddp_find_unused_parameters": False}
    assert "`SFTConfig(ddp_find_unused_parameters=False)`" in PROSE
    assert Way("fsdp2", 2).quantization(torch.float16) == {"bnb_4bit_quant_storage": torch.float16}
    assert Way("fsdp2", 2).optimizer("auto", "paged_adamw_8bit") == "adamw_torch"
    assert '`SFTConfig(fsdp=True, fsdp_config={"version": 2, ...})`, `optim="adamw_torch"`' in PROSE


class Planned(Training):
    """The plan of a run whose model is not on this disk: of the same shape, and with the same recipe."""

    def __init__(self, job, model):
        self.job, self.here, self.model, self.way = (
            job,
            SimpleNamespace(native_bfloat16=False, device="cuda"),
            model,
            job.way,
        )
        recipe = recipe_for(model)
        self.settings = SimpleNamespace(
            **{k: recipe.get(k, v) if v == "auto" else v for k, v in job.parameters.items()}
        )


def planned(name, folder, shape):
    """The file for Kaggle's pair whose output folder is called `name`, as the command reads it, and its prediction."""
    (text,) = (t for t in re.findall(r"^# ```toml\n(.*?)^# ```", SOURCE, re.DOTALL | re.MULTILINE) if f'/{name}"' in t)
    given = tomllib.loads(text.replace("# ", ""))
    given |= {"output_dir": str(folder), "dataset_id": "bundled"}
    (folder / "config.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in given.items()))
    job = Job.read(folder / "config.toml")
    run = Planned(job, SimpleNamespace(path=given["model_id"], name=given["model_id"], bundled=False))
    return run, predict(shape, run.spec, "t4", job.way.gpus, job.way.name)


def test_the_file_for_a_32b_model_on_kaggles_pair_is_what_was_measured_and_fits(tmp_path):
    large = PAIR.loc["32b-split-all-2048"]
    run, found = planned("32b", tmp_path, large.config)
    assert (run.way, found.layers) == (Way("split", 2), (32, 32))
    assert run.rows_per_step == 4, "a step of four rows"
    asked = [getattr(run.settings, name) for name in ("rank", "batch_size", "max_length", "max_steps")]
    assert asked == [large.spec["rank"], large.spec["batch_size"], large.spec["seq_len"], 60]
    assert fits(found, "t4", GPUS["t4"].total_bytes)


def test_the_file_for_a_7b_model_on_kaggles_pair_makes_lesson_03s_steps_and_fits(tmp_path):
    run, found = planned("7b", tmp_path, PRESETS["qwen2.5-7b"].shape)
    assert run.way == Way("ddp", 2)
    recipe = recipe_for(run.model)
    assert (recipe["batch_size"], recipe["gradient_accumulation"]) == (4, 4), "four batches of four rows on one GPU"
    assert run.rows_per_step == 16
    assert run.settings.padding_free
    assert run.settings.max_steps == 60
    assert fits(found, "t4", GPUS["t4"].total_bytes)


def test_the_minutes_of_the_32b_model_are_those_of_the_file_and_of_lesson_03s_factors(finished):
    bounds = finished["bounds"]
    assert [f"{number:.0f}" for number in bounds[0]] == ["65", "6", "20", "24", "80"]
    assert [f"{number:.0f}" for number in bounds[1]] == ["24", "16", "54", "66", "216"]
    assert [round(989 / n) for n in (65, 24)] == [15, 41], "lesson 03's factors"
    rows = PAIR.step_seconds["32b-split-qkvo"], PAIR.step_seconds["32b-split-all-2048"]
    assert "took 1.09 s" in PROSE
    assert "the 1.3 s by the clock" in PROSE
    assert (f"{rows[0]:.2f}", f"{rows[1]:.1f}") == ("1.09", "1.3")
    assert "which takes eleven minutes at 100 MB a second" in PROSE
    assert round(2 * shape_of(PAIR.config["32b-split-all-2048"]).parameters / 100e6 / 60) == 11


def test_the_minutes_of_the_head_are_those_of_the_exercises():
    each = re.findall(r"^# \*\*\d\. [A-Z][a-z, ]+\*\* \((\d+) minutes, •{1,3}\)", SOURCE, re.MULTILINE)
    assert len(each) == 7
    assert sum(map(int, each)) == int(re.search(r"to read, (\d+) for the exercises", SOURCE)[1])


def test_the_cut_of_exercise_3_is_that_of_predict(capsys):
    assert l09.tied_cut(2) is None
    assert "predicted: 2 and 22 layers" in capsys.readouterr().out


def test_the_embedding_the_head_and_the_loss_of_exercise_3_take_as_much_as_twenty_layers():
    found = predict(
        PRESETS["qwen2.5-0.5b"].shape, RunSpec(rank=8, seq_len=2048, repeat_kv=True, lora_dropout=0.0), "t4", 2, "split"
    )
    one, other = (each.peak_allocated for each in found.each)
    assert one == pytest.approx(other, rel=0.05)
    assert found.layers[1] - found.layers[0] == 20


# --- the figures, from data ----------------------------------------------------------------------------------------


def test_every_part_of_a_prediction_lies_in_a_column_and_the_host_beside_it():
    parts = {
        labels.CODES: 3e9,
        labels.ADAPTERS: 1e9,
        labels.KEPT: 2e9,
        labels.GATHERED: 5e8,
        "reserved and context": 1e9,
    }
    assert sum(diagrams.grouped(parts, HELD).values()) == sum(parts.values())
    known = {part for _, named in HELD.values() for part in named} - {"reserved and context", "on the host"}
    assert known <= set(labels.LABELS)
    ways = {"a": [parts], "b": [parts | {"on the host": 4e9}] * 2}
    (ax,) = diagrams.who_holds_what(ways, {"a": ["x"], "b": ["x", "y"]}, {"b": "both"}, 6e9, "title").axes
    hatched = [bar for bar in ax.patches if bar.get_hatch()]
    assert [round(bar.get_height(), 6) for bar in hatched] == [4, 4]
    assert [text.get_text() for text in ax.texts].count("7.5") == 3, "what lies on the host is no part of the sum"
    assert HOST in {bar.get_label() for bar in ax.containers}


def test_the_cut_with_the_least_is_marked():
    (ax,) = diagrams.peaks_by_cut({1: (1e9, 5e9), 2: (2e9, 3e9), 3: (4e9, 1e9)}, {3: "here"}, "title").axes
    assert {text.get_text() for text in ax.texts} == {"the least: 2 layers, 3.00 GB", "here: 3 layers, 4.00 GB"}
    assert "of 4" in ax.get_xlabel()


def test_the_drawing_of_a_step_says_where_it_ends_how_much_is_done():
    (ax,) = diagrams.one_step({"a": [[("forward", 0, 2, "x")]] * 2}, "title", {"a": "8 rows done"}).axes
    (said,) = (text for text in ax.texts if text.get_text() == "8 rows done")
    assert said.get_position() == (2.05, 0.5), "behind the bars, between the two rows"
    assert ax.get_xlim()[1] > 2.3


# --- a training by a file, from a notebook -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "environment", "expected"),
    [
        ((), {}, False),
        (("T4",), {}, False),
        (("T4", "T4"), {}, True),
        (("T4", "T4"), {ALL_GPUS: "", "CUDA_VISIBLE_DEVICES": "0"}, True),  # the lesson's own choice
        (("T4", "T4"), {"CUDA_VISIBLE_DEVICES": "1"}, False),
        (("T4", "T4", "T4"), {"CUDA_VISIBLE_DEVICES": "0,2"}, True),
    ],
)
def test_two_gpus_are_taken_where_they_are_and_nobody_hid_one(gpus, environment, expected, monkeypatch):
    for name in (ALL_GPUS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hardware, "gpus_of_driver", lambda: gpus)
    assert by_file.two_gpus_here() is expected
    around = by_file._surroundings()
    assert (around.get("CUDA_VISIBLE_DEVICES") == "") is not expected
    assert (ALL_GPUS in around) is (expected and ALL_GPUS in environment)


def test_what_the_command_refuses_is_one_line(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(f'output_dir = "{tmp_path}"\nway = "ddp"\ngpus = 1\n')
    with pytest.raises(CourseError, match="one goes with 1, the others with 2 or more"):
        train_by_file(file)


def test_a_killed_training_leaves_a_whole_checkpoint_and_no_process(tmp_path):
    file = tmp_path / "config.toml"
    usual = {"model_id": "bundled", "dataset_id": "bundled", "way": "ddp", "gpus": 2, "batch_size": 2, "max_steps": 40}
    given = usual | {"save_steps": 1, "eval_rows": 2, "output_dir": str(tmp_path)}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in given.items()))
    assert killed_by_file(file, 1, processes=2) == "checkpoint-1"
    left = [p for p in psutil.process_iter(["cmdline"]) if str(file) in (p.info["cmdline"] or [])]
    assert left == []
    assert not (tmp_path / "train.json").exists()


def test_a_training_that_ends_before_it_is_killed_says_so(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(f'output_dir = "{tmp_path}"\nway = "nothing"\n')
    with pytest.raises(CourseError, match="ended with code 2 before checkpoint-1 was whole"):
        killed_by_file(file, 1, processes=1)


# --- the script that needs nothing of the course -------------------------------------------------------------------


def test_the_script_trains_two_copies_without_the_course_and_saves_a_whole_adapter(tmp_path):
    names: dict = {"run": type("Run", (), {"folder": tmp_path})}
    (tmp_path / "several").mkdir()
    exec(tagged(NOTEBOOK, "script").source, names)
    script = tmp_path / "several" / "two_gpus.py"
    assert "helpers" not in script.read_text()
    script.write_text(script.read_text().replace('"rows.jsonl"), 60', '"rows.jsonl"), 2'))
    rows = [{"prompt": f"What is the capital of place {n}?", "completion": f" Town {n}"} for n in range(16)]
    (script.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (script.parent / "helpers.py").write_text("raise ImportError('the course is not here')")
    around = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    around |= {
        "MODEL": str(BUNDLED_MODEL),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    done = subprocess.run(words, cwd=tmp_path, env=around, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shapes = safetensors_shapes(script.parent / "two-gpus" / "adapter" / "adapter_model.safetensors")
    assert len(shapes) == 84
    assert all(numpy.prod(shape) > 0 for shape in shapes.values())


def test_the_line_that_starts_the_script_names_its_file_by_a_variable_and_so_works_from_any_drive(tmp_path, capsys):
    names: dict = {"run": type("Run", (), {"folder": tmp_path})}
    (tmp_path / "several").mkdir()
    exec(tagged(NOTEBOOK, "script").source, names)
    line = capsys.readouterr().out.strip()
    assert line == '!accelerate launch --multi_gpu --num_processes 2 "{two_gpus}"'
    assert line.format(**names).endswith(f'"{tmp_path / "several" / "two_gpus.py"}"')
    assert "relpath" not in CODE


def test_the_steps_that_the_text_tells_for_so_many_rows_are_rows_times_epochs_by_those_of_a_step(tmp_path):
    run, _ = planned("7b", tmp_path, PRESETS["qwen2.5-7b"].shape)
    assert f"steps = epochs × (rows / {run.rows_per_step}, rounded down)" in PROSE
    steps = run.settings.max_steps
    assert (
        f"The {steps} steps of the file see {steps} × {run.rows_per_step} = {steps * run.rows_per_step} rows" in PROSE
    )
    assert f"For two epochs of 5,000 rows write {2 * (5000 // run.rows_per_step)}." in PROSE
    (file,) = (
        text for text in re.findall(r"^# ```toml\n(.*?)^# ```", SOURCE, re.DOTALL | re.MULTILINE) if '/7b"' in text
    )
    assert f"# max_steps = {steps}\n" in file


def test_the_two_runs_that_are_timed_need_so_many_rows_and_are_evaluated_equally_often_by_lesson_03():
    short, long = map(int, re.search(r"with `max_steps = (\d+)` and then with `max_steps = (\d+)`", PROSE).groups())
    assert f"{long - short} steps are left" in PROSE
    assert f'"{short} steps in ... s"' in PROSE
    assert f"{16 * long} rows or more" in PROSE
    assert '"eval_steps": max(1, settings.max_steps // 4)' in course.find_lesson("03").read_text(encoding="utf-8")
    for steps in (short, long):  # transformers evaluates once more at the end where that is no multiple
        assert steps % (steps // 4) == 0
        assert steps // (steps // 4) == 4


def test_the_question_and_the_picture_come_before_any_table():
    kinds = [(cell.cell_type, cell.source) for cell in NOTEBOOK.cells]
    question = next(i for i, (_, source) in enumerate(kinds) if source.startswith("## Time, or memory?"))
    assert "**which do you lack, time or memory?**" in kinds[question][1]
    assert kinds[question + 1][1] == tagged(NOTEBOOK, "result").source
    assert "show(figure" in kinds[question + 1][1]
    assert len(kinds[question][1].split()) < 150


def test_what_the_text_says_of_large_models_is_what_the_rows_say():
    rows = {row["name"]: row["measured"] for row in read_rows(COURSE_ROOT / "measurements" / "two_gpus_rows.jsonl")}
    cap = 14.56 * 2**30
    divided = rows["32b-fsdp2-qkvo"]
    assert f"each GPU took {max(divided['load_peak']) / 1e9:.1f} GB while it was loaded" in PROSE
    assert "this way is out for a 32B model on T4s" in PROSE
    assert max(divided["load_peak"]) > cap
    assert "until about 0.9 GB were left beside the CUDA context, and nothing larger was tried" in PROSE
    largest = [max(rows[name]["peak_reserved"]) for name in ("32b-split-94-layers", "32b-split-78-layers-all-2048")]
    assert [round((cap - size - GPUS["t4"].context_bytes) / 1e9, 1) for size in largest] == [0.9, 1.0]
    files = 2 * shape_of(PAIR.loc["32b-split-all-2048"].config).parameters / 1e9
    assert "some 65 GB" in PROSE
    assert 64 < files < 66
