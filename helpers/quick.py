"""What a lesson opened on its own lacks: a 4-bit base loaded as lesson 03 loads it, and an adapter made in seconds."""

from pathlib import Path

from helpers.data import load_instructions, to_prompt_completion
from helpers.models import RECIPES, Model, ModelError, base_of
from helpers.results import Run, replace_folder
from helpers.workarounds import adapters_to_float32, keep_4bit_layout, repeat_kv_heads


def load_4bit(model: Model, machine, quant_type: str = "nf4", double_quant: bool = True):
    """(model, tokenizer): the base in 4 bits, in eval mode, with the config that lesson 03 explains."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    repeat_kv_heads(machine)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=machine.torch_dtype,
    )
    base = AutoModelForCausalLM.from_pretrained(
        model.path, quantization_config=quantization, dtype=machine.torch_dtype, device_map=machine.device_map
    )
    return keep_4bit_layout(base).eval(), AutoTokenizer.from_pretrained(model.path)


def adapter_for(run: Run) -> tuple[Path, bool]:
    """(folder, made_now) of an adapter for run.model: adapter_dir, lesson 03's, or a short training.

    Raises ModelError, one line, if adapter_dir holds none or one that was trained on another base.
    """
    named = getattr(run.settings, "adapter_dir", "auto")
    folder = run.adapter if named == "auto" else Path(named).expanduser()
    if (folder / "adapter_config.json").is_file():
        if not (folder / "adapter_model.safetensors").is_file():
            raise ModelError(f"{folder.name} holds no adapter_model.safetensors: pickled adapters are not loaded here")
        base = base_of(folder)
        if base == ("bundled" if run.model.bundled else run.model.path):
            return folder, False
        if named != "auto":
            raise ModelError(
                f"the adapter in {folder.name} was trained on {base}, and the model here is {run.model.name}"
            )
    elif named != "auto":
        raise ModelError(f'no adapter_config.json in adapter_dir = {named!r}: run lesson 03, or leave it at "auto"')
    else:
        folder = run.adapter
    if folder.exists():  # of another base: lesson 03 may want it back
        folder = run.folder / f"adapter-{run.model.name.split('/')[-1].replace(' ', '-')}"
        if (folder / "adapter_config.json").is_file():
            return folder, False
    rows = (run.rows or load_instructions("bundled")[0])["train"]
    train_adapter(run.model, run.machine, rows, folder)
    return folder, True


def train_adapter(model: Model, machine, rows, folder: Path, steps: int = 40, rank: int = 16, seed: int = 0) -> dict:
    """Train as lesson 03 does, without its explanations, and save into `folder`; returns trained loss and seconds."""
    import time

    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(seed)
    recipe = RECIPES["bundled" if model.bundled else "other"]
    base, tokenizer = load_4bit(model, machine)
    arguments = SFTConfig(
        output_dir=str(folder.parent / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=recipe["batch_size"],
        gradient_accumulation_steps=1,
        max_length=recipe["max_length"],
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        max_grad_norm=0.3,
        optim=recipe["optimizer"],
        fp16=machine.dtype == "float16",
        bf16=machine.dtype == "bfloat16",
        use_cpu=machine.device == "cpu",
        activation_checkpointing=recipe["checkpointing"],
        gradient_checkpointing=None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = SFTTrainer(
        model=base,
        args=arguments,
        train_dataset=rows.map(to_prompt_completion, remove_columns=rows.column_names),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    adapters_to_float32(trainer)
    trainer.remove_callback(PrinterCallback)
    begun = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - begun
    with replace_folder(folder) as new:
        trainer.model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return {"train_loss": loss, "train_seconds": seconds}
