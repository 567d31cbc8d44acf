"""Where the files of a run go: a folder of the course, of the learner, or on her Google Drive."""

import contextlib
import os
import tempfile
from pathlib import Path

from helpers import COURSE_ROOT, CourseError

DRIVE = Path("/content/drive")  # where Colab mounts Google Drive


class OutputError(CourseError, OSError):
    """A folder that cannot be written."""


def output_folder(output_dir: str, name: str = "output_dir", run: str = "default", keep: bool = True) -> Path:
    """The folder of a run, made if need be. "auto" is runs/default in the course, or here when outside of it; "drive" is
    qlora-course/default on the learner's Google Drive, which is mounted in Colab. `run` stands for another word than "default".
    With `keep` False it is only tried: no folder stays that was not there before.

    The environment variable COURSE_RUNS names another place for runs, for a clone that cannot be written.
    """
    if output_dir == "auto":
        here = COURSE_ROOT if Path.cwd().is_relative_to(COURSE_ROOT) else Path.cwd()
        folder = Path(os.environ.get("COURSE_RUNS") or here / "runs") / run
    elif output_dir == "drive":
        folder = _my_drive() / "qlora-course" / run
    else:
        folder = Path(output_dir).expanduser()
    made = [place for place in (folder, *folder.parents) if not os.path.exists(place)]  # the deepest first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        keep = False
        given, cure = f"{name} = {str(output_dir)!r}", "name another"
        if output_dir == "auto":
            given, cure = f"runs/{run}", "set COURSE_RUNS to another folder"
        raise OutputError(f"{given} cannot be written ({error.strerror}): {cure}") from error
    finally:
        for place in () if keep else made:
            with contextlib.suppress(OSError):
                place.rmdir()
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


def _readable(folder: Path) -> str:
    """A path without the machine in it: relative to the course or to here, else its last part."""
    for start in (COURSE_ROOT, Path.cwd()):
        if folder.resolve().is_relative_to(start):
            return str(folder.resolve().relative_to(start))
    return folder.name
