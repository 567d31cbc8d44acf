"""Checks of the exercises of lesson 04."""

from helpers.checks import exercise


@exercise("04.1")
def bytes_for_a_token(answer):
    right = 2 * 32 * 8 * 128 * 2
    hints = {
        right // 2: "off by a factor of two: there are keys and values, and each number takes two bytes",
        right // 4: "off by four: there are keys and values, and each number takes two bytes",
        right * 4: "that counts 32 heads; only the 8 key-value heads are kept",
        right // 32: "that is one layer; there are 32",
        right * 2: "that is float32; float16 takes two bytes a number",
    }
    return (
        None
        if answer == right
        else hints.get(answer, "2 (keys, values) * layers * key-value heads * head size * bytes")
    )


@exercise("04.2")
def first_real_token(answer):
    hints = {0: "that is where padding on the right would put it", 5: "five is how many tokens the prompt has"}
    return None if answer == 7 else hints.get(answer, "all are padded to the longest; the padding stands in front")


@exercise("04.3")
def missing(answer):
    word = str(answer).lower().strip(" <>/|.")
    if word in ("eos", "s", "end of sequence", "end-of-sequence", "eos_token", "eos token", "endoftext", "end of text"):
        return None
    if "pad" in word:
        return "padding is masked, the model never learns from it; which token says that an answer is over?"
    if "bos" in word:
        return "that one begins a text; which one ends it?"
    return "which token says that an answer is over?"
