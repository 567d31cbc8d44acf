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
# You fine-tune a 4-bit model with LoRA adapters: predict that it fits, train, watch it, survive a kill, save, and prove on held-out rows
# that the model got better. Every call is the library's own. The same cells are written for a free Colab T4 with a 7B model and for a CPU
# with the bundled model. We have not run them on a physical T4: [measurements/](../measurements/README.md) holds runs on a larger GPU
# held to a T4's rules.
#
# A QLoRA run is six steps: the 4-bit config (section 1), loading (3), the adapters (6), the data (4), the training arguments (7), and
# training and saving (8, 9). Between them stands what goes wrong on a T4, each trap where it arises.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** nothing; lessons 01 and 02 explain the 4-bit
# numbers and the memory.

# %% tags=["parameters"]
model_id = "auto"  # the bundled model on a CPU, a 7B model on a GPU; or a preset, a folder, a hub id
dataset_id = "auto"
seed = 0
rank = "auto"  # "auto", here and below: what the recipe for the model says (helpers/models/presets.py)
lora_alpha = "auto"
lora_dropout = "auto"
target_modules = "auto"
quant_type = "nf4"
double_quant = True
max_steps = "auto"
batch_size = "auto"
gradient_accumulation = "auto"
max_length = "auto"
learning_rate = "auto"
optimizer = "auto"
checkpointing = "auto"  # True, False, or "offload"
cuda_graphs = "auto"  # True or False: section 17
save_steps = "auto"
hub_repo = "none"  # or owner/name: checkpoints are pushed there, to a private repository
eval_rows = 256
output_dir = "auto"  # in Colab "drive": adapter and checkpoints go to your Google Drive, which outlives the machine

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "03_t4_training", large_model=True, with_data=True,
    model_id=model_id, dataset_id=dataset_id, seed=seed, rank=rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
    target_modules=target_modules, quant_type=quant_type, double_quant=double_quant, max_steps=max_steps,
    batch_size=batch_size, gradient_accumulation=gradient_accumulation, max_length=max_length,
    learning_rate=learning_rate, optimizer=optimizer, checkpointing=checkpointing, cuda_graphs=cuda_graphs,
    save_steps=save_steps, hub_repo=hub_repo, eval_rows=eval_rows, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# "Chosen for it" is a recipe. Two presets, both behind a login, carry the recipe of widely copied tutorials: `model_id="mistral-7b"` trains rank 8 on q, k, v
# and o, `model_id="llama-3.1-8b"` rank 16 on all linear layers. A value that you set yourself wins over any recipe.
#
# From here on, memory is watched. Each phase of the lesson gets its own colour in a figure further down.

# %%
from transformers import set_seed

from helpers.saving import (
    adapter_folder, checkpoint_fault, checkpoint_folder, last_complete_checkpoint, require_login,
)  # fmt: skip
from helpers.machine import Machine, MemoryMonitor

require_login(settings.hub_repo)  # one line now, not a trace after the download
set_seed(settings.seed)
monitor = MemoryMonitor().start()
on_gpu = run.machine.device == "cuda"

# %% [markdown]
# ## 1 The 4-bit config
#
# Three of the defaults are not what QLoRA uses, so all three are set: `fp4` becomes `nf4` (levels where a bell curve has its
# weights), no double quantization becomes double quantization (the constants are quantized too), and computing in float32 becomes
# computing in what this machine multiplies fast (on a CPU that is float32 again).

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
# **Trap 1: no bfloat16.** Most recipes say bfloat16. A T4 has no units for it, yet `torch.cuda.is_bf16_supported()` answers True there,
# for it counts emulation ([pytorch#148322](https://github.com/pytorch/pytorch/issues/148322)). The course asks for the compute
# capability, in `helpers/machine/hardware.py`: 8.0 and later have the units.

# %%
gpus = {"Tesla T4": (7, 5), "NVIDIA A100": (8, 0), "NVIDIA L4": (8, 9), "NVIDIA H200": (9, 0)}
computes_in = {name: Machine("cuda", name, 0, 0, 2, capability).dtype for name, capability in gpus.items()}
print(computes_in)
verdict(
    "on a T4, and on it alone of these, the course computes in float16", [*computes_in.values()].count("float16") == 1
)

# %% [markdown]
# ## 2 A budget, then a run
#
# Will it fit? Ask before you load. `RunSpec` names what decides memory, `predict` gives the peak and `plan` the fastest setting that
# leaves a twentieth of the GPU free (lesson 02 takes both apart). On a GPU this plans your run. On a CPU it plans what a T4 would do
# with the default 7B model.

# %%
from helpers.memory import GPUS, QKVO, CannotPredict, DoesNotFit, RunSpec, fits, gpu_of, plan, predict, shape_of
from helpers.models import AUTO_LARGE, BUNDLED_MODEL, PRESETS, RECIPES, bundled

ours = on_gpu and not run.model.bundled  # then the plan is for this run
shape = run.model.path if ours else PRESETS[AUTO_LARGE].shape
gpu, budget = (gpu_of(run.machine.name), run.machine.gpu_bytes) if on_gpu else ("t4", GPUS["t4"].total_bytes)
like_t4 = not on_gpu or not run.machine.native_bfloat16
asked = vars(settings) if ours else RECIPES["other"]

# %% [markdown]
# Two choices of this lesson make a run faster and smaller, so the plan has to know them. `liger_layers` has norms, rotary embedding and
# SwiGLU computed by faster kernels, on a GPU where [Liger](https://github.com/linkedin/Liger-Kernel) is installed
# (`pip install liger-kernel`); it comes before loading, for it replaces the model's classes. `fused_lora` has layers of one input and their
# adapters computed as one operation; it needs adapters without dropout. Section 17 shows what they bring.

# %%
from helpers.training import (
    MULTIPLE, OutOfMemory, adapters_to_float32, explain, explained, fewer_walks, fuse_lora, keep_4bit_layout,
    liger_layers, recorded, repeat_kv_heads, require_finite_logits, stop_when_not_finite,
)  # fmt: skip

dtype, targets = "float16" if like_t4 else "bfloat16", asked["target_modules"]
spec = RunSpec(
    quant_type=settings.quant_type, double_quant=settings.double_quant, load_dtype=dtype, compute_dtype=dtype,
    rank=asked["rank"], target_modules=targets if targets == "all-linear" else targets.split(","),
    lora_dropout=asked["lora_dropout"], optimizer=asked["optimizer"], batch_size=asked["batch_size"], seq_len=asked["max_length"],
    checkpoint_every=int(bool(asked["checkpointing"])), checkpoint_offload=asked["checkpointing"] == "offload",
    attention_kernels="t4" if like_t4 else "all", repeat_kv=like_t4, fused_lora=asked["lora_dropout"] == 0,
    layer_kernels="liger" if liger_layers(run.model.path, run.machine) else None,
)  # fmt: skip

# %% [markdown]
# How many rows at once? More rows are faster until memory ends. The number of rows in one optimizer step is part of the recipe, so the
# plan may only split it: fewer rows at once, more batches added up. It may also checkpoint every n-th layer: drop its activations and compute
# them again in the backward pass. And it may keep what is checkpointed in the computer's memory (offload). What you set yourself is left alone.

# %%
rows_a_step = asked["batch_size"] * asked["gradient_accumulation"]
free_batch = batch_size == gradient_accumulation == "auto"
choices = {"batch_size": [n for n in (1, 2, 4, 8, 16) if rows_a_step % n == 0] if free_batch else [spec.batch_size]}
if checkpointing == "auto":
    choices |= {"checkpoint_every": (0, 1, 2, 3, 4, 6, 8), "checkpoint_offload": (False, True)}
try:
    chosen = plan(shape, budget, spec, choices, gpu=gpu)
    print(f"{chosen.considered} settings, {chosen.fitting} of them fit {budget / 2**30:.2f} GiB. The fastest of these:")
    print(*(f"  {name} {reason}" for name, reason in chosen.reasons.items()), sep="\n")
except DoesNotFit:  # say so, and what to change, before anything is loaded
    raise OutOfMemory(explain(None, shape, spec, gpu, budget, asked["gradient_accumulation"])) from None
except CannotPredict as unknown:
    chosen = None
    print(f"No plan for this model, the recipe's settings stay ({unknown})")

# %% [markdown]
# "Fits" is for full rows. Rows that are shorter take less, so a run of short rows peaks well below its plan.

# %%
every, offload = int(bool(settings.checkpointing)), settings.checkpointing == "offload"
if ours and chosen:
    spec = chosen.spec
    settings.batch_size, settings.gradient_accumulation = spec.batch_size, rows_a_step // spec.batch_size
    every, offload = spec.checkpoint_every, spec.checkpoint_offload
if chosen:
    verdict(
        "the plan fits, and its tensors leave a twentieth of the GPU free",
        fits(chosen.prediction, gpu, budget, margin=0.05),
    )

# %% [markdown]
# And if memory runs out all the same? Then a line of advice serves you better than a stack trace. From here on, what may run out stands
# under `guarded()`: in place of the trace you get what was asked for, what was predicted, and which setting to change, in order, with
# the peak that each would have. Here it is at work on a run that is too large. The error is raised by hand; the numbers are predicted.

# %%
import dataclasses
import functools

import torch

guarded = functools.partial(explained, shape, spec, gpu, budget, settings.gradient_accumulation)
too_large = RunSpec(batch_size=16, seq_len=4096, checkpoint_every=0, repeat_kv=True)
try:
    with explained(PRESETS[AUTO_LARGE].shape, too_large, "t4", GPUS["t4"].total_bytes):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
except OutOfMemory as raised:
    advice = str(raised)
print(advice)
verdict("the advice ends in a setting that fits", advice.endswith("fits"))

# %% [markdown]
# ## 3 The base model, quantized while it loads
#
# `from_pretrained` quantizes each linear layer as it arrives. `device_map` puts all of it on one device. Two cures are at work here.
# `keep_4bit_layout` stops bitsandbytes from repacking the weights on some CPUs. The other one is for:
#
# **Trap 2: grouped queries fall to the slow attention kernel.** In today's models several query heads share one key and value head.
# transformers hands them to torch as they are, whatever the GPU; Turing's fused kernels refuse differing head counts, and torch falls
# back to a kernel whose memory grows with the square of the length
# ([transformers#48633](https://github.com/huggingface/transformers/issues/48633)). `repeat_kv_heads` repeats the shared heads before
# attention. What that is worth was measured under T4 rules, one row of 2,048 tokens through a 7B shape:

# %%
from helpers.records import measured_runs

repeat_kv_heads(run.machine)
measured = measured_runs("h200_memory_rows")
long = measured.query("model == 'Mistral-7B-v0.1' and batch_size == 1 and seq_len == 2048")
pair = long.query("attention_kernels == 't4'").set_index("repeat_kv").sort_index()
for repeated, size in pair.peak_bytes.items():
    print(f"{'repeated' if repeated else 'as they are':12} {size / 1e9:.2f} GB at the peak")
verdict("repeated heads take less memory", pair.peak_bytes[True] < pair.peak_bytes[False])

# %% [markdown]
# **Trap 3: flash attention.** `attn_implementation="flash_attention_2"` stands in many recipes. Where the package is missing, transformers
# refuses. Where it is there, transformers does not look at the GPU, and the first forward pass on a T4 ends in "FlashAttention only
# supports Ampere GPUs or newer" ([flash-attention#762](https://github.com/Dao-AILab/flash-attention/issues/762)). The cure is to leave the
# argument out: the default, `sdpa`, takes the best kernel that accepts the call.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

try:
    AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, attn_implementation="flash_attention_2")
    print("this machine has it")
except (ImportError, OSError, ValueError) as refused:
    print(str(refused).split("error: ")[-1])

# %% [markdown]
# Now load.

# %%
with guarded(), monitor.phase("load"):
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
# **Trap 4: the float32 upcast.** Many recipes call `prepare_model_for_kbit_training` as a must. It turns everything that is not 4-bit to
# float32: embeddings, head, norms, and with them the stream of activations. Try it on a small model in float16:

# %%
from peft import prepare_model_for_kbit_training

small = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, quantization_config=quantization, dtype=torch.float16)
packed_bytes = sum(p.nbytes for p in small.parameters() if p.dtype == torch.uint8)
before_upcast = sum(p.nbytes for p in small.parameters()) - packed_bytes
small = prepare_model_for_kbit_training(small, use_gradient_checkpointing=False)
after_upcast = sum(p.nbytes for p in small.parameters()) - packed_bytes
print(f"what is not 4-bit: {before_upcast:,} bytes before, {after_upcast:,} after")
verdict("the upcast doubles what is not 4-bit", after_upcast == 2 * before_upcast)
del small

# %%
both = (
    {up: predict(shape, dataclasses.replace(spec, upcast_non_quantized=up), gpu) for up in (False, True)}
    if chosen
    else {}
)
for upcast, prediction in both.items():
    print(f"{spec.batch_size} x {spec.seq_len} tokens, checkpoint_every={spec.checkpoint_every}, {'with' if upcast else 'without'} the upcast: "
          f"{prediction.peak_allocated / 2**30:.2f} GiB predicted at the peak")  # fmt: skip

# %% [markdown]
# So this lesson does not call it. What training on a frozen 4-bit base needs are frozen weights and inputs that carry gradients, and
# `SFTTrainer` sees to both.
#
# ## 4 The data
#
# Instructions come in Alpaca's three fields. The template has two forms: with an input and without.

# %%
from helpers.data import alpaca_prompt, load_instructions, to_prompt_completion

with_input = next((row for row in run.rows["train"] if row["input"]), None)
without = next((row for row in run.rows["train"] if not row["input"]), None)
for row in filter(None, (without, with_input)):
    print(alpaca_prompt(row["instruction"], row["input"]) + row["output"], end="\n" + "-" * 60 + "\n")

# %% [markdown]
# TRL wants two columns, a prompt and a completion. It then computes the loss on the completion only, and ends each completion with the
# end-of-sequence token (eos), so that the model learns when to stop.

# %%
columns = run.rows["train"].column_names
needed = max(4096, settings.max_steps * settings.batch_size * settings.gradient_accumulation)
rows = run.rows["train"].select(range(min(needed, len(run.rows["train"]))))
train_rows = rows.map(to_prompt_completion, remove_columns=columns)
heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
eval_rows = heldout.map(to_prompt_completion, remove_columns=columns)
at_home = run.model.bundled and settings.dataset_id in ("auto", "bundled")  # the bundled model on its own instructions
if at_home:
    about = {split: {(row["subject"], row["entity"]) for row in run.rows[split]} for split in run.rows}
    verdict(
        "no held-out row asks what a training row asks: no entity twice in one subject",
        not about["train"] & about["heldout"],
    )

# %% [markdown]
# The bundled held-out questions are about other countries, elements, words than those to learn from. The bundled model read about
# all of them in its pre-training; the instructions only show it how to answer. If it can then answer the held-out ones, it learned
# the task and not a list.
#
# ### Which tokens does the loss see?
#
# Build it by hand once. A label of -100 is masked: the loss skips it. What the loss sees is on a coloured ground.

# %%
from helpers import plots


def tokens_and_labels(row):
    prompt = tokenizer(row["prompt"])["input_ids"]
    whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
    return {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}


def in_colour(ids, labels):
    return plots.tokens_in_colour([tokenizer.decode([i]) for i in ids], [label != -100 for label in labels])


# %%
example = tokens_and_labels(train_rows[0])
in_colour(example["input_ids"], example["labels"])

# %% [markdown]
# Only the answer and the eos after it are learned. The model is not taught to write Alpaca's header.
#
# ### A chat template instead
#
# A model that was tuned to chat brings a template of its own: then use that one, and train on a column `messages` with
# `SFTConfig(assistant_only_loss=True)`. The bundled model has none. A template is a small program that writes a conversation as text;
# what stands between `generation` marks is what the loss sees.

# %%
template = (
    "{% for m in messages %}{% if m.role == 'user' %}### {{ m.content }}\n{% else %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
first = run.rows["train"][0]
messages = [{"role": "user", "content": first["instruction"]}, {"role": "assistant", "content": first["output"]}]
chat = tokenizer.apply_chat_template(
    messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
)
learned = [i for i, seen in zip(chat["input_ids"], chat["assistant_masks"]) if seen]
print(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))
verdict("the answer's end is inside the marks, so it is learned", learned[-1] == tokenizer.eos_token_id)

# %% [markdown]
# A template whose eos stands outside of the marks never teaches the model to stop. TRL warns of that.
#
# ### How long are the rows?

# %%
lengths = [len(tokens_and_labels(row)["input_ids"]) for row in train_rows]
cut = sum(n > settings.max_length for n in lengths)
figure = plots.histogram(lengths, f"{cut} of {len(lengths):,} rows are longer than max_length", "tokens in a row", "rows",
                         line=settings.max_length, line_label=f"max_length {settings.max_length}")  # fmt: skip
plots.show(figure, alt="Histogram of the rows' lengths in tokens, with max_length as a line")

# %% [markdown]
# A row longer than `max_length` loses its end, and with it the eos: too many of them, and you teach the model not to stop. A row whose
# prompt alone fills `max_length` teaches nothing; TRL drops it. So choose `max_length` from this picture, not from a recipe.
#
# ### Padding, or packing?
#
# The rows of a batch are filled up to the longest with padding, which costs time and teaches nothing. Packing puts several rows into one,
# `SFTConfig(packing=True)`. Then one row must not see the other: is that so without flash attention?

# %%
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

batch = [tokens_and_labels(row) for row in train_rows.select(range(min(settings.batch_size, len(train_rows))))]
widest = max(len(row["input_ids"]) for row in batch)
padding = 1 - sum(len(row["input_ids"]) for row in batch) / (widest * len(batch))
four = train_rows.select(range(4)).map(tokens_and_labels, remove_columns=["prompt", "completion"])
pack = pack_dataset(four, 4 * settings.max_length)[0]
together = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([pack])
print(
    f"padded to the longest, {padding:.0%} of the first {len(batch)} rows is padding; rows of {pack['seq_lengths']} tokens became one row"
)

# %%
ids, positions = (together[name].to(model.device) for name in ("input_ids", "position_ids"))
begins = [0, *torch.tensor(pack["seq_lengths"]).cumsum(0).tolist()]
with guarded(), monitor.phase("evaluate"), torch.no_grad():
    one_row = model(input_ids=ids, use_cache=False).logits[0]  # as if it were one text
    packed_row = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    alone = torch.cat([model(input_ids=ids[:, a:b], use_cache=False).logits[0] for a, b in zip(begins, begins[1:])])
size = functools.partial(torch.linalg.vector_norm, dtype=torch.float32)  # in float16 a sum of so many squares overflows
as_one, as_packed = ((size(logits - alone) / size(alone)).item() for logits in (one_row, packed_row))
del one_row, packed_row, alone
verdict("rows that are taken for one text see each other", as_one > 0.1)
verdict("packed rows get the logits that they get alone",
        as_packed < (1e-4 if run.machine.dtype == "float32" else as_one / 10))  # fmt: skip

# %% [markdown]
# It is: transformers sees from the positions, which start anew with each row, where one row ends, and builds a mask. It does so only with
# `use_cache=False`, as in training; a plain call on a pack lets the rows see each other. And the mask is as wide as the whole pack is
# long, in both directions: without flash attention packing saves padding and pays in attention. For rows as short as these, padding is
# the simpler choice, and this lesson takes it.
#
# ## 5 Before training
#
# First, does it compute numbers at all? The largest number of float16 is 65,504, and models that were made in bfloat16 may go beyond it:
# their logits are then infinite or "not a number", and training teaches nothing. Maintainers of Qwen2 answer such reports with "bfloat16 or
# float32" ([Qwen3#670](https://github.com/QwenLM/Qwen3/issues/670), [#868](https://github.com/QwenLM/Qwen3/issues/868)), and a T4 has no
# bfloat16. So this is checked before you wait for anything, and if it fails, one line names another model.

# %%
samples = [row["prompt"] + row["completion"] for row in train_rows.select(range(min(4, len(train_rows))))]
require_finite_logits(model, tokenizer, samples, run.model.name, settings.max_length)

# %% [markdown]
# How good is the 4-bit base model at this already? `evaluate` measures two things on the held-out rows: the loss on the answers' tokens,
# and exact match: an answer counts only if it is the expected text and nothing else. The interval says how far the share could be off
# with this number of rows (Wilson, 95%).

# %%
from helpers.evaluation import answer, evaluate

at_once = 64 if run.model.bundled else 8  # rows; logits of a large vocabulary take memory
prompts = [alpaca_prompt(row["instruction"], row["input"]) for row in heldout]
with guarded(), monitor.phase("evaluate"):
    before = evaluate(model, tokenizer, heldout, batch_size=at_once)
    answers_before = answer(model, tokenizer, prompts[:4])
print(f"exact match before: {before.exact_match:.1%} of {before.rows} held-out rows")
if at_home:
    verdict("the base model answers almost none of them in the form that was asked for", before.exact_match <= 0.1)

# %% [markdown]
# Does it not know, or can it not say? The bundled model read its facts as quiz pages: a question, then `Answer:`, then the answer on
# a line of its own. Ask held-out questions in that form, those that have no input, and look at the first line only.

# %%
if at_home:
    asked_plainly = [row for row in heldout if not row["input"]][:64]
    with monitor.phase("evaluate"):
        lines = answer(
            model, tokenizer, [f"{row['instruction']}\nAnswer:\n" for row in asked_plainly], max_new_tokens=8
        )
    known = sum(line.split("\n")[0] == row["output"] for line, row in zip(lines, asked_plainly)) / len(asked_plainly)
    verdict("asked as it was taught, the base model knows at least 95% of the answers", known >= 0.95)

# %% [markdown]
# So the bundled model has the knowledge before any tuning. What fine-tuning has to teach it is the form: read the template, answer, stop.
#
# ## 6 The adapters
#
# LoRA leaves a weight matrix $W$ as it is and adds a product of two thin matrices, $\frac{\alpha}{r} B A$. $r$, the rank, is how thin
# they are; $\alpha / r$ scales the product. $B$ starts at zero, so at first nothing changes. Only $A$ and $B$ are trained.
# `lora_dropout` zeroes some of the inputs of $A$ at random; `target_modules` says which layers get adapters; `bias="none"` trains no
# biases. A layer with `i` inputs and `o` outputs gets `rank * (i + o)` numbers: you can count them before PEFT makes them.

# %%
from peft import LoraConfig

everywhere = settings.target_modules == "all-linear"
lora = LoraConfig(
    r=settings.rank,
    lora_alpha=settings.lora_alpha,
    lora_dropout=settings.lora_dropout,
    target_modules="all-linear" if everywhere else settings.target_modules.split(","),
    bias="none",
    task_type="CAUSAL_LM",
)
targets = (
    packed if everywhere else [m for name, m in model.named_modules() if name.split(".")[-1] in lora.target_modules]
)
counted = sum(settings.rank * (m.in_features + m.out_features) for m in targets)

# %% [markdown]
# ## 7 The training arguments
#
# - `per_device_train_batch_size` rows go through at once; `gradient_accumulation_steps` adds up several such batches before one step.
# - `learning_rate` climbs in the first steps (`warmup_steps`) and then falls along a cosine. A tiny model takes a larger one.
# - `optim`: Adam keeps two averages a trained number; the 8-bit and paged kinds keep them smaller or elsewhere (section 14).
# - `fp16` or `bf16` follows the machine. `max_grad_norm` cuts off wild gradients.
# - `activation_checkpointing` recomputes activations instead of keeping them: more time, less memory. A small model does without.
# - `pad_to_multiple_of` makes batches of a few lengths only, where CUDA graphs are recorded, one for each length: on a GPU newer than a
#   T4 with memory to spare, if nothing is recomputed (section 17).
# - `eval_strategy` measures the held-out loss on the way.
# - `save_strategy` writes a checkpoint every `save_steps`, and `save_total_limit` keeps the last two: the one before, should the
#   last be half-written.
#
# Older texts call some of these otherwise: `max_seq_length`, `warmup_ratio`, `gradient_checkpointing`.

# %%
from trl import SFTConfig

# While a graph is recorded for a second length of rows, the activations of both lengths are there.
loaded, peak = (chosen.prediction.after_load, chosen.prediction.peak_allocated) if ours and chosen else (0, 0)
roomy = run.machine.native_bfloat16 and 2 * peak - loaded <= budget
wanted = roomy if settings.cuda_graphs == "auto" else settings.cuda_graphs
graphs = on_gpu and every == 0 and wanted
identity = vars(settings) | {"model": run.model.name, "data": run.data_name}  # what makes this run this run
checkpoints = checkpoint_folder(run.folder, **identity)
arguments = SFTConfig(
    output_dir=str(checkpoints),
    max_steps=settings.max_steps,
    per_device_train_batch_size=settings.batch_size,
    gradient_accumulation_steps=settings.gradient_accumulation,
    per_device_eval_batch_size=settings.batch_size,
    max_length=settings.max_length,
    pad_to_multiple_of=MULTIPLE if graphs else None,
    learning_rate=settings.learning_rate,
    lr_scheduler_type="cosine",
    warmup_steps=0.03,  # below 1 it is a share of all steps
    max_grad_norm=0.3,
    optim=settings.optimizer,
    fp16=run.machine.dtype == "float16",
    bf16=run.machine.dtype == "bfloat16",
    use_cpu=run.machine.device == "cpu",
    activation_checkpointing=every > 0,
    activation_checkpointing_kwargs={"every_n_layers": every, "offload": offload} if every else None,
    gradient_checkpointing=None,  # the old name of the same thing, which TRL would switch on
    logging_steps=max(1, settings.max_steps // 20),
    eval_strategy="steps",
    eval_steps=max(1, settings.max_steps // 4),
    eval_on_start=True,
    save_strategy="steps",
    save_steps=settings.save_steps,
    save_total_limit=2,
    push_to_hub=settings.hub_repo != "none",
    hub_model_id=None if settings.hub_repo == "none" else settings.hub_repo,
    hub_strategy="checkpoint",  # the last checkpoint goes along, in a folder last-checkpoint
    hub_private_repo=True,
    disable_tqdm=True,  # the panel below takes the bar's place
    report_to="none",
    seed=settings.seed,
)

# %% [markdown]
# ## 8 The trainer, and one cure
#
# `SFTTrainer` puts the adapters on. **Trap 5: adapters in bfloat16.** It also casts them to bfloat16, because the base is quantized
# ([peft#2889](https://github.com/huggingface/peft/issues/2889)). With `fp16=True`, which a T4 needs, the gradient scaler then stops:
# it has no kernel for bfloat16. So the adapters go back to float32 first.

# %%
from transformers import PrinterCallback
from trl import SFTTrainer

from helpers.widgets import training_panel

with guarded(), monitor.phase("prepare"):
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows.select(range(min(64, len(eval_rows)))),  # the loss on the way; exact match takes all
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[monitor.callback(), training_panel(monitor, run.machine.gpu_bytes)],
    )
trainer.remove_callback(PrinterCallback)  # the panel prints
as_trl_left_them = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
adapters_to_float32(trainer)
stop_when_not_finite(trainer)  # at the first loss that is no number, in one line; the trainer itself would go on
if on_gpu:
    fuse_lora(trainer.model)  # 4-bit layers of one input and their adapters as one operation: section 17
said = "yes; if memory runs out: cuda_graphs=False" if graphs else "no, they need a GPU and nothing recomputed"
print("CUDA graphs:", said if graphs or wanted else "no")
print("adapters:", *as_trl_left_them, "->", *{str(p.dtype) for p in trainer.model.parameters() if p.requires_grad})

# %%
trained_ones = [p for p in trainer.model.parameters() if p.requires_grad]
trainable = sum(p.numel() for p in trained_ones)
everything = weights + sum(p.numel() for p in trainer.model.parameters() if p.dtype != packed[0].weight.dtype)
print(f"{trainable:,} of {everything:,} parameters are trained: {trainable / everything:.2%}")
verdict("PEFT trains exactly the parameters that we counted", trainable == counted)
verdict("only adapters are trained, in float32", {p.dtype for p in trained_ones} == {torch.float32})

# %% [markdown]
# Does the trainer mask as you did by hand?

# %%
batch = trainer.data_collator([trainer.train_dataset[0]])
expected = {name: example[name][: settings.max_length] for name in ("input_ids", "labels")}
verdict("the trainer's tokens and labels are those built by hand", all(
    batch[name][0, : len(row)].tolist() == row for name, row in expected.items()))  # fmt: skip

# %% [markdown]
# ## 9 Train
#
# Free Colab disconnects. If this run was cut off, its last whole checkpoint is found and the run goes on from there; if there is none, it
# begins. The folder's name is made from the settings, so a run never goes on from another's checkpoint. Section 15 puts it to the test.
#
# While it trains, a panel shows memory, loss, tokens a second and the time left. What remains of it is a picture of the end.

# %% tags=["nbval-ignore-output"] reason="seconds, memory and losses vary with the machine"
import contextlib
import time

resume_from = last_complete_checkpoint(checkpoints)
begun = time.perf_counter()
faster = recorded(trainer) if graphs else contextlib.nullcontext([])  # section 17 says what these two are
with guarded(), monitor.phase("between steps"), fewer_walks(trainer), faster as recorded_shapes:
    trained = trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
train_seconds = time.perf_counter() - begun
print(f"{trained.global_step} steps in {train_seconds:.1f} s" + (f", from {resume_from.name}" if resume_from else ""))

# %% [markdown]
# **Save first.** What you just made lives in memory only, and a free machine can be taken away at any moment. So save it before you look at
# it. What is saved is the adapter, two matrices for each layer with a small config, and the tokenizer beside it. The folder gets its name
# last, once all of it is on the disk, so you never find half an adapter, and an adapter of another run is kept beside it. Only then have
# the checkpoints done their work.

# %%
import shutil

with adapter_folder(run.adapter, made_by="lesson 03", **identity) as folder:
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
shutil.rmtree(checkpoints, ignore_errors=True)

# %% [markdown]
# Where is it now? The table at the top of this lesson says so under "writes to". In Colab, that is a disk which is deleted with the machine,
# unless you began with `output_dir="drive"`.
#
# The training loss falls, and so must the held-out loss, or the model is only learning the rows by heart.


# %%
def curves_of(history):
    "(step, loss) pairs of training and of the held-out rows, from a trainer's log."
    return [[(h["step"], h[name]) for h in history if name in h] for name in ("loss", "eval_loss")]


train_curve, eval_curve = curves_of(trainer.state.log_history)
fell = eval_curve[-1][1] < eval_curve[0][1] and eval_curve[-1][1] <= 1.2 * min(loss for _, loss in eval_curve)
figure = plots.curves(
    {"training": tuple(zip(*train_curve)), "held out": tuple(zip(*eval_curve))},
    f"The held-out loss {'falls with' if fell else 'does not follow'} the training loss", "step", "loss (nats per token)",
    log=True,
)  # fmt: skip
plots.show(figure, alt="Training and held-out loss over the training steps, on a logarithmic scale")

# %%
verdict("the held-out loss fell, and did not rise again", fell,
        look_at="Look at the two curves above: few rows seen often are learned by heart (section 11). Your adapter is saved. "
                "Fewer steps or more rows help.")  # fmt: skip

# %% [markdown]
# ## 10 Better or not
#
# The same prompts, the same rule: the expected text and nothing else. Did it get better, or is it luck? If the intervals do not overlap,
# the choice of rows does not explain it.

# %%
model = trainer.model.eval()
with guarded(), monitor.phase("evaluate"):
    after = evaluate(model, tokenizer, heldout, batch_size=at_once)
    answers_after = answer(model, tokenizer, prompts[:4])
verdict("the loss on all held-out rows is lower than before", after.loss < before.loss,
        look_at=f"It was {before.loss:.3f} and is {after.loss:.3f}. Section 11 shows what too few rows do, lesson 06 what a wrong "
                "learning rate does. Your adapter is saved.")  # fmt: skip
if at_home and settings.max_steps >= 40 and settings.rank >= 8 and before.rows >= 64:  # a rerun may ask for less
    verdict("the intervals of exact match before and after do not overlap", before.interval[1] < after.interval[0])
    verdict("at least 95% of the held-out rows are answered exactly", after.exact_match >= 0.95)
if not run.model.bundled:
    print("Free answers have many right forms: exact match says little here, the held-out loss is the measure.")

# %% tags=["nbval-ignore-output"] reason="answers before training, losses and shares vary with the machine"
print(f"before: {before}\nafter:  {after}")
asked = zip(heldout["instruction"], heldout["input"], heldout["output"], answers_before, answers_after)
table(asked, columns=("asked", "input", "expected", "before", "after"))

# %% [markdown]
# Look at the column "before". The bundled model never met this form, so it talks of something else and does not stop. After training it
# answers and stops, and none of these questions, with its answer, stood in the training rows.
#
# ## 11 What overfitting looks like
#
# Eight rows, three times the learning rate, the same eight again and again. These small runs take the bundled model on any machine; they
# are done in seconds.

# %%
from helpers.quick import load_4bit, train_adapter

small_rows = load_instructions("bundled")[0]
(side := run.folder / "side-runs").mkdir(exist_ok=True)
with guarded(), monitor.phase("side runs"):
    few = train_adapter(
        bundled(), run.machine, small_rows["train"].select(range(8)), side / "few", steps=16, batch_size=8,
        learning_rate=3 * RECIPES["bundled"]["learning_rate"], heldout=small_rows["heldout"].select(range(32)),
    )  # fmt: skip

# %%
few_train, few_eval = curves_of(few["history"])
best = min(few_eval, key=lambda point: point[1])
figure = plots.curves(
    {"training, 8 rows": tuple(zip(*few_train)), "held out": tuple(zip(*few_eval))},
    f"Held out, the best step is {best[0]} of 16; after it the model learns its 8 rows by heart",
    "step", "loss (nats per token)", log=True,
)  # fmt: skip
plots.show(
    figure, alt="On eight rows the training loss falls to nearly zero while the held-out loss falls and then rises"
)

# %%
verdict("the training loss ends near zero", few_train[-1][1] < 0.02)
verdict("the held-out loss rises again from its lowest", few_eval[-1][1] > 1.2 * best[1])

# %% [markdown]
# The training loss alone would have told you that all is well. `load_best_model_at_end=True` with `metric_for_best_model="eval_loss"`
# keeps the best of the saved steps instead of the last (`save_steps` must
# then be a multiple of `eval_steps`). More rows help more.
#
# ## 12 A model that never stops
#
# It answers, and then goes on to ask itself the next question. The usual cause is two lines that stand in many notebooks: the padding
# token is set to eos, and a collator masks all padding. Look where the colour ends:

# %%
from transformers import DataCollatorForLanguageModeling as PlainCollator

common = AutoTokenizer.from_pretrained(run.model.path)
common.pad_token = common.eos_token
spoiled = PlainCollator(common, mlm=False)([{"input_ids": example["input_ids"]}])
in_colour(example["input_ids"], spoiled["labels"][0].tolist())

# %%
theirs = trainer.data_collator.__class__(pad_token_id=tokenizer.eos_token_id)([example])
verdict("with pad = eos, transformers' collator masks the eos", spoiled["labels"][0][-1] == -100)
verdict("TRL's pads by length and keeps it", theirs["labels"][0][-1] == tokenizer.eos_token_id)

# %% [markdown]
# Everything but the eos is learned here: the whole prompt, and no stopping. Now train like that for a moment, on the answers but not on
# their eos, and ask.

# %%
small_model, small_tokenizer = load_4bit(bundled(), run.machine)


def without_eos(row):
    prompt = alpaca_prompt(row["instruction"], row["input"])
    ids = small_tokenizer(prompt + row["output"] + small_tokenizer.eos_token)["input_ids"]
    begin = len(small_tokenizer(prompt)["input_ids"])
    return {"input_ids": ids, "labels": [-100] * begin + ids[begin:-1] + [-100]}


endless = small_rows["train"].select(range(96))
endless = endless.map(without_eos, remove_columns=endless.column_names)
with guarded(), monitor.phase("side runs"):
    train_adapter(bundled(), run.machine, endless, side / "endless", steps=12, batch_size=8)

# %% tags=["nbval-ignore-output"] reason="what a model says after twelve steps varies with the machine"
from peft import PeftModel

never_stops = PeftModel.from_pretrained(small_model, side / "endless")
questions = small_rows["heldout"].select(range(16))
said = answer(never_stops, small_tokenizer, [alpaca_prompt(q["instruction"], q["input"]) for q in questions])
first = list(zip(questions["instruction"], questions["input"], questions["output"], said))[:4]
table(first, columns=("asked", "input", "expected", "said"))

# %%
right_then_on = sum(text.startswith(q["output"]) and text != q["output"] for q, text in zip(questions, said))
verdict("most answers begin right and do not stop", right_then_on > len(said) / 2)

# %% [markdown]
# The knowledge is there, and the answer too. What it never saw is an end. If your model does this, do not raise `repetition_penalty`:
# look at the labels in colour.
#
# ## 13 What it cost, and did it fit?
#
# On a GPU this is the memory of the run, next to what the GPU has. On a CPU it is the memory of the whole Python process: most of it is
# Python and its libraries, and it says nothing about a GPU.

# %% tags=["nbval-ignore-output"] reason="memory varies with the machine"
monitor.stop()
unit, kind = ("GB", "GPU memory") if on_gpu else ("MB", "resident memory")
top = max(monitor.peaks, key=monitor.peaks.get)
figure = plots.memory_timeline(monitor.samples, f"The {kind} is highest in phase '{top}'", unit)
print(
    f"peak {kind}: {monitor.peak_bytes / 1e6:,.0f} MB" + (f" of {budget / 1e6:,.0f} MB on this GPU" if on_gpu else "")
)
plots.show(figure, alt=f"{kind} over the course of the lesson, coloured by phase")

# %% [markdown]
# Each tooth is a step. The last ones, larger: activations pile up in the forward pass and are freed in the backward pass. With CUDA graphs
# the line is low and the teeth are nearly gone: what a graph works in stays reserved from step to step, and *allocated* does not count it.

# %%
samples = monitor.samples
ends = [i for i, (a, b) in enumerate(zip(samples, samples[1:]), 1) if a[1] == "step" != b[1]]  # where a step ended
last_steps = samples[ends[-min(4, len(ends))] : ends[-1] + 1] if ends else samples
top = max(last_steps, key=lambda sample: sample[2])[1]
figure = plots.memory_timeline(last_steps, f"In the last training steps memory is highest in phase '{top}'", unit)
plots.show(figure, alt=f"{kind} in the last training steps, coloured by forward, backward and step")

# %% [markdown]
# Was the prediction right? On a GPU it is made again for the largest batch that came by, since rows are shorter than `max_length` (CUDA
# graphs are recorded for the largest that could come). With several batches to a step, or with graphs, gradients wait in memory, four bytes
# each. On a CPU a run that was measured under T4 rules takes its place, the one with repeated heads of section 3.

# %% tags=["nbval-ignore-output"] reason="on a GPU it prints bytes that were measured"
if ours and chosen and monitor.tokens:
    rows_at_once, widest = recorded_shapes[0] if graphs else monitor.largest_batch
    waits = graphs or settings.gradient_accumulation > 1
    seen = predict(shape, dataclasses.replace(spec, batch_size=rows_at_once, seq_len=widest), gpu)
    guess, truth = seen.peak_allocated + 4 * trainable * waits, monitor.peak_of("forward", "backward", "step")
else:
    row = pair.loc[True]
    guess, truth = predict(row.config, row.spec, gpu_of(row.device)).peak_allocated, int(row.peak_bytes)
print(f"{guess / 1e9:.3f} GB predicted, {truth / 1e9:.3f} GB measured")

# %%
verdict("predicted and measured peak agree within 5%", abs(guess / truth - 1) < 0.05)

# %% [markdown]
# The three numbers that people compare are not the same number. *Allocated* is what tensors hold. *Reserved* is what torch took from
# the driver to cut tensors from; what is freed stays reserved. `nvidia-smi` adds the CUDA context and whatever else runs on the GPU.
# Here they are for a measured 7B run; with a GPU, `torch.cuda.memory_summary()` has the first two as "Allocated memory" and "GPU
# reserved memory", current and peak.

# %%
told = measured_runs("h200_earlier_rows").iloc[0]
sizes = {"allocated": told.peak_bytes, "reserved": told.reserved_bytes, "nvidia-smi": told.nvidia_smi_bytes}
for name, size in sizes.items():
    print(f"{name:10} {size / 1e9:.2f} GB")
verdict("nvidia-smi shows more than reserved, and reserved is more than allocated",
        sizes["nvidia-smi"] > sizes["reserved"] > sizes["allocated"])  # fmt: skip

# %% tags=["nbval-ignore-output"] reason="on a GPU it prints this run's own memory"
print(torch.cuda.memory_summary(abbreviated=True) if on_gpu else "no GPU here: there is nothing to sum up")

# %% [markdown]
# If `nvidia-smi` is full and *allocated* is not, nothing is lost: torch gives reserved blocks to the next tensors. If *allocated*
# climbs from step to step, something holds on to tensors.
#
# ## 14 Which optimizer, and what pages?
#
# `adamw_torch` keeps two float32 averages a trained number. `paged_adamw_32bit` keeps the same two where the driver can move them out
# to host memory when the GPU is full. `paged_adamw_8bit` keeps them in a byte each. So their names say; what does their state say? Four
# tensors, just below and just above the two limits in bitsandbytes' source:

# %%
import warnings

paged = {"paged_adamw_32bit": bnb.optim.PagedAdamW32bit, "paged_adamw_8bit": bnb.optim.PagedAdamW8bit}
kinds, states = {"adamw_torch": torch.optim.AdamW, **paged}, []
for name, kind_of in kinds.items():
    tensors = [torch.nn.Parameter(torch.ones(n, device=model.device)) for n in (4_095, 4_096, 99_999, 100_000)]
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 0.1)
    optimizer_here = kind_of(tensors, lr=1e-3)
    with warnings.catch_warnings(action="ignore"):  # on a CPU it says that nothing pages there
        optimizer_here.step()
    for tensor, state in optimizer_here.state.items():
        average = state["exp_avg"] if name == "adamw_torch" else state["state1"]
        states.append((name, tensor.numel(), average.dtype, getattr(average, "is_paged", False)))

# %%
table(states, columns=("optimizer", "elements", "an average is", "pages"), elements="{:,}")

# %%
verdict("averages take a byte with the 8-bit optimizer, from 4,096 elements on", all(
    (dtype == torch.uint8) == (name == "paged_adamw_8bit" and n >= 4096) for name, n, dtype, _ in states))  # fmt: skip
if on_gpu:
    verdict("of the paged optimizers' tensors those of 100,000 elements and more page, and no others", all(
        pages == (name in paged and n >= 100_000) for name, n, _, pages in states))  # fmt: skip
else:
    verdict("without a GPU nothing pages, whatever the optimizer's name", not any(pages for *_, pages in states))

# %% [markdown]
# So loading in 4 bits pages nothing, and a paged optimizer pages only the large tensors of an adapter. How many are those?

# %%
for name, r, names in (("mistral-7b", 8, QKVO), ("llama-3.1-8b", 16, RunSpec().target_modules)):
    layers = shape_of(PRESETS[name].shape)
    sizes = [r * n for x in layers.linears if x.name in names for n in (x.inputs, x.outputs)]
    print(f"{name}, rank {r}: {sum(n >= 100_000 for n in sizes)} of {len(sizes)} tensors a layer page, "
          f"{sum(n for n in sizes if n >= 100_000) / sum(sizes):.0%} of the numbers")  # fmt: skip

# %% [markdown]
# ## 15 Killed, and resumed
#
# A disconnect is no exception that Python could catch: the process is gone. So do the same to a run. This starts another Python process
# that trains, waits for its second checkpoint, and kills it. The run has dropout, so that the random numbers matter too.

# %%
import signal
import subprocess
import sys

from helpers import COURSE_ROOT

killed, trail = side / "killed", side / "killed-checkpoints"
shutil.rmtree(killed, ignore_errors=True)
shutil.rmtree(trail, ignore_errors=True)
program = f"""
from pathlib import Path
from helpers.data import load_instructions
from helpers.machine import detect
from helpers.models import bundled
from helpers.quick import train_adapter
rows = load_instructions("bundled")[0]["train"].select(range(32))
train_adapter(bundled(), detect(), rows, Path({str(killed.resolve())!r}), steps=10, batch_size=4, lora_dropout=0.1, save_steps=2)
"""

# %%
torch.cuda.empty_cache()  # on a GPU: what torch holds in reserve would be missing there
with open(side / "killed.log", "w") as log:
    child = subprocess.Popen([sys.executable, "-c", program], cwd=COURSE_ROOT, stdout=log, stderr=log)
while checkpoint_fault(trail / "checkpoint-4") is not None and child.poll() is None:
    time.sleep(0.005)
child.kill()  # SIGKILL: it cannot be caught, and nothing is tidied up
verdict("the process was killed in the middle", child.wait() == -signal.SIGKILL and not killed.exists())

# %% [markdown]
# A kill can also hit while a checkpoint is being written. transformers' own search takes the highest number, whole or not. So make a
# half-written one, and see which is taken. `checkpoint_fault` looks at the ends of the files: a safetensors file must be as long as its
# header says, and what `torch.save` wrote is a zip with its table of contents at the end.

# %%
from transformers.trainer_utils import get_last_checkpoint

whole = last_complete_checkpoint(trail)
half = shutil.copytree(whole, trail / "checkpoint-9")
(half / "optimizer.pt").write_bytes((half / "optimizer.pt").read_bytes()[:-1000])
print("checkpoint-9:", checkpoint_fault(half))
verdict("transformers would take the half-written one", get_last_checkpoint(str(trail)).endswith("checkpoint-9"))
verdict("here it is passed over", last_complete_checkpoint(trail) == whole)

# %% [markdown]
# Now resume, and train the same run once more without a break. If everything that matters was in the checkpoint (adapters, averages,
# learning rate, random numbers, place in the data), the two adapters are the same to the last bit.

# %%
rows = small_rows["train"].select(range(32))
same = {"steps": 10, "batch_size": 4, "lora_dropout": 0.1, "save_steps": 2}
with guarded():
    resumed = train_adapter(bundled(), run.machine, rows, killed, **same)
    unbroken = train_adapter(bundled(), run.machine, rows, side / "unbroken", **same)
files = [folder / "adapter_model.safetensors" for folder in (killed, side / "unbroken")]
verdict("the first went on from a checkpoint, the second from the beginning",
        bool(resumed["resumed_from"]) and unbroken["resumed_from"] is None)  # fmt: skip
if not on_gpu:  # a GPU adds up in an order that may vary
    verdict(
        "killed and resumed, or never killed: the adapters are bit-identical",
        files[0].read_bytes() == files[1].read_bytes(),
    )

# %% [markdown]
# Where do checkpoints go? A Colab machine is deleted with its disk. Four places outlive it:
#
# - **Drive**: set `output_dir = "drive"` before you begin. The lesson mounts your Google Drive and writes checkpoints and adapter to
#   `qlora-course/default` there. After a disconnect run the notebook again with the same parameters: section 9 goes on from the last whole
#   checkpoint. Lessons 04 and 05 find the adapter with the same `output_dir`.
# - **Kaggle**: what lies in `/kaggle/working` is kept if you end with "Save Version", or if you set Persistence to "Files only" before
#   you begin. Runs go there by themselves.
# - **The hub**: log in (`from huggingface_hub import login; login()`; never put a token into a parameter), then `hub_repo = "you/name"`. Each
#   checkpoint is pushed, as the folder `last-checkpoint` of a private repository. To resume, download it into the checkpoint folder
#   as `checkpoint-` and its step.
# - **Your machine**: the file browser's download.
#
# One word on safety. The adapter in a checkpoint is safetensors, but `optimizer.pt`, `scheduler.pt`, `rng_state.pth` and
# `training_args.bin` are pickles. transformers reads the first three with `weights_only=True`, which refuses anything but tensors and
# plain values, and to resume it does not read the last. Resume from your own checkpoints; from a stranger's take the adapter alone.
#
# ## 16 What was saved
#
# The base model stays where it is. What section 9 saved is small, and needs that base to work.

# %%
from helpers.files import safetensors_header

shutil.rmtree(side, ignore_errors=True)
weights_file = run.adapter / "adapter_model.safetensors"
head, header = safetensors_header(weights_file)

# %% tags=["nbval-ignore-output"] reason="README.md and tokenizer files differ in size between versions"
purpose = {
    "adapter_model.safetensors": f"A and B of {len(header) // 2} linear layers: {head:,} + 4 x {trainable:,} bytes",
    "adapter_config.json": "base model, rank, alpha, target modules: what PEFT needs to put it on again",
    "README.md": "a model card to fill in", "tokenizer.json": "the vocabulary and its rules",
    "tokenizer_config.json": "special tokens, padding", "chat_template.jinja": "the chat template",
    "course.json": "which run of the course made it, and from which data",
}  # fmt: skip
kept = [(file.name, file.stat().st_size, purpose.get(file.name, "")) for file in sorted(run.adapter.iterdir())]
table(kept, "{:,}", columns=("file", "bytes", "what it is"))

# %%
suffixes = {file.suffix for file in run.adapter.iterdir()}
verdict(
    "the adapter's file is exactly its header and four bytes a trained number",
    weights_file.stat().st_size == head + 4 * trainable,
)
verdict("nothing in the folder is a pickle", not suffixes & {".bin", ".pt", ".pth", ".pkl"})
if chosen:
    print(
        f"the 4-bit base of the plan takes {chosen.prediction.after_load / 1e9:.2f} GB; its adapter is a small file beside it"
    )

# %%
record(
    exact_match_before=before.exact_match,
    exact_match_after=after.exact_match,
    exact_match_interval_after=list(after.interval),
    heldout_loss_before=before.loss,
    heldout_loss_after=after.loss,
    final_loss=train_curve[-1][1],
    train_seconds=train_seconds,
    cuda_graphs=graphs,
    peak_bytes=monitor.peak_bytes,
    peak_bytes_by_phase=monitor.peaks,
    training_peak_bytes=truth,  # on a CPU these two are of the measured run of section 13
    predicted_peak_bytes=guess,
    trainable_parameters=trainable,
    adapter_bytes=weights_file.stat().st_size,
    train_loss=train_curve,
)

# %% [markdown]
# ## 17 What makes it fast
#
# How much does each choice of this lesson bring? One step of 8 x 512 tokens on Mistral-7B's shape (random weights, rank 8 on q, k, v and o,
# float16, 14.56 GiB), timed again and again while the recipe changes by one thing a row, all one after the other on one H200
# (`measurements/measure_speed.py`, run three times, "recorded" in the third). The first row is the tutorials' recipe, made to run by the cure of
# trap 5 alone. Two times are shown: the whole step, host and GPU together (the median, ten steps a run), and what the GPU's kernels took. They
# differ when the GPU waits for Python to send it work. An H200 often waits, and how long depends on what else its host has to do, so between the
# runs the first time varies far more than the second. A T4 computes many times slower and should hardly ever wait, so for a T4 look at the second; nobody has timed it on one.

# %%
speed = measured_runs("h200_speed").dropna(subset="peak_bytes")
print(f"{len(speed)} timed runs of {speed.recipe.nunique()} recipes")

# %% [markdown]
# The medians of each recipe, and how they compare with the tutorials' recipe in the same runs and with the same kernels:


# %%
def times(runs):
    "Median seconds of a whole step and of the GPU's kernels."
    return runs.each_step_seconds.explode().median(), runs.gpu_busy_seconds.median()


def compared(rules):
    runs, rows = speed[speed.rules == rules], []
    tutorials = runs[runs.recipe == runs.recipe.iloc[0]]
    for recipe, of in runs.groupby("recipe", sort=False):
        (step, busy), (first, first_busy) = times(of), times(tutorials[tutorials.run.isin(of.run)])
        rows.append({"recipe": recipe, "what changes": of.change.iloc[-1], "step (s)": step, "tokens a second": 8 * 512 / step,
                     "gain": first / step, "GPU busy (s)": busy, "GPU gain": first_busy / busy, "peak (GB)": of.peak_bytes.iloc[-1] / 1e9})  # fmt: skip
    return rows


def shown(rows):
    return table(rows, "{:.2f}", tokens_a_second="{:,.0f}", step_s="{:.3f}", GPU_busy_s="{:.3f}")


# %% [markdown]
# With the attention kernels that a T4 has:

# %%
turing = compared("t4")
shown(turing)

# %% [markdown]
# Each row keeps what the rows above it changed; only the rows with "4 rows at a time", and "recorded", split the step.
#
# - **No upcast, no dropout.** Trap 4 again: float32 activations are twice the bytes to move. Dropout adds a random mask to every adapter.
# - **Repeated heads.** Trap 2: the fused attention kernel instead of the quadratic one. The largest single gain in GPU time on a T4's kernels.
# - **Fused Adam.** One kernel updates all adapters at once. That saves launches, not GPU time.
# - **Liger.** Norm, rotary embedding and SwiGLU as one kernel each ([Liger](https://github.com/linkedin/Liger-Kernel)). It is optional
#   (`pip install liger-kernel`): `liger_layers` uses it on a GPU where it is installed. A test compiles its kernels for a T4's sm_75.
# - **One operation.** q, k and v with their adapters as one autograd function, and so gate and up (`helpers/training/fused_lora.py`): no copies
#   between base and adapter, gradients added where they are made. Its input, a norm's output, is not kept: backward makes it again from what the norm kept.
# - **Fewer walks.** A 7B model with these adapters has 1,705 modules. transformers' `Trainer` walks through all of them five times a step, to set
#   training mode, to list the parameters, to count FLOPs, and the GPU waits. `fewer_walks` has it look at the adapters only.
# - **Recompute less.** Memory that is left over buys speed: not every layer is recomputed, or none with fewer rows at once. With
#   halves the GPU has the least to do, and this host cannot feed it: twice the launches, each for half the work.
# - **Recorded.** So launch once: torch records the layers' forward and backward pass as CUDA graphs, for each shape of batch one pair, and replays them
#   (`helpers/training/graphs.py`, [torch.cuda.make_graphed_callables](https://docs.pytorch.org/docs/stable/generated/torch.cuda.make_graphed_callables.html)).
#   The host hardly matters any more. It was timed on rows of exactly 512 tokens. In return batches are padded to a multiple of 64 tokens (a
#   row of 67 becomes 128), and the memory of the longest is taken until training ends. By GPU time alone nothing is gained. So the lesson does it on
#   GPUs newer than a T4, where memory for two lengths is left and nothing is recomputed; `cuda_graphs=True` does it elsewhere too.
#
# `torch.compile` on each layer ran out of memory in these runs, probably since a compiled layer keeps the activations that checkpointing would drop.

# %%
best = min(turing, key=lambda r: r["step (s)"])
figure = plots.grouped_bars(
    [r["recipe"] for r in turing],
    {"seconds a step of 8 x 512 tokens (H200)": {
        "whole step (median)": [r["step (s)"] for r in turing], "GPU busy": [r["GPU busy (s)"] for r in turing],
    }},
    f"With a T4's attention kernels, '{best['recipe']}' takes {best['step (s)']:.2f} s a step in place of {turing[0]['step (s)']:.2f} s",
)  # fmt: skip
plots.show(figure, alt="Seconds a step for each recipe, the whole step and the GPU's share of it")

# %% [markdown]
# With all of the H200's attention kernels the tutorials' recipe is faster too, for grouped queries do not fall to the slow kernel here:

# %%
every_kernel = compared("all")
shown(every_kernel)

# %% [markdown]
# What would this lesson's plan take of these? It may split the step, and it leaves a twentieth of the memory free.

# %%
walked = speed.query("rules == 'all' and recipe == 'fewer walks'").iloc[0]
setting = {name: value for name, value in walked.spec.items() if name in RunSpec.__dataclass_fields__}
choices = {"batch_size": (1, 2, 4, 8), "checkpoint_every": (0, 1, 2, 3, 4, 6, 8)}
planned = plan(walked.config, GPUS["t4"].total_bytes, setting, choices, gpu="h200").spec
print(f"planned: {planned.batch_size} rows at a time, checkpoint_every={planned.checkpoint_every}")
fast, fast_t4 = (next(r for r in rows if r["recipe"] == "recorded") for rows in (every_kernel, turing))
for kernels, r in (("every kernel", fast), ("a T4's kernels", fast_t4)):
    print(
        f"{kernels}: {r['gain']:.2f} times the tutorials' tokens a second, {r['GPU gain']:.2f} times by the GPU alone"
    )

# %%
verdict("the plan takes half the rows at once and recomputes nothing, as 'recorded' does",
        (planned.batch_size, planned.checkpoint_every) == (4, 0))  # fmt: skip
verdict(
    "with every kernel, 'recorded' is at least twice as fast as the tutorials' recipe in its run", fast["gain"] >= 2
)
verdict("with a T4's kernels, more than two and a half times", fast_t4["gain"] > 2.5)

# %% [markdown]
# How far could it go? The products with the frozen weights have to be computed, once forward and once backward, whatever the recipe. Divide
# their operations by what the data sheets promise for float16 ([H200](https://www.nvidia.com/en-us/data-center/h200/),
# [T4](https://www.nvidia.com/en-us/data-center/tesla-t4/)), and you have a time that no recipe can beat.

# %%
mistral = shape_of(walked.config)
frozen = mistral.layers * sum(layer.inputs * layer.outputs for layer in mistral.linears)
operations = 2 * 2 * frozen * 8 * 512  # a multiplication and an addition, forward and backward
for name, tera in (("H200", 989), ("T4", 65)):
    least = operations / (tera * 1e12)
    print(
        f"{name}: {tera} TFLOP/s, so at least {least:.2f} s a step and at most {8 * 512 / least:,.0f} tokens a second"
    )
print(f"measured on the H200: the GPU was busy for {fast['GPU busy (s)']:.2f} s")
verdict("no step is faster than its products", fast["GPU busy (s)"] > operations / 989e12)

# %% [markdown]
# The other end: how little memory can the same work take, and not be slower than the tutorials' recipe? Every layer is recomputed
# from an input kept in the host's memory, Adam's averages take a byte, and cuBLAS gets a small workspace; the gains above stay. Both runs use
# the H200's own attention kernels.

# %%
lean, usual = compared("lean")[0], every_kernel[0]
for name, r in (("lean", lean), ("tutorials' recipe", usual)):
    print(f"{name}: {r['peak (GB)']:.2f} GB, {r['tokens a second']:,.0f} tokens a second")
verdict("the lean recipe peaks below 5 GB and is no slower than the tutorials' recipe",
        lean["peak (GB)"] < 5 and lean["step (s)"] <= usual["step (s)"])  # fmt: skip

# %% [markdown]
# And how large may the model be? Mistral-Small-24B's shape was trained under T4 rules in a lean setting: Liger, every layer recomputed from an input
# kept on the host, 8-bit paged Adam, rank 8. What gives out first? A shape of 32B is only loaded, on paper.

# %%
largest = measured[measured.model == "Mistral-Small-24B"]
for r in largest.itertuples():
    print(f"24B, 1 x {r.seq_len:>4} tokens, adapters on {len(r.target_modules)} layers of a block: "
          f"{r.peak_bytes / 1e9:.2f} GB at the peak, {r.after_load_bytes / 1e9:.2f} GB before the first token")  # fmt: skip
qwen_32b = PRESETS["qwen2.5-7b"].shape | {
    "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
}  # fmt: skip
loaded_32b = predict(qwen_32b, RunSpec(), "t4").after_load
print(f"32B (Qwen2.5): {loaded_32b / 1e9:.2f} GB loaded, and a T4 has {GPUS['t4'].total_bytes / 1e9:.2f} GB")
verdict("a 24B shape trains in a T4's memory", largest.peak_bytes.max() < GPUS["t4"].total_bytes)
verdict("of 32B not even the weights fit", loaded_32b > GPUS["t4"].total_bytes)

# %% [markdown]
# So the weights give out first. What training adds to a 24B model in this setting is about a GB; there is no room for a larger one.
#
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once.
#
# **1.** Mistral-7B has 32 layers. `q_proj` and `o_proj` map 4096 to 4096; `k_proj` and `v_proj` map 4096 to 1024. How many
# parameters does LoRA train with rank 8 on these four? (8,388,608 is Llama-7B's number: its `k_proj` and `v_proj` map 4096 to 4096.)

# %%
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
rows_in_a_step = ...
check("03.2", rows_in_a_step)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# rows_in_a_step = 4 * 4
# check("03.2", rows_in_a_step)
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
# **4.** Write `labels(prompt, completion, eos)`: given the token ids of a prompt and of its completion, and the id of eos, return the
# labels of prompt, completion and eos in one list, so that the model learns the answer and when to stop.

# %%
labels = ...
check("03.4", labels)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def labels(prompt, completion, eos):
#     return [-100] * len(prompt) + completion + [eos]
#
#
# check("03.4", labels)
# ```
# </details>
#
# **5.** A run with `save_steps=10` and `save_total_limit=2` is killed after step 47, while nothing is being written. `checkpoint-40`
# turns out to be cut off. How many of the 47 steps must be trained again?

# %%
steps_again = ...
check("03.5", steps_again)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# steps_again = 47 - 30
# check("03.5", steps_again)
# ```
# </details>
#
# **6.** Out of memory, and the result must stay what it is. Put those of these that change only time into a list, in any order: `"rank"`,
# `"checkpointing"`, `"max_length"`, `"batch_size and gradient_accumulation"`, `"target_modules"`.

# %%
only_time = ...
check("03.6", only_time)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# only_time = ["checkpointing", "batch_size and gradient_accumulation"]
# check("03.6", only_time)
# ```
# </details>
#
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
table({
    "what is trained": f"{trainable:,} of {everything:,} parameters",
    "exact match on held-out rows": f"{before.exact_match:.1%} before, {after.exact_match:.1%} after",
    "held-out loss": f"{before.loss:.3f} before, {after.loss:.3f} after",
    "time and peak memory": f"{train_seconds:.0f} s, {monitor.peak_bytes / 1e9:.2f} GB",
    "size of the adapter": f"{weights_file.stat().st_size / 1e6:.2f} MB",
}, columns=("question", "this run"))  # fmt: skip

# %% [markdown]
# Next: [04 Inference](04_inference.ipynb) loads the adapter that you just saved, if it runs on this machine or both lessons keep
# their files on your Drive.
