"""measured_runs() says what measurements/ says, flat; measurements/measured_pairs.py finds all pairs, and the nearest."""

import itertools
import json
import tomllib

import pytest

from helpers import COURSE_ROOT, CourseError
from helpers.memory import RunSpec
from helpers.records import MEASUREMENTS, measured_failures, measured_runs, measured_two_gpus, read_rows
from tests.scripts import measuring_script

FILES = ("h200_memory_rows", "h200_earlier_rows", "h200_speed")
ROWS = [(name, row) for name in FILES for row in read_rows(COURSE_ROOT / "measurements" / f"{name}.jsonl")]


PAIRS = measuring_script("measured_pairs")


@pytest.fixture(scope="module")
def runs():
    return measured_runs()


def test_every_run_is_one_flat_row_in_the_order_of_the_files(runs):
    assert list(runs.index) == list(range(len(ROWS)))
    assert runs.file.tolist() == [name for name, _ in ROWS]
    assert runs.columns.is_unique
    for name in set(runs) - {"config", "spec"}:
        assert not any(isinstance(value, dict) for value in runs[name]), name


def test_no_value_of_a_file_is_lost_or_changed(runs):
    renamed = {"after_load": "after_load_bytes", "load_peak": "load_peak_bytes", "peak_allocated": "peak_bytes"}
    renamed |= {"before_training": "before_training_bytes", "peak_reserved": "reserved_bytes", "name": "recipe"}
    renamed |= {"gpu_busy_s": "gpu_busy_seconds", "ready_s": "ready_seconds", "tokens_per_s": "tokens_per_second"}
    renamed |= {"first_steps_s": "first_steps_seconds", "left_allocated": "left_bytes"}
    for (_, row), (_, run) in zip(ROWS, runs.iterrows(), strict=True):
        assert (run.config, run.spec) == (row["config"], row["spec"])
        own = {name: value for name, value in row.items() if not isinstance(value, dict)}
        for name, value in (row["spec"] | row["versions"] | row["measured"] | own).items():
            if value is not None and name not in ("step_s", "nvidia_smi"):
                assert run[renamed.get(name, name)] == value, name
        steps = row["measured"].get("step_s")
        assert run.each_step_seconds == steps if isinstance(steps, list) else not steps or run.step_seconds == steps
    absent = runs[runs.file == "h200_memory_rows"]
    assert absent.recipe.isna().all()
    assert absent.date.isna().all()
    assert runs.error.isna().sum() == sum(row["error"] is None for _, row in ROWS)


def test_whole_numbers_stay_whole_where_some_are_missing(runs):
    assert runs["rank"].isna().any()
    assert f"{runs['rank'].dropna().iloc[0]}" == "8"
    assert f"{runs.peak_bytes.iloc[0]:,}" == "5,464,062,976"
    assert int(runs.nvidia_smi_bytes.dropna().iloc[0]) == 7539 * 2**20


def test_one_file_is_read_by_its_name_and_another_name_is_one_line():
    assert measured_runs("h200_speed").file.unique().tolist() == ["h200_speed"]
    assert len(measured_runs("h200_speed.jsonl", "h200_earlier_rows")) == 76 + 12
    with pytest.raises(CourseError, match="no measured runs in 'h200_lessons'; there are: h200_memory_rows"):
        measured_runs("h200_lessons")


def test_each_file_of_training_runs_on_one_gpu_is_read():
    """Rows of two GPUs have a number for each, and are no flat rows: tests/memory/test_several_gpus.py reads them."""
    found = []
    for file in sorted((COURSE_ROOT / "measurements").glob("*.jsonl")):
        row = json.loads(file.read_text(encoding="utf-8").partition("\n")[0])
        found += [file.stem] if {"spec", "measured"} <= row.keys() and "gpus" not in row else []
    assert found == sorted((*FILES, "lengths_rows", "unsloth_rows"))
    assert set(measured_runs("lengths_rows", "unsloth_rows").file) == {"lengths_rows", "unsloth_rows"}


def test_rows_of_real_lengths_are_read_by_their_names_and_stay_out_of_the_others(runs):
    assert set(runs.file) == set(FILES)
    assert "padding" not in runs
    ways = measured_runs("lengths_rows").query("rules == 't4'").set_index("recipe")
    (row,) = [
        row
        for row in read_rows(COURSE_ROOT / "measurements" / "lengths_rows.jsonl")
        if (row["rules"], row["name"]) == ("t4", "packed")
    ]
    found, measured = ways.loc["packed"], row["measured"]
    assert (found.change, found.padding, found.peak_bytes) == (row["way"]["change"], 0, measured["peak_allocated"])
    assert found.tokens_per_busy_second == measured["tokens_per_busy_s"]
    assert found.tokens_per_clock_second == measured["tokens_per_clock_s"]
    assert ways.error["padded, recorded"].startswith("OutOfMemoryError")


def test_pairs_are_all_that_differ_in_one_setting_alone(runs):
    """Found again from the files, the long way."""
    usable = [
        (place, row)
        for place, (_, row) in enumerate(ROWS)
        if not row["error"] and row.get("rules") != "lean" and not row["spec"].get("recorded")
    ]
    found = set()
    for (i, a), (j, b) in itertools.permutations(usable, 2):
        names = a["spec"].keys() | b["spec"].keys()
        # "recorded": False was written down only since there is such a setting.
        differ = [name for name in names - {"recorded"} if a["spec"].get(name) != b["spec"].get(name)]
        saved = a["measured"]["peak_allocated"] - b["measured"]["peak_allocated"]
        same = a["model"] == b["model"] and a["memory_cap_gib"] == b["memory_cap_gib"]
        if same and len(differ) == 1 and saved > 0:
            found.add((differ[0], i, j, saved))
    pairs = PAIRS.measured_pairs()
    assert set(zip(pairs.differs_in, pairs.costlier, pairs.cheaper, pairs.saved_bytes, strict=True)) == found
    for pair in pairs.itertuples():
        a, b = runs.loc[pair.costlier], runs.loc[pair.cheaper]
        assert a.peak_bytes - b.peak_bytes == pair.saved_bytes
        assert a.spec.get(pair.differs_in) == pair.before
        assert b.spec.get(pair.differs_in) == pair.after


def test_the_nearest_pair_has_the_settings_that_were_asked_for():
    before = RunSpec(rank=16, batch_size=8, seq_len=512)
    a, b = PAIRS.nearest_pair("batch_size", before, RunSpec(rank=16, batch_size=4, seq_len=512))
    assert (a.batch_size, b.batch_size, a.seq_len, b.seq_len) == (8, 4, 512, 512)
    assert a.model == b.model == "Mistral-7B-v0.1"
    long, _ = PAIRS.nearest_pair("repeat_kv", RunSpec(seq_len=2048, batch_size=1), RunSpec(seq_len=2048, batch_size=1))
    assert (long.batch_size, long.seq_len) == (1, 2048)
    assert PAIRS.nearest_pair("quant_type", before, before) is None


def test_each_run_of_the_pairs_was_predicted_within_one_percent(runs):
    pairs = PAIRS.measured_pairs()
    chosen = runs.loc[sorted({*pairs.costlier, *pairs.cheaper})]
    off = [abs(PAIRS.predicted_peak(run) / run.peak_bytes - 1) for _, run in chosen.iterrows()]
    assert len(off) > 20
    assert max(off) < 0.01


def test_what_a_gpu_said_is_read_by_the_name_of_the_failure():
    said = measured_failures()
    assert "CUDA out of memory" in said["out-of-memory"]["message"]
    assert all(row["name"] == name for name, row in said.items())


def test_the_runs_on_two_gpus_are_the_plans_and_count_the_tokens_of_all_processes():
    pair = measured_two_gpus()
    planned = {row["name"] for row in tomllib.loads((MEASUREMENTS / "two_gpus_plan.toml").read_text())["row"]}
    assert set(pair.index) <= planned
    assert len(pair) == len(read_rows(MEASUREMENTS / "two_gpus_rows.jsonl")) == len(set(pair.index))
    copies, split = pair.loc["7b-ddp-qkvo"], pair.loc["7b-split-qkvo"]
    assert copies.tokens_per_second == pytest.approx(2 * 4 * 512 / copies.step_seconds)
    assert split.tokens_per_second == pytest.approx(4 * 512 / split.step_seconds)
    assert split.fullest_bytes == max(split.peak_bytes) == split.peak_bytes[1]
    assert len(pair.loc["7b-one-qkvo"].peak_bytes) == 1
