"""Out of memory, explained: what was predicted, what was asked for, and which setting to change, with each one's peak."""

import contextlib
import dataclasses
import gc
import re
import traceback

from helpers import CourseError
from helpers.machine import GIB
from helpers.memory import CannotPredict, RunSpec, fits, predict


class OutOfMemory(CourseError, MemoryError):
    """The run needs more memory than there is; the message says what to change, a line for each setting."""

    def __str__(self) -> str:
        return MemoryError.__str__(self)


def ladder(config, spec: RunSpec, gpu: str, accumulation: int = 1) -> list[tuple[str, int]]:
    """(setting, predicted peak in bytes) of each change in turn, every one on top of those before it.

    First come those that cost only time, then those that change what is learned. Raises CannotPredict.
    """
    return [(said, prediction.peak_allocated) for said, prediction in _rungs(config, spec, gpu, accumulation)]


def _rungs(config, spec: RunSpec, gpu: str, accumulation: int) -> list[tuple]:
    rungs, peak = [], predict(config, spec, gpu).peak_allocated

    def down(said: str, **changes):
        nonlocal spec, peak
        changed = dataclasses.replace(spec, **changes)
        less = predict(config, changed, gpu)
        if less.peak_allocated < peak:  # what would save nothing is left out
            spec, peak = changed, less.peak_allocated
            rungs.append((said, less))

    down("checkpointing=True", checkpoint_every=1)
    batch = spec.batch_size
    while batch > 1:
        batch, accumulation = batch // 2, accumulation * 2
        down(f"batch_size={batch}, gradient_accumulation={accumulation}", batch_size=batch)
    down('checkpointing="offload"', checkpoint_offload=True)
    down('optimizer="paged_adamw_8bit"', optimizer="paged_adamw_8bit")
    down(f"max_length={max(2, spec.seq_len // 2)} (longer rows are cut)", seq_len=max(2, spec.seq_len // 2))
    down(f'target_modules="{",".join(RunSpec.QKVO)}" (less is trained)', target_modules=RunSpec.QKVO)
    down("rank=8 (less is trained)", rank=8)
    return rungs


def explain(error, config, spec: RunSpec, gpu: str, budget_bytes: int, accumulation: int = 1) -> str:
    """The message, several lines: asked for, predicted, and the ladder down to the first setting that fits.

    `error` None: the run was not begun, since the prediction says that it does not fit. `budget_bytes`: what the GPU
    reports. What fits is `helpers.memory.fits`'s, with plan's margin.
    """
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    full = f"the GPU's {budget_bytes / GIB:.2f} GiB are full; {asked[1] if asked else 'more'} was asked for on top."
    lines = [
        full if error else f"this run does not fit the GPU's {budget_bytes / GIB:.2f} GiB with a twentieth left free."
    ]
    try:
        whole, rungs = predict(config, spec, gpu), _rungs(config, spec, gpu, accumulation)
    except CannotPredict as unknown:
        return "\n".join(
            [*lines, f"No prediction: {unknown}. Try batch_size=1, checkpointing=True, a shorter max_length."]
        )
    peak = whole.peak_allocated / GIB
    lines.append(f"Predicted for full rows of {spec.batch_size} x {spec.seq_len} tokens: {peak:.2f} GiB.")
    unexpected = error and fits(whole, gpu, budget_bytes)
    if unexpected:
        lines.append(
            "That fits, so something else holds memory: restart the kernel, and look at nvidia-smi. If it stays:"
        )
    lines.append("Change one setting after the other, in this order, and run the notebook again:")
    for number, (said, prediction) in enumerate(rungs, 1):
        enough = fits(prediction, gpu, budget_bytes, margin=None)
        lines.append(f"{number}. {said}: {prediction.peak_allocated / GIB:.2f} GiB{', fits' if enough else ''}")
        if enough and not unexpected:
            break
    else:
        lines.append(f"{len(rungs) + 1}. a smaller model_id")
    return "\n".join(lines)


@contextlib.contextmanager
def explained(config, spec: RunSpec, gpu: str, budget_bytes: int, accumulation: int = 1):
    """In place of an out-of-memory stack trace raise OutOfMemory with `explain`'s text, and let go of what it held."""
    import torch

    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold tensors, and a notebook keeps its last error
        error.__traceback__ = None
        gc.collect()
        torch.cuda.empty_cache()
        raise OutOfMemory(explain(error, config, spec, gpu, budget_bytes, accumulation)) from None


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch's own, the CPU allocator's, or Python's."""
    import torch

    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
