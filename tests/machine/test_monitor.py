"""The monitor tells forward from backward and step, the panel goes with the run and leaves a picture."""

import re

import pytest

from helpers.machine import MemoryMonitor
from helpers.models import BUNDLED_MODEL
from helpers.widgets import training_panel


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(trainer, monitor, what was displayed) after three steps of two batches each, with evaluation."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(tmp_path_factory.mktemp("monitor")), max_steps=3, use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=None, disable_tqdm=True, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=1, eval_strategy="steps", eval_steps=2, eval_on_start=True, save_strategy="no",
    )  # fmt: skip
    rows = Dataset.from_dict({"text": ["one two three", "four five six seven eight nine"] * 6})
    shown = []
    with pytest.MonkeyPatch.context() as patch, MemoryMonitor() as monitor:
        for name in ("display", "update"):
            patch.setattr(f"IPython.display.DisplayHandle.{name}", lambda self, data, **_: shown.append(data))
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32), args=arguments,
            train_dataset=rows, eval_dataset=rows, processing_class=AutoTokenizer.from_pretrained(BUNDLED_MODEL),
            callbacks=[monitor.callback(), training_panel(monitor)],
        )  # fmt: skip
        trainer.train()
    return trainer, monitor, shown


def phases(monitor):
    """The phases in their order, each stretch once."""
    names = [sample[1] for sample in monitor.samples]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def test_each_step_is_forward_backward_twice_and_then_a_step(trained):
    seen = [name for name in phases(trained[1]) if name in ("forward", "backward", "step")]
    assert seen == ["forward", "backward", "forward", "backward", "step"] * 3


def test_evaluation_is_neither_forward_nor_backward(trained):
    order = phases(trained[1])
    first = order.index("evaluate")
    assert order.index("forward") > first, "the evaluation on start comes before any training"
    assert order[first + 1] == "between steps"


def test_each_phase_of_a_step_has_its_peak(trained):
    assert {"forward", "backward", "step", "between steps"} <= set(trained[1].peaks)


def test_the_monitor_counts_what_was_trained_on(trained):
    trainer, monitor, _ = trained
    widest = max(len(row) for row in trainer.train_dataset["input_ids"])
    assert monitor.largest_batch == (2, widest)
    assert 2 * widest * 6 >= monitor.tokens > 0
    assert monitor.peak_of("forward", "backward", "step") == max(
        monitor.peaks[n] for n in ("forward", "backward", "step")
    )
    assert monitor.peak_of("never") == 0


def test_the_hooks_leave_with_the_run(trained):
    model = trained[0].model
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_the_panel_leaves_one_picture_with_the_last_numbers(trained):
    shown = trained[2]
    first, last = shown
    assert "image/png" not in first
    assert "image/png" in last
    assert re.fullmatch(r"step 3 of 3, loss \d+\.\d{3}, [\d,]+ tokens a second, [\d,.]+ MB resident, [\d,]+ s in all",
                        last["text/plain"])  # fmt: skip
