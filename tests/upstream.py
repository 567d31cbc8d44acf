"""What `make canary` installs: the requirements without upper bounds. Any Python prints them, one a line.

And what a test looks into to see whether a library still has a fault: its source.
"""

import importlib.util
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def without_upper_bound(line: str) -> str:
    """The requirement with its lower bound and its marker alone: "trl>=1.16,<1.17" becomes "trl>=1.16"."""
    wanted, semicolon, marker = line.partition(";")
    name = re.match(r"[\w.-]+(\[[\w,.-]+\])?", wanted)[0]
    bounds = [bound.strip() for bound in wanted[len(name) :].split(",")]
    return name + ",".join(bound for bound in bounds if bound.startswith(">")) + semicolon + marker


def wanted() -> list[str]:
    """The lines of requirements.txt and of pyproject.toml's extras."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in project["optional-dependencies"].values():
        lines += [line for line in extra if not line.startswith(project["name"])]  # an extra may name the others
    return lines


def unbounded() -> list[str]:
    return [without_upper_bound(line) for line in wanted()]


def source_of(package: str, file: str) -> str:
    """The text of a file of an installed package, which is not imported for it: that takes seconds for some."""
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    return (Path(folder) / file).read_text(encoding="utf-8")


if __name__ == "__main__":
    print("\n".join(unbounded()))
