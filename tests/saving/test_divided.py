"""Checkpoints of several processes: whole only if every process's own file is there and whole."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from helpers.saving import checkpoint_fault, last_complete_checkpoint
from tests.saving.cutting import cut

OF_EACH = ["rng_state_{}.pth", "parts_{}.safetensors"]


@pytest.fixture
def checkpoints(tmp_path):
    """checkpoint-2 and checkpoint-4 of two processes whose weights were divided."""
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"a": torch.zeros(64)}, folder / "adapter_model.safetensors")
        for rank in range(2):
            save_file({"1.exp_avg": torch.zeros(64)}, folder / f"parts_{rank}.safetensors")
            with zipfile.ZipFile(folder / f"rng_state_{rank}.pth", "w") as file:
                file.writestr("data", "0" * 100)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return tmp_path


def test_a_whole_one_is_taken_by_as_many_processes_as_wrote_it(checkpoints):
    assert checkpoint_fault(checkpoints / "checkpoint-4", 2) is None
    assert last_complete_checkpoint(checkpoints, 2).name == "checkpoint-4"
    assert "missing" in checkpoint_fault(checkpoints / "checkpoint-4", 3)
    assert last_complete_checkpoint(checkpoints, 1) is None


@pytest.mark.parametrize("name", [one.format(rank) for one in OF_EACH for rank in range(2)])
@pytest.mark.parametrize("keep", [None, 0.0, 0.5, 0.98])
def test_a_process_that_had_not_written_its_own_file_is_noticed(checkpoints, name, keep):
    cut(checkpoints / "checkpoint-4" / name, keep)
    fault = checkpoint_fault(checkpoints / "checkpoint-4", 2)
    assert name in fault
    assert ("missing" if keep is None else "cut off") in fault
    assert last_complete_checkpoint(checkpoints, 2).name == "checkpoint-2"
