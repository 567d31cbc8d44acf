# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 T4 training
#
# You fine-tune a 4-bit model with LoRA adapters, from the config to the saved adapter, and measure on held-out rows whether it got better.
# Every call is the library's own. The same cells are written for a free Colab T4 with a 7B model and for a CPU with the bundled model. We
# have not run them on a physical T4: [measurements/](../measurements/README.md) holds runs on a larger GPU held to a T4's rules.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** nothing; lessons 01 and 02 explain the 4-bit
# numbers and the memory.

# %% tags=["parameters"]
model_id = "auto"  # the bundled model on a CPU, a 7B model on a GPU; or a preset, a folder, a hub id
dataset_id = "auto"
seed = 0
rank = 16
lora_alpha = 32
lora_dropout = 0.0
target_modules = "all-linear"
quant_type = "nf4"
double_quant = True
max_steps = "auto"
batch_size = "auto"
gradient_accumulation = "auto"
max_length = "auto"
learning_rate = "auto"
optimizer = "auto"
checkpointing = "auto"
eval_rows = 256
output_dir = "auto"

# %%
from helpers.results import begin, record, table, verdict

run = begin(
    "03_t4_training", large_model=True, with_data=True,
    model_id=model_id, dataset_id=dataset_id, seed=seed, rank=rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
    target_modules=target_modules, quant_type=quant_type, double_quant=double_quant, max_steps=max_steps,
    batch_size=batch_size, gradient_accumulation=gradient_accumulation, max_length=max_length,
    learning_rate=learning_rate, optimizer=optimizer, checkpointing=checkpointing, eval_rows=eval_rows,
    output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# From here on, memory is watched. Each phase of the lesson gets its own colour in a figure further down.

# %%
from transformers import set_seed

from helpers.monitor import MemoryMonitor

set_seed(settings.seed)
monitor = MemoryMonitor().start()

# %% [markdown]
# ## 1 The 4-bit config
#
# Three of the defaults are not what QLoRA uses, so all three are set: `fp4` becomes `nf4` (levels where a bell curve has its
# weights), no double quantization becomes double quantization (the constants are quantized too), and computing in float32 becomes
# computing in what this machine multiplies fast (on a CPU that is float32 again). A T4 has no bfloat16 units: there it must be float16,
# whatever `torch.cuda.is_bf16_supported()` says, because that function also answers True for emulation.

# %%
from transformers import BitsAndBytesConfig

defaults = BitsAndBytesConfig(load_in_4bit=True)
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type=settings.quant_type,
    bnb_4bit_use_double_quant=settings.double_quant,
    bnb_4bit_compute_dtype=run.machine.torch_dtype,
)
names = ["bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"]
table([{"field": n, "default": getattr(defaults, n), "here": getattr(quantization, n)} for n in names])

# %% [markdown]
# ## 2 The base model, quantized while it loads
#
# `from_pretrained` quantizes each linear layer as it arrives. Two traps of some machines are switched off here: a repacking of the
# weights on some CPUs, and slow attention on GPUs before Ampere. `helpers/workarounds.py` says for each what it cures and until when.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.workarounds import keep_4bit_layout, repeat_kv_heads

repeat_kv_heads(run.machine)
with monitor.phase("load"):
    tokenizer = AutoTokenizer.from_pretrained(run.model.path)
    model = AutoModelForCausalLM.from_pretrained(
        run.model.path,
        quantization_config=quantization,
        dtype=run.machine.torch_dtype,
        device_map=run.machine.device_map,
    )
model = keep_4bit_layout(model)

# %% [markdown]
# What became 4-bit, and what did not? The linear layers inside the blocks did: two weights in a byte. The embeddings, the output
# head and the norms stay as they were.

# %%
import bitsandbytes as bnb

packed = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
weights = sum(m.in_features * m.out_features for m in packed)
stored = sum(m.weight.numel() * m.weight.element_size() for m in packed)
print(f"{len(packed)} linear layers hold {weights:,} weights in {stored:,} bytes")
verdict("a 4-bit layer stores two weights in a byte", weights == 2 * stored)

# %% [markdown]
# ## 3 The data
#
# Instructions come in Alpaca's three fields. TRL wants two columns, a prompt and a completion; it then computes the loss on the
# completion only, and ends each completion with the end-of-sequence token, so that the model learns when to stop.

# %%
from helpers.data import to_prompt_completion

columns = run.rows["train"].column_names
train_rows = run.rows["train"].map(to_prompt_completion, remove_columns=columns)
heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
eval_rows = heldout.map(to_prompt_completion, remove_columns=heldout.column_names)
print(train_rows[0]["prompt"] + train_rows[0]["completion"])

# %% [markdown]
# The bundled held-out questions are about other countries, elements, words than those to learn from. The bundled model read about
# all of them in its pre-training; the instructions only show it how to answer. If it can then answer the held-out ones, it learned
# the task and not a list.

# %%
if run.model.bundled:
    asked = {split: {(row["subject"], row["entity"]) for row in run.rows[split]} for split in run.rows}
    verdict("no held-out entity is in the training rows", not asked["train"] & asked["heldout"])

# %% [markdown]
# ## 4 Before training
#
# How good is the 4-bit base model at this already? An answer counts only if it is the expected text and nothing else.

# %%
from helpers.data import alpaca_prompt, answer, exact_match

model.eval()
with monitor.phase("evaluate"):
    exact_match_before = exact_match(model, tokenizer, heldout)
    shown = heldout.select(range(4))
    answers_before = answer(model, tokenizer, [alpaca_prompt(r["instruction"], r["input"]) for r in shown])
print(f"exact match before: {exact_match_before:.1%} of {len(heldout)} held-out rows")
verdict("the base model answers almost none of them in the form that was asked for", exact_match_before <= 0.1)

# %% [markdown]
# Does it not know, or can it not say? The bundled model read its facts as quiz pages: a question, then `Answer:`, then the answer on
# a line of its own. Ask the same held-out questions in that form, and look at the first line only.

# %%
if run.model.bundled:
    asked = [r for r in heldout if not r["input"]]
    with monitor.phase("evaluate"):
        lines = answer(model, tokenizer, [f"{r['instruction']}\nAnswer:\n" for r in asked])
    known = sum(line.split("\n")[0] == r["output"] for line, r in zip(lines, asked, strict=True)) / len(asked)
    verdict("asked as it was taught, the base model knows at least 95% of the same answers", known >= 0.95)

# %% [markdown]
# So the bundled model has the knowledge before any tuning. What fine-tuning has to teach it is the form: read the template, answer, stop.
#
# ## 5 The adapters
#
# LoRA leaves a weight matrix $W$ as it is and adds a product of two thin matrices, $\frac{\alpha}{r} B A$. $r$, the rank, is how thin
# they are; $\alpha / r$ scales the product. $B$ starts at zero, so at first nothing changes. Only $A$ and $B$ are trained.
# A layer with `i` inputs and `o` outputs gets `rank * (i + o)` numbers: you can count them before PEFT makes them.

# %%
from peft import LoraConfig

lora = LoraConfig(
    r=settings.rank,
    lora_alpha=settings.lora_alpha,
    lora_dropout=settings.lora_dropout,
    target_modules="all-linear" if settings.target_modules == "all-linear" else settings.target_modules.split(","),
    bias="none",
    task_type="CAUSAL_LM",
)
targets = packed if settings.target_modules == "all-linear" else [
    m for name, m in model.named_modules() if name.split(".")[-1] in lora.target_modules
]
counted = sum(settings.rank * (m.in_features + m.out_features) for m in targets)

# %% [markdown]
# ## 6 The training arguments
#
# - `per_device_train_batch_size` rows go through at once; `gradient_accumulation_steps` adds up several such batches before one step.
# - `learning_rate` climbs in the first steps (`warmup_steps`) and then falls along a cosine. A tiny model takes a larger one.
# - `optim`: Adam keeps two averages a trained number; the 8-bit and paged kinds keep them smaller or elsewhere (lesson 02).
# - `fp16` or `bf16` follows the machine. `max_grad_norm` cuts off wild gradients.
# - `activation_checkpointing` recomputes activations instead of keeping them: more time, less memory. A small model does without.
# - `eval_strategy` measures the held-out loss on the way.
#
# Older texts call some of these otherwise: `max_seq_length`, `warmup_ratio`, `gradient_checkpointing`.

# %%
from trl import SFTConfig

arguments = SFTConfig(
    output_dir=str(run.folder / "checkpoints"),
    max_steps=settings.max_steps,
    per_device_train_batch_size=settings.batch_size,
    gradient_accumulation_steps=settings.gradient_accumulation,
    per_device_eval_batch_size=settings.batch_size,
    max_length=settings.max_length,
    learning_rate=settings.learning_rate,
    lr_scheduler_type="cosine",
    warmup_steps=0.03,  # below 1 it is a share of all steps
    max_grad_norm=0.3,
    optim=settings.optimizer,
    fp16=run.machine.dtype == "float16",
    bf16=run.machine.dtype == "bfloat16",
    use_cpu=run.machine.device == "cpu",
    activation_checkpointing=settings.checkpointing,
    gradient_checkpointing=None,  # the old name of the same thing, which TRL would switch on
    logging_steps=max(1, settings.max_steps // 20),
    eval_strategy="steps",
    eval_steps=max(1, settings.max_steps // 4),
    eval_on_start=True,
    save_strategy="no",
    report_to="none",
    seed=settings.seed,
)

# %% [markdown]
# ## 7 The trainer, and one cure
#
# `SFTTrainer` puts the adapters on. It also casts them to bfloat16 because the base is quantized. With `fp16=True`, which a T4
# needs, the gradient scaler then stops with an error; so the adapters go back to float32 first.

# %%
from trl import SFTTrainer

from helpers.workarounds import adapters_to_float32

with monitor.phase("prepare"):
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows.select(range(min(64, len(eval_rows)))),  # the loss on the way; exact match takes all
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[monitor.callback()],
    )
as_trl_left_them = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
adapters_to_float32(trainer)
print("adapters:", *as_trl_left_them, "-> torch.float32")

# %%
trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
everything = weights + sum(p.numel() for p in trainer.model.parameters() if p.dtype != packed[0].weight.dtype)
print(f"{trainable:,} of {everything:,} parameters are trained: {trainable / everything:.2%}")
verdict("PEFT trains exactly the parameters that we counted", trainable == counted)

# %% [markdown]
# Which tokens does the loss see? One row, as the trainer will feed it: tokens in brackets are masked, the loss skips them.

# %%
batch = trainer.data_collator([trainer.train_dataset[0]])
pieces = [tokenizer.decode([t]) for t in batch["input_ids"][0]]
masked = (batch["labels"][0] == -100).tolist()
print("".join(f"[{p}]" if m else p for p, m in zip(pieces, masked, strict=True)))
verdict("the loss sees the answer and the end-of-sequence token", batch["labels"][0][-1] == tokenizer.eos_token_id)

# %% [markdown]
# ## 8 Train

# %% tags=["nbval-ignore-output"] reason="seconds, memory and losses vary with the machine"
import time

begun = time.perf_counter()
with monitor.phase("forward and backward"):
    trained = trainer.train()
train_seconds = time.perf_counter() - begun
print(f"{trained.global_step} steps in {train_seconds:.1f} s, mean loss {trained.training_loss:.3f}")

# %% [markdown]
# The mean is over all steps, and the first ones dominate it. The curves say more. The training loss falls, and so must the held-out loss,
# or the model is only learning the rows by heart.

# %%
from helpers import plots

history = trainer.state.log_history
train_curve = [(h["step"], h["loss"]) for h in history if "loss" in h]
eval_curve = [(h["step"], h["eval_loss"]) for h in history if "eval_loss" in h]
fell = eval_curve[-1][1] < eval_curve[0][1]
figure = plots.curves(
    {"training": tuple(zip(*train_curve)), "held out": tuple(zip(*eval_curve))},
    f"The held-out loss {'falls with' if fell else 'does not follow'} the training loss", "step", "loss (nats per token)",
    log=True,
)  # fmt: skip
plots.show(figure, alt="Training and held-out loss over the training steps, on a logarithmic scale")

# %%
verdict("the held-out loss fell", fell)

# %% [markdown]
# ## 9 After training
#
# The same prompts, the same rule: the expected text and nothing else.

# %%
model = trainer.model.eval()
with monitor.phase("evaluate"):
    exact_match_after = exact_match(model, tokenizer, heldout)
    answers_after = answer(model, tokenizer, [alpaca_prompt(r["instruction"], r["input"]) for r in shown])
verdict("no fewer held-out rows are answered exactly than before", exact_match_after >= exact_match_before)
if run.model.bundled and settings.max_steps >= 40 and settings.rank >= 8:  # a rerun may ask for less
    verdict("at least 95% of the held-out rows are answered exactly", exact_match_after >= 0.95)
if not run.model.bundled:
    print("Free answers have many right forms: exact match says little here, the held-out loss is the measure.")

# %% tags=["nbval-ignore-output"] reason="answers before training and shares vary with the machine"
rows = zip(shown, answers_before, answers_after, strict=True)
print(f"exact match: {exact_match_before:.1%} before, {exact_match_after:.1%} after")
table([{"asked": r["instruction"], "input": r["input"], "expected": r["output"], "before": b, "after": a} for r, b, a in rows])

# %% [markdown]
# Look at the column "before". The bundled model never met this form, so it talks of something else and does not stop. After training it
# answers and stops, and none of these questions was about anything in the training rows.
#
# ## 10 What it cost, and did it fit?
#
# On a GPU this is the memory of the run, next to what the GPU has. On a CPU it is the memory of the whole Python process: most of it is
# Python and its libraries, and it says nothing about a GPU. Each tooth is one step: activations pile up, then they are freed.

# %% tags=["nbval-ignore-output"] reason="memory varies with the machine"
monitor.stop()
unit, kind = ("GB", "GPU memory") if run.machine.device == "cuda" else ("MB", "resident memory")
top = max(monitor.peaks, key=monitor.peaks.get)
figure = plots.memory_timeline(monitor.samples, f"The {kind} is highest in phase '{top}'", unit)
print(f"peak {kind}: {monitor.peak_bytes / 1e6:,.0f} MB" + (
    f" of {run.machine.gpu_bytes / 1e6:,.0f} MB on this GPU" if run.machine.device == "cuda" else ""))  # fmt: skip
plots.show(figure, alt=f"{kind} over the course of the lesson, coloured by phase")

# %% [markdown]
# ## 11 Save the adapter
#
# What is saved is the adapter, two matrices for each layer with a small config, and the tokenizer beside it. The base model stays where
# it is. The folder gets its name last, so you never find half an adapter.

# %%
from helpers.results import replace_folder

with replace_folder(run.adapter) as folder:
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
weights_file = run.adapter / "adapter_model.safetensors"
verdict("the adapter is one safetensors file beside its config", (run.adapter / "adapter_config.json").is_file())
verdict("it holds four bytes for each trained parameter, and a short header",
        0 <= weights_file.stat().st_size - 4 * trainable < 200_000)  # fmt: skip

# %%

record(
    exact_match_before=exact_match_before,
    exact_match_after=exact_match_after,
    heldout_loss_before=eval_curve[0][1],
    heldout_loss_after=eval_curve[-1][1],
    final_loss=train_curve[-1][1],
    train_seconds=train_seconds,
    peak_bytes=monitor.peak_bytes,
    peak_bytes_by_phase=monitor.peaks,
    trainable_parameters=trainable,
    adapter_bytes=weights_file.stat().st_size,
    train_loss=train_curve,
)

# %% [markdown]
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once.
#
# **1.** Mistral-7B has 32 layers. `q_proj` and `o_proj` map 4096 to 4096; `k_proj` and `v_proj` map 4096 to 1024. How many
# parameters does LoRA train with rank 8 on these four? (8,388,608 is Llama-7B's number: its `k_proj` and `v_proj` map 4096 to 4096.)

# %%
from helpers.checks import check

mistral_trainable = ...
check("03.1", mistral_trainable)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# mistral_trainable = 32 * 8 * ((4096 + 4096) * 2 + (4096 + 1024) * 2)
# check("03.1", mistral_trainable)
# ```
# </details>
#
# **2.** With `per_device_train_batch_size=4` and `gradient_accumulation_steps=4` on one GPU, how many rows does one
# optimizer step see?

# %%
rows_a_step = ...
check("03.2", rows_a_step)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# rows_a_step = 4 * 4
# check("03.2", rows_a_step)
# ```
# </details>
#
# **3.** On a T4, which of `"bfloat16"`, `"float16"`, `"float32"` should `bnb_4bit_compute_dtype` be?

# %%
compute_dtype_on_a_t4 = ...
check("03.3", compute_dtype_on_a_t4)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# compute_dtype_on_a_t4 = "float16"
# check("03.3", compute_dtype_on_a_t4)
# ```
# </details>
#
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
table([
    {"question": "what is trained", "this run": f"{trainable:,} of {everything:,} parameters"},
    {"question": "exact match on held-out rows", "this run": f"{exact_match_before:.1%} before, {exact_match_after:.1%} after"},
    {"question": "held-out loss", "this run": f"{eval_curve[0][1]:.3f} before, {eval_curve[-1][1]:.3f} after"},
    {"question": "time and peak memory", "this run": f"{train_seconds:.0f} s, {monitor.peak_bytes / 1e9:.2f} GB"},
    {"question": "size of the adapter", "this run": f"{weights_file.stat().st_size / 1e6:.2f} MB"},
])  # fmt: skip

# %% [markdown]
# Next: [04 Inference](04_inference.ipynb) loads the adapter that you just saved.
