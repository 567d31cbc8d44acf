"""For lessons opened on their own: the adapter of lesson 03 where there is one, or one that is made in seconds."""

import shutil
from pathlib import Path

from helpers.data import load_instructions, to_chat, with_template
from helpers.files import whereabouts
from helpers.models import Model, ModelError, base_of, recipe_for
from helpers.quick.four_bits import load_4bit
from helpers.saving import about_adapter, adapter_folder, last_complete_checkpoint
from helpers.training import adapters_to_float32, stop_at_max_steps, stop_when_not_finite


def which_adapter(run) -> str:
    """Which adapter a lesson takes, from where, or how to bring one's own, in words for the table at its start."""
    return find_adapter(run)[1]


def find_adapter(run) -> tuple[Path | None, str]:
    """(folder, words) of the adapter for run.model: adapter_dir, lesson 03's, one made earlier; None if there is none.

    Raises ModelError, one line, if adapter_dir holds none or one that was trained on another base.
    """
    named = getattr(run.settings, "adapter_dir", "auto")
    if named != "auto":
        return _named(Path(named).expanduser(), named, run.model), f"yours: adapter_dir = {named!r}"
    for folder in (run.adapter, _adapter_of_another_base(run)):
        if (folder / "adapter_model.safetensors").is_file() and base_of(folder) == _base_name(run.model):
            about = about_adapter(folder)
            maker = about.get("made_by", "lesson 03")
            made = f", made on {about['date']} from {about['data']}" if about else ""
            return folder, f"the one that {maker} left in {whereabouts(folder, '')}{made}"
    how = (
        'run lesson 03 on this machine first, or give both lessons output_dir="drive", or name its folder: adapter_dir'
    )
    return None, f"none in {whereabouts(run.folder, '')}; a small one is trained now. For your own, {how}"


def _base_name(model: Model) -> str:
    return "bundled" if model.bundled else model.path


def _adapter_of_another_base(run) -> Path:
    """The folder for a new adapter while run.adapter holds one of another base, which lesson 03 may still need."""
    return run.folder / f"adapter-{run.model.name.split('/')[-1].replace(' ', '-')}"


def _named(folder: Path, named: str, model: Model) -> Path:
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f'no adapter_config.json in adapter_dir = {named!r}: run lesson 03, or leave it at "auto"')
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder.name} holds no adapter_model.safetensors: pickled adapters are not loaded here")
    if base_of(folder) != _base_name(model):
        raise ModelError(
            f"the adapter in {folder.name} was trained on {base_of(folder)}, and the model here is {model.name}"
        )
    return folder


def adapter_for(run, task: str = "answers") -> tuple[Path, bool]:
    """(folder, made_now) of an adapter for run.model: what `find_adapter` finds, or a short training.

    The task "yes or no" is another one, and always trained anew: to say whether a prompt brings an input along.
    """
    found, _ = find_adapter(run) if task == "answers" else (None, "")
    if found is not None:
        return found, False
    rows = (run.rows or load_instructions("bundled")[0])["train"]
    quantization = {name: v for name, v in vars(run.settings).items() if name in ("quant_type", "double_quant")}
    if task == "yes or no":
        folder = run.folder / "adapter-yes-or-no"
        few = rows.select(range(min(128, len(rows)))).map(lambda row: {"output": "yes" if row["input"] else "no"})
        train_adapter(run.model, run.machine, few, folder, 24, 8, run.settings.seed, batch_size=4, **quantization)
        return folder, True
    folder = _adapter_of_another_base(run) if run.adapter.exists() else run.adapter
    # For the bundled model many small steps give as many right answers for less work.
    small: dict = {"steps": 60, "batch_size": 4} if run.model.bundled else {}
    lesson = f"lesson {run.lesson[:2]}, in a short training,"
    train_adapter(run.model, run.machine, rows, folder, made_by=lesson, data=run.data_name, **small, **quantization)
    return folder, True


def two_adapters(run) -> dict[str, Path]:
    """ "yours", which is adapter_for's, and "stopped early": 16 steps of four rows at half the learning rate.

    The second one is trained now, for lessons that need a small update; rank and layers are those of a short training.
    """
    yours, _ = adapter_for(run)
    early = run.folder / "adapter-early"
    quantization = {name: getattr(run.settings, name) for name in ("quant_type", "double_quant")}
    given = run.training_of(yours).get("run", {}).get("parameters", {})
    packed_as = {name: given.get(name, value) for name, value in quantization.items()}
    if packed_as != quantization:
        print(
            f"Note: yours was trained with {packed_as}. Here the base is packed otherwise, and it never saw that one."
        )
    train_adapter(
        run.model, run.machine, run.rows["train"], early, steps=16, batch_size=4, seed=run.settings.seed,
        learning_rate=recipe_for(run.model)["learning_rate"] / 2, made_by=f"lesson {run.lesson[:2]}, stopped early",
        data=run.data_name, like=yours, **quantization,
    )  # fmt: skip
    return {"yours": yours, "stopped early": early}


def train_adapter(
    model: Model, machine, rows, folder: Path, steps: int = 40, rank: int = 16, seed: int = 0, *,
    batch_size: int | None = None, lora_dropout: float = 0.0, heldout=None, save_steps: int = 0,
    learning_rate: float | None = None, made_by: str = "a short training", data: str = "",
    like: Path | None = None, **quantization,
) -> dict:  # fmt: skip
    """Train as lesson 03 does, without its explanations, and save into `folder`; returns loss, seconds and history.

    `rows`: instructions, or rows of input_ids and labels that are fed as they are. `heldout` is scored eight times on
    the way. With `save_steps`, checkpoints go to <folder>-checkpoints, and a run that was killed goes on from there.
    `learning_rate` None is the recipe's; `made_by` and `data` are noted beside the adapter; the template is that of the
    adapter `like`; `quantization` (quant_type, double_quant) goes to load_4bit.
    """
    import time

    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import SFTTrainer

    set_seed(seed)
    base, tokenizer = load_4bit(model, machine, **quantization)
    with_template(tokenizer, adapter=like)  # it is saved with the adapter
    checkpoints = folder.with_name(f"{folder.name}-checkpoints")
    arguments = _arguments(
        recipe_for(model), machine, checkpoints, steps, seed, batch_size, learning_rate, heldout is not None, save_steps
    )
    trainer = SFTTrainer(
        model=base,
        args=arguments,
        train_dataset=_prepared(rows),
        eval_dataset=_prepared(heldout),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    stop_at_max_steps(stop_when_not_finite(adapters_to_float32(trainer)))
    trainer.remove_callback(PrinterCallback)
    begun = time.perf_counter()
    last = last_complete_checkpoint(checkpoints) if save_steps else None
    loss = trainer.train(resume_from_checkpoint=last and str(last)).training_loss
    seconds = time.perf_counter() - begun
    settings = {"model": model.name, "steps": steps, "rank": rank, "seed": seed, **quantization}
    with adapter_folder(folder, made_by, data, **settings) as new:
        trainer.model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    if save_steps:  # else the folder of this name, if there is one, is somebody's own
        shutil.rmtree(checkpoints, ignore_errors=True)
    return {
        "train_loss": loss,
        "train_seconds": seconds,
        "history": trainer.state.log_history,
        "resumed_from": last and last.name,
    }


def _arguments(recipe, machine, checkpoints: Path, steps, seed, batch_size, learning_rate, scored: bool, save_steps):
    """Lesson 03's SFTConfig for a recipe; `scored`: held-out rows are scored eight times on the way."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=batch_size or recipe["batch_size"],
        gradient_accumulation_steps=1,
        max_length=recipe["max_length"],
        learning_rate=learning_rate or recipe["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        max_grad_norm=0.3,
        optim=recipe["optimizer"],
        fp16=machine.dtype == "float16",
        bf16=machine.dtype == "bfloat16",
        use_cpu=machine.device == "cpu",
        activation_checkpointing=recipe["checkpointing"],
        gradient_checkpointing=None,
        logging_strategy="steps" if scored else "no",
        logging_steps=max(1, steps // 8),
        eval_strategy="steps" if scored else "no",
        eval_steps=max(1, steps // 8),
        eval_on_start=scored,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 1,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )


def _prepared(rows):
    """Instructions as TRL trains on them; rows that hold tokens already, and None, as they are."""
    if rows is None or "input_ids" in rows.column_names:
        return rows
    return rows.map(to_chat, remove_columns=rows.column_names)
