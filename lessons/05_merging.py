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
# give the same model. You merge each way, measure which one is closest to the model you trained, and save that one.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** the adapter of lesson 03; without one, this lesson
# trains one first.

# %% tags=["parameters"]
model_id = "auto"
dataset_id = "auto"
adapter_dir = "auto"  # what lesson 03 left
seed = 0
quant_type = "nf4"
double_quant = True
max_new_tokens = 16
eval_rows = 128
output_dir = "auto"

# %%
from helpers.results import begin, record, table, verdict

run = begin(
    "05_merging", with_data=True,
    model_id=model_id, dataset_id=dataset_id, adapter_dir=adapter_dir, seed=seed, quant_type=quant_type,
    double_quant=double_quant, max_new_tokens=max_new_tokens, eval_rows=eval_rows, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %%
from helpers.quick import adapter_for, load_4bit

adapter, made_now = adapter_for(run)
verdict("there is an adapter for this base model", (adapter / "adapter_model.safetensors").is_file())

# %% [markdown]
# ## 1 One layer, by hand
#
# LoRA computes $W x + \frac{\alpha}{r} B (A x)$. That equals $(W + \frac{\alpha}{r} B A)\, x$, so adding the product to the
# weights once does away with the branch. Take a layer in float32 and look.

# %%
import json

import torch
from safetensors.torch import load_file

torch.manual_seed(settings.seed)
config = json.loads((adapter / "adapter_config.json").read_text())
tensors = load_file(adapter / "adapter_model.safetensors")
name = next(n for n in tensors if "lora_A" in n)
A, B = tensors[name].float(), tensors[name.replace("lora_A", "lora_B")].float()
scale = config["lora_alpha"] / config["r"]
print(name)
print("A", tuple(A.shape), " B", tuple(B.shape), " scale", scale)

# %%
W = torch.randn(B.shape[0], A.shape[1]) / A.shape[1] ** 0.5
x = torch.randn(3, A.shape[1])
branch = x @ W.T + scale * (x @ A.T) @ B.T
folded = x @ (W + scale * B @ A).T
verdict("the branch and the folded weights give the same output, to rounding", torch.allclose(branch, folded, atol=1e-4))

# %% [markdown]
# ## 2 The model you trained
#
# The adapter was trained on 4-bit weights: it learned to correct *those*. So the yardstick is the 4-bit base with the adapter beside
# it. Its logits (its scores for each possible next token) on held-out prompts are kept, and each merged model is compared with them.

# %%
from peft import PeftModel

from helpers.data import alpaca_prompt, exact_match

heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
prompts = [alpaca_prompt(r["instruction"], r["input"]) for r in heldout.select(range(16))]


def logits_of(model):
    with torch.no_grad():
        return torch.cat([
            model(**tokenizer(p, return_tensors="pt").to(model.device)).logits[0, -1:].float().cpu() for p in prompts
        ])  # fmt: skip


def load_base():
    return load_4bit(run.model, run.machine, settings.quant_type, settings.double_quant)


base, tokenizer = load_base()
base_logits = logits_of(base)
trained = PeftModel.from_pretrained(base, adapter).eval()
trained_logits = logits_of(trained)
update = (trained_logits - base_logits).norm()

# %% [markdown]
# `error` below is the distance of a model's logits from the trained model's, as a share of how far the training moved them. 0 is the
# trained model itself; the untuned base is at 1.

# %%
def error_of(model):
    return ((logits_of(model) - trained_logits).norm() / update).item()


results = {"adapter beside the 4-bit base": (error_of(trained), exact_match(trained, tokenizer, heldout, settings.max_new_tokens))}
verdict("the trained model is at distance 0 from itself", results["adapter beside the 4-bit base"][0] == 0)

# %% [markdown]
# ## 3 Into the 4-bit weights
#
# `merge_and_unload()` on a 4-bit base dequantizes each layer, adds the product and quantizes the sum again. Every weight stood exactly on one
# of its 16 levels. It moves to another only if the update is larger than about half the gap between them.

# %%
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PEFT warns of rounding here, which is what we are about to see
    merged = trained.merge_and_unload()
results["merged into the 4-bit base"] = error_of(merged), exact_match(merged, tokenizer, heldout, settings.max_new_tokens)
del base, trained, merged

# %% [markdown]
# ## 4 Into the original 16-bit weights
#
# A common way: load the base as it was before quantization, and merge there. Those weights are closer to the pre-trained ones than the
# 4-bit weights are. But they are not the weights that the adapter saw.

# %%
from transformers import AutoModelForCausalLM


def load_original():
    return AutoModelForCausalLM.from_pretrained(
        run.model.path, dtype=run.machine.torch_dtype, device_map=run.machine.device_map
    )


merged = PeftModel.from_pretrained(load_original(), adapter).merge_and_unload().eval()
results["merged into the original base"] = error_of(merged), exact_match(merged, tokenizer, heldout, settings.max_new_tokens)
del merged

# %% [markdown]
# ## 5 Into the dequantized weights
#
# `dequantize()` turns the 4-bit weights back into ordinary ones, with their rounding kept. These are the numbers that the
# adapter was trained on, in a form that can take any update. Then merge.

# %%
dequantized = load_base()[0].dequantize()
dequantized.to(run.machine.torch_dtype)
faithful = PeftModel.from_pretrained(dequantized, adapter).merge_and_unload().eval()
results["merged into the dequantized base"] = error_of(faithful), exact_match(faithful, tokenizer, heldout, settings.max_new_tokens)

# %% tags=["nbval-ignore-output"] reason="errors vary in their last digits with the processor"
table([{"way": way, "error": f"{e:.2g}", "exact match": f"{m:.1%}"} for way, (e, m) in results.items()])

# %%
from helpers import plots

ways = [way for way in results if way.startswith("merged")]
figure = plots.bars(
    [way.removeprefix("merged ") for way in ways], [results[way][0] for way in ways],
    "The merge into dequantized weights is by far the closest to what was trained", "logit error, as a share of what training changed",
    numbers="{:.2g}", colours=[plots.RED, plots.ORANGE, plots.GREEN],
)  # fmt: skip
plots.show(figure, alt="Logit error of three ways to merge: into 4-bit weights, into the original base, into the dequantized base")

# %%
errors = {way: results[way][0] for way in ways}
verdict("merging into dequantized weights has the smallest error", min(errors, key=errors.get) == ways[2])
verdict("it is at least ten times smaller than the others", 10 * errors[ways[2]] < min(errors[ways[0]], errors[ways[1]]))

# %% [markdown]
# On exact match they hardly differ: this adapter changed the model a lot. How large is its update beside the weights? And what
# if an update is small?
#
# ## 6 A small update is what a 4-bit merge erases

# %% tags=["nbval-ignore-output"] reason="the size of a trained update varies with the processor"
shares = []
for name, weight in load_original().state_dict().items():
    key = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
    if key in tensors:
        product = scale * tensors[key.replace("lora_A", "lora_B")].float() @ tensors[key].float()
        shares.append((product.norm() / weight.float().cpu().norm()).item())
print(f"your adapter's update: {sum(shares) / len(shares):.0%} of its matrix on average, {min(shares):.0%} to {max(shares):.0%}")

# %% [markdown]
# A shorter training or a smaller learning rate makes a smaller update. Take one matrix, quantized, and an update of 1, 3, 10 and 30% of its
# size (its norm). Merge into 4 bits, dequantize. How much of the update is left?

# %%
import bitsandbytes.functional as F

W = torch.randn(512, 512) / 512**0.5
update_direction = torch.randn(512, 16) @ torch.randn(16, 512)


def requantize(w):
    return F.dequantize_4bit(*F.quantize_4bit(w, quant_type=settings.quant_type, compress_statistics=settings.double_quant))


seen_in_training = requantize(W)
kept = {}
for percent in (1, 3, 10, 30):
    step = update_direction * (percent / 100 * seen_in_training.norm() / update_direction.norm())
    moved = requantize(seen_in_training + step) - seen_in_training
    kept[percent] = ((moved * step).sum() / (step * step).sum()).item()
    print(f"update of {percent}%: {kept[percent]:.0%} of it is left after a 4-bit merge")
verdict("of an update of 1%, less than a tenth survives", kept[1] < 0.1)

# %% [markdown]
# ## 7 Save, and load with nothing but transformers
#
# The faithful merge is an ordinary model of ordinary layers. It is written in 16 bits: that rounds once more, and how much is measured.

# %%
from helpers.results import replace_folder

sixteen_bits = torch.float16 if run.machine.device == "cpu" else run.machine.torch_dtype
with replace_folder(run.folder / "merged") as folder:
    faithful.to(sixteen_bits).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
for file in sorted((run.folder / "merged").iterdir()):
    print(f"{file.name:<28}{file.stat().st_size / 1e6:6.1f} MB")

# %%
reloaded = AutoModelForCausalLM.from_pretrained(
    run.folder / "merged", dtype=run.machine.torch_dtype, device_map=run.machine.device_map
).eval()
match_reloaded = exact_match(reloaded, tokenizer, heldout, settings.max_new_tokens)
match_trained = results["adapter beside the 4-bit base"][1]
error_saved = error_of(reloaded)
verdict("rounding to 16 bits adds an error below a tenth of the other merges'", 10 * error_saved < min(errors[ways[0]], errors[ways[1]]))
verdict("the reloaded model holds no adapter and no 4-bit layer", not any("lora" in n or "absmax" in n for n in reloaded.state_dict()))
verdict("it answers as the trained model does, within 2 rows in 100", abs(match_reloaded - match_trained) <= 0.02)

# %%
merged_bytes = sum(f.stat().st_size for f in (run.folder / "merged").glob("*.safetensors"))
record(
    error_4bit=errors[ways[0]], error_original=errors[ways[1]], error_dequantized=errors[ways[2]],
    exact_match_trained=match_trained, exact_match_merged=match_reloaded, merged_bytes=merged_bytes,
    error_saved=error_saved, kept_of_1_percent=kept[1], kept_of_10_percent=kept[10], adapter_made_now=made_now,
)  # fmt: skip

# %% [markdown]
# ## Exercises
#
# **1.** An adapter has rank 16 and `lora_alpha` 32. By what is the product `B @ A` multiplied when it is merged?

# %%
from helpers.checks import check

multiplied_by = ...
check("05.1", multiplied_by)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# multiplied_by = 32 / 16
# check("05.1", multiplied_by)
# ```
# </details>
#
# **2.** Mistral-7B has 7,241,732,096 parameters. How many bytes of weights does a merged model in float16 have on disk?

# %%
bytes_on_disk = ...
check("05.2", bytes_on_disk)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# bytes_on_disk = 2 * 7_241_732_096
# check("05.2", bytes_on_disk)
# ```
# </details>
#
# **3.** You trained with QLoRA and want one 16-bit model as close as possible to the one you trained. Which base do you merge into: `"4-bit"`,
# `"original"` or `"dequantized"`?

# %%
merge_into = ...
check("05.3", merge_into)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# merge_into = "dequantized"
# check("05.3", merge_into)
# ```
# </details>
#
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
table([
    {"question": f"error, {way}", "this run": f"{e:.2g}, exact match {m:.1%}"} for way, (e, m) in results.items()
] + [
    {"question": "left of an update of 1% after a 4-bit merge", "this run": f"{kept[1]:.0%}"},
    {"question": "error of the saved 16-bit model", "this run": f"{error_saved:.2g}"},
    {"question": "the merged model on disk", "this run": f"{merged_bytes / 1e6:,.1f} MB"},
])  # fmt: skip

# %% [markdown]
# What follows: while you try things out, keep the adapter beside its 4-bit base; it is small, and it is the model you trained. To ship one
# model, dequantize, then merge. Merge into the original base only if you measured that its answers are as good for your task.
#
# This is the last lesson. Run [lesson 03](03_t4_training.ipynb) with other parameters; the README shows how.
