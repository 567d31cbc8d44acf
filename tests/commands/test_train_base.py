"""python -m helpers train, with a base model in a folder that changes between two runs: which one goes on, and which begins."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import CourseError, machine
from helpers.commands import _job
from helpers.commands._training import Training
from helpers.data import to_chat, with_template
from helpers.lesson import session
from helpers.models import BUNDLED_MODEL, bundled, recipe_for
from helpers.models import content as contents
from helpers.saving import last_complete_checkpoint
from helpers.training import Way, plan_training


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(BUNDLED_MODEL, tmp_path / "mine")


def job(base, **more):
    """A short training on the model in `base`, which writes to the folder "out" beside it."""
    given = {"model_id": str(base), "dataset_id": "bundled", "output_dir": str(base.parent / "out"), "eval_rows": 8}
    given |= {"batch_size": 2, "rank": 4, "max_length": 64, "max_steps": 2, "save_steps": 2} | more
    file = base.parent / "config.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
    return _job.Job.read(file)


def identity(base) -> dict:
    return Training(job(base), machine.detect(), []).identity


def with_weights(change):
    """Writes a folder's weights anew, `change`d by their names; their shapes stay, and so does the header."""

    def write(base):
        file = base / "model.safetensors"
        tensors, before = load_file(file), file.read_bytes()
        save_file(tensors | change(tensors), file, metadata={"format": "pt"})
        head = 8 + int.from_bytes(before[:8], "little")
        assert file.read_bytes()[:head] == before[:head]
        assert file.read_bytes() != before

    return write


def one_in_a_thousand(tensors):
    torch.manual_seed(0)
    return {name: torch.where(torch.rand(held.shape) < 0.001, held + 0.01, held) for name, held in tensors.items()}


def one_of(part):
    """One tensor changed, and all of it."""

    def change(tensors):
        name = next(name for name in tensors if part in name)
        return {name: tensors[name] * 1.01}

    return with_weights(change)


def in_json(name, **values):
    def write(base):
        file = base / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return write


OTHER = {
    "one matrix": one_of("layers.1.self_attn.q_proj"),
    "one norm": one_of("layers.0.input_layernorm"),
    "the embedding": one_of("embed_tokens"),
    "one number in a thousand": with_weights(one_in_a_thousand),
    "two layers that change places": with_weights(
        lambda tensors: {
            name: tensors[name.replace("layers.0.", "layers.2.")].clone() for name in tensors if "layers.0." in name
        }
    ),
    "config.json": in_json("config.json", rms_norm_eps=0.5),
    "the tokenizer": in_json("tokenizer.json", normalizer={"type": "Lowercase"}),
    "the tokenizer's settings": in_json("tokenizer_config.json", add_bos_token=True),
    "a template": lambda base: (base / "chat_template.jinja").write_text("{{ messages }}"),
}


@pytest.mark.parametrize("whole", [contents.WHOLE, 0], ids=["read whole", "read in samples"])
@pytest.mark.parametrize("change", OTHER)
def test_a_base_that_changed_under_its_name_is_another_run(base, monkeypatch, change, whole):
    monkeypatch.setattr(contents, "WHOLE", whole)
    before = identity(base)
    times = {file: file.stat() for file in base.iterdir()}
    OTHER[change](base)
    for file, stat in times.items():  # nobody goes by them
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert identity(base) != before


def write_again(base):
    for file in base.iterdir():
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)


def put_beside(base):
    (base / "README.md").write_text("A model.")
    (base / "training_args.bin").write_bytes(b"pickled")
    (base / "checkpoint-1").mkdir()


SAME = {
    "touched": lambda base: [os.utime(file, (time.time() + 60,) * 2) for file in base.iterdir()],
    "written again": write_again,
    "with files that no run reads": put_beside,
    "copied": lambda base: shutil.copytree(base, base.parent / "elsewhere"),
    "moved": lambda base: base.rename(base.parent / "elsewhere"),
}


@pytest.mark.parametrize("whole", [contents.WHOLE, 0], ids=["read whole", "read in samples"])
@pytest.mark.parametrize("what", SAME)
def test_a_base_that_holds_what_it_held_is_the_same_run_wherever_it_lies(base, monkeypatch, what, whole):
    monkeypatch.setattr(contents, "WHOLE", whole)
    before = identity(base)
    SAME[what](base)
    elsewhere = base.parent / "elsewhere"
    assert identity(elsewhere if elsewhere.exists() else base) == before


def test_of_a_large_model_a_mebibyte_in_a_row_is_noticed_wherever_it_lies_and_one_number_may_not_be(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(contents, "WHOLE", 0)
    file, size = tmp_path / "model.safetensors", 5 * 2**19 + 6
    found = set()
    for begin, end in [(0, 0), *((at, at + 2**20) for at in range(0, size - 2**20, 2**17)), (size - 1, size)]:
        numbers = torch.zeros(size, dtype=torch.uint8)
        numbers[begin:end] = begin % 251 + 1
        save_file({"weight": numbers, "norm": torch.ones(3)}, file)
        found.add(contents.content(str(tmp_path)))
    assert len(found) == len(range(0, size - 2**20, 2**17)) + 2
    numbers = torch.zeros(size, dtype=torch.uint8)
    numbers[300_000] = 1
    save_file({"weight": numbers, "norm": torch.ones(3)}, file)
    assert contents.content(str(tmp_path)) in found, "as its docstring says"


def test_on_another_base_a_training_begins_says_so_and_loses_nothing_and_on_the_first_it_goes_on(base, capsys):
    weights = base / "model.safetensors"
    first, out = weights.read_bytes(), base.parent / "out"
    assert job(base).run()["resumed_from"] is None
    (folder,) = out.glob("checkpoints-*")
    held = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert "begins from its start" not in capsys.readouterr().out

    OTHER["one number in a thousand"](base)
    assert job(base).run()["resumed_from"] is None
    said = [line for line in capsys.readouterr().out.splitlines() if "begins from its start" in line]
    assert len(said) == 1
    assert f"the checkpoints in {folder}. They are kept; to go on from them, put back what changed" in said[0]
    assert {file: file.read_bytes() for file in held} == held
    assert last_complete_checkpoint(folder)
    assert len(list(out.glob("checkpoints-*"))) == 2
    assert (out / "adapter-1").is_dir(), "the adapter of the first base"

    weights.write_bytes(first)
    base = base.rename(base.parent / "elsewhere")
    assert job(base).run()["resumed_from"] == "checkpoint-2"
    assert "begins from its start" not in capsys.readouterr().out


def test_a_run_that_has_begun_stays_the_one_it_is_when_its_base_is_written_anew(base):
    running = Training(job(base), machine.detect(), [])
    before = running.identity
    OTHER["one matrix"](base)
    assert running.identity == before != identity(base)


# --- a run that is finished ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [4, 3], ids=["within an epoch", "at an epoch's end"])
def test_a_finished_run_takes_no_step_more_and_keeps_or_saves_its_adapter(base, capsys, max_steps):
    rows, out = base.parent / "rows.csv", base.parent / "out"
    rows.write_text("question,answer\n" + "".join(f"What is {n}?,yes {n}\n" for n in range(20)))
    run = job(base, dataset_id=str(rows), batch_size=8, max_steps=max_steps)
    found = run.run()
    adapter = out / "adapter" / "adapter_model.safetensors"
    weights, written = adapter.read_bytes(), adapter.stat().st_mtime_ns
    left = {file.relative_to(out) for file in out.rglob("*")}
    said = f"This training has taken its {max_steps} steps: "
    assert said not in capsys.readouterr().out
    for lost in (None, "adapter", "train.json"):
        if lost == "adapter":
            shutil.rmtree(out / lost)
        elif lost:
            (out / lost).unlink()
        again = run.run()
        assert capsys.readouterr().out.count(said) == 1
        assert again["losses"] == found["losses"]
        assert len(again["losses"]) == max_steps
        assert again["heldout_loss_after"] == found["heldout_loss_after"]
        assert adapter.read_bytes() == weights
        assert {file.relative_to(out) for file in out.rglob("*")} == left
        assert lost or adapter.stat().st_mtime_ns == written


# --- which rows are trained on -------------------------------------------------------------------------------------


def training_on(base, lengths, **more):
    """A training whose rows have questions of so many words, each with words of its own; and its tokenizer."""
    rows = base.parent / "rows.jsonl"
    made = [{"question": f"{n}: " + " ".join(["tree"] * many), "answer": f"yes {n}"} for n, many in enumerate(lengths)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made) + '{"question": "And this?", "answer": ""}\n')
    running = Training(job(base, dataset_id=str(rows), **more), machine.detect(), [])
    tokenizer = AutoTokenizer.from_pretrained(base)
    return running, with_template(tokenizer, "alpaca")


@pytest.mark.parametrize("long", [0.3, 0.7])
@pytest.mark.parametrize("max_steps", [1, 3, 100])
def test_steps_come_to_rows_that_keep_an_answer_before_any_row_is_repeated(base, long, max_steps):
    lengths = [90 if n < 60 * long else n % 9 for n in range(60)]
    running, tokenizer = training_on(base, lengths, max_steps=max_steps)
    rows, said = running.used_rows(tokenizer)
    asked = [row[0]["content"] for row in rows["prompt"]]
    keeps = sum(
        "tree tree tree tree tree tree tree tree tree" not in row for row in running.rows["train"]["instruction"]
    )
    step = running.rows_per_step
    assert len(asked) == len(set(asked)) == min(step * max_steps, keeps // step * step or keeps)
    assert not any(len(question) > 100 for question in asked)
    if max_steps == 100:
        assert f"left out: {len(running.rows['train']) - keeps} of {len(running.rows['train'])} rows" in said[0]


def test_the_rows_left_out_are_those_that_trl_would_leave_out(base):
    running, tokenizer = training_on(base, range(60), max_steps=100)
    kept, step = running.used_rows(tokenizer)[0], running.rows_per_step
    every = running.rows["train"].map(to_chat, remove_columns=running.rows["train"].column_names)
    trainer = running.trainer(running.load(), tokenizer, every)
    assert 0 < len(trainer.train_dataset) // step * step == len(kept) < len(every)


def test_where_no_row_keeps_an_answer_one_line_says_what_to_set(base):
    running, tokenizer = training_on(base, [70 + n for n in range(20)])
    with pytest.raises(
        CourseError, match=r"none of the 18 rows can be learned: max_length = 64 .* takes (\d+) tokens"
    ) as said:
        running.run()
    shortest = int(re.search(r"takes (\d+)", str(said.value))[1])
    running.settings.max_length = shortest
    with pytest.raises(CourseError, match="none of the 18 rows"):
        running.used_rows(tokenizer)
    running.settings.max_length = shortest + 1
    assert len(running.used_rows(tokenizer)[0]) == 1


def test_what_was_understood_of_the_rows_and_left_out_is_said(base, capsys):
    running, _ = training_on(base, [*range(10), *[90] * 10], max_steps=1, batch_size=10)
    wanted = "rows: 21 read, 20 to use, 1 left out"
    assert wanted in running.outlook()
    found = running.run()
    assert found["heldout_loss_after"] < found["heldout_loss_before"], "a single step has a learning rate, too"
    said = capsys.readouterr().out.splitlines()
    assert wanted in said
    assert any(line.startswith("left out: ") and "max_length = 64 leaves nothing" in line for line in said)
    assert any(line.startswith("left out: ") and "max_length" not in line for line in said)


# --- the template --------------------------------------------------------------------------------------------------

TEMPLATES = {
    "same": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "changed": "{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}",
}


def identity_in_a_lesson(template) -> dict:
    settings = SimpleNamespace(template=template, rank=4)
    return session.Run("03_t4_training", Path(), {}, settings=settings, model=bundled()).identity


def identity_in_a_file(template) -> dict:
    return Training(job(template.parent / "mine", template=str(template)), machine.detect(), []).identity


@pytest.mark.parametrize("text", TEMPLATES)
@pytest.mark.parametrize("of", [identity_in_a_file, identity_in_a_lesson])
def test_a_template_that_changed_is_another_run_and_one_that_moved_is_not(base, of, text):
    template = base.parent / "mine.jinja"
    template.write_text(TEMPLATES["same"])
    before = of(template)
    template.write_text(TEMPLATES[text])
    assert (of(template) == before) == (text == "same")
    if of is identity_in_a_file:
        template = template.rename(base.parent / "moved.jinja")
        assert (of(template) == before) == (text == "same")


def test_a_run_that_has_begun_stays_the_one_it_is_when_its_template_is_written_anew(base):
    template = base.parent / "mine.jinja"
    template.write_text(TEMPLATES["same"])
    running = Training(job(base, template=str(template)), machine.detect(), [])
    lesson = session.Run("03_t4_training", Path(), {}, settings=running.settings, model=bundled())
    before = running.identity, lesson.identity
    template.write_text(TEMPLATES["changed"])
    assert (running.identity, lesson.identity) == before


@pytest.mark.parametrize(("rows", "left"), [(16, 0), (18, 2), (23, 7)])
def test_a_pass_over_few_rows_has_whole_steps_and_what_is_left_out_is_said(base, rows, left):
    running, tokenizer = training_on(base, [3] * 40, batch_size=4, gradient_accumulation=2, max_steps=9)
    running.rows["train"] = running.rows["train"].select(range(rows))
    kept, said = running.used_rows(tokenizer)
    assert len(kept) == rows - left
    assert said == ([f"left out: {left} of {rows} rows, so that all steps have 8"] if left else [])


def test_fewer_rows_than_a_step_takes_are_one_gpus_alone(base):
    running, tokenizer = training_on(base, [3] * 7, batch_size=4, gradient_accumulation=2)
    assert len(running.used_rows(tokenizer)[0]) == 6
    running.way = Way("ddp", 2)
    with pytest.raises(CourseError, match="a step takes 16 rows, and there are 6: lower batch_size"):
        running.used_rows(tokenizer)


def test_what_waits_in_the_computers_memory_needs_a_gpu(base):
    with pytest.raises(CourseError, match="checkpointing is 'offload', which needs a GPU"):
        Training(job(base, checkpointing="offload"), machine.detect(), []).run()
    with pytest.raises(CourseError, match='checkpointing = "offload" needs a GPU'):
        plan_training(
            bundled(), machine.detect(), SimpleNamespace(**recipe_for(bundled()) | {"checkpointing": "offload"}), {}
        )


def test_a_model_that_no_formula_describes_is_trained_all_the_same(base):
    in_json("config.json", model_type="mixtral", num_local_experts=2)(base)
    running = Training(job(base), machine.detect(), [])
    assert "memory: no prediction (" in running.outlook()
    assert running.way == Way("one")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_held_out_loss_takes_no_more_rows_at_once_than_the_training(base, batch_size):
    training = Training(job(base, batch_size=batch_size, eval_rows=16), machine.detect(), [])
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).eval()
    at_once: list[int] = []
    model.register_forward_pre_hook(lambda _, ids: at_once.append(len(ids[0])))
    training.heldout_loss(model, tokenizer)
    assert sum(at_once) == 16
    assert max(at_once) <= batch_size
