# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 Memory math
#
# At the end of this lesson you can say, before you load anything, whether a training run will fit your GPU, and what to change if it does not.
#
# You will take one real run apart, piece by piece. You will write four short functions, meet a fifth term, and join them into a
# prediction of your own that comes within five per cent of `predict`, for models from half a billion weights up. Then you will meet `predict` itself, which comes within one per cent of the runs that were measured on an H200, 8-bit weights excepted, and
# `plan`, which turns it round and asks: what is the fastest way to train that still fits?
#
# | | |
# |---|---|
# | to read | 30 minutes |
# | exercises on the way | 50 minutes |
# | to run | {{cpu_time}} on two CPU cores; {{t4_time}} on a T4 |
# | you need | lesson 00, for the picture of [LoRA](../site/glossary.md#lora). Lesson 01 explains the 4-bit numbers, but you can do without it |

# %% tags=["parameters"]
model_id = "auto"  # a small model that is really loaded, to see tensors; the large ones are only computed with
seed = 0
rank = 16  # this and the two below: the run that section 8 varies and section 9 plans
batch_size = 4
max_length = 512
output_dir = "auto"

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "02_memory_math",
    model_id=model_id, seed=seed, rank=rank, batch_size=batch_size, max_length=max_length, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# ## One run
#
# Here is a run that was really made, on an H200, which is a GPU with more than enough memory. It trained [adapters](../site/glossary.md#adapter) of [rank](../site/glossary.md#rank) 8 on the four
# matrices (q, k, v, o) of each layer's attention, with four rows at once. A row is a piece of text, here of 512 tokens. The peak is the largest number of bytes that tensors held at any moment of the
# training. The weights were random numbers in the shape of Mistral-7B: memory depends on how many numbers there are, and not on which.

# %%
from helpers.records import measured_runs

measured = measured_runs("h200_earlier_rows").query("not upcast_non_quantized").iloc[0]  # see section 8
print(f"peak: {measured.peak_bytes / 1e9:.2f} GB, measured on an {measured.device}")
table(measured[["model", "quant_type", "rank", "batch_size", "seq_len", "optimizer"]].rename("the run"))

# %% [markdown]
# What were those bytes for? The GPU does not say. But a program can play the run through on paper, tensor by tensor, and note what each tensor is for. That is
# `predict(config, settings, gpu)`. Its answer has `.peak_allocated`, the total, which is the number on the right of the bar, and `.parts`, what each byte of it is for. The dashed line is what was measured.

# %% tags=["predicted"]
from helpers import plots
from helpers.memory import GPUS, RunSpec, fits, plan, predict, step_over_time

whole = predict(measured.config, measured.spec, "h200")
verdict("the peak was predicted within one per cent", abs(whole.peak_allocated / measured.peak_bytes - 1) < 0.01)
figure = plots.diagrams.run_parts({"at the peak": whole.parts}, "Most of it is weights that training never changes",
                                  {"measured on an H200": measured.peak_bytes})  # fmt: skip
plots.show(
    figure, alt="A stacked bar of the run's peak: two thirds are 4-bit weights, the orange part for training is thin"
)

# %% [markdown]
# A GB is 1,000,000,000 bytes in this lesson, everywhere. Drivers count differently: `nvidia-smi` shows MiB, which are 1,048,576 bytes, and a T4's 14.56 GiB are
# 15.63 GB. That is the last time you see a GiB here.
#
# The colours are those of the whole course. Blue is frozen, orange is trained or belongs to what is trained, and grey passes through. Before you read on, write down two guesses. You train with twice as many rows:
# which parts grow? You train adapters of four times the rank: which parts grow? Section 8 has the answer.
#
# ## 1 The frozen weights
#
# In 4 bits, here in the format [NF4](../site/glossary.md#nf4), two weights share a byte. Besides, each [block](../site/glossary.md#block) of 64 weights has a scale, its [absmax](../site/glossary.md#absmax). With
# [double quantization](../site/glossary.md#double-quantization) that scale is one byte, and 256 scales, which belong to 64 · 256 weights, share one number of 4 bytes. So $n$ weights take
#
# $$\frac{n}{2} + \frac{n}{64} + \frac{4\,n}{64 \cdot 256} \text{ bytes, which is } 4.127 \text{ bits per weight.}$$
#
# Is that what bitsandbytes stores? Load the small model in 4 bits, and let the next cell add up the real tensors of its quantized matrices.

# %%
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=run.machine.torch_dtype)  # fmt: skip
model = AutoModelForCausalLM.from_pretrained(
    run.model.path, quantization_config=four_bits, dtype=run.machine.torch_dtype, device_map=run.machine.device_map
)
for layer in model.modules():  # on some CPUs bitsandbytes 0.50 would reorder the weights
    layer.support_avx512bf16_for_cpu = False

# %% tags=["stored"]
import bitsandbytes as bnb

n = stored = 0
for layer in model.modules():
    if isinstance(layer, bnb.nn.Linear4bit):
        n += layer.in_features * layer.out_features
        scales = layer.weight.quant_state
        stored += layer.weight.nbytes + scales.absmax.nbytes + scales.state2.absmax.nbytes
print(f"{n:,} weights in {stored:,} bytes: {8 * stored / n:.3f} bits per weight")
verdict("the formula is what is stored, within one part in a thousand", abs(8 * stored / n - 4.127) < 0.004)

# %% [markdown]
# Each matrix also keeps some fixed tables, about a kilobyte, which matter in no large model.
#
# Not everything is quantized. The [embedding](../site/glossary.md#embedding) table is looked up and not multiplied, and the [head](../site/glossary.md#head), which scores the next
# token, is left alone because an error there goes straight into the answer. Both have one row per token of the vocabulary and stay in 16 bits. Small models use one table for both. How much is that in models of today?
# Here is what a T4 would hold of four models, predicted.

# %%
shapes = measured_runs().drop_duplicates("model").set_index("model")["config"]
rows = []
for name in ("Mistral-7B-v0.1", "Llama-3.1-8B", "Qwen2.5-7B", "Qwen2.5-1.5B"):
    parts = predict(shapes[name], {"rank": 8}, "t4").parts
    narrow, tables = parts["quantized weights"] + parts["quantization scales"], parts["embeddings and head"]
    rows.append((name, shapes[name]["vocab_size"], narrow / 1e9, tables / 1e9, tables / (tables + narrow)))
table(rows, "{:.2f}", share="{:.0%}", vocabulary="{:,}",
      columns=("model", "vocabulary", "in 4 bits (GB)", "in 16 bits (GB)", "share"))  # fmt: skip

# %% [markdown]
# That surprised me when I first saw it. With a large vocabulary, two fifths of the bytes of a "4-bit model" are not in 4 bits.
#
# **Exercise 1.** *Write*, 5 minutes, •. How many bytes do `n` weights take in NF4 with double quantization, when all blocks are full?


# %%
def weight_bytes(n):
    "Bytes of n weights in 4 bits, scales included."
    return ...


check("02.1", weight_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def weight_bytes(n):
#     return n * (1 / 2 + 1 / 64 + 4 / (64 * 256))
#
#
# check("02.1", weight_bytes)
# ```
# </details>
#
# ## 2 What is trained
#
# The adapter of a matrix with $i$ inputs and $o$ outputs has $r\,(i + o)$ numbers, where $r$ is the rank. Each of these needs four places: its value, its
# [gradient](../site/glossary.md#gradient), and the two averages of past gradients that the optimizer Adam keeps, its [states](../site/glossary.md#optimizer-state). In float32 a place takes 4 bytes. Is it
# 16 bytes per trained number? Train the small model for one step, and look at the tensors.

# %%
from peft import LoraConfig, get_peft_model

torch.manual_seed(settings.seed)
lora = LoraConfig(r=settings.rank, target_modules="all-linear", task_type="CAUSAL_LM")
tuned = get_peft_model(model, lora).train()
trained = [p for p in tuned.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)
ids = torch.randint(3, 1000, (2, 32), device=model.device)
tuned(input_ids=ids, labels=ids).loss.backward()
optimizer.step()

# %% tags=["sixteen"]
numbers = values = gradients = averages = 0
for p in trained:
    numbers, values, gradients = numbers + p.numel(), values + p.nbytes, gradients + p.grad.nbytes
    averages += optimizer.state[p]["exp_avg"].nbytes + optimizer.state[p]["exp_avg_sq"].nbytes
print(f"{numbers:,} numbers: values {values:,}, gradients {gradients:,}, averages {averages:,} bytes")
verdict("a trained number takes 16 bytes", values + gradients + averages == 16 * numbers)

# %% [markdown]
# Sixteen bytes is some thirty times what a frozen weight takes. LoRA can afford it because it trains so few numbers; training every weight cannot, as "Further down" shows.
# (`SFTTrainer` turns the adapters of a quantized model into bfloat16, which halves this. The course keeps them in float32, because a T4's float16 training needs it; `adapter_dtype` is the setting of `predict`.)
#
# **Exercise 2.** *Write*, 5 minutes, ••. `matrices` is a list of pairs, the inputs and the outputs of each matrix of one layer that gets an adapter. The model has `layers` such
# layers. How many bytes do values, gradients and averages take together, all in float32?


# %%
def lora_bytes(matrices, layers, r):
    "Bytes of all adapters of rank r, with their gradients and Adam's averages."
    return ...


check("02.2", lora_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def lora_bytes(matrices, layers, r):
#     numbers = layers * sum(r * (inputs + outputs) for inputs, outputs in matrices)
#     return numbers * 4 * (1 + 1 + 2)
#
#
# check("02.2", lora_bytes)
# ```
#
# For the run at the top that is 6,815,744 numbers and 0.11 GB. The bar shows less, because at the moment of the peak there are no gradients yet. Section 6 explains it.
# </details>
#
# ## 3 What is kept for the backward pass
#
# Training goes forward through the layers and then backward, to find the gradients. On the way back it needs the
# [activations](../site/glossary.md#activation) of the way there, so they are kept meanwhile. torch lets you watch: a hook is called for each tensor that is put aside.


# %%
def saved_for_backward(rows, tokens):
    "Bytes that torch keeps between forward and backward pass, without weights, which are there anyway."
    weights, kept = {p.untyped_storage().data_ptr() for p in tuned.parameters()}, {}

    def note(tensor):
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    ids = torch.randint(3, 1000, (rows, tokens), device=model.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tuned.base_model.model.model(input_ids=ids, use_cache=False)
    return sum(kept.values())


# %% [markdown]
# There is a way out, called [checkpointing](../site/glossary.md#checkpointing), or recomputing: keep the input of each layer and nothing else. When the backward pass reaches a layer, the layer is computed once more from its input. (This has
# nothing to do with checkpoints on a disk.) It costs time: the forward pass is done twice. With adapters, whose backward pass costs about as much as a forward pass, a step takes up to half longer. How much memory does it save? Guess a factor, then run the cell.

# %% tags=["recomputed"]
tuned.enable_input_require_grads()
tuned.activation_checkpointing_disable()  # for whoever runs this cell twice
everything = saved_for_backward(2, 256)
tuned.activation_checkpointing_enable()
inputs_only = saved_for_backward(2, 256)
print(f"2 rows of 256 tokens: {everything / 1e6:.1f} MB, and {inputs_only / 1e6:.1f} MB with recomputing")
verdict("with recomputing less than a tenth is kept", 10 * inputs_only < everything)

# %% [markdown]
# The input of a layer is a list of numbers per token, as long as the model is wide. This list runs through all layers and is called the
# [residual stream](../site/glossary.md#residual-stream). So with recomputing a model keeps, for each layer and each token, that many numbers. In training on a GPU they are float16 or bfloat16, 2 bytes each.
#
# **Exercise 3.** *Repair*, 5 minutes, •. With recomputing, each layer keeps its input in float16. This function should say how many bytes that is. It runs, and it is
# wrong. Repair it.


# %%
def kept_bytes(layers, rows, tokens, hidden):
    "Bytes of the inputs that all layers keep, for so many rows of so many tokens."
    return rows * tokens * hidden


check("02.3", kept_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# It forgot that every layer keeps its input, and that a number takes two bytes.
#
# ```python
# def kept_bytes(layers, rows, tokens, hidden):
#     return layers * rows * tokens * hidden * 2
#
#
# check("02.3", kept_bytes)
# ```
# </details>
#
# ## 4 The loss
#
# At the end of the forward pass the head gives each token a score for every entry of the vocabulary. These scores are the [logits](../site/glossary.md#logits). All of them at once make a
# large table, and the plain loss of transformers makes three float32 tables of the same size on the way: 2 + 3 · 4 = 14 bytes per score. TRL, since version 1.15, computes the loss in tiles instead: a tile has at most 4,096 tokens and 32,768
# entries of the vocabulary, and only one exists at a time. What does that change? The next cell predicts it for a T4 and four rows of 512 tokens.
#
# On a T4 attention needs a cure, `repeat_kv=True`, which lesson 03 explains and switches on. All sums for a T4 in this lesson assume it from here on. A plain script lacks it, and section 9 shows what that costs.

# %%
rows = []
for name in ("Mistral-7B-v0.1", "Llama-3.1-8B", "Qwen2.5-7B"):
    four_rows = {"rank": 8, "batch_size": 4, "repeat_kv": True}
    at_once = predict(shapes[name], four_rows | {"trl_loss": "full"}, "t4").peak_allocated
    in_tiles = predict(shapes[name], four_rows, "t4").peak_allocated
    rows.append((name, 14 * 4 * 512 * shapes[name]["vocab_size"] / 1e9, at_once / 1e9, in_tiles / 1e9))
table(rows, "{:.2f}",
      columns=("model", "logits with their copies (GB)", "peak, all at once (GB)", "peak, in tiles (GB)"))  # fmt: skip

# %% [markdown]
# The peaks differ by less than the first column: without the large table another moment is the highest, the one in which a layer is recomputed. In tiles the loss no longer makes the peak of these models. In a narrow model it still does, as exercise 5 will show.
#
# > **Trap: advice about memory has a date.** You may read that a large vocabulary makes training run out of memory, or that the batch must be one. **What you will see:** estimates that are gigabytes too high.
# > **Why:** they were made when the loss held all logits at once. **The cure:** ask which version of TRL a number is for.
#
# **Exercise 4.** *Write*, 5 minutes, ••. How many bytes does the largest tile take, in 16 bits, for so many tokens and so many entries of the vocabulary?


# %%
def loss_bytes(tokens, vocabulary):
    "Bytes of the largest tile of logits in 16 bits; a tile has at most 4,096 tokens and 32,768 entries."
    return ...


check("02.4", loss_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def loss_bytes(tokens, vocabulary):
#     return 2 * min(tokens, 4096) * min(vocabulary, 32_768)
#
#
# check("02.4", loss_bytes)
# ```
# </details>
#
# ## 5 Your own prediction
#
# You have four terms. One is left: the layer that is being computed. While it works, it holds for each token about twelve lists of the hidden size, which is the width of the residual stream, and six of
# the inner size, which is larger, all in 16 bits. (These two numbers were counted in the step that section 6 plays, and rounded.) It also needs one weight matrix at a time unpacked to 16 bits, so that it can multiply. With hidden size $h$ (`hidden_size`) and inner size $m$ (`intermediate_size`) that is
#
# $$\text{at work} = 2 \cdot \text{tokens} \cdot (12\,h + 6\,m) + 2\,h\,m \text{ bytes.}$$
#
# And not everything is there at once. The backward pass takes the layers from the last to the first. As it goes, the kept inputs are used up and freed, while gradients of the adapters appear. The sum moves evenly from one to the other, so it is largest at an end: the peak has either nearly all inputs or
# nearly all gradients. The loss is over before the first layer is recomputed. In one line:
#
# $$\text{peak} \approx \text{weights, with the 16-bit tables} + \text{adapters and averages} + \max(\text{inputs}, \text{gradients}) + \max(\text{at work}, \text{loss})$$
#
# That holds for one batch per step. With [gradient accumulation](../site/glossary.md#gradient-accumulation) a step adds up the gradients of several batches, and those of the earlier ones stay. Then it is inputs + gradients, in place of the larger of the two.
#
# **Exercise 5.** *Write*, 15 minutes, •••. Write your own prediction for adapters on all seven matrices of each layer, in float32. The check compares it with `predict` for runs of four models, and takes what is within five per cent. A fifth is SmolLM2-135M, which is so narrow that its peak lies in the loss. It is also so small that what you do not count, such as the room that cuBLAS keeps, weighs more, so ten per cent are allowed there. `weight_bytes`, `kept_bytes` and `loss_bytes` will help you; `lora_bytes` counts the gradients too, which here stand apart. `config` is what stands in a
# model's `config.json`. Here are the shapes of the seven matrices:


# %%
def seven_matrices(config):
    "The inputs and outputs of the seven matrices of one layer: q, k, v, o, gate, up, down."
    h, m = config["hidden_size"], config["intermediate_size"]
    kv = h * config["num_key_value_heads"] // config["num_attention_heads"]  # several query heads share a key head
    return [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]


print({key: shapes["Mistral-7B-v0.1"][key] for key in ("num_hidden_layers", "vocab_size", "tie_word_embeddings")})


# %%
def my_predict(config, tokens, r):
    "Bytes at the peak, for so many tokens at once and adapters of rank r on all seven matrices."
    return ...


check("02.5", my_predict)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_predict(config, tokens, r):
#     h, m, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
#     kv = h * config["num_key_value_heads"] // config["num_attention_heads"]
#     matrices = [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]
#     in_four_bits = layers * sum(i * o for i, o in matrices) * (1 / 2 + 1 / 64 + 4 / (64 * 256))
#     tables = 2 * config["vocab_size"] * h * (1 if config["tie_word_embeddings"] else 2)
#     numbers = layers * sum(r * (i + o) for i, o in matrices)
#     inputs, gradients = 2 * layers * tokens * h, 4 * numbers
#     at_work = 2 * tokens * (12 * h + 6 * m) + 2 * h * m
#     loss = 2 * min(tokens, 4096) * min(config["vocab_size"], 32_768)
#     return in_four_bits + tables + 12 * numbers + max(inputs, gradients) + max(at_work, loss)
#
#
# check("02.5", my_predict)
# ```
#
# `config["tie_word_embeddings"]` says whether embeddings and head share one table.
# </details>
#
# ## 6 All of it: `predict`
#
# `predict` needs a model's configuration and the settings of a run, and no GPU. It does not add up formulas. It plays two steps of training through (two, because the optimizer's averages come with the first), allocation by allocation, in a copy of the rules by which torch hands out memory. What
# is alive at the highest moment is the answer, and each part has a name:

# %%
parts = whole.parts | {"all, at the peak": whole.peak_allocated}
print(f"predicted for an H200; the peak comes in: {whole.moment}")
table([(name, size / 1e9) for name, size in parts.items()], "{:.4f}", columns=("part", "GB"))

# %% [markdown]
# Layers count from 0, so layer 31 is the last one, with which the backward pass begins. You know most of the parts. Two are new. The *cuBLAS workspaces* belong to the library that multiplies matrices on the GPU, and on an H200 they are much larger than on a T4. *Blocks larger than what
# they hold* are a loss by rounding: torch hands out memory in multiples of 512 bytes, and does not split what is left of a large block when it is less than a MB or so. "Further down" explains each part by its name.
#
# A peak is one moment. Here is the whole step. There is no time in it, only an order: each point is a tensor that comes or goes. The first cell is the run at the top. In the second, nothing is recomputed. How high will
# it climb? Write down a guess first.

# %%
stays = {"frozen": whole.after_load, "trained": whole.parts["adapters"] + whole.parts["optimizer states"]}
recomputed = step_over_time(measured.config, measured.spec, "h200")
figure = plots.diagrams.training_steps(
    {"each layer recomputed": recomputed}, **stays, title="One tooth for each layer that is recomputed"
)
plots.show(
    figure,
    alt="Memory through one step: flat blue weights, a slow climb in the forward pass, teeth in the backward pass",
)

# %% [markdown]
# In the forward pass each layer leaves its input, so the line climbs slowly; the small spikes are the layer at work, whose tensors go at once. The loss hardly shows, since it comes in tiles. In the backward pass each layer is recomputed, which makes a tooth, and then its input is freed. The first tooth is the
# highest, since all inputs are still there.

# %%
kept = step_over_time(measured.config, measured.spec | {"checkpoint_every": 0}, "h200")
figure = plots.diagrams.training_steps({"each layer recomputed": recomputed, "nothing recomputed": kept}, **stays,
                                       title="Recomputing flattens the mountain")  # fmt: skip
plots.show(figure, alt="The same step beside one without recomputing, which climbs to three times the height")

# %% [markdown]
# It climbs to three times the height, and stands there around the loss, when everything is kept and nothing is freed yet.
#
# ### Is it true?
#
# `measurements/` holds runs that were measured on an H200, of models from half a billion to 24 billion weights. Those called holdout were predicted before they were measured. (Three early ones missed the peak by more than one per cent, led
# to corrections, and are no longer counted among them.) How far off is `predict`?

# %%
runs = measured_runs("h200_memory_rows").dropna(subset="peak_bytes")
held_out = runs.query("role == 'holdout' and quant_type != 'int8'").copy()
held_out["said"] = [predict(config, spec, "h200") for config, spec in zip(held_out.config, held_out.spec)]
held_out["peak_off"] = held_out.said.map(lambda p: p.peak_allocated) / held_out.peak_bytes - 1
held_out["reserved_off"] = held_out.said.map(lambda p: p.peak_reserved) / held_out.reserved_bytes - 1

# %% tags=["held-out"]
verdict("the mean error of the peak is at most half a per cent", held_out.peak_off.abs().mean() <= 0.005)
verdict("what torch reserves is predicted within five per cent", held_out.reserved_off.abs().max() <= 0.05)
errors = held_out.set_index("model")[["peak_off", "reserved_off"]].abs().groupby("model")
found = errors.max().assign(runs=errors.size())
table(found, "{:.2%}", runs="{}", columns=("model", "peak, largest error", "reserved, largest error", "runs"))

# %% [markdown]
# The second column is about [reserved](../site/glossary.md#reserved) memory, which the next section explains. It is harder to predict, since it depends on the order in which blocks come and go. Two of these rows were first predicted badly there and led to corrections, so that column
# is not blind: [measurements/README.md](../measurements/README.md) tells the story, row by row. It also says how two other estimators did on the same runs, and why they expect more than is used.
#
# Left out here are runs with 8-bit weights. bitsandbytes keeps copies of some columns in 16 bits there, and which ones depends on the data: see "Further down".
#
# > **None of these runs was made on a T4.** Some were held to a T4's attention and memory, but on the H200. No peak of a T4 itself has been compared yet, and the 0.27 GB that are set aside for its CUDA context are a guess.
# > So keep half a GB of a T4 free. What `fits` keeps free of itself is less, as section 7 says.
#
# ## 7 Three numbers for one run
#
# When people compare memory, they compare three different numbers.
#
# - *[Allocated](../site/glossary.md#allocated)* is what tensors hold.
# - *Reserved* is what torch has taken from the driver, in large segments from which it cuts tensors. When a tensor is freed, its place stays reserved for the next one.
# - `nvidia-smi` shows what the driver has given away. That is reserved, plus the [CUDA context](../site/glossary.md#cuda-context): code and tables of CUDA itself, which torch does not count: 0.8 GB on this H200. Other programs on the same GPU come on top.
#
# For the run at the top all three were measured. `held_bytes` predicts the third, less the averages that may page, that is, move to the computer's memory ("Further down").

# %% tags=["smi"]
off = whole.held_bytes("h200") / measured.nvidia_smi_bytes - 1
verdict("what nvidia-smi showed is predicted within two per cent", abs(off) < 0.02)
table([
    ("allocated", measured.peak_bytes / 1e9, whole.peak_allocated / 1e9),
    ("reserved", measured.reserved_bytes / 1e9, whole.peak_reserved / 1e9),
    ("nvidia-smi", measured.nvidia_smi_bytes / 1e9, whole.held_bytes("h200") / 1e9),
], "{:.2f}", columns=("on an H200", "measured (GB)", "predicted (GB)"))  # fmt: skip

# %% [markdown]
# So a run *fits* when the third number leaves a hundredth of the GPU free, which is 0.16 GB of a T4: about as much as the predicted peaks were off. Everywhere in this course that is one function, `fits(prediction, gpu)`, and `plan` asks it too. To keep half a GB, say `fits(prediction, "t4", GPUS["t4"].total_bytes - 0.5e9)`. Averages that may page are not in it: they come on top in `nvidia-smi`, but can leave. (There is a grey zone: before torch gives up it hands back what it does not use and tries again, so a run that is a little over may still pass. We count it as not fitting.) From here on the
# number at the end of a bar is the third one:


# %%
def held_parts(prediction, gpu):
    "What a run holds of a GPU, by what it is for: its tensors, and what torch and CUDA hold besides."
    besides = prediction.held_bytes(gpu) - prediction.peak_allocated
    return prediction.parts | {"reserved and context": besides}


# %% [markdown]
# > **Trap: `nvidia-smi` is full.** **What you will see:** nearly all memory taken, although your tensors are small. **Why:** torch keeps what it once reserved. **The cure:** none is needed, since the next tensors use it. Worry when
# > *allocated* climbs from step to step, for then something holds on to tensors; or when *reserved* is far above it and memory runs out all the same, which is fragmentation (lesson 06). `torch.cuda.memory_summary()` shows both.
#
# ## 8 What each choice costs
#
# Take the run of this notebook's parameters as a start: Mistral-7B, adapters on all seven matrices, 8-bit paged Adam, every layer recomputed. `RunSpec` holds the settings of a run. Now change one thing at a time:
#
# - "float32 [upcast](../site/glossary.md#upcast)": embeddings, head and norms become float32 in place, and the residual stream follows. `prepare_model_for_kbit_training` does that, and many recipes call it.
# - "nothing recomputed": every layer keeps all its activations.
# - "rank 64" and "twice the rows" are what they say.
# - "averages in float32": Adam with four bytes per average in place of one, and nothing paged. (Averages that may page are outside torch's count, and outside these bars, wherever they lie.)

# %%
from dataclasses import replace

start = RunSpec(
    rank=settings.rank, batch_size=settings.batch_size, seq_len=settings.max_length, repeat_kv=True, lora_dropout=0.0
)
changes = {
    "float32 upcast": {"upcast_non_quantized": True}, "nothing recomputed": {"checkpoint_every": 0}, "rank 64": {"rank": 64},
    "twice the rows": {"batch_size": 2 * settings.batch_size}, "averages in float32": {"optimizer": "adamw_torch_fused"},
}  # fmt: skip
mistral = shapes["Mistral-7B-v0.1"]
peaks = {"the start": predict(mistral, start, "t4")}
for name, change in changes.items():
    peaks[name] = predict(mistral, replace(start, **change), "t4")

# %% [markdown]
# **Exercise 6.** *Predict, then run*, 5 minutes, ••. Which of the five adds most to what the run holds of a T4, and which adds least? Write both down before you run the cell, and before you look at the figure below it.

# %%
guess = {"most": ..., "least": ...}
added = {name: (peaks[name].held_bytes("t4") - peaks["the start"].held_bytes("t4")) / 1e9 for name in changes}
check("02.6", guess, added)

# %% [markdown]
# <details><summary>Solution</summary>
#
# With this notebook's own parameters:
#
# ```python
# guess = {"most": "nothing recomputed", "least": "averages in float32"}
# check("02.6", guess)
# ```
#
# Rank and averages move the orange part, which is small. Rows move what is grey. Without recomputing, all layers keep what otherwise one layer at a time holds.
# </details>

# %%
ordered = sorted(peaks, key=lambda name: peaks[name].held_bytes("t4"))
bars = {name: held_parts(peaks[name], "t4") for name in ordered}
figure = plots.diagrams.run_parts(
    bars, f"Predicted for a T4: '{ordered[-1]}' costs most", {"a T4 has": GPUS["t4"].total_bytes}
)
plots.show(
    figure,
    alt="Stacked bars of the start and of one change at a time, sorted; without recomputing the grey part is largest",
)

# %% [markdown]
# These are the answers to your two guesses from the beginning. Twice the rows make what is kept twice as large, and the layer at work nearly so, and leave blue and orange alone. A higher rank makes the orange part larger.
# And something else happens with rank 64: the kept inputs are gone from its bar. The gradients outweigh them now, so the peak has moved to the end of the backward pass, where all gradients are there and the inputs are used up. That is the first maximum of
# section 5.
#
# > **Trap: the upcast.** **What you will see:** out of memory with a recipe that "should fit". **Why:** in float32 the residual stream takes twice the bytes, and the 16-bit tables too. **The cure:** leave
# > `prepare_model_for_kbit_training` out. `SFTTrainer` does by itself what training needs of it. The run at the top was measured with it as well:

# %%
pair = measured_runs("h200_earlier_rows").drop_duplicates("upcast_non_quantized").set_index("upcast_non_quantized")
table(pair[["peak_bytes", "reserved_bytes", "nvidia_smi_bytes"]] / 1e9, "{:.2f}",
      columns=("upcast, on an H200", "allocated (GB)", "reserved (GB)", "nvidia-smi (GB)"))  # fmt: skip

# %% [markdown]
# ## 9 What fits, and the calculator
#
# Your model, your GPU, one line. `predict` takes the name of a model on the Hugging Face hub, of which it reads `config.json` only, or a folder that has one. Here is Mistral-7B with four rows of 2,048 tokens on a T4, with the cure
# for its attention and without:

# %%
name = "mistralai/Mistral-7B-v0.1"  # put your model here
mine = predict(name, RunSpec(rank=16, batch_size=4, seq_len=2048, repeat_kv=True), "t4")
print(f"with repeat_kv: {mine.held_bytes('t4') / 1e9:.2f} GB, fits: {fits(mine, 't4')}")
without = predict(name, RunSpec(rank=16, batch_size=4, seq_len=2048), "t4")
print(f"in a plain script: {without.held_bytes('t4') / 1e9:.2f} GB, fits: {fits(without, 't4')}")

# %% [markdown]
# > **What an answer for a T4 assumes.** Keys and values are repeated, if you say `repeat_kv=True`. The loss comes in tiles. A step has one batch; with gradient accumulation add 4 bytes per trained number. The size of the CUDA context
# > is a guess, and nothing was measured on a T4 yet.
#
# `plan` asks the question the other way round: of all ways to split the rows, to recompute and to choose the optimizer, which is the fastest that fits? It wants the run to fit as above, and besides that tensors alone leave a twentieth of the GPU free. That
# twentieth is also the room for the CUDA context and for what torch reserves, so a plan too may leave no more than the hundredth. It estimates speed from how often the layers are computed. That is a model of time, and was not measured on a T4.

# %%
chosen = plan(mistral, GPUS["t4"].total_bytes, start, gpu="t4")
held = chosen.prediction.held_bytes("t4") / 1e9
print(f"the fastest of {chosen.considered} ways that fits holds {held:.2f} GB of the T4")
print(f"it takes {1 - chosen.saved(start):.0%} of the start's time")
picked = {}
for name in ("batch_size", "checkpoint_every", "checkpoint_offload", "optimizer"):
    picked[name] = getattr(chosen.spec, name)
table(picked, columns=("", "the fastest that fits"))

# %% [markdown]
# `checkpoint_every` says that every so-many-th layer is recomputed; 0 means none. So memory that is left over buys speed: no layer is computed twice. The price is fewer rows at once, which costs less than it saves. The time is per token, compared with the start of section 8.
#
# Now try it yourself. Move the controls: the bar shows what fills the GPU, the line above it says whether the run fits, and below stands what `plan` would change. The settings that it starts with are the arguments in the cell, and
# you may change them there. On a page that is only shown, you see a still picture. It also counts what its line names after "also counted": a dropout, which the bars of section 8 leave out and which takes memory, and on a T4 `repeat_kv`.

# %%
from helpers.widgets import calculate

calculate(model="mistral-7b", gpu="t4", rank=16, targets="all linear", batch_size=4, seq_len=512,
          optimizer="adamw_torch", checkpointing="every layer")  # fmt: skip

# %% [markdown]
# **Exercise 7.** *Decide*, 10 minutes, ••. A friend has a GPU with 8 GB, such as an RTX 4060, and her desktop takes a part of it; count 8,000,000,000 bytes. Her run of Mistral-7B is
# `RunSpec(rank=16, batch_size=4, seq_len=1024, optimizer="adamw_torch_fused", checkpoint_every=0)`, four rows per step, and it needs nearly five times her memory. What do you change? It must still learn the same, or as good as the same: rank, target modules, length, the formats of weights and adapters, and
# dropout stay (an 8-bit optimizer rounds its averages, which hardly shows), and a step still sees four rows, if need be one after another, with gradient accumulation: `RunSpec` needs only `batch_size`, the rows at once. Give the changed fields of `RunSpec` as a dictionary. There is more than one answer. Her GPU is counted like an L4, which is of the same generation.

# %%
changed = ...  # such as {"optimizer": "paged_adamw_8bit"}
check("02.7", changed)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Recomputing does nearly all of it. Alone it fails by a tenth of a GB, which is less than the doubt about her GPU's context, so do not rely on a gap of that size, on either side. One more change is needed: fewer rows at once, an 8-bit or paged optimizer, or inputs kept in the computer's memory (`checkpoint_offload`).
#
# ```python
# changed = {"checkpoint_every": 1, "batch_size": 2}
# check("02.7", changed)
# ```
#
# With fewer rows at once she accumulates gradients. `predict` does not count that (lesson 03's plan does), so the check adds 4 bytes per trained number. Her run still fits.
# </details>
#
# ## 10 Which model for which GPU
#
# An older guide, from which this course began, names a largest model for each size of GPU. That depends on the rows, so here are three batches, with recomputing, repeated keys and values, 8-bit paged Adam and rank 16. For three of the GPUs the course knows how much memory they
# report; the other two are counted like an L4 and an A100. A run counts if it fits as section 7 says, and if a twentieth of the GPU stays free of tensors, as `plan` has it.


# %%
def llama(hidden, inner, layers, heads, kv_heads):
    "The configuration of a model that is built like Llama."
    return {"model_type": "llama", "vocab_size": 32_000, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "tie_word_embeddings": False}  # fmt: skip


sizes = {"7B": llama(4096, 11008, 32, 32, 32), "13B": llama(5120, 13824, 40, 40, 40),
         "34B": llama(8192, 22016, 48, 64, 8), "70B": llama(8192, 28672, 80, 64, 8)}  # fmt: skip

# %%
gpus = {"8 GB": ("l4", 8e9, "7B (tight)"), "16 GB: T4": ("t4", None, "7-13B"), "24 GB: L4": ("l4", None, "13-34B"),
        "48 GB": ("a100", 48e9, "34-70B"), "80 GB: A100": ("a100-80gb", None, "70B+ comfortably")}  # fmt: skip
batches = {"1 x 512": (1, 512), "1 x 2048": (1, 2048), "4 x 2048": (4, 2048)}
largest = {label: dict.fromkeys(batches, "none") | {"text": words} for label, (_, _, words) in gpus.items()}
for batch, (rows_at_once, length) in batches.items():
    for name, config in sizes.items():
        for label, (gpu, total, _) in gpus.items():
            spec = RunSpec(batch_size=rows_at_once, seq_len=length, lora_dropout=0.0, repeat_kv=True)
            if fits(predict(config, spec, gpu), gpu, total, margin=None):
                largest[label][batch] = name

# %%
rows = [(label, *found.values()) for label, found in largest.items()]
table(rows, columns=("predicted for", *batches, "the guide says"))

# %% [markdown]
# For one short row the guide's larger figures hold, and for four long rows its smaller ones, except on 8 GB, where four long rows fit no model of the table.
#
# What a run needs beside the GPU, of the disk and of the computer's memory, stands first under "Further down".

# %%
record(
    bits_per_weight=8 * stored / n, saved_bytes=everything, saved_bytes_recomputed=inputs_only,
    predicted_peak_bytes=whole.peak_allocated, heldout_mean_error=held_out.peak_off.abs().mean(),
    heldout_largest_error=held_out.peak_off.abs().max(), heldout_rows=len(held_out), planned_batch_size=chosen.spec.batch_size,
)  # fmt: skip

# %% [markdown]
# ## What you have now
#
# You can add up a run's memory from five terms, and you know which of them a change will move. You know that tensors are not all: a run fits when what torch reserves and the CUDA context leave a little of the GPU free. And you have `predict`, `plan` and the calculator
# for the runs to come; outside a notebook they are `python -m helpers memory`.
#
# Next: [03 T4 training](03_t4_training.ipynb) trains within this budget.
#
# ## Further down
#
# What follows is for readers who want to know more. Nothing later depends on it.
#
# ### Beyond the GPU
#
# A 7B model in 4 bits is loaded from a file in 16 bits. The file has to be on the disk, and it passes through the computer's memory piece by piece. Merging an adapter in one piece, which lesson 05 does, needs all of it in that memory at once. Free Colab has 12.7 GB.

# %%
from helpers.models import PRESETS

downloads = {name: preset.download_bytes / 1e9 for name, preset in PRESETS.items()}
rows = [(name, size, "yes" if size < 12.7 else "no") for name, size in downloads.items()]
table(rows, "{:.1f}", columns=("model", "download and disk (GB)", "merges in one piece on free Colab"))

# %% [markdown]
# ### The parts by name
#
# `predict` gives each byte to one of these parts, in this order:
#
# - **quantized weights** and **quantization scales**: section 1. **embeddings and head**, and **norms, biases, 16-bit weights**: what stays in 16 bits. If a recipe
#   turns those into float32, they count as **float32 copies of what is not quantized**.
# - **adapters** and **optimizer states**: section 2, values and averages. **gradients of weights** are the adapters' gradients, and some optimizers need **optimizer scratch** for a moment.
# - **cuBLAS workspaces**: cuBLAS is the library that multiplies matrices on the GPU, and it keeps room for itself. On an H200 that is much more than on a T4.
# - **token ids, masks, rotary tables**: the rows themselves, which tokens may look at which, and the tables that tell a token its place in the row.
# - **layer inputs kept by checkpointing**: section 3. Without recomputing there would be **activations kept for backward** in their place.
# - **one layer's activations**, **a dequantized weight** and **gradients of activations**: the layer at work of section 5, which computes forward again and then backward.
# - **16-bit copies of the adapters**: the adapters are float32, and a 16-bit product needs them in 16 bits.
# - **final norm and hidden states** and **tile of logits**: section 4. At this peak they are gone already.
# - **blocks larger than what they hold**: torch hands out memory in multiples of 512 bytes, and does not split what is left of a large block when it is less than a MB or so.
#
# ### Optimizers, and what pages
#
# These optimizers stand in most recipes. `adamw_torch`, and `adamw_torch_fused`, which is today's default, keep both averages in the format of the numbers that they train. `paged_adamw_8bit` keeps each average in one byte. The [paged](../site/glossary.md#paged-optimizer) kinds can move their averages to
# the computer's memory when the GPU is full, and `paged_adamw_32bit` does so with float32 averages. That is what the names say; let one step show it. bitsandbytes has two thresholds, on the number of elements, so try tensors just below and just above. On a CPU the last column is False everywhere. On a GPU the two paged kinds say True in the row of 100,000.


# %%
def average_of(kind, elements):
    "What one step leaves for a tensor of so many elements: the type of an average, and whether it may page."
    tensor = torch.nn.Parameter(torch.ones(elements, device=model.device))
    tensor.grad = torch.full_like(tensor, 0.1)
    optimizer = kind([tensor], lr=1e-3)
    optimizer.step()
    state = optimizer.state[tensor]
    average = state.get("exp_avg", state.get("state1"))
    return average.dtype, getattr(average, "is_paged", False)


# %%
import warnings

kinds = {
    "adamw_torch": torch.optim.AdamW,
    "paged_adamw_32bit": bnb.optim.PagedAdamW32bit,
    "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
}
states = []
with warnings.catch_warnings(action="ignore"):  # without a GPU it says that nothing pages
    for name, kind in kinds.items():
        for elements in (4_095, 4_096, 99_999, 100_000):
            states.append((name, elements, *average_of(kind, elements)))
table(states, columns=("optimizer", "elements", "an average is", "pages here"), elements="{:,}")

# %% tags=["states"]
on_gpu = run.machine.device == "cuda"
verdict("an 8-bit average takes a byte from 4,096 elements on, and only a GPU pages, from 100,000 elements on", all(
    (dtype == torch.uint8) == ("8bit" in name and elements >= 4_096)
    and pages == (on_gpu and "paged" in name and elements >= 100_000)
    for name, elements, dtype, pages in states))  # fmt: skip

# %% [markdown]
# So a paged optimizer pages large tensors only. How many of an adapter's tensors are that large? Matrix $A$ has $r$ times the inputs, and $B$ has $r$ times the outputs. Here are Mistral-7B's, for the four matrices q, k, v and o, and for all seven:

# %% tags=["pages"]
rows = []
for r, matrices in ((measured["rank"], 4), (16, 4), (16, 7), (64, 7)):
    adapters = r * torch.tensor(seven_matrices(mistral)[:matrices])
    paging = adapters[adapters >= 100_000].sum() / adapters.sum()
    rows.append((r, matrices, adapters.sum().item() * mistral["num_hidden_layers"], paging.item()))
verdict("in the run at the top nothing pages, though its optimizer is a paged one",
        rows[0][3] == 0 and "paged" in measured.optimizer)  # fmt: skip
table(rows, columns=("rank", "matrices per layer", "trained numbers", "share that pages"),
      trained_numbers="{:,}", share_that_pages="{:.0%}")  # fmt: skip

# %% [markdown]
# > **Trap: "4-bit training pages by itself".** **What you will see:** the same memory with `paged_adamw_32bit` as without. **Why:** loading in 4 bits switches nothing on, and the averages of a small adapter are too small to page.
# > **The cure:** an 8-bit optimizer where adapters are too small to page, and a paged one where they are large.
#
# ### Where paging decides
#
# The QLoRA paper (Dettmers et al. 2023, [arXiv 2305.14314](https://arxiv.org/abs/2305.14314)) says that it trained LLaMA 65B on one GPU with 48 GB. Its adapters had rank 64 on all matrices. Would it fit without paging? GPUs with 48 GB were of the A100's generation then, so these are predictions for an
# A100, for one row of 512 tokens, a loss that holds all logits, and adapters in float32. Hatched is what may lie in the computer's memory.

# %%
bf16 = {"load_dtype": "bfloat16", "compute_dtype": "bfloat16", "lora_dropout": 0.0}
paper = RunSpec(rank=64, optimizer="paged_adamw_32bit", trl_loss="full", **bf16)
paged = predict(llama(8192, 22016, 80, 64, 64), paper, "a100")
unpaged = replace(paper, optimizer="adamw_torch_fused")
staying = predict(llama(8192, 22016, 80, 64, 64), unpaged, "a100")
narrow = predict(llama(8192, 22016, 80, 64, 64), replace(unpaged, adapter_dtype="bfloat16"), "a100")
print(f"nothing paged, adapters and averages in bfloat16: {narrow.held_bytes('a100') / 1e9:.1f} GB")

# %% tags=["paging-decides"]
moved = staying.parts["optimizer states"] - paged.parts.get("optimizer states", 0)
bars = {"averages paged": held_parts(paged, "a100") | {"averages on the host": moved},
        "averages on the GPU": held_parts(staying, "a100")}  # fmt: skip
verdict("with adapters in float32, 65B fits 48 GB if the averages may leave the GPU, and only then",
        fits(paged, "a100", 48e9) and not fits(staying, "a100", 48e9))  # fmt: skip
figure = plots.diagrams.run_parts(
    bars, "Adapters in float32: whether 65B fits 48 GB hangs on paging", {"the GPU": 48e9}
)
plots.show(figure, alt="Two stacked bars: with paged averages the run ends left of 48 GB, without it ends right of it")

# %% [markdown]
# With paging the GPU holds the first number beside the upper bar, and up to as much as the second number may lie in the computer's memory. Without paging it would have to hold the number beside the lower bar, which is too much. The driver moves what is
# not needed, and training goes on, more slowly. With adapters in bfloat16, as the paper's own code has them, and averages too, it would fit without: that is the
# number printed above the figure. There paging is a safety net, for longer rows and for other programs on the GPU. A number for memory means little without the formats.
#
# ### Training every weight
#
# How much would it take to train all weights? Texts often give one number per size. Here are those of the guide of section 10, beside predictions for an H200, in bfloat16, for one row of 512 tokens. Fused Adam is what the `Trainer` takes today (`adamw_torch_fused`). Plain Adam
# (`adamw_torch`) takes the square root of all averages at once, and needs two bytes more per weight for it. Both keep their averages in the format of the weights, here bfloat16. In float32 the averages would take eight bytes per weight in place of four.

# %%
text_says = {"7B": 60, "13B": 104, "34B": 272, "70B": 560}
with_fused = RunSpec(quant_type=None, rank=None, optimizer="adamw_torch_fused", **bf16)
with_plain = replace(with_fused, optimizer="adamw_torch")

# %% tags=["every-weight"]
rows = []
for name, config in sizes.items():
    fused, plain = predict(config, with_fused, "h200"), predict(config, with_plain, "h200")
    wider = fused.peak_allocated + fused.parts["optimizer states"]  # four bytes per weight become eight
    rows.append((name, fused.peak_allocated / 1e9, plain.peak_allocated / 1e9, wider / 1e9, text_says[name]))
verdict(
    "with fused Adam the guide's numbers hold within an eighth", max(abs(row[1] / row[4] - 1) for row in rows) < 1 / 8
)
table(rows, "{:,.0f}", columns=("size", "fused Adam (GB)", "plain Adam (GB)", "fused, averages in float32 (GB)",
                                "the guide says (GB)"))  # fmt: skip

# %% [markdown]
# So the guide is about right for today's default optimizer on a model that was loaded in bfloat16, and too low for the other two. With fused Adam it is 2 bytes for the weight, 2 for its gradient and 4 for the averages.
#
# ### Weights in 8 bits
#
# With `load_in_8bit`, bitsandbytes multiplies the input columns that hold an outlier, a value far larger than the rest, in 16 bits, and keeps a copy of them for the backward pass. How many there are depends on the data, so `predict` counts none and says so.

# %%
for row in measured_runs("h200_memory_rows").query("quant_type == 'int8'").itertuples():
    prediction = predict(row.config, row.spec, "h200")
    off = prediction.peak_allocated / row.peak_bytes - 1
    print(f"{row.peak_bytes / 1e9:.2f} GB measured on an H200, the prediction is {off:+.1%} off")
print("its note:", prediction.notes[0])

# %% [markdown]
# These runs had random weights, with which nearly every column holds an outlier. In trained models more than 99.9% of the values stay in 8 bits (Dettmers et al. 2022, [arXiv 2208.07339](https://arxiv.org/abs/2208.07339)), so there the gap should be smaller; nobody has measured it here.
#
# Next: [03 T4 training](03_t4_training.ipynb) trains within this budget.
