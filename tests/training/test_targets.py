"""target_modules that a model has only in part are refused in one line, by the command and by lesson 03."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from helpers import CourseError
from helpers.commands import _training
from helpers.training import Cures, require_targets

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
PHI3 = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 2}


def model(kind):
    return AutoModelForCausalLM.from_config(kind(**SIZES | (PHI3 if kind is Phi3Config else {})))


@pytest.mark.parametrize(
    ("kind", "named", "missing"),
    [
        (Phi3Config, "q_proj,k_proj,v_proj,o_proj", "q_proj, k_proj, v_proj"),
        (Phi3Config, "o_proj,up_proj", "up_proj"),
        (Phi3Config, "q_proj", "q_proj"),
        (LlamaConfig, "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", ""),
        (Phi3Config, "o_proj,down_proj", ""),
        (Phi3Config, "all-linear", ""),
    ],
)
def test_a_name_that_is_no_layer_is_refused_before_training(kind, named, missing):
    held = model(kind)
    cures = Cures(SimpleNamespace(plain=True, record_graphs=lambda *words: False), None, "a model", targets=named)
    for check in (lambda: require_targets(held, named), lambda: cures.after_loading(held)):
        if not missing:
            check()
            continue
        with pytest.raises(
            CourseError, match=f"^target_modules names {missing}, .* only down_proj, gate_up_proj, o_proj, qkv_proj"
        ):
            check()


def test_the_command_asks_when_it_has_loaded(monkeypatch):
    held = model(Phi3Config)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *words, **more: held)
    settings = SimpleNamespace(quant_type="nf4", double_quant=True, target_modules="q_proj,o_proj")
    way = SimpleNamespace(name="one", quantization=lambda dtype: {}, device_map=lambda *words: None)
    here = SimpleNamespace(torch_dtype=torch.float32, device="cpu", native_bfloat16=True)
    running = SimpleNamespace(settings=settings, way=way, here=here, gpus=[], model=SimpleNamespace(path="p"))
    with pytest.raises(CourseError, match="target_modules names q_proj"):
        _training.Training.load(running)
