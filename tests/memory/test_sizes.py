"""Sizes of what stays, against the libraries that make it."""

import dataclasses

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import quantize_4bit

from helpers.memory import RunSpec, predict, shape_of
from helpers.memory.labels import CODES, SCALES, STATES
from helpers.memory.shapes import Linear
from helpers.memory.sizes import arrivals, blocks, state_bytes, weight_bytes
from tests.memory.cases import MISTRAL


def test_quantized_layout_is_that_of_bitsandbytes():
    codes, state = quantize_4bit(torch.randn(1024, 512), blocksize=64, compress_statistics=True, quant_type="nf4")
    tensors = (state.absmax, state.state2.absmax, state.state2.code, state.offset, state.code)
    staying = [(label, size) for label, size, stays in arrivals(Linear("q_proj", 512, 1024), "nf4", True) if stays]
    assert [size for label, size in staying if label == CODES] == [codes.numel() * codes.element_size()]
    scales = sorted(size for label, size in staying if label == SCALES)
    assert scales == sorted(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_weights_are_those_of_the_layers_times_their_number():
    shape = shape_of(MISTRAL)
    one = dataclasses.replace(shape, layers=1)
    for label in (CODES, SCALES):
        assert weight_bytes(shape, "nf4", True)[label] == shape.layers * weight_bytes(one, "nf4", True)[label] > 0


@pytest.mark.parametrize("size", [4095, 4096, 65536])
@pytest.mark.parametrize(("optimizer", "bits"), [("adamw_8bit", 8), ("paged_adamw_32bit", 32)])
def test_optimizer_states_are_those_of_bitsandbytes(size, optimizer, bits):
    parameter = torch.nn.Parameter(torch.zeros(size))
    parameter.grad = torch.ones(size)
    adam = bitsandbytes.optim.AdamW([parameter], optim_bits=bits)
    adam.step()
    states = [x for name, x in adam.state[parameter].items() if torch.is_tensor(x) and not name.startswith("qmap")]
    expected = blocks(*(x.numel() * x.element_size() for x in states))
    assert state_bytes((size,), optimizer, 4) == expected


def test_an_embedding_keeps_32_bit_states_under_8_bit_adam(tmp_path):
    """transformers sees to it; when it stops, helpers/memory/replay.py is to follow."""
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    options = {"output_dir": str(tmp_path), "optim": "adamw_8bit", "use_cpu": True, "report_to": []}
    optimizer = Trainer(model=model, args=TrainingArguments(**options)).create_optimizer()
    for parameter in model.parameters():
        parameter.grad = parameter.data
    optimizer.step()
    made = {}
    for name, parameter in model.named_parameters():
        keys = ("state1", "state2", "absmax1", "absmax2")
        made[name] = sum(x.numel() * x.element_size() for k, x in optimizer.state[parameter].items() if k in keys)
    assert made["model.embed_tokens.weight"] == 2 * 4 * 300 * 64
    assert made["lm_head.weight"] < made["model.embed_tokens.weight"] / 3
    spec = RunSpec(quant_type=None, rank=None, load_dtype="bfloat16", compute_dtype="bfloat16", optimizer="adamw_8bit")
    assert predict(config, spec).parts[STATES] == sum(made.values())


def test_states_of_100_000_elements_and_more_are_paged_away():
    assert state_bytes((99_999,), "paged_adamw_32bit", 4) > 0
    assert state_bytes((100_000,), "paged_adamw_32bit", 4) == 0
    assert state_bytes((100_000,), "adamw_8bit", 4) > 0
