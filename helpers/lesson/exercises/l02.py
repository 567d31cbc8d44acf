"""Checks of the exercises of lesson 02."""

from helpers.lesson.checks import exercise, near


@exercise("02.1")
def layer_bytes(answer):
    n = 4096 * 14336
    right = n * (1 / 2 + 1 / 64 + 4 / (64 * 256))
    if near(answer, right, 1e-4):
        return None
    if near(answer, n / 2, 1e-4):
        return "those are the codes; each block of 64 has a constant, and each 256 constants one more"
    if near(answer, n * (1 / 2 + 4 / 64), 1e-4):
        return "that is without double quantization: there each block of 64 keeps four bytes"
    if near(answer, n * (1 / 2 + 1 / 64), 1e-4):
        return "nearly: the one-byte constants share a float32 for each 256 of them"
    if near(answer, 8 * right, 1e-3):
        return "those are bits; eight make a byte"
    return "half a byte a weight, one byte for each 64 weights, four for each 64 * 256"


@exercise("02.2")
def training_bytes(answer):
    n = 6_815_744
    hints = {
        12 * n: "one of the four is missing: values, gradients, and two averages",
        8 * n: "that is two of the four, or two bytes for each of the four; float32 takes four bytes",
        4 * n: "those are the values alone",
    }
    return None if answer == 16 * n else hints.get(answer, "four float32 numbers for each trained one")


@exercise("02.3")
def checkpoint_bytes(answer):
    right = 32 * 4 * 512 * 4096 * 2
    hints = {
        right // 32: "that is one layer; there are 32",
        right // 2: "that is one byte a value; float16 takes two",
        right * 2: "that is float32; float16 takes two bytes a value",
        right // 4: "that is one row; there are four",
    }
    return None if answer == right else hints.get(answer, "layers * rows * tokens * hidden size * bytes a value")


@exercise("02.4")
def growth(answer):
    right = 2 * 128_256 * 4096 * 2
    hints = {
        right // 2: "that is one of the two tables; embeddings and head are separate here",
        right * 2: "that is their size in float32; how much is it more than in float16?",
    }
    return None if answer == right else hints.get(answer, "two tables of vocabulary * hidden size, two bytes more each")


@exercise("02.5")
def helps_most(answer):
    hints = {
        "rank": "adapters of rank 16 take a fraction of a GB in all; half of that is not 1 GB",
        "optimizer": "the averages of a few ten million numbers are small either way",
    }
    return None if answer == "batch" else hints.get(str(answer).lower(), 'one of "rank", "optimizer", "batch"')
