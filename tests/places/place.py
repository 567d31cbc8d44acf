"""A learner's place: the packages she finds there, one folder with one notebook and nothing else, a kernel, every cell.

What it cannot show: the place's own front end and server, and a GPU.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nbformat

from helpers import COURSE_ROOT
from helpers.course import disk as course

HERE = Path(__file__).parent
# Environments are made once for each list, and copied for each notebook. Outside of the course: a notebook below its folder
# would find the course there, where a learner's has to fetch it.
KEPT = Path(os.environ.get("COURSE_PLACES_FOLDER") or Path(tempfile.gettempdir()) / "course-places")
STAND_INS = HERE / "stand_ins"  # packages that only the place has: google.colab

# What surrounds a kernel: variables, and what it runs before any cell.
SURROUNDINGS = {
    "colab": (
        {"COLAB_RELEASE_TAG": "release-colab-stand-in", "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        "import google.colab",  # which imports ipywidgets, as there
    ),
    "kaggle": ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "MPLBACKEND": "agg"}, "pass"),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A list of packages with its date, and what surrounds a notebook there."""

    name: str
    python: str  # the place's own, such as "3.13"
    torch: str  # the place's own
    date: datetime.date
    packages: tuple[str, ...]

    @classmethod
    def read(cls, name: str) -> "Place":
        """The place that tests/places/NAME.txt describes."""
        text = (HERE / f"{name}.txt").read_text(encoding="utf-8")
        about = dict(re.findall(r"^# (date|python|torch): (\S+)$", text, re.MULTILINE))
        packages = tuple(line for line in text.splitlines() if line and not line.startswith("#"))
        return cls(name, about["python"], about["torch"], datetime.date.fromisoformat(about["date"]), packages)


def index_answers() -> bool:
    """Whether pip reaches a package index here: it is asked which versions of a small package there are."""
    ask = [sys.executable, "-m", "pip", "index", "versions", "-q", "six"]
    try:
        return subprocess.run(ask, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


# --- environments -----------------------------------------------------------------------------------------------


def environment(place: Place, python: str | None = None) -> Path:
    """A virtual environment with the place's packages, made once; copy it before a notebook changes it.

    `python` None takes the Python at hand with the torch it has; else an interpreter, into which the place's torch goes.
    """
    mine = [sys.version, distribution("torch").version] if python is None else [python, place.torch]
    key = hashlib.sha256("\n".join([*mine, *place.packages]).encode()).hexdigest()[:8]
    folder = KEPT / f"{place.name}-{'quick' if python is None else 'whole'}-{key}"
    if (folder / "made").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    subprocess.run([python or sys.executable, "-m", "venv", str(folder)], check=True)
    if python is None:
        link_distribution("torch", site_packages(folder), besides={_bare(line) for line in place.packages})
    else:
        pip(folder, f"torch=={place.torch}")
    pip(folder, *place.packages)
    if (STAND_INS / place.name).is_dir():
        shutil.copytree(STAND_INS / place.name, site_packages(folder), dirs_exist_ok=True)
    (folder / "made").touch()
    return folder


def pip(folder: Path, *words: str) -> None:
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile", *words], check=True)


def copied(template: Path, folder: Path) -> Path:
    """A copy of an environment that shares its files: pip replaces files, it does not write into them."""
    shutil.copytree(template, folder, symlinks=True, copy_function=link)
    return folder


def link(source: str, target: str) -> str:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def link_distribution(name: str, site: Path, besides: set[str]) -> None:
    """Put an installed distribution, and all that it needs but `besides`, into another environment's site-packages."""
    from packaging.requirements import Requirement

    try:
        found = distribution(name)
    except PackageNotFoundError:  # for another system, by a marker
        return
    if (site / Path(found._path).name).exists():
        return
    for file in found.files or ():
        target = site / file
        if ".." not in file.parts and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            link(str(found.locate_file(file)), str(target))
    for line in found.requires or ():
        needed = Requirement(line)
        if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and _bare(needed.name) not in besides:
            link_distribution(needed.name, site, besides)


def site_packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python3.*/site-packages"))


def _bare(line: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-").replace(".", "-")


# --- the release ------------------------------------------------------------------------------------------------


def git(*words, cwd: Path) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True)


def release(folder: Path, change=None) -> dict[str, str]:
    """A bare repository with this working tree at the release tag, and the environment in which git finds it.

    `change(tree)` may plant something into the tree before.
    """
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(".venv", "runs", ".git", "__pycache__", ".gpu", "*.egg-info", "tests")
    shutil.copytree(COURSE_ROOT, tree, ignore=ignored)
    if change:
        change(tree)
    repository, tag = course.address()
    git("init", "-q", "-b", "main", cwd=tree)
    git("add", "-A", cwd=tree)
    git("commit", "-q", "-m", "release", cwd=tree)
    git("tag", tag, cwd=tree)
    git("clone", "-q", "--bare", str(tree), str(folder / "course.git"), cwd=folder)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{folder / 'course.git'}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{repository}",
    }


# --- a notebook -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Failure:
    """A cell that did not do what it should: its number among the code cells, its first line, and what it said."""

    cell: int
    line: str
    said: str

    def __str__(self) -> str:
        return f"code cell {self.cell} ({self.line}): {self.said}"


def open_alone(notebook, place: Place, template: Path, folder: Path, variables: dict[str, str], fresh=True):
    """Run a notebook in `folder`/content, where nothing else lies, in a copy of the place's environment; its failures.

    `fresh` False goes on with the environment and the files that an earlier notebook left in `folder`.
    """
    venv, content, home = folder / "venv", folder / "content", folder / "home"
    if fresh:
        copied(template, venv)
        content.mkdir()
        home.mkdir()
    around, at_start = SURROUNDINGS[place.name]
    hidden = {"HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "COURSE_DRIVE": str(folder / "drive")}
    return run(notebook, content, venv, around | hidden | variables, at_start)


def run(notebook, folder: Path, venv: Path, variables: dict[str, str], at_start: str) -> list[Failure]:
    """Send every code cell of a notebook to a kernel of `venv`, whose working folder is `folder`, and list the failures.

    A cell that raises does not stop the rest. A verdict that is shown as untrue counts as a failure too. `at_start` is
    what the place's kernel runs before any cell. The executed notebook is left beside `folder`.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    specs = folder.parent / "kernels"
    (specs / "place").mkdir(parents=True, exist_ok=True)
    start = [str(venv / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": [*start, f"--IPKernelApp.exec_lines={at_start}"], "display_name": "place", "language": "python"}
    (specs / "place" / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
    manager = AsyncKernelManager(kernel_name="place", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(specs)]))
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=900, allow_errors=True, resources=where)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("COURSE_", "PYTHON"))}
    try:
        client.execute(env=surroundings | variables)
        died = []
    except DeadKernelError as error:
        died = [Failure(sum(c.get("execution_count") is not None for c in notebook.cells) + 1, "?", str(error))]
    finally:
        run_sync(manager.shutdown_kernel)(now=True)  # nbclient leaves a manager that it was given alone
    nbformat.write(notebook, folder.parent / "executed.ipynb")
    return failures(notebook) + died


def failures(notebook) -> list[Failure]:
    """What went wrong in an executed notebook."""
    from helpers.lesson import NOT_SO

    found = []
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        first = next((line for line in cell.source.splitlines() if line.strip()), "")[:60]
        for out in cell.outputs:
            text = out.get("data", {}).get("text/plain", "")
            if out.output_type == "error":
                found.append(Failure(number, first, f"{out.ename}: {out.evalue}"[:300]))
            elif text.startswith(NOT_SO):
                found.append(Failure(number, first, text[:300]))
    return found


# --- the list ---------------------------------------------------------------------------------------------------


def refresh(name: str, freeze: str, date: datetime.date) -> None:
    """Make NAME.txt anew from the place's pip freeze: the packages that it lists now, and those that the course pins."""
    old = Place.read(name)
    pinned = re.findall(r"^([\w.-]+)==", (COURSE_ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {_bare(line) for line in (*old.packages, *pinned)} - {"torch"}
    there = dict(re.findall(r"^([\w.-]+)==([\w.!+-]+)\s*$", freeze, re.MULTILINE))
    torch = there.get("torch", old.torch).partition("+")[0]
    lines = [f"{package}=={version}" for package, version in there.items() if _bare(package) in wanted]
    head = (HERE / f"{name}.txt").read_text(encoding="utf-8").split("# date: ")[0]
    about = f"# date: {date.isoformat()}\n# python: {old.python}\n# torch: {torch}\n"
    (HERE / f"{name}.txt").write_text(head + about + "\n".join(lines) + "\n", encoding="utf-8")
