"""The harness that says better or not: its loss is the trainer's, its interval the published one."""

import pytest

from helpers.evaluation import completion_loss, evaluate, wilson_interval
from helpers.models import BUNDLED_MODEL


@pytest.fixture(scope="module")
def bundled():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def heldout():
    from helpers.data import load_instructions

    return load_instructions("bundled")[0]["heldout"].select(range(24))


def test_the_loss_is_what_trl_reports(bundled, heldout, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from helpers.data import to_prompt_completion

    model, tokenizer = bundled
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=24,
        max_length=512,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    rows = heldout.map(to_prompt_completion, remove_columns=heldout.column_names)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    model.eval()
    theirs = trainer.evaluate()["eval_loss"]
    assert completion_loss(model, tokenizer, heldout) == pytest.approx(theirs, rel=1e-4)
    assert completion_loss(model, tokenizer, heldout, batch_size=5) == pytest.approx(theirs, rel=1e-4)


def test_the_model_is_left_in_the_mode_it_was_in(bundled, heldout):
    model, tokenizer = bundled
    model.train()
    scored = evaluate(model, tokenizer, heldout.select(range(4)))
    assert model.training
    assert scored.rows == 4
    assert scored.interval[0] <= scored.exact_match <= scored.interval[1]


def test_wilson_interval_as_published():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3
    for right, of, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(right, of) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "of"), [(3, 2), (-1, 5), (0, 0)])
def test_no_share_no_interval(right, of):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(right, of)
