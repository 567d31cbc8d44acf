# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 Quantization basics
#
# At the end of this lesson you can say what a 4-bit weight is, down to its bits. You will have built QLoRA's number format yourself, in
# functions of a few lines, and you will have seen what a model loses by it.
#
# You will learn to
#
# - read the bits of the three number formats that models are stored in;
# - round a tensor to 16 values, see what goes wrong, and mend it;
# - derive NF4, the sixteen values that QLoRA uses, from a bell curve;
# - count what a weight really costs, and measure what a model loses.
#
# | | |
# |---|---|
# | to read | 45 minutes, and 15 more for "Further down" |
# | exercises | 50 minutes |
# | to run | {{cpu_time}} on two CPU cores; {{t4_time}} on a T4 |
# | you need | some Python and PyTorch. You need no GPU: the lesson compares bits, and does so on the CPU everywhere |

# %% tags=["parameters"]
model_id = "bundled"  # the model that is rounded here: its facts are known, so that what it forgets can be counted
eval_rows = 128
seed = 0
output_dir = "auto"

# %%
from helpers import COURSE_ROOT
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "01_quantization_basics", with_data=True, model_id=model_id, eval_rows=eval_rows, seed=seed, output_dir=output_dir
)

# %% [markdown]
# ## A model in 16 bits and in 4
#
# A model is a long list of numbers, its [weights](../site/glossary.md#weight). Usually each of them is stored in 16 bits. To store them
# in 4 bits means that each becomes one of only 16 values, scaled for the block of weights in which it stands. What is left of a model after that?
#
# Here is a real chat model, SmolLM2-135M-Instruct, asked the same in 16 bits and in 4. The questions were chosen because it answers them sensibly in
# 16 bits, and the answers were recorded by `measurements/measure_quality.py`.

# %%
import json

file = COURSE_ROOT / "measurements" / "smollm2_quality.json"
quality = json.loads(file.read_text(encoding="utf-8"))
ways = {row["way"]: row for row in quality["rows"]}
whole, four = ways["16 bits"], ways["nf4, double quantization"]
table(zip(quality["questions"], whole["answers"], four["answers"]), columns=("asked", "in 16 bits", "in 4 bits"))

# %% [markdown]
# In 4 bits it still speaks English and keeps to the question. But its sky has turned brown, and its week has 31 days. (An answer
# is cut off after 24 tokens here.) [Perplexity](../site/glossary.md#perplexity) puts a number on it: between how many equally likely
# [tokens](../site/glossary.md#token) does the model hesitate when it reads a text? Less is better.

# %%
surprise = f"{whole['perplexity']:.1f} in 16 bits, {four['perplexity']:.1f} in 4 bits"
print(f"perplexity on {quality['tokens']:,} tokens of Python's own help texts: {surprise}")
size, before = quality["weights"] * four["bits_per_weight"] / 8, quality["weights"] * 2
embeddings = 49_152 * 576 * 2  # a row of 576 numbers for each token, which stays in 16 bits
print(f"the rounded matrices take {size / 1e6:.0f} MB in place of {before / 1e6:.0f} MB,")
print(f"the whole model {(size + embeddings) / 1e6:.0f} MB in place of {(before + embeddings) / 1e6:.0f} MB")

# %% [markdown]
# The rounded matrices take a quarter of the memory, and most of the model is still there. (The whole model shrinks by less, because its table of [embeddings](../site/glossary.md#embedding) stays in 16 bits.) That is what makes QLoRA possible. Something is lost as well. This lesson shows where the loss comes from, and how it is kept small.
#
# One caution. The only file of this model that could be fetched as a package had been rounded once already, to 5 bits per weight (GGUF's Q4_1). "In 16 bits" is what that file restores to. So
# everything here is the cost of a second rounding, and the original would probably do somewhat better in the first column.
#
# (In this lesson a megabyte, MB, is a million bytes, and a gigabyte, GB, a thousand million.)
#
# Now do it live, with the small model that comes with the course and with the calls that all later lessons use. You could put another model
# into the parameters above. On a CPU it is loaded in 32 bits, so one might expect that 4 bits shrink it eightfold.

# %%
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from helpers.training import keep_4bit_layout

tokenizer = AutoTokenizer.from_pretrained(run.model.path)
model = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)

# %%
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
in_4_bits = AutoModelForCausalLM.from_pretrained(
    run.model.path, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
)
in_4_bits = keep_4bit_layout(in_4_bits)  # on some CPUs bitsandbytes would reorder the weights and spoil them


# %%
def ask(model, text, tokens=3):
    inputs = tokenizer(text, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :]).strip()


question = "What is the capital of France?\nAnswer:\n"
print(f"32 bits, {model.get_memory_footprint() / 1e6:5.1f} MB: {ask(model, question)!r}")
print(f" 4 bits, {in_4_bits.get_memory_footprint() / 1e6:5.1f} MB: {ask(in_4_bits, question)!r}")

# %% [markdown]
# It shrinks by less, because a few parts are not rounded: the embeddings, the
# [head](../site/glossary.md#head), and some short vectors. In so small a model they are a large share.
# The answer does not change: this model knows its few facts by heart. Section 8 says what such a test is worth.
#
# ## 1 What a 16-bit number is
#
# A floating-point number has three fields of bits: a *sign*, an *exponent* that says how large it is, and a *fraction* that says how exactly. The
# types differ only in how many bits each field gets. Here is one third in three types: float32, [float16](../site/glossary.md#float16)
# and [bfloat16](../site/glossary.md#bfloat16).

# %%
FIELDS = {torch.float32: (8, 23), torch.float16: (5, 10), torch.bfloat16: (8, 7)}  # bits of exponent and of fraction


def bits(x, dtype):
    "Sign, exponent and fraction of the number nearest to x, as text."
    exponent, fraction = FIELDS[dtype]
    size = 1 + exponent + fraction
    pattern = torch.tensor(x, dtype=dtype).view(torch.int32 if size == 32 else torch.int16).item() % 2**size
    text = f"{pattern:0{size}b}"
    return f"{text[0]} {text[1 : 1 + exponent]} {text[1 + exponent :]}"


# %%
from helpers.plots import bars, curves, diagrams, levels_on_histogram, show

strips = {str(dtype).removeprefix("torch."): bits(1 / 3, dtype) for dtype in FIELDS}
figure = diagrams.bit_strips(strips, "One third in three types")
show(figure, "One third as strips of bits: float16 has a shorter exponent than float32, bfloat16 a shorter fraction")

# %% [markdown]
# bfloat16 is float32 without its last 16 bits, rounded. float16 has a shorter exponent and a longer fraction. To read such a number
# back takes one formula,
#
# $$(-1)^{\text{sign}} \cdot 2^{\,\text{exponent} - \text{bias}} \cdot (1 + \text{fraction})$$
#
# where the bias is $2^{k-1} - 1$ for an exponent of $k$ bits. It lets exponents be negative although their bits count up from zero.


# %%
def number(text):
    "The value of a normal number, from its sign, exponent and fraction."
    sign, exponent, fraction = text.split()
    bias = 2 ** (len(exponent) - 1) - 1
    return (-1) ** int(sign) * 2.0 ** (int(exponent, 2) - bias) * (1 + int(fraction, 2) / 2 ** len(fraction))


{name: number(text) for name, text in strips.items()}

# %% [markdown]
# (The bits of the fraction count halves, quarters, eighths, and so on. For two exponents the formula does not hold: all ones means infinity or not-a-number, and all zeros means
# zero or a number too small for full precision. All other numbers are called *normal*.)
#
# What do the fields mean in practice? Store three numbers in each type and read them back. Before you run the cell, guess which of
# the nine will be badly wrong.

# %%
stored = {dtype: [torch.tensor(x, dtype=dtype).item() for x in (70_000.0, 1.001, 1e-8)] for dtype in FIELDS}
table(stored, columns=("type", "70,000", "1.001", "0.00000001"))

# %%
rows = [(str(dtype), torch.finfo(dtype).max, torch.finfo(dtype).tiny, torch.finfo(dtype).eps) for dtype in FIELDS]
table(rows, "{:.3g}", columns=("type", "largest", "smallest of full precision", "step from 1 to the next"))

# %% [markdown]
# Both 16-bit types take 2 bytes. float16 is exact to three digits and ends at 65,504. bfloat16 is exact to two digits and ends where float32
# ends. In training float16 has a second weak spot: below 6.1e-5 it loses digits, and what is smaller than about 3e-8 becomes zero, as 1e-8 did above. Many [gradients](../site/glossary.md#gradient) are that small. That is why training in
# float16 multiplies the [loss](../site/glossary.md#loss) by a large number first, which is called [loss scaling](../site/glossary.md#loss-scaling).
#
# > **Trap: bfloat16 on a T4.** A T4 has units for float16 and none for bfloat16. Much QLoRA code asks for bfloat16 all the same.
# >
# > *What you see:* no error, only slow training. `torch.cuda.is_bf16_supported()` even answers True, because it counts emulation
# > ([pytorch#148322](https://github.com/pytorch/pytorch/issues/148322)).
# > *Cure:* compute in float16 there, and watch for 65,504. Lesson 03 does both.
#
# ## 2 Rounding to 16 levels
#
# Four bits make 16 codes. Choose 16 numbers between -1 and 1 and call them [levels](../site/glossary.md#level). To *quantize* some weights,
# divide them by their largest absolute value, the [absmax](../site/glossary.md#absmax), so that they too lie between -1 and 1. Replace each by the
# code of the nearest level, that is, by its place in the list. Keep the codes and the absmax. To get weights back, look the levels up and multiply by the absmax.
#
# The simplest levels are evenly spaced. These are 15, so that zero is one of them; the sixteenth code stays unused. The whole idea takes
# five lines:

# %%
int4 = torch.arange(-7, 8) / 7
row = torch.tensor([0.8, -0.3, 0.05, -1.2, 0.0, 0.61])
absmax = row.abs().max()
codes = (row[:, None] / absmax - int4).abs().argmin(dim=1)
restored = int4[codes] * absmax

columns = ("code", "weight", "/ absmax", "level", "restored")
table(zip(codes, row, row / absmax, int4[codes], restored), "{:.3f}", columns=columns)

# %% [markdown]
# Now a whole layer of the model, that is, one of its matrices of weights, beside a million numbers from a bell curve. The error that counts is the
# [relative error](../site/glossary.md#relative-error): the size of what went wrong over the size of the weights. (Size here means the root of the sum of
# squares, which PyTorch calls the norm.)


# %%
def relative_error(x, restored):
    return ((x.double() - restored.double()).norm() / x.double().norm()).item()


def with_one_absmax(x, levels):
    "x rounded to levels that are scaled by the absmax of all of x."
    middles = (levels[1:] + levels[:-1]) / 2  # from each of these on, the next level is nearer
    return levels[torch.bucketize(x / x.abs().max(), middles)] * x.abs().max()


# %%
weights = model.get_decoder().layers[0].mlp.up_proj.weight.data
bell = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(seed)) * 0.02
for name, x in (("a layer of the model", weights), ("a bell curve", bell)):
    wrong, largest = relative_error(x, with_one_absmax(x, int4)), x.abs().max() / x.std()
    print(f"{name}: off by {wrong:.1%}; the largest weight is {largest:.1f} standard deviations out")

# %% [markdown]
# The error is nearly a fifth of the weights' size. The reason is the largest weight: the levels reach out to it, so most of them stand where hardly any weight is.
#
# It gets far worse with one [outlier](../site/glossary.md#outlier), a weight that is much larger than the rest. Make one, fifty standard deviations out, and look at the error of all *other* weights.
# Guess first: will it double?

# %%
spoiled = bell.clone()
spoiled[0, 0] = 1.0
others = spoiled != 1.0
rounded = with_one_absmax(spoiled, int4)
lost = (rounded[others] == 0).float().mean()
print(f"the others: off by {relative_error(spoiled[others], rounded[others]):.1%}; {lost:.1%} of them became zero")

# %% [markdown]
# One number in a million ruined the tensor.
#
# ## 3 Blocks
#
# The cure is to give every [block](../site/glossary.md#block) of, say, 64 neighbouring weights an absmax of its own. Then an outlier can spoil 63
# others and no more. (bitsandbytes takes care of odd lengths and of other rare cases; "Further down" makes your functions equal to it, bit for bit.)


# %%
def quantize_blockwise(x, levels, block_size):
    "Codes of the nearest levels, one per weight, and absmax, one per block."
    blocks = x.flatten().view(-1, block_size)  # fails if x does not fill its last block
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    codes = torch.bucketize(blocks / absmax, (levels[1:] + levels[:-1]) / 2)
    return codes.flatten().to(torch.uint8), absmax.flatten()


def dequantize_blockwise(codes, absmax, levels, block_size, shape):
    "The weights that codes and absmax stand for."
    scale = absmax.repeat_interleave(block_size)[: len(codes)]  # "Further down" has a shorter last block
    return (levels[codes.long()] * scale).view(shape)


# %%
def round_trip(x, levels, block_size=64):
    return dequantize_blockwise(*quantize_blockwise(x, levels, block_size), levels, block_size, x.shape)


print(f"a layer of the model: off by {relative_error(weights, round_trip(weights, int4)):.1%}")
print(f"a bell curve: off by {relative_error(bell, round_trip(bell, int4)):.1%}")
print(f"with the outlier, the others: off by {relative_error(spoiled[others], round_trip(spoiled, int4)[others]):.1%}")

# %% [markdown]
# The outlier no longer matters, and even without one the error has nearly halved: the largest of 64 weights is much smaller than the largest of a million, so the levels stand closer. How small should a block be? Smaller blocks round better, and
# each of them costs 32 bits for its absmax.

# %%
sizes = [2**n for n in range(4, 13)]
x = bell.clone()
x.view(-1)[::4096] = 0.4  # one weight in 4,096 is 20 standard deviations out
kept = x != 0.4
errors = {
    "bell curve": [100 * relative_error(bell, round_trip(bell, int4, size)) for size in sizes],
    "with outliers": [100 * relative_error(x[kept], round_trip(x, int4, size)[kept]) for size in sizes],
}

# %%
lines = {name: (sizes, values) for name, values in errors.items()}
title = "Small blocks round better, and keep the harm of an outlier to themselves"
figure = curves(lines, title, "", "relative error (%)")
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_xticks(sizes, [f"{size}\n{4 + 32 / size:.3g}" for size in sizes])
figure.axes[0].set_xlabel("weights per block, and below it the bits per weight")
show(figure, "Line chart: the relative error rises with block size, far more steeply when the weights hold outliers.")

# %% [markdown]
# 64 is bitsandbytes' default: 4 bits for the code, and half a bit for the absmax.
#
# ## 4 Where should the levels go?
#
# Most weights are near zero, so evenly spaced levels are wasted on the rim. [NF4](../site/glossary.md#nf4), "4-bit NormalFloat", puts the levels
# where a bell curve has its weights. Cut the bell into sixteen slices of equal share, so that each slice holds as many weights as any other, and let each have about one level.
# The slices are narrow in the middle, so the levels are dense there
# ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), section 3).
#
# The points between slices are called [quantiles](../site/glossary.md#quantile), and `torch.special.ndtri` computes them: `ndtri(0.9)` is the point below which nine tenths of a bell
# curve lie. One level must be zero, so that a weight of zero stays zero. That leaves 15: eight above zero and seven below. Three steps place them.
#
# 1. *Put the outermost level into the middle of its slice.* With eight levels on each side there would be 16 slices, and 1/32 of all weights would lie further out. With seven on
#    each side and the zero there would be 15 slices, and 1/30. bitsandbytes takes the mean for both sides, so that the levels end at -1 and 1.
# 2. *Go from there to 0.5, the middle of the bell, in equal steps of share*: eight steps above zero, seven below.
# 3. *Let `ndtri` turn each share into a position, and divide all positions by the outermost.*
#
# Here are the three for the levels above zero:

# %%
start = 1 - (1 / 32 + 1 / 30) / 2
shares = torch.linspace(start, 0.5, 9)
positions = torch.special.ndtri(shares)  # in standard deviations
columns = ("step", "share of weights below", "position", "level")
table(zip(range(9), shares, positions, positions / positions[0]), "{:.3f}", columns=columns)

# %% [markdown]
# Below zero there is one step fewer. A function does both sides, for any number of bits:


# %%
def normal_levels(bits, offset):
    "Quantiles of a bell curve, one more above zero than below, and zero; divided by the largest."
    half = 2 ** (bits - 1)
    above = torch.special.ndtri(torch.linspace(offset, 0.5, half + 1)[:-1].double())
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, half)[:-1].double())
    levels = torch.cat([below, torch.zeros(1), above]).float().sort().values
    return levels / levels.max()


def nf4_levels():
    return normal_levels(4, offset=0.9677083)  # bitsandbytes rounds the share to seven digits


# %%
nf4 = nf4_levels()
title = "A bell curve in sixteen slices of equal share: each holds one weight in sixteen"
figure = diagrams.equal_slices(nf4.tolist(), title)
show(figure, "A bell curve cut into sixteen slices, narrow in the middle, with the levels of NF4 marked below it")

# %% [markdown]
# Because zero takes a place, no level lies quite in the middle of its slice. On the right nearly all have moved outwards to make room for it. On the left seven levels have to serve eight slices, so they have moved inwards,
# and the slice beside zero has none but the zero at its edge. This is how the levels are *derived*. In use the outermost one
# stands at the absmax of a block, some 2.6 deviations out, so the codes are not used equally often ("Further down" counts them). Is this the table that bitsandbytes carries?

# %%
import bitsandbytes as bnb

theirs = bnb.functional.get_4bit_type("nf4", device="cpu")
verdict("the derived levels are bitsandbytes' NF4 table, to 1e-7", (nf4 - theirs).abs().max() <= 1e-7)
print(*(f"{level:+.3f}" for level in nf4))

# %% [markdown]
# Here are both sets of levels below real weights, each weight divided by the absmax of its block. The histogram ends at -1 and 1, and the spikes at its ends
# are the one weight of each block that *is* its absmax.

# %%
blocks = weights.view(-1, 64)
scaled = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten()
sets = {"NF4": nf4, "int4": int4}
figure = levels_on_histogram(scaled, sets, "NF4 has its levels where the weights are")
show(figure, "Histogram of block-scaled weights with two rows of ticks for the levels of NF4 and int4.")

# %% [markdown]
# Which set rounds better, and by how much? Write down a guess, then run.

# %%
error = {name: [relative_error(x, round_trip(x, levels)) for x in (bell, weights)] for name, levels in sets.items()}
verdict("NF4 rounds both better than even levels do", max(error["NF4"]) < min(error["int4"]))
table(error, "{:.1%}", columns=("levels", "a bell curve", "a layer of the model"))

# %% [markdown]
# The gain is modest: where the levels stand matters less than the blocks did.
#
# These errors are of all weights together. What does a single weight lose? Take all weights that a block can hold, from minus its absmax to plus.

# %%
x = torch.linspace(-1, 1, 2001)  # one block, whose absmax is 1
lost = 100 * (x - round_trip(x, nf4, block_size=len(x))).abs() / x.abs()
lines = {"a single weight": (x, lost), "the whole layer": (x, torch.full_like(x, 100 * error["NF4"][1]))}
title = "A weight near zero loses all of itself, one on a level nothing"
figure = curves(lines, title, "weight / absmax of its block", "error (% of its own size)")
for line in figure.axes[0].lines:
    line.set_marker("")
figure.axes[0].legend(frameon=False)
print(f"{(round_trip(weights, nf4) == 0).float().mean():.1%} of the layer's weights become zero")
show(figure, "Line chart: the error of a weight in percent of itself, 100 around zero, none on a level, small outside.")

# %% [markdown]
# So 9% describes the layer and not its weights. The smallest ones lose all of themselves, but they are small. The large ones make up most of the layer's size, and they lose little.
#
# ### Try it
#
# Move the block size, the levels and an outlier (in standard deviations), and watch error and bits. At the start the blocks are large, and an outlier has spoiled one of them: make them smaller. The sliders work where a notebook
# runs, and a page that only shows it has a still picture. The explorer works on 16,384 made-up weights, and it calls *your* functions: change `quantize_blockwise` above, run
# this cell again, and it follows.

# %%
from helpers.widgets import explore

explore(quantize_blockwise, dequantize_blockwise, sets)

# %% [markdown]
# ## 5 From a float to a byte, and what it costs
#
# The smallest piece of memory that has an address is a byte, which is 8 bits. So two codes share a byte: the first in its upper four bits, the second in its lower four.
# Below, `<< 4` moves a code four places to the left, and `|` puts the other code into the gap.


# %%
def pack(codes):
    "Two codes per byte, the first in the upper four bits."
    return codes[0::2] << 4 | codes[1::2]


codes, absmax = quantize_blockwise(weights[0, :8], nf4, block_size=8)
[f"{byte:08b}" for byte in pack(codes)]

# %% [markdown]
# Here is this block of eight weights on its way, with the numbers of this run. What is stored is yellow: four bytes and one absmax. The last row is a
# product with eight made-up inputs, as a layer computes it.

# %%
inputs = torch.randn(8, generator=torch.Generator().manual_seed(seed))
few, levels = weights[0, :8].tolist(), nf4[codes.long()].tolist()
title = "Eight weights become four bytes and one absmax, and come back to multiply"
figure = diagrams.block_to_bytes(few, absmax.item(), levels, codes.tolist(), inputs.tolist(), title)
show(figure, "Eight weights, divided by their absmax, nearest levels, codes, four bytes, restored weights, a product")

# %% [markdown]
# Now let bitsandbytes do the same with the whole layer, and compare the bytes.

# %%
theirs, state = bnb.functional.quantize_4bit(weights, quant_type="nf4")
ours = pack(quantize_blockwise(weights, nf4, 64)[0])
print(f"{(ours != theirs.flatten()).sum()} of {len(ours):,} bytes differ")

# %% [markdown]
# What does a weight really cost? Count the bits of all tensors that bitsandbytes keeps for a large matrix. Besides the codes these are the absmax
# values, 32 bits for 64 weights, which is half a bit per weight. [Double quantization](../site/glossary.md#double-quantization) stores the absmax values themselves in 8 bits, and 256 of them share
# one number of 32 bits. So a weight pays 8/64 + 32/(64 × 256) = 0.127 bits for them.


# %%
def kept_bits(packed, state):
    "Bits per weight, from the tensors that bitsandbytes keeps."
    tensors = [packed, *(value for value in state.as_dict().values() if torch.is_tensor(value))]
    return 8 * sum(t.nbytes for t in tensors) / state.shape.numel()


matrix = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(seed)) * 0.02
once = bnb.functional.quantize_4bit(matrix, quant_type="nf4")
twice = bnb.functional.quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
single, double = kept_bits(*once), kept_bits(*twice)
kinds = {"absmax in 32 bits": (single, 4 + 32 / 64), "absmax in 8 bits": (double, 4 + 8 / 64 + 32 / (64 * 256))}
table(kinds, "{:.4f}", columns=("", "bits per weight", "by formula"))

# %% [markdown]
# The counted bits are a trifle above the formula, because bitsandbytes keeps its short tables of levels with each matrix. What does double quantization save in a 7B model, and
# what does it cost in exactness?

# %%
from helpers.memory import shape_of
from helpers.models import PRESETS

shape = shape_of(PRESETS["mistral-7b"].shape)
quantized = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
print(f"Mistral-7B has {shape.parameters / 1e9:.2f} billion weights, of which {quantized / 1e9:.2f} are quantized: "
      f"{quantized * (single - double) / 8 / 1e9:.3f} GB saved")  # fmt: skip
exact_error = relative_error(matrix, bnb.functional.dequantize_4bit(*once))
twice_error = relative_error(matrix, bnb.functional.dequantize_4bit(*twice))
print(f"off by {exact_error:.3%} with absmax in 32 bits, by {twice_error:.3%} with 8 bits")
verdict("double quantization adds less than a hundredth to the error", twice_error < 1.01 * exact_error)

# %% [markdown]
# It is nearly free, which is why QLoRA turns it on.
#
# ## 6 How a 4-bit layer multiplies
#
# "4-bit training" suggests arithmetic in 4 bits. In QLoRA there is none. In training, forward and backward, a 4-bit layer first turns its weights back into ordinary numbers of the
# [compute dtype](../site/glossary.md#compute-dtype), then multiplies as usual, and frees the temporary copy afterwards. So 4 bits save memory and no arithmetic: there is
# one step more than in a 16-bit layer. (When a GPU generates one token at a time, a kernel looks up the levels while it multiplies.) See it with bitsandbytes' layer and your
# own functions:

# %%
from torch.nn.functional import linear

layer = bnb.nn.Linear4bit(1024, 1024, bias=False, compute_dtype=torch.float32)
layer.weight = bnb.nn.Params4bit(bell.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False)
layer = keep_4bit_layout(layer.to("cpu"))  # .to() quantizes
inputs = torch.randn(64, 1024, generator=torch.Generator().manual_seed(seed + 1))
by_hand = linear(inputs, round_trip(bell, nf4))
verdict("a 4-bit layer is: dequantize, then multiply", torch.allclose(layer(inputs), by_hand, atol=1e-5))

# %% [markdown]
# The compute dtype is yours to choose. Here is the same product in three types. The first column compares it with one in float64, so it shows what computing alone did. The second compares
# it with unrounded weights. In the last column every input is 8,192, which all three types can hold, and all weights are made positive, so that the sums exceed 65,504: the share of results that became infinite.

# %% tags=["nbval-ignore-output"] reason="last digits depend on the processor's order of sums"
restored = round_trip(bell, nf4)
exact, true = linear(inputs.double(), restored.double()), linear(inputs.double(), bell.double())
large, rows = torch.full((1, 1024), 8192.0), []
for dtype in FIELDS:
    product = linear(inputs.to(dtype), restored.to(dtype))
    infinite = linear(large.to(dtype), restored.abs().to(dtype)).isinf().float().mean()
    rows.append((str(dtype), relative_error(exact, product), relative_error(true, product), infinite))
of_computing, of_rounding = max(row[1] for row in rows), relative_error(true, exact)
columns = ("compute dtype", "error of computing", "with that of 4 bits", "became infinite")
table(rows, columns=columns, error_of_computing="{:.1e}", with_that_of_4_bits="{:.2%}", became_infinite="{:.0%}")

# %%
verdict(
    "the rounding to 4 bits outweighs what computing in 16 bits adds, more than tenfold",
    10 * of_computing < of_rounding,
)

# %% [markdown]
# So when a model computes an answer, the compute dtype is a question of speed and range: take the 16-bit type that your GPU has units for, and if that is float16, keep an eye on what
# becomes infinite.
#
# ## 7 Why is an error of 9% not fatal?
#
# An NF4 layer is off by some 9%: the size of all its errors over the size of all its weights. Should its output then not be off by 9% as well, and after many layers be rubbish? Do not believe an argument here.
# Measure it. These are questions about facts that the bundled model knows, with their answers, in the form in which it has read such things. (They are held out from what *you* train in lesson 03.)

# %%
rows = run.rows["heldout"].select(range(min(eval_rows, len(run.rows["heldout"]))))
questions = ["\n".join(filter(None, (row["instruction"], row["input"], "Answer:\n"))) for row in rows]
texts = [question + row["output"] + "\n" for question, row in zip(questions, rows)]
text = tokenizer("".join(texts[:8]), return_tensors="pt")
print("".join(texts[:2]))

# %% [markdown]
# Let the model read eight of them, and keep what each of its matrices is given on the way. PyTorch calls a function before each layer if you hook it in.

# %%
matrices = {
    name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"
}
given = {}


def keep(layer, inputs):
    given[layer] = inputs[0][0]


hooks = [part.register_forward_pre_hook(keep) for part in matrices.values()]
with torch.no_grad():
    model(**text)
for hook in hooks:
    hook.remove()

# %% [markdown]
# Now round each matrix, and compare its output with the right one: once for inputs that are pure noise, and once for the inputs that a real text makes. Guess before you
# run it: will the two be off by the same?

# %%
off = []
for layer, real in given.items():
    weight, rounded = layer.weight.data, round_trip(layer.weight.data, nf4)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(seed))
    products = [relative_error(linear(x, weight), linear(x, rounded)) for x in (noise, real)]
    off.append((relative_error(weight, rounded), *products))
weights_off, noise_off, text_off = torch.tensor(off).mean(dim=0).tolist()

# %% [markdown]
# And after all layers together? Compare the whole model with the one that transformers loaded in 4 bits: its last [activations](../site/glossary.md#activation), and the token that it finds likeliest at each place of the text.
# The *gap* is how much more probable that token is than the second.


# %%
@torch.no_grad()
def last_and_choice(model):
    "The last activations, and at each place of the text the likeliest next token and its gap."
    out = model(**text, output_hidden_states=True)
    probable = out.logits[0].softmax(dim=-1).topk(2)
    return out.hidden_states[-1], probable.indices[:, 0], probable.values[:, 0] - probable.values[:, 1]


(last, choice, gap), (last_4, choice_4, _) = last_and_choice(model), last_and_choice(in_4_bits)
same = choice == choice_4
last_off, same_choice = relative_error(last, last_4), same.float().mean().item()

# %%
recorded = quality["through_layers"]
rows = {
    "the weights are off by": (weights_off, recorded["weights"]),
    "a layer's output for noise": (noise_off, recorded["outputs_for_noise"]),
    "a layer's output for a real text": (text_off, recorded["outputs_for_text"]),
    "the model's last activations": (last_off, recorded["last_activations"]),
    "the same next token is likeliest": (same_choice, four["same_choice"]),
}
untrained = "In a model that has learned nothing, a matrix takes a text for noise."
verdict(
    "for a real text a layer's output is off by less than its weights are", text_off < 0.97 * weights_off, untrained
)
table(rows, "{:.1%}", columns=("", "this run", "SmolLM2, recorded"))

# %% [markdown]
# For noise, your worry is right: the output is off by as much as the weights. For a real text it is off by less: much less in the bundled model, and
# a little less in SmolLM2.
#
# So why is an error of 9% not fatal? There are three reasons. A layer's output is off by less, errors add up slowly over the layers, and the choice of a token forgives small errors. The bundled model shows the first and the third clearly. In SmolLM2 the first does less, and the choice of token changes at one place in four.
#
# Why is a layer's output off by less? Ask how strongly a matrix responds to an input. If the two are unrelated, the output's size is about the size of the input times the size of the matrix, divided by the root of the
# number of columns. Divide by that: then 1 means unrelated.


# %%
def response(x, matrix):
    "The size of the output over the size to expect where inputs and matrix are unrelated."
    expected = x.norm() * matrix.norm() / x.shape[1] ** 0.5
    return (linear(x, matrix).norm() / expected).item()


responses = []
for layer, real in given.items():
    weight, noise = layer.weight.data, torch.randn(real.shape, generator=torch.Generator().manual_seed(seed))
    error_alone = weight - round_trip(weight, nf4)
    responses.append((response(noise, weight), response(real, weight), response(real, error_alone)))
for_noise, for_text, error_for_text = torch.tensor(responses).mean(dim=0).tolist()

# %%
print(f"{for_noise:.2f}  noise through the matrix")
print(f"{for_text:.2f}  a text through the matrix")
print(f"{error_for_text:.2f}  the same text through the rounding error alone")
expected_off = weights_off * error_for_text / for_text
print(f"{weights_off:.1%} x {error_for_text:.2f} / {for_text:.2f} = {expected_off:.1%}; measured: {text_off:.1%}")

# %% [markdown]
# Training made the matrices respond strongly to the inputs that texts make, so the right output is large. The rounding errors know nothing of these inputs, so to them a text is noise, and their sum stays small
# beside the right output. The last line shows that this explains nearly all of the difference.
#
# The second reason is in the row of the last activations. SmolLM2 has 210 matrices, and yet after all of them only a quarter of the size is wrong, not many times the size. Each layer *adds* its result to what came before, the
# [residual stream](../site/glossary.md#residual-stream). So the right results add up as well as the errors, and errors that know nothing of each other add up more slowly. The quarter was measured; how much each of these contributes
# was not.
#
# The third is the gap. A model does not have to compute the right number, it has to choose the right token.

# %%
print(f"{gap[same].mean():.2f}  gap at the {same.sum()} places where the likeliest token stays the same")
print(f"{gap[~same].mean():.2f}  gap at the {(~same).sum()} places where it changes")

# %% [markdown]
# The bundled model's choice changed at places where, on average, two tokens were nearly equally likely. SmolLM2's gaps were not measured. It changes its choice more often,
# as you saw at the top: an error of 9% is survivable, and it is not free.
#
# ## 8 What a model feels
#
# So errors of weights are not what you care about. Here is SmolLM2 rounded in each way that this lesson has, and a few more. Before you run the cell, guess: where does it break,
# between 8 and 4 bits, between 4 and 3, or between 3 and 2? The more bits, the higher up a row stands, and NF4 is dark blue.

# %%
title = "SmolLM2, rounded in many ways: the error of its weights, and its perplexity"
by_bits = sorted(quality["rows"], key=lambda row: -row["bits_per_weight"])
figure = diagrams.error_and_perplexity(by_bits, title)
alt = "Bars of weight error and perplexity for each way to round: they rise together, and leap with 3 and 2 bits"
show(figure, alt)

# %% [markdown]
# int8 is a milder choice: 8 bits, evenly spaced, a scale for each row ("Further down"). FP4 is bitsandbytes' other set of 16 levels.
#
# - **The step from 8 to 4 bits costs something, and the step from 4 to 3 costs far more.** With 2 bits nothing is left: four
#   billion is far more than there are tokens, so the model is not merely at a loss, it is sure of the wrong ones.
# - **Blocks matter most.** One absmax for a whole matrix takes 4 bits per weight in place of 4.5, and ruins the model. Blocks of 4,096 save nearly as much, and perplexity rises from 18.7 to 26.8.
# - **Double quantization is nearly free.** Blocks of 256 take 4.125 bits and give 21.6. Blocks of 64 with double quantization take 4.127 bits and give 18.7.
# - **The error of the weights is a guide and no measure.** FP4 errs more than evenly spaced levels do, and here it has the lower perplexity.
#
# One model and one text prove little about small differences like the last one. Now the same live, on the model of this run: perplexity on its questions and answers, and
# *recall*, the share of answers that it gets right in full. First mark the places in the texts where the answers stand:

# %%
batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
begins = torch.tensor([len(tokenizer(question).input_ids) for question in questions])
tokens, real = batch.input_ids[:, 1:], batch.attention_mask[:, 1:].bool()
of_answer = real & (torch.arange(1, batch.input_ids.shape[1]) >= begins[:, None])

# %% [markdown]
# An answer is right in full if each of its tokens is the likeliest one, given those before it. The model gives a score to each possible next token; these scores are called *logits*. `cross_entropy` turns them into the mean
# surprise at the right tokens, which is the loss, and perplexity is `exp` of that.


# %%
@torch.no_grad()
def perplexity_and_recall(model):
    logits = model(**batch).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits[real], tokens[real])
    missed = (logits.argmax(dim=-1) != tokens) & of_answer
    return {"perplexity": loss.exp().item(), "recall": 1 - missed.any(dim=1).float().mean().item()}


# %%
def middle_offset(bits):
    "Half a slice from the end, as for NF4, with 3 or 2 bits."
    return 1 - (1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2


nf3, nf2 = normal_levels(3, middle_offset(3)), normal_levels(2, middle_offset(2))
roundings = {
    "float32, not rounded": lambda w: w,
    "NF4, blocks of 64": lambda w: round_trip(w, nf4),
    "NF4, no blocks": lambda w: with_one_absmax(w, nf4),
    "3 bits, blocks of 64": lambda w: round_trip(w, nf3),
    "2 bits, blocks of 64": lambda w: round_trip(w, nf2),
}

# %%
unrounded = {part: part.weight.data for part in matrices.values()}
felt = {}
for name, rounding in roundings.items():
    for part, weight in unrounded.items():
        part.weight.data = rounding(weight)
    felt[name] = perplexity_and_recall(model)
for part, weight in unrounded.items():
    part.weight.data = weight
felt["NF4, loaded by transformers"] = perplexity_and_recall(in_4_bits)

# %% tags=["nbval-ignore-output"] reason="the last digits of a model's loss depend on the processor"
table(felt, perplexity="{:,.2f}", recall="{:.1%}", columns=["weights"])

# %%
ours, theirs = felt["NF4, blocks of 64"], felt["NF4, loaded by transformers"]
alike = abs(ours["perplexity"] / theirs["perplexity"] - 1) < 1e-3
verdict("your functions give the model that transformers loads in NF4", alike)
if run.model.bundled:
    kept = ours["recall"] > felt["float32, not rounded"]["recall"] - 0.03
    lost = felt["2 bits, blocks of 64"]["recall"] < 0.1
    verdict("in 4 bits with blocks it keeps its answers, and in 2 bits it loses nearly all of them", kept and lost)

# %% [markdown]
# The bundled model does not notice 4 bits, nor 3, and at 2 bits it forgets everything at once. (A perplexity that falls by a few hundredths is no gain but chance.) It is tiny, and it knows its few thousand facts by heart. A test that a model
# passes with full marks even in 3 bits cannot tell you what 4 bits cost.
#
# Without blocks the bundled model is rounded more coarsely too, and it still passes this easy test. SmolLM2 is ruined. Compare their largest weights.

# %%
largest = max((part.weight.abs().max() / part.weight.std()).item() for part in matrices.values())
print(f"the largest weight of all matrices, in standard deviations: {largest:.0f}")
print(f"the same in SmolLM2: {quality['largest_in_deviations']:.0f}")

# %% [markdown]
# The further out the largest weight, the fewer levels are left for all others. A block confines it to its neighbours.
#
# For large models QLoRA's paper finds that NF4 with double quantization, once fine-tuned, matches 16 bits
# ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), section 4). Measure it on your own task all the same.
#
# ## 9 Other 4-bit formats
#
# NF4 is one of several. The column "LoRA" says whether an adapter can be trained on such a base with transformers 5.24 and PEFT 0.21, and a test of this course checks both. Other tools may do more. A *group* is what this
# lesson calls a block, and a *zero point* is the code that means zero. What is said of projects was looked up in November 2026.
#
# | format | how it chooses the values | what it is for | LoRA | its project |
# |---|---|---|---|---|
# | NF4, in [bitsandbytes](https://github.com/bitsandbytes-foundation/bitsandbytes) | levels of a bell curve, absmax of 64; needs no data | QLoRA; loading any model in 4 bits at once | yes | alive: 0.50.2, August 2026 |
# | GPTQ ([2022](https://arxiv.org/abs/2210.17323)) | rounds column by column and corrects the columns that follow, by sample data | fast serving | yes, through [GPT-QModel](https://github.com/ModelCloud/GPTQModel) | alive there (7.7); transformers [dropped AutoGPTQ](https://github.com/huggingface/transformers/pull/41567) in December 2025 |
# | AWQ ([2023](https://arxiv.org/abs/2306.00978)) | scales up the channels that sample data shows to matter | fast serving | yes, through GPT-QModel | [AutoAWQ is deprecated](https://pypi.org/project/autoawq/); [llm-compressor](https://github.com/vllm-project/llm-compressor) makes such models: 0.14, October 2026 |
# | HQQ ([2023](https://mobiusml.github.io/hqq_blog/)) | fixes scales and solves for zero points; needs no data | quick rounding, down to 2 bits and below | yes | [moved to Dropbox](https://github.com/dropbox/hqq); 0.2.8.post1 was the newest release in November 2026 |
# | int4 in [torchao](https://github.com/pytorch/ao) | even levels in groups, made for `torch.compile` | serving with PyTorch's own kernels | only its 8-bit kinds ([peft#2848](https://github.com/huggingface/peft/pull/2848)) | alive: 0.18 |
# | [GGUF](../site/glossary.md#gguf), of [llama.cpp](https://github.com/ggml-org/llama.cpp) | blocks of 32, or of 16 or 32 within groups of 256 (the K kinds), and mixtures such as Q4_K_M | laptops, phones, CPUs | no: a trained adapter is merged first and then converted (lesson 05) | alive: it [learned NVFP4](https://github.com/ggml-org/llama.cpp/pull/19769) in 2026 |
# | MXFP4 ([standard, 2023](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)) | tiny floats, a power of two for each 32 | models published in it, such as gpt-oss | only after `Mxfp4Config(dequantize=True)` ([transformers#39969](https://github.com/huggingface/transformers/issues/39969)) | a standard of several makers |
# | NVFP4 ([NVIDIA, 2025](https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/)) | tiny floats, an 8-bit float for each 16, and one float32 | arithmetic in 4 bits, on Blackwell GPUs | no | NVIDIA's |
#
# To train an adapter on a GPU that holds the model only in 4 bits, NF4 is the usual choice. The others are mostly for serving what has been trained, that is, for answering many users with it.
#
# ## 10 One object switches it on
#
# In transformers all of this is `BitsAndBytesConfig`. Its defaults are *not* what QLoRA uses:

# %%
default = BitsAndBytesConfig(load_in_4bit=True)
print("levels:", default.bnb_4bit_quant_type)
print("computes in:", default.bnb_4bit_compute_dtype, "(the argument's default is None)")
print("double quantization:", default.bnb_4bit_use_double_quant)

# %% [markdown]
# > **Trap: only `load_in_4bit=True`.**
# >
# > *What you see:* no error. The model is rounded to FP4, computes in float32, which is slow on a GPU, and keeps its absmax values in 32 bits.
# > *Cure:* set all four: `load_in_4bit=True`, `bnb_4bit_quant_type="nf4"`, `bnb_4bit_use_double_quant=True`, and `bnb_4bit_compute_dtype`. There is no argument for the block size; it is 64.

# %%
record(
    relative_error=error, bits_per_weight={"single": single, "double": double}, felt=felt,
    off={"weights": weights_off, "noise": noise_off, "text": text_off, "last": last_off, "same_choice": same_choice},
)  # fmt: skip

# %% [markdown]
# ## Exercises
#
# The dots say how hard an exercise is. Write your answer into the cell and run it: it is checked at once, and a wrong answer gets a hint. Solutions are
# folded away below each exercise.
#
# **1.** *Write*, 5 minutes, •. How many bits does a weight take, all in all? An absmax has 32 bits. With double quantization it has 8, and every 256 absmax values share one number of 32
# bits. Leave out tables of levels.


# %%
def bits_per_weight(block_size, double):
    "Bits per weight in blocks of block_size; double says whether the absmax values are quantized too."
    return ...


check("01.1", bits_per_weight)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def bits_per_weight(block_size, double):
#     absmax = 8 + 32 / 256 if double else 32
#     return 4 + absmax / block_size
#
#
# check("01.1", bits_per_weight)
# ```
# </details>
#
# **2.** *Repair*, 10 minutes, ••. A colleague wrote this quantizer. It runs, and it is wrong in two ways: its weights come back with a larger error than
# yours do. Write it right, as `quantize`.


# %%
def their_quantize(x, levels, block_size):
    blocks = x.view(-1, block_size)
    absmax = blocks.amax(dim=1)
    codes = torch.bucketize(blocks / absmax[:, None], levels[1:])
    return codes.flatten(), absmax


quantize = ...
check("01.2", quantize)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The absmax is the largest *size*, so `abs()` comes first. And the borders between codes lie midway between two levels; with `levels[1:]` every weight goes
# down to the level below it, however near the next one is.
#
# ```python
# import torch
#
#
# def quantize(x, levels, block_size):
#     blocks = x.view(-1, block_size)
#     absmax = blocks.abs().amax(dim=1)
#     codes = torch.bucketize(blocks / absmax[:, None], (levels[1:] + levels[:-1]) / 2)
#     return codes.flatten(), absmax
#
#
# check("01.2", quantize)
# ```
# </details>
#
# **3.** *Write*, 5 minutes, ••. Write the way back from bytes to codes: `unpack(packed)` takes a tensor of bytes and gives all the codes in their order.


# %%
def unpack(packed):
    "Two codes from each byte, the upper four bits first."
    return ...


check("01.3", unpack)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
#
# def unpack(packed):
#     return torch.stack([packed >> 4, packed & 15], dim=1).flatten()
#
#
# check("01.3", unpack)
# ```
# </details>
#
# **4.** *Write*, 15 minutes, •••. Now the whole layer. `packed` holds the bytes of a matrix with `outputs` rows and as many columns as `x` has, in blocks of 64, with one absmax per block. Write `nf4_linear`: it
# returns what the layer computes for the rows of `x`. You may use `unpack` and `dequantize_blockwise` from above.


# %%
def nf4_linear(x, packed, absmax, levels, outputs):
    "x times the transposed matrix, as a tensor with a column for each of the outputs."
    return ...


check("01.4", nf4_linear)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
#
# def nf4_linear(x, packed, absmax, levels, outputs):
#     codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
#     weight = (levels[codes] * absmax.repeat_interleave(64)).view(outputs, -1)
#     return x @ weight.T
#
#
# check("01.4", nf4_linear)
# ```
# </details>
#
# **5.** *Predict, then run*, 5 minutes, ••. You change the numbers of the bell curve before you round them to NF4 in blocks of 64. What happens to the relative error: is it `"smaller"`, the `"same"` or `"larger"`? Write
# down all four guesses first. The cell then does it and compares. (Up to a hundredth counts as the same.)

# %%
guesses = ...  # {"times 1000": ..., "shuffled": ..., "sorted": ..., "cubed": ...}

mixed = torch.randperm(bell.numel(), generator=torch.Generator().manual_seed(seed))
flat = bell.flatten()
changed = {"times 1000": 1000 * flat, "shuffled": flat[mixed], "sorted": flat.sort().values, "cubed": flat**3}
before = relative_error(flat, round_trip(flat, nf4))
came_out = {name: relative_error(x, round_trip(x, nf4)) / before for name, x in changed.items()}
check("01.5", guesses, came_out)
None if guesses is ... else table(came_out, "{:.2f}", columns=("change", "its error, beside the bell curve's"))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The absmax takes a factor out, so 1000 changes nothing, and shuffled weights fill their blocks with the same mixture as before. Sorted weights have neighbours of nearly their own size. So all of
# a block lie close to its absmax, which is itself a level, and hardly anything is lost. (Then you would have to store where each weight belongs.) Cubes are mostly tiny, with a few that are large: each block has outliers. Yet the error is
# only 1.2 times as large, because the large cubes make up most of the size, and the largest of each block is exact.
#
# ```python
# guesses = {"times 1000": "same", "shuffled": "same", "sorted": "smaller", "cubed": "larger"}
# check("01.5", guesses)
# ```
# </details>
#
# **6.** *Decide*, 5 minutes, ••. Three people want to use a model whose layers have 13.0 billion weights. Their GPUs have room for 14, 7 and 6 GB of these. Each wants the lowest perplexity that fits, going by the figure of section 8 (SmolLM2's bits and perplexities), and accepts no model whose
# perplexity is twice that of 16 bits. What do they take: `"int8"`, `"nf4"` in blocks of 64 with double quantization, `"nf4-32"` in blocks of 32 without it, `"3 bits"`, or `"a smaller model"`?

# %%
choices = ...  # {14: ..., 7: ..., 6: ...}
check("01.6", choices)

# %% [markdown]
# <details><summary>Solution</summary>
#
# In GB, 13.0 billion weights take 13.0 × bits / 8: 13.0 with int8, 8.1 with blocks of 32, 6.7 with double quantization, and 5.7 with 3 bits. The last would fit 6 GB, and its perplexity is
# three times that of 16 bits.
#
# ```python
# choices = {14: "int8", 7: "nf4", 6: "a smaller model"}
# check("01.6", choices)
# ```
# </details>
#
# **7.** *Repair*, 5 minutes, •. Write the configuration `BitsAndBytesConfig(load_in_4bit=True)` as QLoRA needs it on a T4.

# %%
config = ...
check("01.7", config)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import torch
# from transformers import BitsAndBytesConfig
#
# config = BitsAndBytesConfig(
#     load_in_4bit=True,
#     bnb_4bit_quant_type="nf4",  # the default is fp4
#     bnb_4bit_use_double_quant=True,  # the default is False
#     bnb_4bit_compute_dtype=torch.float16,  # the default is float32; bfloat16 from Ampere on
# )
# check("01.7", config)
# ```
# </details>
#
# ## What you have now
#
# You have built NF4 from a bell curve and taken a weight from a float to half a byte and back. You know what it costs, 4.127 bits per weight with double quantization, and what a model
# loses, which is little with blocks and much without. You have seen why that loss is smaller than the error of the weights suggests.
#
# Next: [02 Memory math](02_memory_math.ipynb), where these bits per weight become gigabytes.
#
# ## Further down
#
# What follows is for readers who want to know more. Nothing later depends on it.
#
# ### Bit for bit
#
# `quantize_blockwise` above is short, and in rare cases it differs from bitsandbytes in a byte. Make it equal in everything: packed codes, absmax values, and restored weights. Four
# details do it. A weight midway between two levels gets the lower one, which `bucketize` does already. A block of zeros must not divide by zero. All blocks are *multiplied* by the inverse of their absmax, and
# a last block that is shorter is *divided*; the two can differ in the last bit. And levels need not be in the order of their codes.
#
# One thing is different on purpose: a weight that is infinite or not a number (NaN) is refused.


# %%
def finite(x):
    "x itself; ValueError if a value in it is infinite or NaN."
    bad = x.numel() - int(x.isfinite().sum())
    if bad:
        raise ValueError(f"{bad} of {x.numel()} values are infinite or NaN and spoil their blocks: repair them first")
    return x


# %%
def quantize_exactly(x, levels, block_size):
    "As bitsandbytes does it on a CPU: uint8 codes, one per value, and float32 absmax, one per block."
    values, order = levels.sort(stable=True)
    flat = finite(x).flatten().float()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks * (1 / absmax.clamp(min=1e-38))[:, None]
    if len(flat) % block_size:
        absmax[-1] = absmax[-1].clamp(min=1e-38)
        scaled[-1] = blocks[-1] / absmax[-1]
    codes = order[torch.bucketize(scaled.flatten()[: len(flat)], (values[1:] + values[:-1]) / 2)]
    return codes.to(torch.uint8), absmax


# %% [markdown]
# bitsandbytes' other 4-bit type, [FP4](../site/glossary.md#fp4), is a tiny floating-point number: a sign, two exponent bits, one fraction bit. Its exponent counts down, so that a code is not in the order of its value.


# %%
def fp4_levels():
    "The 16 levels of bitsandbytes' FP4 in the order of their codes, divided by the largest, 12."

    def size(code):
        exponent, fraction = code >> 1, code & 1
        return 2 ** (4 - exponent) * (1 + fraction / 2) if exponent else fraction / 16

    sizes = torch.tensor([size(code) for code in range(8)])
    return torch.cat([sizes, 0 - sizes]) / 12


fp4 = fp4_levels()
verdict("these are bitsandbytes' FP4 levels", torch.equal(fp4, bnb.functional.get_4bit_type("fp4", device="cpu")))

# %% [markdown]
# Now compare, and not only for well-behaved weights. There are heavy tails, zeros, numbers too small for a normal float, an outlier of 60,000, ties between two levels, a length that fills no block; in three types, two sets
# of levels, and eight block sizes. An odd number of codes is filled up with the code of zero before it is packed.


# %%
def same_bits(x, kind, block_size):
    "Whether bitsandbytes and the functions of this lesson agree on x in every bit."
    levels, filler = (nf4_levels(), 7) if kind == "nf4" else (fp4_levels(), 0)
    packed, state = bnb.functional.quantize_4bit(x, blocksize=block_size, quant_type=kind)
    codes, absmax = quantize_exactly(x, levels, block_size)
    restored = dequantize_blockwise(codes, absmax, levels, block_size, x.shape).to(x.dtype)
    theirs = bnb.functional.dequantize_4bit(packed, state).view(x.shape)  # it makes a matrix of a row
    filled = torch.nn.functional.pad(codes, (0, len(codes) % 2), value=filler)
    pairs = ((pack(filled), packed.flatten()), (absmax, state.absmax), (restored, theirs))
    return all(torch.equal(mine, others) for mine, others in pairs)


# %%
curve, up = torch.randn(20_001, generator=torch.Generator().manual_seed(seed)), fp4.sort().values
cases = {
    "bell curve": curve,
    "heavy tails": (curve / curve.roll(1)).clamp(-6e4, 6e4),
    "zeros": torch.zeros(5000),
    "subnormal": curve * 1e-40,
    "one outlier": torch.cat([curve, torch.tensor([6e4])]),
    "ties": torch.cat([nf4[1:] + nf4[:-1], up[1:] + up[:-1], torch.tensor([2.0])]).repeat(50),
    "shorter than a block": curve[:7],
}

# %%
sizes, agree = [2**n for n in range(5, 13)], {}
with torch.compiler.set_stance("force_eager"):  # bitsandbytes would compile a rare path, which takes long
    for name, x in cases.items():
        found = [same_bits(x.to(t), kind, size) for t in FIELDS for kind in ("nf4", "fp4") for size in sizes]
        agree[name] = (sum(found), len(found))
verdict("codes, absmax and restored weights equal bitsandbytes', bit for bit", all(a == b for a, b in agree.values()))
table(agree, columns=("values", "agree", "of"))

# %% [markdown]
# (`torch.equal` takes 0.0 and -0.0 for equal, and has to: FP4's code 8 is -0.0 on one of bitsandbytes' own paths and 0.0 on another. Every other bit is compared.)
#
# And what does bitsandbytes do with a NaN among the weights?

# %%
broken = curve[:128].clone()
broken[100] = float("nan")
for nested in (False, True):
    kept = bnb.functional.quantize_4bit(broken, quant_type="nf4", compress_statistics=nested)
    lost = 128 - bnb.functional.dequantize_4bit(*kept).isfinite().sum()
    print(f"one NaN in the second of two blocks, double quantization {nested!s:5}: {lost} of 128 values lost")
try:
    quantize_exactly(broken, nf4, 64)
except ValueError as problem:
    print("yours:", problem)

# %% [markdown]
# It says nothing. The block is lost, and with double quantization the *whole tensor*, since the mean of all absmax values is lost too. A checkpoint with one NaN gives a model of NaN.
#
# ### Double quantization by hand
#
# Absmax values are all positive and much alike, so their mean comes off first. What is left is rounded to 256 levels that are dense near zero: seven decades, each with twice as many
# levels as the one below it ([Dettmers 2015](https://arxiv.org/abs/1511.04561)).


# %%
def dynamic_levels():
    "The 256 levels of bitsandbytes' 8-bit type, sorted."
    levels = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        levels += [middles, -middles]
    return torch.cat(levels).sort().values


# %% [markdown]
# Two things here you could not guess. On a CPU bitsandbytes does not search 256 levels for every value. It first rounds the value to one of 65,536 even steps, and keeps a list of which level is nearest
# to each step. And the processor multiplies by 65,535 and adds one half in a single operation that rounds once, a *fused multiply-add* (FMA). In Python the product would be rounded before the sum. So the line below computes in float64, where the product is exact,
# and rounds once.


# %%
def double_quantize(absmax):
    "(codes, absmax, offset): uint8 codes of the absmax values, the float32 absmax of each 256 of them, and their mean."
    levels, offset = dynamic_levels(), finite(absmax).mean()
    blocks = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
    largest = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / largest)[:, None]).nan_to_num(-1).clamp(-1, 1)  # a block of zeros gets code 0
    steps = (((scaled + 1) * 0.5).double() * 65535 + 0.5).float().floor()  # 0 to 65535
    codes = torch.bucketize(steps / 65535 * 2 - 1, (levels[1:] + levels[:-1]) / 2)
    return codes.flatten()[: len(absmax)].to(torch.uint8), largest, offset


# %%
state = twice[1]
codes, largest, offset = double_quantize(quantize_exactly(matrix, nf4, 64)[1])
same = (codes == state.absmax).all() and (largest == state.state2.absmax).all() and offset == state.offset
verdict("double quantization gives bitsandbytes' codes, absmax and mean, bit for bit", same)

# %% [markdown]
# ### Is NF4 optimal?
#
# It is often said to be "information-theoretically optimal for normally distributed weights". That claim can be checked. It would mean that all 16 codes are used equally often, so that each
# carries a full 4 bits. Count them:

# %%
x = (bell.view(-1, 64) / bell.view(-1, 64).abs().amax(dim=1, keepdim=True)).flatten().sort().values
usage = quantize_blockwise(bell, nf4, 64)[0].long().bincount(minlength=16) / bell.numel()
labels, shares = [f"{level:.2f}" for level in nf4], (100 * usage).tolist()
title, share = "NF4 uses its codes unevenly", {"line": 100 / 16, "line_label": "an equal share, 6.25%"}
figure = bars(labels, shares, title, "share of the weights (%)", numbers="{:.1f}", size=(7.2, 4.4), **share)
figure.axes[0].set_ylabel("level")
show(figure, "Bars: the share of weights at each NF4 level, from below 2% at the ends to above 9% near zero.")

# %% [markdown]
# They are not used equally. The weights were scaled by the absmax of their block, and what comes out depends on the block size, which NF4's derivation does not know
# ([Yoshida 2023](https://arxiv.org/abs/2306.06965) says so too). Then what is the best set? That depends on what you want. Make one for each of two wishes, from the scaled weights themselves:
#
# - *equal use*: levels in 16 parts of equal share;
# - *least squared error*: Lloyd's and Max's method. Put each level at the mean of the weights that go to it, send each weight to its nearest level, and repeat until nothing moves.


# %%
def lloyd_max(x, rounds=300):
    "16 levels of least squared error for the sorted values x."
    sums = torch.cat([torch.zeros(1), x.double().cumsum(0)])
    levels = torch.linspace(-0.95, 0.95, 16)
    for _ in range(rounds):
        edges = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        edges = torch.cat([torch.tensor([0]), edges, torch.tensor([len(x)])])
        levels = (sums[edges].diff() / edges.diff()).float()
    return levels


# %%
def judge(levels, x):
    "Bits of information in a code, and the relative error."
    codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
    share = codes.bincount(minlength=16) / len(x)
    return -(share[share > 0] * share[share > 0].log2()).sum().item(), relative_error(x, levels[codes])


candidates = {"NF4": nf4, "equal use": x.view(16, -1).mean(dim=1), "Lloyd-Max": lloyd_max(x), "int4": int4, "FP4": up}
judged = {name: judge(levels, x) for name, levels in candidates.items()}
table(judged, columns=("levels", "bits in a code", "relative error"), bits_in_a_code="{:.2f}", relative_error="{:.2%}")

# %% [markdown]
# (These are errors of the *scaled* weights, where every block counts alike. In section 4 blocks with a large absmax counted for more, so the errors there are a little higher.)

# %%
(information, ours), (full, worse), (_, best) = (judged[name] for name in ("NF4", "equal use", "Lloyd-Max"))
verdict(
    "NF4 neither uses its codes equally nor has the least error",
    information < 3.95 < full and best < 0.97 * ours < worse,
)
record(codebooks=judged, agree=agree)

# %% [markdown]
# So NF4 is not information-theoretically optimal for weights in blocks, and nobody should want that optimum: the set with equal use rounds worse. It crowds levels near zero and has none to spare for
# the large weights, where errors are large. ("And that's good", says the title of Yoshida's note.) Nor has NF4 the least error. Lloyd-Max has a little less, though it gives up both an exact zero
# and an exact absmax. At blocks of 64 NF4 is a good choice and no optimum.
#
# ### Eight bits
#
# LLM.int8 rounds weights *and inputs* to whole numbers from -127 to 127, with a scale for each row, and multiplies those whole numbers, which GPUs do fast
# ([Dettmers et al. 2022](https://arxiv.org/abs/2208.07339)). Weights take that well. Inputs do not: in large models some columns hold values that dwarf the rest, in every row. So columns with a value beyond a threshold, 6.0, are
# set aside and multiplied as they are.


# %%
def int8_rows(x):
    "Whole numbers from -127 to 127 (still as floats), and the scale of each row."
    absmax = x.abs().amax(dim=1, keepdim=True)
    return (x * (127 / absmax)).round(), absmax / 127


def int8_linear(x, weight, threshold):
    outliers = (x.abs() >= threshold).any(dim=0)
    (x8, x_scale), (w8, w_scale) = int8_rows(x * ~outliers), int8_rows(weight)
    return (x8 @ w8.T) * x_scale * w_scale.T + x[:, outliers] @ (w8 * w_scale)[:, outliers].T


# %%
inputs[:, 7] *= 40  # an outlier column
layer = bnb.nn.Linear8bitLt(1024, 1024, bias=False, has_fp16_weights=False, threshold=6.0)
layer.weight = bnb.nn.Int8Params(bell.clone(), requires_grad=False, has_fp16_weights=False)
products = {
    "8 bits, no threshold": int8_linear(inputs, bell, threshold=float("inf")),
    "8 bits, threshold 6": int8_linear(inputs, bell, threshold=6.0),
    "8 bits, bitsandbytes' layer": layer.to("cpu").eval()(inputs.half()).float(),
    "4 bits, NF4": linear(inputs, round_trip(bell, nf4)),
}

# %%
true = linear(inputs.double(), bell.double())
wrong = {name: relative_error(true, product) for name, product in products.items()}
verdict(
    "setting outlier columns aside mends the product", wrong["8 bits, threshold 6"] < wrong["8 bits, no threshold"] / 4
)
record(product_error=wrong)
table(wrong, "{:.2%}", columns=("product", "relative error"))

# %% [markdown]
# Eight bits are about ten times as exact as four here, and take nearly twice the memory. Choose them when a model suffers in 4 bits and still fits.
#
# ### BitsAndBytesConfig, field by field

# %%
USE = {
    "load_in_8bit": ("False", "True gives LLM.int8 instead; not both"),
    "load_in_4bit": ("True", "this is QLoRA's base model"),
    "llm_int8_threshold": ("leave", "8 bits only: from which size on a column is set aside"),
    "llm_int8_skip_modules": ("leave", "layers to keep in 16 bits, in 4-bit models too; None skips the output layer"),
    "llm_int8_enable_fp32_cpu_offload": ("leave", "layers on the CPU in float32, if the GPU cannot hold all; slow"),
    "llm_int8_has_fp16_weight": ("leave", "8 bits only: keeps the 16-bit weights as well"),
    "bnb_4bit_compute_dtype": ("float16 on a T4, bfloat16 since Ampere", "float32 is slow; section 6"),
    "bnb_4bit_quant_type": ("nf4", "FP4 rounds worse; section 8"),
    "bnb_4bit_use_double_quant": ("True", "0.373 bits per weight for next to no error; section 5"),
    "bnb_4bit_quant_storage": ("leave", "the type that packed bytes pretend to have; FSDP wants that of the model"),
}

# %%
import inspect

defaults = {field.name: str(field.default) for field in inspect.signature(BitsAndBytesConfig).parameters.values()}
table({name: (defaults[name], *use) for name, use in USE.items()}, columns=("field", "default", "for QLoRA", "why"))

# %% [markdown]
# Next: [02 Memory math](02_memory_math.ipynb), where these bits per weight become gigabytes.
