"""Checks of the exercises of lesson 03."""

from helpers.lesson.checks import exercise


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


@exercise("03.4")
def labels(answer):
    if not callable(answer):
        return "a function of prompt, completion and eos is asked for"
    given = answer([5, 6, 7], [8, 9], 2)
    if not isinstance(given, list):
        return "it must return a list"
    if given == [-100] * 3 + [8, 9, 2] and answer([1], [3], 4) == [-100, 3, 4]:
        return None
    if given == [-100] * 3 + [8, 9]:
        return "the eos is missing: a model that never sees the end of an answer never stops"
    if given == [-100] * 3 + [8, 9, -100]:
        return "the eos is masked: a model that never learns the end of an answer never stops"
    if given == [5, 6, 7, 8, 9, 2]:
        return "the prompt is not masked: the model would learn to write the question too"
    if given in ([8, 9, 2], [8, 9]):
        return "the prompt's places are missing: a masked token keeps its place, with the label -100"
    return "a label of -100 for each prompt token, then the completion's ids, then eos"


@exercise("03.5")
def steps_again(answer):
    if answer == 17:
        return None
    if answer == 7:
        return "checkpoint-40 is cut off; the one before it has to do"
    if answer == 47:
        return "save_total_limit=2 kept two checkpoints: the last is cut off, the other is whole"
    return "from the last whole checkpoint to step 47"


@exercise("03.6")
def only_time(answer):
    right = {"checkpointing", "batch_size and gradient_accumulation"}
    if not isinstance(answer, list | tuple | set):
        return "a list of names is asked for"
    if set(answer) == right:
        return None
    if "max_length" in answer:
        return "a shorter max_length cuts rows: the model learns from less text"
    if {"rank", "target_modules"} & set(answer):
        return "with a smaller rank or fewer targets there are fewer numbers to train: the result changes"
    if set(answer) == {"checkpointing"}:
        return "there is one more: half the rows at once and twice as many batches make the same step"
    return "which settings leave the gradient of a step what it was?"
