"""Install what is missing from requirements.txt, without touching torch, numpy or what is already right."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from helpers import COURSE_ROOT

# Colab and Kaggle bring these, built for their GPU: a pin on them would fetch gigabytes and break the runtime.
LEFT_ALONE = ("torch", "numpy", "nvidia-", "triton", "cuda-")


def add_arguments(parser):
    parser.add_argument("--dry-run", action="store_true", help="say what would be installed")


def main(arguments) -> int:
    missing, constraints = missing_requirements(), free_constraints()
    if not missing:
        print("Nothing to install: every requirement is met.")
        return 0
    print("Installing", ", ".join(missing))
    if arguments.dry_run:
        return 0
    file = COURSE_ROOT / "runs" / "bootstrap-constraints.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(constraints) + "\n")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(file), *missing]
    return subprocess.run(pip).returncode


def missing_requirements() -> list[str]:
    """The lines of requirements.txt that the environment does not meet. torch counts as met in any version."""
    missing = []
    for line in _lines("requirements.txt"):
        name, installed = _name(line), None
        try:
            installed = version(name)
        except PackageNotFoundError:
            missing.append(line)
            continue
        if name not in LEFT_ALONE and not _meets(line, installed):
            missing.append(line)
    return missing


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
    return line.split(";")[0].strip().split("=")[0].split(">")[0].split("<")[0].split("[")[0].strip().lower()


def _meets(line: str, installed: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # a bare environment: let pip decide
        return False
    return Requirement(line).specifier.contains(installed, prereleases=True)
