"""An empty folder, one notebook, an environment without the course: the bootstrap cell fetches it and the lesson runs."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.version import Version

from helpers import COURSE_ROOT
from helpers.course import disk as course
from helpers.packages import lists
from helpers.packages import setting_up as install
from tests.places import place

SITE = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Git settings that lead from the course's address to a bare repository with this working tree at the release tag."""
    return place.release(tmp_path_factory.mktemp("address"))


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


NOWHERE = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "url.file:///nothing.insteadOf",
    "GIT_CONFIG_VALUE_0": "https://github.com/",
}


def test_without_a_network_the_failure_names_address_release_and_what_to_do(tmp_path, environment_without_the_course):
    shutil.copy(course.NOTEBOOKS / "00_start_here.ipynb", tmp_path)
    done = execute(environment_without_the_course, tmp_path, "00_start_here.ipynb", NOWHERE | {"PYTHONPATH": ""})
    repository, tag = course.address()
    assert done.returncode != 0
    assert f"the course could not be fetched: release {tag} from https://github.com/{repository} (" in done.stderr
    assert "Check the network, and in a browser that this address has this release" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"00_start_here.ipynb", "out.ipynb"}


def run_cell(folder, before="", after="", source=None, python=sys.executable, **environment):
    """Run the bootstrap cell as a kernel does, the folder first on the path; returns the finished process."""
    lines = ["import sys; sys.path.insert(0, '')", before, source or course.bootstrap_source(), after]
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    command = [str(python), "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)


def test_where_the_course_is_installed_the_bootstrap_cell_does_nothing(tmp_path):
    done = run_cell(tmp_path, after="print('nothing else')", PYTHONPATH=str(COURSE_ROOT))
    assert (done.stdout, done.stderr) == ("nothing else\n", "")
    assert list(tmp_path.iterdir()) == []


OWN = {
    "a file helpers.py": "helpers.py",
    "a folder helpers": "helpers/mine.py",
    "a package helpers": "helpers/__init__.py",
    "a file datasets.py": "datasets.py",
    "a package peft": "peft/__init__.py",
    "files with names of both": "helpers.py trl.py",
}


@pytest.mark.parametrize("names", OWN.values(), ids=OWN)
@pytest.mark.parametrize("folder", ["plain", "with spaces and ümläuts"])
def test_a_learners_own_files_do_not_stand_in_the_way(tmp_path, names, folder):
    where = tmp_path / folder
    for name in names.split():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text("def mine():\n    return 1\n")
    (where / "my_module.py").write_text("answer = 42\n")
    after = "import datasets, peft, trl, helpers.lesson, my_module; print(datasets.Dataset, peft.LoraConfig, my_module.answer)"
    done = run_cell(where, after=after, PYTHONPATH=str(COURSE_ROOT))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("42\n")
    for name in names.split():
        said = "is left alone" in done.stdout
        assert said == (name != "helpers/mine.py"), done.stdout  # a folder without __init__.py hides nothing


@pytest.mark.parametrize("name", ["helpers.py", "helpers/__init__.py"])
def test_a_helpers_that_was_imported_before_gives_way(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("def mine():\n    return 1\n")
    before, after = (
        "import helpers; from helpers import mine",
        "import helpers; print(helpers.COURSE_ROOT.name, mine())",
    )
    done = run_cell(tmp_path, before, after, PYTHONPATH=str(COURSE_ROOT))
    assert done.stdout.endswith(f"{COURSE_ROOT.name} 1\n"), done.stderr[-2000:]


def test_a_library_that_was_already_hidden_is_named_in_one_line(tmp_path):
    (tmp_path / "datasets.py").write_text("")
    done = run_cell(tmp_path, before="import datasets", PYTHONPATH=str(COURSE_ROOT))
    assert "CourseError: datasets.py beside this notebook was loaded in place of datasets: rename it" in done.stderr


class Archive(http.server.BaseHTTPRequestHandler):
    """GitHub's zip file of a tag."""

    def do_GET(self):
        repository, tag = course.address()
        found = self.path == f"/{repository}/archive/refs/tags/{tag}.zip"
        self.send_response(200 if found else 404)
        self.end_headers()
        if found:
            self.wfile.write(self.server.file.read_bytes())

    def log_message(self, *words):
        pass


@pytest.fixture
def archive(tmp_path_factory):
    """The address of a server that has the release as GitHub's zip, whose one folder is NAME-VERSION."""
    folder = tmp_path_factory.mktemp("archive")
    repository, tag = course.address()
    root = f"{repository.split('/')[1]}-{tag.removeprefix('v')}"
    with zipfile.ZipFile(folder / "release.zip", "w") as file:
        for name in ("helpers", "assets", "lessons", "pyproject.toml", "requirements.txt", "constraints.txt"):
            every = [COURSE_ROOT / name, *(COURSE_ROOT / name).rglob("*")]
            for path in (p for p in every if p.is_file() and "__pycache__" not in p.parts):
                file.write(path, f"{root}/{path.relative_to(COURSE_ROOT)}")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server:
        server.file = folder / "release.zip"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("git", ["no git", "a git that fails"])
def test_without_git_the_release_is_fetched_as_a_zip_file(tmp_path, archive, environment_without_the_course, git):
    source = course.bootstrap_source().replace("https://github.com", archive)
    path = str(environment_without_the_course.parent) if git == "no git" else os.environ["PATH"]
    done = run_cell(
        tmp_path,
        source=source,
        after="print(course)",
        python=environment_without_the_course,
        PATH=path,
        HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith(f"{tmp_path / 'qlora-course'}\n")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[:8] == ".fetchin") == []


@pytest.mark.parametrize("left", ["half a clone", "another release"])
def test_a_folder_that_is_not_this_release_is_not_taken_for_it(tmp_path, address, environment_without_the_course, left):
    old = tmp_path / "qlora-course"
    if left == "another release":
        shutil.copytree(COURSE_ROOT / "helpers", old / "helpers")
        (old / "assets" / "base_model").mkdir(parents=True)
        (old / "pyproject.toml").write_text('[tool.course]\ntag = "v0.0.1"\n')
    else:
        (old / ".git").mkdir(parents=True)
    done = run_cell(tmp_path, after="print(course.name)", python=environment_without_the_course, **address)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith(f"qlora-course-{course.address()[1]}\n")
    again = run_cell(tmp_path, after="print(course.name)", python=environment_without_the_course, **address)
    assert "Fetching" not in again.stdout
    assert old.is_dir()


def test_the_bootstrap_cell_imports_nothing_heavy():
    modules = [name for name in ("torch", "transformers", "numpy") if name in course.bootstrap_source()]
    assert modules == []


def test_nothing_is_missing_here_and_no_pin_touches_torch_or_numpy(monkeypatch):
    assert install.missing_requirements() == []
    monkeypatch.setattr(lists, "version", _nothing_is_installed)
    names = {lists._name(line) for line in install.constraints([])}
    assert "trl" in names
    assert not [n for n in names if n.startswith(("torch", "numpy", "nvidia-", "triton"))]


def test_a_version_out_of_range_counts_as_missing_and_any_torch_as_met(monkeypatch):
    monkeypatch.setattr(lists, "version", lambda name: "0.0.1")
    missing = {lists._name(line) for line in install.missing_requirements()}
    assert "trl" in missing
    assert "torch" not in missing


def test_a_lesson_asks_for_no_tool_of_a_maintainer():
    names = {name for name, *_ in lists.requirements(for_lessons=True)}
    assert {"trl", "peft", "ipykernel"} <= names
    assert not names & {"pytest", "nbval", "papermill", "jupytext", "nbclient", "joblib"}
    assert lists.needed_by_commands() >= {"pytest", "nbval", "papermill"}


def test_what_a_notebook_is_made_of_is_held_as_it_is(monkeypatch):
    here = {
        "ipython": "7.34.0",
        "pandas": "2.2.3",
        "ipywidgets": "7.7.1",
        "pyarrow": "18.1.0",
        "huggingface_hub": "1.27.0",
    }
    monkeypatch.setattr(lists, "installed_version", here.get)
    tested = install.pinned_versions()
    held = install.constraints([f"trl>={tested['trl']}"])
    assert {"ipython==7.34.0", "pandas==2.2.3", "ipywidgets==7.7.1"} <= set(held)
    assert f"pyarrow>=18.1.0,<={tested['pyarrow']}" in held  # if it must change, then to nothing newer than was tested
    assert not [line for line in held if line.startswith(("ipython==9", "pandas==3", "ipywidgets==8"))]
    assert f"trl=={tested['trl']}" in held


@pytest.mark.parametrize(
    ("here", "refused"), [("0.10.0", ["torchao>=0.16"]), ("0.16.0", []), ("0.19.1", []), (None, [])]
)
def test_torchao_is_upgraded_only_where_it_is_and_too_old(monkeypatch, here, refused):
    monkeypatch.setattr(lists, "installed_version", lambda name: here)
    assert install.refused_packages() == refused


ADAPTER_ON_16_BITS = """
import torch
from peft import LoraConfig, get_peft_model

lora = LoraConfig(r=2, target_modules=["0"])
try:
    get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.bfloat16)), lora)
    print("taken")
except ImportError as error:
    print(error)
"""


def test_peft_still_refuses_an_old_torchao_that_nobody_uses_and_names_the_bound_that_is_asked_for(
    tmp_path, still_needed
):
    """In a Python of its own, beside Colab's torchao: metadata and an empty module, for PEFT looks at the version first."""
    about = tmp_path / "torchao-0.10.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n")
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("")
    command, around = [sys.executable, "-c", ADAPTER_ON_16_BITS], os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=around)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = re.search(r"Found version 0\.10\.0, but only versions above ([\d.]+) are supported", done.stdout)
    still_needed(refused, "PEFT passes over an old torchao now: drop lists.REFUSED_WHEN_OLDER")
    if refused:
        (line,) = lists.REFUSED_WHEN_OLDER
        assert Version(line.partition(">=")[2]) == Version(refused[1])


@pytest.mark.parametrize("loaded", [True, False])
def test_a_restart_is_asked_for_exactly_when_a_replaced_package_was_loaded(tmp_path, monkeypatch, capsys, loaded):
    module = tmp_path / "replaced_by_pip.py"
    module.write_text("version = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if loaded:
        __import__("replaced_by_pip")
    monkeypatch.setattr(install, "missing_requirements", lambda for_lessons: ["trl"])
    monkeypatch.setattr(install, "NOTES", tmp_path / "runs" / "install.txt")
    monkeypatch.setattr(install, "restart_needed", "")

    def replace(lines, constrained, options):
        other = tmp_path / "other.py"
        other.write_text("version = 2\n")
        os.replace(other, module)
        return "google-colab 1.0 requires pandas==2.2.2, but you have pandas 3 which is incompatible.\n"

    monkeypatch.setattr(install, "_pip", replace)
    monkeypatch.setattr(install, "_versions", iter([{"replaced": "1"}, {"replaced": "2"}]).__next__)
    try:
        if loaded:
            with pytest.raises(install.CourseError, match="restart needed: replaced_by_pip was loaded here"):
                install.install_missing(for_lessons=True)
            with pytest.raises(install.CourseError, match="restart needed: replaced_by_pip was loaded here"):
                install.set_up()  # the cell is run again, and the session is the same
        else:
            install.install_missing(for_lessons=True)
    finally:
        sys.modules.pop("replaced_by_pip", None)
    assert "Replaced: replaced 1 by 2" in capsys.readouterr().out
    assert "google-colab" in (tmp_path / "runs" / "install.txt").read_text()


def test_pips_failure_is_one_line_and_its_words_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "NOTES", tmp_path / "install.txt")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(install.CourseError, match="^pip could not install no-such-package==9: "):
        install._pip(["no-such-package==9"], [], [])
    assert "No matching distribution" in (tmp_path / "install.txt").read_text()


def test_the_cell_run_again_after_pip_failed_installs_again(tmp_path, address, environment_without_the_course):
    python = environment_without_the_course
    subprocess.run(
        [python, "-m", "pip", "uninstall", "-q", "-y", "psutil"], check=True
    )  # another test may have brought it back
    cell = course.bootstrap_source()
    twice = f"for _ in range(2):\n    try:\n        exec({cell!r}, dict(__name__='__main__'))\n"
    twice += "    except Exception as error:\n        print(type(error).__name__, error)\n"
    done = run_cell(tmp_path, source=twice, python=python, PIP_NO_INDEX="1", PIP_FIND_LINKS="", **address)
    assert done.stdout.count("CourseError pip could not install psutil") == 2, done.stdout + done.stderr[-1000:]


def test_the_bootstrap_cell_is_folded_away(tmp_path):
    for lesson in course.lessons():
        cell = json.loads((course.NOTEBOOKS / f"{lesson.stem}.ipynb").read_text(encoding="utf-8"))["cells"][1]
        assert cell["metadata"]["cellView"] == "form"
        assert "".join(cell["source"]).startswith("# @title ")


def _nothing_is_installed(name):
    raise install.PackageNotFoundError(name)
