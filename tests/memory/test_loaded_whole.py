"""Divided weights: each GPU quantizes all of the model before it keeps its part, so all of it has to fit each of them."""

import dataclasses
import json

import pytest

from helpers.__main__ import main
from helpers.memory import GPUS, DoesNotFit, RunSpec, fits, plan, predict
from helpers.memory.planner import SPARE
from tests.memory.cases import MISTRAL

LARGE = {
    "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 5120, "intermediate_size": 27_648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
SPEC = RunSpec(rank=8, optimizer="adamw_torch", repeat_kv=True)
TRAINS = "its training alone would fit"


@pytest.mark.parametrize("gpus", [3, 4, 16])
@pytest.mark.parametrize(("gpu", "large", "middling"), [("t4", False, True), ("l4", True, True), ("h100", True, True)])
def test_all_of_the_model_has_to_fit_each_gpu(gpu, gpus, large, middling):
    for config, wanted in ((LARGE, large), (MISTRAL, middling)):
        found = predict(config, SPEC, gpu, gpus, "fsdp2")
        assert found.held_bytes(gpu) < GPUS[gpu].total_bytes, TRAINS
        assert fits(found, gpu) == wanted
        assert bool(found.why_not_loaded(gpu, GPUS[gpu].total_bytes)) == (not wanted)


def test_the_border_lies_where_the_whole_model_and_the_context_do():
    found = predict(LARGE, SPEC, "t4", 4, "fsdp2")
    needed = (found.whole_bytes + GPUS["t4"].context_bytes) / (1 - SPARE)
    assert fits(found, "t4", needed + 1)
    assert not fits(found, "t4", needed - 1)
    assert found.why_not_loaded("t4", needed + 1) == ""
    assert found.why_not_loaded("t4", needed - 1).startswith("each GPU quantizes all of the model, ")


@pytest.mark.parametrize("way", ["split", "ddp"])
def test_no_other_way_loads_more_than_it_keeps(way):
    found = predict(MISTRAL, SPEC, "t4", 2, way)
    assert found.whole_bytes == 0
    assert not fits(found, "t4", found.peak_allocated // 2)
    assert found.why_not_loaded("t4", found.peak_allocated // 2) == ""


def test_a_run_whose_training_does_not_fit_either_is_not_blamed_on_loading():
    spec = dataclasses.replace(SPEC, batch_size=64, seq_len=2048)
    found = predict(LARGE, spec, "t4", 4, "fsdp2")
    assert not fits(found, "t4")
    assert found.why_not_loaded("t4", GPUS["t4"].total_bytes) == ""


@pytest.mark.parametrize("choices", [None, {"batch_size": (1, 2)}, {"double_quant": (True, False)}], ids=str)
def test_no_plan_has_divided_weights_that_cannot_be_loaded(choices):
    total = GPUS["t4"].total_bytes
    with pytest.raises(DoesNotFit, match="the weights alone take|while each GPU quantizes all of the model"):
        plan(LARGE, total, SPEC, choices, gpus=4, way="fsdp2")
    assert plan(LARGE, 2 * total, SPEC, choices, gpus=4, way="fsdp2").prediction.whole_bytes > total


@pytest.mark.parametrize("gpus", ["3", "4"])
def test_the_command_says_what_the_training_would_say(tmp_path, capsys, gpus):
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    words = ["memory", "predict", str(tmp_path), "--gpus", gpus, "--way", "fsdp2"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert next(line for line in said if " t4: " in line).startswith("does not fit t4: ")
    assert any(line.startswith("why: each GPU quantizes all of the model, 1") for line in said)
    assert main([*words, "--plan"]) == 2
    assert main([*words, "--gpu", "l4"]) == 0
    assert "why: " not in capsys.readouterr().out
