"""What a run found: begun once, recorded as it goes, kept as one JSON a lesson; verdicts; and where files outlive a machine."""

import contextlib
import datetime
import glob
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from helpers import COURSE_ROOT, CourseError, course, parameters
from helpers.machine import gpus_of_driver

DRIVE = Path("/content/drive")  # where Colab mounts Google Drive
NOT_SO = "NOT SO in this run: "  # begins an untrue verdict, as it is shown
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


class OutputError(CourseError, OSError):
    """A folder that cannot be written."""


@dataclass
class Run:
    """One run of one lesson: where it writes, on what, and what it has recorded so far."""

    lesson: str
    folder: Path
    parameters: dict
    machine: object = None
    model: object = None
    settings: SimpleNamespace | None = None  # the parameters, with "auto" replaced by the recipe for the model
    rows: object = None  # a DatasetDict, where the lesson asks for one
    data_name: str = ""
    recorded: dict = field(default_factory=dict)
    verdicts: list = field(default_factory=list)

    @property
    def adapter(self) -> Path:
        """Where lesson 03 leaves the adapter, and 04 and 05 look for it."""
        return self.folder / "adapter"

    @property
    def bulky(self) -> Path:
        """Where gigabytes go that are not to be kept: `folder`, but this machine's disk when `folder` is on Drive."""
        return output_folder("auto") if on_drive(self.folder) else self.folder

    def save(self) -> Path:
        about = {
            "parameters": self.parameters,
            "machine": str(self.machine),
            "model": getattr(self.model, "name", None),
        }
        about |= {"data": self.data_name, "python": sys.version.split()[0], "date": datetime.date.today().isoformat()}
        about["gpus"] = len(gpus_of_driver())  # how many the machine has; a lesson uses one
        about["versions"] = {name: version(name) for name in PACKAGES}
        source = COURSE_ROOT / "lessons" / f"{self.lesson}.py"
        about["source_sha256"] = course.source_hash(source) if source.is_file() else None  # of which lesson this is
        file = self.folder / f"{self.lesson}.json"
        about["peak_resident_bytes"] = peak_resident()
        write_whole(file, json.dumps(self.recorded | {"verdicts": self.verdicts, "run": about}, indent=1) + "\n")
        return file


_current: Run | None = None


def begin(lesson: str, *, large_model: bool = False, with_data: bool = False, **values) -> Run:
    """Check the parameters, look at the machine, find model and data, and show all in one short table.

    Raises a one-line CourseError for a bad value, before anything heavy is imported, or for what cannot be found.
    """
    global _current
    parameters.validate(values)
    run = Run(lesson, output_folder(values.get("output_dir", "auto")), values)

    finish_replacing(run.folder)

    from helpers import checkpoints, data, machine, models, workarounds

    # What was named is looked at first: the next line imports torch, which takes seconds.
    named = values.get("model_id", "auto") != "auto"
    run.model = models.resolve_model(values["model_id"], None) if named else None
    if values.get("adapter_dir", "auto") != "auto":
        models.base_of(Path(values["adapter_dir"]).expanduser())
    data.look_at(values.get("dataset_id", "auto"))
    run.machine = machine.detect()
    shown = {"machine": str(run.machine)} | ({"GPUs": several} if (several := machine.choose_one_gpu()) else {})
    if "model_id" in values:
        left = run.adapter if (run.adapter / "adapter_config.json").is_file() and not large_model else None
        if values.get("adapter_dir", "auto") != "auto":
            left = Path(values["adapter_dir"]).expanduser()
        run.model = run.model or models.resolve_model("auto", run.machine, large_model, left)
        if run.model.local:
            models.rehearse(run.model)
        checkpoints.require_hub_base(values.get("hub_repo", "none"), run.model)
        shown["model"] = str(run.model)
    recipe = models.recipe_for(run.model)
    chosen = {name: recipe[name] for name, value in values.items() if name in recipe and value == "auto"}
    run.settings = SimpleNamespace(**values | chosen)
    if chosen:
        shown["chosen for it"] = ", ".join(f"{name} {value}" for name, value in chosen.items())
    if with_data:
        wanted = values.get("dataset_id", "auto")
        if wanted == "auto" and run.model is not None and run.model.bundled:
            wanted = "bundled"
        run.rows, run.data_name = data.load_instructions(wanted, run.machine, values.get("seed", 0))
        shown["data"] = run.data_name
    if "adapter_dir" in values:
        from helpers import quick

        shown["adapter"] = quick.which_adapter(run)
    shown["writes to"] = whereabouts(run.folder, values.get("output_dir", "auto"))
    _current = run
    quiet_libraries()
    workarounds.right_dequantization()
    from IPython.display import display

    display(table([{"": name, "this run": value} for name, value in shown.items()]))
    return run


def quiet_libraries() -> None:
    """No progress bars for work that takes a second: loading a local model, mapping a few thousand rows."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def record(**values) -> None:
    """Add what the lesson found to <run folder>/<lesson>.json: numbers, text, lists and dictionaries of them."""
    run = _begun()
    json.dumps(values)  # a TypeError here is the caller's line, before the file is touched
    run.recorded |= values
    run.save()


def verdict(claim: str, holds: bool, look_at: str = "") -> None:
    """State what the reader should now believe, and keep it for the report.

    An untrue claim is shown in red, with what to `look_at`, and the run goes on: a lesson must not take from a learner
    what she has made so far. With COURSE_STRICT=1 in the environment, as in tests, it raises AssertionError instead.
    """
    run = _begun()
    run.verdicts.append({"claim": claim, "holds": bool(holds)})
    run.save()
    if holds:
        print(f"OK: {claim}")
    elif os.environ.get("COURSE_STRICT") == "1":
        raise AssertionError(f"not so in this run: {claim}")
    else:
        _show_untrue(claim, look_at or _changed(run))


def _show_untrue(claim: str, look_at: str) -> None:
    from html import escape

    from IPython.display import display

    box = "border-left:4px solid #d93025;padding:4px 10px;margin:4px 0"
    red = f'<b style="color:#d93025">{NOT_SO}</b>{escape(claim)}<br>{escape(look_at)}'
    bundle = {"text/plain": f"{NOT_SO}{claim}\n{look_at}", "text/html": f'<div style="{box}">{red}</div>'}
    display(bundle, raw=True)


def _changed(run: Run) -> str:
    """What to look at when a verdict is untrue: the parameters of this run that are not the lesson's own."""
    usual = course.lesson_parameters(course.LESSONS / f"{run.lesson}.py")
    changed = [f"{name} = {value!r}" for name, value in run.parameters.items() if usual.get(name, value) != value]
    if changed:
        return f"Look at the numbers above, and at what this run changes: {', '.join(changed)}. The lesson goes on."
    return "Look at the numbers above: with the lesson's own parameters this should hold. The lesson goes on."


def table(rows: list[dict]):
    """A table for display from dictionaries of ready-made text or numbers; shown as HTML by Jupyter, text elsewhere."""
    import pandas as pd

    pd.set_option("display.max_colwidth", None)
    frame = pd.DataFrame(rows)
    return frame.set_index(frame.columns[0])


def output_folder(output_dir: str, name: str = "output_dir") -> Path:
    """The folder of a run, made if need be. "auto" is runs/default in the course, or here when outside of it; "drive" is
    qlora-course/default on the learner's Google Drive, which is mounted in Colab.

    The environment variable COURSE_RUNS names another place for runs, for a clone that cannot be written.
    """
    if output_dir == "auto":
        here = COURSE_ROOT if Path.cwd().is_relative_to(COURSE_ROOT) else Path.cwd()
        folder = Path(os.environ.get("COURSE_RUNS") or here / "runs") / "default"
    elif output_dir == "drive":
        folder = _my_drive() / "qlora-course" / "default"
    else:
        folder = Path(output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise OutputError(f"{name} = {str(output_dir)!r} cannot be written ({error.strerror}): name another") from error
    return folder


def _my_drive() -> Path:
    """The learner's Drive, mounted if it is not yet; OutputError, one line, outside of Colab or where that is refused."""
    point = Path(os.environ.get("COURSE_DRIVE") or DRIVE)
    if not (point / "MyDrive").is_dir():
        try:
            from google.colab import drive
        except ImportError as error:
            raise OutputError('output_dir = "drive" is for Colab, and this is not Colab: name a folder') from error
        try:
            drive.mount(str(point))
        except Exception as error:  # refused, timed out, or there is something in the way
            why = f"{type(error).__name__}: {error}"
            raise OutputError(
                f'output_dir = "drive": Google Drive was not mounted ({why}): run the cell again'
            ) from error
    return point / "MyDrive"


def on_drive(folder: Path) -> bool:
    """Whether a folder lies on the learner's Google Drive."""
    return folder.resolve().is_relative_to(Path(os.environ.get("COURSE_DRIVE") or DRIVE).resolve())


def whereabouts(folder: Path, output_dir: str) -> str:
    """Where a run writes, in words: the folder without the machine in it, and how long it lives there."""
    shown = "runs/default" if output_dir == "auto" else _readable(folder)
    if on_drive(folder):
        return f"{Path(*folder.parts[folder.parts.index('MyDrive') :])}: your Google Drive, which outlives this machine"
    if os.environ.get("COLAB_RELEASE_TAG"):
        return f'{shown}: Colab deletes it with this machine; output_dir="drive" keeps it on your Google Drive'
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        where = (
            "/kaggle/working" if folder.resolve().is_relative_to("/kaggle/working") else "outside of /kaggle/working"
        )
        return f"{shown}, in {where}: Kaggle keeps /kaggle/working with Save Version, or with Persistence: Files only"
    return shown


def peak_resident() -> int:
    """The most memory that this process has held so far, in bytes; where the system does not keep that, what it holds now."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().rss
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_whole(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


@contextlib.contextmanager
def replace_folder(folder: Path, keep_old_as: Path | None = None):
    """Yield an empty folder beside `folder`. On success it replaces `folder`; on error it is deleted.

    What it holds is on the disk, not only in the system's memory, before the old folder goes; or, with `keep_old_as`,
    gets that name.
    """
    finish_replacing(folder.parent, glob.escape(folder.name))
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield new
        for file in filter(Path.is_file, new.rglob("*")):
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        new.chmod(0o755)
        if folder.exists():
            os.replace(folder, keep_old_as or new.with_suffix(".old"))
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        finish_replacing(folder.parent, glob.escape(folder.name))


def finish_replacing(parent: Path, name: str = "*") -> None:
    """Tidy up in `parent` after a replace_folder that was killed: nothing whole is lost, and halves do not pile up.

    Only what replace_folder names so is touched, .NAME.RANDOM.old and .part, for the folder `name` or, in a folder of
    the course's own, for all: a merge may write into somebody's home.
    """
    random = "[a-z0-9_]" * 8  # as tempfile.mkdtemp makes it
    for old in filter(Path.is_dir, parent.glob(f".{name}.{random}.old")):
        folder = parent / old.name[1:-4].rpartition(".")[0]
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:  # killed between the two renames
            os.replace(old, folder)
    for part in (*parent.glob(f".{name}.{random}.part"), *parent.glob(f".{name}.json.[0-9]*.part")):  # see write_whole
        if time.time() - part.stat().st_mtime > 86_400:  # a younger one may belong to a run that is still alive
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _begun() -> Run:
    if _current is None:
        raise CourseError("no run was begun: run the notebook's fourth code cell first")
    return _current


def _readable(folder: Path) -> str:
    """A path without the machine in it: relative to the course or to here, else its last part."""
    for start in (COURSE_ROOT, Path.cwd()):
        if folder.resolve().is_relative_to(start):
            return str(folder.resolve().relative_to(start))
    return folder.name
