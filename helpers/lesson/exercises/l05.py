"""Checks of the exercises of lesson 05."""

from helpers.lesson.checks import exercise


@exercise("05.1", takes="merged, base and rank")
def extract(answer):
    import torch

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(48, 32, generator=generator).half()
    A, B = torch.randn(8, 32, generator=generator), torch.randn(48, 8, generator=generator) / 8
    merged = (base.float() + B @ A).half()
    given = answer(merged.clone(), base.clone(), 4)
    if given is ...:
        return "put your answer in place of the dots"
    if (
        not isinstance(given, tuple | list)
        or len(given) != 2
        or not all(isinstance(one, torch.Tensor) for one in given)
    ):
        return "two tensors are asked for, A and B"
    shapes = tuple(given[0].shape), tuple(given[1].shape)
    if shapes == ((48, 4), (4, 32)):
        return "that is (B, A): A, which has the inputs, comes first"
    if shapes != ((4, 32), (48, 4)):
        return f"their shapes are {shapes[0]} and {shapes[1]}: here ((4, 32), (48, 4)) is right, rank x inputs and outputs x rank"
    if any(one.dtype != torch.float32 for one in given):
        return f"A is {given[0].dtype} and B {given[1].dtype}: return float32"
    return _not_nearest(given[1] @ given[0], base, merged)


def _not_nearest(found, base, merged) -> str | None:
    """None if `found` is the nearest matrix of rank 4 to merged - base, else what it is."""
    import torch

    def cut(matrix, power=1):
        U, S, V = torch.linalg.svd(matrix.float(), full_matrices=False)
        return U[:, :4] * S[:4] ** power @ V[:4]

    added = merged.float() - base.float()
    if (found - added).norm() <= 1.01 * (cut(added) - added).norm():
        return None
    U, S, V = torch.linalg.svd(added, full_matrices=False)
    mistakes = {
        "the singular values are left out: one of the two has to carry them": cut(added, 0),
        "the singular values stand in both: B @ A has them squared. Give them to one, or their roots to both": cut(
            added, 2
        ),
        "that is the merged matrix itself: take what was added, merged - base": cut(merged),
        "the sign: what was added is merged - base": cut(-added),
        "those are the smallest parts: the first columns of U and the first rows of V are the largest": U[:, -4:]
        * S[-4:]
        @ V[-4:],
    }
    for hint, wrong in mistakes.items():
        if (found - wrong).norm() < 0.01 * wrong.norm():
            return hint
    return "B @ A is not the nearest matrix of that rank to merged - base: cut its singular value decomposition after rank parts"


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
    right = {"A": ("keep",), "B": ("dequantized",), "C": ("original",)}
    right["D"] = "original", "dequantized"  # Q4_0 has other levels than NF4: both bases keep the update
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
        (
            "C",
            "dequantized",
        ): "C: its weights stand on the levels of NF4: quantized to them again, so small an update falls back",
        ("C", "keep"): "C: the server loads one model and quantizes it itself",
        ("D", "keep"): "D: llama.cpp could add the adapter itself, but to a base in other 4 bits; here merge first",
    }
    for team, word in said.items():
        if word == "4-bit":
            return f"{team}: at 2% of the weights, a merge into 4 bits keeps next to nothing (section 3)"
        if word not in right[team]:
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
