"""Checks of the exercises of lesson 05."""

from helpers.lesson.checks import exercise


@exercise("05.1", takes="W, A, B, rank and alpha")
def merge(answer):
    import torch

    generator = torch.Generator().manual_seed(0)
    W = torch.randn(48, 32, generator=generator).half()
    A, B = torch.randn(4, 32, generator=generator) / 8, torch.randn(48, 4, generator=generator) / 8
    product = B @ A
    given = answer(W.clone(), A.clone(), B.clone(), 4, 12)
    if given is ...:
        return "put your answer in place of the dots"
    if not isinstance(given, torch.Tensor) or given.shape != W.shape:
        return f"a tensor of W's shape {tuple(W.shape)} is asked for: B @ A, not A @ B"
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


@exercise("05.2", takes="before, trained and merged")
def merge_error(answer):
    import torch

    generator = torch.Generator().manual_seed(0)
    before = torch.randn(40, 30, generator=generator)
    update = torch.randn(40, 30, generator=generator) / 100
    noise = torch.randn(40, 30, generator=generator)
    trained = before + update
    merged = trained + noise * (0.5 * update.norm() / noise.norm())
    found = _number(answer(before.clone(), trained.clone(), merged.clone()))
    if found is None:
        return "a number is asked for: the norm of what is wrong, divided by the norm of what was trained"
    hints = {
        ((merged - trained).norm() / trained.norm()).item(): "that is theirs: it divides by the weights, and the update is "
        "a hundredth of them",
        ((merged - before).norm() / (trained - before).norm()).item(): "that is the size of the change: what of it is wrong?",
        ((trained - before).norm() / (merged - trained).norm()).item(): "turn it round: what is wrong, divided by the update",
        0.25: "that is the square of it: take norms",
        (merged - trained).norm().item(): "divide it by the size of what was trained",
    }  # fmt: skip
    if abs(found - 0.5) > 1e-3:
        return next((hint for value, hint in hints.items() if abs(found - value) < 1e-3 * abs(value)),
                    "the norm of merged - trained, divided by the norm of trained - before")  # fmt: skip
    if abs((_number(answer(before, trained, before.clone())) or 0) - 1) > 1e-3:
        return "a merge that loses all of the update has the error 1"
    return None


@exercise("05.3", takes="A, B and scale")
def update_norm(answer):
    import torch

    from helpers.lesson.exercises._largest import largest_made

    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(4, 300, generator=generator), torch.randn(200, 4, generator=generator)
    right = (0.5 * (B @ A)).norm().item()
    with largest_made() as made:
        found = _number(answer(A.clone(), B.clone(), 0.5))
    if found is None:
        return "a number is asked for: the norm of scale * B @ A"
    hints = {
        2 * right: "the scale is left out",
        right**2: "that is the square: take the root",
        right**2 / 0.5: "that is the square: take the root, and scale after it",
        right / 2: "the root of scale times the sum: scale belongs outside of the root, or squared inside",
        0.5 * (A.norm() * B.norm()).item(): "the norm of a product is not the product of the norms: see the formula",
        right / 0.5**0.5: "scale belongs outside of the root, or squared inside",
    }
    if abs(found - right) > 1e-3 * right:
        return next((hint for value, hint in hints.items() if abs(found - value) < 1e-3 * abs(value)),
                    "scale times the root of ((B.T @ B) * (A @ A.T)).sum()")  # fmt: skip
    if made.numel > B.numel() and made.numel > A.numel():
        return f"the number is right, but you made a matrix of {made.numel:,} numbers: rank times rank is enough"
    if abs((_number(answer(A, B, -0.5)) or 0) - right) > 1e-3 * right:
        return "a norm is never negative, whatever the sign of scale"
    return None


@exercise("05.4", takes="weights and kind")
def gguf_bytes(answer):
    sizes = {"f16": 64, "q8_0": 34, "q4_0": 18}  # bytes for 32 weights
    hints = {
        16: "that is the codes alone: each block of 32 has a scale of two bytes as well",
        32: "that is the codes alone: each block of 32 has a scale of two bytes as well",
        20: "the scale is a float16: two bytes",
        36: "the scale is a float16: two bytes",
        34: "a code of q4_0 takes half a byte",
        128: "f16 is two bytes per weight",
    }
    for kind, per_block in sizes.items():
        found = _number(answer(3200, kind))
        if found is None:
            return f"a number of bytes is asked for, for {kind} too"
        if found != 100 * per_block:
            return f"{kind}: " + hints.get(round(found / 100), f"{per_block} bytes for every 32 weights")
    return None


@exercise("05.5")
def kept_of_the_double(answer, came=None):
    guess = _number(answer)
    if guess is None or came is None or came != came:
        return "a share from 0 to 1 is asked for"
    if not 0 <= guess <= 1:
        return "a share from 0 to 1 is asked for, not per cent" if guess > 1 else "a share is not negative"
    print(f"the merge kept {came:.0%}")
    if abs(guess - came) <= 0.1:
        return None
    if guess > came:
        return "less: find twice the size on the axis, go up to the curve, and read the share there"
    return "more: the curve is not a straight line from zero, it bends upwards before its half"


@exercise("05.6")
def way_for_each(answer):
    right = {"A": "keep", "B": "dequantized", "C": "original", "D": "original"}
    if not isinstance(answer, dict) or set(answer) != set(right):
        return 'a dictionary with "A" to "D" is asked for'
    said = {team: str(word).strip().lower() for team, word in answer.items()}
    if any(word not in ("keep", "4-bit", "original", "dequantized") for word in said.values()):
        return 'each is one of "keep", "4-bit", "original" and "dequantized"'
    hints = {
        ("A", "original"): "A: eight merged models are eight times the memory; adapters share one base",
        ("A", "dequantized"): "A: eight merged models are eight times the memory; adapters share one base",
        ("B", "original"): "B: those weights are better ones, but the adapter was evaluated on the rounded ones",
        ("B", "keep"): "B: an adapter and its base are not one folder",
        ("C", "dequantized"): "C: its weights stand on their levels: quantized again, so small an update falls back",
        ("C", "keep"): "C: the server loads one model and quantizes it itself",
        ("D", "dequantized"): "D: they went through 4 bits once already, and Q4_0 has other levels: that rounds twice",
        ("D", "keep"): "D: llama.cpp reads one file; merge first",
    }
    for team, word in said.items():
        if word == "4-bit":
            return f"{team}: at 2% of the weights, a merge into 4 bits keeps next to nothing (section 3)"
        if word != right[team]:
            return hints[team, word]
    return None


@exercise("05.7", takes="names")
def must_not_go(answer):
    names = ["README.md", "model.safetensors", "optimizer.pt", ".env", "rows.jsonl", "tokenizer.json", "pytorch_model.bin",
             "mine.csv", "state.pkl", "chart.pt.png", ".cache"]  # fmt: skip
    right = ["optimizer.pt", ".env", "rows.jsonl", "pytorch_model.bin", "mine.csv", "state.pkl", ".cache"]
    found = answer(list(names))
    if found is ... or found is None:
        return "put your answer in place of the dots"
    found = list(found)
    if found == right:
        upper = list(answer(["ROWS.CSV", "config.json"]))
        return None if upper == ["ROWS.CSV"] else "an ending in capitals is the same ending: ROWS.CSV holds rows too"
    if found == [name for name in names if name not in right]:
        return "those are the ones that may go: return the others"
    if "chart.pt.png" in found:
        return "chart.pt.png is a picture: look at how a name ends, not at what is in it"
    if ".env" not in found:
        return ".env begins with a dot; such files often hold passwords"
    if set(found) == set(right):
        return "these are the right ones; keep them in the order in which they came"
    missing = [name for name in right if name not in found]
    return f"{missing[0]} has no place in a published model" if missing else "a file that may go is among them"


def _number(value) -> float | None:
    """A finite number, also from a tensor or an array of one value; None for anything else."""
    import math
    import numbers

    if hasattr(value, "item") and getattr(value, "numel", getattr(value, "size", None)) is not None:
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    return float(value)
