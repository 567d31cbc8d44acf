"""One run of measure_arms.py: load a base, train one arm of it, and measure what came out. See quality_design.toml."""

import base64
import contextlib
import datetime
import functools
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import quality_tasks

from helpers.data import to_chat, with_template
from helpers.evaluation import completion_loss, evaluate, score_fields
from helpers.machine import detect
from helpers.training import adapters_to_float32, keep_4bit_layout

# isort: split
import torch  # after helpers, which says how its threads wait

BUNDLED = quality_tasks.COURSE / "assets" / "base_model"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
LINEAR, ATTENTION = "all-linear", ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True)
class Job:
    """What one run is. `phase` is "search" or "runs".

    `like` is the seed of the LoRA run that a run is compared with. `reference`: it is trained anew for its adapter alone,
    and no row is kept.
    """

    phase: str
    task: str
    arm: str
    seed: int
    learning_rate: float
    like: int | None = None
    reference: bool = False


class Bench:
    """All that runs of one task share in a process: tokenizer, tokens to learn, rows to score, text, yardsticks."""

    def __init__(self, design: dict, task: str, phase: str, folder: str | None):
        from datasets import Dataset
        from transformers import AutoTokenizer

        self.machine = detect()
        self.settings = design["tasks"][task]
        self.model = self.settings["model"]
        self.path = str(BUNDLED if self.model == "bundled" else folder)
        wanted = self.machine.dtype if self.machine.device == "cuda" else "float32"
        self.dtype = "float32" if self.settings["compute"] == "float32" else wanted
        self.tokenizer = with_template(AutoTokenizer.from_pretrained(self.path))
        if self.tokenizer.pad_token is None:  # Mistral's and Llama's have none; what is padded is masked
            self.tokenizer.pad_token = self.tokenizer.eos_token
        few = self.settings.get("few")  # to try the script
        self.rows = quality_tasks.rows_of_task(task, phase)
        self.asked = self.rows.score[:few]
        self.score = Dataset.from_list(self.asked)
        self.learn = [self.tokens(row) for row in self.rows.learn]
        self.known = quality_tasks.known_before(self.model)[:few]
        self.yardsticks: dict = {}

    def tokens(self, row: dict) -> dict[str, list[int]]:
        """A row as TRL makes it of prompt and completion: the loss sees the answer and what ends it."""
        pair = to_chat(row)
        asked = self.tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True)["input_ids"]
        whole = self.tokenizer.apply_chat_template(pair["prompt"] + pair["completion"])["input_ids"]
        return {"input_ids": whole, "labels": [-100] * len(asked) + whole[len(asked) :]}

    def in_order(self, seed: int, steps: int) -> list[dict]:
        """The rows of all steps one after the other, shuffled anew for each epoch: the same for every arm.

        Where the design has `learn`, the seed also chooses which rows are learned: so many.
        """
        chance, needed, order = random.Random(seed), steps * self.settings["batch"], []
        learn = chance.sample(self.learn, self.settings.get("learn", len(self.learn)))
        while len(order) < needed:
            order += chance.sample(learn, len(learn))
        return order[:needed]

    @functools.cached_property
    def windows(self) -> torch.Tensor:
        """Text that no run learns, as int64 token ids of shape (windows, tokens)."""
        count, length = self.settings["windows"]
        text = quality_tasks.text(self.model)
        ids = self.tokenizer(text[: 20 * count * length], return_token_type_ids=False)["input_ids"]
        return torch.tensor(ids[: count * length]).view(count, length).to(self.machine.device)

    def padded(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        kinds = {"input_ids": self.tokenizer.pad_token_id, "labels": -100}
        batch = {
            name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
            for name, fill in kinds.items()
        }
        length = torch.tensor([[len(row["input_ids"])] for row in rows])
        batch["attention_mask"] = (torch.arange(width) < length).long()
        return {name: tensor.to(self.machine.device) for name, tensor in batch.items()}

    @functools.cached_property
    def compared(self) -> dict[str, torch.Tensor]:
        """The answers at which two models are compared: those of the first held-out rows."""
        return self.padded([self.tokens(row) for row in self.asked[: self.settings["compared_rows"]]])

    @functools.cached_property
    def recalled(self) -> dict[str, torch.Tensor]:
        rows = []
        for prompt, answer in self.known:
            asked = self.tokenizer(prompt)["input_ids"]
            whole = self.tokenizer(prompt + answer)["input_ids"]
            rows.append({"input_ids": whole, "labels": [-100] * len(asked) + whole[len(asked) :]})
        return self.padded(rows)

    def autocast(self):
        """The context in which a trained model computes: mixed precision where the arms do not compute in float32."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.machine.device, dtype=getattr(torch, self.dtype))

    def load(self, bits: str = "16", whole: bool = False):
        """The base in eval mode: `bits` is "16" (not quantized), nf4, fp4 or int8; `whole`: to train all of it, in float32."""
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        dtype = torch.float32 if whole else getattr(torch, self.dtype)
        quantization = None
        if bits == "int8":
            quantization = BitsAndBytesConfig(load_in_8bit=True)
        elif bits != "16":
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=bits,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        model = AutoModelForCausalLM.from_pretrained(
            self.path, quantization_config=quantization, dtype=dtype, device_map=self.machine.device_map
        )
        return keep_4bit_layout(model).eval()


def bench(design: dict, task: str, phase: str, folder: str | None, _made={}) -> Bench:  # noqa: B006
    if (task, phase) not in _made:
        _made[task, phase] = Bench(design, task, phase, folder)
    return _made[task, phase]


def log_probabilities(model, here: Bench, batch: dict) -> torch.Tensor:
    """Float32, shape (labelled tokens, vocabulary): what the model expects where the batch has a label."""
    with torch.no_grad(), here.autocast():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits[:, :-1][batch["labels"][:, 1:] != -100].float().log_softmax(-1)


def expectations(model, here: Bench) -> dict[str, torch.Tensor]:
    """What a model expects at the answers of the compared rows, and at each token of a few windows of text."""
    windows = here.windows[: here.settings["compared_windows"]]
    text = {"input_ids": windows, "labels": windows, "attention_mask": torch.ones_like(windows)}
    return {"answers": log_probabilities(model, here, here.compared), "text": log_probabilities(model, here, text)}


def distance(found: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> dict[str, float]:
    """For answers and text: the mean Kullback-Leibler divergence from the reference, in nats a token."""
    return {
        name: torch.nn.functional.kl_div(found[name], reference[name], reduction="none", log_target=True)
        .sum(-1)
        .mean()
        .item()
        for name in reference
    }


def kept_knowledge(model, here: Bench) -> dict[str, float]:
    """The share of facts known before that are still said, greedily and in plain words, and the perplexity of new text."""
    batch, hits, surprise = here.recalled, 0, 0.0
    with torch.no_grad(), here.autocast():
        for at in range(0, len(batch["labels"]), 128):
            part = {name: tensor[at : at + 128] for name, tensor in batch.items()}
            logits = model(part["input_ids"], attention_mask=part["attention_mask"], use_cache=False).logits
            labels = part["labels"][:, 1:]
            hits += ((logits[:, :-1].argmax(-1) == labels) | (labels == -100)).all(-1).sum().item()
        for window in here.windows.split(16):
            logits = model(window, use_cache=False).logits[:, :-1].float()
            surprise += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum"
            ).item()
    tokens = here.windows[:, 1:].numel()
    return {"recall": hits / len(batch["labels"]), "perplexity": math.exp(surprise / tokens)}


def adapters(arm: dict):
    """The arm's LoraConfig; None where all weights are trained."""
    from peft import LoraConfig

    if arm.get("full"):
        return None
    return LoraConfig(
        r=arm["rank"], lora_alpha=arm["alpha"], lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=ATTENTION if arm.get("layers") == "attention" else LINEAR,
        use_rslora=arm.get("rslora", False), use_dora=arm.get("dora", False),
    )  # fmt: skip


def train(model, here: Bench, arm: dict, job: Job):
    """(trained model, its training's seconds, losses of its steps)."""
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    steps = here.settings["steps"]
    set_seed(job.seed)
    arguments = SFTConfig(
        output_dir=tempfile.gettempdir(), max_steps=steps, per_device_train_batch_size=here.settings["batch"],
        learning_rate=job.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.1, max_grad_norm=1.0,
        optim="adamw_torch", weight_decay=0.0, max_length=here.settings["max_length"],
        train_sampling_strategy="sequential", use_cpu=here.machine.device == "cpu",
        bf16=here.dtype == "bfloat16", fp16=here.dtype == "float16", activation_checkpointing=False,
        gradient_checkpointing=None, save_strategy="no", logging_steps=max(1, steps // 10), report_to="none",
        disable_tqdm=True, seed=job.seed,
    )  # fmt: skip
    if (config := adapters(arm)) is not None:
        model = get_peft_model(model, config)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    rows = Dataset.from_list(here.in_order(job.seed, steps))
    trainer = SFTTrainer(model=model, args=arguments, processing_class=here.tokenizer, train_dataset=rows)
    adapters_to_float32(trainer)
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:  # TRL has rounded the adapters of a quantized model to bfloat16: all arms begin alike
            weight.data.copy_(start[name])
    trainer.remove_callback(PrinterCallback)
    begun = time.perf_counter()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model.eval(), time.perf_counter() - begun, losses


def scores(model, here: Bench) -> dict:
    """Held-out loss and score, whole and of each row: `hits` as hexadecimal bits, the rows' nats as float16 in base64."""
    import numpy

    with here.autocast():
        found = evaluate(model, here.tokenizer, here.score, here.settings["new_tokens"], here.settings["asked_at_once"])
    if "messages" not in here.asked[0]:
        hits = [said == row["output"] for said, row in zip(found.answers, here.asked, strict=True)]
    else:
        hits = list(score_fields(found.answers, [json.loads(row["output"]) for row in here.asked]).right)
    nats = numpy.array([nats for nats, _ in found.row_losses], dtype="<f2")
    return {
        "rows": len(hits), "score": sum(hits) / len(hits), "hits": bits_of(hits), "loss": found.loss,
        "tokens": sum(tokens for _, tokens in found.row_losses), "nats": base64.b64encode(nats.tobytes()).decode(),
    }  # fmt: skip


def bits_of(hits: list[bool]) -> str:
    """Hexadecimal: the first row is the highest bit, and the last digit is filled up with zeros."""
    filled = "".join("01"[hit] for hit in hits) + "0" * (-len(hits) % 4)
    return f"{int(filled, 2):0{len(filled) // 4}x}"


def reference_file(folder: Path, task: str, seed: int) -> Path:
    return folder / f"{task}-{seed}"


def reference(here: Bench, job: Job, folder: Path) -> tuple[dict, dict | None]:
    """(what the base expects that is not quantized, what its LoRA run expects that this one is compared with)."""
    from peft import PeftModel

    model = here.load()
    if "base" not in here.yardsticks:
        here.yardsticks["base"] = expectations(model, here)
    if (job.arm, job.seed) == ("lora", job.like):
        return here.yardsticks["base"], None
    tuned = PeftModel.from_pretrained(model, str(reference_file(folder, job.task, job.like))).eval()
    return here.yardsticks["base"], expectations(tuned, here)


def before(model, here: Bench, bits: str, base: dict) -> dict:
    """What is measured before training; it depends on the base alone, so it is done once in a process."""
    if bits not in here.yardsticks:
        with here.autocast():
            loss = completion_loss(model, here.tokenizer, here.score, here.settings["asked_at_once"])
        known = {f"{name}_before": value for name, value in kept_knowledge(model, here).items()}
        apart = {f"{name}_distance_before": v for name, v in distance(expectations(model, here), base).items()}
        here.yardsticks[bits] = {"loss_before": loss} | known | apart
    return here.yardsticks[bits]


def saved_bytes(model, arm: dict) -> int:
    """The bytes of the adapter's file; of a model that was trained whole, two for each number."""
    if arm.get("full"):
        return sum(2 * weight.numel() for weight in model.parameters())
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        return (Path(place) / "adapter_model.safetensors").stat().st_size


def run(design: dict, job: Job, folder: str | None, references: Path) -> dict:
    """Train and measure; returns the row."""
    here, arm, cuda = bench(design, job.task, job.phase, folder), design["arms"][job.arm], torch.cuda.is_available()
    whole, bits, found = bool(arm.get("full")), arm.get("bits", "16"), {}
    if job.phase == "runs" and not job.reference:
        base, tuned = reference(here, job, references)
        gc.collect()
    held = torch.cuda.memory_allocated() if cuda else 0
    model = here.load(bits, whole)
    if job.phase == "runs" and not job.reference:
        found |= before(model, here, "whole" if whole else bits, base)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    model, seconds, losses = train(model, here, arm, job)
    found |= {
        "train_seconds": seconds, "train_losses": losses,
        "peak_bytes": torch.cuda.max_memory_allocated() - held if cuda else None,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }  # fmt: skip
    if job.phase == "runs":
        if job.arm == "lora":
            keep_reference(model, reference_file(references, job.task, job.seed))
        if not job.reference:
            found |= {f"{name}_after": value for name, value in kept_knowledge(model, here).items()}
            if tuned is not None:
                apart = distance(expectations(model, here), tuned)
                found |= {f"{name}_distance_after": value for name, value in apart.items()}
            found |= {"saved_bytes": saved_bytes(model, arm)}
    if not job.reference:
        found |= scores(model, here)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return about(here, job) | found


def keep_reference(model, place: Path) -> None:
    """Save an adapter, whole or not at all."""
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place.parent))
    model.save_pretrained(made)
    with contextlib.suppress(OSError):  # another process was first
        os.replace(made, place)


def about(here: Bench, job: Job) -> dict:
    """Which run this is, of what, and where it ran."""
    return {
        "phase": job.phase, "task": job.task, "arm": job.arm, "seed": job.seed, "learning_rate": job.learning_rate,
        "model": here.model, "steps": here.settings["steps"], "batch": here.settings["batch"], "rows_sha256": here.rows.sha256,
        "compute": here.dtype, "machine": str(here.machine).partition(":")[0], "threads": torch.get_num_threads(),
        "python": platform.python_version(), "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip
