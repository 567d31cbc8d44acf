# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 Faster and larger
#
# At the end of this lesson you can say what a second GPU brings to your training, you have trained in two processes at once, and you have a plan for a 32B model on two GPUs of a T4's size.
#
# You will learn to
#
# - tell whether you lack time or memory, and choose between copies, divided layers and divided weights;
# - train in several processes from a notebook, and check that they learn what one process would have learned;
# - read a logged loss and a batch size rightly when there are several processes;
# - divide the layers of a model so that no GPU takes more than it must;
# - say where the time of a step goes on one GPU, before you take a second.
#
# **Time:** 50 minutes to read, 65 for the exercises. The cells take {{cpu_time}} on two CPU cores; {{t4_time}} on two T4s. **Needs:** lessons 02 and 03. No GPU is needed: two processes on the CPU stand in for two GPUs. Where two GPUs are, as on Kaggle, the processes take both.

# %% tags=["parameters"]
model_id = "bundled"  # what is trained here; on two GPUs it may be a preset, a folder or a hub id
dataset_id = "bundled"
seed = 0
max_steps = 8
batch_size = 8  # rows that each of two processes computes at once; one process alone takes twice as many
output_dir = "auto"

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin("09_faster_and_larger", model_id=model_id, dataset_id=dataset_id, seed=seed, max_steps=max_steps,
            batch_size=batch_size, output_dir=output_dir)  # fmt: skip
settings = run.settings

# %% [markdown]
# ## Time, or memory?
#
# A second GPU can bring two different things. It can take half of the rows, and then a training is done sooner. Or it can take half of the model, and then the model may be larger. So ask first: **which do you lack, time or memory?**
#
# There are three ways to use both GPUs. *Copies*: each GPU has the whole model, and rows of its own. *Divided layers*: each GPU has half of the layers, and every row passes through both. *Divided weights*: each GPU has half of every layer, and rows of its own. Look at the left side of the picture if you lack time, and at the right side if you lack memory.

# %% tags=["result"]
from helpers.memory import GPUS, plan, predict, shape_of
from helpers.plots import diagrams, show
from helpers.records import measured_runs, measured_two_gpus

names = {"one": "one GPU", "ddp": "copies", "split": "divided layers", "fsdp2": "divided weights"}
pair, single = measured_two_gpus(), measured_runs("h200_memory_rows").query("model == 'Mistral-Small-24B'").iloc[0]
four = pair.loc[["7b-one-qkvo", "7b-ddp-qkvo", "7b-split-qkvo", "7b-fsdp2-qkvo"]].replace({"way": names})
trained = {"one GPU, 1 × 512": single.config, "two GPUs, 1 × 2,048, all linear": pair.config["32b-split-78-layers-all-2048"],
           "two GPUs, 1 × 512, q k v o": pair.config["32b-split-94-layers"]}  # fmt: skip
billions = {label: shape_of(config).parameters / 1e9 for label, config in trained.items()}
speed = dict(zip(four.way, four.tokens_per_second))
figure = diagrams.two_panels(
    {"tokens a second, a 7B shape": speed, "billions of weights, largest trained\n(settings differ)": billions},
    "Copies train faster, divided layers train larger models", {"one GPU": "grey", "one GPU, 1 × 512": "grey"})  # fmt: skip
show(figure, alt="Copies on two GPUs compute 1.7 times the tokens of one GPU, divided layers fewer than one; "
     "two GPUs with divided layers trained 40 and 47 billion weights, one GPU 24")  # fmt: skip

# %% [markdown]
# So if you lack memory, divide the layers. If you lack time, look at section 7 first: one GPU alone may do as well as copies. For a 7B model on two T4s, the end of section 2 has a file, and says how to time both.
#
# Here are the numbers behind the left side. Mistral-7B's shape was trained with rows of 512 tokens, rank 8 on q, k, v and o, in float16. With copies and divided weights each GPU computed 4 rows at once; with one GPU or divided layers it was 4 rows in all.

# %%
faster = four.tokens_per_second / four.tokens_per_second.iloc[0]
well = measured_runs("h200_speed").query("rules == 't4'").groupby("recipe").tokens_per_second.median()
lines = {"eight rows at once, before layers are fused": "fused Adam", "eight rows at once, with what section 7 shows": "every third layer",
         "two batches of four rows, nothing recomputed, CUDA graphs": "recorded"}  # fmt: skip
for words, recipe in lines.items():
    print(f"one H200, {words}: {well[recipe]:,.0f} tokens a second")
table(list(zip(four.way, four.gpus, four.step_seconds, four.tokens_per_second, faster, four.fullest_bytes / 1e9)), "{:.2f}",
      columns=("way", "GPUs", "seconds a step", "tokens a second", "times one GPU", "GB of tensors, fullest GPU"),
      GPUs="{}", tokens_a_second="{:,.0f}")  # fmt: skip

# %% [markdown]
# Copies are faster and save no memory. Divided layers save nearly half of the memory and are not faster. Divided weights lie between the two, in both.
#
# All four runs of the table recomputed every layer, and had none of section 7's fused layers. The lines above it were measured on another day. With eight rows at once one H200 trained as many tokens as the two copies with four each, before any layer was fused: small batches leave these GPUs waiting for Python. With section 7's changes it was half as many again, and by GPU time they bring a factor of 1.6. **So if time is what you lack, run lesson 03 as it is on one GPU first.** The program that trains copies does not have those changes. Nobody has timed which of the two wins on T4s; the end of section 2 says how you can.
#
# On the right side, the largest model that was trained on one GPU of a T4's memory (14.56 GiB, which is 15.6 GB) is a 24B model, with one row of 512 tokens and the settings that save most memory (the end of lesson 03). On two such GPUs Qwen2.5-32B's shape was trained with one row of 2,048 tokens. Then layers were added to it, until about 0.9 GB were left beside the CUDA context, and nothing larger was tried. The settings differ: the 24B run spared more memory (Liger, and the inputs of layers kept in the computer's memory).
#
# What these numbers are, and what they are not: they were measured on two NVIDIA H200s, each held to a T4's memory, number format and attention kernels. The memory is a T4's. **The seconds are an H200's.** Kaggle lends two T4s in one machine, and nobody has timed this course there. A T4 computes many times slower, and its two GPUs
# exchange data over PCIe, which is slower than what joins two H200s. The seconds are also rough, since four runs shared the machine. Look at the order of the bars, and at large differences.
#
# ## 1 Who holds what
#
# Take Qwen2.5-32B's shape, with rank 8 on all linear layers and one row of 2,048 tokens. What would each GPU hold at its peak? The memory model of lesson 02 answers that for several GPUs too: `predict` takes `gpus` and `way`, and its result has `each`, a prediction for each GPU.

# %%
large = pair.loc["32b-split-all-2048"]  # a measured run: `config` is the model's shape, `spec` how it was trained
at_peak = {}
for way in names:
    spec = large.spec | ({"optimizer": "adamw_torch"} if way == "fsdp2" else {})
    at_peak[way] = predict(large.config, spec, "t4", 1 if way == "one" else 2, way)

# %% tags=["who-holds-what"]
held = {}
for way, found in at_peak.items():
    held[names[way]] = [each.parts | {"reserved and context": each.held_bytes("t4") - each.peak_allocated}
                        for each in found.each or (found,)]  # fmt: skip
for parts in held["divided weights"]:
    parts["on the host"] = at_peak["one"].after_load  # each process loads all of the model, before it keeps its part
says = {"one GPU": ["64 layers"], "copies": ["64 layers"] * 2, "divided weights": ["half of\nevery\nlayer"] * 2,
        "divided layers": [f"{layers} layers" for layers in at_peak["split"].layers]}  # fmt: skip
between = {"copies": "in each step:\ngradients of the adapters", "divided layers": "in each batch: activations,\nand their gradients",
           "divided weights": "for each layer: weights;\nin each step: gradients"}  # fmt: skip
figure = diagrams.who_holds_what(held, says, between, GPUS["t4"].total_bytes,
                                 "A 32B model fits two GPUs of a T4's size with divided layers, and not as copies")  # fmt: skip
show(figure, alt="Stacked columns for each GPU: one GPU and copies hold 23 GB each, above a T4's 15.6; divided layers 12.6 GB on "
     "each GPU; divided weights 17.5 GB on each")  # fmt: skip

# %% [markdown]
# Blue is frozen, orange is trained, grey comes and goes. Light blue is what divided weights put together for a moment (section 4). The pale part on top is what torch reserves beyond that, and the CUDA context. What is hatched lies in the computer's memory, and not on a GPU: the whole model, 19 GB for each process.
#
# - **Copies** (DDP, [DistributedDataParallel](../site/glossary.md#ddp)): each GPU has a process of its own, the whole model, and its own rows. During the backward pass the processes average their gradients, so all copies stay alike. DDP keeps these gradients a second time, in buffers of its own: that is why the orange part is larger than on one GPU.
# - **Divided layers** (*split*, by a [device map](../site/glossary.md#device-map)): one process. The first layers lie on the first GPU, the others on the second. Every row passes through both.
# - **Divided weights** ([FSDP2](../site/glossary.md#fsdp2)): each GPU has a process and its own rows, and half of every weight. Just before a layer is needed, the processes put it together, and afterwards each drops the other's half. While it is loaded, each process has the whole model: first on its GPU, where it is quantized, and then in the computer's memory. A T4 cannot hold a 32B model even for that moment: in the runs that were measured, each GPU took 19.5 GB while it was loaded. Once it is loaded, the training of the picture would take 17.5 GB. So this way is out for a 32B model on T4s, whatever the training would take.
#
# In the calls of lesson 03 the ways differ in few places:
#
# | way | where the model is loaded | other arguments | started by |
# |---|---|---|---|
# | one GPU | `device_map={"": 0}` | | `python train.py` |
# | copies | `device_map={"": process}` | `SFTConfig(ddp_find_unused_parameters=False)` | `accelerate launch --num_processes 2 train.py` |
# | divided layers | `device_map={"model.layers.0": 0, ..., "lm_head": 1}` | | `python train.py` |
# | divided weights | each process's GPU, and from there into the computer's memory | `BitsAndBytesConfig(bnb_4bit_quant_storage=dtype)`, `SFTConfig(fsdp=True, fsdp_config={"version": 2, ...})`, `optim="adamw_torch"` | `accelerate launch --num_processes 2 train.py` |
#
# `ddp_find_unused_parameters=False` says that every adapter gets a gradient in each step, so that DDP need not look for those that do not. `process` is the number of a process, 0 or 1. (torch calls that number its *rank*, which has nothing to do with LoRA's.) A plain notebook is one process, and it stays one. accelerate's `notebook_launcher` would start more, but it refuses once bitsandbytes has been imported. So a training in several processes is a program of its own, and the notebook starts it. This course has such a program, `python -m helpers train`. It takes a file of
# settings, and cures on its way what this lesson calls traps. "Further down" has a script for copies that needs nothing of this course.
#
# ## 2 Sooner: copies
#
# Each process computes the gradient of its own rows. Is the mean of two such gradients the gradient of all rows? Try it with a model of one number, $w$: it guesses $y$ as $w x$, and its loss for one token is $(w x - y)^2 / 2$. The gradient by $w$ is then the mean of $(w x - y)\, x$ over the tokens.

# %% tags=["by-hand"]
import numpy as np

chance = np.random.default_rng(settings.seed)


def gradient(rows, tokens=None, w=0.3):
    "Of the loss, by w: the sum over all tokens of these rows, divided by their number, or by `tokens`."
    x, y = np.concatenate(rows).T
    return ((w * x - y) * x).sum() / (tokens or len(x))


even = [chance.normal(size=(5, 2)) for _ in range(4)]  # four rows of five tokens; each token is a pair (x, y)
first, second = even[:2], even[2:]  # what each of two processes gets

# %% tags=["even"]
both = (gradient(first) + gradient(second)) / 2
print(f"all rows {gradient(even):+.6f}, mean of two processes {both:+.6f}")
verdict(
    "with equally many tokens, the mean of both processes' gradients is the gradient of all rows",
    np.isclose(both, gradient(even)),
)

# %% [markdown]
# Real answers have different lengths. Now let the rows have 9, 7, 3 and 1 tokens. The first process has 16 of them and the second 4. **Which tokens count too much, if each process divides by its own number of tokens?** Write down a guess, then run it.

# %% tags=["uneven"]
uneven = [chance.normal(size=(tokens, 2)) for tokens in (9, 7, 3, 1)]
own = (gradient(uneven[:2]) + gradient(uneven[2:])) / 2
shared = (gradient(uneven[:2], tokens=10) + gradient(uneven[2:], tokens=10)) / 2
print(f"all rows {gradient(uneven):+.6f}, each by its own tokens {own:+.6f}, each by half of all tokens {shared:+.6f}")
verdict("with unequal numbers of tokens, each process has to divide by an equal share of all tokens, and not by its own number of them",
        np.isclose(shared, gradient(uneven)) and not np.isclose(own, gradient(uneven)))  # fmt: skip

# %% [markdown]
# The four tokens of the second process counted as much as the sixteen of the first. So before each step the processes have to tell each other how many tokens they have. transformers' `Trainer` does that; the argument is `average_tokens_across_devices`, and it is on by default.
#
# ### The files
#
# Now the real thing. Here is the file of settings for one process, and for two. A function writes it, so that every training of this lesson gets an empty folder of its own.

# %% tags=["config"]
import json
import shutil


def config(name, **changes):
    "A file of settings for a training whose folder is empty."
    folder = run.folder / "several" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in (usual | changes | {"output_dir": str(folder)}).items()]
    (folder / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "config.toml"


usual = {"model_id": settings.model_id, "dataset_id": settings.dataset_id, "seed": settings.seed, "max_steps": settings.max_steps,
         "save_steps": max(1, settings.max_steps // 2), "eval_rows": 32}  # fmt: skip
alone = config("one", way="one", gpus=1, batch_size=2 * settings.batch_size)
copies = config("copies", way="ddp", gpus=2, batch_size=settings.batch_size)
print("".join(line for line in copies.open() if "output_dir" not in line).strip())

# %% [markdown]
# In a terminal you would type `python -m helpers train config.toml`. With `--dry-run` it trains nothing and says what it would do, and what each GPU would take. (Where no GPU is, that is predicted for T4s, and two processes on the CPU stand in for them.)

# %% tags=["dry-run"]
from helpers.quick import killed_by_file, train_by_file

print(train_by_file(copies, dry_run=True)["words"])

# %% [markdown]
# ### One process, and two
#
# Both trainings take the same rows in the same steps. One process computes all rows of a step at once. Of two processes each computes half of them, and then they average. Each training takes some ten to twenty seconds on a CPU, and most of that is the start of Python and its libraries. (On the CPU the processes talk through `gloo`, on GPUs through NCCL, two libraries that exchange tensors between processes. If the machine has fewer than two GPUs, both trainings run on the CPU.)

# %% tags=["one-and-two", "nbval-ignore-output"] reason="the last digits of a loss vary with the machine"
one = train_by_file(alone)
two = train_by_file(copies)
on_cpu = one["machine"].startswith("CPU")
print(f"one process: {one['rows_per_step']} rows a step; two processes: {two['rows_per_step']}")
rows = [(step, *losses) for step, losses in enumerate(zip(one["losses"], two["losses"]), 1)]
rows.append(("held out, after", one["heldout_loss_after"], two["heldout_loss_after"]))
table(rows, "{:.5f}", columns=("step", "loss, one process", "loss, two processes"))

# %% [markdown]
# The losses agree to four digits or more on a CPU. Losses can agree by accident, so look at what was learned: read both adapters, and see how far they are apart, as a share of their length.

# %% tags=["apart"]
import torch
from safetensors.torch import load_file


def adapter(name):
    "All numbers of an adapter that was trained here, by the names of its tensors."
    return load_file(run.folder / "several" / name / "adapter" / "adapter_model.safetensors")


def apart(name, other):
    "How far two adapters are apart, as a share of the length of the first."
    a, b = (torch.cat([tensor.flatten() for _, tensor in sorted(adapter(n).items())]) for n in (name, other))
    return ((a - b).norm() / a.norm()).item()


# %% tags=["same-adapters"]
distance = apart("one", "copies")
print("fewer than 1 in 1,000 apart" if distance < 1e-3 else f"{distance:.1%} apart")
if on_cpu:  # in float16 two processes may skip one step more than one process does: see the trap below
    verdict("two processes end with the adapter of one process that had the same rows", distance < 1e-3)

# %% [markdown]
# Two processes learn what one would have learned. Nothing else about the training had to change.
#
# Somebody takes the file of one process, and changes `way` and `gpus` alone. How many rows will a step have? Guess, then run it.

# %% tags=["per-process"]
careless = train_by_file(config("careless", way="ddp", gpus=2, batch_size=2 * settings.batch_size), dry_run=True)
print(careless["words"].splitlines()[0])
verdict("the file of one process, given to two, makes steps of twice as many rows",
        f"steps of {2 * one['rows_per_step']} rows" in careless["words"])  # fmt: skip

# %% [markdown]
# > **Trap: `batch_size` is counted per process.** *What you see:* with a second GPU the loss falls differently, and the rows are used up twice as fast. *Why:* `per_device_train_batch_size` is what each process computes. A step then has rows × processes × accumulated batches. *Cure:* halve `batch_size` or `gradient_accumulation` when you double the GPUs, as the file above does.
#
# > **Trap: the logged loss.** *What you see:* with copies in float16 the first logged losses are higher than those of one GPU. *Why:* each process multiplies its loss by the number of processes, so that the mean of their gradients comes out right. In float16 the loss is also multiplied by a scale, which begins too high (lesson 06). So the gradient of each token is twice as large on its way, and can overflow once more. Then that step is skipped,
# > and all later losses come one step later. *Cure:* compare the loss on held-out rows, computed in the same way for both, after so many steps that one more or less does not matter. That is the last line of the table. (There is a second cause, in a loop of your own or with `average_tokens_across_devices=False`: what is logged may be a mean of means, as above.)
#
# ### How much faster?
#
# On a CPU nothing is gained: two processes share the cores that one had. On two GPUs copies computed 1.7 times as many tokens. Why not twice as many? That was not taken apart. The main suspect is Python, which starts the work of a GPU piece by piece (section 7). With copies a step of 4 × 512 tokens on each GPU took 0.48 s, and one of 2 × 2,048 tokens took 0.67 s: twice the tokens, in 1.4 times the time. So much of the shorter step seems to be Python, which a slower GPU hides, and 1.7 is no forecast for T4s. It is hardly what the processes exchange, since only the adapters have gradients. For the 7B shape of the first table:

# %% tags=["exchanged"]
mistral = four.iloc[0].config
parts = predict(mistral, four.iloc[0].spec, "t4", 2, "ddp").parts
exchanged, weights = parts["adapters"], shape_of(mistral).parameters  # a gradient is as large as what it is of
table({"gradients of the adapters (MB)": exchanged / 1e6, "gradients of all weights, in 16 bits (MB)": 2 * weights / 1e6},
      "{:,.0f}", columns=("what DDP would exchange in a step", "size"))  # fmt: skip

# %% [markdown]
# Here LoRA has a third advantage, beside the optimizer's memory and the small file: full fine-tuning would have to exchange some five hundred times as much in every step. On GPUs that are joined by a slow bus, that can decide.
#
# ### A file for a 7B model
#
# To train a 7B model as copies on Kaggle, choose *GPU T4 x2* as the accelerator, and switch *Internet* on. Write this file, in a cell that begins with `%%writefile /kaggle/working/7b.toml`:
#
# ```toml
# model_id = "Qwen/Qwen2.5-7B"
# dataset_id = "/kaggle/input/NAME/rows.csv"
# output_dir = "/kaggle/working/7b"
# way = "ddp"
# gpus = 2
# batch_size = 4
# gradient_accumulation = 2
# max_steps = 60
# padding_free = true
# ```
#
# Lesson 03 accumulates four batches of four rows on one GPU. Here each of two GPUs accumulates two, so a step has the same sixteen rows. The columns of `rows.csv` are those that lesson 03 takes, such as prompt and completion. `padding_free` leaves padding out, which section 7 explains.
#
# Choose `max_steps` by the number of rows that are left to learn, beside the held-out ones: steps = epochs × (rows / 16, rounded down), since each pass has whole steps only. The 60 steps of the file see 60 × 16 = 960 rows; of 40,000 rows all but these are never seen. For two epochs of 5,000 rows write 624.
#
# Then `from helpers import COURSE_ROOT`, and start it with `!cd {COURSE_ROOT} && python -m helpers train /kaggle/working/7b.toml --dry-run`. Leave `--dry-run` out when you like what it says.
#
# Is that sooner than lesson 03 on one GPU? Start this file with `max_steps = 12` and then with `max_steps = 44`, each time with an `output_dir` of its own. The folder's `train.json` has `train_seconds`: subtract the smaller from the larger. What comes only once, as compiling does, drops out, and 32 steps are left. Do the same in lesson 03, which prints "12 steps in ... s", with the same model, 704 rows or more, and the same `max_length`. With these two numbers of steps it computes the held-out loss equally often, so that drops out too. The smaller difference wins.
#
# ## 3 Larger: divided layers
#
# If the model does not fit one GPU, put the first layers on one GPU and the others on the next. Where should the cut be? A GPU that has one layer more has less room for everything else, and it is the fullest GPU that runs out of memory. So choose the cut at which the fullest GPU takes the least.
#
# For Qwen2.5-32B's shape that is the middle: in the picture both GPUs have 32 layers, and hold equally much.
#
# Is it always the middle? Llama-3.2-3B has 28 layers, a vocabulary of 128,256 words, and a *tied* head: the [head](../site/glossary.md#head), which turns the last layer's output into logits, is the same table as the embedding. So the head has to lie with the embedding, on the first GPU, and the loss is computed there too. **How many of the 28 layers should the
# first GPU get?** Guess. Then look at both GPUs' peaks for every cut:

# %% tags=["every-cut"]
small = pair.loc["3b-split-tied-qkvo-2048"]
peaks = {}
for cut in range(2, 27):
    both_gpus = predict(small.config, small.spec, "t4", 2, "split", [cut, 28 - cut]).each
    peaks[cut] = [gpu.peak_allocated for gpu in both_gpus]
figure = diagrams.peaks_by_cut(peaks, {14: "the middle"}, "The fullest GPU takes the least where both lines cross")
show(figure, alt="The peak of GPU 0 rises with its layers, that of GPU 1 falls; the lines cross near 9 of 28 layers, far left "
     "of the middle, where GPU 0 takes much more than GPU 1")  # fmt: skip

# %% [markdown]
# Without `layers`, `predict` looks for that cut itself. Compare it with the middle, and with what was measured at the middle:

# %% tags=["even-peaks"]
chosen = predict(small.config, small.spec, "t4", 2, "split")
middle = predict(small.config, small.spec, "t4", 2, "split", [14, 14])
fullest = {"chosen": max(each.peak_allocated for each in chosen.each), "the middle": middle.peak_allocated}
verdict("the chosen cut leaves both GPUs within 2% of each other, and the fuller one at least a tenth less than the middle does",
        min(each.peak_allocated for each in chosen.each) > 0.98 * fullest["chosen"]
        and fullest["chosen"] < 0.9 * fullest["the middle"])  # fmt: skip
table([("chosen", chosen.layers, *(each.peak_allocated / 1e9 for each in chosen.each)),
       ("the middle", middle.layers, *(each.peak_allocated / 1e9 for each in middle.each)),
       ("the middle, measured", small.layers, *(peak / 1e9 for peak in small.peak_bytes))],
      "{:.2f}", columns=("cut", "layers", "GPU 0 (GB)", "GPU 1 (GB)"))  # fmt: skip

# %% [markdown]
# (The measured run was on an H200, where each GPU sets some 50 MB more aside for products of matrices than a T4 does.)
#
# Should you believe `predict` for a model that nobody has tried? Some runs with divided layers were set apart before anything was measured, and the formulas were written from the others. (The peaks of all runs had been printed once by then, so this is no blind test.) Here is how far the prediction is off, for each run that was set apart:

# %% tags=["held-out"]
held_out = pair.query("way == 'split' and role == 'holdout'")
off = {name: max(abs(each.peak_allocated / measured - 1) for each, measured in
                 zip(predict(row.config, row.spec, "h200", 2, "split", row.layers).each, row.peak_bytes))
       for name, row in held_out.iterrows()}  # fmt: skip
verdict(
    "of each held-out run with divided layers, both peaks are within a thousandth of the prediction",
    max(off.values()) < 1e-3,
)
table(off, "{:.3%}", columns=("held-out run", "the farther of its two peaks"))

# %% [markdown]
# In the library's words a cut is a device map: a dictionary from modules to GPUs. Here it is for a model without a tied head, where head and final norm lie with the last layers.


# %% tags=["device-map"]
def device_map(layers, tied=False):
    "For from_pretrained: where each module lies, if GPU 0 has the first `layers[0]` layers, GPU 1 the next, and so on."
    last = len(layers) - 1
    places = [gpu for gpu, count in enumerate(layers) for _ in range(count)]
    where = {f"model.layers.{i}": gpu for i, gpu in enumerate(places)}
    return {"model.embed_tokens": 0, "model.rotary_emb": 0, **where, "model.norm": last, "lm_head": 0 if tied else last}


print(device_map([2, 3]))

# %% [markdown]
# So `AutoModelForCausalLM.from_pretrained(..., device_map=device_map([32, 32]))` loads the first half onto one GPU and the second onto the other. `device_map="auto"` also divides a model. It goes by the sizes of the weights, and knows nothing of activations, adapters or the loss.
#
# > **Trap: the loss, where the head lies.** *What you see:* `Expected all tensors to be on the same device`, or `Pointer argument cannot be accessed from Triton`, in the first step. *Why:* TRL 1.16 computes the loss on the process's first GPU, and the head lies on the last. *Cure:* put `model.norm` and `lm_head` on GPU 0, which costs memory there,
# > or call `loss_where_the_head_lies(trainer)` of `helpers.training.several` before `train()`, as `python -m helpers train` does. A test on two GPUs looks whether TRL still needs it.
#
# ### Why it is not faster
#
# Both GPUs have work, and yet a step takes as long as on one. Take a forward pass through the whole model as the unit of time. The weights are frozen and need no gradient of their own, so going backward takes about one unit too. With checkpointing each layer is also computed once more on the way, which makes two. Who works when?

# %% tags=["one-step"]
steps = {
    "one GPU": [[("forward", 0, 1, "rows 1-4"), ("backward", 1, 3, "rows 1-4")]],
    "copies": [[("forward", 0, 1, rows), ("backward", 1, 3, rows), ("exchange", 3, 3.15, "")] for rows in ("rows 1-4", "rows 5-8")],
    "divided layers": [[("forward", 0, 0.5, "first half"), ("backward", 2, 3, "first half")],
                       [("forward", 0.5, 1, "second half"), ("backward", 1, 2, "second half")]],
}  # fmt: skip
done = {"one GPU": "4 rows done", "copies": "8 rows done", "divided layers": "4 rows done"}
figure = diagrams.one_step(steps, "With divided layers one GPU always waits for the other", done)
show(figure, alt="With copies both GPUs work all the time on rows of their own, and 8 rows are done where the other ways have done 4; with divided "
     "layers GPU 0 waits from 0.5 to 2 while GPU 1 works, and GPU 1 waits the rest")  # fmt: skip

# %% [markdown]
# (A drawing, not a measurement.) Copies take a little longer for a step of twice as many rows. With divided layers a layer needs the output of the layer below it, so the second half cannot begin before the first has ended. Each GPU works half of the time. In the first table the step took even a little longer than on one GPU: activations go from GPU to GPU, and back as gradients.
#
# If two GPUs are here, the next cell trains the model with divided layers too, and says what each GPU took.

# %% tags=["nbval-ignore-output", "split"] reason="whether two GPUs are here varies with the machine"
if on_cpu:
    print("Fewer than two GPUs are here: there is nothing to divide layers among.")
else:
    split = train_by_file(config("split", way="split", gpus=2, batch_size=2 * settings.batch_size))
    print(f"layers {split['layers']}, held-out loss {split['heldout_loss_after']:.3f}, peaks "
          + " and ".join(f"{peak / 1e9:.2f} GB" for peak in split["peak_bytes"]))  # fmt: skip

# %% [markdown]
# ## 4 Both, at a price: divided weights
#
# Can both GPUs work all the time, and each hold half? FSDP2 tries. Each process has its own rows, as with copies. But each keeps only half of every weight. Before a layer is computed, the processes send each other their halves. Then both have the layer whole, compute it, and drop what is not theirs. Backward, the same again.
#
# What that saves and what it costs, on a 14B shape:

# %% tags=["divided-parts"]
middling = pair.loc["14b-fsdp2-all-2048"]
whole = predict(middling.config, middling.spec | {"optimizer": "adamw_torch"}, "t4")
halved = predict(middling.config, middling.spec, "t4", 2, "fsdp2")
parts = ["quantized weights", "embeddings and head", "optimizer states", "weights gathered from all GPUs"]
table([(part, whole.parts.get(part, 0) / 1e9, halved.parts.get(part, 0) / 1e9) for part in parts]
      + [("peak", whole.peak_allocated / 1e9, halved.peak_allocated / 1e9)],
      "{:.2f}", columns=("part (GB, predicted)", "one GPU", "each of two"))  # fmt: skip

# %% [markdown]
# Weights and optimizer states are halved. (The optimizer is torch's AdamW in both columns, since bitsandbytes' cannot take divided tensors.) But a new part appears. **weights gathered from all GPUs** is what is whole for a moment: a flat buffer into which the halves are gathered, and the tensors that come out of it. For a layer that is little. For the embedding it is much, because the table is gathered whole, and for a moment it exists twice. Qwen's vocabulary has 152,064 words, so
# with these models each GPU takes more than half of what one GPU would.
#
# Now train that way, in two processes. (On a CPU accelerate would drop FSDP2 without a word, and train copies. The course's program prevents that.)

# %% tags=["fsdp2"]
divided = train_by_file(config("divided", way="fsdp2", gpus=2, batch_size=settings.batch_size))
distance = apart("copies", "divided")
print("fewer than 1 in 1,000 apart" if distance < 1e-3 else f"{distance:.1%} apart")
if on_cpu:
    verdict("divided weights end with the adapter of copies", distance < 1e-3)

# %% [markdown]
# That looks easy. It was not, and two traps are why.
#
# > **Trap: 4-bit weights that arrive damaged.** *What you see:* nothing, or a loss that is a little too high. *Why:* FSDP2 divides only tensors of floating-point numbers, and packed 4-bit codes are bytes. So they are stored under another type, `bnb_4bit_quant_storage`: two bytes of codes pose as one 16-bit float. (Left at its default, the codes stay whole on each GPU,
# > and accelerate 1.15 only warns.) Some of these bit patterns are [NaN](../site/glossary.md#nan), "not a number". There are many such patterns, and a program that copies floats may write one and the same for all of them. FSDP2 does so when it gathers a layer whose tensors all have one type. *Cure:* let the adapters stay in float32: a layer of two types is gathered as plain bytes. accelerate would cast them first, so take away its policy when the trainer is built, and before `train()`:
# > `trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = None`.
#
# How many of the packed numbers are NaN? Pack weights from a bell curve, and count.

# %% tags=["nan-patterns"]
import bitsandbytes.functional as bnb

torch.manual_seed(settings.seed)
codes, state = bnb.quantize_4bit(torch.randn(1024, 4096), quant_type="nf4", blocksize=64)
shares = {
    name: codes.flatten().view(getattr(torch, name)).isnan().float().mean().item() for name in ("float16", "bfloat16")
}
for name, share in shares.items():
    print(f"packed codes as {name}: one number in {1 / share:,.0f} is NaN")

# %% [markdown]
# Each of these numbers holds four weights. How large is the [relative error](../site/glossary.md#relative-error) of the weights if every NaN becomes the same NaN? Guess, in per cent.


# %% tags=["damaged"]
def error_after(dtype):
    "The relative error of the weights whose packed codes were copied as floats that know one NaN only."
    floats = codes.flatten().view(dtype).clone()
    floats[floats.isnan()] = float("nan")
    right, wrong = (bnb.dequantize_4bit(c, state) for c in (codes, floats.view(torch.uint8).view(codes.shape)))
    return ((wrong - right).norm() / right.norm()).item()


errors = {name: error_after(getattr(torch, name)) for name in shares}
verdict("one number in fifty to seventy is NaN in float16, and writing all of them alike moves the weights by more than a fifth",
        1 / 70 < shares["float16"] < 1 / 50 and errors["float16"] > 0.2)  # fmt: skip
print(", ".join(f"{name}: {error:.0%}" for name, error in errors.items()))

# %% [markdown]
# Rounding to NF4 itself costs 9% (lesson 01). This is a second error on top, it is larger in float16, and no message tells of it. On two GPUs the gradients of the bundled model were 20 to 79% off, by the number format and the run (`helpers/training/divided.py`).
#
# > **Trap: an adapter without tensors.** *What you see:* training goes well, the adapter is saved, and afterwards the model answers as if it had never been trained. *Why:* there are two FSDPs. Many pages still set up the first ([PEFT's](https://huggingface.co/docs/peft/accelerate/fsdp) and [bitsandbytes'](https://huggingface.co/docs/bitsandbytes/fsdp_qlora) among them, read on 25 November 2026). Under FSDP1, as
# > the libraries set it up, `save_model` wrote a file with no tensor in it, without a word (transformers 5.23, accelerate 1.15). *Cure:* `fsdp_config={"version": 2}`, and count what was saved. `python -m helpers train` compares the adapter's names and shapes with the model's before the first step, and stops if any is missing.
#
# Count them here:

# %% tags=["whole-adapters"]
shapes = {name: {key: tuple(t.shape) for key, t in adapter(name).items()} for name in ("one", "copies", "divided")}
verdict("copies and divided weights save the tensors that one process saves, all of them",
        len(shapes["one"]) > 0 and shapes["one"] == shapes["copies"] == shapes["divided"])  # fmt: skip
table({name: [len(found), sum(np.prod(shape) for shape in found.values())] for name, found in shapes.items()}, "{:,}",
      columns=("adapter", "tensors", "numbers"))  # fmt: skip

# %% [markdown]
# ### Three ways, beside each other
#
# The first table had rows of 512 tokens, and adapters on q, k, v and o. Here is the same shape with adapters on all linear layers. Each process computes one row of 2,048 tokens at once:

# %% tags=["ways"]
longer = pair.loc[["7b-ddp-all-2048", "7b-split-all-2048", "7b-fsdp2-all-2048"]].replace({"way": names})
table(list(zip(longer.way, longer.fullest_bytes / 1e9, longer.tokens_per_second)), "{:.2f}",
      columns=("way", "tensors, fullest GPU (GB)", "tokens a second"), tokens_a_second="{:,.0f}")  # fmt: skip

# %% [markdown]
# Where all three can train a model, copies do it fastest. Divided weights take less memory than copies, and more than divided layers, and their exchange goes on all through the step. On H200s, which are joined by a fast link, they trained 17 to 27% fewer tokens a second than copies. Over PCIe it should be worse, and nobody has measured it. (These runs were measured before the trap of damaged weights had its cure. That changes what is learned, and hardly what it takes. Their optimizer was `adamw_torch`.)
#
# So for QLoRA: **copies, if the model fits one GPU; divided layers, if it does not.** Divided weights were 1.4 and 1.7 times as fast as divided layers in the two tables. Still, a model has to fit each GPU whole while it is loaded for them, and the two traps wait. FSDP2 divides gradients and optimizer states as well. In full fine-tuning these are the largest part (lesson 02), and there it has its place. With QLoRA they are small.
#
# ## 5 Killed, and resumed
#
# Kaggle and Colab take machines away, and two processes die as one does. Lesson 03 killed a run of one process. Here all processes of the run with copies are killed when the first checkpoint is whole. A checkpoint of several processes is whole when each of them has written its part: at least the state of its random numbers. Will the second attempt end
# where the unbroken run did?

# %% tags=["killed"]
broken = config("broken", way="ddp", gpus=2, batch_size=settings.batch_size)
last = killed_by_file(broken, kill_at=usual["save_steps"], processes=2)
print(f"killed after {last}; an adapter was saved: {(broken.parent / 'adapter').exists()}")

# %% tags=["resumed"]
resumed = train_by_file(broken)
distance = apart("copies", "broken")
print(f"went on from {resumed['resumed_from']}; the unbroken run from {two['resumed_from']}")
verdict("killed and resumed, the adapter is that of the unbroken run, to one part in 100,000 on a CPU and one in 100 on GPUs",
        resumed["resumed_from"] == last and distance < (1e-5 if on_cpu else 1e-2))  # fmt: skip

# %% [markdown]
# The same command again is all that it takes. It has to be the same number of processes: each goes on with its own rows and its own random numbers.
#
# ## 6 How large may the model be?
#
# On one GPU of a T4's size the limit lies near 24B ([lesson 03](03_t4_training.ipynb), at its end). Now plan a 32B model for two GPUs of a T4's size. `plan` knows several GPUs too: it takes the fastest setting that leaves a twentieth of each GPU free.

# %% tags=["plan"]
t4 = GPUS["t4"].total_bytes
planned = plan(large.config, t4, large.spec, gpu="t4", gpus=2, way="split")
print(
    f"layers {planned.prediction.layers}, {planned.spec.batch_size} rows at once; {large.spec['batch_size']} was measured"
)


# %% tags=["left-free"]
def holds(way):
    "What the fullest GPU holds, in bytes: tensors, reserve and context."
    return max(each.held_bytes("t4") for each in at_peak[way].each)


verdict("by prediction a 32B shape fits two GPUs of a T4's size with divided layers, and neither as copies nor with divided weights",
        holds("split") < t4 < min(holds("ddp"), holds("fsdp2")))  # fmt: skip
settings_of = {"planned, 2 rows": planned.prediction.each, "as measured, 1 row": at_peak["split"].each}
table([(name, f"GPU {n}", gpu.peak_allocated / 1e9, gpu.held_bytes("t4") / 1e9, (t4 - gpu.held_bytes("t4")) / 1e9)
       for name, gpus in settings_of.items() for n, gpu in enumerate(gpus)],
      "{:.2f}", columns=("setting", "", "tensors (GB)", "with reserve and context", f"left free of {t4 / 1e9:.2f}"))  # fmt: skip

# %% [markdown]
# All of this is predicted, for a T4: two rows fit, and the plan takes them since that is faster. The second setting, one row, is the one that was measured, on two H200s held to 14.56 GiB each: there the tensors took 11.60 and 11.63 GB. How long may a row be on such a pair? **Guess whether 4,096 and 8,192 tokens fit**, then run it.

# %% tags=["lengths"]
for length in (2048, 4096, 8192):
    both_gpus = predict(large.config, large.spec | {"seq_len": length}, "t4", 2, "split").each
    most = max(gpu.held_bytes("t4") for gpu in both_gpus)
    print(f"1 x {length:,}: {most / 1e9:.2f} GB on the fuller GPU; {'fits' if most < t4 else 'does not fit'}")

# %% [markdown]
# On Kaggle the file looks like this:
#
# ```toml
# model_id = "Qwen/Qwen2.5-32B"
# dataset_id = "/kaggle/input/NAME/rows.csv"
# output_dir = "/kaggle/working/32b"
# way = "split"
# gpus = 2
# rank = 8
# target_modules = "all-linear"
# batch_size = 1
# gradient_accumulation = 4
# max_length = 2048
# ```
#
# One row at once is what was measured, so a step of four rows accumulates four batches. It starts as in section 2, with `--dry-run` first. Before the first step and after the last the program also computes the loss on held-out rows, and never takes more rows at once for that than for training.
#
# **The disk.** The model's files hold 16-bit weights, some 65 GB, and `/kaggle/working` has 20 GB. In August 2026 a Kaggle notebook had 1,000 GB free under `/tmp` ([unsloth#8439](https://github.com/unslothai/unsloth/pull/8439)). Look with `!df -h /tmp`, and say `%env HF_HOME=/tmp/hf` before you start. `/tmp` is not kept: a later session downloads the files again, which takes eleven minutes at 100 MB a second. If there is no room, take a smaller model. The course does not take files that are stored in 4 bits already.
#
# **The time.** Nobody has run this on Kaggle's pair, so here are two bounds. With divided layers the GPUs take turns, so count the operations as for one GPU. Each token needs 2 for each weight on the way forward, 2 for computing layers again, and 2 on the way back. That gives the least. The other bound is the 1.3 s by the clock that such a row took on H200s, times lesson 03's factors, 15 and 41. **How long do 60 steps of four rows take?** Guess first.

# %% tags=["minutes"]
shape, rows = shape_of(large.config), 60 * 4
frozen = shape.layers * sum(linear.weights for linear in shape.linears) + shape.hidden * shape.vocab
bounds = []
for teraflops in (65, 24):  # a T4's data sheet, and what it keeps up at 70 watts
    row_seconds = 6 * frozen * large.spec["seq_len"] / (teraflops * 1e12), large.step_seconds * 989 / teraflops
    bounds.append((teraflops, *row_seconds, *(seconds * rows / 60 for seconds in row_seconds)))
table(bounds, "{:.0f}", columns=("a T4 makes (teraflops)", "a row, at least (s)", "a row, by the H200's clock (s)",
                                 "60 steps, at least (minutes)", "60 steps, by the H200's clock (minutes)"))  # fmt: skip

# %% [markdown]
# Lesson 03 multiplies GPU time. But the 1.3 s are clock time, and part of that is Python: a row of only 512 tokens, with adapters on q, k, v and o, took 1.09 s. So the largest number is probably too high. Loading comes on top. If you try it, please tell us what came out.
#
# ## 7 What makes it fast on one GPU
#
# With one GPU or with two, see that each is used well. A GPU works through [kernels](../site/glossary.md#kernel): small programs, which Python starts one after the other, thousands of them in a step. So a step has two times. The *clock* says how long you wait. The *busy* time is the sum of what the kernels take. Where the GPU is so fast that Python cannot keep up, it waits between two kernels, and the clock says more than
# the busy time. A T4 computes many times slower and should hardly ever wait, so for a T4 look at the busy time first.
#
# ### One change after the other
#
# Here is one step of 8 × 512 tokens on Mistral-7B's shape (rank 8 on q, k, v and o, float16), on an H200 that was held to a T4's attention kernels and to its memory, 15.6 GB. Each pair of bars keeps what the bars above it changed, but the last two recompute nothing and take the eight rows in two halves. Each is the median of three runs (CUDA graphs: one run). The dashed line is the least that such a step can take, by the H200's data sheet: each token needs 2 operations for each frozen weight on the way forward, and 2 on the way back.

# %% tags=["recipes"]
changes = {"source": "the tutorials' recipe", "no upcast": "no float32 copies", "no dropout": "no dropout", "repeated heads": "fused attention",
           "fused Adam": "fused Adam", "Liger": "fused layers", "one operation": "adapters in one operation", "fewer walks": "fewer walks",
           "every third layer": "recompute a third", "nothing recomputed": "recompute nothing", "recorded": "CUDA graphs"}  # fmt: skip
timed = measured_runs("h200_speed").query("rules == 't4'").groupby("recipe").median(numeric_only=True)
timed = timed.loc[list(changes)]
shape = shape_of(four.iloc[0].config)
operations = 4 * 8 * 512 * (shape.layers * sum(linear.weights for linear in shape.linears) + shape.hidden * shape.vocab)
least = {"H200": operations / 989e12, "T4": operations / 65e12}  # NVIDIA's data sheets, float16
figure = diagrams.grouped_bars(
    list(changes.values()), {"seconds a step": {"GPU busy": timed.gpu_busy_seconds, "by the clock": timed.step_seconds}},
    "GPU time of a step, change by change: from 0.68 to 0.26 seconds", {"seconds a step": (least["H200"], "the least for the GPU")})  # fmt: skip
print(f"the least for such a step: {least['H200']:.2f} s on an H200, {least['T4']:.1f} s on a T4")
show(figure, alt="GPU time of a step falls from 0.68 s with the tutorials' recipe to 0.26 s with CUDA graphs; fused attention brings most, then no float32 "
     "copies, fused layers and less recomputing; the least by the data sheet is 0.12 s. By the clock it falls from 0.74 to 0.28 s")  # fmt: skip

# %% [markdown]
# By its data sheet a T4 makes 65 teraflops. At the 24 that it keeps up, as lesson 03 says, the least is 4.9 s.
#
# What each change does, in the order of the bars:
#
# - **No float32 copies.** Without the upcast (trap 4 of lesson 03) activations are half as many bytes to move.
# - **No dropout.** Dropout draws a random mask for the input of each adapter.
# - **Fused attention.** *Fused* means that one kernel does what several did, so that what lies between them is never written to memory. With the shared heads repeated, a T4 takes such a kernel for attention (trap 2 of lesson 03): the table of all scores is never written down.
# - **Fused Adam.** One kernel updates all adapters. That spares Python, and the GPU hardly notices.
# - **Fused layers.** The norms, the rotation by which attention knows positions, and the product in the middle of the MLP become one kernel each ([Liger](../site/glossary.md#liger)). These kernels compile for a T4.
# - **Adapters in one operation.** q, k and v read the same input, and so do gate and up. With their adapters they become one operation (`fuse_lora`), which spares copies.
# - **Fewer walks.** The trainer no longer visits all 1,705 modules five times a step. That should spare Python, too; in three runs it was less than what their times vary by.
# - **Recompute a third, or nothing.** Memory that is left over buys speed: [checkpointing](../site/glossary.md#checkpointing) is taken back for two layers of three, or for all. For the latter, four rows go through at once, so the GPU waits more often, and by the clock the step is longer (0.33 and 0.45 s).
# - **CUDA graphs.** A [CUDA graph](../site/glossary.md#cuda-graph) is a pass that was recorded once and is replayed as a whole, so Python hardly matters. The GPU has as much to do as before: by the clock a step fell from 0.45 to 0.28 s, by GPU time it did not. Graphs need rows that are filled up to a few lengths, and nothing recomputed. Where lesson 03 leaves padding out, it takes them only with `cuda_graphs=True`, and pads then; with `"auto"` it never takes them on a T4.
#
# ### Rows of real lengths
#
# Those rows all had 512 tokens. Real ones do not. Take lengths like Alpaca's, drawn from a curve with its median: half of the rows have fewer than 95 tokens, few have more than 300. With four rows at once, filled up to the longest of them, **what share of all that is computed would be padding?** Guess, then run the cell. It shows five ways of making batches, sixteen rows to a step, on an H100 under T4 rules.

# %% tags=["real-lengths"]
ways = {"padded": "padded: the default", "rebalanced": "rebalanced within a step", "sorted": "sorted by length", "packed": "packed",
        "padding-free": "padding-free: lesson 03"}  # fmt: skip
lengths = measured_runs("lengths_rows").query("rules == 't4'").set_index("recipe").loc[list(ways)]
print(f"{lengths.padding['padded']:.0%} of what the default computes is padding")
verdict("without padding a second of GPU time trains at least 1.4 times the tokens of the padded default",
        lengths.tokens_per_busy_second["padding-free"] >= 1.4 * lengths.tokens_per_busy_second["padded"])  # fmt: skip
figure = diagrams.grouped_bars(
    list(ways.values()), {"tokens a second, padding not counted": {
        "GPU busy": lengths.tokens_per_busy_second, "by the clock": lengths.tokens_per_clock_second}},
    "Without padding a second of GPU time trains 2.3 times the tokens of the default")  # fmt: skip
show(figure, alt="Tokens a second of GPU time: padded 7,000, rebalanced 8,100, sorted 8,300, packed 11,300, padding-free 16,000. "
     "By the clock: padded 1,700, rebalanced 1,400, sorted 1,200, packed 8,300, padding-free 6,100")  # fmt: skip

# %% [markdown]
# If 37% is padding, leaving it out gives 1.6 times the speed. Where does the rest of 2.3 come from? One pass takes the place of four, and each pass unpacks all 4-bit weights, whatever the number of its rows. (How much of the rest that explains was not measured.)
#
# - **Rebalanced** (`train_sampling_strategy="batch_rebalance"`): the sixteen rows of a step are divided into batches of like cost. The same rows are learned in the same step, and no harm was seen.
# - **Sorted** (`"group_by_length"`): all rows of a step have about the same length. If one kind of rows is short and another is long, a step has rows of one kind only, and that harms what is learned. This was measured with SmolLM2-135M-Instruct, which learned short instructions and longer messages at once. Beside padded rows in random order its held-out loss was worse by 0.11 nats per token on instructions, and by 0.05 on messages. (These are means of five seeds, and neither 95% interval holds zero.)
# - **Packed** (`packing=True`): several rows fill one long row. Without flash attention that needs a mask of all tokens by all tokens, and a step has no fixed number of rows. TRL fills its packs from the longest row down, so most packs hold one kind of rows too. In the same measurement the loss was worse by 0.12 on instructions, and by 0.004 on messages.
# - **Padding-free**: all sixteen rows lie one behind the other, in one pass, and attention looks at each row by itself. The held-out loss is that of padded rows up to rounding (five seeds each, of the bundled model and of SmolLM2-135M-Instruct). TRL has `padding_free=True` for it, and leaves it to flash attention to keep the rows apart. A T4 has no flash attention; lesson 03 shows, under "Further down", what this course does instead.
#
# Do not rank the ways by the clock. All five wait for Python here, and how long depends on the computer beside the GPU: on another machine the same padding-free run came to 8,753 tokens a second, and not 6,076. Packing needs least of Python.
#
# `python -m helpers train` pads by default, since it is used to compare ways. For rows of real lengths write `padding_free = true` into its file; that goes with one GPU and with copies. (Two processes then learn what one learns; the tests run that on two CPU processes and on two GPUs.)
#
# This program leaves out the rest of what makes lesson 03 fast: fused layers, adapters in one operation, and layers that are not recomputed. In the first figure of this section that is 0.41 s of GPU time against 0.25 s, a factor of 1.6, and copies on two GPUs brought a factor of 1.7. So time both first, as the end of section 2 says.
#
# ### Profile your own run
#
# Where does your step spend its time? torch can tell, and the call is always the same: put what you want to know about inside `profile`. Here it is one forward and backward pass of this lesson's model. In lesson 03 you would put `trainer.train()` there, with `max_steps=5`; its first step, which takes longer, would then be in it.

# %%
import time
from collections import Counter

from peft import LoraConfig, get_peft_model
from torch.autograd import DeviceType
from torch.profiler import profile
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

dtype = run.machine.torch_dtype
four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
where = {"dtype": dtype, "device_map": run.machine.device_map}
base = AutoModelForCausalLM.from_pretrained(run.model.path, quantization_config=four_bits, **where)
model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
ids = torch.randint(3, 1000, (8, 64), device=base.device)
model(input_ids=ids, labels=ids).loss.backward()  # a first pass does what later ones need not do: it is left out

# %% tags=["profile", "nbval-ignore-output"] reason="times vary with the machine"
on_gpu, spent = base.device.type == "cuda", Counter()
with profile() as seen:
    began = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    if on_gpu:
        torch.cuda.synchronize()  # Python runs ahead of the GPU, so wait for it before looking at the clock
    clock = time.perf_counter() - began
for event in seen.events():
    if not on_gpu or event.device_type == DeviceType.CUDA:  # on a GPU its kernels, and not what Python called
        spent[event.name] += event.time_range.elapsed_us() / 1e6 if on_gpu else event.self_cpu_time_total / 1e6
print(f"{1e3 * clock:.0f} ms by the clock; {1e3 * spent.total():.0f} ms busy, of which these take most:")
table([(name[:48], 1e3 * seconds, seconds / spent.total()) for name, seconds in spent.most_common(6)], "{:.1f}",
      columns=("on a GPU kernels, on a CPU operations", "milliseconds", "share"), share="{:.0%}")  # fmt: skip

# %% [markdown]
# Read it from the top. Products of matrices (`mm`, `gemm`, or bitsandbytes' own on some CPUs) should lead, since they are the work. `dequantize` unpacks the weights for them. On a CPU its share varies: it took two thirds of one run of this cell, where it led, and less than a tenth of others. If copies, casts (`copy_`, `to`) or operations that go element by element (`mul`, `add`) take more than the products, there is something to spare. On a GPU, compare the two numbers above the table: the difference is what the GPU waits for Python. (The profiler slows Python, so the clock alone is better read without it.)

# %%
record(adapters_apart={name: apart("one", name) for name in ("copies", "divided", "broken")},
       losses={"one": one["losses"], "copies": two["losses"], "divided": divided["losses"]},
       heldout_loss_after=two["heldout_loss_after"], trained_on=two["machine"], peak_bytes=two["peak_bytes"],
       planned_layers=list(planned.prediction.layers))  # fmt: skip

# %% [markdown]
# ## Exercises
#
# **1. Write** (10 minutes, ••). Each process logs the mean loss of its own tokens. Write `logged(means, tokens)`: from the means of all processes, and how many tokens each of them had, the mean over all tokens. A process may have no token at all; its mean is then `None`.


# %%
def logged(means, tokens):
    "The mean loss over the tokens of all processes."
    return ...


check("09.1", logged)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def logged(means, tokens):
#     return sum(mean * n for mean, n in zip(means, tokens) if n) / sum(tokens)
#
#
# check("09.1", logged)
# ```
# </details>
#
# **2. Repair** (10 minutes, ••). A colleague goes from one GPU to several. Her function keeps the settings as they are, so a step has more rows than before, and the learning rate no longer fits. Write `for_gpus(settings, gpus)`: a new dictionary whose `batch_size` × `gradient_accumulation` × `gpus` is what
# `batch_size` × `gradient_accumulation` was on one GPU. Accumulate less first, since that makes a step shorter. Halve `batch_size` only where that does not suffice. `gpus` is 1, 2 or 4. Where it cannot be done, return `None`.


# %%
def her_settings(settings, gpus):
    return settings | {"gpus": gpus}


for_gpus = ...
check("09.2", for_gpus)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def for_gpus(settings, gpus):
#     rows, accumulation, left = settings["batch_size"], settings["gradient_accumulation"], gpus
#     while left > 1 and accumulation % 2 == 0:
#         accumulation, left = accumulation // 2, left // 2
#     if rows % left:
#         return None
#     return settings | {"batch_size": rows // left, "gradient_accumulation": accumulation, "gpus": gpus}
#
#
# check("09.2", for_gpus)
# ```
# </details>
#
# **3. Predict, then run** (5 minutes, ••). Qwen2.5-0.5B has 24 layers, a tied head, and a vocabulary of 151,936 words, large for so small a model. It is trained with rank 8 on all linear layers, in rows of 2,048 tokens. How many of its layers should lie on GPU 0, so that the fuller GPU takes the least? The check asks `predict`, and takes a guess that is off by one.

# %%
my_guess = ...
check("09.3", my_guess)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# my_guess = 2
# check("09.3", my_guess)
# ```
#
# Embedding, head and loss lie on GPU 0, and in this model they take as much as twenty layers do. (Nobody needs two GPUs for it. But it shows what the rule does.)
# </details>
#
# **4. Write** (15 minutes, •••). Now the rule itself, in small. Write `cut(first, layers, last)`: `layers` is a list of bytes, one for each layer in its order. `first` is what lies on GPU 0 besides, `last` what lies on GPU 1 besides. Return how many layers GPU 0 gets, so that the fuller GPU takes the least. Each GPU gets at least one layer; of two equally good cuts
# return the smaller.


# %%
def cut(first, layers, last):
    "The number of layers on GPU 0 at which the fuller of two GPUs takes the least."
    return ...


check("09.4", cut)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def cut(first, layers, last):
#     def fuller(n):
#         return max(first + sum(layers[:n]), sum(layers[n:]) + last)
#
#     return min(range(1, len(layers)), key=fuller)
#
#
# check("09.4", cut)
# ```
# </details>
#
# **5. Write** (10 minutes, ••). An adapter was saved in several processes. Write `what_is_missing(saved, trained)`: both are dictionaries from a tensor's name to its shape, `trained` of the model and `saved` of the file. Return the sorted names of what was trained and was not saved as it is: missing, or of another shape. In the model's names
# a wrapper may stand in front: `module.` where DDP put it. It is not in the file's names. (PEFT's own names in a model also hold `.default.`. Of a real model take what `get_peft_model_state_dict` returns.)


# %%
def what_is_missing(saved, trained):
    "The names, as the file should have them, of tensors that are missing or have another shape."
    return ...


check("09.5", what_is_missing)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def what_is_missing(saved, trained):
#     wanted = {name.removeprefix("module."): shape for name, shape in trained.items()}
#     return sorted(name for name, shape in wanted.items() if saved.get(name) != shape)
#
#
# check("09.5", what_is_missing)
# ```
# </details>
#
# **6. Decide** (5 minutes, ••). You have two GPUs of a T4's size, and QLoRA. What should each of these do? Say "one" (a training on each GPU, or on one alone), "copies", "divided layers" or "divided weights". One of the four has two right answers.
#
# - A: a 7B model and 40,000 rows. It takes 6 GB, and with `python -m helpers train` on one GPU nine hours. The session ends after nine.
# - B: a 32B model, whose weights alone take 19 GB.
# - C: a 1.5B model that shall be trained four times, with four learning rates. Each training takes 3 GB.
# - D: a 14B model that takes 12.7 GB on one GPU. It should learn as many rows an hour as possible.

# %%
choice = {"A": ..., "B": ..., "C": ..., "D": ...}
check("09.6", choice)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# choice = {"A": "copies", "B": "divided layers", "C": "one", "D": "copies"}
# check("09.6", choice)
# ```
#
# For A `"one"` is right too, if it means lesson 03's notebook on one GPU: its changes may bring as much as a second GPU does (section 7). The end of section 2 says how to time both.
#
# C's four trainings need nothing of each other. Two at a time, one on each GPU, they exchange nothing and lose nothing.
# </details>
#
# **7. Repair** (10 minutes, ••). This function says how many steps a training needs so that each row is seen `epochs` times. It was written for one GPU, in a hurry. Write `steps_needed(rows, epochs, settings)`: `settings` has `batch_size`, `gradient_accumulation`, and the number of `gpus`, each with rows of its own. The last step of each epoch counts as one, although fewer rows are left for it: transformers' `Trainer` takes what is left, and fills it up with rows from the start where there are several processes. (`helpers train` drops these rows, so it rounds down.)


# %%
def their_steps(rows, epochs, settings):
    return epochs * rows // settings["batch_size"]


steps_needed = ...
check("09.7", steps_needed)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import math
#
#
# def steps_needed(rows, epochs, settings):
#     in_a_step = settings["batch_size"] * settings["gradient_accumulation"] * settings["gpus"]
#     return epochs * math.ceil(rows / in_a_step)
#
#
# check("09.7", steps_needed)
# ```
# </details>
#
# ## What you did
#
# You trained one adapter in one process, as copies in two, and with every weight divided, and it came out the same each time, also after a kill. You know what each way holds and what it costs, why divided layers are not faster, and two places where a batch size or a loss means something else than on one GPU. You can see where the time of a step goes, and what padding costs. And you have a plan for a 32B model on two GPUs of a T4's size.
#
# This was the last lesson. Take a data set of your own, and begin with [lesson 07](07_your_own_data.ipynb). The [course's page](../README.md) has all lessons, [what the course claims and why](../site/claims.md), and [what to choose in which situation](../site/decide.md).
#
# ## Further down
#
# What follows is for readers who want to know more.
#
# ### Beside Unsloth
#
# [Unsloth](https://github.com/unslothai/unsloth) is known for speed. Here are the same model and rows on one H100 with a T4's memory and attention kernels, and the settings of each side that were tried (27 November 2026, Unsloth 2026.10.9 with xformers, `measurements/compare_unsloth.py`). The same with all kernels of an H100 stands in [`unsloth_rows.jsonl`](../measurements/unsloth_rows.jsonl).

# %% tags=["unsloth"]
tried = {
    "ours, one": ("512 tokens", "this course, CUDA graphs"), "Unsloth, one, kept": ("512 tokens", "Unsloth, nothing recomputed"),
    "Unsloth, one": ("512 tokens", "Unsloth, its default"), "ours, real": ("real lengths", "this course"),
    "Unsloth, real, packed": ("real lengths", "Unsloth, nothing recomputed, packed"),
    "Unsloth, real, kept": ("real lengths", "Unsloth, nothing recomputed"), "Unsloth, real": ("real lengths", "Unsloth, its default"),
}  # fmt: skip
beside = measured_runs("unsloth_rows").query("rules == 't4'").set_index("recipe")
table([(*words, beside.tokens_per_busy_second[name], beside.tokens_per_clock_second[name], beside.peak_bytes[name] / 1e9)
       for name, words in tried.items()], "{:,.0f}", GB="{:.1f}",
      columns=("rows", "setting", "tokens a second, GPU busy", "by the clock", "GB"))  # fmt: skip

# %% [markdown]
# Compare each side's fastest. GPU time does not decide between them: with rows of one length this course has 0.99 times the speed of Unsloth, and with real lengths 0.98 times. By the clock, on this fast GPU, the course is 1.31 times as fast with rows of one length, where it records CUDA graphs; on a T4 lesson 03 leaves them out unless you ask. Unsloth is 1.23 times as fast with real lengths, where it packs and needs less of Python; the computer beside the GPU alone makes about as large a difference. Unsloth's default recomputes every layer: that is slower, and it takes 5 GB where the other settings take 12 to 14. In its row of 512 tokens the clock is ahead of the busy GPU, by 3%: steps were timed first, and kernels later, in other steps. So 3% are no difference here. Neither was timed on a T4.
#
# ### A script of your own
#
# Copies need little, so here is a script for them that uses nothing of this course. The next cell writes it into the folder of this lesson's trainings, and prints the command that starts it. The script works in the folder in which it lies. Put your rows there too, as `rows.jsonl` with columns `prompt` and `completion`, and your model in place of `MODEL`. It has what lesson 03 needs to train at all, and not what makes it fast. For copies there are four lines of their own: the number of the process, the device map, the argument, and that only the first process saves.

# %% tags=["script"]
script = """
import os

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

os.chdir(os.path.dirname(os.path.abspath(__file__)))  # rows and adapter lie beside the script
MODEL, ROWS, STEPS = os.environ.get("MODEL", "Qwen/Qwen2.5-7B"), os.environ.get("ROWS", "rows.jsonl"), 60
process, cuda = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
dtype = torch.float16 if cuda else torch.float32  # a T4 has no bfloat16

four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
model = AutoModelForCausalLM.from_pretrained(
    MODEL, quantization_config=four_bits, dtype=dtype, device_map={"": process if cuda else "cpu"}
)
arguments = SFTConfig(
    output_dir="two-gpus", max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=2,
    learning_rate=2e-4, fp16=cuda, bf16=False, use_cpu=not cuda, ddp_find_unused_parameters=False, report_to="none",
)
trainer = SFTTrainer(
    model=model, args=arguments, train_dataset=load_dataset("json", data_files=ROWS, split="train"),
    processing_class=AutoTokenizer.from_pretrained(MODEL),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
for parameter in trainer.model.parameters():  # TRL casts adapters to bfloat16, and a loss scaler needs float32
    if parameter.requires_grad:
        parameter.data = parameter.data.float()
trainer.train()
if trainer.is_world_process_zero():
    trainer.model.save_pretrained("two-gpus/adapter")
"""
two_gpus = run.folder / "several" / "two_gpus.py"
two_gpus.write_text(script.lstrip(), encoding="utf-8")
print('!accelerate launch --multi_gpu --num_processes 2 "{two_gpus}"')

# %% [markdown]
# Put that line into a cell of its own to start the script. Jupyter writes the script's path in place of `{two_gpus}`, on whichever drive it lies. (On a CPU it starts two processes as well, in spite of its name.) A test of this course runs this very script in two processes, on a CPU.
