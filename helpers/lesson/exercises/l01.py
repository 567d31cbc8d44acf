"""The checks of lesson 01's exercises."""

import math

import torch

from helpers.lesson.checks import exercise, near

BLOCKS = torch.tensor([[0.5, -2.0, 0.1, 1.0], [0.01, 0.02, -0.04, 0.03], [3.0, -1.0, 0.0, -6.0]])
PACKED = torch.tensor([0x71, 0xF0, 0x2E], dtype=torch.uint8)


@exercise("01.1")
def largest_fp8(answer):
    """The largest finite number with 4 exponent and 3 fraction bits: 2^(14 - 7) * (1 + 7/8) = 240."""
    hints = {
        256: "that is 2^8: the fraction is at most 7/8, so 1 + fraction stays below 2",
        480: "an exponent of all ones is kept for infinity and NaN, so the largest exponent is 1110",
        128: "that is the number with fraction 000: the largest has all three fraction bits set",
        120: "the bias is 2^(4 - 1) - 1 = 7, not 8",
    }
    return None if near(answer, 240, 1e-9) else hints.get(answer, "write its bits, 0 1110 111, and apply number()")


@exercise("01.2")
def absmax_of_blocks(answer):
    """The absmax of each row of BLOCKS: 2, 0.04, 6."""
    right = BLOCKS.abs().amax(dim=1)
    answer = torch.as_tensor(answer, dtype=torch.float32)
    if answer.shape == right.shape and torch.allclose(answer, right):
        return None
    if answer.numel() == 1:
        return "that is one number for the whole tensor: each block, here each row, has an absmax of its own"
    if answer.shape == right.shape and torch.allclose(answer, BLOCKS.amax(dim=1)):
        return "that is the largest value of each block: take abs() first, since -2 is larger in size than 1"
    if answer.shape == (4,):
        return "that is the absmax of each column: a block is four numbers that lie side by side, so reduce over dim=1"
    return "take abs(), then the maximum over dim=1: one number for each of the three blocks"


@exercise("01.3")
def nf3_levels(answer):
    """The 8 levels of NF3: 4 quantiles above zero, zero, 3 below, divided by the largest."""
    answer = torch.as_tensor(answer, dtype=torch.float32).flatten()
    offset = 1 - (1 / 16 + 1 / 14) / 2

    def quantiles(points):
        return torch.special.ndtri(torch.linspace(offset, 0.5, points)[:-1].double())

    wide = torch.cat([-quantiles(4), torch.zeros(1), quantiles(5)]).float().sort().values
    right = wide / wide.max()
    if len(answer) != 8:
        return f"3 bits make 8 levels, and you have {len(answer)}: zero must stand there once, not once for each half"
    if torch.allclose(answer, right, atol=1e-4):
        return None
    if torch.allclose(answer.sort().values, right, atol=1e-4):
        return "right numbers in the wrong order: sort the levels"
    if torch.allclose(answer.sort().values, wide, atol=1e-4):
        return "not normalised: divide by the largest, so that the levels reach from -1 to 1"
    if not (answer == 0).any():
        return "no level is zero: weights of exactly zero must stay zero"
    if torch.allclose(answer.sort().values, -right.flip(0), atol=1e-4):
        return "mirrored: the larger half, four levels, is above zero"
    return "take 5 points from offset to 0.5 above zero and 4 below, without the last of each, and add one zero"


@exercise("01.5")
def unpack(answer):
    """unpack_4bit(packed): the high nibble of each byte, then its low nibble."""
    found = answer(PACKED.clone())
    found, right = torch.as_tensor(found).flatten().long().tolist(), [7, 1, 15, 0, 2, 14]
    if found == right:
        return None
    if found == [1, 7, 0, 15, 14, 2]:
        return "nibble order swapped: the first weight of a pair is in the high four bits"
    if len(found) == 3:
        return "half of the codes are missing: a byte holds two"
    if found == [7, 15, 2, 1, 0, 14]:
        return "all high nibbles come before all low ones: interleave them, as with stack(..., dim=1)"
    if max(found) > 15:
        return f"a code is at most 15, and you have {max(found)}: mask the low four bits with & 15"
    return f"for the bytes 0x71, 0xF0, 0x2E the codes are {right}, and you have {found}"


@exercise("01.4")
def bits_a_weight(answer):
    """Blocks of 128 with double quantization: 4 + 8/128 + 32/(128 * 256)."""
    hints = {
        4 + 32 / 128: "that is without double quantization: the absmax takes 8 bits now, not 32",
        4 + 8 / 64 + 32 / (64 * 256): "that is for blocks of 64: here a block has 128 weights",
        4 + 8 / 128: "nearly: each 256 absmax values share one float32 of their own",
        (4 + 8 / 128 + 32 / (128 * 256)) / 8: "those are bytes: a byte has 8 bits",
        4 + 8 / 128 + 32 / 256: "256 absmax values stand for 128 * 256 weights, which share that float32",
    }
    if near(answer, 4 + 8 / 128 + 32 / (128 * 256), 1e-6):
        return None
    for wrong, hint in hints.items():
        if math.isclose(answer, wrong, rel_tol=1e-4):
            return hint
    return "4 bits for the code, 8 for the absmax of 128 weights, 32 for each 256 of those: add a weight's shares"


@exercise("01.6")
def t4_config(answer):
    """A BitsAndBytesConfig for QLoRA on a T4: 4 bits, NF4, double quantization, float16 compute."""
    if getattr(answer, "load_in_8bit", False):
        return "that loads in 8 bits: QLoRA's base model has 4, load_in_4bit=True"
    if not getattr(answer, "load_in_4bit", False):
        return "nothing is quantized yet: load_in_4bit=True"
    if answer.bnb_4bit_quant_type != "nf4":
        return "the default type is fp4: set bnb_4bit_quant_type"
    if answer.bnb_4bit_compute_dtype == torch.bfloat16:
        return "a T4 has no bfloat16 units: compute in torch.float16"
    if answer.bnb_4bit_compute_dtype == torch.float32:
        return "float32 is the default and slow: set bnb_4bit_compute_dtype to the 16-bit type that a T4 has"
    if not answer.bnb_4bit_use_double_quant:
        return "right but for 0.373 bits a weight: set bnb_4bit_use_double_quant=True"
    return None
