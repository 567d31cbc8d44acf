"""Checks of the exercises of lesson 04."""

from itertools import product

from helpers.lesson.checks import exercise

DOTS = "put your answer in place of the dots"


@exercise("04.1", takes="layers, heads, size, tokens, rows and window")
def kv_bytes(answer):
    one = answer(3, 2, 16, 10, 1)
    if one is ...:
        return DOTS
    hints = {
        960: "that counts keys or values, not both",
        1920: "that counts the numbers; in float16 each takes two bytes",
        7680: "that is float32; in float16 a number takes two bytes",
        1280: "that is one layer",
        384: "that is one token",
    }
    if one != 3840:
        return hints.get(one, "2 (keys, values) x layers x heads x size x 2 bytes x tokens, for each row")
    if answer(3, 2, 16, 10, 4) != 4 * 3840:
        return "each row has a cache of its own: multiply by rows"
    given = answer(3, 2, 16, 10, 1, 8)
    if given == 3840:
        return "the window is left out: it keeps the last window - 1 tokens"
    if given == 8 * 384:
        return "one token too many: a window keeps window - 1 tokens"
    if given != 7 * 384:
        return "with a window of 8, ten tokens leave seven"
    if answer(3, 2, 16, 4, 1, 8) != 4 * 384:
        return "fewer tokens than the window are kept all; take the smaller number"
    return None


@exercise("04.2", takes="tokens and stops")
def cut(answer):
    if answer([5, 2], {2}) is ...:
        return DOTS
    stopped = list(answer([7, 8, 2, 9, 3, 4], {2, 3}))
    if stopped == [7, 8, 9, 4]:
        return "what stands behind the end is still there: users see nonsense"
    if stopped == [7, 8, 2]:
        return "the end token itself is no part of the answer"
    if stopped == [7, 8, 2, 9]:
        return "that cuts at the last end token; the answer was over at the first"
    if stopped != [7, 8]:
        return "the tokens before the first one that is in stops, in their order"
    if list(answer([7, 3, 8, 2], {2, 3})) != [7]:
        return "any of the stops ends the answer, whichever comes first"
    try:
        whole = list(answer([7, 8], {2}))
    except (ValueError, StopIteration):
        return "an answer that hit max_new_tokens has no end token: return all of it"
    return None if whole == [7, 8] else "an answer that hit max_new_tokens has no end token: return all of it"


DIFFERENCES = [0.3, 0.1, -0.25, 0.5, 0.45, 0.2, -0.05]


def _flips(differences, far=lambda total, seen: abs(total) >= abs(seen) - 1e-9) -> float:
    """The share of all ways to choose the signs whose sum is as far from zero as the sum that was seen."""
    ways = list(product((1, -1), repeat=len(differences)))
    sums = [sum(sign * one for sign, one in zip(signs, differences, strict=True)) for signs in ways]
    return sum(far(total, sum(differences)) for total in sums) / len(ways)


@exercise("04.3", takes="differences")
def sign_flips(answer):
    given = answer(list(DIFFERENCES))
    if given is ...:
        return DOTS
    right = _flips(DIFFERENCES)
    hints = {
        _flips(DIFFERENCES, lambda total, seen: total >= seen - 1e-9): "that is one side: sums as far below zero count too",
        _flips(DIFFERENCES, lambda total, seen: abs(total) > abs(seen) + 1e-9): "the signs that were seen are one of the ways: "
        "at least as far is asked for, not farther",
        1 - right: "that is the share of the ways that are nearer to zero: the others are asked for",
        right * 2 ** len(DIFFERENCES): "that is how many ways there are: divide by all 2 ** n of them",
        1.0: "changing the order of the differences leaves their sum as it is: change the signs",
    }  # fmt: skip
    if abs(given - right) > 1e-9:
        close = next((hint for value, hint in hints.items() if abs(given - value) < 1e-9), None)
        drawn = "that looks like signs drawn at random: with so few rows, go through all 2 ** n ways"
        return close or (
            drawn if abs(given - right) < 0.03 else f"{right:.4f} is right for {DIFFERENCES}, not {given:.4f}"
        )
    if abs(answer([-one for one in DIFFERENCES]) - right) > 1e-9:
        return "the two models must be treated alike: with all signs turned round the value is the same"
    if abs(answer([0.2, -0.3, 0.2, 0.0, 0.1]) - _flips([0.2, -0.3, 0.2, 0.0, 0.1])) > 1e-9:
        return "two sums that are equal on paper may differ in their last digits: allow for 1e-9 when you compare"
    return None


PROMPTS = [
    "The capital of Norway is",
    "One",
    "What is the opposite of the word that stands at the end of this line, up?",
]


def _not_one_call_padded_on_the_right(calls, tokenizer) -> str | None:
    """What is wrong with how the model was called: `calls` are what each call was given, in order and by name."""
    if len(calls) != 1:
        return f"the model was called {len(calls)} times: call it once, with all prompts in one batch"
    words, given = calls[0]
    ids = given["input_ids"] if "input_ids" in given else words[0] if words else None
    mask = given.get("attention_mask")
    if mask is None and ids is not None:
        mask = ids != tokenizer.pad_token_id
    if mask is not None and not mask[:, 0].all():
        return (
            "you padded on the left, where the last place is right for every row: pad on the right, and find the place"
        )
    return None


@exercise("04.4")
def next_token_logits(answer):
    """(function, model, tokenizer): on PROMPTS the function's rows are those of each prompt, from one call padded right."""
    import torch

    if not isinstance(answer, tuple) or len(answer) != 3 or not callable(answer[0]):
        return "hand over three things: your function, the model and the tokenizer"
    function, model, tokenizer = answer
    side, calls = tokenizer.padding_side, []
    tokenizer.padding_side = "right"  # as many are saved: who forgets the padding meets it
    hook = model.register_forward_pre_hook(lambda _, words, given: calls.append((words, given)), with_kwargs=True)
    try:
        found = function(model, tokenizer, list(PROMPTS))
    finally:
        hook.remove()
        tokenizer.padding_side = side
    if not isinstance(found, torch.Tensor):
        return f"the function returns {type(found).__name__}: return a tensor of logits, a row for each prompt"
    wrong_call = _not_one_call_padded_on_the_right(calls, tokenizer)
    if wrong_call:
        return wrong_call
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
def wait_for_a_long_prompt(answer):
    import math
    import numbers

    if isinstance(answer, bool) or not isinstance(answer, numbers.Real) or not math.isfinite(answer):
        return "a number between 1 and 4 is asked for"
    before, after = 1000 / 2000 + 100 / 25, 4000 / 2000 + 100 / 25
    came = after / before
    print(f"computed: {before:.1f} s, and {after:.1f} s with the long prompt: {came:.2f} times")
    if abs(answer - came) <= 0.1:
        return None
    if abs(answer - 4) <= 0.1:
        return "only prefill takes four times as long, and it was a small part of the wait"
    if abs(answer - 1) <= 0.1:
        return "more: the prompt has to be read before the first token comes"
    return ("less" if answer > came else "more") + ": seconds to read the prompt, and 100 tokens at 25 per second"


@exercise("04.6")
def how_served(answer):
    right = {"customers": "adapters", "laptop": "merged", "DoRA": "merged", "trial": "adapters"}
    if not isinstance(answer, dict) or set(answer) != set(right):
        return f"a dictionary with a choice for each of {', '.join(right)} is asked for"
    if ... in answer.values():
        return DOTS
    said = {name: str(choice).strip().lower() for name, choice in answer.items()}
    if not set(said.values()) <= {"adapters", "merged"}:
        return 'each is "adapters" or "merged"'
    hints = {
        "customers": "customers: 40 merged 7B models do not fit into 24 GB; 40 adapters beside one base do",
        "laptop": "laptop: one single file with all weights means merged; there is nothing to switch",
        "DoRA": "DoRA: vLLM refuses such an adapter beside a base, as section 10 says",
        "trial": "trial: to compare, switch between them on one base; merge the one that you keep",
    }
    return next((hints[name] for name in right if said[name] != right[name]), None)


def _chat(*words: str) -> list[dict]:
    """Messages from "s: ...", "u: ..." and "a: ...": a token for each word."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[text[0]], "content": text[3:]} for text in words]


def _count(messages) -> int:
    return sum(len(message["content"].split()) for message in messages)


@exercise("04.7", takes="messages, count and room")
def fit(answer):
    talk = _chat("u: one two three", "a: four", "u: five six", "a: seven", "u: eight nine ten")
    if answer(list(talk), _count, 99) is ...:
        return DOTS
    given = list(talk)
    found = answer(given, _count, 8)
    if given != talk:
        return "the function changes the list that it was given: the caller still needs it"
    if found and found[-1] != talk[-1]:
        return "the newest message is gone, and it is the one to be answered: drop the oldest"
    if found == talk[1:]:
        return "that begins with an answer of the model, whose question is gone"
    if _count(found) > 8:
        return f"that takes {_count(found)} tokens, and there is room for 8"
    if found != talk[2:]:
        return "more of the newest messages would have fitted"
    if answer(list(talk), _count, 5) != talk[4:]:
        return "with room for 5 only the last message is left, since what fits in front of it is an answer"
    if answer(list(talk), _count, 99) != talk:
        return "if all of it fits, nothing goes"
    with_system = _chat("s: be brief") + talk
    found = answer(list(with_system), _count, 7)
    if found[:1] != with_system[:1]:
        return "the system message is gone: it must stay in front"
    if _count(found) > 7:
        return "the system message takes room as well"
    if found != with_system[:1] + talk[4:]:
        return "behind the system message, the newest ones that fit"
    if answer(list(talk), _count, 2) != [] or answer(list(with_system), _count, 4) != with_system[:1]:
        return "if not even the newest message fits, only the system message is left, or an empty list"
    greeted = _chat("a: hello") + talk
    if answer(list(greeted), _count, 99) != talk or answer(_chat("u: hello") + talk, _count, 10) != talk:
        return "look at each message's role: the model may speak first, and a user may write twice before it answers"
    return None
