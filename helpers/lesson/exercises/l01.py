"""The checks of lesson 01's exercises."""

import torch

from helpers.lesson.checks import exercise, near

PACKED = torch.tensor([0x71, 0xF0, 0x2E], dtype=torch.uint8)
CODES = [7, 1, 15, 0, 2, 14]


def _numbers(found) -> torch.Tensor | None:
    """What a learner's function gave, as a tensor; None where there are no numbers in it."""
    try:
        return found if torch.is_tensor(found) else torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None


@exercise("01.1", takes="block_size and double")
def bits_per_weight(answer):
    """4 + 32 / block, or 4 + 8 / block + 32 / (256 block) with double quantization."""
    for block, double in ((64, False), (64, True), (128, True), (32, False)):
        said = answer(block, double)
        if said is ...:
            return "put your answer in place of the dots"
        if not isinstance(said, int | float):
            return f"return a number of bits; for blocks of {block} it gives {said!r}"
        plain, nearly = 4 + 32 / block, 4 + 8 / block
        right = nearly + 32 / (256 * block) if double else plain
        asked = f"for blocks of {block} {'with' if double else 'without'} double quantization it says {said:g}"
        if near(said, right, 1e-6):
            continue
        if near(said, right / 8, 1e-6):
            return f"{asked}: those are bytes, and a byte has 8 bits"
        if near(said, right - 4, 1e-6):
            return f"{asked}: that is the absmax alone; the code has 4 bits"
        if near(said, 36, 1e-6) or near(said, 12.125, 1e-6):
            return f"{asked}: the absmax serves a whole block, so divide it by the {block} weights"
        if double and near(said, plain, 1e-6):
            return f"{asked}: with double quantization the absmax has 8 bits, not 32"
        if double and near(said, nearly, 1e-6):
            return f"{asked}: nearly; each 256 absmax values share one number of 32 bits"
        if double and near(said, nearly + 32 / 256, 1e-6):
            return f"{asked}: 256 absmax values stand for 256 x {block} weights, which share those 32 bits"
        return f"{asked}; add up the code, a weight's share of the absmax, and its share of the 32 bits for 256 of them"
    return None


def _nf4() -> torch.Tensor:
    import bitsandbytes as bnb

    return bnb.functional.get_4bit_type("nf4", device="cpu")


@exercise("01.2", takes="x, levels and block_size")
def repaired_quantizer(answer):
    """quantize(x, levels, block_size) gives the codes of the nearest levels and the absmax of each block."""
    levels, x = _nf4(), torch.randn(256, generator=torch.Generator().manual_seed(1))
    x[:64] = -x[:64].abs()  # a block in which the largest size is surely a negative number's
    said = answer(x.clone(), levels, 64)
    if said is ... or not isinstance(said, list | tuple) or len(said) != 2:
        return "return two things: codes and absmax"
    codes, absmax = _numbers(said[0]), _numbers(said[1])
    if codes is None or absmax is None or codes.numel() != 256 or absmax.numel() != 4:
        return "256 numbers in blocks of 64 have 256 codes and 4 absmax values"
    codes, absmax, blocks = codes.flatten().long(), absmax.flatten().float(), x.view(4, 64)
    if not torch.allclose(absmax, blocks.abs().amax(dim=1)):
        if torch.allclose(absmax, blocks.amax(dim=1)):
            return "the absmax is the largest value in size: in a block where -2 is largest in size it is 2, so take abs() first"
        if torch.allclose(absmax, x.abs().max()):
            return "that is one absmax for the whole tensor: each block has its own"
        return "the absmax values are wrong: one for each row of x.view(-1, block_size), the largest abs() in it"
    scaled = (blocks / absmax[:, None]).flatten()
    right = (scaled[:, None] - levels).abs().argmin(dim=1)
    if torch.equal(codes, right):
        return None
    if codes.min() < 0 or codes.max() > 15:
        return f"a code is a place in the list of 16 levels, from 0 to 15, and yours go from {codes.min()} to {codes.max()}"
    wrong = int((codes != right).sum())
    if (codes >= right).all() or (codes <= right).all():
        side = "above" if (codes >= right).all() else "below"
        return f"the absmax is right, but {wrong} of 256 codes name the level {side} the nearest: where must the borders lie?"
    return f"{wrong} of 256 codes do not name the nearest level: each border lies midway between two levels"


@exercise("01.3", takes="packed bytes")
def unpack(answer):
    """unpack(packed): the upper four bits of each byte, then its lower four."""
    said = answer(PACKED.clone())
    if said is ...:
        return "put your answer in place of the dots"
    found = _numbers(said)
    if found is None:
        return f"return the codes as a tensor; it gives {type(said).__name__}"
    codes = found.flatten().long().tolist()
    if codes == CODES:
        return None
    if codes == [1, 7, 0, 15, 14, 2]:
        return "the order within each byte is swapped: the first weight of a pair is in the upper four bits"
    if len(codes) == 3:
        return "half of the codes are missing: a byte holds two"
    if codes == [7, 15, 2, 1, 0, 14]:
        return "all upper halves come before all lower ones: interleave them, as with stack(..., dim=1)"
    if max(codes, default=0) > 15:
        return f"a code is at most 15, and you have {max(codes)}: mask the lower four bits with & 15"
    return f"for the bytes 0x71, 0xF0, 0x2E the codes are {CODES}, and you have {codes}"


@exercise("01.4", takes="x, packed, absmax, levels and outputs")
def nf4_linear(answer):
    """x times the transposed matrix that packed and absmax stand for."""
    draw, levels = torch.Generator().manual_seed(2), _nf4()
    x, codes = torch.randn(3, 128, generator=draw), torch.randint(0, 16, (24 * 128,), generator=draw)
    absmax = 0.5 + torch.rand(24 * 128 // 64, generator=draw)
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)
    said = answer(x.clone(), packed.clone(), absmax.clone(), levels.clone(), 24)
    if said is ...:
        return "put your answer in place of the dots"
    found = _numbers(said)
    if found is None:
        return f"return a tensor; it gives {type(said).__name__}"
    weight = (levels[codes] * absmax.repeat_interleave(64)).view(24, 128)
    right, swapped = x @ weight.T, codes.view(-1, 2).flip(1).flatten()
    if tuple(found.shape) != (3, 24):
        if tuple(found.shape) == (24, 3):
            return "it is turned round: a row for each row of x, a column for each output, so x @ weight.T"
        return (
            f"three rows of x and 24 outputs make a tensor of 3 x 24, and yours is {' x '.join(map(str, found.shape))}"
        )
    mistakes = {
        "the absmax is missing: the levels alone are weights between -1 and 1": x @ levels[codes].view(24, 128).T,
        "the order within each byte is swapped: the first weight of a pair is in the upper four bits": x
        @ (levels[swapped] * absmax.repeat_interleave(64)).view(24, 128).T,
        "each absmax serves 64 weights that lie side by side: repeat_interleave(64) repeats each one in place, repeat does not": x
        @ (levels[codes] * absmax.repeat(64)).view(24, 128).T,
        "the codes themselves are no weights: look the levels up first": x
        @ (codes.float() * absmax.repeat_interleave(64)).view(24, 128).T,
        "the weights of one output lie side by side: view(outputs, -1), not the transposed of another view": x
        @ (levels[codes] * absmax.repeat_interleave(64)).view(128, 24),
    }
    if torch.allclose(found.float(), right, atol=1e-4):
        return None
    for hint, wrong in mistakes.items():
        if torch.allclose(found.float(), wrong, atol=1e-4):
            return hint
    steps = (
        "unpack the codes, look up the levels, multiply by the absmax of their block, view(outputs, -1), x @ weight.T"
    )
    return f"the product is wrong; the steps are: {steps}"


CHANGED = {"times 1000": 1.0, "shuffled": 1.0, "sorted": 0.067, "cubed": 1.2}  # errors beside the bell curve's own
WHY = {
    "times 1000": "the absmax grows by the same factor, and the division takes it out again",
    "shuffled": "a shuffled bell curve fills its blocks with the same mixture",
    "sorted": "think of one block: how different are sorted neighbours, and what is each beside its absmax?",
    "cubed": "cubing makes small numbers tiny and a few large ones larger: that is what outliers are",
}


@exercise("01.5")
def errors_of_changed_weights(answer, came_out=CHANGED):
    """A guess, smaller, same or larger, for each change, beside what came out."""
    if isinstance(answer, list | tuple) and len(answer) == len(came_out):
        answer = dict(zip(came_out, answer, strict=True))
    if not isinstance(answer, dict) or set(answer) != set(came_out):
        return f"give a dictionary with the keys {', '.join(map(repr, came_out))}"
    guesses = {name: str(guess).strip().lower().removeprefix("the ") for name, guess in answer.items()}
    if unknown := [guess for guess in guesses.values() if guess not in ("smaller", "same", "larger")]:
        return f'{unknown[0]!r} is none of "smaller", "same" and "larger"'
    for name, ratio in came_out.items():
        is_so = "same" if abs(ratio - 1) <= 0.01 else "smaller" if ratio < 1 else "larger"
        if guesses[name] != is_so:
            return f"{name}: the error came out {ratio:.3g} times what it was. {WHY[name][0].upper() + WHY[name][1:]}"
    return None


@exercise("01.6")
def what_fits(answer):
    """For 14, 7 and 6 GB: int8, nf4 and a smaller model."""
    if isinstance(answer, list | tuple) and len(answer) == 3:
        answer = dict(zip((14, 7, 6), answer, strict=True))
    if not isinstance(answer, dict) or {int(room) for room in answer} != {14, 7, 6}:
        return "give a dictionary with the keys 14, 7 and 6"
    choices = {int(room): str(way).strip().lower().removeprefix("a ") for room, way in answer.items()}
    bits = {"int8": 8, "nf4-32": 5, "nf4": 4.127, "3 bits": 3.5, "smaller model": 0}
    if unknown := [way for way in choices.values() if way not in bits]:
        return f'{unknown[0]!r} is none of "int8", "nf4", "nf4-32", "3 bits" and "a smaller model"'
    right = {14: "int8", 7: "nf4", 6: "smaller model"}
    for room, way in choices.items():
        size = 13.0 * bits[way] / 8
        if way == right[room]:
            continue
        if size > room:
            return f"{room} GB: 13.0 billion weights take {size:.1f} GB with {way}, which does not fit"
        if way == "3 bits":
            return f"{room} GB: 3 bits fit, but SmolLM2's perplexity with them is about three times that of 16 bits"
        if way == "smaller model":
            return f"{room} GB: something of the figure fits, and its perplexity is below twice that of 16 bits"
        return f"{room} GB: {way} fits, and so does something with a lower perplexity: {right[room]}"
    return None


@exercise("01.7")
def t4_config(answer):
    """A BitsAndBytesConfig for QLoRA on a T4: 4 bits, NF4, double quantization, float16 compute."""
    if not hasattr(answer, "load_in_4bit"):
        return "give a BitsAndBytesConfig"
    if answer.load_in_8bit:
        return "that loads in 8 bits: QLoRA's base model has 4, load_in_4bit=True"
    if not answer.load_in_4bit:
        return "nothing is quantized yet: load_in_4bit=True"
    if answer.bnb_4bit_quant_type != "nf4":
        return "the default type is fp4: set bnb_4bit_quant_type"
    if answer.bnb_4bit_compute_dtype == torch.bfloat16:
        return "a T4 has no bfloat16 units: compute in torch.float16"
    if answer.bnb_4bit_compute_dtype == torch.float32:
        return "float32 is the default and slow: set bnb_4bit_compute_dtype to the 16-bit type that a T4 has"
    if not answer.bnb_4bit_use_double_quant:
        return "right but for 0.373 bits per weight: set bnb_4bit_use_double_quant=True"
    return None
