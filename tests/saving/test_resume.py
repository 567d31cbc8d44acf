"""A training process is killed and its run goes on from the last whole checkpoint, to the very same adapter."""

import ast
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from helpers import COURSE_ROOT
from helpers.files import safetensors_header
from helpers.saving import checkpoint_fault, last_complete_checkpoint
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
