"""One operation for a 4-bit layer and its adapter gives PEFT's numbers, forward and backward, and knows its limits."""

import copy

import pytest
import torch

from helpers.machine import detect
from helpers.models import bundled
from helpers.quick import load_4bit
from helpers.training import fuse_lora


@pytest.fixture(scope="module")
def base():
    return load_4bit(bundled(), detect())[0]


def with_adapter(base, **changes):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"} | changes
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**settings, init_lora_weights=False))
    for parameter in model.parameters():
        if parameter.requires_grad:  # B is not zero, so that it matters, and small, so that nothing overflows
            parameter.data.mul_(0.1)
    return model


def step(model):
    tokens = torch.arange(40).view(2, 20) + 5
    model.train()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_loss_and_every_gradient_equal_peft(base):
    plain, fused = with_adapter(base), with_adapter(base)
    assert fuse_lora(fused) == 42  # six layers of seven
    (loss, gradients), (fused_loss, fused_gradients) = step(plain), step(fused)
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_it_works_under_activation_checkpointing(base):
    plain, fused = with_adapter(base), with_adapter(base)
    fuse_lora(fused)
    fused.get_base_model().activation_checkpointing_enable()
    (_, gradients), (_, fused_gradients) = step(plain), step(fused)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_what_is_not_plain_lora_keeps_pefts_forward(base, changes):
    assert fuse_lora(with_adapter(base, **changes)) == 0


def test_switching_the_adapter_off_and_merging_still_work(base):
    model, tokens = with_adapter(base).eval(), torch.arange(12).view(1, 12) + 5
    fuse_lora(model)
    with model.disable_adapter():
        off = model(tokens).logits
        on_and_off = step_free(base, tokens)
    torch.testing.assert_close(off, on_and_off)
    assert not torch.allclose(model(tokens).logits, off)


def step_free(base, tokens):
    with torch.no_grad():
        return base(tokens).logits
