# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 Merging
#
# An adapter can be folded into its base: one model, no PEFT, nothing extra to compute. There are several ways to do it, and they do not
# give the same model. One of them can even give back the base as it was. You merge by hand first, then in four ways and with two adapters,
# measure each, write the one that you want to disk, and make its model card from what was measured.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** the adapter of lesson 03. Another Colab notebook is another
# machine and does not have it, unless both lessons began with `output_dir="drive"`; without one, this lesson trains a small one first. The
# fourth cell says which it takes.

# %% tags=["parameters"]
model_id = "auto"
dataset_id = "auto"
adapter_dir = "auto"  # what lesson 03 left
seed = 0
quant_type = "nf4"
double_quant = True
max_new_tokens = 16
eval_rows = 64
merged_dir = "auto"  # beside the rest, but never on Drive unless you say "drive": a merged 7B model takes 14.5 GB
output_dir = "auto"

# %% tags=["nbval-ignore-output"] reason="which adapter is there depends on what ran before"
from helpers.lesson import begin, check, record, table, verdict
from helpers.files import output_folder

run = begin(
    "05_merging", with_data=True,
    model_id=model_id, dataset_id=dataset_id, adapter_dir=adapter_dir, seed=seed, quant_type=quant_type,
    double_quant=double_quant, max_new_tokens=max_new_tokens, eval_rows=eval_rows, merged_dir=merged_dir,
    output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %%
from helpers.quick import adapter_for, load_4bit, train_adapter

strong, made_now = adapter_for(run)
verdict("there is an adapter for this base model", (strong / "adapter_model.safetensors").is_file())

# %%
import json

report = run.folder / "03_t4_training.json"  # what lesson 03 recorded, if it trained this adapter
known = report.is_file() and strong == run.adapter and not made_now
given = json.loads(report.read_text())["run"]["parameters"] if known else {}
packed_as = {name: given.get(name, getattr(settings, name)) for name in ("quant_type", "double_quant")}
if packed_as != {name: getattr(settings, name) for name in packed_as}:
    print(
        f"Note: this adapter was trained with {packed_as}. Here the base is packed otherwise, and the adapter never saw that one."
    )
auto = all(given.get(name, "auto") == "auto" for name in ("max_steps", "learning_rate"))
usual = (
    run.model.bundled and settings.adapter_dir == "auto" and auto and settings.eval_rows >= 32
)  # claims on numbers need it

# %% [markdown]
# ## 1 One layer, by hand
#
# LoRA computes $W x + s\, B (A x)$ with a scale $s$, which is $\alpha / r$. That equals $(W + s\, B A)\, x$. So you can add $s\, B A$ to the
# weights once, and the branch is gone. Take the first layer that the adapter changes: its $A$ and $B$ from the adapter, its $W$ from the
# file of the base.

# %%
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.merging import find_base, merge_adapter, read_base, scaling

config = json.loads((strong / "adapter_config.json").read_text())
tensors = load_file(strong / "adapter_model.safetensors")
key = next(k for k in tensors if "lora_A" in k)
layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
A, B = tensors[key].float(), tensors[key.replace("lora_A", "lora_B")].float()
scale = scaling(config, layer)  # alpha / r, unless the adapter's config says otherwise

# %%
base_config, stored = read_base(find_base(run.model.path))  # where each tensor of the base lies: file, offset, shape
with safe_open(stored[f"{layer}.weight"].file, framework="pt") as file:
    W = file.get_tensor(f"{layer}.weight")
print(layer)
print("W", tuple(W.shape), W.dtype, " B", tuple(B.shape), " A", tuple(A.shape), " scale", scale)

# %%
torch.manual_seed(settings.seed)
x = torch.randn(3, A.shape[1])
branch = x @ W.float().T + scale * (x @ A.T) @ B.T
folded = x @ (W.float() + scale * (B @ A)).T
verdict(
    "branch and folded weights give the same output, to rounding", torch.allclose(branch, folded, atol=1e-3, rtol=1e-3)
)

# %% [markdown]
# Here is the merge in one line. The base stores 16 bits, the adapter 32: add in 32 bits, and round once at the end. Then let PEFT merge the
# same layer and compare, bit for bit.

# %%
import bitsandbytes as bnb
from peft import LoraConfig, get_peft_model

by_hand = (W.float() + (B @ A) * scale).to(W.dtype)


def merged_by_peft(linear):
    "The layer after PEFT put A and B beside it and merged them."
    model = torch.nn.Sequential(linear)
    model.is_loaded_in_4bit = isinstance(linear, bnb.nn.Linear4bit)  # as transformers marks a model for PEFT
    tuned = get_peft_model(model, LoraConfig(r=len(A), lora_alpha=scale * len(A), target_modules=["0"]))
    tuned.base_model.model[0].lora_A.default.weight.data = A
    tuned.base_model.model[0].lora_B.default.weight.data = B
    return tuned.merge_and_unload()[0]


# %%
linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
linear.weight.data = W.clone()
verdict("merged by hand equals PEFT's merge, bit for bit", torch.equal(by_hand, merged_by_peft(linear).weight))

# %% [markdown]
# ## 2 The same layer in 4 bits
#
# Training did not see this $W$. It saw the 4-bit version, in which every weight stands on one of 16 levels, times the absmax of its
# block (lesson 01). To merge there, PEFT unpacks the weights, adds the update, and *quantizes the sum again*. By hand:

# %%
import bitsandbytes.functional as F


def quantize(weight):
    return F.quantize_4bit(weight, quant_type=settings.quant_type, compress_statistics=settings.double_quant)


seen = F.dequantize_4bit(*quantize(W.float()))  # what the layer computed with in training
codes, state = quantize(seen + (B @ A) * scale)

# %%
import warnings

packed = bnb.nn.Linear4bit(W.shape[1], W.shape[0], bias=False)
kind = {"quant_type": settings.quant_type, "compress_statistics": settings.double_quant}
packed.weight = bnb.nn.Params4bit(W.float(), requires_grad=False, **kind)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PEFT warns of rounding here, which is what we are about to see
    theirs = merged_by_peft(packed.to("cpu")).weight
verdict("and so in 4 bits: the same codes", torch.equal(codes, theirs.data))
verdict("and the same constants", torch.equal(state.absmax, theirs.quant_state.absmax))

# %% [markdown]
# Look at some weights on their way through it.

# %% tags=["nbval-ignore-output"] reason="a trained adapter varies with the processor"
after = F.dequantize_4bit(codes, state)
steps = {"in training": seen, "update": (B @ A) * scale, "sum": seen + (B @ A) * scale, "after the merge": after}
table({i: [t[0, i] for t in steps.values()] for i in range(6)}, "{:+.4f}", columns=("weight", *steps))

# %% [markdown]
# The sum is right. The last column is the sum moved to the nearest level again. Where the update is smaller than half the way to the next
# level, the weight goes back to where it came from, or nearly: its block may have a new absmax. What is rounded away is gone.
#
# So the size of the update decides. That calls for two adapters.
#
# ## 3 Two adapters
#
# The strong one is lesson 03's. The weak one gets a few steps at half the learning rate: an early stop, a careful setting, a small dataset.

# %%
from helpers.models import Model, model_card, recipe_for

adapters = {"strong": strong, "weak": run.folder / "adapter-weak"}
train_adapter(
    run.model, run.machine, run.rows["train"], adapters["weak"], steps=16, batch_size=4, seed=settings.seed,
    learning_rate=recipe_for(run.model)["learning_rate"] / 2, quant_type=settings.quant_type,
    double_quant=settings.double_quant,
)  # fmt: skip


def load_base():
    return load_4bit(run.model, run.machine, settings.quant_type, settings.double_quant)[0]


base, tokenizer = load_4bit(run.model, run.machine, settings.quant_type, settings.double_quant)

# %% [markdown]
# Two functions serve the rest of the lesson: what an adapter adds to each layer, and what a layer of any model computes with.


# %%
def updates(adapter):
    "Layer by layer: its name, and what the adapter adds to its weights, float32."
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors", device=str(base.device))
    for key in (k for k in tensors if k.endswith("lora_A.weight")):
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        product = tensors[key.replace("lora_A", "lora_B")].float() @ tensors[key].float()
        yield name, product * scaling(config, name)


def weights(model, name):
    "The weights that a layer computes with, float32: unpacked, where they are packed."
    layer = model.get_submodule(name)
    packed = isinstance(layer, bnb.nn.Linear4bit)
    return (F.dequantize_4bit(layer.weight, layer.weight.quant_state) if packed else layer.weight).float()


# %% tags=["nbval-ignore-output"] reason="the size of a trained update varies with the processor"
def size_of(adapter):
    "The norm of each update, as a share of its layer's weights: the mean over the layers."
    shares = [(update.norm() / weights(base, name).norm()).item() for name, update in updates(adapter)]
    return sum(shares) / len(shares)


size = {name: size_of(adapter) for name, adapter in adapters.items()}
table(size, "{:.1%}", columns=("adapter", "its update, beside the weights"))

# %%
if usual:
    verdict("the weak adapter's update is less than half the strong one's", size["weak"] < size["strong"] / 2)

# %% [markdown]
# ## 4 Four ways
#
# Each is a line or two, and PEFT's and transformers' own calls.
#
# - **Keep** the adapter beside the 4-bit base. This is the model that you trained, so it is the yardstick.
# - **Into the 4-bit base**, as above.
# - **Into the original base**, as it was before quantization. Many guides say so: those weights are better ones, but the adapter
#   never saw them.
# - **Dequantize, then merge.** `dequantize()` turns the 4-bit weights into ordinary ones, with their rounding kept. These are the numbers
#   that the adapter was trained on, in a form that takes any update.


# %%
from peft import PeftModel
from transformers import AutoModelForCausalLM


def keep(adapter):
    return PeftModel.from_pretrained(load_base(), adapter)


def into_4bit(adapter):
    return PeftModel.from_pretrained(load_base(), adapter).merge_and_unload()


def into_original(adapter):
    kwargs = {"dtype": run.machine.torch_dtype, "device_map": run.machine.device_map}
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(run.model.path, **kwargs), adapter
    ).merge_and_unload()


def into_dequantized(adapter):
    return PeftModel.from_pretrained(load_base().dequantize(run.machine.torch_dtype), adapter).merge_and_unload()


# %% [markdown]
# The last two hold a whole model unpacked. Is there room for that? For a 7B model on a T4 there is not. Section 6 merges such a model
# too, without holding it; but what cannot be held cannot be measured here, and is left out.

# %% tags=["room"]
import psutil

unpacked = sum(tensor.numel for tensor in stored.values()) * run.machine.torch_dtype.itemsize
on_gpu = run.machine.device == "cuda"
free = run.machine.gpu_bytes - torch.cuda.memory_allocated() if on_gpu else psutil.virtual_memory().available
fits = 1.4 * unpacked < free  # packed and unpacked at once, for a moment
ways = {"keep the adapter": keep, "into the 4-bit base": into_4bit}
ways |= {"into the original base": into_original, "dequantize, then merge": into_dequantized} if fits else {}
if not fits:
    print(f"left out: an unpacked model takes {unpacked / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
print("measured:", ", ".join(ways))

# %% [markdown]
# What is measured for each way? First, how much of the update survives. Let $U$ be what the adapter should add, over all layers, and $C$
# the change that the merged model really has against the weights of training. **Kept** is $\langle C, U\rangle / \langle U, U\rangle$: 1 if the
# whole update is there, 0 if nothing is. What was changed beside it shows in the **error**, $\lVert C - U\rVert / \lVert U\rVert$.


# %%
def survives(model, adapter):
    "(kept, error) of the update in a merged model, both as a share of the update."
    along = square = wrong = 0.0
    for name, update in updates(adapter):
        change = weights(model, name) - weights(base, name)
        along += (change * update).sum().item()
        square += update.square().sum().item()
        wrong += (change - update).square().sum().item()
    return along / square, (wrong / square) ** 0.5


# %% [markdown]
# Second, what the model says: its logits (scores for each possible next token) after held-out prompts, against the trained model's, as a
# share of how far training moved them. 0 is the trained model, 1 is as far off as the untrained one.

# %%
from helpers.data import alpaca_prompt
from helpers.evaluation import answer, evaluate

heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
prompts = [alpaca_prompt(row["instruction"], row["input"]) for row in heldout.select(range(min(16, len(heldout))))]


def logits_of(model):
    with torch.no_grad():
        ids = [tokenizer(prompt, return_tensors="pt").to(model.device) for prompt in prompts]
        return torch.cat([model(**each).logits[0, -1:].float().cpu() for each in ids])


base_logits = logits_of(base)

# %% [markdown]
# Third, how good it is: loss on the held-out completions, and exact match with its 95% interval. Last, what it costs: bytes on disk, host
# memory (the highest rise of this process while it loads and merges), seconds.


# %%
def stored_bytes(model):
    "What its tensors take on disk: packed ones as they are, all others in 16 bits, tied ones once."
    unique = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(t.numel() * (1 if t.dtype == torch.uint8 else 2) for t in unique.values())


# %%
import time

from helpers.machine import HostPeak


def measured(make, adapter):
    "A model made in one way, and what there is to say about it."
    with HostPeak() as host, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begun = time.perf_counter()
        model = make(adapter).eval()
        found = {"seconds": time.perf_counter() - begun}
    found |= {
        "host_bytes": host.bytes,
        "logits": logits_of(model),
        "score": evaluate(model, tokenizer, heldout, settings.max_new_tokens),
    }
    if make is keep:
        return found | {"kept": 1.0, "error": 0.0, "bytes": (adapter / "adapter_model.safetensors").stat().st_size}
    kept, error = survives(model, adapter)
    return found | {"kept": kept, "error": error, "bytes": stored_bytes(model)}


# %%
before = evaluate(base, tokenizer, heldout, settings.max_new_tokens)
results = {(name, way): measured(make, adapter) for name, adapter in adapters.items() for way, make in ways.items()}
for (name, _), found in results.items():
    trained_logits = results[name, "keep the adapter"]["logits"]
    found["logit error"] = ((found["logits"] - trained_logits).norm() / (trained_logits - base_logits).norm()).item()


# %% tags=["nbval-ignore-output"] reason="losses, bytes and seconds vary with the machine"
def shown(found):
    score, (low, high) = found["score"], found["score"].interval
    return {
        "kept": found["kept"], "error": found["error"], "logit error": found["logit error"], "loss": score.loss,
        "exact match": score.exact_match, "from": low, "to": high, "on disk (MB)": found["bytes"] / 1e6,
        "host memory (MB)": found["host_bytes"] / 1e6, "seconds": found["seconds"],
    }  # fmt: skip


print(f"the base in 4 bits, untrained: {before}")
rows = {names: shown(found) for names, found in results.items()}
table(rows, "{:.0%}", columns=("adapter", "way"), kept="{:.1%}", error="{:.2g}", logit_error="{:.2g}", loss="{:.3f}",
      on_disk_MB="{:,.1f}", host_memory_MB="{:,.0f}", seconds="{:.1f}")  # fmt: skip

# %% [markdown]
# Read the two rows "into the 4-bit base", those of the bundled model. Of the strong update most is kept; of the weak one next to nothing.
# The weak adapter was useful, as its loss beside the untrained base's says, and its 4-bit merge lies much nearer to the untrained base than
# to it. No error was raised and no file is broken: you would notice only by measuring. (On disk, an adapter needs its base as well.)

# %%
for name in adapters:
    merges = {way: results[name, way]["logit error"] for way in ways if way != "keep the adapter"}
    closest = min(merges, key=merges.get)
    if fits:
        verdict(
            f"{name}: dequantize, then merge comes closest to what was trained", closest == "dequantize, then merge"
        )
    if fits and run.machine.dtype == "float32":  # computing in 16 bits has errors of its own
        verdict(f"{name}: ten times closer than any other merge", 10 * merges.pop(closest) < min(merges.values()))

# %%
if usual:
    lost = results["weak", "into the 4-bit base"]
    trained = results["weak", "keep the adapter"]["score"]
    verdict("of the weak update, a 4-bit merge keeps less than a fifth", lost["kept"] < 0.2)
    verdict("and its loss is nearer to the untrained base's than to the trained model's",
            abs(lost["score"].loss - before.loss) < abs(lost["score"].loss - trained.loss))  # fmt: skip
    tops, bottoms = zip(*[results["strong", way]["score"].interval[::-1] for way in ways])
    verdict("with the strong adapter, exact match does not tell the four ways apart", max(bottoms) <= min(tops))
    right = {way: results["weak", way]["score"] for way in ways}
    here, there = right["into the original base"], right["dequantize, then merge"]
    verdict("with the weak one, it does not tell original from dequantized", abs(here.exact_match - there.exact_match)
            < (here.interval[1] - here.interval[0] + there.interval[1] - there.interval[0]) / 2)  # fmt: skip

# %%
from helpers import plots

merging = [way for way in ways if way != "keep the adapter"]
lost, left = (results[name, "into the 4-bit base"]["kept"] for name in ("weak", "strong"))
figure = plots.grouped_bars(
    list(ways),
    {
        "kept of the update (%)": {n: [100 * results[n, way]["kept"] for way in ways] for n in adapters},
        "held-out loss (nats a token)": {n: [results[n, way]["score"].loss for way in ways] for n in adapters},
    },
    f"A 4-bit merge keeps {left:.0%} of the strong update and {lost:.0%} of the weak one",
    lines={"held-out loss (nats a token)": (before.loss, "untrained base")},
)
plots.show(figure, alt="For each way and both adapters: the share of the update that is kept, and the held-out loss")

# %% [markdown]
# ## 5 How large must an update be?
#
# Take one matrix of normal random numbers, quantized, and an update of rank 16 with 0.5 to 30% of its size. Merge it in the three ways, and
# ask the same two questions. The last two columns save the dequantized merge in 16 bits, which rounds once more.

# %%
torch.manual_seed(0)
original = torch.randn(1024, 1024) / 32
direction = torch.randn(1024, 16) @ torch.randn(16, 1024)
start = F.dequantize_4bit(*quantize(original))


def trial(percent):
    step = direction * (percent / 100 * start.norm() / direction.norm())
    merged = {"4-bit": F.dequantize_4bit(*quantize(start + step)), "original": original + step}
    merged |= {str(dtype).split(".")[1]: (start + step).to(dtype).float() for dtype in (torch.float16, torch.bfloat16)}
    change = {way: weight - start for way, weight in merged.items()}
    kept = {way: ((c * step).sum() / step.square().sum()).item() for way, c in change.items()}
    return kept, {way: ((c - step).norm() / step.norm()).item() for way, c in change.items()}


# %% tags=["nbval-ignore-output"] reason="last digits vary with the processor"
percents = (0.5, 1, 2, 3, 5, 10, 20, 30)
trials = {percent: trial(percent) for percent in percents}
rows = {percent: (kept["4-bit"], *error.values()) for percent, (kept, error) in trials.items()}
errors = [f"error: {way}" for way in trials[1][1]]
table(rows, "{:.2g}", columns=("update (%)", "kept in 4 bits", *errors), kept_in_4_bits="{:.0%}")

# %%
import numpy as np

shares = [100 * trials[percent][0]["4-bit"] for percent in percents]
half = np.interp(50, shares, percents)
title = f"Half of an update survives a 4-bit merge if it is about {half:.0f}% of the weights"
points = {f"your {n} adapter": ([100 * size[n]], [100 * results[n, "into the 4-bit base"]["kept"]]) for n in adapters}
x, y = "size of the update (% of the weights)", "kept by a 4-bit merge (%)"
figure = plots.curves({"random matrix": (percents, shares)} | points, title, x, y)
figure.axes[0].set(xscale="log", xticks=percents, xticklabels=[f"{p:g}" for p in percents], ylim=(0, 105))
figure.axes[0].minorticks_off()
plots.show(
    figure, alt="Share of an update that a 4-bit merge keeps, over its size, with the two trained adapters as points"
)

# %%
kept, error = trials[1]
verdict("of an update of 1%, a 4-bit merge keeps less than a fifth", kept["4-bit"] < 0.2)
verdict(
    "the original base keeps all of it, among an error several times its size",
    abs(kept["original"] - 1) < 0.1 and error["original"] > 5,
)
verdict("dequantized and saved in float16, it keeps all of it with an error below a twentieth", error["float16"] < 0.05)
verdict("bfloat16 rounds eight times as much", 6 < error["bfloat16"] / error["float16"] < 10)

# %% [markdown]
# The error of the original base is the quantization error, undone. It points in no direction of the task, so it often does no harm, and
# may do good: look at the losses in section 4. It is not the model that you evaluated, though. bfloat16 keeps three bits less than float16: for a
# small update, save in float16, if the weights stay below its 65,504.
#
# ## 6 Shard by shard
#
# A 7B model in 16 bits is larger than the main memory of a free Colab. Merging does not need it there: a model's file is a list
# of tensors, and each is merged on its own. Here is the whole idea: read a shard, add what the adapter has for each of its tensors, write the
# shard.


# %%
from safetensors.torch import save_file


def merge_shard(shard, adapter, out):
    changes = {f"{name}.weight": update.cpu() for name, update in updates(adapter)}
    merged = {}
    with safe_open(shard, framework="pt") as file:
        for key in file.keys():
            weight = file.get_tensor(key)
            merged[key] = (weight.float() + changes[key]).to(weight.dtype) if key in changes else weight
    save_file(merged, out, metadata={"format": "pt"})


# %% [markdown]
# This holds a shard, often 5 GB, and all updates. `helpers.merging` holds a few megabytes of rows at a time, and adds what
# belongs to a merge that can be trusted: it checks that adapter and base belong together, refuses NaN, broken and pickled files, asks whether the
# disk has room, and its folder is there complete or not at all. It can merge into the dequantized weights too: it quantizes and dequantizes
# each tensor on the way.

# %%
sixteen_bits = "float16" if run.machine.device == "cpu" else run.machine.dtype
options = {"quant_type": settings.quant_type, "double_quant": settings.double_quant, "overwrite": True}
options |= {"dtype": sixteen_bits, "progress": not run.model.bundled}
elsewhere = settings.merged_dir != "auto"
merged_folder = (output_folder(settings.merged_dir, "merged_dir") if elsewhere else run.bulky) / "merged"
with HostPeak() as host:
    done = merge_adapter(run.model.path, strong, merged_folder, "dequantized", **options)
print(f"{done['merged']} of {done['tensors']} tensors merged")

# %% [markdown]
# Do the three agree, your shard, `helpers.merging`, and PEFT's `merge_and_unload()`? Compare every tensor, in the type that PEFT computed with here.

# %%
import tempfile


def same(a, b):
    "Bit for bit on a CPU. A GPU sums in another order: now and then a weight on the border takes the other level."
    return (a.float() - b.float()).norm() <= 0.01 * b.float().norm() if on_gpu else torch.equal(a, b)


# %%
with tempfile.TemporaryDirectory(dir=run.bulky) as folder:
    if fits:
        merge_adapter(run.model.path, strong, f"{folder}/ours", "dequantized", **options | {"dtype": run.machine.dtype})
        ours = AutoModelForCausalLM.from_pretrained(f"{folder}/ours", dtype="auto").state_dict()
        theirs = into_dequantized(strong).state_dict()
        if on_gpu:
            print("moved:", sum((ours[key] != theirs[key].cpu()).sum().item() for key in theirs), "values")
        verdict(
            "helpers.merging and PEFT hold the same tensors", all(same(ours[key], theirs[key].cpu()) for key in theirs)
        )
    shard = stored[f"{layer}.weight"].file
    if shard.stat().st_size < 2e9:
        merge_shard(shard, strong, f"{folder}/one.safetensors")
        merge_adapter(run.model.path, strong, f"{folder}/original", "original", **options | {"dtype": None})
        one, theirs = load_file(f"{folder}/one.safetensors"), load_file(f"{folder}/original/{shard.name}")
        verdict(
            "your shard and helpers.merging's hold the same tensors", all(same(one[key], theirs[key]) for key in theirs)
        )

# %% tags=["nbval-ignore-output"] reason="memory varies with the machine"
peaks = {"helpers.merging": host.bytes} | {f"PEFT, {way}": results["strong", way]["host_bytes"] for way in merging}
table(
    {name: peak / 1e6 for name, peak in peaks.items()}, "{:,.1f}", columns=("merge", "host memory, highest rise (MB)")
)

# %% [markdown]
# What is small in memory is not fast. `helpers.merging` works on the CPU, also where a GPU is, and to merge into the dequantized weights it
# quantizes and dequantizes each of them there. bitsandbytes was made fast on GPUs. Time both ways on one matrix, the shortest of three
# turns, and see what that means for the 7 billion weights of a large model.

# %%
piece = torch.randn(2048, 2048)


def seconds_a_weight(work):
    "The shortest of three turns, for each weight of the piece."
    turns = []
    for _ in range(3):
        begun = time.perf_counter()
        work(piece)
        turns.append(time.perf_counter() - begun)
    return min(turns) / piece.numel()


unpack = seconds_a_weight(lambda weight: F.dequantize_4bit(*quantize(weight)))
copy = seconds_a_weight(lambda weight: weight.half())

# %% tags=["nbval-ignore-output"] reason="seconds vary"
seconds = {"rounded to 16 bits": copy, "quantized and dequantized first": unpack}
rows = {name: (1e9 * one, 7e9 * one) for name, one in seconds.items()}
table(rows, "{:,.0f}", one_ns="{:.2f}", columns=("each weight", "one (ns)", "7 billion of them (s)"))

# %%
verdict("on a CPU, quantizing and dequantizing takes more than five times as long as rounding", unpack > 5 * copy)

# %% [markdown]
# So a merge into the dequantized base waits for the quantization, and the last column says how long for a large model. One into the
# original base has no such wait, only the product of $B$ and $A$ and the disk. It is paid once.
#
# With a model this small the figures of memory are mostly noise: compare both adapters in section 4. PEFT's ways hold the model that they
# make, `helpers.merging` holds rows, so with a large model there is a gap. The course's tests
# (`tests/merging/test_merge.py`) hold `helpers.merging` below 1.5 GB above bare Python with the tensors of a 7B model. From a shell it is
# one command, with `--base-weights dequantized` for the fourth way:
#
#     python -m helpers merge BASE ADAPTER OUT
#
# ## 7 After the merge
#
# What is in the folder? An ordinary model: weights, config, tokenizer.

# %% tags=["nbval-ignore-output"] reason="the size of the tokenizer's file depends on what training set last"
for file in sorted(merged_folder.iterdir()):
    print(f"{file.name:<28}{file.stat().st_size:>13,} bytes")

# %%
weight_bytes = sum(file.stat().st_size for file in merged_folder.glob("*.safetensors"))
verdict("the weights take two bytes each, and a short header", 0 <= weight_bytes - done["bytes"] < 200_000)

# %% [markdown]
# Does it need PEFT or bitsandbytes? Ask a new Python in which neither can be imported. It loads the folder and answers the same prompts, and
# we compare its answers with those of the adapter beside its base.

# %%
alone = """
import json, sys
sys.modules["peft"] = sys.modules["bitsandbytes"] = None  # importing either now fails
from transformers import AutoModelForCausalLM, AutoTokenizer

asked = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=asked["dtype"], device_map=asked["device_map"])
tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
for prompt in asked["prompts"]:
    ids = tokenizer(prompt, return_tensors="pt").to(model.device)
    tokens = model.generate(**ids, max_new_tokens=asked["new"], do_sample=False, pad_token_id=tokenizer.pad_token_id)
    print(json.dumps(tokenizer.decode(tokens[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip()))
"""

# %%
import subprocess
import sys

if fits:
    asked = {"folder": str(merged_folder), "dtype": run.machine.dtype, "device_map": run.machine.device_map}
    asked |= {"prompts": prompts, "new": settings.max_new_tokens}
    command = [sys.executable, "-c", alone]
    child = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in child.stdout.splitlines()]
    trained_answers = answer(keep(strong).eval(), tokenizer, prompts, settings.max_new_tokens)
    alike = sum(a == b for a, b in zip(answers, trained_answers, strict=True))
    if usual:
        verdict("without PEFT and bitsandbytes it gives the trained model's answers", alike == len(prompts))
    else:
        print(f"{alike} of {len(prompts)} answers are the trained model's")

# %% [markdown]
# ### In 4 bits again?
#
# A merged model is often quantized once more, to serve it in less memory. Merge both adapters into both kinds of 16-bit weights, and load
# what comes out in 4 bits. What do you expect?

# %%
import shutil

again = {}
room = shutil.disk_usage(run.bulky).free > 1.1 * done["bytes"]
for name, base_weights in [(n, w) for n in adapters for w in ("original", "dequantized") if room]:
    with tempfile.TemporaryDirectory(dir=run.bulky) as folder:
        merge_adapter(run.model.path, adapters[name], f"{folder}/merged", base_weights, **options)
        merged = Model(f"{folder}/merged", "merged", "", 0)
        model = load_4bit(merged, run.machine, settings.quant_type, settings.double_quant)[0]
        score = evaluate(model, tokenizer, heldout, settings.max_new_tokens)
        again[name, base_weights] = *survives(model, adapters[name]), score
print(
    f"{len(again)} merged models quantized again"
    if room
    else f"left out: {done['bytes'] / 1e9:.1f} GB more on the disk"
)

# %% tags=["nbval-ignore-output"] reason="losses vary with the machine"
before_it = {name: results[name, "keep the adapter"]["score"].loss for name in adapters}
rows = {
    key: (kept, score.exact_match, error, score.loss, before_it[key[0]]) for key, (kept, error, score) in again.items()
}
headings = ("adapter", "merged into", "kept", "exact match in 4 bits", "error", "loss in 4 bits", "loss before")
table(rows, "{:.3f}", kept="{:.0%}", exact_match_in_4_bits="{:.0%}", error="{:.2g}", columns=headings)

# %% [markdown]
# The dequantized merge, so faithful in 16 bits, loses a small update: its weights stand just beside their old levels and fall back onto
# them. The merge into the original base keeps it. There the weights lie anywhere between two levels. A small update carries some of them over the
# middle between two, in proportion to its size: single weights are as rough as ever, and their sum holds the update.

# %%
if usual:
    kept = {key: values[0] for key, values in again.items()}
    verdict(
        "in 4 bits again, the dequantized merge keeps less than a fifth of the weak update",
        kept["weak", "dequantized"] < 0.2,
    )
    verdict("the merge into the original base keeps more than nine tenths of it", kept["weak", "original"] > 0.9)
    losses = {key: values[2].loss for key, values in again.items()}
    verdict("and its loss is lower", losses["weak", "original"] < losses["weak", "dequantized"])

# %% [markdown]
# ### Which one, then?
#
# - **You serve with transformers, PEFT and bitsandbytes:** keep the adapter beside its 4-bit base. It is small, it is the model that you
#   measured, and several adapters share one base.
# - **You want one 16-bit model that does what you measured:** dequantize, then merge; save in float16 if the update is small.
# - **You will quantize the merged model to 4 bits:** merge into the original base. A large update (section 5) survives either way: compare.
# - **Into the 4-bit base:** only after measuring how much is kept. A small update is lost without a word.
#
# Its limits: these are numbers of one small model, two adapters, one kind of 4 bits. In 16 bits, original or dequantized hardly mattered here;
# for others it did: [a pull request](https://github.com/unslothai/unsloth-zoo/pull/810) shows a model that the original base ruins, and
# says that for most models that base is the better one. Other 4-bit formats have other levels: with them, measure. PEFT's users met the loss in
# [peft#1043](https://github.com/huggingface/peft/issues/1043) and [transformers#31293](https://github.com/huggingface/transformers/issues/31293).
#
# ### What servers want
#
# None of them is installed here; their documentation says:
#
# | server | takes | 4 bits |
# |---|---|---|
# | vLLM | [this folder](https://docs.vllm.ai/en/latest/design/huggingface_integration/), or base and [adapter](https://docs.vllm.ai/en/latest/features/lora/) | quantizes [while loading](https://docs.vllm.ai/en/latest/features/quantization/bnb/), with bitsandbytes |
# | llama.cpp | a [GGUF file](https://github.com/ggml-org/llama.cpp/blob/master/docs/models.md), which `convert_hf_to_gguf.py` makes from this folder | [`llama-quantize`](https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md) makes it from a 16-bit GGUF |
# | Ollama | a [Modelfile](https://docs.ollama.com/import) whose `FROM` names this folder or a GGUF file | quantize with llama.cpp first |
#
# Each knows a list of architectures and tokenizers. The bundled model's vocabulary is its own, so do not expect llama.cpp to know it.
#
# ## 8 Publish it
#
# A model without its numbers is of little use to others. Score the folder as it will be read, and record all that the model card
# needs; then `helpers.models.model_card` writes the card from the records, and from nothing else.

# %%
trained = results["strong", "keep the adapter"]
final, final_error = (again["strong", "dequantized"][2], None) if again else (None, None)
if fits:
    merged = AutoModelForCausalLM.from_pretrained(
        merged_folder, dtype=run.machine.torch_dtype, device_map=run.machine.device_map
    ).eval()
    final = evaluate(merged, tokenizer, heldout, settings.max_new_tokens)
    final_error = ((logits_of(merged) - trained["logits"]).norm() / (trained["logits"] - base_logits).norm()).item()
    others = min(results["strong", way]["logit error"] for way in merging[:2])
    if usual and run.machine.dtype == "float32":
        verdict("the file's 16 bits add an error below a tenth of the other merges'", 10 * final_error < others)

# %%
import dataclasses

scores = {"base": before, "trained": trained["score"], "merged": final}
licence_known = run.model.bundled or run.model.download_bytes > 0  # of a preset; nobody told us that of other models
record(
    measured={name: dataclasses.asdict(score) for name, score in scores.items() if score}, merged_read_in_4_bits=not fits,
    adapter={name: config[name] for name in ("r", "lora_alpha", "target_modules")}, adapter_made_now=made_now,
    trained_in_lesson_03=strong == run.adapter and not made_now, base_weights="dequantized", dtype=sixteen_bits,
    licence=run.model.licence, licence_known=licence_known, merged_bytes=done["bytes"], update_size=size,
    merged_logit_error=final_error,
    ways=[{"adapter": n, "way": way, "kept": f["kept"], "error": f["error"], "logit_error": f["logit error"],
           "loss": f["score"].loss, "exact_match": f["score"].exact_match, "bytes": f["bytes"],
           "host_bytes": f["host_bytes"], "seconds": f["seconds"]} for (n, way), f in results.items()],
    in_4_bits_again=[{"adapter": n, "merged_into": w, "kept": kept, "error": error, "loss": score.loss}
                     for (n, w), (kept, error, score) in again.items()],
    kept_of_1_percent=trials[1][0]["4-bit"], kept_of_10_percent=trials[10][0]["4-bit"],
)  # fmt: skip

# %% tags=["nbval-ignore-output"] reason="the card holds this run's numbers"
card = model_card(run.folder)
card.save(merged_folder / "README.md")
print(card.content)

# %% [markdown]
# Compare it with the table of section 4 and with lesson 03's report: nothing in it was typed. What it cannot know, you add by hand: what the model
# is for, and what it should not be used for. The head between the dashes is what the hub reads
# ([model cards](https://huggingface.co/docs/hub/model-cards)).

# %%
facts = (run.model.name, run.data_name, run.model.licence if licence_known else "licence: not known")
verdict("the card names base, data and licence", all(fact in card.content for fact in facts))
places = (run.folder, strong, find_base(run.model.path))
verdict("and no folder of this machine", not any(str(place) in card.content for place in places))

# %% [markdown]
# The lesson ends before the upload, since that needs an account and is seen by others. When you want it, run this in a cell of your own:
#
# ```python
# from huggingface_hub import HfApi
#
# hub = HfApi()
# hub.create_repo("you/your-model", private=True, exist_ok=True)
# hub.upload_folder(repo_id="you/your-model", folder_path=merged_folder)
# ```
#
# It uploads the folder as it stands, card and tokenizer included. A loaded model can do it as well, with `model.push_to_hub("you/your-model",
# private=True)` and `tokenizer.push_to_hub(...)`; transformers then writes the files anew, with a bare card of its own where the repository has none.
#
# No token stands in that code. The library looks for one itself: in the environment variable `HF_TOKEN`, in the file that `hf auth login` writes, in
# Colab's secrets (the key symbol at the left, name `HF_TOKEN`). Take a token that may write to this one repository. Never put it into a cell,
# print it, or pass it as a parameter: a notebook keeps all three, and papermill writes parameters into its output. Before you publish, read
# the licence of the base and that of the data. Both can forbid it.
#
# ## Exercises
#
# **1.** Write `merge(W, A, B, rank, alpha)`, with `W` in 16 bits and `A` and `B` in 32. It returns the merged weights in `W`'s type, with the
# bits that PEFT gives.

# %%
merge = ...
check("05.1", merge)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def merge(W, A, B, rank, alpha):
#     return (W.float() + (B @ A) * (alpha / rank)).to(W.dtype)
#
# check("05.1", merge)
# ```
# </details>
#
# **2.** Write `kept(change, update)`: the share of an update that is in a change, as section 4 defines it, for two tensors of one shape.

# %%
kept = ...
check("05.2", kept)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def kept(change, update):
#     return (change * update).sum() / (update * update).sum()
#
# check("05.2", kept)
# ```
# Not the ratio of the norms: noise makes that larger and is no part of the update.
# </details>
#
# **3.** Mistral-7B has 7,241,732,096 parameters. How many bytes of weights does a merged model in float16 have on disk?

# %%
bytes_on_disk = ...
check("05.3", bytes_on_disk)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# bytes_on_disk = 2 * 7_241_732_096
# check("05.3", bytes_on_disk)
# ```
# </details>
#
# **4.** You trained with QLoRA and want one 16-bit model as close as possible to the one you trained. Which base do you merge into: `"4-bit"`,
# `"original"` or `"dequantized"`?

# %%
merge_into = ...
check("05.4", merge_into)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# merge_into = "dequantized"
# check("05.4", merge_into)
# ```
# </details>
#
# **5.** Another one was trained for a few steps only; its update is 2% of the weights. It will be merged, and then quantized to 4 bits for
# the server. Which base now?

# %%
merge_small_into = ...
check("05.5", merge_small_into)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# merge_small_into = "original"
# check("05.5", merge_small_into)
# ```
# </details>
#
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
ends = {(name, way): (f["kept"], f["logit error"], f["score"]) for (name, way), f in results.items()}
ends |= {(name, f"{into}, in 4 bits again"): (kept, None, score) for (name, into), (kept, _, score) in again.items()}
headings = ("adapter", "way", "kept", "logit error", "held-out rows")
table(ends, kept="{:.0%}", logit_error="{:.2g}", columns=headings)

# %% [markdown]
# Merging is one line; which weights you merge into decides what you get, and only a measurement tells.
#
# Next: [06 Troubleshooting](06_troubleshooting.ipynb) breaks a run in the common ways, and mends it.
