"""Lesson 00's lines to copy, pasted into a script on a GPU that takes itself for a T4; and in bfloat16 where the GPU has it.

    COURSE_GPU_TESTS=1 python -m pytest tests/gpu/test_plain_lines.py

Needs a CUDA GPU and a minute. The course is refused to the script. The model is the bundled one, then a shape of the chat
model that the lesson names for a notebook of one's own, in random weights, with a chat template and from the hub's double.
"""

import pytest

from helpers.models import BUNDLED_MODEL
from helpers.models.presets import AUTO_CHAT, CHAT_PRESETS
from tests.lessons.test_lesson00 import ANSWERS, DATA, REFUSE, WITH_A_CSV, run_script, script, write_csv
from tests.places.hub import Hub

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
ONE_GPU = {"CUDA_VISIBLE_DEVICES": "0"}

# What a T4 is to these lines, besides its capability: 14.56 GiB, and no flash attention.
T4_RULES = """
import torch

torch.cuda.set_per_process_memory_fraction(min(1.0, 14.56 * 2**30 / torch.cuda.get_device_properties(0).total_memory))
torch.backends.cuda.enable_flash_sdp(False)
torch.backends.cuda.enable_cudnn_sdp(False)
"""


def as_on_a_t4(text: str) -> str:
    """The script, which sees a T4's capability; Triton must see the real one, for it compiles for the GPU at hand."""
    asked = "torch.cuda.get_device_capability() >="
    assert text.count(asked) == 1
    return text.replace(asked, "(7, 5) >=")


BUNDLED = {"base": str(BUNDLED_MODEL), "data": str(DATA), "steps": 40, "rate": 3e-3}


def test_they_train_in_float16_as_on_a_t4(tmp_path):
    said = run_script(as_on_a_t4(script(REFUSE + T4_RULES, **BUNDLED)), tmp_path, **ONE_GPU)
    assert (said["dtype"], said["trained"]) == ("torch.float16", ["torch.float32"])
    assert said["after"] == ANSWERS


def test_without_the_lines_that_turn_the_adapter_back_training_stops_as_the_lesson_says(tmp_path):
    text = as_on_a_t4(script(REFUSE + T4_RULES, **BUNDLED | {"steps": 1}))
    assert "weight.data = weight.data.float()" in text
    with pytest.raises(AssertionError, match="not implemented for 'BFloat16'"):
        run_script(text.replace("weight.data = weight.data.float()", "pass"), tmp_path, **ONE_GPU)


def test_they_train_in_bfloat16_where_the_gpu_has_it(tmp_path):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16 units")
    said = run_script(script(REFUSE, **BUNDLED), tmp_path, **ONE_GPU)
    assert said["dtype"] == "torch.bfloat16"
    assert said["after"] == ANSWERS


def test_as_they_stand_they_fetch_the_chat_model_s_shape_and_train_it_within_a_t4(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    preset = CHAT_PRESETS[AUTO_CHAT]
    torch.manual_seed(0)
    with Hub(tmp_path / "hub") as hub:
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}{{ 'Answer:\n' }}"
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**preset.shape), dtype=torch.bfloat16)
        model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
        for made in (model, tokenizer):
            made.save_pretrained(hub.folder(preset.hub_id))
        write_csv(tmp_path / "questions.csv")
        said = run_script(as_on_a_t4(script(REFUSE + T4_RULES, WITH_A_CSV)), tmp_path, **hub.environment, **ONE_GPU)
    assert (said["base"], said["dtype"], said["trained"]) == (preset.hub_id, "torch.float16", ["torch.float32"])
    assert said["prompt"].endswith("\nAnswer:\n")
