"""The set-up of a lesson's first cell: install what is missing, without touching torch, numpy or what is already right."""

import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.packages.lists import (
    LEFT_ALONE,
    REFUSED_WHEN_OLDER,
    _name,
    _versions,
    constraints,
    installed_version,
    missing_requirements,
    pinned_versions,
    refused_packages,
    requirements,
)

NOTES = COURSE_ROOT / "runs" / "install.txt"  # what pip said
WHEELS = COURSE_ROOT / "wheels"  # filled by --download, it travels with the course to a machine without a network

restart_needed = ""  # why, once a package was replaced that this process had loaded


def set_up() -> None:
    """What a lesson's first cell does once the course is found: install what lessons lack, look for files in the way,
    and switch on the explanations of errors. CourseError, one line, if the session has to be restarted first.

    Nothing is installed where somebody has set the environment up: installed the course, or put it on PYTHONPATH.
    """
    if restart_needed:
        raise CourseError(restart_needed)
    if not _is_installed():
        install_missing(for_lessons=True, wheels=WHEELS if WHEELS.is_dir() else None)
    for file, name in shadowing():
        loaded = getattr(sys.modules.get(name), "__file__", None) or ""
        if Path(loaded).resolve().is_relative_to(Path.cwd() / file):
            raise CourseError(
                f"{file} beside this notebook was loaded in place of {name}: rename it, restart the session"
            )
        print(f"{file} beside this notebook is left alone: here, import {name} means the course's or the library's")
    from helpers import failures

    failures.switch_on()


def install_missing(for_lessons: bool = False, dry_run: bool = False, wheels: Path | None = None) -> None:
    """Install what requirements.txt names and the environment lacks; say what was added and what was replaced.

    `for_lessons` leaves out what only commands and tests need. `wheels` is a folder to install from, in place of the
    package index. Raises CourseError, one line, if pip fails, or if a package was replaced that this process had loaded:
    then the session must be restarted.
    """
    if wheels is not None and not any(wheels.glob("*.whl")):
        raise CourseError(f"{wheels} holds no wheels: fill it with `python -m helpers install --download FOLDER`")
    missing, refused = missing_requirements(for_lessons), refused_packages()
    if not missing and not refused:
        print("Nothing to install: every requirement is met.")
        return
    print("Installing", ", ".join([*missing, *refused]), flush=True)
    if dry_run:
        return
    before, loaded = _versions(), _loaded_files()
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    said = _pip([*missing], constraints(missing), source) if missing else ""
    said += _pip(refused, [], [*source, "--no-deps"]) if refused else ""
    after = _versions()
    replaced = {name: (old, after[name]) for name, old in before.items() if after.get(name, old) != old}
    if replaced:
        print("Replaced:", ", ".join(f"{name} {old} by {new}" for name, (old, new) in sorted(replaced.items())))
    if said:
        _keep_notes(said)
    stale = sorted({name.split(".")[0] for name, (file, stamp) in loaded.items() if _stamp(file) != stamp})
    if stale:
        global restart_needed
        restart_needed = (
            f"restart needed: {', '.join(stale)} was loaded here before it was replaced. Restart the session "
            "(Colab: Runtime > Restart session; Kaggle: Run > Restart session), then run all cells again"
        )
        raise CourseError(restart_needed)


def _is_installed() -> bool:
    """Whether the course is a package of this environment, or on PYTHONPATH."""
    on_path = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return installed_version("qlora-course") is not None or COURSE_ROOT in on_path


def _pip(lines: list[str], constrained: list[str], options: list[str]) -> str:
    """Have pip install these lines; returns what it said about conflicts. CourseError, one line, if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text("\n".join(constrained) + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(file)]
        done = subprocess.run([*pip, *options, *lines], capture_output=True, text=True)
    if done.returncode:
        _keep_notes(done.stdout + done.stderr)
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CourseError(f"pip could not install {', '.join(lines)}: {reason}{_offline_hint()}")
    return done.stdout + done.stderr


def _offline_hint() -> str:
    """A sentence for Kaggle, where the internet is off in a new notebook: it says where the switch is."""
    if not os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return ""
    return (
        ". Is the internet on? In Kaggle's sidebar: Session options > Internet (it asks for a phone number once). "
        'Without it: README.md, "Without the internet"'
    )


def download(folder: Path, python: str) -> None:
    """Fill `folder` with the wheels that lessons need on x86-64 Linux with Python `python`, without torch and numpy.

    The versions are those of constraints.txt. CourseError, one line, for what pip cannot find.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise CourseError(f"--python {python!r} is not possible; allowed: a version such as 3.12")
    tested = pinned_versions(python)
    wanted = [f"{name}=={tested[name]}" for name in sorted(_needed_by_lessons()) if name in tested]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)] + ["manylinux2014_x86_64", "any"]
    target = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", python]
    target += [word for name in platforms for word in ("--platform", name)]
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", str(folder), *target]
    for words in (wanted, list(REFUSED_WHEN_OLDER)):
        done = subprocess.run([*pip, *words], capture_output=True, text=True)
        if done.returncode:
            raise CourseError(f"pip could not download: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    size = sum(file.stat().st_size for file in folder.glob("*.whl"))
    print(f"{len(list(folder.glob('*.whl')))} wheels for Python {python}, {size / 1e6:.0f} MB, in {folder}")


def _needed_by_lessons() -> set[str]:
    """What lessons import and all that this needs in turn, as it is installed here; torch's own needs are left out."""
    from packaging.requirements import Requirement

    found, open_ones = set(), [row[0] for row in requirements(for_lessons=True)]
    while open_ones:
        name = open_ones.pop()
        if name in found or name.startswith(LEFT_ALONE):
            continue
        found.add(name)
        try:
            needs = map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            continue
        open_ones += [_name(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found


def _keep_notes(text: str) -> None:
    """Keep what pip said, with the conflicts that it names, where the doctor finds it."""
    try:
        NOTES.parent.mkdir(exist_ok=True)
        NOTES.write_text(text, encoding="utf-8")
    except OSError:  # a course that cannot be written
        print(text)


def shadowing() -> list[tuple[str, str]]:
    """(file, library) for each file or folder beside the notebook that bears the name of a library that lessons import.

    Python would load it in the library's place, so a lesson's first cell moves the notebook's folder to the end of
    sys.path.
    """
    here = Path.cwd()
    if here == COURSE_ROOT:
        return []
    imported = {"pynvml" if row[0] == "nvidia-ml-py" else row[0].replace("-", "_") for row in requirements(True)}
    files = {p.stem: p.name for p in here.glob("*.py")} | {
        p.parent.name: p.parent.name for p in here.glob("*/__init__.py")
    }
    return [(file, name) for name, file in sorted(files.items()) if name in imported | {"helpers"}]


def _loaded_files() -> dict[str, tuple[str, tuple | None]]:
    """Each module that this process has loaded from a file: its name to the file and the file's stamp."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {name: (file, _stamp(file)) for name, file in files.items() if isinstance(file, str)}


def _stamp(file: str) -> tuple | None:
    """What tells a file from the one that takes its place; None if there is none."""
    try:
        about = os.stat(file)
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size
