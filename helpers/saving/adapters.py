"""What a training leaves: an adapter that is whole and replaces no other run's, and checkpoints to resume from."""

import contextlib
import datetime
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

from helpers import CourseError
from helpers.files import adapter_fault, read_object, replace_folder, safetensors_shapes


class CheckpointError(CourseError):
    """Checkpoints that cannot go where they were meant to."""


def needed(folder: Path, processes: int = 1) -> list[str]:
    """What transformers writes for an adapter's run, each process its own random state; the trainer's state comes last.

    Where weights are divided among processes (FSDP2), each has a file of its own parts in place of optimizer and scheduler.
    """
    states = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    parts = [f"parts_{rank}.safetensors" for rank in range(processes)]
    optimizer = parts if any((folder / part).is_file() for part in parts) else ["optimizer.pt", "scheduler.pt"]
    return ["adapter_model.safetensors", *optimizer, *states, "trainer_state.json"]


def checkpoint_fault(folder: Path, processes: int = 1) -> str | None:
    """What makes a checkpoint unusable, in a few words; None if it is whole. Reads ends and headers, unpickles nothing.

    `processes`: of the run that wrote it.
    """
    folder = Path(folder)
    missing = [name for name in needed(folder, processes) if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    for file in sorted(folder.glob("*.safetensors")):
        try:
            safetensors_shapes(file)
        except ValueError:
            return f"{file.name} is cut off"
    for file in sorted(file for kind in ("*.pt", "*.pth") for file in folder.glob(kind)):
        if not zipfile.is_zipfile(file):  # torch.save writes a zip, whose table of contents stands at its end
            return f"{file.name} is cut off"
    try:
        step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (ValueError, KeyError, TypeError):
        return "trainer_state.json is cut off"
    return None if folder.name == f"checkpoint-{step}" else f"its name and its step, {step}, differ"


def last_complete_checkpoint(folder: Path, processes: int = 1) -> Path | None:
    """The newest whole checkpoint-N in `folder`, or None; half-written ones are passed over. `processes`: of the run.

    transformers' own get_last_checkpoint takes the highest number, whatever is in it.
    """
    found = [p for p in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    newest_first = sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True)
    return next((p for p in newest_first if checkpoint_fault(p, processes) is None), None)


def checkpoint_folder(place: Path, **run) -> Path:
    """Where in `place` the checkpoints of just this run belong: another setting, model or data gets another folder."""
    return Path(place) / f"checkpoints-{_key(run)}"


def _key(run: dict) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()[:8]


ABOUT = "course.json"  # in an adapter's folder: which run of the course made it
TRAINED = ("lesson 03", "train")  # what makes adapters that may have taken hours: a lesson and a command


@contextlib.contextmanager
def adapter_folder(folder: Path, made_by: str, data: str, **run):
    """Yield an empty folder to save an adapter into; it becomes `folder` once what was saved is whole and on the disk.

    What stood there goes only if the same run made it (the same model, data and settings) and nobody changed it since;
    anything else is kept beside it as NAME-1, NAME-2, ..., and a line says so. Raises CheckpointError, one line, for an
    adapter that is not whole or cannot be written; then `folder` is as it was.
    """
    key, old = _key(run | {"data": data}), about_adapter(folder)
    about: dict = {"made_by": made_by, "data": data, "date": datetime.date.today().isoformat(), "run": key}
    replaceable = old.get("run") == key or old.get("made_by") not in TRAINED  # another lesson's was made in seconds
    adapter = (folder / "adapter_config.json").is_file()
    names = (folder.with_name(f"{folder.name}-{n}") for n in range(1, 10_000))
    kept = None if replaceable and _is_as_written(folder, old) else next(n for n in names if not os.path.lexists(n))
    try:
        with replace_folder(folder, keep_old_as=kept) as new:
            yield new
            about["files"] = {name: _sum(file) for name, file in _files(new).items()}
            (new / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            fault = adapter_fault(new)
            if fault:
                raise CheckpointError(f"the adapter was not saved whole: {fault}. Run it again")
        if kept:
            print(
                f"{'The adapter of an earlier run' if adapter else f'What stood in {folder.name}'} is kept: {kept.name}"
            )
    except OSError as error:
        if isinstance(error, CourseError):
            raise
        why = error.strerror or str(error)
        raise CheckpointError(f"the adapter could not be saved ({why}): make room, then run it again") from error


def _files(folder: Path) -> dict[str, Path]:
    """The files in a folder by their names in it, but the course's own note."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / ABOUT)
    return {file.relative_to(folder).as_posix(): file for file in files}


def _sum(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_as_written(folder: Path, about: dict) -> bool:
    """Whether nothing is lost when a folder goes: it is not there, is empty, or holds what the course wrote and no more."""
    if not os.path.lexists(folder):
        return True
    written = about.get("files", {})
    if not folder.is_dir() or folder.is_symlink() or not isinstance(written, dict):
        return False
    files = _files(folder)  # names first: what is somebody's own may be large
    return files.keys() == written.keys() and all(_sum(file) == written[name] for name, file in files.items())


def about_adapter(folder: Path) -> dict:
    """What the course noted of an adapter when it was made: made_by, data, date, run; {} for any other adapter."""
    try:
        return read_object(folder / ABOUT)
    except ValueError:
        return {}


def require_hub_base(hub_repo: str, model) -> None:
    """Raise one line if checkpoints are to go to the hub and the base is a folder.

    PEFT's card names the base by its path then, and the hub refuses such a card (huggingface/transformers#33922). The
    trainer pushes in the background and says nothing of it: the checkpoint would never arrive.
    """
    if hub_repo != "none" and (model.bundled or model.local):
        raise CheckpointError(
            f"hub_repo = {hub_repo!r} needs a base model from the hub, and {model.name} is a folder: the hub takes no card "
            'that names one. Name a preset or a hub id as model_id, or leave hub_repo at "none"'
        )


def require_login(hub_repo: str) -> None:
    """Raise one line if checkpoints are to go to the hub and nobody is logged in there."""
    if hub_repo == "none":
        return
    from huggingface_hub import get_token

    if get_token() is None:
        raise CheckpointError(
            f'hub_repo = {hub_repo!r} needs a login: huggingface_hub.login() first, or leave it at "none"'
        )
