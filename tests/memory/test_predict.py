"""What must be so of any prediction: more of it takes more, and it takes a tenth of a second."""

import dataclasses
import subprocess
import sys

import pytest

from helpers import COURSE_ROOT
from helpers.memory import RunSpec, predict
from helpers.models import PRESETS
from tests.memory.cases import LEAN, MISTRAL, forget
from tests.pace import paces


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("batch_size", [1, 2, 4, 8, 16]),
        ("seq_len", [256, 512, 1024, 2048, 4096, 8192]),
        ("rank", [4, 8, 16, 32, 64, 128]),
        ("checkpoint_every", [1, 2, 3, 4, 8, 0]),
        ("upcast_non_quantized", [False, True]),
        ("optimizer", ["paged_adamw_8bit", "adamw_8bit", "adamw_torch"]),
        ("double_quant", [True, False]),
        ("checkpoint_offload", [True, False]),
        ("layer_kernels", ["liger", None]),
    ],
)
def test_more_of_it_never_takes_less_memory(field, values):
    peaks = [predict(MISTRAL, dataclasses.replace(LEAN, **{field: value})).peak_allocated for value in values]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]


@pytest.mark.parametrize(
    ("field", "values"), [("vocab_size", [32000, 64000, 128256]), ("num_hidden_layers", [16, 32, 48])]
)
def test_a_larger_model_never_takes_less_memory(field, values):
    peaks = [predict({**MISTRAL, field: value}, LEAN).peak_allocated for value in values]
    assert peaks == sorted(set(peaks))


def test_repeating_keys_and_values_spares_a_t4_the_quadratic_kernel():
    # Just under the sliding window: from 4,096 tokens on, the mask makes transformers repeat them anyway.
    long = dataclasses.replace(LEAN, batch_size=1, seq_len=4000, attention_kernels="t4")
    shared, repeated = (
        predict(MISTRAL, dataclasses.replace(long, repeat_kv=value)).peak_allocated for value in (False, True)
    )
    assert shared > 2 * repeated


def test_full_needs_three_times_lora_and_lora_twice_qlora():
    bf16 = {"load_dtype": "bfloat16", "compute_dtype": "bfloat16", "optimizer": "adamw_torch"}
    full = predict(MISTRAL, RunSpec(quant_type=None, rank=None, target_modules=None, **bf16)).peak_allocated
    lora = predict(MISTRAL, RunSpec(quant_type=None, **bf16)).peak_allocated
    qlora = predict(MISTRAL, RunSpec(**bf16)).peak_allocated
    assert full > 3 * lora
    assert lora > 2 * qlora


def test_a_caller_may_change_the_parts_it_was_given():
    first = predict(MISTRAL, LEAN)
    first.parts.clear()
    assert sum(predict(MISTRAL, LEAN).parts.values()) == first.peak_allocated


@pytest.mark.parametrize("model", PRESETS)
@pytest.mark.parametrize("spec", [RunSpec(), RunSpec(checkpoint_every=2, seq_len=2048), RunSpec(checkpoint_every=0)])
def test_a_prediction_with_nothing_remembered_takes_a_tenth_of_a_second(model, spec):
    def cold():
        forget()
        predict(PRESETS[model].shape, spec, "t4")

    assert paces(cold) < 10  # a tenth of a second where a unit takes 10 ms


def test_importing_the_predictor_imports_neither_torch_nor_transformers():
    code = "import sys, helpers.memory; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=COURSE_ROOT).returncode == 0


def test_predicting_and_planning_import_no_torch_either():
    code = (
        "import sys; from helpers.memory import plan; plan('mistral-7b', 16 * 2**30); "
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=COURSE_ROOT).returncode == 0


def test_what_passes_grows_with_the_rows_and_what_stays_does_not():
    few, many = (predict(PRESETS["qwen2.5-7b"].shape, RunSpec(batch_size=rows), "l4") for rows in (2, 8))
    assert 3 < many.passing_bytes / few.passing_bytes < 5
    stays = [found.peak_allocated - found.passing_bytes for found in (few, many)]
    assert stays[0] == pytest.approx(stays[1], rel=0.05)
