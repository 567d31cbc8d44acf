"""What the doctor runs in a process of its own: the checks that import torch, and on a GPU one measured training."""

import json
import tempfile
from pathlib import Path

from helpers.doctor.examination import TORCH, examine
from helpers.doctor.findings import FAIL, worst
from helpers.doctor.graphics import gpu, look_at_gpu
from helpers.models import BUNDLED_MODEL, PRESETS, Model

STEPS = 3  # the gradient scaler may skip the first; optimizer states must stand before the last
SHAPE, ROWS, LENGTH, RANK = "qwen2.5-0.5b", 4, 512, 16
MARK = "\x1edoctor "  # begins what is said to the doctor; whatever else libraries print is not


def shape_trained() -> dict:
    """The shape that is trained."""
    return PRESETS[SHAPE].shape


def say(**what) -> None:
    print(MARK + json.dumps(what), flush=True)


def main(measure: bool) -> None:
    for check in TORCH:
        say(now=check.__name__.replace("_", " "))
        findings = examine(check)
        say(findings=[vars(finding) for finding in findings])
        if check is gpu and worst(findings) == FAIL:
            return  # the others would say the same in other words
    here = look_at_gpu()
    from helpers.machine import detect
    from helpers.packages import recorded_versions

    machine = detect()
    about = {"machine": str(machine), "versions": recorded_versions()}
    say(about=about | ({"gpu": here.name, "cuda": here.torch_cuda} if here.visible else {}))
    if measure and here.visible:
        say(now="measured step")
        say(measured=measured_step(machine), now="end")


def measured_step(machine) -> dict:
    """Train the shape of a small real model, with random weights, for a few steps; bytes as predicted and as measured.

    The recipe is lesson 03's: NF4, double quantization, rank 16 on all linear layers, checkpointing, 8-bit paged Adam.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from helpers.memory import RunSpec, gpu_of, predict
    from helpers.quick import load_4bit
    from helpers.training import adapters_to_float32, repeat_kv_heads

    turing = repeat_kv_heads(machine)
    dtype = machine.dtype
    spec = RunSpec(
        load_dtype=dtype, compute_dtype=dtype, rank=RANK, lora_dropout=0.0, batch_size=ROWS, seq_len=LENGTH,
        attention_kernels="t4" if turing else "all", repeat_kv=turing,
    )  # fmt: skip
    predicted = predict(shape_trained(), spec, gpu_of(torch.cuda.get_device_name(0)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(shape_trained(), Path(scratch) / "model", machine.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        stood = torch.cuda.memory_allocated()  # the workspace of the multiplication before: the peak holds one too
        model, tokenizer = load_4bit(Model(str(folder), "random weights", "", 0), machine)
        model.config.use_cache = False
        measured = {"after_load": torch.cuda.memory_allocated() - stood}
        tokens = torch.randint(3, model.config.vocab_size, (ROWS * STEPS, LENGTH)).tolist()
        arguments = SFTConfig(
            output_dir=str(Path(scratch) / "out"), max_steps=STEPS, per_device_train_batch_size=ROWS, max_length=LENGTH,
            optim=spec.optimizer, fp16=dtype == "float16", bf16=dtype == "bfloat16", activation_checkpointing=True,
            gradient_checkpointing=None, max_grad_norm=0.3, save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"input_ids": tokens}),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        adapters_to_float32(trainer)
        trainer.train()
    measured |= {"peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved()}
    what = f"{PRESETS[SHAPE].hub_id}'s shape, {ROWS}x{LENGTH} tokens, rank {RANK}, {dtype}"
    return {"what": what, "predicted": {key: getattr(predicted, key) for key in measured}, "measured": measured}


def make_model(shape: dict, folder: Path, device: str, dtype: str = "float16", **saving) -> Path:
    """Random weights of this shape, made on the GPU and saved: memory depends on the shape, not on the values.

    The bundled model's tokenizer lies beside them, and the model pads and ends as it does. `saving` goes to save_pretrained.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    for about in (model.config, model.generation_config):
        about.pad_token_id, about.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.save_pretrained(folder, **saving)
    tokenizer.save_pretrained(folder)
    return folder
