"""Five trainings of the bundled model with one fault each, and a healthy one: lesson 06 shows what is seen of them.

`FAULTS` says which fault is whose. The lesson asks its reader for that before it says so.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from helpers.data import alpaca_prompt, load_instructions, to_prompt_completion
from helpers.models import bundled, recipe_for
from helpers.quick.four_bits import load_4bit
from helpers.training import adapters_to_float32

FAULTS = {"A": "template", "B": "learning rate", "C": "padding", "D": "adapter not loaded", "E": "number format"}
FOREIGN = "[INST] {} [/INST]"  # the template of other models, which this one was not trained with
ROWS, LONGEST = 4, 16  # rows in a step, and tokens of an answer


@dataclass(frozen=True)
class EndedRun:
    """What can be seen of a training that came to its end.

    `log` is the trainer's: step, loss, grad_norm, learning_rate. `heldout_loss`: nats per token, on rows that were held
    out. `answers` are those to their questions, `right` is the share that is exact, `ends` the share that ended by itself.
    """

    log: list
    heldout_loss: float
    answers: list
    right: float
    ends: float
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def symptoms(self) -> dict:
        """Its figures, as a row of a table; what is no number says so, for a table would show it as missing."""
        first, last = self.log[0], self.log[-1]
        figures = {"first loss logged": float(first["loss"]), "last": float(last["loss"])}
        figures |= {"grad_norm, last": float(last["grad_norm"]), "held-out loss": self.heldout_loss}
        figures |= {"right": self.right, "answers that end": self.ends}
        return {name: "nan" if figure != figure else figure for name, figure in figures.items()}

    def ask(self, rows, change: Callable[[str], str] = str) -> float:
        """The share of `rows` that its model answers exactly, asked with the template of its training after a `change`."""
        return _asked(self.model, self.tokenizer, rows, change=change)[1]

    def base_loss(self, rows) -> float:
        """The loss of `rows` without the adapter, as before the training, in nats per token."""
        from helpers.evaluation import completion_loss

        with self.model.disable_adapter():
            return completion_loss(self.model, self.tokenizer, rows)


def broken_runs(run, heldout, steps: int = 40) -> dict[str, EndedRun]:
    """A healthy training of the bundled model, and runs A to E with one fault each; `heldout` are instructions."""
    trainers = {fault: _trained(run, fault, steps) for fault in ("", "learning rate", "padding", "number format")}
    found = {"healthy": _ended(trainers[""], heldout)}
    for name, fault in FAULTS.items():  # two of the faults come after training, so these two runs are the healthy one
        found[name] = _ended(trainers.get(fault, trainers[""]), heldout, fault)
    return found


def _trained(run, fault: str, steps: int):
    """A trainer that has trained, with one fault or none ("")."""
    from peft import LoraConfig
    from transformers import DataCollatorForLanguageModeling, PrinterCallback, set_seed
    from trl import SFTTrainer

    set_seed(run.settings.seed)
    rows = load_instructions("bundled")[0]["train"].shuffle(seed=run.settings.seed)
    model, tokenizer = load_4bit(bundled(), run.machine)
    prepare, collator = to_prompt_completion, None
    if fault == "padding":
        tokenizer.pad_token = tokenizer.eos_token
        masks_padding = DataCollatorForLanguageModeling(tokenizer, mlm=False)

        def collator(batch):  # TRL has put labels beside the tokens; this collator makes its own
            return masks_padding([{"input_ids": row["input_ids"]} for row in batch])

        def prepare(row):
            return {"input_ids": tokenizer(_whole(row) + tokenizer.eos_token)["input_ids"]}

    trainer = SFTTrainer(
        model, _arguments(run, fault, steps), data_collator=collator, processing_class=tokenizer,
        train_dataset=rows.select(range(ROWS * steps)).map(prepare, remove_columns=rows.column_names),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    adapters_to_float32(trainer)
    if fault == "number format":
        for weight in filter(lambda weight: weight.requires_grad, trainer.model.parameters()):
            weight.data = weight.data.half()
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def _whole(row) -> str:
    return alpaca_prompt(row["instruction"], row["input"]) + row["output"]


def _arguments(run, fault: str, steps: int):
    """The same SFTConfig for all of them, but for a learning rate, and for float16 adapters, which no scaler takes."""
    from trl import SFTConfig

    machine, rate = run.machine, recipe_for(bundled())["learning_rate"]
    return SFTConfig(
        output_dir=str(run.folder / "broken-runs"), max_steps=steps, per_device_train_batch_size=ROWS,
        learning_rate=rate / 1000 if fault == "learning rate" else rate, lr_scheduler_type="cosine", warmup_steps=0.03,
        max_grad_norm=0.3, fp16=machine.dtype == "float16" and fault != "number format", bf16=machine.dtype == "bfloat16",
        use_cpu=machine.device == "cpu", activation_checkpointing=False, gradient_checkpointing=None,
        logging_steps=max(1, steps // 8), save_strategy="no", report_to="none", disable_tqdm=True, seed=run.settings.seed,
    )  # fmt: skip


def _ended(trainer, heldout, fault: str = "") -> EndedRun:
    """What can be seen of a trainer's run, asked with a fault or without."""
    from helpers.evaluation import completion_loss

    model, tokenizer = trainer.model.eval(), trainer.processing_class
    with model.disable_adapter() if fault == "adapter not loaded" else contextlib.nullcontext():
        loss = completion_loss(model, tokenizer, heldout)
        answers, right, ends = _asked(model, tokenizer, heldout, FOREIGN if fault == "template" else "")
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return EndedRun(log, loss, answers, right, ends, model, tokenizer)


def _asked(model, tokenizer, rows, form: str = "", change: Callable[[str], str] = str) -> tuple[list, float, float]:
    """(answers, the share that is right, the share that ends by itself), in one batch; `form` in place of the template."""
    import torch

    tokenizer.padding_side = "left"
    asked = [f"{row['instruction']} {row['input']}".strip() for row in rows]
    prompts = [
        form.format(text) if form else change(alpaca_prompt(row["instruction"], row["input"]))
        for text, row in zip(asked, rows, strict=True)
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    ends = (new == tokenizer.eos_token_id).any(1).float().mean().item()
    answers = [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    right = sum(said == row["output"].strip() for said, row in zip(answers, rows, strict=True)) / len(rows)
    return answers, right, ends
