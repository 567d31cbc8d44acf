# %% [markdown]
# # 01 Quantization basics
#
# A 7B model in 16 bits all but fills a T4. In 4 bits it takes a quarter to a third of that memory, or a little more,
# and that is the Q of QLoRA. In this lesson you build 4-bit quantization yourself, in functions of a few lines, and then find that they give what
# bitsandbytes gives: the same codes, the same constants, the same bytes.
#
# You need some Python and PyTorch. You need no GPU: the lesson compares bits, and does so on the CPU everywhere.
# **Time:** {{cpu_time}} on a CPU, {{t4_time}} on a T4.

# %% tags=["parameters"]
model_id = "bundled"  # what section 8 quantizes: its facts are known, so that what it forgets can be counted
eval_rows = 128
seed = 0
output_dir = "auto"

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "01_quantization_basics", with_data=True, model_id=model_id, eval_rows=eval_rows, seed=seed, output_dir=output_dir
)

# %% [markdown]
# ## 1. What a 16-bit number is
#
# A floating point number is three fields of bits: a sign, an exponent that says how large, and a fraction that says
# how exactly. The types differ only in how many bits each field gets. Look at one third in all three:

# %%
import torch

FIELDS = {torch.float32: (8, 23), torch.float16: (5, 10), torch.bfloat16: (8, 7)}  # bits of exponent and of fraction


def bits(x, dtype):
    "Sign, exponent and fraction of the number nearest to x, as text."
    exponent, fraction = FIELDS[dtype]
    size = 1 + exponent + fraction
    pattern = torch.tensor(x, dtype=dtype).view(torch.int32 if size == 32 else torch.int16).item() % 2**size
    text = f"{pattern:0{size}b}"
    return f"{text[0]} {text[1 : 1 + exponent]} {text[1 + exponent :]}"


for dtype in FIELDS:
    print(f"{str(dtype):15}  {bits(1 / 3, dtype)}")

# %% [markdown]
# bfloat16 is float32 without its last 16 bits (rounded, as the last bit shows). float16 has a shorter exponent and a
# longer fraction. To read such a number back takes one formula: 2 to the power of the exponent less a bias, times one
# plus the fraction.


# %%
def number(text):
    "The value of a normal number, from its sign, exponent and fraction."
    sign, exponent, fraction = text.split()
    bias = 2 ** (len(exponent) - 1) - 1
    return (-1) ** int(sign) * 2.0 ** (int(exponent, 2) - bias) * (1 + int(fraction, 2) / 2 ** len(fraction))


[number(bits(1 / 3, dtype)) for dtype in FIELDS]

# %% [markdown]
# Range and step can be read off the patterns. The largest number has all ones, but for the last bit of its exponent
# (all ones there means infinity or NaN). The step at 1 is what the last bit of the fraction adds.

# %%
ranges = []
for dtype, (exponent, fraction) in FIELDS.items():
    largest = number(f"0 {'1' * (exponent - 1)}0 {'1' * fraction}")
    smallest = number(f"0 {'0' * (exponent - 1)}1 {'0' * fraction}")
    step = number(f"0 0{'1' * (exponent - 1)} {'0' * (fraction - 1)}1") - 1
    info = torch.finfo(dtype)
    assert (largest, smallest, step) == (info.max, info.tiny, info.eps)  # PyTorch agrees
    ranges.append({"type": dtype, "largest": largest, "smallest normal": smallest, "step at 1": step})
table(ranges)

# %% [markdown]
# Both 16-bit types take 2 bytes. One is exact to three digits and ends at 65,504, the other is exact to two digits
# and ends where float32 ends. This is what that means for three numbers:

# %%
stored = {dtype: [torch.tensor(x, dtype=dtype).item() for x in (70000.0, 1.001, 1e-8)] for dtype in FIELDS}
table(stored, columns=("type", "70000", "1.001", "1e-8"))

# %%
overflows, rounds = stored[torch.float16][0] == float("inf"), stored[torch.bfloat16][1] == 1
verdict("70,000 overflows in float16, and 1.001 is 1 in bfloat16", overflows and rounds)

# %% [markdown]
# **Why this matters on a T4.** A T4 (compute capability 7.5) has units for float16 and none for bfloat16. Much QLoRA
# code says bfloat16 all the same, and `torch.cuda.is_bf16_supported()` answers True there, since it counts emulation
# ([pytorch#148322](https://github.com/pytorch/pytorch/issues/148322)). So on a T4 you compute in float16: you gain
# digits, and you must watch for 65,504. The course asks for the compute capability instead, in `helpers/machine/hardware.py`,
# and lesson 03 trains that way.
#
# **Exercise 01.1.** Some GPUs have an 8-bit float with 4 exponent bits and 3 fraction bits. By the rules above, what
# is its largest finite number?

# %%
answer = ...
check("01.1", answer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = number("0 1110 111")
# check("01.1", answer)
# ```
# The exponent 1110 is 14, the bias is 7, and the fraction 111 is 7/8: 2^7 times 1.875. (The variant that most GPUs
# use, E4M3FN, has no infinity. It gets one more exponent and reaches 448.)
# </details>

# %% [markdown]
# ## 2. Rounding to 16 levels
#
# Four bits make 16 codes. Choose 16 numbers between -1 and 1 and call them *levels*. To quantize some weights, divide
# them by the largest of them in size, the *absmax*, so that they too lie between -1 and 1. Replace each by the code
# of the nearest level. Keep the codes, and keep the absmax: to get weights back, look up the levels and multiply.
#
# The simplest levels are evenly spaced. These are 15, so that zero is one of them; the sixteenth code stays unused.

# %%
int4 = torch.arange(-7, 8) / 7
row = torch.tensor([0.8, -0.3, 0.05, -1.2, 0.0, 0.61])
absmax = row.abs().max()
codes = (row[:, None] / absmax - int4).abs().argmin(dim=1)
restored = int4[codes] * absmax

steps = zip(codes, row, row / absmax, int4[codes], restored)
table(steps, "{:.3f}", columns=("code", "weight", "/ absmax", "level", "restored"))

# %% [markdown]
# Now a whole layer. The weights of a trained layer look much like a bell curve around zero, so let a bell curve stand
# for one. The error that counts is relative: the size of what went wrong over the size of the weights.

# %%
weights = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(seed)) * 0.02


def relative_error(x, restored):
    return ((x.double() - restored.double()).norm() / x.double().norm()).item()


def with_one_absmax(x, levels):
    "x rounded to levels that are scaled by the absmax of all of x."
    middles = (levels[1:] + levels[:-1]) / 2  # from each of these on, the next level is nearer
    return levels[torch.bucketize(x / x.abs().max(), middles)] * x.abs().max()


print(f"relative error: {relative_error(weights, with_one_absmax(weights, int4)):.1%}")

# %% [markdown]
# That is poor already, for a reason you meet again: among a million weights the largest is about five standard
# deviations out, and most of the levels stand where hardly any weight is. Real layers have it worse. Make one weight
# an outlier, fifty standard deviations out, and look at the error of the *other* weights:

# %%
spoiled = weights.clone()
spoiled[0, 0] = 1.0
others = with_one_absmax(spoiled, int4)
print(f"relative error of the others: {relative_error(spoiled[1:], others[1:]):.1%}")
print(f"weights that became zero: {(others == 0).float().mean():.1%}")

# %% [markdown]
# One number in a million ruins a tensor. The cure is to give every block of, say, 64 weights an absmax of its own:
# then an outlier can spoil 63 others and no more.
#
# Here are the functions of this lesson that do it. They are the real ones: the lines that look fussy are there
# because bitsandbytes has them, and section 7 holds the two side by side. A weight midway between two levels gets the
# lower one. A block of zeros must not divide by zero. A last block that is shorter is divided, where the others are
# multiplied by the inverse; the two can differ in the last bit.


# %%
def finite(x):
    "x itself; ValueError if a value in it is infinite or NaN."
    bad = x.numel() - int(x.isfinite().sum())
    if bad:
        raise ValueError(f"{bad} of {x.numel()} values are infinite or NaN and spoil their blocks: repair them first")
    return x


# %%
def quantize_blockwise(x, levels, block_size):
    "(codes, absmax): uint8 codes of the nearest levels, one a value, and float32 absmax, one a block."
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


# %%
def dequantize_blockwise(codes, absmax, levels, block_size, shape):
    "The float32 tensor of that shape which codes and absmax stand for."
    return (levels[codes.long()] * absmax.repeat_interleave(block_size)[: len(codes)]).view(shape)


def round_trip(x, levels, block_size=64):
    return dequantize_blockwise(*quantize_blockwise(x, levels, block_size), levels, block_size, x.shape)


print(f"blocks of 64: {relative_error(weights, round_trip(weights, int4)):.1%}")
print(f"with the outlier, the others: {relative_error(spoiled[1:], round_trip(spoiled, int4)[1:]):.1%}")

# %% [markdown]
# The outlier no longer matters, and even without one the error has nearly halved. How small should a block be?
# Smaller blocks round better, and each costs 32 bits for its absmax.

# %%
from helpers import plots

sizes = [2**n for n in range(4, 15)]
dotted = weights.clone()
dotted.view(-1)[::4096] = 0.4  # one weight in 4096 is 20 standard deviations out
rest = dotted != 0.4
errors = {
    "bell curve": [100 * relative_error(weights, round_trip(weights, int4, size)) for size in sizes],
    "with outliers": [100 * relative_error(dotted[rest], round_trip(dotted, int4, size)[rest]) for size in sizes],
}

# %%
lines = {name: (sizes, values) for name, values in errors.items()}
title = "Small blocks round better, and keep the harm of an outlier to themselves"
figure = plots.curves(lines, title, "block size (weights)", "relative error (%)")
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_xticks(sizes, [f"{size}\n{4 + 32 / size:.3g}" for size in sizes])
figure.axes[0].set_xlabel("block size (weights), and below it the bits a weight")
plots.show(figure, "Line chart: relative error rises with block size, far more steeply when the weights hold outliers.")

# %%
verdict("each doubling of the block makes the error larger", all(e == sorted(e) for e in errors.values()))

# %% [markdown]
# 64 is bitsandbytes' default: 4 bits for the code and half a bit for the absmax.
#
# **Exercise 01.2.** `small` holds three blocks of four weights, one a row. Compute the absmax of each block.

# %%
small = torch.tensor([[0.5, -2.0, 0.1, 1.0], [0.01, 0.02, -0.04, 0.03], [3.0, -1.0, 0.0, -6.0]])

answer = ...
check("01.2", answer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = small.abs().amax(dim=1)
# check("01.2", answer)
# ```
# </details>

# %% [markdown]
# ## 3. Where should the levels go?
#
# Most weights are near zero, so evenly spaced levels are wasted on the rim. NF4, "4-bit NormalFloat", puts the levels
# where a bell curve has its weights: at its quantiles, which are the points that split it into parts of equal share.
# Eight of them lie above zero and seven below, and zero itself is a level, so that a weight of zero stays zero.
#
# One detail is left: the outermost quantile cannot be at a share of 1, which is infinitely far out. bitsandbytes
# takes 0.9677083 (`functional.create_normal_map`). That is the mean of 1 - 1/32 and 1 - 1/30, which are half a part
# from the end with 16 and with 15 parts. The idea of the quantiles is QLoRA's
# ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), section 3).


# %%
def nf4_levels(offset=0.9677083):
    "The 16 levels of NF4: quantiles of a bell curve, 8 above zero and 7 below, and zero; divided by the largest."
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9)[:-1].double())  # ndtri: the quantile function
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8)[:-1].double())
    levels = torch.cat([below, torch.zeros(1), above]).float().sort().values
    return levels / levels.max()


nf4 = nf4_levels()
nf4

# %% [markdown]
# Is this the table that bitsandbytes carries?

# %%
import bitsandbytes as bnb

theirs = bnb.functional.get_4bit_type("nf4", device="cpu")
print(f"largest difference: {(nf4 - theirs).abs().max():.1e}")
verdict("the derived levels are bitsandbytes' NF4 table, to 1e-7", (nf4 - theirs).abs().max() <= 1e-7)

# %% [markdown]
# bitsandbytes' other 4-bit type, FP4, is a tiny floating point number: a sign, two exponent bits, one fraction bit.
# Its exponent counts down, so that a code is not in the order of its value.


# %%
def fp4_levels():
    "The 16 levels of bitsandbytes' FP4 in the order of their codes, divided by the largest, 12."

    def size(code):
        exponent, fraction = code >> 1, code & 1
        return 2 ** (4 - exponent) * (1 + fraction / 2) if exponent else fraction / 16

    sizes = torch.tensor([size(code) for code in range(8)])
    return torch.cat([sizes, 0 - sizes]) / 12


fp4 = fp4_levels()
verdict("and so for FP4", torch.equal(fp4, bnb.functional.get_4bit_type("fp4", device="cpu")))

# %%
scaled = (weights.view(-1, 64) / weights.view(-1, 64).abs().amax(dim=1, keepdim=True)).flatten()
sets = {"NF4": nf4, "FP4": fp4, "int4": int4}
figure = plots.levels_on_histogram(scaled, sets, "NF4 has its levels where weights are; FP4 spends four on nearly zero")
plots.show(figure, "Histogram of block-scaled weights with three rows of ticks for the levels of NF4, FP4 and int4.")

# %% [markdown]
# The histogram is of weights divided by the absmax of their block of 64. It is not a bell curve any more: it ends at
# -1 and 1, and the two spikes at the ends are the one weight of each block that *is* its absmax. Which set rounds
# best?

# %%
error = {name: relative_error(weights, round_trip(weights, levels)) for name, levels in sets.items()}
record(relative_error=error)
table(error, "{:.1%}", columns=("levels", "relative error"))

# %%
verdict("of these NF4 rounds a bell curve best, and FP4 worst", error["NF4"] < error["int4"] < error["FP4"])

# %% [markdown]
# ### Try it
#
# Move the block size, the levels and an outlier (in standard deviations), and watch error and bits. The sliders work
# where a notebook runs, and a page that only shows it has a still picture. The explorer calls *your* functions:
# change `quantize_blockwise` above, run this cell again, and it follows.

# %%
from helpers.widgets import explore

explore(quantize_blockwise, dequantize_blockwise, sets)

# %% [markdown]
# ### Is NF4 optimal?
#
# It is often said to be "information-theoretically optimal for normally distributed weights". That claim can be
# checked. It would mean that all 16 codes are used equally often, so that each carries a full 4 bits. Count them:

# %%
codes, _ = quantize_blockwise(weights, nf4, 64)
usage = codes.long().bincount(minlength=16) / codes.numel()
labels = [f"{level:.2f}" for level in nf4]
colours = [plots.COLOURS["orange" if share < 1 / 16 else "blue"] for share in usage]
title = "NF4 uses its codes unevenly (orange: less than an equal share, 6.25%)"
figure = plots.bars(labels, (100 * usage).tolist(), title, "share of the weights (%)", colours, "{:.1f}", (7.2, 4.4))
figure.axes[0].set_ylabel("level")
plots.show(figure, "Bars: the share of weights at each NF4 level, from below 2% at the ends to above 9% near zero.")

# %% [markdown]
# They are not used equally. The bell curve was scaled by the absmax of its block, and what comes out depends on the
# block size, which NF4's derivation does not know ([Yoshida 2023](https://arxiv.org/abs/2306.06965) says so too).
# Then what is the best set? That depends on what you want, so make one for each wish, from the scaled weights
# themselves:
#
# - *equal use*: levels in 16 parts of equal share;
# - *least squared error*: Lloyd's and Max's method. Put each level at the mean of the weights that go to it, send
#   each weight to its nearest level, and repeat until nothing moves;
# - *least absolute error*: the same with the median, where -1, 0 and 1 stay fixed, as Yoshida has it.


# %%
def improve(levels, x, center, fixed=(), rounds=300):
    "Move each level to the center of the part of x (sorted) that is nearest to it, again and again."
    for _ in range(rounds):
        edges = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2).tolist()
        moved = torch.tensor([center(a, b) for a, b in zip([0, *edges], [*edges, len(x)], strict=True)])
        for level in fixed:
            moved[(levels == level).nonzero()] = level
        levels = moved
    return levels


# %%
x = scaled.sort().values
sums = torch.cat([torch.zeros(1), x.double().cumsum(0)]).tolist()


def mean(a, b):
    return (sums[b] - sums[a]) / (b - a)


def median(a, b):
    return x[(a + b) // 2].item()


lloyd_max = improve(torch.linspace(-0.95, 0.95, 16), x, mean)
least_absolute = improve(nf4, x, median, fixed=(-1, 0, 1))
equal_use = x.view(16, -1).mean(dim=1)


# %%
def judge(levels, x):
    "Bits of information in a code, mean squared and mean absolute error."
    codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
    share = codes.bincount(minlength=16) / len(x)
    information = -(share[share > 0] * share[share > 0].log2()).sum().item()
    wrong = (levels[codes] - x).double()
    return information, wrong.square().mean().item(), wrong.abs().mean().item()


af4 = bnb.functional.get_4bit_type("af4", device="cpu").sort().values
candidates = {"NF4": nf4, "equal use": equal_use, "Lloyd-Max": lloyd_max, "least absolute": least_absolute}
candidates |= {"int4": int4, "FP4": fp4.sort().values, "AF4": af4}
judged = {name: judge(levels, x) for name, levels in candidates.items()}

# %%
_, square, absolute = judged["NF4"]
rows = [(name, i, s, s / square - 1, a, a / absolute - 1) for name, (i, s, a) in judged.items()]
headings = ("levels", "bits in a code", "squared error", "to NF4", "absolute error", "to NF4")
table(rows, "{:.5f}", columns=headings, bits_in_a_code="{:.2f}", to_NF4="{:+.1%}")

# %%
verdict("NF4's codes carry less than 4 bits", judged["NF4"][0] < 3.95)
equal = judged["equal use"]
verdict("the set with equal use has larger errors, squared and absolute", equal[1] > square and equal[2] > absolute)
verdict("Lloyd-Max has a squared error at least a tenth smaller", judged["Lloyd-Max"][1] < 0.9 * square)
verdict("in absolute error NF4 is within 1% of the best", judged["least absolute"][2] > 0.99 * absolute)
record(codebooks=judged)

# %% [markdown]
# What follows, in plain words:
#
# - NF4 is not information-theoretically optimal for block-scaled weights. Its codes are used unequally.
# - Nobody should want that optimum. The set with equal use rounds worse: it crowds levels near zero and has none to
#   spare for the large weights, where errors are large. ("And that's good", says the title of Yoshida's note.)
# - Nor has NF4 the least squared error. Lloyd-Max has less, though it gives up both an exact zero and an exact
#   absmax.
# - In absolute error, with -1, 0 and 1 kept, nothing is left to gain at blocks of 64.
#
# One row is a surprise. AF4 is the set that Yoshida's note derives for blocks of 64, and bitsandbytes carries its
# table. It was made for the least absolute error, and here it has more than NF4. Why? In the least set each level is
# the median of its part, and that part ends midway to the next level. Look at the levels on either side of zero:

# %%
for i, inner in ((6, af4[7]), (8, af4[7])):
    outer = (af4[i] + af4[2 * i - 7]) / 2  # midway to the next level away from zero
    for name, edge in (("midway to zero", (af4[i] + inner) / 2), ("zero itself", inner)):
        part = x[(x > min(edge, outer)) & (x < max(edge, outer))]
        print(f"level {af4[i]:+.4f}   median of its part, if the part ends at {name:15}: {part.median():+.4f}")

# %% [markdown]
# The table's levels are medians of parts that end *at* zero, as though the level zero attracted nothing. With parts
# that end midway you get the row "least absolute", which is close to NF4. The note's main point stands all the same,
# and grows with the block:

# %%
for size in (64, 256, 1024, 4096):
    blocks = weights.view(-1, size)
    y = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten().sort().values
    best = improve(nf4, y, lambda a, b, y=y: y[(a + b) // 2].item(), fixed=(-1, 0, 1))
    (information, _, ours), (_, _, least) = judge(nf4, y), judge(best, y)
    print(f"blocks of {size:4}: {information:.2f} bits a code, absolute error {ours / least - 1:+.1%} over the least")

# %% [markdown]
# At bitsandbytes' block size, 64, NF4 is a good choice and no optimum; with blocks of thousands it no longer fits.
# Section 8 asks what a model feels of such differences.
#
# **Exercise 01.3.** Build NF3, the 8 levels for 3 bits, by NF4's recipe: 4 quantiles above zero, 3 below, and zero.
# The offset for 8 levels is given.

# %%
nf3_offset = 1 - (1 / 16 + 1 / 14) / 2

answer = ...
check("01.3", answer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# above = torch.special.ndtri(torch.linspace(nf3_offset, 0.5, 5)[:-1].double())
# below = -torch.special.ndtri(torch.linspace(nf3_offset, 0.5, 4)[:-1].double())
# levels = torch.cat([below, torch.zeros(1), above]).float().sort().values
# answer = levels / levels.max()
# check("01.3", answer)
# ```
# </details>

# %% [markdown]
# ## 4. Double quantization
#
# What does a weight really cost? Let bitsandbytes quantize a matrix, and count the bytes of all the tensors that it
# keeps: packed codes, absmax values, and its table of levels.

# %%
matrix = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(seed)) * 0.02


def kept_bits(packed, state):
    "Bits a weight, from the tensors that bitsandbytes keeps."
    tensors = [packed, *(value for value in state.as_dict().values() if torch.is_tensor(value))]
    return 8 * sum(t.numel() * t.element_size() for t in tensors) / state.shape.numel()


packed, state = bnb.functional.quantize_4bit(matrix, quant_type="nf4")
{name: (tuple(value.shape), str(value.dtype)) for name, value in state.as_dict().items() if torch.is_tensor(value)}

# %%
single = kept_bits(packed, state)
packed, state = bnb.functional.quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
double = kept_bits(packed, state)
kinds = {"float32 absmax": (single, 4 + 32 / 64), "absmax quantized too": (double, 4 + 8 / 64 + 32 / (64 * 256))}
table(kinds, "{:.4f}", columns=("", "bits a weight", "by formula"))

# %% [markdown]
# An absmax of 32 bits for 64 weights is half a bit each. Double quantization, `compress_statistics` here and
# `bnb_4bit_use_double_quant` in transformers, stores the absmax values themselves in 8 bits, in blocks of 256. The
# difference between counting and formula is the tables of levels, which a matrix keeps once.

# %%
saved = single - double
record(bits_a_weight={"single": single, "double": double})
close = abs(single - 4.5) < 0.001 and abs(double - 4.127) < 0.003
verdict("4.5 bits a weight, and about 4.127 with double quantization", close)
print(f"saved in a model of 7.24 billion weights: {7.24e9 * saved / 8 / 1e9:.2f} GB")

# %% [markdown]
# Do it yourself. Absmax values are all positive and much alike, so their mean comes off first. What is left is
# rounded to 256 levels that are dense at zero: seven decades, each with twice as many levels as the one below it
# ([Dettmers 2015](https://arxiv.org/abs/1511.04561)).


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
# One thing here you could not guess: on a CPU, bitsandbytes does not search 256 levels for every value. It first
# rounds the value to one of 65,536 even steps, and keeps a list of which level is nearest to each step.


# %%
def double_quantize(absmax):
    "(codes, absmax, offset): uint8 codes of the absmax values, the float32 absmax of each 256 of them, and their mean."
    levels, offset = dynamic_levels(), finite(absmax).mean()
    blocks = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
    largest = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / largest)[:, None]).nan_to_num(-1).clamp(-1, 1)  # a block of zeros gets code 0
    steps = (((scaled + 1) * 0.5).double() * 65535 + 0.5).float().floor()  # 0 to 65535; rounded once, as in one FMA
    codes = torch.bucketize(steps / 65535 * 2 - 1, (levels[1:] + levels[:-1]) / 2)
    return codes.flatten()[: len(absmax)].to(torch.uint8), largest, offset


# %%
_, absmax = quantize_blockwise(matrix, nf4, 64)
codes, largest, offset = double_quantize(absmax)
same = (codes == state.absmax).all() and (largest == state.state2.absmax).all() and offset == state.offset
verdict("double quantization gives bitsandbytes' codes, absmax and mean, bit for bit", same)

# %% [markdown]
# And what does it cost? Compare the error with exact and with quantized absmax values:

# %%
exact = bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(matrix, quant_type="nf4"))
twice = bnb.functional.dequantize_4bit(packed, state)
exact_error, twice_error = relative_error(matrix, exact), relative_error(matrix, twice)
print(f"relative error: {exact_error:.3%} with float32 absmax, {twice_error:.3%} with 8 bits")
verdict("double quantization adds less than a hundredth to the error", twice_error < 1.01 * exact_error)

# %% [markdown]
# It is nearly free, which is why QLoRA turns it on.
#
# **Exercise 01.4.** How many bits does a weight take with blocks of 128 and double quantization (tables of levels
# left out)?

# %%
answer = ...
check("01.4", answer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 4 + 8 / 128 + 32 / (128 * 256)
# check("01.4", answer)
# ```
# </details>

# %% [markdown]
# ## 5. Packing, and how a 4-bit layer multiplies
#
# A computer has no 4-bit numbers. Two codes share a byte: the first in the high four bits (a *nibble*), the second in
# the low four. An odd number of codes is filled up with the code of zero, which is 7 in NF4 and 0 in FP4.


# %%
def pack_4bit(codes, filler=7):
    "Two codes a byte, the first in the high nibble; uint8."
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_tensor([filler])])
    return codes[0::2] << 4 | codes[1::2]


codes = torch.tensor([7, 1, 15, 0], dtype=torch.uint8)
[f"{byte:08b}" for byte in pack_4bit(codes).tolist()]

# %% [markdown]
# **Exercise 01.5.** Write the way back: `unpack_4bit(packed)` gives all the codes, in order.


# %%
def unpack_4bit(packed):
    "Write this."


answer = ...  # and then put unpack_4bit here
check("01.5", answer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def unpack_4bit(packed):
#     return torch.stack([packed >> 4, packed & 15], dim=1).flatten()
#
#
# check("01.5", unpack_4bit)
# ```
# </details>

# %% [markdown]
# No unit multiplies NF4 codes either. A 4-bit layer first turns its weights back into ordinary numbers, in a *compute
# dtype*, then multiplies as ever, and forgets them. So 4 bits save memory and no arithmetic: there is one step more
# than in a 16-bit layer. See it with bitsandbytes' layer and your own functions:

# %%
from torch.nn.functional import linear
from helpers.training import keep_4bit_layout

layer = bnb.nn.Linear4bit(1024, 1024, bias=False, compute_dtype=torch.float32)
layer.weight = bnb.nn.Params4bit(weights.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False)
layer = keep_4bit_layout(layer.to("cpu"))  # .to() quantizes; the other call is a workaround, see its docstring

inputs = torch.randn(64, 1024, generator=torch.Generator().manual_seed(seed + 1))
restored = round_trip(weights, nf4)
by_hand = linear(inputs, restored)
verdict("a 4-bit layer is: dequantize, then multiply", torch.equal(layer(inputs), by_hand))

# %% [markdown]
# The compute dtype is yours to choose. The same product in three types, against one in float64, and beside it what
# the rounding to 4 bits itself did. The last column is the share of values that are lost to infinity when the inputs
# are 100,000 times as large:

# %% tags=["nbval-ignore-output"] reason="last digits depend on the processor's order of sums"
exact, true = linear(inputs.double(), restored.double()), linear(inputs.double(), weights.double())
rows = []
for dtype in FIELDS:
    product, large = (linear(x.to(dtype), restored.to(dtype)) for x in (inputs, 1e5 * inputs))
    rows.append({"compute dtype": dtype, "error of computing": relative_error(exact, product)})
    lost = 1 - large.isfinite().float().mean().item()
    rows[-1] |= {"with that of 4 bits": relative_error(true, product), "lost": lost}
table(rows, "{:.2g}")

# %%
_, half, brain = (line["error of computing"] for line in rows)
verdict("float16 computes more exactly than bfloat16", half < brain / 4)
verdict("next to the error of 4 bits neither matters", brain < relative_error(true, exact) / 10)

# %% [markdown]
# So the compute dtype is a question of speed and range, not of quality: the 16-bit type that your GPU has units for,
# and on a T4 that is float16, with an eye on what overflows.
#
# ## 6. Eight bits, the milder choice
#
# LLM.int8 rounds weights *and inputs* to whole numbers from -127 to 127, a scale for each row, and multiplies those
# whole numbers, which GPUs do fast ([Dettmers et al. 2022](https://arxiv.org/abs/2208.07339)). Weights take that
# well. Inputs do not: in large models some columns hold values that dwarf the rest, in every row. So columns with a
# value beyond a threshold, 6.0, are set aside and multiplied as they are.


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
true = linear(inputs.double(), weights.double())
layer = bnb.nn.Linear8bitLt(1024, 1024, bias=False, has_fp16_weights=False, threshold=6.0)
layer.weight = bnb.nn.Int8Params(weights.clone(), requires_grad=False, has_fp16_weights=False)
layer = layer.to("cpu").eval()
eight = {
    "8 bits, no threshold": int8_linear(inputs, weights, threshold=float("inf")),
    "8 bits, threshold 6": int8_linear(inputs, weights, threshold=6.0),
    "8 bits, bitsandbytes' layer": layer(inputs.half()).float(),
    "4 bits, NF4": linear(inputs, restored),
}
wrong = {name: relative_error(true, product) for name, product in eight.items()}
table(wrong, "{:.2%}", columns=("product", "relative error"))

# %%
record(product_error=wrong)
verdict("outlier columns set aside mend the product", wrong["8 bits, threshold 6"] < wrong["8 bits, no threshold"] / 4)
verdict("8 bits err less than 4", wrong["8 bits, bitsandbytes' layer"] < wrong["4 bits, NF4"] / 4)

# %% [markdown]
# Eight bits are about ten times as exact as four here, and take nearly twice the memory. Choose them when a model
# suffers in 4 bits and still fits. QLoRA trains on top of 4.
#
# ## 7. Bit for bit
#
# Your functions are short, bitsandbytes is not. Do they agree in everything: the packed codes, the absmax values, and
# what is restored? And not only for well-behaved weights: here are heavy tails, zeros, numbers too small for a normal
# float, an outlier of 60,000, ties between two levels, lengths that fill no block, and 16-bit inputs.


# %%
def same_bits(x, kind, block_size):
    "Whether bitsandbytes and this lesson's functions agree on x in every bit."
    levels, filler = (nf4_levels(), 7) if kind == "nf4" else (fp4_levels(), 0)
    packed, state = bnb.functional.quantize_4bit(x, blocksize=block_size, quant_type=kind)
    codes, absmax = quantize_blockwise(x, levels, block_size)
    restored = dequantize_blockwise(codes, absmax, levels, block_size, x.shape).to(x.dtype)
    theirs = bnb.functional.dequantize_4bit(packed, state).view(x.shape)  # it makes a matrix of a row
    pairs = ((pack_4bit(codes, filler), packed.flatten()), (absmax, state.absmax), (restored, theirs))
    return all(torch.equal(ours, others) for ours, others in pairs)


# %%
bell = torch.randn(20_001, generator=torch.Generator().manual_seed(seed))
up = fp4.sort().values
cases = {
    "bell curve": bell,
    "heavy tails": (bell / bell.roll(1)).clamp(-6e4, 6e4),
    "zeros": torch.zeros(5000),
    "subnormal": bell * 1e-40,
    "one outlier": torch.cat([bell, torch.tensor([6e4])]),
    "ties": torch.cat([nf4[1:] + nf4[:-1], up[1:] + up[:-1], torch.tensor([2.0])]).repeat(50),
    "shorter than a block": bell[:7],
}
sizes, kinds = [2**n for n in range(5, 13)], ("nf4", "fp4")

# %%
# bitsandbytes compiles a rare path (odd lengths, large blocks), and that takes longer than all of this: not now.
with torch.compiler.set_stance("force_eager"):
    agree = {
        name: [same_bits(x.to(dtype), kind, size) for dtype in FIELDS for kind in kinds for size in sizes]
        for name, x in cases.items()
    }
counts = {name: [sum(found), len(found)] for name, found in agree.items()}
table(counts, columns=("values", "agree", "of"))

# %%
record(agree=counts)
everywhere = all(all(found) for found in agree.values())
verdict("codes, absmax and restored weights equal bitsandbytes', bit for bit", everywhere)

# %% [markdown]
# (`torch.equal` takes 0.0 and -0.0 for equal, and has to: FP4's code 8 is -0.0 in one of bitsandbytes' own paths and
# 0.0 in another. Every other bit is compared.)
#
# There is one difference, and it is on purpose. What does bitsandbytes do with a NaN or an infinity among the
# weights?

# %%
for bad in (float("nan"), float("inf")):
    broken = bell[:128].clone()
    broken[100] = bad
    for nested in (False, True):
        kept = bnb.functional.quantize_4bit(broken, quant_type="nf4", compress_statistics=nested)
        lost = 128 - bnb.functional.dequantize_4bit(*kept).isfinite().sum()
        print(f"one {bad} in the second of two blocks, double quantization {nested!s:5}: {lost} of 128 values lost")

# %% [markdown]
# It says nothing. The block is lost, and with double quantization the *whole tensor*, since the mean of all absmax
# values is lost too. A checkpoint with one NaN gives a model of NaN. Your functions say so:

# %%
try:
    quantize_blockwise(broken, nf4, 64)
except ValueError as problem:
    print(problem)

# %% [markdown]
# ## 8. What a model feels
#
# Errors of weights are not what you care about. Take the bundled model, which learnt a few thousand simple facts, and
# ask it questions whose answers it knows. The questions are those of the held-out instructions, in the form that the
# model met in training. Two numbers come out: the loss on the tokens of the answers, and the recall, the share of
# answers that greedy decoding gets right in full (it does if each token of the answer is the likeliest one, given
# those before it).

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(run.model.path)
model = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)
rows = run.rows["heldout"].select(range(min(eval_rows, len(run.rows["heldout"]))))
questions = ["\n".join(filter(None, (row["instruction"], row["input"], "Answer:\n"))) for row in rows]
answers = [row["output"] + "\n" for row in rows]
print(questions[0] + answers[0])

# %%
texts = [question + answer for question, answer in zip(questions, answers, strict=True)]
batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
begins = torch.tensor([len(tokenizer(q).input_ids) for q in questions])
places = torch.arange(1, batch.input_ids.shape[1])
of_answer = (places >= begins[:, None]) & batch.attention_mask[:, 1:].bool()


@torch.no_grad()
def loss_and_recall(model):
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1][of_answer]
    tokens = batch.input_ids[:, 1:][of_answer]
    wrong = torch.zeros_like(of_answer).masked_scatter(of_answer, logits.argmax(dim=1) != tokens)
    return torch.nn.functional.cross_entropy(logits, tokens).item(), 1 - wrong.any(dim=1).float().mean().item()


# %% [markdown]
# Now round the weights of all linear layers inside the model in every way that this lesson has, and two more: NF3 and
# NF2, by the recipe of exercise 01.3. bitsandbytes leaves embeddings, norms and the output layer alone, and so does
# this.


# %%
def normal_levels(bits):
    "NF4's recipe for any number of bits."
    half = 2 ** (bits - 1)
    offset = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    above = torch.special.ndtri(torch.linspace(offset, 0.5, half + 1)[:-1].double())
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, half)[:-1].double())
    levels = torch.cat([below, torch.zeros(1), above]).float().sort().values
    return levels / levels.max()


def int8_round_trip(weight):
    whole, scale = int8_rows(weight)
    return whole * scale


# %%
roundings = {
    "float32": lambda w: w,
    "float16": lambda w: w.half().float(), "bfloat16": lambda w: w.bfloat16().float(),
    "8 bits: int8 by rows": int8_round_trip,
    "4 bits: NF4": lambda w: round_trip(w, nf4),
    "4 bits: Lloyd-Max": lambda w: round_trip(w, lloyd_max),
    "4 bits: int4": lambda w: round_trip(w, int4),
    "4 bits: FP4": lambda w: round_trip(w, fp4),
    "4 bits: int4, no blocks": lambda w: with_one_absmax(w, int4),
    "3 bits: NF3": lambda w: round_trip(w, normal_levels(3)),
    "2 bits: NF2": lambda w: round_trip(w, normal_levels(2)),
}  # fmt: skip

# %%
import copy


def inner_layers(model):
    return [part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"]


def inner_weights(model):
    return torch.cat([layer.weight.data.flatten() for layer in inner_layers(model)])


# %%
felt = {}
for name, rounding in roundings.items():
    rounded = copy.deepcopy(model)
    for layer in inner_layers(rounded):
        layer.weight.data = rounding(layer.weight.data)
    loss, recall = loss_and_recall(rounded)
    error = relative_error(inner_weights(model), inner_weights(rounded))
    felt[name] = {"error": error, "loss": loss, "recall": recall}

# %% tags=["nbval-ignore-output"] reason="the last digits of a model's loss depend on the processor"
record(felt=felt)
table(felt, "{:.1%}", loss="{:.5f}", columns=["weights"])

# %%
title = "Down to 3 bits this model keeps its answers; with 2 it keeps none"
figure, (left, right) = plots.axes(title, "recall (%)", "", size=(7.6, 4), ncols=2, sharey=True)
left.barh(list(felt), [100 * f["recall"] for f in felt.values()], color=plots.COLOURS["blue"])
right.plot([f["loss"] for f in felt.values()], list(felt), "o", color=plots.COLOURS["red"])
left.invert_yaxis()
right.set(xlabel="loss on answers (nats a token)", xscale="log")
plots.show(figure, "Bars of recall and dots of loss by type of weights: alike from 32 to 3 bits, ruined at 2 bits.")

# %%
sound = [name for name in felt if name not in ("4 bits: int4, no blocks", "2 bits: NF2")]
before = felt["float32"]["recall"]
verdict("down to 3 bits in blocks of 64, recall stays", all(abs(felt[n]["recall"] - before) <= 0.03 for n in sound))
verdict("with 2 bits less than a tenth of it is left", felt["2 bits: NF2"]["recall"] < 0.1 * before)

# %% [markdown]
# No answer is lost until far below 4 bits. The loss tells more: it grows with the error of the weights, most of all
# where there are no blocks, and at 2 bits nothing is left. Lloyd-Max, better on paper, makes no difference that you
# can see.
#
# Take this with care. The model is tiny and knows its facts by heart, with a wide margin; a large model asked hard
# questions has less. For those, QLoRA's paper finds that NF4 with double quantization, once fine-tuned, matches 16
# bits ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314), section 4).
#
# Is a model with rounded weights really what bitsandbytes computes? Load it in NF4 the way that later lessons do, and
# ask the same questions.

# %%
from transformers import BitsAndBytesConfig

config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
loaded = AutoModelForCausalLM.from_pretrained(
    run.model.path, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
)
loss, recall = loss_and_recall(keep_4bit_layout(loaded))
row = felt["4 bits: NF4"]
same = abs(loss / row["loss"] - 1) < 1e-3 and recall == row["recall"]
verdict("the model that transformers loads in NF4 has the loss and recall of the row NF4", same)

# %% [markdown]
# ## 9. BitsAndBytesConfig, field by field
#
# All of this is switched on by one object, whose defaults are *not* what QLoRA uses: FP4, float32 compute and no
# double quantization. Here is every field that the installed transformers has, with its default.

# %%
USE = {
    "load_in_8bit": ("False", "True gives section 6's LLM.int8 instead; not both"),
    "load_in_4bit": ("True", "this is QLoRA's base model"),
    "llm_int8_threshold": ("leave", "8 bits only: from which size on a column is set aside"),
    "llm_int8_skip_modules": ("leave", "layers to keep in 16 bits, in 4-bit models too; None skips the output layer"),
    "llm_int8_enable_fp32_cpu_offload": ("leave", "layers on the CPU in float32, if the GPU cannot hold all; slow"),
    "llm_int8_has_fp16_weight": ("leave", "8 bits only: keeps the 16-bit weights as well"),
    "bnb_4bit_compute_dtype": ("float16 on a T4, bfloat16 since Ampere", "float32 is slow; section 5"),
    "bnb_4bit_quant_type": ("nf4", "FP4 rounds worse; section 3"),
    "bnb_4bit_use_double_quant": ("True", "0.373 bits a weight for next to no error; section 4"),
    "bnb_4bit_quant_storage": ("leave", "the type that packed bytes pretend to have; FSDP wants that of the model"),
}

# %%
import inspect

signature = inspect.signature(BitsAndBytesConfig).parameters.values()
fields = {field.name: str(field.default) for field in signature if field.kind != field.VAR_KEYWORD}
table({name: (fields[name], *use) for name, use in USE.items()}, columns=("field", "default", "for QLoRA", "why"))

# %%
default = BitsAndBytesConfig(load_in_4bit=True)
print(default.bnb_4bit_quant_type, default.bnb_4bit_compute_dtype, default.bnb_4bit_use_double_quant)
verdict("the table has every field of the installed transformers", list(fields) == list(USE))
unset = (default.bnb_4bit_quant_type, default.bnb_4bit_compute_dtype, default.bnb_4bit_use_double_quant)
verdict("by default 4 bits means FP4, float32 compute, no double quantization", unset == ("fp4", torch.float32, False))

# %% [markdown]
# There is no field for the block size: transformers leaves it at 64.
#
# **Exercise 01.6.** Write the configuration for QLoRA on a T4.

# %%
answer = ...
check("01.6", answer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = BitsAndBytesConfig(
#     load_in_4bit=True,
#     bnb_4bit_quant_type="nf4",
#     bnb_4bit_compute_dtype=torch.float16,
#     bnb_4bit_use_double_quant=True,
# )
# check("01.6", answer)
# ```
# </details>

# %% [markdown]
# ## What was shown

# %%
table(run.verdicts, columns=("shown", "holds"))

# %% [markdown]
# Next: [02 Memory math](02_memory_math.ipynb), where these bits a weight become gigabytes.
