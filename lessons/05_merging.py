# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 Merging and shipping
#
# At the end of this lesson you hold your fine-tuned model as one ordinary folder, and as one file that runs without Python's help, with a card that says what it scores.
# You also know which common way to make that folder can throw your training away, and how to notice.
#
# You will learn to
#
# - fold an adapter into its base by hand, and see why folding it into 4-bit weights can erase it;
# - tell from the size of an update how much of it survives;
# - choose among four ways by what happens to the model afterwards;
# - write the model as GGUF, the format of llama.cpp and Ollama, and compare its answers with the original's;
# - publish it with its scores, both licences and the right token.
#
# **Time:** 50 minutes to read, 50 for the exercises. The cells take {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** the adapter of lesson 03. Another Colab notebook is another
# machine and does not have it, unless both lessons began with `output_dir="drive"`. Without one, this lesson trains a small one first. The table below says which it takes.

# %% tags=["parameters"]
model_id = "auto"
dataset_id = "auto"
columns = "auto"
encoding = "auto"
adapter_dir = "auto"  # what lesson 03 left
seed = 0
quant_type = "nf4"
double_quant = True
max_length = "auto"  # as in training: a scored row is cut there
max_new_tokens = 16
eval_rows = 64
merged_dir = "auto"  # beside the rest, but never on Drive unless you say "drive": a merged 7B model takes 14.5 GB
output_dir = "auto"

# %% tags=["nbval-ignore-output"] reason="which adapter is there depends on what ran before"
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "05_merging", with_data=True,
    model_id=model_id, dataset_id=dataset_id, columns=columns, encoding=encoding, adapter_dir=adapter_dir, seed=seed,
    quant_type=quant_type, double_quant=double_quant, max_length=max_length, max_new_tokens=max_new_tokens,
    eval_rows=eval_rows, merged_dir=merged_dir, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# ## What you will see
#
# Take two adapters for one base. *Yours* is the one of lesson 03. The other was *stopped early*: it gets a few steps now, of four rows each and at half the learning rate. People who have few rows, or who are careful, train like this.

# %%
from helpers.quick import two_adapters

adapters = two_adapters(run)

# %% [markdown]
# The base is loaded in 4 bits, with the config of training. It has to be the same one: another `bnb_4bit_quant_type` would round the weights otherwise, and the adapter was trained beside these.

# %%
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

four_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type=settings.quant_type,
    bnb_4bit_use_double_quant=settings.double_quant,
    bnb_4bit_compute_dtype=run.machine.torch_dtype,
)
here = {"dtype": run.machine.torch_dtype, "device_map": run.machine.device_map}


# %%
def load_4bit(folder=run.model.path):
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits, **here)
    for layer in model.modules():  # some CPUs only: a short cut of bitsandbytes 0.50 that is wrong (lesson 03)
        layer.support_avx512bf16_for_cpu = False
    return model.eval()


base, tokenizer = load_4bit(), run.templated(AutoTokenizer.from_pretrained(run.model.path), adapters["yours"])

# %% [markdown]
# To *merge* an adapter is to add it to the weights of its base, so that one model is left. PEFT, the library that trained it, does it in one call. Here are three models,
# asked the same held-out questions: the base, the base with the adapter beside it, and the base after that call.

# %%
import warnings

from peft import PeftModel

from helpers.evaluation import evaluate


warnings.filterwarnings("ignore", "Merge lora module to 4-bit")  # hides that rounding may change answers


def keep(adapter):
    return PeftModel.from_pretrained(load_4bit(), adapter)


def into_4bit(adapter):
    return keep(adapter).merge_and_unload()


# %% tags=["nbval-ignore-output"] reason="losses vary with the machine"
heldout, early = run.held_out(), adapters["stopped early"]
scored = {"max_new_tokens": settings.max_new_tokens, "max_length": settings.max_length}
before = evaluate(base, tokenizer, heldout, **scored)
beside = evaluate(keep(early).eval(), tokenizer, heldout, **scored)
lost = evaluate(into_4bit(early).eval(), tokenizer, heldout, **scored)
if run.usual(adapters["yours"]):
    verdict("merged into 4 bits, the model is nearer to its untrained base than to what was trained",
            abs(lost.loss - before.loss) < abs(lost.loss - beside.loss))  # fmt: skip
named = {"the base": before, "stopped early, beside it": beside, "stopped early, merged into 4 bits": lost}
table({name: (score.loss, score.exact_match) for name, score in named.items()}, loss="{:.2f}", right="{:.0%}",
      columns=("asked", "loss", "right"))  # fmt: skip

# %% [markdown]
# No answer is right any more, most of the gain in loss is gone, and no file is broken. PEFT raises no error. It gives one warning, that the answers may differ because of rounding, and the cell above hides it. Why is the training lost? Follow one weight: of the first 64 of a layer,
# the one that your adapter moves most. In 4 bits it can stand on one of 16 levels only, times the largest weight of its block (lesson 01). The picture shows its place on the number line, for both adapters.

# %%
import bitsandbytes.functional as F

from helpers.merging import lora_layers, merge_adapter


def quantize(weight, levels=settings.quant_type):
    return F.quantize_4bit(weight, quant_type=levels, compress_statistics=settings.double_quant)


def rounded(weight, levels=settings.quant_type):  # what a layer computes with after its weights went through 4 bits
    return F.dequantize_4bit(*quantize(weight, levels))


# %%
layers = {name: lora_layers(adapter) for name, adapter in adapters.items()}
layer = next(found for name, found in layers["yours"].items() if name in layers["stopped early"])
W = layer.stored_weight(run.model.path)  # as it lies in the file of the base
seen = rounded(W.float())  # what training saw
place = layer.update[0, :64].abs().argmax().item()  # of the first 64, the weight that your adapter moves most

# %%
from helpers.plots import diagrams, show

levels = F.get_4bit_type(settings.quant_type, device="cpu") * seen[0, :64].abs().max()
moves = {}
for name in reversed(adapters):
    trained = seen + layers[name][layer.name].update
    moves[name] = [matrix[0, place].item() for matrix in (seen, trained, rounded(trained))]
figure = diagrams.merge_lines(levels.tolist(), moves, "A merge into 4 bits puts each weight back on a level")
show(figure, alt="One weight on its number line: a small update lies within the band that rounds back to the old level")

# %% [markdown]
# The blue marks are the levels, and the pale band is everything that rounds back to the level in it. An update that stays inside of the band is erased, and one that leaves it
# becomes a whole jump, which may be larger or smaller than what was learned. (If the largest weight of a block changes, all levels of the block move a little. So a weight may end beside its mark, or move with next to no update.)
#
# So the size of the update decides. The rest of the lesson takes this apart: one layer by hand, then sizes, then the ways that keep the training, and shipping.
#
# ## 1 One layer, by hand
#
# A layer with LoRA computes $W x + s\, B (A x)$, where the scale $s$ is $\alpha / r$. That equals $(W + s\, B A)\, x$. So you can add $s\, B A$ to the weights once, and
# the adapter is no longer needed.

# %%
A, B, scale = layer.A, layer.B, layer.scale
x = torch.randn(3, A.shape[1])
branch = x @ W.float().T + scale * (x @ A.T) @ B.T
folded = x @ (W.float() + scale * (B @ A)).T
print("W", tuple(W.shape), W.dtype, " B", tuple(B.shape), " A", tuple(A.shape), " scale", scale)
print("the outputs agree to rounding:", torch.allclose(branch, folded, atol=1e-3, rtol=1e-3))

# %% [markdown]
# The base stores 16 bits per weight, the adapter 32. So add in 32 bits, and round once at the end. Does PEFT do the same? The function below puts $A$ and $B$ beside a layer and has PEFT merge them.

# %%
import bitsandbytes as bnb
from peft import LoraConfig, get_peft_model


def merged_by_peft(linear):
    model = torch.nn.Sequential(linear)
    model.is_loaded_in_4bit = isinstance(linear, bnb.nn.Linear4bit)  # as transformers marks a model for PEFT
    tuned = get_peft_model(model, LoraConfig(r=len(A), lora_alpha=scale * len(A), target_modules=["0"]))
    tuned.base_model.model[0].lora_A.default.weight.data = A
    tuned.base_model.model[0].lora_B.default.weight.data = B
    return tuned.merge_and_unload()[0].weight


linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
linear.weight.data = W.clone()
by_hand = (W.float() + (B @ A) * scale).to(W.dtype)
verdict("merged by hand equals PEFT's merge, bit for bit", torch.equal(by_hand, merged_by_peft(linear)))

# %% [markdown]
# ## 2 The same layer in 4 bits
#
# Training did not see this $W$, it saw the rounded one. To merge there, PEFT restores the weights from their codes, adds the update, and *quantizes the sum again*:

# %%
codes, state = quantize(seen + layer.update)

packed = bnb.nn.Linear4bit(W.shape[1], W.shape[0], bias=False)
packed.weight = bnb.nn.Params4bit(W.float(), compress_statistics=settings.double_quant, quant_type=settings.quant_type)
theirs = merged_by_peft(packed.to("cpu"))
verdict("and so in 4 bits: PEFT has the same codes and the same absmax",
        torch.equal(codes, theirs.data) and torch.equal(state.absmax, theirs.quant_state.absmax))  # fmt: skip

# %% [markdown]
# Six weights on their way through it, from the adapter that was stopped early. Compare "after the merge" with "4-bit base".

# %% tags=["nbval-ignore-output"] reason="a trained adapter varies with the processor"
update = layers["stopped early"][layer.name].update
steps = {"4-bit base": seen, "update": update, "sum": seen + update, "after the merge": rounded(seen + update)}
table({i: [matrix[0, i] for matrix in steps.values()] for i in range(6)}, "{:+.4f}", columns=("weight", *steps))

# %% [markdown]
# ## 3 How large must an update be?
#
# Let $U$ be what an adapter should add to a matrix, and $C$ the change that the merged matrix really has. The part of the update that survives is
#
# $$\text{kept} = \frac{\langle C, U\rangle}{\langle U, U\rangle}.$$
#
# Here $\langle C, U\rangle$ means: multiply the two matrices number by number, and add up all products. What is kept is 1 if all of the update is there and 0 if nothing is. Noise that points elsewhere does not count. The *size* of an update is its norm, divided by the norm of the weights.
#
# Now take one matrix of random numbers, and add updates of rank 16 that point in one direction and grow. At 1% of the weights next to nothing will survive, at 20% nearly all.
# **Where is the half?** Write down a guess before you run the cell.


# %%
def kept(change, update):
    return ((change * update).sum() / update.square().sum()).item()


def random_case(seed, rank=16, levels=settings.quant_type):
    "kept as a function of an update's size in per cent, for one random matrix and one direction."
    torch.manual_seed(seed)
    matrix = rounded(torch.randn(1024, 1024) / 32, levels)
    direction = torch.randn(1024, rank) @ torch.randn(rank, 1024)
    unit = direction * (matrix.norm() / direction.norm() / 100)
    return lambda percent: kept(rounded(matrix + percent * unit, levels) - matrix, percent * unit)


# %% [markdown]
# To find the half, halve the interval again and again, and measure in the middle each time. Is what comes out a property of this one matrix? Ask two more, one of them with an update of another rank.


# %%
def size_with_half_kept(share_kept, low=0.5, high=30.0):
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if share_kept(middle) < 0.5 else (low, middle)
    return (low + high) / 2


share_kept = random_case(seed=0)
half = size_with_half_kept(share_kept)
others = size_with_half_kept(random_case(seed=1)), size_with_half_kept(random_case(seed=2, rank=64))
print("half is kept at {:.1f}% of the weights; two more matrices: {:.1f}% and {:.1f}%".format(half, *others))
verdict("the size at which half is kept is the same for other matrices, to a quarter of a percentage point",
        max(abs(other - half) for other in others) < 0.25)  # fmt: skip

# %% [markdown]
# Why at that size? A weight ends on another level if its update reaches over the middle of the gap between the two. How wide the gaps are is what the *[quantization error](../site/glossary.md#quantization-error)* says: how far the weights move when
# they are first put on their levels (lesson 01). So divide it by the update, both as norms. Is this ratio the same at the half for FP4, whose levels lie elsewhere?

# %%
bell, rows = torch.randn(1024, 1024), []
for levels in ("nf4", "fp4"):
    error = 100 * ((rounded(bell, levels) - bell).norm() / bell.norm()).item()
    at = size_with_half_kept(random_case(seed=0, levels=levels))
    rows.append((levels, error, at, error / at))
verdict("half is kept where the quantization error is about one and a half times the update, for NF4 and for FP4",
        all(1.3 < row[3] < 1.7 for row in rows))  # fmt: skip
table(rows, "{:.1f}", columns=("levels", "quantization error (%)", "half is kept at (%)", "error per update there"))

# %% [markdown]
# So *quantization error per update* is one number for any adapter, and it tells two things. About 1.5 is where a merge into 4 bits loses half of the update; far above, it loses nearly all of it, and below 1 it keeps most. And when you merge into the original base, which takes the quantization error
# away, it says how many times as large that unasked change is as what you trained. That number does not tell whether the change harms: sections 4 and 6 have a model that it helps, and one that it ruins. Only a score tells.
#
# ### Real adapters on the curve
#
# Real weights are not random, so measure real layers: the size of each update, the part that a merge into 4 bits keeps of it, and that ratio.


# %%
def weights(model, name):
    "The weights that a layer computes with, float32: restored, where they are packed."
    linear = model.get_submodule(name)
    packed = isinstance(linear, bnb.nn.Linear4bit)
    return (F.dequantize_4bit(linear.weight, linear.weight.quant_state) if packed else linear.weight).float()


# %%
def of_each_layer(found):
    "Of an adapter's layers: sizes and shares kept, both in per cent, and the quantization errors per update."
    sizes, shares, ratios = [], [], []
    for name, one in found.items():
        old, update = weights(base, name), one.update.to(base.device)
        error = old - one.stored_weight(run.model.path).to(old)
        sizes.append(100 * (update.norm() / old.norm()).item())
        shares.append(100 * kept(rounded(old + update) - old, update))
        ratios.append((error.norm() / update.norm()).item())
    return sizes, shares, ratios


# %% [markdown]
# Your two adapters belong to a small model, which was trained with a large learning rate. So here is a third one, of a real chat model: SmolLM2-135M-Instruct, trained with the learning rate and
# the steps and rows that lesson 03 gives a model from the hub, merged in all the ways of this lesson, and recorded (`measurements/measure_updates.py`). The first weights of SmolLM2 could not be had for this. Those that the course takes were rounded to another 4-bit format before, and restored. They are what is called its original base below.

# %%
import numpy as np

recorded = run.measurements("smollm2_updates")[0]
of_smollm2 = np.zeros((3, len(recorded["layers"])))
for i, one in enumerate(recorded["layers"]):
    in_percent = 100 * one["relative_size"], 100 * one["kept_in_4_bits"]
    of_smollm2[:, i] = *in_percent, one["quantization_error_per_update"]

# %%
of_layers = {name: of_each_layer(found) for name, found in layers.items()}
dots = of_layers | {"SmolLM2, recorded": of_smollm2}
sizes = np.geomspace(0.8 * of_smollm2[0].min(), 1.3 * max(max(found[0]) for found in of_layers.values()), 60)
curve = [100 * share_kept(size) for size in sizes]
figure = diagrams.survival((sizes, curve), half, {name: found[:2] for name, found in dots.items()},
                           f"Half of an update survives a merge into 4 bits if it is {half:.1f}% of the weights")  # fmt: skip
show(figure, alt="What a merge into 4 bits keeps climbs with the size of the update; real layers lie near the curve")

# %% [markdown]
# Some layers lie well above the curve: real updates have some large entries, and these cross a border first. How far is it on average?

# %% tags=["nbval-ignore-output"] reason="a trained adapter varies with the processor"
off = np.concatenate([np.interp(found[0], sizes, curve) - found[1] for found in of_layers.values()])
if run.usual(adapters["yours"]):
    verdict("the layers lie on the curve of the random matrix, to ten points on average", abs(off).mean() < 10)
headings = ("mean over the layers", "size of the update (%)", "kept in 4 bits (%)", "quantization error per update")
table(
    {name: np.mean(found, axis=1) for name, found in dots.items()},
    "{:.2f}",
    quantization_error_per_update="{:.1f}",
    columns=headings,
)

# %% [markdown]
# Look at the recorded row once more. The updates of the real chat model are a small fraction of a per cent of its weights, so a merge into 4 bits keeps nearly nothing of them, and the quantization error is many times as large. What that does to its answers stands in section 4.
#
# What does that say of a 7B model? The curve depends on the 16 levels and on how weights lie among them, so it should be much the same. Where a real 7B adapter lies on it is **not known here**: nobody has measured one for this course. Lesson 03 gives
# it the learning rate, the steps and the rows of SmolLM2's run, so the left end would be no surprise. Measure yours: set `adapter_dir` and `model_id`, and the table above has its row.
#
# ## 4 Four ways
#
# Each is a line or two of PEFT's and transformers' own calls.
#
# - **Keep** the adapter beside the 4-bit base. This is the model that you trained, so it is the yardstick.
# - **Into the 4-bit base**, as above.
# - **Into the original base**, as it was before quantization. Many guides say so. Those weights are better ones, but the adapter never saw them.
# - **Dequantize, then merge.** `dequantize()` turns the 4-bit weights into ordinary ones with their rounding kept. These are the numbers that the adapter was trained on, in a form that takes any update. Name the same `quant_type` and `double_quant` as in training, or they are other numbers.


# %%
def into_original(adapter):
    model = AutoModelForCausalLM.from_pretrained(run.model.path, **here)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def into_dequantized(adapter, dtype=run.machine.torch_dtype):
    return PeftModel.from_pretrained(load_4bit().dequantize(dtype), adapter).merge_and_unload()


# %% [markdown]
# The last two hold a whole model unpacked. For a 7B model on a T4 there is no room for that; section 5 merges it all the same, but what cannot be held cannot be measured here.

# %% tags=["room"]
import psutil

unpacked = base.num_parameters() * run.machine.torch_dtype.itemsize
on_gpu = run.machine.device == "cuda"
free = run.machine.gpu_bytes - torch.cuda.memory_allocated() if on_gpu else psutil.virtual_memory().available
fits = 1.4 * unpacked < free  # packed and unpacked at once, for a moment
ways = {"keep the adapter": keep, "into the 4-bit base": into_4bit}
ways |= {"into the original base": into_original, "dequantize, then merge": into_dequantized} if fits else {}
print("measured:", ", ".join(ways))
if not fits:
    print(f"left out: an unpacked model takes {unpacked / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")

# %% [markdown]
# Two numbers say what happened to the weights: **kept**, as above but over all layers, and the **error**, $\lVert C - U\rVert / \lVert U\rVert$, which also sees what was changed beside the update. How well the model
# then does is seen in its loss on held-out rows and in the share that it answers exactly, with its 95% interval. The last column is the p-value of lesson 04's paired test. It answers this question: if this way and the kept adapter were equally good, how often would chance alone make them differ at least this much?


# %%
def survives(model, found):
    "(kept, error) of an adapter's updates in a merged model, as shares of the update."
    along = square = wrong = 0.0
    for name, one in found.items():
        change, update = weights(model, name) - weights(base, name), one.update.to(base.device)
        along += (change * update).sum().item()
        square += update.square().sum().item()
        wrong += (change - update).square().sum().item()
    return along / square, (wrong / square) ** 0.5


# %%
def measured(make, name):
    "kept, error and score of one way for one adapter."
    model = make(adapters[name]).eval()
    weighed = (1.0, 0.0) if make is keep else survives(model, layers[name])
    return *weighed, evaluate(model, tokenizer, heldout, **scored)


# %% tags=["nbval-ignore-output"] reason="losses vary with the machine"
results = {(name, way): measured(make, name) for name in adapters for way, make in ways.items()}
rows_of_ways = {}
for (name, way), (share, error, score) in results.items():
    differs = score.paired_p(results[name, "keep the adapter"][2])
    rows_of_ways[name, way] = share, error, score.loss, score.exact_match, *score.interval, differs
print(f"the base in 4 bits, untrained: {before}")
headings = ("adapter", "way", "kept", "error", "loss", "exact match", "95% interval: from", "to", "p")
table(rows_of_ways, "{:.0%}", kept="{:.1%}", error="{:.2g}", loss="{:.3f}", p="{:.2g}", columns=headings)

# %% [markdown]
# Read the column "exact match" first, for your adapter alone. With the bundled model all four ways look alike there, and one would stop. Then read the rows of the adapter that was stopped early.
#
# "Into the original base" keeps the whole update, and its error is of the size of the update, or several times as large where the update is small. It is the quantization error per update of section 3: the rounding of lesson 01, undone. The rounding has nothing to do with the task. For this model, undoing it does no harm: compare the losses, and the p-values, which do
# not tell these answers from those of the adapter. (A large p-value does not prove that two models are equal. It says that these rows do not tell them apart.) For another model it did harm (section 6). In every case the merged model is not the one that you evaluated.

# %%
for name in adapters if fits and run.machine.dtype == "float32" else ():  # 16 bits have errors of their own
    errors = {way: results[name, way][1] for way in ways if way != "keep the adapter"}
    nearest = min(errors, key=errors.get)
    verdict(f"{name}: dequantize, then merge is ten times nearer to what was trained than any other merge",
            nearest == "dequantize, then merge" and 10 * errors.pop(nearest) < min(errors.values()))  # fmt: skip

# %% [markdown]
# And the real chat model of section 3? These rows are recorded. The change is that of the loss against the adapter beside its base, each held-out row compared with itself, with its 95% interval.

# %%
rows = []
for way, score in recorded["scores"].items():
    change, (low, high) = score["change"]
    rows.append((way, score["loss"], score["exact_match"], change, low, high))
headings = ("SmolLM2, recorded", "loss", "right", "change of the loss", "95% interval: from", "to")
table(rows, "{:+.3f}", loss="{:.3f}", right="{:.0%}", columns=headings)

# %% [markdown]
# Small as the update is, the loss falls to less than a third with it. A merge into 4 bits gives back the untrained base, but for little. Dequantized and merged, the model is the trained one. (It was measured in 32 bits. What the 16 bits of a file change is the next question.) And the merge into the original base changes the weights many times as much as the training did (the last column of section 3's table says how many times), and is here
# a little *better* than the model that was trained: the whole interval of its change lies below zero. It seems that the quantization error was a damage, and that this merge takes it away. But that is one model, one training and a few rows, and its "original" weights had been rounded once already. With another model it may go the other way, so measure.
#
# ### Which 16 bits?
#
# A merged model is stored in 16 bits, which rounds once more. Of its 16 bits float16 spends 10 on the digits, and bfloat16 only 7. What counts is the rounding error *per update*, as with the quantization error in section 3.
# Take one random matrix on its 4-bit levels, and updates of four sizes: the mean of each adapter, and the smallest layer of SmolLM2's. The last column stores the base in bfloat16 too, as most bases are, and asks how much of the update arrives then. In which row will the rounding
# error be larger than the update?

# %%
sizes_of = {name: np.mean(found[0]) for name, found in dots.items()}
sizes_of["SmolLM2's smallest layer"] = of_smollm2[0].min()
torch.manual_seed(0)
matrix, direction, rows = rounded(torch.randn(1024, 1024)), torch.randn(1024, 16) @ torch.randn(16, 1024), []
start = matrix.bfloat16().float()
for name, size in sizes_of.items():
    U = direction * (size / 100 * matrix.norm() / direction.norm())
    off_in_16, off_in_b16 = ((matrix + U).to(d).float() - matrix - U for d in (torch.float16, torch.bfloat16))
    errors = (off_in_16.norm() / U.norm()).item(), (off_in_b16.norm() / U.norm()).item()
    rows.append((name, size, *errors, kept((start + U).bfloat16().float() - start, U)))
verdict("bfloat16 rounds about eight times as much as float16", all(6 < row[3] / row[2] < 10 for row in rows))
table(rows, "{:.3f}", kept_in_a_bfloat16_base="{:.0%}", size="{:.2f}",
      columns=("update of", "size (%)", "error per update: float16", "bfloat16", "kept in a bfloat16 base"))  # fmt: skip

# %% [markdown]
# For your adapter none of this matters. For one as small as SmolLM2's, float16 gets about a tenth of the update wrong, and bfloat16 nearly as much as all of it. In a base of bfloat16 a part of the update is even erased. That is the pale band again: those weights stand on the levels of bfloat16, and a small update does not carry them half of the way to the next.
#
# So this lesson writes float16, on every machine. Its largest number is 65,504, and the weights of a language model are far below it. The risk lies elsewhere: the *activations* of a model that was made in bfloat16 may go beyond 65,504 while
# it computes, and then its answers are not numbers. The folder's `config.json` says `float16`, and both transformers 5 and vLLM ([`auto`](https://github.com/vllm-project/vllm/blob/18ec6629253632af0a384f2ffbb8c6b28af322e7/vllm/config/model.py)) obey it unless they are told otherwise. If your base was made in bfloat16, tell your colleagues to
# load the folder with `--dtype bfloat16` (in transformers `dtype=torch.bfloat16`), which rounds the last digits away again. Or measure first how near the model comes to that end: "Further down" does.
#
# ## 5 A whole model, in little memory
#
# A 7B model in 16 bits is larger than the main memory of a free Colab. Merging does not need all of it there: a model's files are lists of tensors, and each tensor is merged on its own. `merge_adapter` of this course holds a piece of one tensor and one product $B A$ at
# a time. It also checks that adapter and base belong together, refuses NaN, broken and pickled files, asks whether the disk has room, and its folder is there complete or not at all. It can merge into the dequantized weights too.
#
# From a shell it is `python -m helpers merge BASE ADAPTER OUT --base-weights dequantized`.
#
# Does its folder hold what PEFT's `merge_and_unload()` gives? Have PEFT merge in float16 too, and compare every tensor.

# %%
packed_as = {"quant_type": settings.quant_type, "double_quant": settings.double_quant}
options = packed_as | {"dtype": "float16", "overwrite": True, "progress": not run.model.bundled}
done = merge_adapter(run.model.path, adapters["yours"], run.merged, "dequantized", **options)
print(f"{done['merged']} of {done['tensors']} tensors merged, {done['bytes'] / 1e6:,.1f} MB")
if fits:
    theirs = into_dequantized(adapters["yours"], torch.float16).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(run.merged, dtype=torch.float16).state_dict()
    moved, furthest = 0, 0.0
    for key, tensor in theirs.items():
        off = (ours[key].float() - tensor.half().cpu().float()).abs()
        moved, furthest = moved + (off > 0).sum().item(), max(furthest, (off.max() / tensor.abs().max().cpu()).item())
    print(f"{moved:,} numbers differ, by at most {furthest:.1e} of the largest in their tensor")
    if W.dtype == torch.float16:  # from bfloat16, the two ways to float16 may differ in the last bit
        last_bit = 2**-10 if on_gpu else 0  # a GPU adds up B A in another order
        verdict("merge_adapter and PEFT hold the same tensors", furthest <= last_bit)

# %% [markdown]
# And a large model? This was recorded with the shape of Mistral-7B and random weights, with no GPU, on two cores that others used as well (`measurements/measure_merge.py`): parts of the model, and all of it. Memory is what the process held at most, above what Python itself takes.
# The seconds are rough: one round each, on a busy machine. Only the memory is a result. Go down the rows: what happens to it when the layers become more?

# %%
merges = []
for row in sorted(run.measurements("cpu_merges"), key=lambda row: (row["base_weights"], row["layers"])):
    merges.append({"into": row["base_weights"], "layers": f"{row['layers']} of {row['layers_of_the_whole']}",
                   "base (GB)": row["base_bytes"] / 1e9, "memory (GB)": row["above_bare_python_bytes"] / 1e9,
                   "merge (s)": row["merge_seconds"], "date": row["date"]})  # fmt: skip
table(merges, "{:.1f}", memory_GB="{:.2f}", merge_s="{:.0f}")

# %% [markdown]
# The last row is the whole model. Its files grow with the layers, and the memory does not: at no time does the process hold more than some rows and one product $B A$. (Both folders together need twice the disk of one. The way over dequantized weights takes more memory at a time and more minutes, and was recorded with four layers alone: by its row, expect about half an hour for 32 layers on two CPU cores.)
#
# ## 6 After the merge
#
# What is in the folder? An ordinary model: weights, config, tokenizer. Neither PEFT nor bitsandbytes is needed to use it ("Further down" asks a Python that has neither). Score it as whoever downloads it will read it. (Where an unpacked model does not fit, it is read in 4 bits, which makes it another model: see below.)

# %% tags=["nbval-ignore-output"] reason="losses vary with the machine"
merged = AutoModelForCausalLM.from_pretrained(run.merged, **here).eval() if fits else load_4bit(run.merged)
final = evaluate(merged, tokenizer, heldout, **scored)
print(f"the folder: {final}")

# %% [markdown]
# ### In 4 bits again?
#
# A merged model is often quantized once more, to serve it in less memory. Take the adapter that was stopped early, merge it into both kinds of 16-bit weights, and load what comes out in the 4 bits of training. One of the two was the most faithful of all merges in section 4.
# **Which one will keep more of the training now?** Write down your bet and a reason.

# %%
import shutil
import tempfile

again = {}
room = shutil.disk_usage(run.bulky).free > 1.1 * done["bytes"]
for into in ("original", "dequantized") if room else ():
    with tempfile.TemporaryDirectory(dir=run.bulky) as folder:
        merge_adapter(run.model.path, early, f"{folder}/merged", into, **options)
        model = load_4bit(f"{folder}/merged")
        again[into] = *survives(model, layers["stopped early"]), evaluate(model, tokenizer, heldout, **scored).loss

# %% tags=["nbval-ignore-output"] reason="losses vary with the machine"
print(f"kept adapter: loss {beside.loss:.3f}" if room else f"left out: {done['bytes'] / 1e9:.1f} GB on the disk")
if run.usual(adapters["yours"]) and room:
    verdict("quantized again, the merge into the original base keeps most of a small update, the dequantized one little",
            again["original"][0] > 0.9 and again["dequantized"][0] < 0.3)  # fmt: skip
table(again, "{:.3f}", kept="{:.0%}", columns=("merged into", "kept", "error", "loss in 4 bits"))

# %% [markdown]
# The error is larger where more is kept: single weights jump by a whole level, which is wrong for each of them and right on average. Why do they jump from one base and not from the other? Count the weights of one layer that end on another level because of the update.


# %% tags=["nbval-ignore-output"] reason="a trained adapter varies with the processor"
def codes_of(weight):
    return torch.stack([quantize(weight)[0] >> 4, quantize(weight)[0] & 15])  # two codes in each byte


moved = {}
for name, start in {"original": W.float(), "dequantized": seen}.items():
    moved[name] = (codes_of(start) != codes_of(start + update)).float().mean().item()
table(moved, "{:.2%}", columns=("merged into", "weights that change their level"))

# %% [markdown]
# The dequantized weights stand *on* their levels, in the middle of the pale band of the first picture, so a small update leaves nearly all of them inside of it, and they fall back together. The original weights lie anywhere between two levels. (Of the layer that is counted here the update is one of the smallest: others keep more.) The update carries some of
# them over a border, the more the larger it is. Those few weights jump by a whole level, and on average the jumps add up to the update. So the column "kept" decides here; the error of single weights is large either way.
#
# ### Which one, then?
#
# It depends on what the model's user will start. `BASE`, `ADAPTER` and `FOLDER` are the base, your adapter and the merged folder, and `T` stands for `--chat-template ADAPTER/chat_template.jinja`: without it vLLM takes the base's template, and not the one of your training.
#
# | your colleague runs | what becomes of the weights | so hand over |
# |---|---|---|
# | transformers, PEFT and bitsandbytes, or `vllm serve BASE --quantization bitsandbytes --enable-lora --lora-modules mine=ADAPTER T` ([lesson 04, section 10](04_inference.ipynb)) | adapter **kept** beside the 4-bit base: the model that you measured | the adapter |
# | `vllm serve BASE --enable-lora --lora-modules mine=ADAPTER T` | computes as if merged **into the original base**, since this base is not quantized | the adapter, and measure |
# | `vllm serve FOLDER`, or transformers without 4 bits | 16 bits | **dequantize, then merge**, in float16 |
# | `vllm serve FOLDER --quantization bitsandbytes`, or transformers with `load_in_4bit` | to the 4 bits of training again | a merge **into the original base** (if your update lies far to the right on the curve, either) |
# | llama.cpp or Ollama, `F16` or `Q8_0` (section 7) | 16 bits, or 8 on levels of their own | **dequantize, then merge**, as for 16 bits |
# | llama.cpp or Ollama, `Q4_0` | 4 bits on other levels than NF4 | either; for a small update make both and ask them (section 7) |
# | Ollama, whose Modelfile has the lines `FROM BASE` and `ADAPTER path/to/adapter` | adapter **kept** beside a base in bits that are not those of training | the adapter, as a folder or as GGUF, and measure |
#
# A merge **into the 4-bit base** is in no row: make one only after you measured how much is kept. Several adapters that are kept can share one base. Neither vLLM nor Ollama was run for this course. What is said of vLLM is what [its documentation](https://docs.vllm.ai/en/latest/features/lora/) says. For Ollama's last row it is [the page on Modelfiles](https://docs.ollama.com/modelfile#adapter), which lists adapters of Llama, Mistral and Gemma as folders of safetensors. [Its page on imports](https://docs.ollama.com/import) advises against adapters of QLoRA there, because most frameworks quantize in another way.
#
# These are numbers of two small models and one kind of 4 bits. In 16 bits, original or dequantized hardly mattered for the bundled model. SmolLM2's loss was 0.135 lower with the original base, and the interval of that change excludes zero. For another model it is the other way round: [a pull request](https://github.com/unslothai/unsloth-zoo/pull/810) shows a model that the original base ruins, and
# says that for most models that base is the better one. PEFT's users met the loss in [peft#1043](https://github.com/huggingface/peft/issues/1043) and
# [transformers#31293](https://github.com/huggingface/transformers/issues/31293).
#
# ## 7 One file for a laptop: GGUF
#
# llama.cpp and Ollama run a model without Python and without a GPU. They read GGUF, one file that holds weights, tokenizer and chat template. `export_gguf` writes it from a merged folder, for Llama, Mistral, Qwen2 and Qwen3. It needs the package `gguf`, and running the file from Python needs `xllamacpp`
# (`pip install gguf xllamacpp`). Three of its ways to store weights: `F16` in 16 bits, `Q8_0` in 8 bits with a scale for every 32 weights, `Q4_0` in 4 bits with a scale for every 32.
#
# All three are made from the folder of section 5, so from a merge into dequantized weights. The update of the bundled model's adapter is 11% of the weights (section 3), and either base would keep it in `Q4_0`. With a smaller update the two bases differ, as you will see below.
#
# Beside each file `export_gguf` writes a *Modelfile*, which describes the model for Ollama: the tokens that end an answer, and a template in Ollama's own language. The cell prints it, and the notes of the export above it. Compare the template with the rows that you trained on. What is missing?

# %%
from helpers.export import Llama, export_gguf

files, kinds = {}, ("f16", "q8_0", "q4_0") if done["bytes"] < 5e8 else ("q8_0",)
written_as = "own" if (adapters["yours"] / "chat_template.jinja").is_file() else "alpaca"  # older adapters have none
try:
    for kind in kinds:
        file = run.merged.with_name(f"model-{kind}.gguf")
        notes = export_gguf(run.merged, file, kind, template=written_as, overwrite=True, progress=False)["notes"]
        files[kind] = file
except OSError as error:  # one line: a missing package, a model that is not carried, no room
    print(f"left out: {error}")
if files:
    print(*notes, file.with_suffix(".Modelfile").read_text(), sep="\n\n")
table({kind: file.stat().st_size / 1e6 for kind, file in files.items()}, "{:,.1f}", columns=("stored as", "file (MB)"))

# %% [markdown]
# The "Input" is missing: the Modelfile holds the plain form only. The template of training has two forms, and takes the second one where a message has the fields `instruction` and `input`. A server's message has a role and a content. So a question with an input has its form of training only as a whole prompt,
# which Ollama takes with [`"raw": true`](https://docs.ollama.com/api/generate). Some templates have no equal in Ollama's language at all. Then a note says so, and the Modelfile has no `TEMPLATE`.
#
# The tokenizer and the chat template itself travel inside the GGUF file, so nobody has to send them along. Read them back:


# %%
def inside(file):
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    template = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else "none"
    return {"kind of model": fields["general.architecture"].contents(), "end of the template": repr(template[-40:]),
            "tokens": f"{len(fields['tokenizer.ggml.tokens'].contents()):,}, and {len(tokenizer):,} in the folder",
            "an answer ends at token": fields["tokenizer.ggml.eos_token_id"].contents(),
            "the template is that of training": "yes" if template == tokenizer.chat_template else "no"}  # fmt: skip


table(inside(next(iter(files.values()))) if files else {}, columns=("in the file", ""))

# %% [markdown]
# Does llama.cpp say what transformers says? Ask both the same questions and take the likeliest token each time. `Llama` starts llama.cpp in a process of its own, on one thread, and asks it over a local address; its tokenizer is that of the file. Your model is sure of its answers. The one that was stopped early
# is not, so it is asked too, as `Q4_0` from both bases. How many of its answers will be equal to transformers', and how many right? Guess first. (A model of more than half a GB is not asked here: one thread would take many minutes.)

# %%
questions, answers = heldout.select(range(min(48, len(heldout)))), {}
whole, context = run.prompts(tokenizer, questions), settings.max_length + settings.max_new_tokens
try:
    for kind in files if fits and len(files) > 1 else ():
        answers["yours", kind] = Llama(files[kind], context).answers(whole, settings.max_new_tokens)
    for into in again if answers else ():
        with tempfile.TemporaryDirectory(dir=run.bulky) as folder:
            merge_adapter(run.model.path, early, f"{folder}/merged", into, **options)
            export_gguf(f"{folder}/merged", f"{folder}/m.gguf", "q4_0", template=written_as, progress=False)
            llama = Llama(f"{folder}/m.gguf", context)
            answers["stopped early", f"q4_0, {into} base"] = llama.answers(whole, settings.max_new_tokens)
except OSError as error:
    print(f"left out: {error}")

# %% tags=["nbval-ignore-output"] reason="answers of a trained adapter vary with the processor"
compared, right = {}, np.array(list(questions["output"]))
of_transformers = {"yours": final.answers, "stopped early": beside.answers}
for (name, kind), given in answers.items():
    reference = np.array(of_transformers[name][: len(right)])
    compared[f"{name}, {kind}"] = [np.mean(pair) for pair in (given == reference, given == right, reference == right)]
if answers and run.usual(adapters["yours"]):
    verdict("the F16 file answers as transformers does, but for at most one answer in forty",
            compared["yours, f16"][0] >= 39 / 40)  # fmt: skip
table(compared, "{:.0%}", columns=("asked", "answers equal to transformers'", "right", "transformers: right"))

# %% [markdown]
# `Q4_0` is another kind of 4 bits than the one that you trained in, with evenly spaced levels. A model that is sure of its short answers does not show what that costs. The other one does: its file from dequantized weights stays nearer to transformers, which was asked with those weights. Long free text parts sooner, since each token that comes out differently changes all that follow.
#
# What was measured of `Q4_0` is this. Neither base loses an update, small or large. From dequantized weights a small one comes out too large: by a tenth at 2% of the weights, and more than twice as large at 0.2% ("Further down"). From the original base its size is right, but single weights are further off, and in the answers above that cost more. So no rule says which base is better. With an update of several per cent take either. With a smaller one make both files, and ask both the questions that you scored.
#
# These prompts were made in Python. The server's own template has not been asked yet. So send messages now, as a colleague would, and let llama.cpp put them into the template of the file (`apply-template` tells what it makes of a chat). How often is that the prompt of training?

# %% tags=["nbval-ignore-output"] reason="answers of a trained adapter vary with the processor"
from helpers.data import to_chat

same, begun = {"without an input": [], "with an input": []}, tokenizer.bos_token or ""
llama = Llama(files["f16"], context) if answers else None
for row, prompt in zip(questions, whole) if answers else ():
    chat = {"messages": to_chat(row)["prompt"], "temperature": 0, "max_tokens": settings.max_new_tokens}
    made = llama.ask("apply-template", **chat)["prompt"].removeprefix(begun)
    said = llama.ask("v1/chat/completions", **chat)["choices"][0]["message"]["content"]
    found = made == prompt.removeprefix(begun), said.strip() == row["output"]
    same["with an input" if row["input"] else "without an input"].append(found)
table({kind: (len(found), *np.mean(found, axis=0)) for kind, found in same.items() if found}, "{:.0%}", asked="{}",
      columns=("questions", "asked", "prompt is that of training", "right"))  # fmt: skip

# %% [markdown]
# Without an input every prompt is that of training, and with one none is: the file's template has both forms, but llama.cpp's server hands it no `input`. Your model answers all the same. Another one may not, so send whole prompts where your rows have an input, or train on the form that the server makes.
#
# For Ollama it is `ollama create my-model -f model-q8_0.Modelfile`. From a shell the export is `python -m helpers export FOLDER OUT.gguf --type q8_0`.
#
# > **Trap: the template is part of the model.** *What you see:* right in your notebook, babble in Ollama. *Why:* the server wraps a question in another template than training did. *Cure:* create the model from the Modelfile that lies beside the file, send whole prompts where it lacks a form, and ask the questions that you scored.
# > The template inside of the GGUF file is what llama.cpp uses. It is not always what Ollama uses: it has long compared that template only with those that it knows. `ollama show --template my-model` says what it takes.
#
# ## 8 Publish it
#
# A model without its numbers is of little use to others. Record what was measured; `model_card` writes the card from the records, and from nothing else.

# %%
import json

from helpers.models import model_card

adapter_config = json.loads((adapters["yours"] / "adapter_config.json").read_text())
scores = {"base": before, "trained": results["yours", "keep the adapter"][2], "merged": final}
record(
    measured={name: score.numbers() for name, score in scores.items()},
    scored_with=scored, merged_read_in_4_bits=not fits, base_weights="dequantized", dtype="float16",
    adapter={name: adapter_config[name] for name in ("r", "lora_alpha", "target_modules")}, **run.licences,
    trained_in_lesson_03=bool(run.training_of(adapters["yours"])), merged_bytes=done["bytes"],
    ways=[[*key, *row] for key, row in rows_of_ways.items()], half_kept_at_percent=half, in_4_bits_again=again, gguf=compared,
)  # fmt: skip

# %% tags=["nbval-ignore-output"] reason="the card holds this run's numbers"
card = model_card(run.folder)
card.save(run.merged / "README.md")
private = (run.folder, adapters["yours"], run.merged)
verdict("the card names data and licences, and no folder of this machine",
        all(word in card.content for word in (run.data_name, "licence: ", "Licence: ")) and not any(str(place) in card.content for place in private))  # fmt: skip
print(card.content)

# %% [markdown]
# Nothing in it was typed. What it cannot know, you add by hand: what the model is for, and what it should not be used for. The head between the dashes is what the hub reads ([model cards](https://huggingface.co/docs/hub/model-cards)).
#
# The base and the data each have a licence, and both hold for what you made of them. What does the head say where the two differ? It has room for one:
#
# | base | data | `license` in the head |
# |---|---|---|
# | Apache-2.0 | Apache-2.0 | `apache-2.0` |
# | Apache-2.0 | CC BY-NC 4.0 | `cc-by-nc-4.0`, the narrower one |
# | Llama 3.1 Community License | Apache-2.0 | `llama3.1`, the narrower one |
# | Llama 3.1 Community License | CC BY-NC 4.0 | `other`, and `license_name` names both |
# | not known | anything | nothing: look it up before you write one |
#
# The text of the card names both in every case. A licence in the head is a promise to whoever filters by it on the hub, so a wider one than you may give misleads people. (These are the course's rules for its card, and no legal advice.)
#
# A licence also asks for things that travel with the model. Apache-2.0 asks for a copy of itself, for the base's `NOTICE` file where there is one, and for a note in files that you changed. [Llama 3.1's](https://www.llama.com/llama3_1/license/) asks for a copy of itself too, for a `Notice` file with its line of attribution,
# for the words "Built with Llama" on the model's page, and for a name that begins with "Llama". The merge takes files named `LICENSE` and `NOTICE` along where they lie in the base's folder. Often they do not, and the bundled model has none: then put them into the merged folder yourself.
#
# **Before you publish**, settle what the next table says. Either licence can forbid it. Alpaca's rows, for example, may not be used commercially, and [its makers](https://github.com/tatsu-lab/stanford_alpaca) want models that were trained on them used for research only.
#
# And your own rows? The folder holds none of them, but the model may: it can say by heart what it was trained on. So the cell also counts how many of the rows that it was trained on it answers word for word, beside the held-out ones. (Lesson 03 shuffles the rows and trains on the first of them, so the cell does the same.) If the first number is much higher, it knows rows rather than the task.

# %% tags=["nbval-ignore-output"] reason="a trained adapter varies with the processor"
learned = run.rows["train"].shuffle(seed=settings.seed)
learned = learned.select(range(min(len(heldout), len(learned))))
by_heart = evaluate(merged, tokenizer, learned, **scored).exact_match
print(f"word for word: {by_heart:.0%} of {len(learned)} training rows, {final.exact_match:.0%} of the held-out rows")
table(run.before_publishing(), columns=("before you publish", "this run"))

# %% [markdown]
# If the two numbers are equal, nothing here speaks of rows learned by heart. But the count sees whole answers alone. If your rows hold names, search the model's answers for the names.
#
# The GGUF files lie beside that folder: move those that you want to publish into it, and the licence files too. The lesson ends before the upload, since that needs an account and is seen by others. When you want it, run this in a cell of your own:
#
# ```python
# from huggingface_hub import HfApi
#
# hub = HfApi()
# hub.create_repo("you/your-model", private=True, exist_ok=True)
# hub.upload_folder(repo_id="you/your-model", folder_path=run.merged)
# ```
#
# It uploads the folder as it stands, card and tokenizer included, to a repository that only you can see. Read it there once more before you make it public.
#
# To hand over the adapter itself, upload its folder in the same way, with `folder_path=adapters["yours"]`. It holds the adapter, the tokenizer and `chat_template.jinja`. Look first into its `adapter_config.json` (`base_model_name_or_path`) and its `README.md` (`base_model`). If they name a folder of your machine, as after a training from a local folder, put the hub's name of the base there: nobody else has your folder. Add to the `README.md` in which revision you took it (the commit on the hub), and the `quant_type` and `double_quant` of training: whoever loads the base otherwise has another model.
#
# > **Trap: a token that may not create its repository.** *What you see:* "403 Forbidden ... You don't have the rights to create a model under this namespace". *Why:* a *fine-grained* token that may write to one repository cannot make it, since it does not exist yet. *Cure:* make the empty private repository on the site,
# > and give the token write access to that one. Then the code works as it stands: with `exist_ok=True`, `create_repo` goes on after the refusal if the token can read the repository. Such a token can do the least harm. Or take a token of the kind *write*, which may create, and delete it afterwards ([tokens](https://huggingface.co/docs/hub/security-tokens)).
#
# No token stands in that code. The library looks for one itself: in the environment variable `HF_TOKEN`, in the file that `hf auth login` writes, in Colab's secrets (the key symbol at the left, name `HF_TOKEN`). Never put one into a cell, print it, or pass it as a parameter: a notebook keeps all three, and papermill (a program that runs notebooks with parameters) writes
# them into its output. A loaded model can be uploaded with `model.push_to_hub("you/your-model", private=True)` as well, but without card and tokenizer: `tokenizer.push_to_hub` sends the latter.
#
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once. The dots after the minutes say how hard it is. The solutions are folded away.
#
# **1. Write** (10 minutes, •••). Somebody hands you a model that was merged in 16 bits, and the base that it was merged into. The adapter is lost. Get it back: write `extract(merged, base, rank)`, which takes two weight matrices in float16 and returns the pair `A` (rank x inputs), `B` (outputs x rank) in float32, such that
# `B @ A` is as near to what was added as a product of that rank can be. ([`torch.linalg.svd`](https://docs.pytorch.org/docs/stable/generated/torch.linalg.svd.html) writes a matrix as $U S V^T$ and returns $V^T$, the largest parts first. What is left when you cut it after `rank` of them is the nearest matrix of that rank.)


# %%
def extract(merged, base, rank):
    "(A, B), float32, whose product B @ A is nearest to merged - base."
    return ...


check("05.1", extract)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
#
# def extract(merged, base, rank):
#     U, S, V = torch.linalg.svd(merged.float() - base.float(), full_matrices=False)
#     return V[:rank], U[:, :rank] * S[:rank]
#
#
# check("05.1", extract)
# ```
#
# It works since a merge in 16 bits keeps the update, and it takes the very base that was merged into. The folder of this lesson is a merge into dequantized weights: if you subtract the original base from it, the difference holds the quantization error as well, and no small rank describes that. After a merge into 4 bits the difference is jumps from level to level, which no small rank describes either.
# </details>
#
# **2. Repair** (5 minutes, ••). A colleague merged her adapter and says: "My merge is off by one per cent, so it is fine." Her function runs, and it answers another question than yours. Yours is: how much of *what was trained* is wrong? Write the function for that, as `merge_error`.


# %%
def their_error(before, trained, merged):
    return ((merged - trained).norm() / trained.norm()).item()


merge_error = ...
check("05.2", merge_error)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def merge_error(before, trained, merged):
#     return ((merged - trained).norm() / (trained - before).norm()).item()
#
#
# check("05.2", merge_error)
# ```
#
# If the update is one per cent of the weights and all of it is lost, hers says 0.01 and yours says 1.
# </details>
#
# **3. Write** (10 minutes, •••). The product $B A$ of a matrix in a 7B model's MLP has 59 million numbers, and all you want is its norm. Write `update_norm(A, B, scale)`, the norm of $s\, B A$, without ever making a matrix larger than rank times rank. The square of a norm is $\lVert BA\rVert^2 = \sum_{ij} (B^T B)_{ij}\, (A A^T)_{ij}$.


# %%
def update_norm(A, B, scale):
    "The norm of scale * B @ A, a number; A is r x inputs, B is outputs x r."
    return ...


check("05.3", update_norm)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def update_norm(A, B, scale):
#     return abs(scale) * ((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt().item()
#
#
# check("05.3", update_norm)
# ```
# </details>
#
# **4. Write** (5 minutes, ••). How large is a GGUF file? A block of 32 weights takes 34 bytes as `q8_0` (32 codes of a byte, and a scale in float16), and 18 bytes as `q4_0` (32 codes of half a byte, and the scale). `f16` has no blocks. Write `gguf_bytes(weights, kind)`, where `weights` is a multiple of 32.


# %%
def gguf_bytes(weights, kind):
    'The bytes of so many weights as "f16", "q8_0" or "q4_0".'
    return ...


check("05.4", gguf_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gguf_bytes(weights, kind):
#     return weights * 2 if kind == "f16" else weights // 32 * {"q8_0": 34, "q4_0": 18}[kind]
#
#
# check("05.4", gguf_bytes)
# ```
#
# With Mistral-7B's 7,241,732,096 weights: 14.5 GB, 7.7 GB and 4.1 GB.
# </details>
#
# **5. Predict, then run** (5 minutes, ••). Take the adapter that was stopped early and double its `alpha`: that makes its update twice as large. Which share of it would a merge into 4 bits keep then? Read its size off the table of section 3 and the answer off the figure; then the cell merges every layer and compares. Give a share from 0 to 1; what is within
# 0.1 is right.

# %%
import dataclasses

my_guess = ...
doubled = {name: dataclasses.replace(one, scale=2 * one.scale) for name, one in layers["stopped early"].items()}
check("05.5", my_guess, np.mean(of_each_layer(doubled)[1]) / 100)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# size = 2 * np.mean(of_layers["stopped early"][0])
# my_guess = float(share_kept(size))
# check("05.5", my_guess, np.mean(of_each_layer(doubled)[1]) / 100)
# ```
# </details>
#
# **6. Decide** (5 minutes, ••). Four teams, each with an adapter whose update is 2% of the weights:
#
# - A: one GPU serves eight customers, each with an adapter of her own, with transformers and PEFT
# - B: an auditor wants one 16-bit folder that answers as the evaluated model did
# - C: the server that loads the model will quantize it to NF4, in the blocks of training
# - D: a laptop will run it as `Q4_0`
#
# For each, `"keep"`, `"4-bit"`, `"original"` or `"dequantized"`? One of the four has two right answers.

# %%
chosen = {"A": ..., "B": ..., "C": ..., "D": ...}
check("05.6", chosen)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# chosen = {"A": "keep", "B": "dequantized", "C": "original", "D": "original"}
# check("05.6", chosen)
# ```
#
# C quantizes again to the levels on which the dequantized weights stand, so they would keep nearly nothing of so small an update. For D, `"dequantized"` is right too: `Q4_0` has other levels than NF4, so both bases keep the update. Measure both.
# </details>
#
# **7. Write** (10 minutes, ••). Before a folder is published, somebody should look into it. Write `must_not_go(names)`: from a list of file names it returns those that do not belong into a published model: checkpoints' pickles (`.pt`, `.bin`, `.pkl`), rows (`.csv`, `.jsonl`), each ending in small or capital letters, and files whose name begins with a dot.


# %%
def must_not_go(names):
    "The names, in their order, that have no place in a published model."
    return ...


check("05.7", must_not_go)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def must_not_go(names):
#     ends = (".pt", ".bin", ".pkl", ".csv", ".jsonl")
#     return [name for name in names if name.startswith(".") or name.lower().endswith(ends)]
#
#
# check("05.7", must_not_go)
# ```
# </details>
#
# ## What you saw
#
# Merging is one line, and which weights you merge into decides what you get. A merge into 4 bits erases an update that is small beside its weights, and only a measurement tells. What you ship is a folder or a file that somebody else can run, with the numbers that you measured on it and the licences
# that hold for it.
#
# Next: [06 Troubleshooting](06_troubleshooting.ipynb) breaks a run in the common ways, and mends it.
#
# ## Further down
#
# What follows is for readers who want to know more. Nothing later depends on it.
#
# ### A shard, by hand
#
# A *shard* is one of the files that a model's weights are divided among. This is the whole idea of section 5: read a shard, add what the adapter has for each of its tensors, write the shard. It holds a shard, often 5 GB, where `merge_adapter` holds rows.

# %%
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def merge_shard(shard, found, out):
    merged = {}
    with safe_open(shard, framework="pt") as file:
        for key in file.keys():
            weight, one = file.get_tensor(key), found.get(key.removesuffix(".weight"))
            merged[key] = (weight.float() + one.update).to(weight.dtype) if one and key.endswith(".weight") else weight
    save_file(merged, out, metadata={"format": "pt"})


# %%
from pathlib import Path

shards = [file for file in Path(run.model.path).glob("*.safetensors") if file.stat().st_size < 2e9]
with tempfile.TemporaryDirectory(dir=run.bulky) as folder:
    if shards:
        merge_adapter(run.model.path, adapters["yours"], f"{folder}/merged", "original", **options | {"dtype": None})
    for shard in shards:
        merge_shard(shard, layers["yours"], f"{folder}/one.safetensors")
        one, two = load_file(f"{folder}/one.safetensors"), load_file(f"{folder}/merged/{shard.name}")
        verdict("your shard and merge_adapter's hold the same bits", all(torch.equal(one[k], two[k]) for k in two))

# %% [markdown]
# ### A Python without PEFT and bitsandbytes
#
# Does the folder need them? Ask a new Python in which neither can be imported.

# %%
alone = """
import json, sys
sys.modules["peft"] = sys.modules["bitsandbytes"] = None  # importing either now fails
from transformers import AutoModelForCausalLM, AutoTokenizer

asked = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=asked["dtype"], device_map=asked["device_map"])
tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
ids = tokenizer(asked["prompt"], return_tensors="pt").to(model.device)
tokens = model.generate(**ids, max_new_tokens=asked["new"], do_sample=False, pad_token_id=tokenizer.pad_token_id)
print(json.dumps(tokenizer.decode(tokens[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip()))
"""

# %%
import json
import subprocess
import sys

asked = {"folder": str(run.merged), "dtype": run.machine.dtype, "device_map": run.machine.device_map}
asked |= {"prompt": run.prompts(tokenizer, heldout)[0], "new": settings.max_new_tokens}
if fits:
    child = subprocess.run(
        [sys.executable, "-c", alone], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    print(f"{heldout[0]['instruction']} {heldout[0]['input']}\n{json.loads(child.stdout)}")

# %% [markdown]
# ### How near is this model to the end of float16?
#
# The largest weight in its files, and the largest number that comes out of any of its layers while eight held-out rows are scored: linear layers, norms, and whole blocks, which add what they computed to what came in. Beyond 65,504 float16 fails.


# %%
def largest_activation(model):
    "The largest number that comes out of any part of the model while held-out rows are scored."
    found = []

    def look(module, given, out):
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, torch.Tensor):
            found.append(out.abs().max().item())

    handles = [part.register_forward_hook(look) for part in model.modules()]
    evaluate(model, tokenizer, heldout.select(range(min(8, len(heldout)))), **scored)
    for handle in handles:
        handle.remove()
    return max(found)


# %%
largest_weight = 0.0
for shard in run.merged.glob("*.safetensors"):
    with safe_open(shard, framework="pt") as file:
        largest_weight = max(largest_weight, *(file.get_tensor(key).abs().max().item() for key in file.keys()))
share = largest_activation(merged) / torch.finfo(torch.float16).max
print(
    f"largest weight {largest_weight:.1f}; the largest number that comes out of a layer is {share:.1%} of float16's end"
)

# %% [markdown]
# ### Q8_0 and Q4_0 from both bases
#
# What do `Q8_0` and `Q4_0` keep of an update? Take a random matrix as the original base, and the same matrix rounded to NF4 as the dequantized one. Add updates of three sizes: about that of SmolLM2's adapter, that of exercise 6, and about that of the bundled model's adapter. The package gguf does the rounding, as in the export.


# %%
import itertools


def in_gguf(matrix, kind):
    from gguf import GGMLQuantizationType, dequantize, quantize

    kind = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(matrix.numpy(), kind), kind))


torch.manual_seed(0)
original, direction = torch.randn(1024, 1024), torch.randn(1024, 16) @ torch.randn(16, 1024)
restored, kept_in_gguf = rounded(original, "nf4"), {}
try:
    for kind, size in itertools.product(("Q8_0", "Q4_0"), (0.2, 2, 11)):
        U = direction * (size / 100 * restored.norm() / direction.norm())
        kept_in_gguf[kind, f"{size}%"] = [
            kept(in_gguf(start + U, kind) - restored, U) for start in (original, restored)
        ]
except ImportError as error:
    print(f"left out: {error}")
table(kept_in_gguf, "{:.0%}", columns=("kind", "size of the update", "kept: original base", "kept: dequantized"))

# %% [markdown]
# Neither base loses the update, since the dequantized weights stand on levels of NF4 and not on those of the file. But many of them stand close to a border between two of its levels. So a small update carries too many of them over, and more arrives than you trained: little more in `Q8_0`, and much more in `Q4_0`. The original base keeps the right amount, with a larger error in single weights. Section 7 says what follows.
#
# ### Why a merge into dequantized weights takes its time
#
# `merge_adapter` works on the CPU, and bitsandbytes was made fast on GPUs. How many times as long as rounding a matrix to 16 bits does it take to quantize and dequantize it? (Both are timed in this run, in turns. Only their ratio is worth something, since a busy machine is slower in both.)

# %% tags=["nbval-ignore-output"] reason="seconds vary"
import timeit

piece, best = torch.randn(2048, 2048), {"rounded to 16 bits": 9e9, "quantized and dequantized": 9e9}
for _ in range(10):
    for name, work in zip(best, (piece.half, lambda: rounded(piece))):
        best[name] = min(best[name], timeit.timeit(work, number=1))
ratio = best["quantized and dequantized"] / best["rounded to 16 bits"]
print(f"quantizing and dequantizing takes {ratio:.0f} times as long here as rounding to 16 bits")

# %% [markdown]
# So a merge into dequantized weights waits mostly for that. It is paid once.
#
# Next: [06 Troubleshooting](06_troubleshooting.ipynb) breaks a run in the common ways, and mends it.
