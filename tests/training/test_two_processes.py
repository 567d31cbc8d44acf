"""Training in several ways, on a CPU: two processes stand in for two GPUs. tests/gpu/test_several.py has the GPUs.

All trainings of two processes go through one pair of them, one after the other; starting a pair takes longer than training.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from helpers.memory import RunSpec, predict
from helpers.models import BUNDLED_MODEL, PRESETS
from helpers.training import Way
from helpers.training.several import SeveralError
from tests.training.several_job import train as train_here
from tests.training.several_runs import SeveralRun, apart, gradients_apart

LORA = {"max_steps": 4, "save_steps": 2, "rows_per_step": 8, "eval_rows": 16, "rank": 4, "learning_rate": 2e-3}
# Of rows with 43 to 70 tokens one or two go through at once.
CUT = {"padding_free": True, "rows_per_step": 2, "gradient_accumulation": 4, "max_length": 100}
PAIRS = {
    "accelerate as it is": ("fsdp2", "accelerate as it is"),  # the first: what the engine changes holds for a whole process
    "ddp": ("ddp", ""),
    "fsdp2": ("fsdp2", ""),
    "padding-free": ("ddp", "", CUT),
    "no all-reduce": ("ddp", "no all-reduce"),
    "state without adapters": ("fsdp2", "state without adapters"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def pairs(folder):
    """(runs, what each kept, what ddp and fsdp2 kept when they went on from their last checkpoint but one)."""
    runs = {
        name: SeveralRun(folder / name.replace(" ", "-"), way, fault, **LORA | dict(*more))
        for name, (way, fault, *more) in PAIRS.items()
    }
    runs |= {f"few rows, {way}": SeveralRun(folder / f"few-{way}", way, **few_rows(folder)) for way in ("ddp", "fsdp2")}
    again = {name: runs[name] for name in ("ddp", "fsdp2", "padding-free")}
    words = [run.word for run in runs.values()] + [f"{run.config}=resumed" for run in again.values()]
    assert runs["ddp"].start(words).wait(timeout=900) == 0, runs["ddp"].said()[-4000:]
    return runs, {n: run.kept() for n, run in runs.items()}, {n: run.kept("resumed") for n, run in again.items()}


def few_rows(folder) -> dict:
    """Settings of a training that sees its 18 rows more than once, in steps of 8."""
    rows = folder / "few.csv"
    rows.write_text("question,answer\n" + "".join(f"What is {n}?,yes {n}\n" for n in range(20)))
    return LORA | {"dataset_id": str(rows), "max_steps": 5, "save_steps": 5, "gradient_accumulation": 1, "eval_rows": 2}


@pytest.fixture(scope="module")
def one_of_few(folder):
    run = SeveralRun(folder / "few-one", "one", **few_rows(folder))
    train_here(run.config, "")
    return run.kept()


@pytest.fixture(scope="module")
def one(folder):
    run = SeveralRun(folder / "one", "one", **LORA)
    train_here(run.config, "")
    return run, run.kept()


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "padding-free"])
def test_the_gradients_of_two_processes_are_those_of_one_on_the_same_rows(pairs, one, way):
    two = pairs[1][way]
    assert two["found"]["rows_per_step"] == one[1]["found"]["rows_per_step"] == 8
    assert gradients_apart(one[1], two) < 1e-3
    assert two["found"]["losses"] == pytest.approx(one[1]["found"]["losses"], rel=1e-4)
    assert two["found"]["heldout_loss_after"] == pytest.approx(one[1]["found"]["heldout_loss_after"], rel=1e-3)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_each_step_has_the_rows_of_one_gpus_also_where_rows_come_again(pairs, one_of_few, way):
    two = pairs[1][f"few rows, {way}"]
    assert len(two["gradients"]) == len(one_of_few["gradients"]) == 5
    assert gradients_apart(one_of_few, two) < 1e-3
    assert two["found"]["losses"] == pytest.approx(one_of_few["found"]["losses"], rel=1e-4)


def test_processes_without_padding_cut_their_batches_into_as_many_pieces_as_the_one_that_needs_most(pairs):
    first, second = pairs[1]["padding-free"]["pieces"]
    needed = [pair[::2] for pair in (first, second)]
    together = [pair[1::2] for pair in (first, second)]
    assert len(needed[0]) == 4, "a batch in each step"
    assert needed[0] != needed[1]
    assert together[0] == together[1] == [max(pair) for pair in zip(*needed, strict=True)]


def test_without_the_all_reduce_they_are_not(pairs, one):
    assert gradients_apart(one[1], pairs[1]["no all-reduce"]) > 1e-2


def test_under_fsdp2_every_weight_lies_in_parts(pairs):
    assert pairs[1]["ddp"]["divided"] == 0
    assert pairs[1]["fsdp2"]["divided"] > 84 + 42  # the adapters' matrices, and the layers' 4-bit weights


def test_what_would_not_be_divided_on_a_cpu_says_so(pairs, still_needed):
    """accelerate drops FSDP where there is no GPU, without a word."""
    said = pairs[1]["accelerate as it is"]["found"].get("error", "")
    still_needed("would not divide" in said, "accelerate divides on a CPU: drop divide_on_a_cpu")


def test_an_adapter_that_would_be_saved_without_its_tensors_stops_the_run_before_its_first_step(pairs):
    run, kept = pairs[0]["state without adapters"], pairs[1]["state without adapters"]
    assert "without 84 of its 84 tensors" in kept["found"]["error"]
    assert "FSDP1" in kept["found"]["error"]
    assert kept["gradients"] == []
    assert not (run.folder / "adapter").exists()


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "padding-free"])
def test_the_adapter_has_the_names_and_shapes_of_one_gpus(pairs, one, way):
    assert pairs[0][way].tensors() == one[0].tensors()
    assert len(one[0].tensors()) == 84


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "padding-free"])
def test_a_run_goes_on_from_its_last_whole_checkpoint(pairs, way):
    whole, resumed = pairs[1][way], pairs[2][way]
    assert (whole["found"]["resumed_from"], resumed["found"]["resumed_from"]) == (None, "checkpoint-2")
    assert len(resumed["adapters"]) == 2
    assert apart(whole["adapters"][-1], resumed["adapters"][-1]) < 1e-5


# --- the way, without a training -----------------------------------------------------------------------------------


def test_a_split_puts_norm_and_head_with_the_last_layers_and_a_tied_head_with_the_embedding():
    way = Way("split", 2, (1, 2))
    assert way.device_map(3, tied=False) == {
        "model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1,
        "model.norm": 1, "lm_head": 1,
    }  # fmt: skip
    assert way.device_map(3, tied=True)["lm_head"] == 0
    assert Way("ddp", 2).device_map(3, False, rank=1) == {"": 1}
    assert way.device_map(3, False, device="cpu") == {"": "cpu"}


def test_a_split_without_shares_has_those_that_memory_says():
    spec = RunSpec(rank=8)
    large = PRESETS["qwen2.5-7b"].shape
    assert Way("split", 2).with_layers(large, spec, "t4").layers == predict(large, spec, "t4", 2, "split").layers
    assert Way("split", 2, (5, 23)).with_layers(large, spec, "t4").layers == (5, 23)
    assert Way("ddp", 2).with_layers(large, spec, "t4").layers == ()
    assert Way("split", 3).with_layers(large, RunSpec(quant_type=None), "t4").layers == (9, 9, 10)  # not predicted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("dp", 2), "way is 'dp'; it can be one, ddp, split, fsdp2"),
        (("one", 2), "one goes with 1"),
        (("ddp", 1), "one goes with 1"),
        (("split", 2, (3,)), "a split gives at least one"),
        (("split", 2, (6, 0)), "a split gives at least one"),
        (("split", 3, (3, 3)), "a split gives at least one"),
        (("ddp", 2, (3, 3)), r"layers is \[3, 3\] with way 'ddp'; only a split divides layers"),
        (("fsdp2", 2, (6,)), "with way 'fsdp2'; only a split divides layers"),
        (("one", 1, (6,)), "with way 'one'; only a split divides layers"),
    ],
)
def test_an_impossible_way_says_what_is_possible(given, said):
    with pytest.raises(SeveralError, match=said):
        Way(*given)


@pytest.mark.parametrize("gpus", [7, 16])
def test_more_gpus_than_layers_say_so(gpus):
    with pytest.raises(SeveralError, match=f"gpus is {gpus} with way 'split', and the model has 6 layers"):
        Way("split", gpus).with_layers(str(BUNDLED_MODEL), RunSpec(rank=8), "t4")


def test_shares_that_are_not_the_models_layers_say_so():
    with pytest.raises(SeveralError, match=r"\[3, 4\], 7 in all; the model has 6"):
        Way("split", 2, (3, 4)).device_map(6, False)


def test_one_process_is_started_by_python_and_several_by_accelerates_launcher():
    assert Way().command("a.py", "b") == [sys.executable, "a.py", "b"]
    assert Way("split", 2, (1, 1)).command("a.py") == [sys.executable, "a.py"]
    command = Way("fsdp2", 2).command("-m", "helpers")
    assert command[1:4] == ["-m", "accelerate.commands.launch", "--multi_gpu"]
    assert json.loads(Path(command[command.index("--config_file") + 1]).read_text()) == {
        "distributed_type": "MULTI_GPU"
    }
    assert command[command.index("--num_processes") + 1] == "2"


def test_only_fsdp2_stores_four_bit_weights_as_floats():
    assert Way("fsdp2", 2).quantization(torch.float16) == {"bnb_4bit_quant_storage": torch.float16}
    assert Way("ddp", 2).quantization(torch.float16) == {}
