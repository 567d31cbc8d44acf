"""An empty folder, one notebook, an environment without the course: the bootstrap cell fetches it and the lesson runs."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from helpers import COURSE_ROOT, course
from helpers.tools import install

SITE = Path(sysconfig.get_paths()["purelib"])


def git(*words, cwd):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A bare repository that holds this working tree at the release tag, and git settings that lead there."""
    base = tmp_path_factory.mktemp("address")
    tree = base / "tree"
    ignored = shutil.ignore_patterns(".venv", "runs", ".git", "__pycache__", ".gpu", "*.egg-info", "tests")
    shutil.copytree(COURSE_ROOT, tree, ignore=ignored)
    repository, tag = course.address()
    git("init", "-q", "-b", "main", cwd=tree)
    git("add", "-A", cwd=tree)
    git("commit", "-q", "-m", "release", cwd=tree)
    git("tag", tag, cwd=tree)
    git("clone", "-q", "--bare", str(tree), str(base / "course.git"), cwd=base)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{base / 'course.git'}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{repository}",
    }


@pytest.fixture(scope="module")
def environment_without_the_course(tmp_path_factory):
    """A virtual environment with every package of this one but the course itself and psutil."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    left_out = (
        "__editable__",
        "qlora_course",
        "psutil",
        "pip",
        "setuptools",
        "_distutils_hack",
        "distutils-precedence",
    )
    for entry in SITE.iterdir():
        if not entry.name.startswith(left_out) and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    kernel = subprocess.run([str(python), "-c", "import helpers"], capture_output=True, text=True, cwd=folder)
    assert "No module named 'helpers'" in kernel.stderr
    return python


def execute(python, folder, notebook, environment):
    command = [str(python), "-m", "papermill", "--no-progress-bar", "-k", "python3", notebook, "out.ipynb"]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def test_a_lone_notebook_fetches_the_course_installs_what_is_missing_and_runs(
    tmp_path, address, environment_without_the_course
):
    shutil.copy(course.NOTEBOOKS / "00_start_here.ipynb", tmp_path)
    surroundings = address | {"COURSE_RUNS": "", "PYTHONPATH": ""}
    done = execute(environment_without_the_course, tmp_path, "00_start_here.ipynb", surroundings)
    assert done.returncode == 0, done.stderr[-3000:]
    said = "".join(out.text for out in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[1].outputs)
    assert "Fetching the course, release" in said
    assert "Installing psutil" in said
    assert (tmp_path / "runs" / "default" / "00_start_here.json").is_file()
    shallow = subprocess.run(
        ["git", "rev-list", "--count", "HEAD"],
        cwd=tmp_path / "qlora-course",
        capture_output=True,
        text=True,
        check=True,
    )
    assert shallow.stdout.strip() == "1"


def test_without_a_network_the_bootstrap_cell_says_so_in_one_line(tmp_path, environment_without_the_course):
    shutil.copy(course.NOTEBOOKS / "00_start_here.ipynb", tmp_path)
    nowhere = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path / 'nothing'}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "PYTHONPATH": "",
    }
    done = execute(environment_without_the_course, tmp_path, "00_start_here.ipynb", nowhere)
    assert done.returncode != 0
    assert "RuntimeError: the course could not be fetched: check the network" in done.stderr
    assert not (tmp_path / "qlora-course").exists()


def test_where_helpers_can_be_imported_the_bootstrap_cell_does_nothing(tmp_path):
    code = course.bootstrap_source() + "\nprint('nothing else')"
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT)}
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert (out.stdout, out.stderr) == ("nothing else\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_bootstrap_cell_imports_nothing_heavy():
    modules = [name for name in ("torch", "transformers", "numpy") if name in course.bootstrap_source()]
    assert modules == []


def test_nothing_is_missing_here_and_no_pin_touches_torch_or_numpy(monkeypatch):
    assert install.missing_requirements() == []
    monkeypatch.setattr(install, "version", _nothing_is_installed)
    names = {install._name(line) for line in install.free_constraints()}
    assert "trl" in names
    assert not [n for n in names if n.startswith(("torch", "numpy", "nvidia-", "triton"))]


def test_a_version_out_of_range_counts_as_missing_and_any_torch_as_met(monkeypatch):
    monkeypatch.setattr(install, "version", lambda name: "0.0.1")
    missing = {install._name(line) for line in install.missing_requirements()}
    assert "trl" in missing
    assert "torch" not in missing


def _nothing_is_installed(name):
    raise install.PackageNotFoundError(name)
