"""A training process is killed and its run goes on from the last whole checkpoint, to the very same adapter."""

import ast
import contextlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest

from helpers import COURSE_ROOT
from helpers.data import load_instructions
from helpers.files import safetensors_header
from helpers.machine import detect
from helpers.models import bundled
from helpers.quick import train_adapter
from helpers.saving import checkpoint_fault, last_complete_checkpoint
from helpers.training import Cures, stop_at_max_steps
from tests.saving.cutting import cut

STEPS, EVERY = 10, 2
RUN = f"""
import sys
from pathlib import Path
from helpers.data import load_instructions
from helpers.machine import detect
from helpers.models import bundled
from helpers.quick import train_adapter

rows = load_instructions("bundled")[0]["train"].select(range(32))
where = Path(sys.argv[1])
result = train_adapter(bundled(), detect(), rows, where, steps={STEPS}, batch_size=4, lora_dropout=0.1, save_steps={EVERY})
print(result["resumed_from"])
"""


def start(folder):
    with open(folder.with_suffix(".log"), "w") as log:
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=COURSE_ROOT, stdout=log, stderr=log)


def finish(folder):
    """Run to the end; returns the name of the checkpoint it went on from, or "None"."""
    code = start(folder).wait(timeout=300)
    said = folder.with_suffix(".log").read_text()
    assert code == 0, said[-2000:]
    return said.split()[-1]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(adapter of an uninterrupted run, folder of a run whose process was killed after its second checkpoint)."""
    folder = tmp_path_factory.mktemp("resume")
    assert finish(folder / "whole") == "None"
    child, checkpoint = start(folder / "killed"), folder / "killed-checkpoints" / f"checkpoint-{2 * EVERY}"
    end = time.monotonic() + 300
    while checkpoint_fault(checkpoint) is not None:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    return folder / "whole", folder / "killed"


def test_a_killed_run_resumes_to_the_bit_identical_adapter(killed, tmp_path):
    whole, folder = killed
    assert not folder.exists(), "killed before the adapter was saved"
    checkpoints = folder.with_name("killed-checkpoints")
    resumed_from = last_complete_checkpoint(checkpoints)
    assert 0 < int(resumed_from.name.split("-")[1]) < STEPS
    shutil.copytree(checkpoints, tmp_path / "killed-checkpoints")
    assert finish(tmp_path / "killed") == resumed_from.name
    assert not (tmp_path / "killed-checkpoints").exists(), "a finished run leaves none behind"
    weights = [(f / "adapter_model.safetensors").read_bytes() for f in (whole, tmp_path / "killed")]
    assert weights[0] == weights[1]


CUT = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def checkpoints(killed, tmp_path):
    """A folder with the whole checkpoint-2 and checkpoint-4 of the killed run."""
    for step in (2, 4):
        shutil.copytree(
            killed[1].with_name("killed-checkpoints") / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}"
        )
    return tmp_path


def test_the_newest_whole_checkpoint_is_taken_by_number_not_by_name(checkpoints):
    assert last_complete_checkpoint(checkpoints).name == "checkpoint-4"
    state = json.loads((checkpoints / "checkpoint-4" / "trainer_state.json").read_text())
    (checkpoints / "checkpoint-4").rename(checkpoints / "checkpoint-10")
    assert last_complete_checkpoint(checkpoints).name == "checkpoint-2", "its state says another step than its name"
    (checkpoints / "checkpoint-10" / "trainer_state.json").write_text(json.dumps(state | {"global_step": 10}))
    assert last_complete_checkpoint(checkpoints).name == "checkpoint-10"


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("keep", [None, 0.0, 0.5, 0.98])
def test_a_half_written_checkpoint_is_passed_over(checkpoints, name, keep):
    cut(checkpoints / "checkpoint-4" / name, keep)
    fault = checkpoint_fault(checkpoints / "checkpoint-4")
    assert name in fault
    assert ("missing" if keep is None else "cut off") in fault
    assert last_complete_checkpoint(checkpoints).name == "checkpoint-2"


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "not there") is None


def test_transformers_reads_a_checkpoints_pickles_as_tensors_only():
    """optimizer.pt and its like are pickles; torch.load(weights_only=True) refuses everything but tensors and plain types."""
    from transformers import Trainer

    for method in (Trainer._load_rng_state, Trainer._load_optimizer_and_scheduler, Trainer._load_scaler):
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
        given = [{k.arg: ast.unparse(k.value) for k in call.keywords} for call in calls]
        assert given, method.__name__
        assert all(keywords.get("weights_only") == "True" for keywords in given), method.__name__


def test_the_header_of_a_safetensors_file_ends_where_the_tensors_begin(killed):
    from safetensors.numpy import load_file

    file = killed[0] / "adapter_model.safetensors"
    begin, header = safetensors_header(file)
    tensors = load_file(file)
    assert set(header) - {"__metadata__"} == set(tensors)
    assert file.stat().st_size == begin + sum(t.nbytes for t in tensors.values())


# --- a run that had taken its last step ----------------------------------------------------------------------------


def trainer_of(folder, rows: int, max_steps: int, accumulation: int = 1):
    """transformers' own trainer of a model with one number, which saves each of its steps."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class OneNumber(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.number = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, labels):
            return {"loss": ((self.number - labels) ** 2).mean()}

    arguments = TrainingArguments(
        str(folder), max_steps=max_steps, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
        save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    data = [{"x": torch.zeros(1), "labels": torch.ones(1) * n} for n in range(rows)]
    trainer = Trainer(OneNumber(), arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    return trainer


SPLIT = [(6, 4, 1), (6, 3, 1), (6, 5, 1), (14, 3, 2), (14, 6, 2), (3, 7, 4)]  # rows, steps, batches to a step


@pytest.mark.parametrize(("rows", "steps", "accumulation"), SPLIT)
@pytest.mark.parametrize("back", [0, 1], ids=["from its last step", "from the step before"])
def test_a_run_that_goes_on_ends_at_max_steps_wherever_its_epoch_ends(tmp_path, rows, steps, accumulation, back):
    first = trainer_of(tmp_path, rows, steps, accumulation)
    assert first.train().global_step == steps
    again = stop_at_max_steps(trainer_of(tmp_path, rows, steps, accumulation))
    assert again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps - back}")).global_step == steps
    assert again.model.number.item() == first.model.number.item()
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [
        entry["step"] for entry in first.state.log_history if "loss" in entry
    ]


def test_transformers_takes_a_step_too_many(tmp_path, still_needed):
    trainer_of(tmp_path, 6, 4).train()
    beyond = trainer_of(tmp_path, 6, 4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4")).global_step
    still_needed(beyond > 4, "transformers ends where max_steps says: drop stop_at_max_steps")


@pytest.mark.parametrize("plain", [True, False])
def test_lesson_03_takes_no_step_too_many(tmp_path, plain):
    trainer_of(tmp_path, 6, 4).train()
    plan = SimpleNamespace(
        plain=plain, max_tokens=None, guarded=contextlib.nullcontext, record_graphs=lambda *words: False
    )
    again = trainer_of(tmp_path, 6, 4)
    with Cures(plan, None, "a model").while_training(again):
        assert again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4")).global_step == 4


def test_a_training_that_writes_no_checkpoints_deletes_no_folder_of_their_name(tmp_path):
    (tmp_path / "adapter-checkpoints").mkdir()
    (tmp_path / "adapter-checkpoints" / "hers.txt").write_text("hers")
    rows = load_instructions("bundled")[0]["train"].select(range(4))
    train_adapter(bundled(), detect(), rows, tmp_path / "adapter", steps=1, batch_size=2)
    assert [file.name for file in (tmp_path / "adapter-checkpoints").iterdir()] == ["hers.txt"]
