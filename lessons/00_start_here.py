# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 Start here
#
# QLoRA fine-tunes a large language model on a small GPU: the model is stored in 4 bits a weight, and only a thin adapter is
# trained. This course teaches it by doing. This first notebook looks at your machine, checks that everything works, and shows how large
# a model's weights are beside the memory of your GPU, or of a T4 if you have none.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** nothing but the course, installed once with a network. No
# GPU? Everything runs, on a small model that comes with the course and really learns.

# %% tags=["parameters"]
model_id = "auto"  # the bundled model on a CPU, a small one from the hub on a GPU; or a preset, a folder, a hub id
seed = 0
output_dir = "auto"

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin("00_start_here", model_id=model_id, seed=seed, output_dir=output_dir)

# %% [markdown]
# ## How a lesson works
#
# Run the cells from top to bottom. The first code cell is the same in every lesson: it finds the course. The next two set the parameters,
# check them, and show what this run uses. Some cells print `OK:` and a claim. If the claim is untrue, the cell stops with an error.
#
# ## 1 Your machine

# %% tags=["nbval-ignore-output"] reason="it is about the machine at hand"
machine = run.machine
facts = {
    "computes on": machine.name,
    "GPU memory": f"{machine.gpu_bytes / 2**30:.2f} GiB" if machine.gpu_bytes else "no GPU",
    "memory": f"{machine.ram_bytes / 2**30:.1f} GiB",
    "cores": machine.cores,
    "bfloat16 in hardware": "yes" if machine.native_bfloat16 else "no",
    "the course computes in": machine.dtype,
}
table(facts, columns=("", "here"))

# %% [markdown]
# The last line is a number format. float32 takes 4 bytes a number, float16 and bfloat16 take 2. A T4, of NVIDIA's Turing generation,
# multiplies float16 fast and has no bfloat16 units; GPUs since the Ampere generation have both. Many recipes ask for bfloat16 on a T4:
# that is the first thing that goes wrong. `helpers/machine/hardware.py` decides it in one place, for all lessons.

# %%
right_dtype = "float32" if machine.device == "cpu" else "bfloat16" if machine.native_bfloat16 else "float16"
verdict(
    "the dtype follows the machine: float32 on a CPU, float16 before Ampere, bfloat16 since",
    machine.dtype == right_dtype,
)

# %% [markdown]
# ## 2 The doctor
#
# QLoRA here stands on PyTorch and six libraries: transformers loads models, bitsandbytes stores them in 4 bits, peft adds adapters,
# trl trains, accelerate puts things on devices, datasets reads the rows. Their names for things change between releases, disks fill up,
# drivers grow old. So the course has a doctor: a list of checks. A check is a function. It looks at one thing and returns three:
# a status, what it saw, and the cure. Here is one.

# %% tags=["nbval-ignore-output"] reason="free space varies"
from helpers import doctor

print(doctor.disk.__doc__)
status, what, cure = doctor.disk()
print(f"{status}: {what}", cure)

# %% [markdown]
# FAIL: a lesson will stop. WARN: the lessons run, but not as you may expect; no network, for example, means the bundled model. OK:
# nothing to do. Here are all of them. What a check says holds no token, no host's name and no path, so you can show it to others.

# %% tags=["nbval-ignore-output"] reason="it is about the machine at hand"
findings = doctor.examine(*doctor.INSTALLED, *doctor.MACHINE, *doctor.NETWORK, *doctor.TORCH)
table([(f.check, f.status, f.what, f.cure) for f in findings], columns=("check", "status", "what", "cure"))

# %%
wrong_versions = [f for f in findings if f.check == "packages" and f.status != doctor.OK]
failed = [f"{f.check}: {f.what}. Cure: {f.cure}" for f in findings if f.status == doctor.FAIL]
print(*failed, sep="\n", end="\n" if failed else "")
verdict("every package is here, in a version that the course was written for", not wrong_versions)
verdict("no check fails: the lessons can run here", not failed)

# %% [markdown]
# Outside a notebook the same checks are `python -m helpers doctor`. On a GPU it also trains a small model for a moment, and prints a page
# that compares the memory this took with what lesson 02's formulas predict. If you have a T4, that page is welcome as an issue.
#
# ## 3 Does 4-bit really work here?
#
# The one thing that must work is a product with a 4-bit matrix. The doctor's last check tried one; here is what it did. bitsandbytes
# packs a random matrix into 4 bits and multiplies four vectors by it. The result is close to the exact product, and not equal: that
# difference is the price, and lesson 01 explains it.

# %%
import bitsandbytes as bnb
import torch

torch.manual_seed(seed)
exact = torch.nn.Linear(256, 256, bias=False)
packed = bnb.nn.Linear4bit(256, 256, bias=False, compute_dtype=machine.torch_dtype, quant_type="nf4")
packed.load_state_dict(exact.state_dict())
packed = packed.to(machine.device)  # moving it quantizes it
x = torch.randn(4, 256)

# %%
y = packed(x.to(machine.device, machine.torch_dtype)).float().cpu()
error = ((y - exact(x)).norm() / exact(x).norm()).item()
bytes_a_weight = packed.weight.numel() * packed.weight.element_size() / exact.weight.numel()
print(
    f"{bytes_a_weight} bytes a weight for the codes, where float32 takes {exact.weight.element_size()}; off by {error:.0%}"
)
verdict("the 4-bit product is within 15% of the exact one", error < 0.15)
verdict("and it is not exact", error > 0.01)

# %% [markdown]
# ## 4 A model that answers
#
# The model of this run, in 4 bits. The bundled one is tiny and knows a few thousand simple facts: capitals, elements,
# plurals. It read them as quiz pages, so after its answer it goes on with a question of its own. Making it answer and stop is
# what lesson 03 is for.

# %%
from helpers.evaluation import answer
from helpers.quick import load_4bit

model, tokenizer = load_4bit(run.model, machine)
question = "What is the capital of France?\nAnswer:\n"
said = answer(model, tokenizer, [question], max_new_tokens=6)[0]
if run.model.bundled:
    verdict("asked for the capital of France, the model says Paris", "Paris" in said)

# %% tags=["nbval-ignore-output"] reason="what follows the answer varies with the processor"
print(question + said)

# %% [markdown]
# ## 5 What will fit?
#
# A weight takes two bytes in float16 and about half a byte in 4 bits. The embeddings turn tokens into vectors; the output head turns
# vectors back into tokens. Both grow with the vocabulary, and both stay in 16 bits, which is why a model with a large vocabulary shrinks
# less. Here are the course's presets, from their published shapes, in GiB: 2 to the power of 30 bytes, somewhat more than the 10 to the
# power of 9 of a GB. The dashed line in the figure is the memory of your GPU, or of a T4 if you have none.

# %%
from helpers.models import PRESETS


def bytes_in_16_bits(shape):
    return 2 * parameters_of(shape)


def parameters_of(shape):
    h, i, kv = shape["hidden_size"], shape["intermediate_size"], shape["num_key_value_heads"] * shape["head_dim"]
    block = 2 * h * h + 2 * h * kv + 3 * h * i
    return shape["num_hidden_layers"] * block + embeddings_of(shape)


def embeddings_of(shape):
    return shape["vocab_size"] * shape["hidden_size"] * (1 if shape["tie_word_embeddings"] else 2)


# %%
def bytes_in_4_bits(shape):
    bits_a_weight = 4 + 8 / 64 + 32 / (64 * 256)  # codes, 8-bit constants per 64, float32 constants per 256 of those
    blocks = parameters_of(shape) - embeddings_of(shape)
    return blocks * bits_a_weight / 8 + 2 * embeddings_of(shape)


shapes = {name: preset.shape for name, preset in PRESETS.items()}
largest = max(bytes_in_4_bits(s) for s in shapes.values())
sizes = {name: (parameters_of(s), bytes_in_16_bits(s), bytes_in_4_bits(s)) for name, s in shapes.items()}
rows = [(name, n / 1e9, wide / 2**30, narrow / 2**30, narrow / wide) for name, (n, wide, narrow) in sizes.items()]
headings = ("preset", "billion parameters", "16 bits (GiB)", "4 bits (GiB)", "left in 4 bits")
table(rows, "{:.2f}", left_in_4_bits="{:.0%}", columns=headings)

# %%
from helpers import plots
from helpers.machine import T4_BYTES

figure = plots.stacked_bars(
    list(shapes),
    {
        "linear layers, 4 bits": [(bytes_in_4_bits(s) - 2 * embeddings_of(s)) / 2**30 for s in shapes.values()],
        "embeddings and head, 16 bits": [2 * embeddings_of(s) / 2**30 for s in shapes.values()],
        "the rest of the 16-bit size": [(bytes_in_16_bits(s) - bytes_in_4_bits(s)) / 2**30 for s in shapes.values()],
    },
    f"In 4 bits, the weights of each preset take at most {largest / T4_BYTES:.0%} of a T4", "GiB; the whole bar is the 16-bit model",
    line=(machine.gpu_bytes or T4_BYTES) / 2**30, line_label="your GPU" if machine.gpu_bytes else "a T4's memory",
    colours=(plots.COLOURS["blue"], plots.COLOURS["orange"], plots.COLOURS["grey"]),
)  # fmt: skip
plots.show(figure, alt="Weights of each preset in 4 bits, and what that saves, against the memory of a T4")

# %%
verdict("the weights of every preset in 4 bits fill less than half of a T4", largest < T4_BYTES / 2)
in_16_bits = {name: bytes_in_16_bits(s) for name, s in shapes.items()}
verdict("in 16 bits, Llama-3.1-8B does not fit a T4 at all", in_16_bits["llama-3.1-8b"] > T4_BYTES)
spare = (T4_BYTES - in_16_bits["qwen2.5-7b"]) / 2**30
print(f"Qwen2.5-7B would fit in 16 bits with {spare:.1f} GiB to spare: no room to train")

# %% [markdown]
# Weights are not all that a training run needs. Lesson 02 adds up the rest.

# %%
record(
    product_error=error, bytes_a_weight=bytes_a_weight, first_answer=said.split("\n")[0],
    doctor={f"{f.check}: {f.what}": f.status for f in findings},
    bytes_in_4_bits={name: bytes_in_4_bits(s) for name, s in shapes.items()},
)  # fmt: skip

# %% [markdown]
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once. The solution is folded away below.
#
# **1.** How many bytes do the weights of a model of 7 billion parameters take in float16?

# %%
float16_bytes = ...
check("00.1", float16_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# float16_bytes = 7e9 * 2
# check("00.1", float16_bytes)
# ```
# </details>
#
# **2.** And in 4 bits, counting 4 bits for each weight and nothing else?

# %%
four_bit_bytes = ...
check("00.2", four_bit_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# four_bit_bytes = 7e9 * 4 / 8
# check("00.2", four_bit_bytes)
# ```
# </details>
#
# **3.** A T4's compute capability is (7, 5). bfloat16 units came with (8, 0). Write the comparison that says whether a GPU of capability
# `c` has them, as a function.

# %%
has_bfloat16 = ...
check("00.3", has_bfloat16)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# has_bfloat16 = lambda c: c >= (8, 0)
# check("00.3", has_bfloat16)
# ```
# </details>
#
# **4.** Write a check's heart: a function of the bytes that are `free` and the bytes that are `needed`. It says `"FAIL"` if there is too
# little, `"WARN"` if there is enough but less than a tenth to spare, else `"OK"`.

# %%
status_of = ...
check("00.4", status_of)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def status_of(free, needed):
#     if free < needed:
#         return "FAIL"
#     return "WARN" if free < 1.1 * needed else "OK"
#
#
# check("00.4", status_of)
# ```
# </details>
#
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
found = ", ".join(f"{sum(f.status == s for f in findings)} {s}" for s in ("OK", "WARN", "FAIL"))
table({
    "what this machine computes in": machine.dtype,
    "what the doctor found": found,
    "a 4-bit product is off by": f"{error:.1%}",
    "the largest preset in 4 bits": f"{largest / 2**30:.2f} GiB of a T4's {T4_BYTES / 2**30:.2f} GiB",
}, columns=("question", "this run"))  # fmt: skip

# %% [markdown]
# Next: [01 Quantization basics](01_quantization_basics.ipynb) builds the 4-bit numbers from nothing.
