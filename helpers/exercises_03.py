"""Checks of the exercises of lesson 03."""

from helpers.checks import exercise


@exercise("03.1")
def mistral_trainable(answer):
    right = 32 * 8 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    if answer == right:
        return None
    if answer == 32 * 8 * 4 * (4096 + 4096):
        return "that takes k_proj and v_proj for 4096 to 4096; Mistral has 8 key-value heads, so they map 4096 to 1024"
    if answer == right // 32:
        return "that is one layer; there are 32"
    if answer == 32 * 8 * (2 * 4096 + 2 * 4096):
        return "that counts A or B only; each layer has both: rank * (inputs + outputs)"
    return "add up rank * (inputs + outputs) over the four projections, then times the layers"


@exercise("03.2")
def rows_a_step(answer):
    if answer == 16:
        return None
    if answer == 4:
        return "that is one forward pass; gradients of four passes are added up before the optimizer steps"
    if answer == 8:
        return "the two numbers multiply, they do not add"
    return "rows in a pass times passes in a step"


@exercise("03.3")
def compute_dtype_on_a_t4(answer):
    answer = str(answer).removeprefix("torch.")
    if answer == "float16":
        return None
    if answer == "bfloat16":
        return "a T4 has no bfloat16 units; torch only emulates it there"
    if answer == "float32":
        return "that works, but leaves the T4's float16 tensor cores idle and doubles the activations"
    return 'one of "bfloat16", "float16", "float32"'
