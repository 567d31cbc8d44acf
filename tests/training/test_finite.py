"""A model that overflows, and a loss that is no number: one true line each, and nothing is lost."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from helpers.models import BUNDLED_MODEL
from helpers.training import finite, workarounds

TEXTS = ["The capital of Italy is", "One, two, three, four"]
TOKENIZER = AutoTokenizer.from_pretrained(BUNDLED_MODEL)


def load(dtype, packed: bool, overflows: bool):
    """The bundled model, on a CPU; `overflows` makes its residual stream larger than float16 can hold."""
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(
        BUNDLED_MODEL, dtype=dtype, quantization_config=quantization if packed else None, device_map={"": "cpu"}
    )
    if overflows:
        with torch.no_grad():
            model.model.layers[2].post_attention_layernorm.weight.mul_(3e4)
    return workarounds.keep_4bit_layout(model)


@pytest.mark.parametrize("packed", [True, False], ids=["in 4 bits", "in 16 bits"])
def test_a_model_that_overflows_in_float16_is_refused_with_another_to_take(packed):
    model = load(torch.float16, packed, overflows=True).train()
    with pytest.raises(finite.NotFinite) as refused:
        finite.require_finite_logits(model, TOKENIZER, TEXTS, "Qwen/Qwen2.5-7B")
    assert str(refused.value) == (
        "Qwen/Qwen2.5-7B computes in float16 here, and its logits are not finite: it would learn nothing. Use "
        f'model_id="{finite.IN_FLOAT16}", which needs no account, or a GPU with bfloat16'
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_model_is_fine_where_the_numbers_reach_further(dtype):
    model = load(dtype, False, overflows=True).train()
    finite.require_finite_logits(model, TOKENIZER, TEXTS, "m")
    assert model.training


def test_the_model_that_is_offered_is_not_offered_in_its_own_place():
    model = load(torch.float16, False, overflows=True)
    with pytest.raises(finite.NotFinite, match="Take a smaller model"):
        finite.require_finite_logits(model, TOKENIZER, TEXTS, finite.IN_FLOAT16)


def trainer_for(model, folder, steps=4):
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=steps, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        gradient_checkpointing=None, disable_tqdm=True, per_device_train_batch_size=2, learning_rate=1e-3,
    )  # fmt: skip
    rows = Dataset.from_dict({"text": ["one two three", "four five six"] * 4})
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, peft_config=lora)
    return workarounds.adapters_to_float32(trainer)


def adapters(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_training_stops_before_the_step_of_the_first_loss_that_is_no_number(tmp_path):
    trainer, seen = trainer_for(load(torch.float32, True, overflows=False), tmp_path), []
    compute = trainer.compute_loss

    def spoiled(*words, **more):
        loss = compute(*words, **more)
        seen.append(adapters(trainer))
        return loss * float("nan") if trainer.state.global_step == 2 else loss

    trainer.compute_loss = spoiled
    finite.stop_when_not_finite(trainer)
    with pytest.raises(finite.NotFinite, match="^the loss of step 3 is nan: training has stopped"):
        trainer.train()
    assert len(seen) == 3
    for name, adapter in adapters(trainer).items():
        assert torch.equal(adapter, seen[-1][name]), name  # as they were when that loss was computed
    assert any(not torch.equal(adapter, seen[0][name]) for name, adapter in adapters(trainer).items())


def test_without_the_guard_the_trainer_goes_on(tmp_path):
    """Why there is one: transformers' own loop neither stops nor says so."""
    trainer = trainer_for(load(torch.float32, True, overflows=False), tmp_path, steps=2)
    compute = trainer.compute_loss
    trainer.compute_loss = lambda *words, **more: compute(*words, **more) * float("nan")
    assert trainer.train().global_step == 2


def test_a_model_made_to_overflow_stops_at_its_first_step(tmp_path):
    trainer = finite.stop_when_not_finite(trainer_for(load(torch.float16, True, overflows=True), tmp_path))
    with pytest.raises(finite.NotFinite, match=r"^the loss of step 1 is (nan|inf): .*the model overflows in float16"):
        trainer.train()


def test_good_training_is_left_alone(tmp_path):
    trainer = finite.stop_when_not_finite(trainer_for(load(torch.float32, True, overflows=False), tmp_path, steps=2))
    assert trainer.train().global_step == 2
