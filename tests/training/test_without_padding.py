"""Batches without padding: rows do not see each other, and gradients are those of padded batches, however they are cut."""

from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from helpers.models import bundled
from helpers.training.without_padding import NAME, cut, padding_free, pieces, within_rows

LENGTHS = (40, 9, 77, 30, 5, 51, 22, 60)


def rows_of(lengths):
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(10, 2000, (n,), generator=draw).tolist() for n in lengths]
    return Dataset.from_dict(
        {"input_ids": ids, "labels": [[-100] * (len(row) // 3) + row[len(row) // 3 :] for row in ids]}
    )


def trainer_of(folder, **settings):
    """The bundled model in float32 with random adapters, and all rows of LENGTHS in one optimizer step."""
    torch.manual_seed(0)
    path = bundled().path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    settings = {"activation_checkpointing": False} | settings
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=1, learning_rate=1.0, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0,
        gradient_checkpointing=None, logging_steps=1, save_strategy="no", seed=0,
        bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, **settings,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(path)
    return SFTTrainer(model, arguments, train_dataset=rows_of(LENGTHS), processing_class=tokenizer, peft_config=lora)


def trained(trainer):
    """(the step's loss, what the step did to each parameter): plain SGD, so that this is the gradient, scaled."""
    adapters = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in adapters.items()}
    trainer.train()
    moved = {name: p.detach() - before[name] for name, p in adapters.items()}
    return trainer.state.log_history[0]["loss"], moved


PADDED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_length": 80}
TOGETHER = {"per_device_train_batch_size": 8, "padding_free": True, "max_length": None}
IN_CONTEXT = {"per_device_train_batch_size": 8, "max_length": 80, "pad_to_multiple_of": 64}


class Shapes:
    """A collator that keeps the shapes of its batches."""

    def __init__(self, collate):
        self.collate, self.shapes = collate, []

    def __call__(self, rows):
        batch = self.collate.torch_call(rows)
        self.shapes.append(tuple(batch["input_ids"].shape))
        return batch


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert value.norm() > 1e-5, name  # there is a step to compare
        assert (found[1][name] - value).norm() < 1e-3 * value.norm(), name


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    return trained(trainer_of(tmp_path_factory.mktemp("padded"), **PADDED))


@pytest.mark.parametrize("max_tokens", [1000, 150, 80, 10])
@pytest.mark.parametrize("told", [TOGETHER, IN_CONTEXT])
def test_one_step_is_the_padded_step_however_it_is_cut(tmp_path, padded, told, max_tokens):
    trainer = trainer_of(tmp_path, **told)
    collated = Shapes(trainer.data_collator)
    with padding_free(trainer, max_tokens), patch.object(DataCollatorForLanguageModeling, "__call__", collated):
        found = trained(trainer)
    assert_same(found, padded)
    assert collated.shapes == [(1, sum(LENGTHS))]  # no padding
    assert trainer.model.config._attn_implementation == "sdpa"
    assert trainer.data_collator.padding_free == trainer.padding_free


@pytest.mark.parametrize("recompute", [{"every_n_layers": 1}, {"every_n_layers": 2}])
def test_layers_may_be_recomputed(tmp_path, padded, recompute):
    again = {"activation_checkpointing": True, "activation_checkpointing_kwargs": recompute}
    trainer = trainer_of(tmp_path, **IN_CONTEXT, **again)
    with padding_free(trainer, 150):
        assert_same(trained(trainer), padded)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_transformers_rebalanced_batches_make_the_same_step(tmp_path, padded, accumulation):
    settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    trainer = trainer_of(tmp_path, max_length=80, train_sampling_strategy="batch_rebalance", **settings)
    shapes, collate = [], trainer.data_collator
    trainer.data_collator = lambda rows: shapes.append(len(rows)) or collate(rows)
    assert_same(trained(trainer), padded)
    assert len(shapes) == accumulation
    assert len(set(shapes)) > 1  # of unequal numbers of rows


def test_packed_by_trl_on_plain_attention_is_the_same_step(tmp_path, padded):
    total = sum(LENGTHS)
    trainer = trainer_of(tmp_path, packing=True, max_length=total, per_device_train_batch_size=1)
    assert trainer.model.config._attn_implementation == "sdpa"
    assert_same(trained(trainer), padded)


def test_rows_together_are_each_row_alone_and_a_fault_would_show():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(bundled().path, dtype=torch.float32)
    rows = [dict(row) for row in rows_of(LENGTHS)]
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)
    batch.pop("labels")
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([row["input_ids"]])).logits[0] for row in rows])
        model.set_attn_implementation(NAME)
        together = model(**batch, use_cache=False).logits[0]
        one_text = dict(batch, cu_seq_lens_q=batch["cu_seq_lens_q"][[0, -1]])
        leaking = model(**one_text, use_cache=False).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert (leaking - alone).abs().max() > 0.1


def test_pieces_are_the_rows_in_order_and_within_the_bound():
    rows = [dict(row) for row in rows_of(LENGTHS)]
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)
    for most in (1000, 150, 80, 77, 10):
        found = pieces(batch, cut(batch["cu_seq_lens_q"].tolist(), most))
        for piece in found:
            bounds = piece["cu_seq_lens_q"].tolist()
            lengths = [b - a for a, b in pairwise(bounds)]
            assert bounds[0] == 0
            assert bounds[-1] == piece["input_ids"].shape[1] == piece["seq_idx"].shape[1]
            assert piece["max_length_q"] == max(lengths)
            assert sum(lengths) <= most or len(lengths) == 1
            assert (piece["position_ids"][0] == 0).nonzero().flatten().tolist() == bounds[:-1]
            assert piece["seq_idx"].unique().tolist() == list(range(len(lengths)))
        for name in ("input_ids", "labels", "position_ids"):
            assert torch.equal(torch.cat([piece[name] for piece in found], dim=1), batch[name])
    bounds = batch["cu_seq_lens_q"].tolist()
    assert len(cut(bounds, 1000)) - 1 == 1
    assert len(cut(bounds, 150)) - 1 == 3
    for at_least in range(1, len(LENGTHS) + 1):
        cuts = cut(bounds, 150, at_least)
        assert len(cuts) - 1 == max(3, at_least)
        assert cuts == sorted(set(cuts))
        assert all(bounds[b] - bounds[a] <= 150 for a, b in pairwise(cuts))


def test_what_cannot_be_right_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, **PADDED)
    trainer.data_collator = DataCollatorForSeq2Seq(trainer.processing_class)
    with (
        pytest.raises(ValueError, match="TRL's own collator, and not by DataCollatorForSeq2Seq"),
        padding_free(trainer, 100),
    ):
        pass
    trainer = trainer_of(tmp_path, **PADDED)
    with (
        patch.object(trainer, "is_fsdp_enabled", True),
        pytest.raises(ValueError, match="not tried with weights in parts"),
        padding_free(trainer, 100),
    ):
        pass
    trainer = trainer_of(tmp_path, **TOGETHER)
    with padding_free(trainer, 100), pytest.raises(ValueError, match="labels of the whole step"):
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    states, bounds = torch.zeros(1, 2, 60, 8), torch.tensor([0, 60], dtype=torch.int32)
    said = {"cu_seq_lens_q": bounds, "max_length_q": 60}
    assert within_rows(None, states, states, states, None, sliding_window=60, **said)[0].shape == (1, 60, 2, 8)
    with pytest.raises(ValueError, match="no window shorter than a row of 60"):
        within_rows(None, states, states, states, None, sliding_window=50, **said)
    with pytest.raises(ValueError, match="no softcap"):
        within_rows(None, states, states, states, None, softcap=30.0, **said)
