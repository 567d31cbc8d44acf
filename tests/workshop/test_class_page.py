"""The page of a class: whole files are counted, broken and forged ones are listed, and nobody's data comes onto it."""

import json
import os
import re
import sys
import types

import hypothesis
import pytest
from hypothesis import strategies

from helpers import COURSE_ROOT, CourseError, course, doctor
from helpers.__main__ import main
from helpers.lesson import Run
from helpers.workshop import hand_in, read_class, save_class_file, write_class_page
from helpers.workshop.class_files import ALWAYS, Unbelievable, learner_of, read_file, recorded_at_the_end
from helpers.workshop.class_page import counts, judged, problems, state, status, versions
from tests.workshop import made_up
from tests.workshop.made_up import BROKEN, NAMES, WHOLE, record, text, training, write_class


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    write_class(folder)
    return folder


@pytest.fixture(scope="module")
def handed(folder):
    return read_class(folder)


@pytest.fixture(scope="module")
def page(handed, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "class.html"
    return write_class_page(handed, file).read_text(encoding="utf-8")


def named(handed, name):
    (found,) = [learner for learner in handed.learners if learner.name == name]
    return found


def fault(data: bytes, tmp_path, name="x.json") -> str:
    """Why a file of these bytes is not believed; "" if it is."""
    (tmp_path / name).write_bytes(data)
    try:
        read_file(tmp_path / name)
    except Unbelievable as error:
        return str(error)
    return ""


# --- who is ready, who finished what ----------------------------------------------------------------------------


def test_everyone_is_there_once_by_the_name_that_the_file_or_its_folder_has(handed):
    assert {learner.name for learner in handed.learners} == NAMES
    assert counts(handed) == {
        "learners": 12, "ready": 8, "not ready": 3, "without a doctor's file": 1, "files not counted": len(BROKEN),
    }  # fmt: skip


def test_who_is_ready_and_who_is_not(handed):
    said = {learner.name: status(learner) for learner in handed.learners}
    assert said["ana"] == ("ok", "ready")
    assert said["Ben"] == ("soso", "ready, 1 WARN")
    assert said["cem"] == ("bad", "1 FAIL, 1 WARN")
    assert said["hal"] == ("none", "no doctor's file")


def test_who_finished_and_who_began(handed):
    assert state(named(handed, "dora").lessons["01_quantization_basics"]) == ("ok", "done")
    assert state(named(handed, "Ben").lessons["00_start_here"]) == ("soso", "done, 4 of 5 verdicts hold")
    assert state(named(handed, "jo").lessons["00_start_here"]) == ("part", "begun")
    assert state(None) == ("none", "")


def test_each_failure_stands_once_with_its_cure_and_all_who_have_it(handed):
    rows = [(row["status"], row["check"], [name for name, _ in row["who"]]) for row in problems(handed.learners)]
    assert rows == [
        ("FAIL", "disk", ["cem", "frank"]),
        ("FAIL", "python", ["eva"]),
        ("WARN", "network", ["Ben", "cem", "eva"]),
    ]
    assert problems(handed.learners)[0]["cure"] == "free some, or set COURSE_RUNS to another disk"


def test_versions_that_differ_come_first_and_name_who_has_them(handed):
    rows = dict(versions(handed.learners))
    assert dict(rows["torch"])["2.11.0"] == ["jo"]
    assert dict(rows["trl"])["0.9.6"] == ["frank"]
    assert list(rows)[:3] == ["Python", "torch", "trl"]
    assert len(rows["peft"]) == 1


def test_the_plot_has_a_row_for_whoever_trained_and_sets_own_data_apart(handed):
    assert [(name, one.own_data) for name, one in judged(handed.learners)] == [
        ("ana", False), ("Ben", False), ("dora", False), ("ines", False), ("hal", True),
    ]  # fmt: skip


def test_the_later_of_two_files_counts_and_a_finished_lesson_stays_finished(tmp_path):
    old = made_up.doctor(made_up.OUT_OF_DISK, date="2026-01-02 09:00 UTC")
    (tmp_path / "ana.json").write_bytes(text(made_up.doctor()))
    (tmp_path / "ana (1).json").write_bytes(text(old))
    begun = {k: v for k, v in record("00_start_here").items() if k != "doctor"}
    (tmp_path / "ana_00_start_here.json").write_bytes(text(record("00_start_here")))
    (tmp_path / "ANA_00_start_here (2).json").write_bytes(text(begun))
    (ana,) = read_class(tmp_path).learners
    assert status(ana) == ("ok", "ready")
    assert ana.lessons["00_start_here"].finished


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("ana.json", "ana"),
        ("ana_doctor.json", "ana"),
        ("Doctor - Ana María.json", "Ana María"),
        ("ana_03_t4_training (3).json", "ana"),
        ("03_t4_training_ana.json", "ana"),
        ("Ben/doctor.json", "Ben"),
        ("Ben/runs/default/x.json", "Ben"),
        ("doctor (2).json", ""),
        ("03_t4_training.json", ""),
        ("doctorate student.json", "doctorate student"),
    ],
)
def test_whose_a_file_is(name, whose, tmp_path):
    assert learner_of((tmp_path / name).relative_to(tmp_path)) == whose


# --- what cannot be believed ------------------------------------------------------------------------------------


def test_there_are_more_than_thirty_broken_files_and_each_is_listed_once(handed):
    assert len(BROKEN) > 30
    assert sorted(name for name, _, _ in handed.faults) == sorted(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_forged_file_is_listed_with_the_reason_and_what_to_do(name, handed):
    ((_, what, cure),) = [listed for listed in handed.faults if listed[0] == name]
    assert re.search(BROKEN[name][1], f"{what}; {cure}")
    assert len(what) > 8
    assert len(cure) > 5


def test_broken_files_change_nothing_of_what_the_others_say(handed, tmp_path):
    write_class(tmp_path, broken=False)
    alone = read_class(tmp_path)
    assert alone.faults == []
    assert alone.learners == handed.learners


def test_what_powershell_writes_and_what_stands_behind_a_warning_is_read(tmp_path):
    said = json.dumps(made_up.doctor(), indent=1)
    assert fault(said.encode("utf-16"), tmp_path) == ""
    assert fault(said.encode("utf-8-sig"), tmp_path) == ""
    assert fault(b"a warning: {something}\n" + said.encode(), tmp_path) == ""


def test_links_and_pipes_are_listed_and_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.json").write_bytes(text(made_up.doctor()))
    (tmp_path / "in" / "link.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(tmp_path / "in" / "pipe.json")
    handed = read_class(tmp_path / "in")
    assert [name for name, _, _ in handed.faults] == ["link.json", "pipe.json"]
    assert handed.learners == []


anything = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=9),
    lambda inner: (
        strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(said, path=()):
    """The path to every value in a JSON object."""
    inner = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    yield from (found for key, value in inner for found in ((*path, key), *places(value, (*path, key))))


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(data=strategies.data())
def test_whatever_stands_in_place_of_a_value_is_survived(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    said = json.loads(
        json.dumps(data.draw(strategies.sampled_from([WHOLE["dora.json"], WHOLE["ana.json"], training(0, 1, 9, 0)])))
    )
    path = data.draw(strategies.sampled_from(sorted(places(said), key=str)))
    inner = said
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(anything)
    (folder / "any.json").write_bytes(text(said))
    handed = read_class(folder)
    assert len(handed.learners) + len(handed.faults) == 1
    write_class_page(handed, folder / "class.html")


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_holds_no_value_of_anyone_and_no_verdict_s_words(page):
    assert "a secret row" in json.dumps(WHOLE)
    for words in ("a secret row", "claim 1", "mine.csv", "/home"):
        assert words not in page, words


def test_names_that_are_html_stay_text_and_nothing_is_fetched(page):
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', page) == []


def test_an_empty_folder_gives_a_page_too(tmp_path):
    write_class_page(read_class(tmp_path), tmp_path / "class.html")
    assert "No file could be read" in (tmp_path / "class.html").read_text()
    assert read_class(tmp_path).faults == [], "the page itself is no file of the class"


def test_the_command_writes_the_page_beside_the_files_and_says_what_it_left_out(folder, capsys):
    assert main(["class", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"12 learners, {len(BROKEN)} files not counted: {folder / 'class.html'}"
    assert "not counted: b14.zip: it is no .json file; unpack it" in said
    assert "<h1>The class</h1>" in (folder / "class.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nowhere"], "is no folder"), ([".", "--out", "nowhere/class.html"], "cannot be written")],
)
def test_a_folder_that_is_not_there_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["class", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_with_too_many_files_is_refused(folder, monkeypatch):
    monkeypatch.setattr("helpers.workshop.class_files.MOST_FILES", 10)
    with pytest.raises(CourseError, match="at most 10 are read"):
        read_class(folder)


# --- what learners hand in ---------------------------------------------------------------------------------------


@pytest.fixture
def quick_doctor(monkeypatch):
    monkeypatch.setattr(hand_in.doctor, "TORCH", ())
    monkeypatch.setattr(hand_in.doctor, "INSTALLED", tuple(c for c in doctor.INSTALLED if c.__name__ != "kernel"))


def test_what_a_lesson_records_is_read_as_what_it_is(tmp_path):
    for lesson in course.lessons():
        names = recorded_at_the_end(lesson.stem)
        assert names, f"{lesson.stem} records nothing, and nobody could finish it"
        run = Run(lesson.stem, tmp_path, {}, found=dict.fromkeys(names), verdicts=[{"claim": "a", "holds": True}])
        _, (read,) = read_file(run.save())
        assert (read.lesson, read.finished, read.current) == (lesson.stem, True, True)
        run.found.popitem()
        _, (read,) = read_file(run.save())
        assert not read.finished


def test_the_checks_that_every_doctor_s_file_has_are_checks_of_the_doctor():
    checks = {check.__name__ for check in (*doctor.INSTALLED, *doctor.MACHINE, *doctor.NETWORK)}
    assert set(ALWAYS) <= checks


def test_a_learner_s_file_holds_how_far_she_came_and_none_of_her_data(tmp_path, monkeypatch, quick_doctor, capsys):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    secret = {"before": ["my row"], "run": {"parameters": {"dataset_id": "/srv/me/my row.csv"}, "model": "my row"}}
    said = training(0.0, 0.9, 9.0, 0.1, data="my row.csv, 90 to learn")
    (runs / "03_t4_training.json").write_bytes(text(said | {"run": said["run"] | secret["run"], "before": "my row"}))
    (runs / "04_inference.json").write_text("{")
    file = save_class_file("Ana M.", runs)
    assert "my row" not in file.read_text()
    assert "a secret row" not in file.read_text()
    assert "none of your data" in capsys.readouterr().out
    handed = read_class(tmp_path)
    (ana,) = [learner for learner in handed.learners if learner.name == "Ana M"]
    assert ana.lessons["03_t4_training"].finished
    assert ana.lessons["03_t4_training"].own_data
    assert ana.lessons["03_t4_training"].scores["heldout_loss_after"] == 0.1
    assert ana.doctor.versions["transformers"]


def test_in_colab_the_browser_downloads_it(tmp_path, monkeypatch, quick_doctor):
    sent = []
    monkeypatch.setitem(sys.modules, "google.colab.files", types.SimpleNamespace(download=sent.append))
    monkeypatch.chdir(tmp_path)
    file = save_class_file("ana", tmp_path)
    assert sent == [str(file)]


@pytest.mark.parametrize("name", ["", "../ana", "a/b", ".ana", "x" * 41, "a\nb"])
def test_a_name_that_is_no_file_s_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match="cannot be a file's name"):
        save_class_file(name)
    assert list(tmp_path.iterdir()) == []


def test_the_room_lists_what_learners_take_and_costs_nothing_to_enter():
    import subprocess

    code = "import sys, helpers.workshop; print([m for m in ('torch', 'pandas', 'matplotlib', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=COURSE_ROOT)
    assert done.stdout.strip() == "[]"
