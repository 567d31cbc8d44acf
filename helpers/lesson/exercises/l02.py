"""Checks of the exercises of lesson 02."""

from helpers.lesson.checks import exercise, near


@exercise("02.1", takes="n")
def weight_bytes(answer):
    n = 4096 * 14336
    given, right = answer(n), n * (1 / 2 + 1 / 64 + 4 / (64 * 256))
    if near(given, right, 1e-4):
        return None
    if near(given, n / 2, 1e-4):
        return "those are the codes; each block of 64 has a constant, and each 256 constants one more"
    if near(given, n * (1 / 2 + 4 / 64), 1e-4):
        return "that is without double quantization: there each block of 64 keeps four bytes"
    if near(given, n * (1 / 2 + 1 / 64), 1e-4):
        return "nearly: the one-byte constants share a float32 for each 256 of them"
    if near(given, 8 * right, 1e-3):
        return "those are bits; eight make a byte"
    return "half a byte per weight, one byte for each 64 weights, four for each 64 * 256"


@exercise("02.2", takes="layers and rank")
def lora_bytes(answer):
    given, right = answer([(10, 6), (4, 8)], 2), 16 * 2 * (10 + 6 + 4 + 8)
    hints = {
        right * 3 // 4: "one of the four is missing: values, gradients, and two averages",
        right // 2: "that is two of the four, or two bytes for each of the four; float32 takes four bytes",
        right // 4: "those are the values alone; add gradients and two averages",
        16 * 2 * (10 + 6): "one layer is right; add up over all of them",
        16 * 2 * (60 + 32): "that counts the weight matrix; an adapter has rank * (inputs + outputs) numbers",
    }
    return None if given == right else hints.get(given, "four float32 numbers for each rank * (inputs + outputs)")


@exercise("02.3", takes="layers, rows, tokens and hidden")
def kept_bytes(answer):
    given, right = answer(32, 4, 512, 4096), 32 * 4 * 512 * 4096 * 2
    hints = {
        right // 32: "that is one layer; each of them keeps its input",
        right // 2: "that is one byte per value; float16 takes two",
        right * 2: "that is float32; float16 takes two bytes per value",
        right // 4: "that is one row; there are several",
    }
    return None if given == right else hints.get(given, "layers * rows * tokens * hidden * bytes per value")


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
