"""Install what is missing from requirements.txt, without touching torch, numpy or what is already right."""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version

from helpers import COURSE_ROOT, CourseError

# Colab and Kaggle bring these, built for their GPU: a pin on them would fetch gigabytes and break the runtime.
LEFT_ALONE = ("torch", "numpy", "nvidia-", "triton", "cuda-")


def add_arguments(parser):
    parser.add_argument("--dry-run", action="store_true", help="say what would be installed")


def main(arguments) -> None:
    install_missing(arguments.dry_run)


def install_missing(dry_run: bool = False) -> None:
    """Install what requirements.txt names and the environment lacks, and say so; CourseError, one line, if pip fails."""
    missing = missing_requirements()
    if not missing:
        print("Nothing to install: every requirement is met.")
        return
    print("Installing", ", ".join(missing), flush=True)
    if dry_run:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(free_constraints()) + "\n")
        file.flush()
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", file.name, *missing]
        done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CourseError(f"pip could not install {', '.join(missing)}: {reason}")


def missing_requirements() -> list[str]:
    """The lines of requirements.txt that the environment does not meet. torch counts as met in any version."""
    return [line for name, line, here, met in requirements() if not met and (here is None or name not in LEFT_ALONE)]


def requirements() -> list[tuple[str, str, str | None, bool]]:
    """(name, line, version here or None, whether it meets the line) of each line of requirements.txt."""
    rows = []
    for line in _lines("requirements.txt"):
        name = _name(line)
        try:
            here = version(name)
        except PackageNotFoundError:
            here = None
        rows.append((name, line, here, here is not None and _meets(line, here)))
    return rows


def free_constraints() -> list[str]:
    """The lines of constraints.txt for packages that are not here yet, or whose version here must change."""
    must_change = {_name(line) for line in missing_requirements()}
    free = []
    for line in _lines("constraints.txt"):
        name = _name(line)
        if name.startswith(LEFT_ALONE):
            continue
        try:
            version(name)
            if name in must_change:
                free.append(line)
        except PackageNotFoundError:
            free.append(line)
    return free


def _lines(file: str) -> list[str]:
    text = (COURSE_ROOT / file).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _name(line: str) -> str:
    """The package that a line names, as packages are compared: lower case, dashes."""
    return re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-")


def _meets(line: str, installed: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # a bare environment: let pip decide
        return False
    return Requirement(line).specifier.contains(installed, prereleases=True)
