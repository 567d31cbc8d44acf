"""requirements.txt and constraints.txt, beside what is installed here."""

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, distributions, version

from helpers import COURSE_ROOT

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")

# Colab and Kaggle bring these, built for their GPU: a pin on them would fetch gigabytes and break the runtime.
LEFT_ALONE = ("torch", "numpy", "nvidia-", "triton", "cuda-")
# What a notebook's front end and server are made of, and what Colab and Kaggle pin themselves: kept as they are found,
# so long as requirements.txt accepts them.
KEPT = ("ipython", "ipykernel", "ipywidgets", "jupyter-client", "tornado", "pandas", "requests")
# Nobody needs these, but a library that lessons need refuses to work beside an older one: upgraded where they are.
# torchao: PEFT raises below 0.16 on any layer that is not 4-bit, and Colab brings 0.10 (unslothai/notebooks#258).
REFUSED_WHEN_OLDER = ("torchao>=0.16",)
FOR_COMMANDS = "# What the commands and the tests need"  # from this line on, requirements.txt is not for lessons


def missing_requirements(for_lessons: bool = False) -> list[str]:
    """The lines of requirements.txt that the environment does not meet. torch counts as met in any version."""
    rows = requirements(for_lessons)
    return [line for name, line, here, met in rows if not met and (here is None or name not in LEFT_ALONE)]


def requirements(for_lessons: bool = False) -> list[tuple[str, str, str | None, bool]]:
    """(name, line, version here or None, whether it meets the line) of each line of requirements.txt."""
    rows = []
    for line in _lines("requirements.txt", FOR_COMMANDS if for_lessons else None):
        here = installed_version(_name(line))
        rows.append((_name(line), line, here, here is not None and _meets(line, here)))
    return rows


def needed_by_commands() -> set[str]:
    """The packages that requirements.txt names for the commands and the tests alone."""
    return {_name(line) for line in _lines("requirements.txt")} - {row[0] for row in requirements(for_lessons=True)}


def refused_packages() -> list[str]:
    """The lines of REFUSED_WHEN_OLDER for packages that are here, and too old."""
    here = [(line, installed_version(_name(line))) for line in REFUSED_WHEN_OLDER]
    return [line for line, number in here if number is not None and not _meets(line, number)]


def constraints(missing: list[str]) -> list[str]:
    """The constraints for pip while it installs the lines `missing`: the tested version of a package that is not here yet,
    anything up to the tested version of one that is, and the installed version of what the notebook itself runs on."""
    must_change, held = {_name(line) for line in missing}, []
    for name, number in pinned_versions().items():
        here = installed_version(name)
        if name.startswith(LEFT_ALONE):
            continue
        if here is None or name in must_change:
            held.append(f"{name}=={number}")
        elif name not in KEPT and _meets(f"{name}<={number}", here):
            held.append(f"{name}>={here},<={number}")
    installed = {name: installed_version(name) for name in KEPT if name not in must_change}
    return held + [f"{name}=={here}" for name, here in installed.items() if here is not None]


def pinned_versions(python: str | None = None) -> dict[str, str]:
    """The version of each package in constraints.txt for this Python and system, or for Python `python`, such as "3.12",
    on x86-64 Linux.
    """
    bare = importlib.util.find_spec("packaging") is None  # then pip brings its own copy
    Marker = importlib.import_module(("pip._vendor." if bare else "") + "packaging.markers").Marker
    there: dict[str, str] = {  # of Linux
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
    }
    there |= {"python_version": python or "", "python_full_version": f"{python}.99"}  # its newest patch
    found = {}
    for line in _lines("constraints.txt"):
        pin, _, marker = line.partition(";")
        if not marker or Marker(marker).evaluate(there if python else None):
            found[_name(pin)] = pin.partition("==")[2].strip()
    return found


def _versions() -> dict[str, str]:
    """The version of every distribution that is installed, by its name as packages are compared."""
    return {_name(found.metadata["Name"]): found.version for found in distributions() if found.metadata["Name"]}


def recorded_versions() -> dict[str, str]:
    """The versions of the libraries that every record names."""
    return {name: version(name) for name in PACKAGES}


def installed_version(name: str) -> str | None:
    """The version of a package as it is installed here; None if it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lines(file: str, end: str | None = None) -> list[str]:
    """The lines of one of the course's lists of packages, those above the line that begins with `end`."""
    text = (COURSE_ROOT / file).read_text(encoding="utf-8")
    text = text.partition(end)[0] if end else text
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _name(line: str) -> str:
    """The package that a line names, as packages are compared: lower case, dashes."""
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")


def _meets(line: str, installed: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # a bare environment: let pip decide
        return False
    return Requirement(line).specifier.contains(installed, prereleases=True)
