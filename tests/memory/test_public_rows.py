"""Runs that others measured and published, with releases older than the ones this course uses.

foundation-model-stack/fms-acceleration, scripts/benchmarks/refs/a100_80gb.csv at 876e2ed: Mistral-7B on an A100 with 80 GB,
NF4 with double quantization, rank 16 on q, k, v, o, gradient checkpointing, 4,096 tokens a row; torch 2.4.1, transformers
4.48.1, trl 0.13.0, peft 0.13.2, bitsandbytes 0.43.3. Peaks in bytes as torch counted them; plain AdamW is assumed.
"""

import pytest

from helpers.memory import RunSpec, predict
from helpers.models import PRESETS

PUBLIC = [(4, False, 16_373_838_336), (8, False, 28_412_178_944), (4, True, 20_669_338_112), (8, True, 37_002_646_016)]


@pytest.mark.parametrize(("rows", "upcast", "measured"), PUBLIC)
def test_the_loss_of_trl_0_13_is_predicted_on_the_safe_side_and_names_its_releases(rows, upcast, measured):
    spec = RunSpec(
        rank=16, target_modules=RunSpec.QKVO, lora_dropout=0.1, batch_size=rows, seq_len=4096, optimizer="adamw_torch",
        load_dtype="bfloat16", compute_dtype="bfloat16", upcast_non_quantized=upcast, trl_loss="full",
    )  # fmt: skip
    found = predict(PRESETS["mistral-7b"].shape, spec, "a100-80gb")
    assert 0 <= found.peak_allocated / measured - 1 <= (0.05 if upcast else 0.015)
    assert "TRL's before 1.15" in found.notes[0]
