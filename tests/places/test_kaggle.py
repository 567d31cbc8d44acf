"""Kaggle's double: a lesson there, and the way without the internet. `make places` runs it; COURSE_PLACES=1 asks for it."""

import os
import shutil
import subprocess
import sys

import pytest

from helpers import COURSE_ROOT, CourseError
from helpers.course import disk as course
from helpers.packages import lists
from helpers.packages import setting_up as install
from tests.places import place as places

AT_HAND = f"{sys.version_info[0]}.{sys.version_info[1]}"
long = pytest.mark.skipif(os.environ.get("COURSE_PLACES") != "1", reason="make places runs this")
NO_NETWORK = ["unshare", "--net", "--map-root-user"]  # a process in it reaches nothing, not even the loopback


@pytest.fixture(scope="module")
def template():
    if not places.index_answers():
        pytest.skip("Kaggle's double was left out: no package index answers here")
    return places.environment(places.Place.read("kaggle"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The course as somebody uploads it as a data set: a clone, and in it the folder that --download filled."""
    folder = tmp_path_factory.mktemp("input") / "datasets" / "somebody" / "qlora"
    places.release(tmp_path_factory.mktemp("release"), change=lambda tree: shutil.copytree(tree, folder))
    command = [sys.executable, "-m", "helpers", "install", "--download", str(folder / "wheels"), "--python", AT_HAND]
    done = subprocess.run(command, capture_output=True, text=True, cwd=COURSE_ROOT)
    assert done.returncode == 0, done.stderr
    assert f"wheels for Python {AT_HAND}" in done.stdout
    return folder


def run_alone(python, folder, source, **environment):
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COURSE", "PIP"))} | environment
    command = [*NO_NETWORK, str(python), "-c", source]
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)


@long
def test_without_the_internet_the_wheels_are_enough(template, given, tmp_path):
    venv = places.copied(template, places.KEPT / "offline")
    try:
        source = course.bootstrap_source().replace("/kaggle/input", str(given.parents[2]))
        source += "\nimport trl, peft, bitsandbytes, datasets, transformers; print(course, transformers.__version__)"
        done = run_alone(venv / "bin" / "python", tmp_path, source, KAGGLE_KERNEL_RUN_TYPE="Interactive")
        assert done.returncode == 0, done.stderr[-3000:]
        tested = lists.pinned_versions()
        assert done.stdout.endswith(f"{given} {tested['transformers']}\n")
        assert "Fetching" not in done.stdout
    finally:
        shutil.rmtree(venv, ignore_errors=True)


@long
def test_the_command_installs_from_a_folder_without_a_network(template, given):
    venv = places.copied(template, places.KEPT / "offline")
    try:
        source = f"import sys; sys.path.insert(0, {str(COURSE_ROOT)!r}); from helpers.__main__ import main; "
        source += f"sys.exit(main(['install', '--wheels', {str(given / 'wheels')!r}]))"
        done = run_alone(venv / "bin" / "python", given, source)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Replaced:" in done.stdout
    finally:
        shutil.rmtree(venv, ignore_errors=True)


def test_without_the_internet_one_line_says_where_the_switch_is(tmp_path):
    source = "import sys; sys.modules['helpers'] = None\n" + course.bootstrap_source()
    source = source.replace('spec = importlib.util.find_spec("helpers")', "spec = None")
    done = run_alone(sys.executable, tmp_path, source, KAGGLE_KERNEL_RUN_TYPE="Interactive", HOME=str(tmp_path))
    last = done.stderr.strip().splitlines()[-1]
    assert "the course could not be fetched" in last, done.stderr
    assert (
        "Switch the internet on (sidebar: Session options > Internet), or see README.md, Without the internet" in last
    )


def test_pip_without_the_internet_says_where_the_switch_is(monkeypatch, tmp_path):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(install, "NOTES", tmp_path / "install.txt")
    with pytest.raises(CourseError, match=r"Is the internet on\? In Kaggle's sidebar: Session options > Internet"):
        install._pip(["no-such-package==9"], [], [])


def test_a_folder_without_wheels_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        CourseError, match="holds no wheels: fill it with `python -m helpers install --download FOLDER`"
    ):
        install.install_missing(wheels=tmp_path)


def test_what_is_downloaded_is_what_lessons_need_and_no_torch(monkeypatch, tmp_path, capsys):
    asked = []

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(install.subprocess, "run", run)
    install.download(tmp_path / "wheels", "3.12")
    names = {lists._name(word) for word in asked[0] if "==" in word}
    assert {"trl", "peft", "transformers", "bitsandbytes", "pyarrow", "tokenizers", "dill", "hf-xet"} <= names
    assert not [name for name in names if name.startswith(("torch", "nvidia", "numpy", "papermill", "nbval"))]
    assert asked[0][asked[0].index("--python-version") + 1] == "3.12"
    with pytest.raises(CourseError, match="--python 'three' is not possible"):
        install.download(tmp_path, "three")
