"""Checks of the exercises of lesson 05."""

from helpers.lesson.checks import exercise


@exercise("05.1")
def merge(answer):
    import torch

    if not callable(answer):
        return "give the function itself: check(name, merge)"
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(48, 32, generator=generator).half()
    A, B = torch.randn(4, 32, generator=generator) / 8, torch.randn(48, 4, generator=generator) / 8
    product = B @ A
    given = answer(W.clone(), A.clone(), B.clone(), 4, 12)
    if not isinstance(given, torch.Tensor) or given.shape != W.shape:
        return f"a tensor of W's shape {tuple(W.shape)} is wanted: B @ A, not A @ B"
    if given.dtype != W.dtype:
        return f"the merged weights are {given.dtype}, and W is {W.dtype}: round at the end"
    if torch.equal(given, (W.float() + product * 3).to(W.dtype)):
        return None
    mistakes = {
        "the product is not scaled: times alpha / rank": product,
        "the scale is the other way round: alpha / rank": product / 3,
        "that is alpha alone: divide it by the rank": product * 12,
        "that is the update alone: add it to W": product * 3 - W.float(),
    }
    for hint, update in mistakes.items():
        if torch.allclose(given.float(), W.float() + update, atol=2e-2):
            return hint
    if torch.allclose(given.float(), W.float() + product * 3, atol=2e-2):
        return "nearly: you round on the way. Add in 32 bits and round once, at the end"
    return "W plus alpha / rank times B @ A"


@exercise("05.2")
def kept(answer):
    import torch

    if not callable(answer):
        return "give the function itself: check(name, kept)"
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(40, 30, generator=generator)
    noise = torch.randn(40, 30, generator=generator)
    noise -= update * (noise * update).sum() / update.square().sum()  # nothing of it lies along the update
    change = 0.25 * update + 2 * noise
    given = float(answer(change.clone(), update.clone()))
    norms = (change.norm() / update.norm()).item()
    hints = {
        norms: "that is the ratio of the norms: noise makes it larger, and is no part of the update",
        (change * update).sum().div(change.norm() * update.norm()).item(): "that is the cosine: divide by <U, U>",
        0.25 * update.square().sum().item(): "that is <C, U>: divide it by <U, U>",
        0.25 / norms**2: "you divide by <C, C>: the share is of the update, so divide by <U, U>",
        (
            (change - update).norm() / update.norm()
        ).item(): "that is the error: what of the change lies along the update?",
    }
    if abs(given - 0.25) < 1e-3:
        return None
    return next((h for value, h in hints.items() if abs(given - value) < 1e-3 * abs(value)), "<C, U> over <U, U>")


@exercise("05.3")
def bytes_on_disk(answer):
    parameters = 7_241_732_096
    hints = {
        parameters: "that is one byte a parameter; float16 takes two",
        parameters // 2: "that is what 4-bit codes take; a merged model is stored in 16 bits",
        4 * parameters: "that is float32; float16 takes two bytes a parameter",
    }
    return None if answer == 2 * parameters else hints.get(answer, "two bytes for each parameter")


@exercise("05.4")
def merge_into(answer):
    word = str(answer).lower()
    if "dequant" in word:
        return None
    if "4" in word:
        return "that quantizes the sum again, and small updates are rounded away"
    if "orig" in word:
        return "those weights are better, but the adapter was trained on their rounded version"
    return 'one of "4-bit", "original", "dequantized"'


@exercise("05.5")
def merge_small_into(answer):
    word = str(answer).lower()
    if "orig" in word:
        return None
    if "dequant" in word:
        return "its weights stand just beside their old levels: in 4 bits again they fall back onto them"
    if "4" in word:
        return "that is where a small update is rounded away at once"
    return 'one of "4-bit", "original", "dequantized"'
