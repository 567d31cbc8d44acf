"""Checkpoints after a kill: which of them are whole, and which one to resume from."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

from helpers import CourseError
from helpers.files import safetensors_shapes


class CheckpointError(CourseError):
    """Checkpoints that cannot go where they were meant to."""


# What transformers 5.23 writes for an adapter's run, in this order; the trainer's state comes last.
NEEDED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def checkpoint_fault(folder: Path) -> str | None:
    """What makes a checkpoint unusable, in a few words; None if it is whole. Reads ends and headers, unpickles nothing."""
    folder = Path(folder)
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        safetensors_shapes(folder / "adapter_model.safetensors")
    except ValueError:
        return "adapter_model.safetensors is cut off"
    for file in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
        if not zipfile.is_zipfile(file):  # torch.save writes a zip, whose table of contents stands at its end
            return f"{file.name} is cut off"
    try:
        step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (ValueError, KeyError, TypeError):
        return "trainer_state.json is cut off"
    return None if folder.name == f"checkpoint-{step}" else f"its name and its step, {step}, differ"


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint-N in `folder`, or None; half-written ones are passed over.

    transformers' own get_last_checkpoint takes the highest number, whatever is in it.
    """
    found = [p for p in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    newest_first = sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True)
    return next((p for p in newest_first if checkpoint_fault(p) is None), None)


def checkpoint_folder(place: Path, **run) -> Path:
    """Where in `place` the checkpoints of just this run belong: another setting, model or data gets another folder."""
    key = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return Path(place) / f"checkpoints-{key}"


def require_login(hub_repo: str) -> None:
    """Raise one line if checkpoints are to go to the hub and nobody is logged in there."""
    if hub_repo == "none":
        return
    from huggingface_hub import get_token

    if get_token() is None:
        raise CheckpointError(
            f'hub_repo = {hub_repo!r} needs a login: huggingface_hub.login() first, or leave it at "none"'
        )
