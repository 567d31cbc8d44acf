"""A RunSpec that cannot be is refused, by field and value."""

import dataclasses

import pytest

from helpers.memory import CannotPredict, RunSpec, predict
from tests.memory.cases import LEAN, MISTRAL, ROWS

BAD_SPECS = [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"seq_len": 1.5}, "seq_len is 1.5"),
    ({"rank": 2000}, "rank 2000 is above k_proj's size, 1024"),
    ({"rank": 0}, "rank is 0"),
    ({"rank": None}, "rank is None with quant_type 'nf4'"),
    ({"rank": None, "quant_type": None}, "float16"),
    ({"target_modules": ["qkv"]}, "target_modules has 'qkv'"),
    ({"target_modules": []}, "target_modules is empty"),
    ({"adapter_dtype": None}, "adapter_dtype is None"),
    ({"quant_type": "nf3"}, "quant_type is 'nf3'"),
    ({"optimizer": "lion"}, "optimizer is 'lion'"),
    ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
    ({"checkpoint_every": -1}, "checkpoint_every is -1"),
    ({"checkpoint_every": 0, "checkpoint_offload": True}, "checkpoint_offload is True with checkpoint_every 0"),
    ({"quant_type": None, "upcast_non_quantized": True}, "upcast_non_quantized is True with quant_type None"),
    ({"ranks": 8}, "no field 'ranks'"),
    ({"lora_dropout": "0.1"}, "lora_dropout is '0.1'"),
    ({"lora_dropout": float("nan")}, "lora_dropout is nan"),
    ({"target_modules": 5}, "target_modules is 5"),
    ({"target_modules": [["q_proj"]]}, "target_modules is (['q_proj'],)"),
    ({"double_quant": "no"}, "double_quant is 'no'; it must be True or False"),
    (8, "8 is no RunSpec"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SPECS, ids=[message for _, message in BAD_SPECS])
def test_an_impossible_run_is_refused_by_field_and_value(change, message):
    with pytest.raises(CannotPredict) as caught:
        predict(MISTRAL, change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gemma_without_eager_attention_is_refused():
    gemma = next(row["config"] for row in ROWS if row["config"]["model_type"] == "gemma2")
    with pytest.raises(CannotPredict, match="soft cap only in 'eager'"):
        predict(gemma, LEAN)


def test_an_unknown_gpu_is_refused():
    with pytest.raises(CannotPredict, match="gpu: 'k80' is not known"):
        predict(MISTRAL, LEAN, "k80")


def test_a_t4_is_never_given_flash_attention():
    long = dataclasses.replace(LEAN, batch_size=1, seq_len=2048)
    assert predict(MISTRAL, long, "t4").peak_allocated > 1.2 * predict(MISTRAL, long, "l4").peak_allocated


def test_fused_lora_keeps_no_norms_output_and_changes_nothing_where_it_does_not_apply():
    shape = ROWS[0]["config"]
    spec = RunSpec(checkpoint_every=0, lora_dropout=0.0, layer_kernels="liger", seq_len=2048)
    plain, fused = (predict(shape, dataclasses.replace(spec, fused_lora=on)).peak_allocated for on in (False, True))
    norms = 2 * shape["num_hidden_layers"] * 2048 * shape["hidden_size"] * 2  # two a layer, two bytes a value
    assert plain - fused > 0.9 * norms
    for change in ({"lora_dropout": 0.05}, {"quant_type": None}, {"upcast_non_quantized": True}):
        one, other = (
            predict(shape, dataclasses.replace(spec, fused_lora=on, **change)).peak_allocated for on in (False, True)
        )
        assert one == other
