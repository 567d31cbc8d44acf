"""What surrounds the recording of CUDA graphs, on a CPU: there the "graph" is the plain pass. tests/gpu records for real."""

import contextlib

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from helpers.machine import detect
from helpers.models import bundled
from helpers.quick import load_4bit
from helpers.training import adapters_to_float32, recorded
from helpers.training.graphs import MULTIPLE

LENGTHS = (20, 60, 100, 30, 70, 10, 64, 65)


def trainer_of(folder, machine):
    torch.manual_seed(0)
    model, tokenizer = load_4bit(bundled(), machine)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(10, 2000, (n,), generator=draw).tolist() for n in LENGTHS]
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_length=120,
        activation_checkpointing=False, gradient_checkpointing=None, optim="adamw_torch", learning_rate=1e-3,
        pad_to_multiple_of=MULTIPLE, eval_strategy="steps", eval_steps=1, logging_steps=1, save_strategy="no", seed=0,
        fp16=machine.dtype == "float16", bf16=machine.dtype == "bfloat16", use_cpu=machine.device == "cpu",
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer, peft_config=lora
    )
    return adapters_to_float32(trainer)


def losses(trainer):
    return [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry]


@pytest.fixture
def plays(monkeypatch):
    """The shapes that the stand-in for graphs was called with, in order; recording calls it too."""
    seen = []

    def make(passes, sample, num_warmup_iters, pool):
        assert not torch.is_autocast_enabled("cpu") or not torch.is_autocast_cache_enabled()
        assert passes(*sample).requires_grad
        passes.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
        return passes

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    return seen


def test_training_without_masks_learns_the_same(tmp_path, plays):
    plain, ours = trainer_of(tmp_path, detect()), trainer_of(tmp_path, detect())
    plain.train()
    with recorded(ours) as shapes:
        ours.train()
        grads = [p.grad for p in ours.model.parameters() if p.requires_grad]
        assert not any(grad.any() for grad in grads)  # kept, and empty after a step
    assert shapes[0] == (2, 128)  # the longest that could come
    assert set(shapes) == {(2, 128), (2, 64)}
    assert len(plays) == 6  # three steps of two batches; evaluation went another way
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4)
    assert losses(plain)[0] != losses(plain)[2]
    for (name, p), q in zip(plain.model.named_parameters(), ours.model.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(q, p, rtol=1e-3, atol=2e-5, msg=name)


def test_only_training_on_ids_is_recorded_and_all_is_undone(tmp_path, plays):
    trainer = trainer_of(tmp_path, detect())
    model, ids = trainer.model.train(), torch.arange(10, 30)[None]
    decoder = model.get_base_model().base_model
    with contextlib.suppress(KeyboardInterrupt), recorded(trainer) as shapes:
        model(ids, position_ids=torch.arange(20)[None])
        with torch.no_grad():
            model(ids)
        model.eval()(ids)
        assert not shapes
        model.train()(ids)
        assert shapes == [(2, 128), (1, 20)]
        raise KeyboardInterrupt
    assert "forward" not in vars(decoder)
    assert "zero_grad" not in vars(model)
    seen = len(plays)
    model(ids)
    assert len(plays) == seen == 1
