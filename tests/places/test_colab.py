"""Colab's double: its notebook stack and libraries, one notebook in an empty folder, every cell, on the Python at hand.

`make places` does the same for every lesson, each in a fresh environment, and on Colab's own Python.
"""

import datetime
import json
import shutil
import warnings

import nbformat
import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from helpers.files import adapter_fault
from tests.places import place as places

COLAB = places.Place.read("colab")
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def template():
    if not places.index_answers():
        pytest.skip("Colab's double was left out: no package index answers here")
    return places.environment(COLAB)


@pytest.fixture(scope="module")
def scratch(template, tmp_path_factory):
    """A folder on the file system of the environments, so that a copy of one shares its files."""
    folder = places.KEPT / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return places.release(tmp_path_factory.mktemp("release"))


def stored(stem: str, **values):
    """A lesson's notebook as a learner opens it, with other values in its parameters cell."""
    notebook = nbformat.read(course.NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    for name, value in values.items():
        lines = notebook.cells[2].source.splitlines()
        assert [line for line in lines if line.startswith(f"{name} = ")], name
        notebook.cells[2].source = "\n".join(
            f"{name} = {value!r}" if line.startswith(f"{name} = ") else line for line in lines
        )
    return notebook


def cells(*sources: str):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def opened(name: str, notebook, template, scratch, release, fresh=True):
    folder = scratch / name
    folder.mkdir(exist_ok=True)
    found = places.open_alone(notebook, COLAB, template, folder, release, fresh)
    return [str(failure) for failure in found]


@pytest.fixture(scope="module")
def after_03(template, scratch, release):
    """What lesson 03 did in the double, with its files on Drive: the failures, and the folder.

    It trains for a few steps and asks few questions: whether it learns is no question of the place, and `make places` runs
    it as it is stored.
    """
    notebook = stored("03_t4_training", output_dir="drive", max_steps=8, eval_rows=16)
    return opened("03", notebook, template, scratch, release), scratch / "03"


def test_every_cell_of_lesson_03_runs_in_colab_with_no_restart(after_03):
    failures, _ = after_03
    assert failures == []


def test_the_course_is_fetched_and_it_is_the_release_that_runs(after_03):
    _, folder = after_03
    first = nbformat.read(folder / "executed.ipynb", as_version=4).cells[1].outputs[0].text
    assert first.startswith(f"Fetching the course, release {course.address()[1]} ...")
    assert (folder / "content" / "qlora-course" / "helpers" / "packages" / "setting_up.py").is_file()
    assert not folder.resolve().is_relative_to(COURSE_ROOT)


def test_the_set_up_cell_replaces_nothing_that_colabs_notebook_is_made_of(after_03):
    _, folder = after_03
    site = places.site_packages(folder / "venv")
    pinned = dict(line.split("==") for line in COLAB.packages)
    for name in ("ipython", "ipykernel", "ipywidgets", "jupyter-client", "tornado", "pandas", "requests", "numpy"):
        found = site / f"{name.replace('-', '_')}-{pinned[name]}.dist-info"
        assert found.is_dir(), f"{name} {pinned[name]} was replaced"
    assert not list(site.glob("papermill-*"))
    assert not list(site.glob("nbval-*"))


def test_figures_keep_their_alternative_text_and_the_panel_shows(after_03):
    _, folder = after_03
    cells = nbformat.read(folder / "executed.ipynb", as_version=4).cells
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    figures = [cell for cell in cells if cell.cell_type == "code" and "\nshow(" in cell.source]
    assert len(figures) >= 3
    assert len(pictures) >= len(figures) + 1  # and the panel's
    assert all(out.metadata["image/png"]["alt"] for out in pictures)
    views = [
        out.data["application/vnd.jupyter.widget-view+json"]
        for out in outputs
        if "application/vnd.jupyter.widget-view+json" in out.get("data", {})
    ]
    assert [view["version_major"] for view in views] == [2]


def test_what_lesson_03_made_is_on_drive_and_another_machine_finds_it(after_03, scratch, release):
    _, folder = after_03
    drive = folder / "drive" / "MyDrive" / "qlora-course" / "default"
    assert adapter_fault(drive / "adapter") is None
    assert json.loads((drive / "03_t4_training.json").read_text())["verdicts"]
    assert not (folder / "content" / "runs").exists()
    shutil.copytree(folder / "drive", scratch / "04" / "drive")
    notebook = stored("04_inference", output_dir="drive")
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:3]
    assert opened("04", notebook, folder / "venv", scratch, release) == []
    table = notebook.cells[2].outputs[-1].data["text/plain"]
    assert "the one that lesson 03 left in MyDrive/qlora-course/default/adapter" in table


def test_on_a_machine_of_its_own_lesson_04_says_how_to_bring_yours(after_03, scratch, release):
    notebook = stored("04_inference")
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:3]
    assert opened("04 alone", notebook, after_03[1] / "venv", scratch, release) == []
    table = notebook.cells[2].outputs[-1].data["text/plain"]
    assert "a small one is trained now. For your own, run lesson 03 on this machine first" in table
    assert 'output_dir="drive"' in table


def test_a_planted_image_alt_fails(after_03, tmp_path, scratch):
    """The double notices what broke every figure: Image(alt=...) came with IPython 8."""

    def plant(tree):
        file = tree / "helpers" / "plots" / "figures.py"
        text = file.read_text(encoding="utf-8")
        assert 'metadata={"alt": alt})' in text
        file.write_text(text.replace('metadata={"alt": alt})', "alt=alt)"), encoding="utf-8")

    draw = "from helpers import plots\nfigure, _ = plots.axes('t', 'x', 'y')\nplots.show(figure, alt='a figure')"
    failures = opened(
        "planted",
        cells(course.bootstrap_source(), draw),
        after_03[1] / "venv",
        scratch,
        places.release(tmp_path, plant),
    )
    assert len(failures) == 1
    assert failures[0].startswith("code cell 2 (from helpers import plots): TypeError: ")


def test_whoever_imported_pandas_first_is_asked_to_restart_and_then_it_works(template, scratch, release):
    notebook = cells("import pandas", course.bootstrap_source())
    (failure,) = opened("restart", notebook, template, scratch, release)
    assert "CourseError: restart needed: pyarrow was loaded here before it was replaced" in failure
    use = "import datasets, pyarrow\nprint(datasets.Dataset.from_dict({'a': [1]}))"
    again = cells("import pandas", course.bootstrap_source(), use)
    assert opened("restart", again, template, scratch, release, fresh=False) == []


def test_a_cell_that_raises_does_not_stop_the_rest_and_a_red_verdict_counts(after_03, scratch, release):
    begin = "from helpers.lesson import begin, verdict\nbegin('00_start_here', output_dir='auto')"
    notebook = cells("1 / 0", course.bootstrap_source(), begin, "verdict('one is two', False)", "print('still here')")
    failures = opened("report", notebook, after_03[1] / "venv", scratch, release)
    assert [failure.split(":")[1].strip() for failure in failures] == ["ZeroDivisionError", "NOT SO in this run"]
    assert notebook.cells[-1].outputs[0].text == "still here\n"


def test_the_list_of_colabs_packages_is_not_too_old():
    age = (datetime.date.today() - COLAB.date).days
    if age > 90:
        warnings.warn(
            f"tests/places/colab.txt is {age} days old: python -m tests.places refresh FREEZE_FILE", stacklevel=1
        )
    assert age >= 0


def test_the_list_is_made_anew_from_a_freeze(tmp_path, monkeypatch):
    shutil.copy(places.HERE / "colab.txt", tmp_path)
    monkeypatch.setattr(places, "HERE", tmp_path)
    freeze = (
        "IPython==9.1.0\ntorch==2.15.1+cu130\nnobody-needs-this==1\ntrl==1.17.0\nkeras @ file:///x\npandas==2.3.0\n"
    )
    places.refresh("colab", freeze, datetime.date(2027, 1, 2))
    new = places.Place.read("colab")
    assert (new.date, new.torch, new.python) == (datetime.date(2027, 1, 2), "2.15.1", COLAB.python)
    assert new.packages == ("IPython==9.1.0", "trl==1.17.0", "pandas==2.3.0")
