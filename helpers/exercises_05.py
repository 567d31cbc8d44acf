"""Checks of the exercises of lesson 05."""

from helpers.checks import exercise


@exercise("05.1")
def multiplied_by(answer):
    hints = {
        0.5: "the other way round: alpha over rank",
        32: "that is alpha; it is divided by the rank",
        16: "that is the rank; alpha is divided by it",
        8: "that is rsLoRA's alpha over the root of the rank, which has to be asked for",
    }
    return None if answer == 2 else hints.get(answer, "alpha over rank")


@exercise("05.2")
def bytes_on_disk(answer):
    parameters = 7_241_732_096
    hints = {
        parameters: "that is one byte a parameter; float16 takes two",
        parameters // 2: "that is what 4-bit codes take; a merged model is stored in 16 bits",
        4 * parameters: "that is float32; float16 takes two bytes a parameter",
    }
    return None if answer == 2 * parameters else hints.get(answer, "two bytes for each parameter")


@exercise("05.3")
def merge_into(answer):
    word = str(answer).lower()
    if "dequant" in word:
        return None
    if "4" in word:
        return "that quantizes the sum again, and small updates are rounded away"
    if "orig" in word:
        return "those weights are better, but the adapter was trained on their rounded version"
    return 'one of "4-bit", "original", "dequantized"'
