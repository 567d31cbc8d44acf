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
# At the end of this lesson you hold an adapter that you trained yourself, saved where you want it, and you have measured on held-out
# questions, which it was never trained on, whether it made the model better.
#
# You will learn to
#
# - prepare data so that the model learns the answer, and when to stop;
# - load a base model in 4 bits and put LoRA adapters on it;
# - choose the training arguments, and know what each of them decides;
# - tell whether the model got better, and go on after a machine was taken away.
#
# Sections 1 to 6 are the six steps, in the order in which they happen: data, loading, adapters, arguments, training and saving, judging. Section 7 shows
# what waits on a T4, and section 8 kills a run and goes on. On a CPU the cells train the bundled model, on a GPU a 7B model unless you choose another.
#
# Nobody has run this on a physical T4 yet. What is said of a T4 is a prediction, or was measured under *T4 rules*: on a larger GPU that was allowed a T4's memory
# (14.56 GiB), its number format (float16) and the attention programs that it has. For this, models of 7B and more had their real shapes and random weights.
#
# **Time:** 45 minutes to read, 40 for the exercises. The cells take {{cpu_time}} on two CPU cores that do nothing else, and longer on busy ones; {{t4_time}} on a T4. **Needs:** lesson 00.
# Lessons 01 and 02 explain the 4-bit numbers and the memory.
#
# **On a GPU, before you run anything:**
#
# 1. In Colab, which lends one free GPU at a time: Runtime, Manage sessions, end lesson 00's. Then Runtime, Change runtime type, T4 GPU. In Kaggle: Settings, Accelerator, GPU T4 x2 (the lesson uses one), and Internet on.
# 2. In Colab, set `output_dir = "drive"` in the second cell, so that checkpoints and adapter outlive the machine. In Kaggle, set Persistence to "Files only".
# 3. For your first time set `model_id = "bundled"` in the second cell. It takes minutes, and your numbers will be like this page's.
# 4. Then, if you have an hour, take `"auto"`: Qwen2.5-7B, 15 GB to download. Nobody has run it on a T4. If its numbers overflow in float16, the lesson stops after loading and names another model,
#    [`"unsloth/mistral-7b-v0.3"`](https://huggingface.co/unsloth/mistral-7b-v0.3). That is a second download, and the course has not run it either.
# 5. `%pip install liger-kernel`, in a cell of its own after the first one, makes layers faster. The course trains without it all the same.

# %% tags=["parameters"]
model_id = "auto"  # the bundled model on a CPU, a 7B model on a GPU; or a preset, a folder, a hub id
output_dir = "auto"  # in Colab "drive": adapter and checkpoints go to your Google Drive, which outlives the machine
seed = 0
# The first time you need none of what follows.
dataset_id = "auto"  # or rows of your own: a file or a folder (JSON, CSV, TSV, Parquet), or owner/name on the hub
columns = "auto"  # or which of its columns is which: section 1 shows how
encoding = "auto"  # of a file that is not UTF-8, such as "cp1252"
split = "auto"  # of a data set on the hub: "train", or another
revision = "auto"  # of a data set on the hub: a branch, a tag or a commit
template = "auto"  # a chat model's own, else Alpaca's; or "alpaca", "question", or a file with a Jinja template
rank = "auto"  # "auto", here and below: what the recipe for the model says (helpers/models/presets.py)
lora_alpha = "auto"
lora_dropout = "auto"
target_modules = "auto"
quant_type = "nf4"
double_quant = True
epochs = "auto"  # how often each row is seen; or say it in steps:
max_steps = "auto"
batch_size = "auto"
gradient_accumulation = "auto"
max_length = "auto"
learning_rate = "auto"
optimizer = "auto"
checkpointing = "auto"  # True, False, or "offload"
cuda_graphs = "auto"  # True or False: see lesson 09
save_steps = "auto"
report_to = "none"  # or tensorboard, trackio, wandb
hub_repo = "none"  # or owner/name: checkpoints are pushed there, to a private repository
eval_rows = 256
max_new_tokens = "auto"  # of an answer: 16 for the bundled model, which answers in a few words, else 128
plain = False  # True leaves out all that this course adds, but the two cures without which nothing runs

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "03_t4_training", large_model=True, with_data=True,
    model_id=model_id, dataset_id=dataset_id, columns=columns, encoding=encoding, split=split, revision=revision,
    template=template, seed=seed, rank=rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=target_modules, quant_type=quant_type, double_quant=double_quant, epochs=epochs, max_steps=max_steps,
    batch_size=batch_size, gradient_accumulation=gradient_accumulation, max_length=max_length,
    learning_rate=learning_rate, optimizer=optimizer, checkpointing=checkpointing, cuda_graphs=cuda_graphs,
    save_steps=save_steps, report_to=report_to, hub_repo=hub_repo, eval_rows=eval_rows, max_new_tokens=max_new_tokens,
    plain=plain, output_dir=output_dir,
)  # fmt: skip
settings, monitor = run.settings, run.watch()  # from here on, memory is watched

# %% [markdown]
# ## What you will have
#
# This is what the lesson recorded the last time that it ran on a GPU, with the bundled model. The model knew the facts before, but not this form of question, so none of its
# answers was exact. *Loss* says how surprised a model is by the right answer: less is better. Your own numbers will stand further down, beside your
# own answers.

# %%
earlier = run.measured_before()
table({
    "exact answers to held-out questions": f"{earlier['exact_match_before']:.0%} before, {earlier['exact_match_after']:.0%} after",
    "loss on held-out rows": f"{earlier['heldout_loss_before']:.2f} before, {earlier['heldout_loss_after']:.3f} after",
    "trained numbers": f"{earlier['trainable_parameters']:,}, in a file of {earlier['adapter_bytes'] / 1e6:.1f} MB",
}, columns=("a recorded run", f"{earlier['machine']}, {earlier['date']}"))  # fmt: skip

# %% [markdown]
# ## 1 The data
#
# Each row has an instruction, sometimes an input, and the output that the model should learn to write. TRL, the library that trains, takes
# two columns, among other forms: a *prompt*, which is given, and a *completion*, which is learned. `to_chat` makes both of them messages: the user asks, the assistant
# answers. How messages become one text is decided by a template, which comes next.
#
# With the bundled model, or without a GPU, the rows are the course's own. With another model on a GPU, `"auto"` takes [Alpaca](https://huggingface.co/datasets/tatsu-lab/alpaca), 52,000 rows that were written by a
# model and may not be used commercially. There many answers are right, so exact match stays near zero, and you will have to look at the loss and at the answers. To train that model on
# the course's rows, as in a class, set `dataset_id = "bundled"`.

# %%
from helpers.data import to_chat

fields = run.rows["train"].column_names
train_rows = run.rows["train"].shuffle(seed=settings.seed).map(to_chat, remove_columns=fields)
heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
heldout_rows = heldout.map(to_chat, remove_columns=fields)
shared = set(map(str, train_rows["prompt"])) & set(map(str, heldout_rows["prompt"]))
print(
    f"{len(train_rows):,} rows to learn, {len(heldout_rows)} held out, and {len(shared)} questions that stand in both"
)

# %% [markdown]
# The held-out rows are never trained on. With the bundled data no training row of the same subject asks about the same thing. Training rows ask which month follows February; its translations are asked
# only in held-out rows. So a model that answers them has learned how to answer, and not a list of answers.
#
# ### The template
#
# A [chat template](../site/glossary.md#chat-template) is a small program that the tokenizer carries. A chat model brings its own: keep it, since the model knows it. For a base model many
# templates work, and `run.templated` gives it Alpaca's, a text that an early public data set made common; the parameter `template` names another. What matters is that you ask with the
# template that you trained with. So it is saved with the adapter, as `chat_template.jinja`. Look at how it ends: behind the answer stands the end-of-sequence token (eos), at which the model
# will stop.

# %%
from transformers import AutoTokenizer

tokenizer = run.templated(AutoTokenizer.from_pretrained(run.model.path))


def as_text(row):
    "A row in the words of the template."
    return tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)


print(as_text(train_rows[0]))

# %% [markdown]
# > **Rows of your own?** Name a file or a folder as `dataset_id`: JSON lines, a JSON array, CSV, TSV or Parquet, each also packed as `.gz`; or `owner/name` on the hub. In Colab, drag
# > the file into the file browser on the left first. Columns called instruction and output, prompt and completion or question and answer are known by their names, and so are `messages` and
# > `conversations`. For others say `columns="prompt=Question,completion=Answer"`. The table at the top then says what was understood, and what was left out and why.
# >
# > One row in ten is held out without your doing. Rows that ask the same, or nearly the same, stay on one side. With `group=Customer` in `columns`, so do all rows of one customer.
# > `from helpers.data import load_rows` and `print(load_rows("mine.csv"))` show all this before you begin, with three of the rows.
#
# ### Which tokens does the loss see?
#
# Training compares the model's guess for each token with the token that really follows. A token whose *label* is -100 is left out of that
# comparison. So the labels decide what is learned: here the answer, and the eos after it, which teaches the model to stop.
# TRL builds the labels for you. Build them by hand once, and look: the coloured tokens are learned, the grey ones are only read.

# %%
from helpers.plots import curves, diagrams, memory_timeline, show, tokens_in_colour


def tokens_and_labels(row):
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"]
    return {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}


def in_colour(ids, labels):
    return tokens_in_colour(ids, [label != -100 for label in labels], tokenizer.decode)


example = tokens_and_labels(train_rows[0])
in_colour(example["input_ids"], example["labels"])

# %% [markdown]
# ### How many rows, how often, how long?
#
# For each number that is trained, its [gradient](../site/glossary.md#gradient) says how the loss changes with it. The *optimizer* moves the number the other way, and the learning rate says how far. One such *step* looks at
# `batch_size` times `gradient_accumulation` rows. An *epoch* is one pass over all rows. You may set either `max_steps` or `epochs`, and the other one follows; both at once are refused. A row with more than `max_length` tokens loses its end, and with
# it the eos, so it does not teach the model to stop. If its question alone is that long, it teaches nothing, and TRL leaves it out without a word. So pick rows that teach something, and count the others. Choose `max_length` by the lengths of your own rows.

# %% tags=["picked"]
from itertools import islice

rows_per_step = settings.batch_size * settings.gradient_accumulation
needed = settings.max_steps * rows_per_step


def teaches(row):
    "Whether a token of its answer lies within max_length."
    return any(label != -100 for label in tokens_and_labels(row)["labels"][: settings.max_length])


picked = list(islice((i for i, row in enumerate(train_rows) if teaches(row)), needed))
if not picked:
    raise ValueError(f"no answer begins within max_length = {settings.max_length} tokens: set it higher")
looked_at = picked[-1] + 1 if len(picked) == needed else len(train_rows)
used_rows = train_rows.select(picked)

# %%
epochs_here = needed / len(train_rows)
used, lengths = len(used_rows), sorted(len(tokens_and_labels(row)["input_ids"]) for row in used_rows)
table({
    "steps": f"{settings.max_steps} of {rows_per_step} rows each", "epochs": f"{epochs_here:.2f}",
    "rows that are used": f"{used:,}; {len(train_rows) - used:,} are left out", "tokens in a row, median": lengths[used // 2],
    "tokens in the longest row": lengths[-1],
    "rows cut at max_length": f"{sum(n > settings.max_length for n in lengths)} (max_length is {settings.max_length})",
    "rows passed over: their question fills it": looked_at - used,
}, columns=("", "this run"))  # fmt: skip

# %% [markdown]
# ## 2 Loading
#
# First, the config. Three of `BitsAndBytesConfig`'s defaults are not what QLoRA uses, so all three are set: the number format (`fp4` by default), double
# quantization (off by default), and the format in which products are computed (float32 by default). For the last, `run.machine.torch_dtype` is what suits your machine.

# %%
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

set_seed(settings.seed)
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type=settings.quant_type,
    bnb_4bit_use_double_quant=settings.double_quant,
    bnb_4bit_compute_dtype=run.machine.torch_dtype,
)
print(f"computes in {quantization.bnb_4bit_compute_dtype} on {run.machine}")

# %% [markdown]
# On a GPU, `run.plan_training()` finds settings with which a larger model fits its memory, and does not change what is learned. `run.cures()` names what this course adds to the libraries' own calls. Section 7 explains both.

# %%
plan = run.plan_training(lengths)
cures = run.cures(plan)
print(plan if plan.own else "Without a plan: this run keeps its recipe.")

# %% [markdown]
# In the next cell:
#
# - `from_pretrained` quantizes each linear layer as it arrives. Look for `Linear4bit` in the output: there are the 4-bit weights.
# - `plan.guarded()` turns running out of memory into advice, and `monitor.phase` only labels what is measured.
# - `cures.after_loading()` keeps bitsandbytes from a short cut that it takes on some CPUs, and that is wrong while one trains (`keep_4bit_layout`). It also computes a few rows, and stops if the *logits*, the model's scores for
#   the next token, are not finite. Then it names another model.

# %%
cures.before_loading()
with plan.guarded(), monitor.phase("load"):
    model = AutoModelForCausalLM.from_pretrained(
        run.model.path,
        quantization_config=quantization,
        dtype=run.machine.torch_dtype,
        device_map=run.machine.device_map,
    )
    cures.after_loading(model, tokenizer, [as_text(row) for row in used_rows.select(range(min(4, used)))])
print(f"{model.get_memory_footprint() / 1e6:,.0f} MB")
print(model.get_decoder().layers[0].mlp)

# %% [markdown]
# ### Ask it before you train it
#
# How good is the 4-bit base model at this already? `evaluate` scores the held-out rows in two ways. The *loss* is the mean of $-\ln p$, where $p$ is the probability that the model gives to the
# right token. Its unit is called a nat: 0.69 nats are a probability of one half, and 9 nats are one in eight thousand. *Exact match* is the share of answers that are the expected text and nothing else. The interval beside it says how far
# that share could be off with this number of rows (Wilson, 95%).

# %%
from helpers.evaluation import evaluate

scored = {"max_new_tokens": settings.max_new_tokens, "max_length": settings.max_length}
scored |= {"batch_size": 64 if run.model.bundled else 8}  # rows at once; logits of a large vocabulary take memory
scored |= {"answers_at_once": 64 if run.model.bundled else 16}
with plan.guarded(), monitor.phase("evaluate"):
    before = evaluate(model, tokenizer, heldout, **scored)
print(before)
print(
    f"{heldout[0]['instruction']} {heldout[0]['input']}\nexpected: {heldout[0]['output']}\nanswered: {before.answers[0]}"
)

# %% [markdown]
# If this is the bundled model, it was trained on pages of quiz questions: a question, the word `Answer:`, and the answer. Asked like that it knows nearly all of them, as lesson 01 shows. It has never met this
# template, so it talks about something else. What it has to learn is the form.
#
# ## 3 The adapters
#
# LoRA leaves a weight matrix $W$ as it is and adds the product of two thin matrices, $\frac{\alpha}{r} B A$. The *rank* $r$ is how thin they
# are, and $\frac{\alpha}{r}$ scales the product. $B$ starts at zero, so at first nothing changes. For a layer with $i$ inputs and $o$ outputs $A$ has $r \times i$ numbers and $B$ has $o \times r$, so
# $r (i + o)$ are trained. `lora_dropout` switches off some of the inputs of $A$ at random, `target_modules` says which layers get
# adapters, and `bias="none"` trains no biases.

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

# %% [markdown]
# ## 4 The arguments
#
# The next three cells set the arguments. Open this table where a name is new to you.
#
# <details><summary>The arguments that widely copied recipes set, and what each decides</summary>
#
# | argument | what it decides | called in older texts |
# |---|---|---|
# | `max_steps`, `num_train_epochs` | when training ends; this lesson turns epochs into steps | |
# | `per_device_train_batch_size` | rows in a batch, which go through the model at once: memory and speed | |
# | `gradient_accumulation_steps` | how many such batches are added up before one step | |
# | `max_length` | tokens after which a row is cut | `max_seq_length` |
# | `learning_rate` | how far one step goes; a small model takes a larger one | |
# | `lr_scheduler_type` | how the learning rate falls; `cosine` falls slowly, then fast, then slowly | |
# | `warmup_steps` | the first steps, in which the learning rate climbs; below 1 it is a share of all steps | `warmup_ratio` |
# | `weight_decay` | pulls trained numbers towards zero. Here it is 0: with the 0.001 of many recipes, 60 steps of 0.0002 would shrink them by 0.001% | |
# | `max_grad_norm` | longer gradients are shortened to this length, so that one odd batch cannot spoil the adapters | |
# | `optim` | the optimizer; 8-bit and paged kinds keep its two averages smaller, or partly in the computer's memory (lesson 02) | |
# | `fp16`, `bf16` | 16-bit arithmetic in training; on a T4 `fp16=True, bf16=False`, and `bf16` is on by default | |
# | `activation_checkpointing` | recompute *activations*, the intermediate results of training, in the backward pass in place of keeping them: less memory, more time | `gradient_checkpointing` |
# | `packing` | several rows in one of a fixed length; off by default (see "Further down") | |
# | `processing_class`, of `SFTTrainer` | the tokenizer | `tokenizer` |
# | `logging_steps` | how often the loss is written down | |
# | `eval_strategy`, `eval_steps` | when the loss on held-out rows is measured | `evaluation_strategy` |
# | `save_steps`, `save_total_limit` | how often a checkpoint is written, and how many are kept | |
# | `report_to` | where the curves go besides this page: `tensorboard`, `trackio`, `wandb` | |
#
# </details>
#
# First, what one step is. The table below the cell shows the values of this run, and beside them the recipe for a 7B model, as it is before the plan. On a GPU the plan may have changed three of them: `batch_size`, `gradient_accumulation` and
# `checkpointing`. The product of the first two, the rows in a step, remains.

# %%
steps = {
    "max_steps": settings.max_steps,
    "per_device_train_batch_size": settings.batch_size,
    "gradient_accumulation_steps": settings.gradient_accumulation,
    "max_length": settings.max_length,
    "learning_rate": settings.learning_rate,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 0.3,
    "optim": settings.optimizer,
}
table(run.beside_the_recipe(), columns=("parameter", "this run", "7B recipe, before the plan"))

# %% [markdown]
# Next the number formats and the memory. With `fp16=True` the loss is multiplied by a large number before the backward pass, so that small gradients do not become zero, and the gradients are divided by it
# again before the step. `gradient_checkpointing=None` must be given, because TRL turns on this older name of the same thing unless it is told not to.

# %%
recompute = {"every_n_layers": plan.checkpoint_every, "offload": plan.offload} if plan.checkpoint_every else None
memory = {
    "fp16": run.machine.dtype == "float16",
    "bf16": run.machine.dtype == "bfloat16",
    "use_cpu": run.machine.device == "cpu",
    "activation_checkpointing": plan.checkpoint_every > 0,
    "activation_checkpointing_kwargs": recompute,
    "gradient_checkpointing": None,
    "pad_to_multiple_of": cures.pad_to_multiple_of,
}

# %% [markdown]
# Then what is measured and kept on the way. Two checkpoints are kept, because the last one may be half-written when a machine is taken away.
# TensorBoard and Trackio write into the folder `logs` of this run, with no account and no network.

# %%
keeping = {
    "logging_steps": max(1, settings.max_steps // 20),
    "eval_strategy": "steps", "eval_steps": max(1, settings.max_steps // 4), "eval_on_start": True,
    "per_device_eval_batch_size": plan.full_rows,
    "save_strategy": "steps", "save_steps": settings.save_steps, "save_total_limit": 2,
    "report_to": settings.report_to, "run_name": "lesson-03", "disable_tqdm": True,  # the panel takes the bar's place
}  # fmt: skip
if settings.hub_repo != "none":
    keeping |= {
        "push_to_hub": True,
        "hub_model_id": settings.hub_repo,
        "hub_private_repo": True,
        "hub_strategy": "checkpoint",
    }

# %%
from trl import SFTConfig

arguments = SFTConfig(output_dir=str(run.checkpoints), seed=settings.seed, **steps, **memory, **keeping)

# %% [markdown]
# ## 5 Train and save
#
# `SFTTrainer` puts the adapters on the model, tokenizes the rows and builds the labels. It also casts the adapters of a quantized model to bfloat16, so `cures.after_building()` puts them back to float32 (trap 5 in section 7).
# It also has training stop at the first loss that is not a number.

# %%
from transformers import PrinterCallback
from trl import SFTTrainer

from helpers.widgets import training_panel

with plan.guarded(), monitor.phase("prepare"):
    trainer = SFTTrainer(
        model=model, args=arguments, processing_class=tokenizer, peft_config=lora,
        train_dataset=used_rows, eval_dataset=heldout_rows.select(range(min(64, len(heldout_rows)))),
        callbacks=[monitor.callback(), training_panel(monitor, run.machine.gpu_bytes)],
    )  # fmt: skip
trainer.remove_callback(PrinterCallback)  # the panel prints
cures.after_building(trainer)
trainer.model.print_trainable_parameters()

# %% [markdown]
# Does the trainer learn from the tokens that you built by hand? TRL cuts a row at `max_length`, and leaves out a row of which no answer is left then. So compare the first row that has
# one left.


# %%
def as_trained(row):
    "The ids and labels of a row, cut at max_length."
    return {name: values[: settings.max_length] for name, values in tokens_and_labels(row).items()}


by_hand = next(filter(lambda row: max(row["labels"]) >= 0, map(as_trained, used_rows)))

# %%
batch = trainer.data_collator([trainer.train_dataset[0]])
ids, labels = (batch[name][0].tolist() for name in ("input_ids", "labels"))
n = len(by_hand["input_ids"])  # behind it there may be padding
verdict("the trainer's tokens and labels are those built by hand",
        (ids[:n], labels[:n]) == (by_hand["input_ids"], by_hand["labels"]))  # fmt: skip

# %% [markdown]
# Now train. If this run was cut off before, its last whole checkpoint is found and training goes on from there. While it trains, a panel shows memory, loss, tokens per
# second and the time left.

# %% tags=["nbval-ignore-output", "train"] reason="seconds, memory and losses vary with the machine"
with cures.while_training(trainer), monitor.phase("between steps"):
    trained = trainer.train(resume_from_checkpoint=run.last_checkpoint())
train_seconds = trained.metrics["train_runtime"]
print(f"{trained.global_step} steps in {train_seconds:.1f} s")

# %% [markdown]
# **Save at once.** What you just made is in memory, and in checkpoints that are kept for going on. A free machine can be taken away at any moment. What is saved is the adapter, with the
# tokenizer beside it. The folder is written under another name and renamed when all of it is on the disk, so you never find half an adapter. If an adapter of an earlier run is there, or a folder of your own with that name, it is
# kept as `adapter-1`. Then the checkpoints are deleted: to use what you made, the adapter is all that you need.

# %% tags=["nbval-ignore-output", "save"] reason="the card and the configs name versions and paths, whose lengths vary"
with run.new_adapter() as folder:
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
run.forget_checkpoints()
table([(file.name, file.stat().st_size) for file in sorted(run.adapter.iterdir())], "{:,}", columns=("file", "bytes"))

# %% [markdown]
# `adapter_model.safetensors` holds $A$ and $B$ of each layer, and `adapter_config.json` says which base they belong to. The base itself is not in the folder. The table at the
# top of this lesson says under "writes to" where the folder is.
#
# **To train with other settings**, restart the session (Runtime, Restart session), change the second cell and run all. Single cells are not enough: this model already has adapters, and a second 7B model does not fit beside it. The download stays as long as
# the machine does.
#
# ## 6 Better or not?
#
# The training loss nearly always falls. The question is whether the loss on rows that were *not* trained on falls with it.


# %%
def curve(name):
    "(steps, losses) from the trainer's log."
    return tuple(zip(*((entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry)))


heldout_losses = curve("eval_loss")[1]
first, lowest, last = heldout_losses[0], min(heldout_losses), heldout_losses[-1]
fell = last < first and last - lowest <= max(0.2 * lowest, 0.01 * first)  # a rise that can be seen, not noise near zero
title = f"The held-out loss {'falls with' if fell else 'does not follow'} the training loss"
figure = curves(
    {"training": curve("loss"), "held out": curve("eval_loss")}, title, "step", "loss (nats per token)", log=True
)
show(figure, alt="Training and held-out loss over the training steps, on a logarithmic scale")

# %%
verdict("the held-out loss fell, and did not rise again", fell,
        look_at="Look at the two curves above. Few rows that are seen often are learned by heart, as the figure after the answers shows. "
                "Your adapter is saved. Fewer steps or more rows help.")  # fmt: skip

# %% [markdown]
# Each blue point is the mean over the steps since the point before it, so it is of few rows. Near zero one missed word moves it far on a logarithmic axis. Look at the orange line: it scores the same held-out rows each time, at most 64.
#
# Now the same questions again, by the same rule, on all held-out rows. If the two intervals do not overlap, the choice of rows does not explain the difference. (Another seed would still give a slightly different adapter.)
#
# On data of your own, where many answers may be right, look at the loss instead, and read the answers. `after.change_from(before)` compares each row with itself and
# says how far the change of the loss could be off. If its whole interval lies below zero, the model has become better at rows like these.

# %%
model = trainer.model.eval()  # in training mode, with dropout or recomputing, generate() may answer nonsense
with plan.guarded(), monitor.phase("evaluate"):
    after = evaluate(model, tokenizer, heldout, **scored)
# %% tags=["nbval-ignore-output"] reason="answers before training, losses and shares vary with the machine"
import textwrap

change, (low, high) = after.change_from(before)
print(
    f"before: {before}\nafter:  {after}\nchange of the loss: {change:+.3f} nats per token (95%: {low:+.3f} to {high:+.3f})"
)
headings = ("asked", "input", "expected", "before", "after")
answers = zip(heldout["instruction"], heldout["input"], heldout["output"], before.answers, after.answers)
rows, characters = (6, 60) if settings.max_new_tokens <= 16 else (3, 4000)  # long answers: few, and whole
table(
    [[textwrap.shorten(str(text), characters, placeholder=" ...") for text in row] for row in list(answers)[:rows]],
    columns=headings,
)

# %% tags=["better"]
usual = (
    run.model.bundled
    and settings.dataset_id in ("auto", "bundled")
    and settings.template in ("auto", "alpaca")
    and settings.max_steps >= 40
    and settings.rank >= 8
)
if usual and after.rows >= 64:  # free answers to open questions have many right forms: there the loss is the measure
    verdict("exact match rose by more than chance: the intervals do not overlap", before.interval[1] < after.interval[0])  # fmt: skip
    verdict("at least 95% of the held-out rows are answered exactly", after.exact_match >= 0.95)
elif len(set(map(str, used_rows["completion"]))) > 1:  # if all answers are the same, a lower loss says nothing
    verdict("the loss on all held-out rows is lower than before, by more than chance", high < 0,
            look_at=f"It changed by {change:+.3f} (95%: {low:+.3f} to {high:+.3f}). Where this reaches beyond zero, more held-out rows tell more. "
                    "Lesson 06 shows what a wrong learning rate does. Your adapter is saved.")  # fmt: skip

# %% [markdown]
# Read the column "before" once more. Then read "after": does it answer, and stop? (An answer that ends in the middle of a sentence has reached `max_new_tokens`.) None of these questions stood in the training rows, as section 1 has counted.
#
# ### What it looks like when it goes wrong
#
# Here is the bundled model on eight rows, again and again, with three times the learning rate so that it is soon over. What will the two curves do? Write down a guess, then run the cell.

# %%
from helpers.quick import killed_side_run, side_run

with plan.guarded(), monitor.phase("side runs"):
    few = side_run(run, "few", rows=8, heldout=32, steps=16, batch_size=8, learning_rate=9e-3)
points = {name: [(h["step"], h[name]) for h in few["history"] if name in h] for name in ("loss", "eval_loss")}
best = min(points["eval_loss"], key=lambda point: point[1])
figure = curves({"training, 8 rows": tuple(zip(*points["loss"])), "held out": tuple(zip(*points["eval_loss"]))},
                f"Held out, the loss is lowest at step {best[0]} ({best[1]:.2f}) and ends at {points['eval_loss'][-1][1]:.2f}",
                "step", "loss (nats per token)", log=True)  # fmt: skip
show(figure, alt="On eight rows the training loss falls to nearly zero while the held-out loss falls and then rises")

# %%
verdict("the training loss ends near zero while the held-out loss has risen again",
        points["loss"][-1][1] < 0.02 and points["eval_loss"][-1][1] > 1.2 * best[1])  # fmt: skip

# %% [markdown]
# This is *overfitting*, and the training loss alone would have told you that all is well. `load_best_model_at_end=True` with
# `metric_for_best_model="eval_loss"` among the arguments in `keeping` keeps the best saved step in place of the last one. `save_steps` must then be a multiple of `eval_steps`, or transformers refuses the arguments. The 7B recipe saves every 10
# steps and evaluates every 15, so it would be refused: set `"save_steps"` to 15 too. Then judge on a third set of rows, since those that chose the step flatter it. More rows help more.
#
# ## 7 What you would meet on a T4
#
# On a GPU this section is about your own run. Without one, or with the bundled model, it is about an example: the 7B model on a T4.
#
# Will it fit? The plan predicts the memory of a run from the model's shape and the lengths of the rows, as lesson 02 explains. The rows of a batch are not filled up to one length: they lie one behind
# the other, and each sees only itself ("Further down" shows how). Such a batch is called [padding-free](../site/glossary.md#padding-free).
#
# Two things can be chosen without changing what is learned: how many tokens go through the model at once, and in how many layers the activations are thrown away and computed
# again. The plan tries the combinations, keeps those that leave a twentieth of the GPU free, and takes the fastest. The number of rows per step stays what the recipe says, because it is part of what is learned. What you set yourself is left alone.

# %%
print(plan.in_words("the run above was a smaller one"))
minutes = plan.t4_minutes(settings.max_steps if plan.own else 60, sum(lengths) / used if plan.own else None)
if minutes:
    print("Predicted: a T4 would compute for {:.0f} to {:.0f} minutes".format(*minutes))

# %% [markdown]
# The minutes are a *prediction*, since nobody has timed this on a T4. Not in it are the download, the loading, and asking the model before and afterwards: for the 7B model plan an hour for the whole notebook.
#
# <details><summary>How the minutes are reckoned</summary>
#
# Take the GPU time per token that was measured on an H200 under T4 rules, and multiply it by the
# model's size and by how much slower a T4 is. By the data sheets that is 15 times (989 to 65 teraflops, million million operations per second). But a T4 may draw only 70 watts, and keeps up some
# [24 teraflops](https://forums.developer.nvidia.com/t/about-gpu-peak-performance/264462), which makes it 41 times. Without a GPU this is reckoned for 60 steps of full rows, and without
# [Liger](../site/glossary.md#liger), which makes layers faster where it was installed before you began.
#
# </details>
#
# Five traps wait on a T4 for a program of your own.
#
# > **Trap 1: bfloat16 on a T4.** Most recipes say `bfloat16`. A T4 has no units for it.
# >
# > *What you see:* no error, only slow training, because torch emulates it; `torch.cuda.is_bf16_supported()` even answers True
# > ([pytorch#148322](https://github.com/pytorch/pytorch/issues/148322)).
# > *Cure:* ask for the GPU's generation, `torch.cuda.get_device_capability()`, as the course does: bfloat16 from (8, 0) on, and float16 before, with `fp16=True, bf16=False` in the
# > training arguments. A T4 says (7, 5).
#
# > **Trap 2: grouped queries take the slow attention kernel.** (If attention is new to you, skip this one.) A *kernel* is a program that runs on the GPU. In today's models several query heads share one key and value head.
# > transformers hands them to torch as they are, and a T4's fast kernels refuse different numbers of heads
# > ([transformers#48633](https://github.com/huggingface/transformers/issues/48633)).
# >
# > *What you see:* no error, but a slower kernel is used, whose memory grows with the square of the length. *Cure:* repeat the shared heads before attention. In this
# > lesson `cures.before_loading()` does it with `repeat_kv_heads`. In code of your own, such as lesson 00's nine steps, which avoid the other four traps, two lines do it before the model is loaded:
# > `from transformers.integrations import sdpa_attention` and `sdpa_attention.use_gqa_in_sdpa = lambda *args, **kwargs: False`.
#
# Lesson 00 recomputes its layers, and Qwen2.5-7B's plan for a T4 need not. Without that, the activations of lesson 00's 2,048 tokens would take 17.6 GB. With this cure they take 13.1, and for 1,280 tokens 8.3: that fits.
#
# > **Trap 3: flash attention.** That is a fast kernel in a package of its own. `attn_implementation="flash_attention_2"` stands in many recipes.
# >
# > *What you see:* an error that the package is missing; or, where it is installed, on a T4, "FlashAttention only supports Ampere GPUs or newer" when the model first computes
# > ([flash-attention#762](https://github.com/Dao-AILab/flash-attention/issues/762)). *Cure:* leave the argument out. The default, `sdpa`, takes the best kernel
# > that accepts the call.
#
# > **Trap 4: the float32 upcast.** Many recipes call `prepare_model_for_kbit_training` as a must. It turns everything that is not in 4
# > bits to float32: embeddings, head, norms, and with them all activations.
# >
# > *What you see:* out of memory, or fewer rows at once. *Cure:* leave it out. What training needs from it, frozen weights and inputs that carry gradients,
# > `SFTTrainer` sees to by itself.
#
# This is the predicted peak of the planned run, without the upcast and with it:

# %%
table(plan.compare("upcast_non_quantized", False, True), "{:.2f}")

# %% [markdown]
# > **Trap 5: adapters in bfloat16.** `SFTTrainer` casts the adapters of a quantized model to bfloat16.
# >
# > *What you see:* with `fp16=True`, which a T4 needs, the first step stops: `"_amp_foreach_non_finite_check_and_unscale_cuda" not implemented for 'BFloat16'`
# > ([pytorch#127176](https://github.com/pytorch/pytorch/issues/127176)). That is the division of the gradients: torch has it for float32, and not for bfloat16. Adapters in float16 would not
# > do either: then the step stops with `Attempting to unscale FP16 gradients`, and without `fp16=True` the many small changes of training would be rounded away. *Cure:* before `train()`, put what is trained back to float32: `for p in trainer.model.parameters(): if p.requires_grad: p.data = p.data.float()`
#
# **And float16 itself.** Its largest number is 65,504, and a model that was made in bfloat16 may go beyond it. Users have reported that of Qwen2 ([Qwen3#670](https://github.com/QwenLM/Qwen3/issues/670)), and nobody has yet seen
# the real Qwen2.5-7B pass section 2's check on a T4.
#
# ### What one step takes
#
# This is the memory of one training step. In the forward pass activations pile up; in the backward pass they are used and freed; then the optimizer
# changes the adapters. For your own run it is what was measured in your last steps. For the example it is predicted, and for as many tokens as go through at once. A step repeats forward and backward for each
# such piece, and then changes the adapters once.

# %% tags=["nbval-ignore-output"] reason="on a GPU it shows what was measured"
monitor.stop()
limit = {"line": plan.budget_bytes / 1e9, "line_label": "the GPU's memory"}
if plan.own:
    figure = memory_timeline(monitor.last_steps(), "Memory in the last training steps, measured", "GB", **limit)
else:
    one_piece = plan.step_over_time()
    title = f"{plan.model_name}, {plan.spec.seq_len:,} tokens at once on a T4: {plan.chosen.prediction.peak_allocated / 1e9:.2f} GB at the peak (predicted)"
    figure = diagrams.training_steps(
        {"": one_piece}, **plan.stays(), title=title, room=plan.chosen.room_bytes / 1e9, **limit
    )
show(figure, alt="GPU memory over one training step: it climbs in the forward pass, falls in the backward pass")

# %% [markdown]
# Can a prediction be trusted? Yours is compared with what your run took. For the example, the comparison is with a run of Mistral-7B's shape, one row of 2,048 tokens, that was
# measured on an H200 under T4 rules. Lesson 02 compares many.

# %% tags=["nbval-ignore-output"] reason="on a GPU it prints bytes that were measured"
trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
predicted, measured = plan.peak_beside(monitor, trainable, cures.shapes)
compared = plan.own and plan.chosen and monitor.tokens
whose = "this run" if compared else "Mistral-7B's shape, one row of 2,048 tokens, H200 under T4 rules"
print(f"{whose}: {predicted / 1e9:.2f} GB predicted, {measured / 1e9:.2f} GB measured")
verdict("predicted and measured peak agree within 5%", abs(predicted / measured - 1) < 0.05)

# %% [markdown]
# ### What this course adds, and what it is worth
#
# The calls above that load and train are the libraries' own. Between them stand this course's cures. Two are needed: without `keep_4bit_layout` the weights are spoiled on some CPUs, and without `adapters_to_float32` float16
# training stops. The others save time, or stop you early when numbers go wrong, and `plain=True` leaves them out. Beside the two needed ones the table has the three that save most of a T4's time. `liger_layers` takes norms,
# the rotary embedding, which tells a token its place, and SwiGLU, a layer's nonlinear function, from [Liger](../site/glossary.md#liger). "Further down" has all cures, and how they were measured.

# %%
from pandas import DataFrame

all_cures = DataFrame(cures.rows()).set_index("cure")
matter = all_cures.loc[["keep_4bit_layout", "adapters_to_float32", "padding_free", "repeat_kv_heads", "liger_layers"]]
table(matter[["without it", "used here", "GPU time saved"]], GPU_time_saved="{:.0%}")

# %% [markdown]
# ## 8 Killed, and resumed
#
# Free Colab disconnects. A disconnect is no error that Python could catch: the process is gone, and with it all steps since the last whole checkpoint. So do the same to a run. The next cell starts a second Python process that trains, waits until its
# second checkpoint is written, and then kills it. The run has dropout, so that the random numbers matter too.

# %%
small = {"rows": 32, "steps": 10, "batch_size": 4, "lora_dropout": 0.1, "save_steps": 2}
code = killed_side_run(run, "killed", kill_at=4, **small)
saved = (run.folder / "side-runs" / "killed").exists()
print(f"the process ended with code {code}, and its adapter {'was' if saved else 'was not'} saved")

# %% [markdown]
# (On Linux and macOS, -9 is how a process ends that was killed.) Now go on from its last whole checkpoint, and train the same run once more without a break. Will the two adapters be equal, nearly equal, or different? Write down a guess
# first.

# %%
with plan.guarded():
    resumed, unbroken = side_run(run, "killed", **small), side_run(run, "unbroken", **small)
files = [(found["folder"] / "adapter_model.safetensors").read_bytes() for found in (resumed, unbroken)]
print(f"went on from {resumed['resumed_from']}; the other one from {unbroken['resumed_from']}")
verdict(
    "the run was killed before it could save, and went on from a checkpoint",
    not saved and bool(resumed["resumed_from"]),
)
if run.machine.device == "cpu":  # a GPU adds up in an order that may vary
    verdict("killed and resumed, or never killed: the adapters are equal to the last bit", files[0] == files[1])
run.forget_side_runs()

# %% [markdown]
# They are equal to the last bit, because a checkpoint holds all that matters: adapters, the optimizer's averages, the learning rate, the random numbers, the place in the data, and in float16 the number that the loss is multiplied by. On a GPU they may differ in the
# last bits, since it adds up in an order of its own.
#
# Where should checkpoints go, so that they outlive the machine?
#
# - **Google Drive**: with `output_dir = "drive"`, run the notebook again after a disconnect: the base model is downloaded again, and training goes on. Only `eval_rows` and `max_new_tokens` may change, which score the model. With any other change training begins anew.
# - **Kaggle**: runs go to `/kaggle/working`, which "Files only" keeps. So does "Save Version" at the end, with "Quick Save" and its output.
# - **The hub**: log in with `from huggingface_hub import login; login()` and never put a token into a parameter. Then set `hub_repo = "you/name"`. Each checkpoint is pushed to a private
#   repository, as the folder `last-checkpoint`. To resume elsewhere, download that folder into `run.checkpoints` and name it by its step, for example `checkpoint-40`; the step stands in its `trainer_state.json`.
# - **Your own computer**: download the folder with the file browser.
#
# Resume from your own checkpoints only. The adapter in a checkpoint is safetensors, which holds numbers and nothing else. But `optimizer.pt` and its neighbours are pickles, and loading a pickle can run any program. transformers reads them in
# a mode that refuses anything but tensors and plain values; all the same, from a stranger's checkpoint take the adapter alone.

# %%
record(
    exact_match_before=before.exact_match, exact_match_after=after.exact_match,
    exact_match_interval_after=list(after.interval), heldout_loss_before=before.loss, heldout_loss_after=after.loss,
    final_loss=curve("loss")[1][-1], train_seconds=train_seconds, train_loss=list(zip(*curve("loss"))),
    cuda_graphs=cures.graphs, peak_bytes=monitor.peak_bytes, peak_bytes_by_phase=monitor.peaks,
    training_peak_bytes=measured, predicted_peak_bytes=predicted, trainable_parameters=trainable,
    adapter_bytes=(run.adapter / "adapter_model.safetensors").stat().st_size, epochs=epochs_here, plain=settings.plain,
)  # fmt: skip

# %% [markdown]
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once. The dots after the minutes say how hard it is. The solutions are folded away.
#
# **1. Write** (5 minutes, •). `layers` is a list of pairs, the inputs and the outputs of each layer that gets an adapter. Write `lora_numbers(layers, rank)`: how many
# numbers does LoRA train?


# %%
def lora_numbers(layers, rank):
    "How many numbers LoRA trains beside all of these layers."
    return ...


check("03.1", lora_numbers)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def lora_numbers(layers, rank):
#     return sum(rank * (inputs + outputs) for inputs, outputs in layers)
#
#
# check("03.1", lora_numbers)
# ```
#
# With the four attention matrices in each of Mistral-7B's 32 layers and rank 8 that is 6,815,744. Many texts say 8,388,608, because they count `k_proj` and `v_proj` as square matrices.
# </details>
#
# **2. Write** (5 minutes, ••). Write `labels(prompt, completion, eos)`: from the token ids of a prompt and of its completion, and the id of eos, make the labels of all
# of them in one list, so that the model learns the answer and when to stop.


# %%
def labels(prompt, completion, eos):
    "One label for each token of prompt, completion and eos."
    return ...


check("03.2", labels)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def labels(prompt, completion, eos):
#     return [-100] * len(prompt) + completion + [eos]
#
#
# check("03.2", labels)
# ```
# </details>
#
# **3. Repair** (5 minutes, ••). These settings were copied from a recipe for an A100. Write `for_a_t4(settings)`: it returns them changed so that they suit a T4, and leaves alone what need not
# change.

# %%
copied = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16", "bf16": True, "fp16": False,
          "attn_implementation": "flash_attention_2", "max_length": 512}  # fmt: skip


def for_a_t4(settings):
    "The settings, changed so that they suit a T4."
    return ...


check("03.3", for_a_t4)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def for_a_t4(settings):
#     return settings | {"bnb_4bit_compute_dtype": "float16", "bf16": False, "fp16": True, "attn_implementation": "sdpa"}
#
#
# check("03.3", for_a_t4)
# ```
# </details>
#
# **4. Write** (5 minutes, ••). Section 6 trained on eight rows. On how many rows does the held-out loss rise again, so that it ends more than a fifth above its lowest value? Put your guesses into `guess`: `True` where it rises. Then write `heldout_losses(rows)`: it calls `side_run` as
# section 6 does, but with that many rows, and returns the losses on the held-out rows in their order. The check calls it for 8, 32 and 128 rows: three runs as long as section 6's.


# %%
guess = {8: ..., 32: ..., 128: ...}


def heldout_losses(rows):
    "The held-out losses of a side run on that many rows."
    return ...


check("03.4", heldout_losses, guess)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# guess = {8: True, 32: False, 128: False}
#
#
# def heldout_losses(rows):
#     found = side_run(run, f"on-{rows}", rows=rows, heldout=32, steps=16, batch_size=8, learning_rate=9e-3)
#     return [entry["eval_loss"] for entry in found["history"] if "eval_loss" in entry]
#
#
# check("03.4", heldout_losses, guess)
# ```
#
# 16 steps of 8 rows are 128 rows. Eight rows are seen 16 times each and learned by heart. With 32 rows, each seen four times, the loss ends at its lowest value or near it. Of 128 rows none is seen twice.
# </details>
#
# **5. Predict, then run** (5 minutes, ••). The 7B model is trained on a T4, two rows at once, and all layers are recomputed. Of its 28 layers each keeps its input, 3,584 numbers of 2 bytes
# for each token. The weights take 5.5 GB, and the adapters with their optimizer 0.2 GB. What comes and goes in a layer is, for both rows of 512 tokens together, 0.28 GB that grows with the tokens and 0.17 GB that does not (mostly a dequantized weight). Now
# the rows have 2,048 tokens. How many times as much will the *peak* be? Reckon; the check predicts it and takes what is within 0.02.

# %%
my_guess = ...
check("03.5", my_guess)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# inputs = 28 * 3584 * 2 * 2 * 512 / 1e9  # two rows of 512 tokens: 0.2 GB
# stays = 5.5 + 0.2 + 0.17
# my_guess = (stays + 4 * (inputs + 0.28)) / (stays + inputs + 0.28)
# check("03.5", my_guess)
# ```
#
# Four times the tokens make four times the activations, but weights, adapters and workspaces stay what they are. So the peak grows by much less.
# </details>
#
# **6. Decide** (5 minutes, ••). Four runs on your own data. `after.change_from(before)` said of each how the loss on the held-out rows changed, and how far that could be off:
#
# - A: -0.08 nats per token (95%: -0.20 to +0.04)
# - B: -0.05 nats per token (95%: -0.08 to -0.02)
# - C: +0.31 nats per token (95%: +0.22 to +0.40), and its training loss is 0.02, the lowest of all
# - D: -0.30 nats per token (95%: -0.55 to -0.05)
#
# Which of them have become better at rows like these, by more than the choice of the held-out rows could explain? Give their letters, as a text such as `"AB"`.

# %%
better = ...
check("03.6", better)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# better = "BD"
# check("03.6", better)
# ```
#
# B has the smaller change and the surer one. A may be luck: more held-out rows would tell. C has learned its rows by heart.
# </details>
#
# **7. Write** (10 minutes, ••). After a kill, the folder holds checkpoints such as `"checkpoint-80"`, `"checkpoint-100"`. `whole` is a dictionary that says for each name whether it is whole, such as `{"checkpoint-80": True}`. Write
# `to_resume(whole)`: it returns the name to resume from, or `None` if there is none.


# %%
def to_resume(whole):
    "The name of the newest whole checkpoint, or None."
    return ...


check("03.7", to_resume)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def to_resume(whole):
#     good = [name for name, is_whole in whole.items() if is_whole]
#     return max(good, key=lambda name: int(name.split("-")[1]), default=None)
#
#
# check("03.7", to_resume)
# ```
# </details>
#
# ## What you did
#
# You trained an adapter on data in two columns, saved it before you looked at it, and measured on rows it had never seen that it made the model better. You know five
# traps that you meet on a T4 by what you would see, and you have killed a run and gone on from its checkpoint.
#
# Next: [04 Inference](04_inference.ipynb) asks the model with your adapter.
#
# ## Further down
#
# What follows is for readers who want to know more. Nothing later depends on it.
#
# ### Conversations of several turns
#
# From a conversation this lesson learns the last answer. To learn all answers of the assistant, train on one column `messages` with
# `SFTConfig(assistant_only_loss=True)`. This needs a template with `generation` marks: what stands between them
# is what the loss sees. For some models, Llama 3 and Qwen2.5 among them, TRL supplies a template with such marks; for others you have to.

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
tokens_in_colour(chat["input_ids"], chat["assistant_masks"], tokenizer.decode)

# %% [markdown]
# The eos stands inside the marks, so it is learned. A template whose eos stands outside never teaches the model to stop, and TRL warns of it.
#
# If a template has no marks and you do not want to write them, make each answer a row of its own, with all that was said before it as the prompt. Then the two columns decide what is learned, and any
# template will do. The price is that earlier turns are computed again for each answer.

# %%
talk = [*messages, {"role": "user", "content": "Are you sure?"}, {"role": "assistant", "content": "Yes."}]
answers_at = [i for i, message in enumerate(talk) if message["role"] == "assistant"]
for i in answers_at:
    print({"prompt": talk[:i], "completion": talk[i : i + 1]})

# %% [markdown]
# ### Rows without padding
#
# The rows of a batch have different lengths. The usual way fills them up to the longest with *padding*, which is computed and teaches nothing. This lesson lays them one behind the other: `trainer.data_collator.padding_free`
# is True while it trains, as `SFTConfig(padding_free=True)` would set it. Then one row must not see the other. TRL leaves that to flash attention, which a T4 does not have. So the course has a kind of attention that stays within each row
# (`helpers/training/without_padding.py`); on a GPU it is torch's memory-efficient kernel. The collator says where rows begin and end, in `cu_seq_lens_q`: how many tokens there are up to each end, counted from the first row on. Is a row computed as if it were alone?

# %%
import torch

from helpers.training import padding_free

four = [trainer.train_dataset[i] for i in range(min(4, len(trainer.train_dataset)))]
with plan.guarded(), torch.no_grad(), padding_free(trainer, max_tokens=4 * settings.max_length):
    batch = trainer.data_collator(four)
    begins = batch["cu_seq_lens_q"].tolist()
    batch = {
        name: value.to(model.device) if hasattr(value, "to") else value
        for name, value in batch.items()
        if name != "labels"
    }
    in_rows, in_one = (
        model(**inputs, use_cache=False).logits[0].float() for inputs in (batch, {"input_ids": batch["input_ids"]})
    )
    alone = [
        model(input_ids=batch["input_ids"][:, a:b], use_cache=False).logits[0].float()
        for a, b in zip(begins, begins[1:])
    ]
print(f"{len(four)} rows in one, without padding; they begin and end at {begins}")

# %%
alone = torch.cat(alone)
apart, as_one = (((logits - alone).norm() / alone.norm()).item() for logits in (in_rows, in_one))
print(f"relative difference to each row computed alone: {as_one:.3f} if taken for one text, {apart:.6f} padding-free")
if len(four) > 1:
    verdict("rows in one batch without padding do not see each other", apart < as_one / 10)

# %% [markdown]
# TRL's loss is divided by the number of learned tokens in the whole step, so it is the loss of the padded batch, too. And because rows are independent, a long batch can be cut between two rows: that is how the plan bounds the memory.
#
# *Packing* (`SFTConfig(packing=True)`) leaves padding out in another way: it fills rows of one length with several short ones, so that a step no longer has the same number of rows. Without flash attention it needs a mask of all tokens by all tokens.
# [Section 7 of lesson 09](09_faster_and_larger.ipynb) times these ways side by side, and says what each choice of this lesson brings.
#
# ### All cures, and how they were measured

# %%
table(all_cures, GPU_time_saved="{:.0%}", step_time_saved="{:.0%}")

# %% [markdown]
# Each percentage compares a run with and without its line, and a minus means that it got slower. They were measured on different recipes, so do not add them up. A cure without a number saves you from an error and not from waiting.
# `recorded` ([CUDA graphs](../site/glossary.md#cuda-graph)) helps a GPU that waits for Python, and a run on a T4 leaves it out.
#
# They were measured with Mistral-7B's shape and rows of one length, on an H200 under T4 rules; `recorded` on top of "nothing recomputed", where alone it can be used; `padding_free` with rows of real lengths on an H100, beside the same recipe with
# padding. Differences of a few per cent are within the noise of three runs, and what `fewer_walks` brings is not more than that.
#
# ### A model that never stops
#
# It answers, and then goes on to ask itself the next question. The usual cause is two lines that stand in many notebooks: the padding
# token is set to eos, and a collator masks all padding. Look where the colour ends:

# %%
from transformers import DataCollatorForLanguageModeling as PlainCollator

common = AutoTokenizer.from_pretrained(run.model.path)
common.pad_token = common.eos_token
spoiled = PlainCollator(common, mlm=False)([{"input_ids": example["input_ids"]}])["labels"][0].tolist()
verdict("with pad = eos, transformers' collator masks the eos", common.eos_token_id not in spoiled)
in_colour(example["input_ids"], spoiled)

# %% [markdown]
# Here the whole prompt is learned, and the model never learns to stop. TRL's collator pads by length and keeps the eos. If your model does not stop, look at the labels in colour before you raise `repetition_penalty`, a
# setting of `generate` that is often advised.
#
# ### Half-written checkpoints
#
# A kill can also hit while a checkpoint is being written. transformers' own search takes the highest number, whole or not. `last_complete_checkpoint`, which this lesson uses, looks at the ends of the
# files: a safetensors file must be as long as its header says, and what `torch.save` wrote is a zip with its table of contents at the end.

# %%
import shutil

from transformers.trainer_utils import get_last_checkpoint

from helpers.saving import checkpoint_fault, last_complete_checkpoint

killed_side_run(run, "half", kill_at=2, **small)
trail = run.folder / "side-runs" / "half-checkpoints"
whole = last_complete_checkpoint(trail)
half = shutil.copytree(whole, trail / "checkpoint-9")
(half / "optimizer.pt").write_bytes((half / "optimizer.pt").read_bytes()[:-1000])
print("checkpoint-9:", checkpoint_fault(half))
print(
    "transformers would take",
    get_last_checkpoint(str(trail)).split("-")[-1],
    "and this lesson",
    whole.name.split("-")[-1],
)
run.forget_side_runs()

# %% [markdown]
# ### How large may the model be?
#
# Mistral-Small-24B's shape was trained under T4 rules in a lean setting: Liger, every layer recomputed from an input kept on the host, 8-bit paged Adam, rank 8.
# What it held is what torch reserved, and the CUDA context beside it. By that it just fits with one row of 512 tokens, and not with one of 1,024. The weights set the limit: those of a 32B model alone do not fit, while training adds about a GB to a 24B model.

# %%
from helpers.memory import GPUS, RunSpec, predict
from helpers.models import PRESETS
from helpers.records import measured_runs

largest = measured_runs("h200_memory_rows").query("model == 'Mistral-Small-24B'")
largest = largest.assign(held_bytes=largest.reserved_bytes + GPUS["t4"].context_bytes)
table(largest[["model", "target_modules", "seq_len", "after_load_bytes", "peak_bytes", "held_bytes"]], "{:,}")

# %%
qwen_32b = PRESETS["qwen2.5-7b"].shape | {
    "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
}  # fmt: skip
loaded_32b = predict(qwen_32b, RunSpec(), "t4").after_load
a_t4 = GPUS["t4"].total_bytes
print(f"32B: {loaded_32b / 1e9:.2f} GB for the weights alone. A T4 has {a_t4 / 1e9:.2f} GB.")
fitting = largest[largest.held_bytes < a_t4]
verdict("a 24B shape trains in a T4's memory with a row of 512 tokens, and of 32B not even the weights fit",
        fitting.seq_len.max() == 512 and loaded_32b > a_t4)  # fmt: skip

# %% [markdown]
# Two GPUs of that size can train a 32B model together: [lesson 09](09_faster_and_larger.ipynb) shows how.
#
# Next: [04 Inference](04_inference.ipynb) asks the model with your adapter.
