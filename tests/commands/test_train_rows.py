"""python -m helpers train: which rows its steps have, what is said of those that are cut or lost, and what is recorded."""

import json
import re
import shutil

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from helpers import COURSE_ROOT, CourseError, machine
from helpers.commands import _job, _training
from helpers.commands._training import Training
from helpers.data import with_template
from helpers.memory import predict, shape_of
from helpers.models import BUNDLED_MODEL, PRESETS
from tests.memory.test_loaded_whole import LARGE


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(BUNDLED_MODEL, tmp_path / "mine")


@pytest.fixture(scope="module")
def tokenizer():
    return with_template(AutoTokenizer.from_pretrained(BUNDLED_MODEL), "alpaca")


def training(base, learn: list[tuple[str, str]], held=(("Who?", "She."),), **more) -> Training:
    """A training that learns these questions with their answers, and holds out those."""
    given = {"model_id": str(base), "dataset_id": "bundled", "output_dir": str(base.parent / "out"), "eval_rows": 8}
    given |= {"batch_size": 2, "rank": 4, "max_length": 64, "max_steps": 50, "save_steps": 50} | more
    config = base.parent / "config.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
    running = Training(_job.Job.read(config), machine.detect(), [])
    for part, pairs in (("train", learn), ("heldout", held)):
        rows = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
        running.rows[part] = Dataset.from_list(rows)
    return running


def short(number: int) -> tuple[str, str]:
    return f"What is {number}?", f"It is {number}."


def long_answer(number: int) -> tuple[str, str]:
    return f"Say {number}", "blue " * 300


def long_question(number: int) -> tuple[str, str]:
    return "tree " * 90 + str(number), "yes"


# --- answers that are cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 5, 12])
@pytest.mark.parametrize("max_steps", [1, 50])
def test_rows_that_lose_the_end_of_their_answers_are_counted(base, tokenizer, cut, max_steps):
    running = training(base, [(long_answer if n < cut else short)(n) for n in range(12)], max_steps=max_steps)
    rows, said = running.used_rows(tokenizer)
    counted = sum("blue blue" in row[0]["content"] for row in rows["completion"])
    found = [line for line in said if line.startswith("cut: ")]
    assert bool(found) == bool(counted)
    if counted:
        assert f"cut: {counted} of {len(rows)} rows lose the end of their answers at max_length = 64" in found[0]
        longest = int(re.search(r"up to (\d+), the tokens of the longest", found[0])[1])
        running.settings.max_length = longest
        assert not any(line.startswith("cut: ") for line in running.used_rows(tokenizer)[1])
        running.settings.max_length = longest - 1
        assert any(line.startswith("cut: ") for line in running.used_rows(tokenizer)[1])


def test_rows_without_an_answer_are_left_out_and_not_cut_as_well(base, tokenizer):
    running = training(base, [*map(long_question, range(4)), *map(long_answer, range(3)), *map(short, range(5))])
    said = running.used_rows(tokenizer)[1]
    assert said[0].startswith("left out: 4 of 12 rows, since max_length = 64 leaves nothing")
    assert said[1].startswith("cut: 3 of 8 rows")


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_held_out_rows_without_an_answer_are_counted_where_they_are_missing_in_the_loss(base, tokenizer, lost):
    held = [(long_question if n < lost else short)(n) for n in range(4)]
    said = training(base, [*map(short, range(8))], held).lost_of_heldout(tokenizer)
    wanted = f"held out: {lost} of 4 rows are not in the loss, since max_length = 64 leaves nothing of their answers"
    assert said == ([wanted] if lost else [])


def test_a_run_says_what_it_cuts_and_records_the_rows_of_a_step(base, capsys):
    rows, held = [*map(long_answer, range(6)), *map(short, range(4))], [long_question(1), short(99)]
    running = training(base, rows, held, max_steps=1, batch_size=8, gradient_accumulation=4)
    found = running.run()
    said = capsys.readouterr().out
    assert "cut: 6 of 10 rows" in said
    assert "held out: 1 of 2 rows are not in the loss" in said
    assert "rows in a step: 10, all that there are, and not 32" in said
    assert found["rows_per_step"] == json.loads((base.parent / "out" / "train.json").read_text())["rows_per_step"] == 10


# --- fewer rows than a step takes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"padding_free": True}, {"way": "split", "gpus": 2}], ids=str)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 4), (1024, 1024), (11, 1)])
def test_a_process_alone_has_all_rows_in_a_step_and_says_so(base, tokenizer, batch_size, accumulation, more):
    running = training(
        base, [*map(short, range(10))], batch_size=batch_size, gradient_accumulation=accumulation, **more
    )
    assert "50 steps of 10 rows, all that there are, " in running.outlook()
    rows, said = running.used_rows(tokenizer)
    assert len(rows) == 10
    assert [line.partition(":")[0] for line in said] == ["rows in a step"]
    assert f"and not {batch_size * accumulation}: add rows, or lower" in said[0]


@pytest.mark.parametrize("rows", [8, 10])
def test_as_many_rows_as_a_step_takes_are_nothing_to_speak_of(base, tokenizer, rows):
    running = training(base, [*map(short, range(rows))], batch_size=4, gradient_accumulation=2)
    assert "50 steps of 8 rows, 4 at once" in running.outlook()
    assert not any(line.startswith("rows in a step") for line in running.used_rows(tokenizer)[1])


@pytest.mark.parametrize(
    ("gpus", "rows", "given", "cure"),
    [
        (2, 1, (1, 1), "add rows, at least one for each of the 2 GPUs, or train on one"),
        (2, 1, (4, 2), "add rows, at least one for each of the 2 GPUs, or train on one"),
        (4, 3, (1, 1), "add rows, at least one for each of the 4 GPUs, or train on one"),
        (2, 3, (2, 1), "lower batch_size or gradient_accumulation"),
        (2, 15, (4, 2), "lower batch_size or gradient_accumulation"),
    ],
)
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_several_processes_with_too_few_rows_are_told_what_helps_before_and_in_the_run(
    base, tokenizer, way, gpus, rows, given, cure
):
    batch_size, accumulation = given
    settings = {"batch_size": batch_size, "gradient_accumulation": accumulation, "way": way, "gpus": gpus}
    running = training(base, [*map(short, range(rows))], **settings)
    wanted = f"a step takes {batch_size * accumulation * gpus} rows, and there are {rows}: {cure}$"
    with pytest.raises(CourseError, match=wanted):
        running.outlook()
    with pytest.raises(CourseError, match=wanted):
        running.used_rows(tokenizer)


# --- a model that is loaded whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gpu_gib", "fits"), [(14.56, False), (17.0, False), (22.0, True)])
def test_a_dry_run_says_that_each_gpu_loads_the_whole_model(base, monkeypatch, gpu_gib, fits):
    monkeypatch.setattr(_training, "shape_of", lambda path: shape_of(LARGE))
    more = {"gradient_accumulation": 1, "way": "fsdp2", "gpus": 4, "gpu_gib": gpu_gib}
    running = training(base, [*map(short, range(20))], **more)
    verdict = running.outlook().splitlines()[-1]
    assert verdict == "fits" if fits else verdict.startswith("does not fit: each GPU quantizes all of the model, 1")


# --- gradients that wait --------------------------------------------------------------------------------------------

SEVEN = {"rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "max_length": 512,
         "optimizer": "paged_adamw_8bit", "checkpointing": True, "batch_size": 4}  # fmt: skip


def peaks(base, gpu="t4", **more) -> list[int]:
    """What a dry run takes each GPU's peak to be, in bytes, with a model of Qwen2.5-7B's shape."""
    running = training(base, [*map(short, range(40))], **SEVEN | more)
    way, shape = running.job.way, shape_of(PRESETS["qwen2.5-7b"].shape)
    found = running.with_waiting_gradients(predict(shape, running.spec, gpu, way.gpus, way.name))
    return [one.peak_allocated for one in found.each or (found,)]


@pytest.mark.parametrize(("way", "gpus", "sets"), [("one", 1, 1), ("ddp", 2, 2), ("split", 2, 1), ("fsdp2", 2, 2)])
def test_a_step_of_several_batches_holds_the_gradients_of_the_earlier_ones(base, way, gpus, sets):
    """FSDP2 keeps them whole on each GPU; divided layers keep those of their own, so all GPUs together have one set."""
    more = {"way": way, "gpus": gpus} | ({"optimizer": "adamw_torch"} if way == "fsdp2" else {})
    alone, several = (peaks(base, gradient_accumulation=count, **more) for count in (1, 2))
    assert sum(several) - sum(alone) == 4 * sets * 40_370_176  # trained numbers: rank 16 on all seven projections
    assert all(a < b for a, b in zip(alone, several, strict=True))
    assert peaks(base, gradient_accumulation=4, **more) == several


def test_lesson_09s_file_for_a_7b_model_took_what_the_dry_run_says(base):
    """Measured by tests/gpu/test_file_for_7b.py on two H200 under T4 rules."""
    row = json.loads((COURSE_ROOT / "measurements" / "two_gpus_file_7b.json").read_text(encoding="utf-8"))
    kept = {name: row["parameters"][name] for name in (*SEVEN, "gradient_accumulation", "padding_free")}
    found = peaks(base, "h200", way=row["way"], gpus=row["gpus"], **kept)
    assert found == pytest.approx(row["peak_bytes"], rel=0.003)
