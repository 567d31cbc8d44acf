"""Checks of the exercises of lesson 04."""

from helpers.lesson.checks import exercise, near


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


PROMPTS = [
    "The capital of Norway is",
    "One",
    "What is the opposite of the word that stands at the end of this line, up?",
]


@exercise("04.4")
def next_token_logits(answer):
    """(function, model, tokenizer): on PROMPTS the function's rows are those of each prompt alone."""
    import torch

    if not isinstance(answer, tuple) or len(answer) != 3 or not callable(answer[0]):
        return "hand over three things: your function, the model and the tokenizer"
    function, model, tokenizer = answer
    side = tokenizer.padding_side
    try:
        found = function(model, tokenizer, list(PROMPTS))
    finally:
        tokenizer.padding_side = side
    if not isinstance(found, torch.Tensor):
        return f"the function returns {type(found).__name__}: return a tensor of logits, a row for each prompt"
    rows, padded, first = [], [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            logits = model(**tokenizer(prompt, return_tensors="pt").to(model.device)).logits[0]
            rows.append(logits[-1])
            first.append(logits[0])
        tokenizer.padding_side = "right"
        try:
            batch = tokenizer(PROMPTS, return_tensors="pt", padding=True).to(model.device)
            padded = model(**batch).logits[:, -1]
        finally:
            tokenizer.padding_side = side
    right = torch.stack(rows).float()
    if found.shape != right.shape:
        return f"the shape is {tuple(found.shape)}; {tuple(right.shape)} is needed: one row of logits for each prompt"

    def same(other):  # a batch rounds otherwise than a single row, in 16 bits most of all
        return (found.to(other) - other).abs().max() <= 0.05 * other.abs().max()

    if same(right):
        return None
    if same(padded.float()):
        return "those stand behind the padding: take each row at its own last real token, which the mask counts"
    if same(torch.stack(first).float()):
        return "those stand behind the first token of each prompt; the next token follows the last one"
    if same(right.softmax(-1)):
        return "those are probabilities: return the logits as they come from the model"
    return "not the logits of each prompt alone: sum the attention mask of a row, and look one before that"


@exercise("04.5")
def seconds_of_a_request(answer):
    hints = {
        4.54: "the first of the 101 tokens comes out of the prefill, so 100 are left to decode",
        0.5: "that is the time to the first token; 100 more follow",
        4.0: "that leaves the prefill out: the prompt has to be read first",
        44.04: "the prompt is read at the speed of prefill, not one token after the other",
        44.0: "the prompt is read at the speed of prefill, not one token after the other",
    }
    if near(answer, 4.5, 1e-3):
        return None
    close = next((hint for value, hint in hints.items() if near(answer, value, 1e-3)), None)
    return close or "prompt tokens / prefill speed, and then 100 tokens / decode speed"


@exercise("04.6")
def better_or_not(answer):
    word = str(answer).lower().strip(" .")
    if word in ("not shown", "not-shown", "not_shown"):
        return None
    if word == "yes":
        return "look at wilson_interval(90, 100) and wilson_interval(94, 100): they overlap in most of their width"
    if word == "no":
        return "that is a claim as well: overlapping intervals do not show that two models are equally good"
    return 'one of "yes", "no", "not shown"'
