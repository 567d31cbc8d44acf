"""The pages of the workshop kit: set-up in two commands that exist, questions whose wrong answers teach, minutes that add up."""

import html
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from helpers import COURSE_ROOT, CourseError, course, doctor
from helpers.__main__ import main
from helpers.evaluation import interval_of_mean, wilson_interval
from helpers.memory import kv_cache_bytes
from helpers.records import measured_arms, measured_two_gpus
from helpers.workshop import kit_pages, write_pages
from helpers.workshop import schedules as room
from helpers.workshop.kit_pages import SYSTEMS, asked
from helpers.workshop.schedules import late, schedules
from helpers.workshop.sections import KIT, sections
from tests.workshop.made_up import doctor as doctor_file
from tests.workshop.made_up import write_class

LESSONS = course.lessons()
# What lesson 06's notes leave to be looked up when it strikes.
LOOKED_UP = {"5 Four CUDA versions", "6 A page that is locked"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    return {file.name: file.read_text(encoding="utf-8") for file in write_pages(folder)}


def words_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.partition("</style>")[2]))


def test_every_page_stands_alone_and_is_filled(pages):
    assert len(pages) == len(SYSTEMS) + 1 + len(asked()) + 1 + 1
    for name, page in pages.items():
        assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*\.(?:js|css|woff2?|png)"|@import|<script', page) == [], (
            name
        )
        assert "{{" not in page, name
        assert "{%" not in page, name
        assert page.count("<h1") == 1, name
        assert '<meta name="viewport"' in page, name


def test_links_between_the_pages_lead_to_a_page_and_the_index_has_them_all(pages):
    for page in pages.values():
        for target in re.findall(r'href="(?!https?:|#)([^"#]+)', page):
            assert target in pages, target
    assert set(re.findall(r'href="([\w-]+\.html)"', pages["index.html"])) == set(pages) - {"index.html"}


# --- set-up -------------------------------------------------------------------------------------------------------


def commands(system: str) -> list[str]:
    text = (KIT / "setup" / f"{system}.md").read_text(encoding="utf-8")
    repository, tag = course.address()
    found = re.findall(r"^```(?:sh|powershell)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block.strip().replace("{{ repository }}", repository).replace("{{ tag }}", tag) for block in found]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_s_page_has_two_commands_of_one_line_each(system, pages):
    two = commands(system)
    assert len(two) == 2
    assert [block.count("\n") for block in two] == [0, 0]
    assert all(block in words_of(pages[f"setup-{system}.html"]) for block in two)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_commands_clone_this_release_and_end_with_the_doctor(system):
    first, second = (block.lstrip("!") for block in commands(system))
    repository, tag = course.address()
    assert first.startswith("git clone ")
    assert f"--branch {tag} https://github.com/{repository} qlora-course" in first
    assert second.endswith("-m helpers doctor")
    if system != "windows":
        for block in (first, second):
            subprocess.run(["bash", "-n", "-c", block], check=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_the_second_command_names_is_there(system):
    second = commands(system)[1].replace("\\", "/")
    for option, name in re.findall(r" (-c|-r|-e) (\S+)", second):
        assert (COURSE_ROOT / name).exists(), f"{option} {name}"
    tools = {file.stem for file in (COURSE_ROOT / "helpers" / "commands").glob("[a-z]*.py")}
    assert set(re.findall(r"-m helpers (\w+)", second)) <= tools
    assert {"pip", "venv"} <= set(shlex.split(second)) or "install" in tools


def test_the_lines_of_the_doctor_are_lines_of_the_doctor():
    lines = tomllib.loads((KIT / "doctor.toml").read_text(encoding="utf-8"))["line"]
    checks = {
        c.__name__.replace("_", " ") for c in (*doctor.INSTALLED, *doctor.MACHINE, *doctor.NETWORK, *doctor.TORCH)
    }
    assert {line["check"] for line in lines} <= checks
    assert {name for line in lines for name in line.get("on", {})} <= set(SYSTEMS)


def test_what_the_page_says_of_a_quiet_machine_is_what_the_doctor_says_here(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    lines = {
        line["check"]: line["says"] for line in tomllib.loads((KIT / "doctor.toml").read_text(encoding="utf-8"))["line"]
    }
    said = {found.check: found for found in doctor.examine(*doctor.INSTALLED[:3], *doctor.MACHINE, *doctor.NETWORK)}
    assert said["packages"].what.endswith(lines["packages"].partition(", ")[2])
    assert "free where runs go" in said["disk"].what
    assert "free where runs go" in lines["disk"]
    source = (COURSE_ROOT / "helpers" / "doctor" / "graphics.py").read_text(encoding="utf-8")
    assert lines["gpu"] in source
    assert lines["network"] in (COURSE_ROOT / "helpers" / "doctor" / "network_access.py").read_text(encoding="utf-8")
    for part in ("multiplies in 4 bits on", "as it should be"):
        assert part in source
        assert part in lines["four bits"]


def test_a_page_of_a_system_that_nobody_has_run_says_so(pages):
    for system in ("macos", "windows"):
        assert "Nobody has run the course on" in words_of(pages[f"setup-{system}.html"])


# --- questions ----------------------------------------------------------------------------------------------------


def faults_of(questions: list[dict]) -> list[str]:
    """What is wrong with a lesson's questions."""
    faults = [] if len(questions) == 5 else [f"{len(questions)} questions"]
    for question in questions:
        answers = [question["right"], *(wrong["answer"] for wrong in question["wrong"])]
        beliefs = [wrong.get("belief", "") for wrong in question["wrong"]]
        faults += [f"not four answers: {question['ask']}"] if len(set(answers)) != 4 else []
        faults += (
            [f"a wrong answer without a belief of its own: {question['ask']}"]
            if len(set(filter(None, beliefs))) != 3
            else []
        )
        faults += [
            f"no sentence: {text}" for text in [*answers, *beliefs, question["why"]] if text and text[-1] not in ".?"
        ]
        faults += [f"no question: {question['ask']}"] if not question["ask"].endswith("?") else []
    return faults


@pytest.mark.parametrize("number", asked())
def test_a_lesson_has_five_questions_whose_wrong_answers_name_a_misconception(number):
    assert faults_of(asked()[number]) == []


def test_a_question_without_its_misconception_is_noticed():
    (first, *_) = asked()["00"]
    plain = first | {"wrong": [{"answer": "No."}, *first["wrong"][1:]]}
    assert faults_of([first] * 4 + [plain]) == [f"a wrong answer without a belief of its own: {first['ask']}"]
    assert faults_of([first]) == ["1 questions"]


def test_every_lesson_has_questions_and_the_right_answer_stands_in_changing_places(pages):
    assert list(asked()) == [lesson.stem[:2] for lesson in LESSONS]
    places = re.findall(
        r'<b class="ok">([A-D]) is right', "".join(pages[f"questions-{number}.html"] for number in asked())
    )
    assert len(places) == 5 * len(asked())
    assert set(places) == set("ABCD")


def test_the_numbers_in_the_questions_are_so():
    text = json.dumps(asked())
    assert 8 * (1_000 + 1_000) == 16_000
    assert "16,000." in text
    assert 7.6 * 2 == 15.2
    assert "7.6 billion weights of two bytes are 15.2 GB" in text
    assert round(8 / 64 + 32 / (64 * 256), 3) == 0.127
    assert 32 / 64 == 0.5
    assert "0.127 bits per weight in place of 0.5" in text
    assert int(100 * wilson_interval(32, 32)[0]) == 89
    assert "89% or more" in text
    qwen, mistral = (kv_cache_bytes(name, 1) for name in ("qwen2.5-7b", "mistral-7b"))
    assert (qwen, mistral) == (28 * 4 * 128 * 2 * 2, 32 * 8 * 128 * 2 * 2)
    assert 2 < mistral / qwen < 2.5
    assert "It has 8 key-value heads in each of 32 layers, Qwen has 4 in each of 28." in text


def of_one_seed(arms) -> list[int]:
    """For each seed: 1 where the interval of rank 64 minus rank 4 on the facts lies above zero, -1 below it, else 0."""
    apart, groups = arms.apart("facts", "rank-64", "rank-4")
    ends = [interval_of_mean(apart[[seed]], groups)[1:] for seed in range(len(apart))]
    return [(low > 0) - (high < 0) for low, high in ends]


def test_what_the_questions_on_lesson_08_say_is_what_the_rows_say():
    text, arms = json.dumps(asked()["08"]), measured_arms()
    assert (of_one_seed(arms).count(1), of_one_seed(arms).count(-1), len(of_one_seed(arms))) == (3, 2, 8)
    assert "Of the lesson's eight seeds three said that rank 64 is better, and two that rank 4 is." in text
    low, high = interval_of_mean(*arms.apart("facts", "rank-64", "rank-4"))[1:]
    assert low < 0 < high
    assert arms.right("facts", "rank-4")[0].shape[1] == 432
    assert "over 432 questions" in text
    at = {rate: 100 * interval_of_mean(*arms.apart("form", "lora", "full", tried_at=rate))[0] for rate in (3e-4, 3e-3)}
    assert -60 < at[3e-4] < -50
    assert 60 < at[3e-3] < 70
    assert "more than 50 points ahead at 0.0003, and more than 60 behind at 0.003" in text
    behind = {
        task: {interval_of_mean(*arms.apart(task, arm, "full"))[2] < 0 for arm in arms.of(task) if arm != "full"}
        for task in arms.tasks
    }
    assert behind == {"form": {False}, "facts": {True}, "messages": {True}}
    assert "On new facts and on messages into JSON, and not on a new form." in text
    nf4 = arms.runs[arms.runs.arm == "nf4"].groupby("task")
    assert (nf4.text_distance_after.mean() > nf4.text_distance_before.mean()).all()
    assert "On other text they ended farther apart on all three tasks." in text


def test_what_the_questions_on_lesson_09_say_is_what_was_measured():
    text, pair = json.dumps(asked()["09"]), measured_two_gpus()
    faster = pair.tokens_per_second["7b-ddp-qkvo"] / pair.tokens_per_second["7b-one-qkvo"]
    assert "copies computed 1.7 times as many tokens a second as one GPU" in text
    assert round(faster, 1) == 1.7
    assert 0.8 < pair.tokens_per_second["7b-split-qkvo"] / pair.tokens_per_second["7b-one-qkvo"] < 1
    assert "Why does a step take about as long as on one GPU?" in text


# --- schedules ----------------------------------------------------------------------------------------------------


def test_there_is_a_schedule_for_an_hour_two_half_a_day_days_evenings_and_each_late_lesson():
    assert [(one.name, one.minutes) for one in schedules()] == [
        ("One hour", 60), ("Two hours", 120), ("Half a day", 210), ("A day", 450), ("Five evenings", 450),
        ("A second day", 450), ("Five more evenings", 450),
        ("An afternoon on your own data", 180), ("Two evenings on your own data", 180),
        ("An afternoon on comparisons", 180), ("Two evenings on comparisons", 180),
        ("An afternoon on two GPUs", 180), ("Two evenings on two GPUs", 180),
    ]  # fmt: skip
    assert [len(one.sessions) for one in schedules()] == [1, 1, 1, 3, 5, 3, 5, 1, 2, 1, 2, 1, 2]


def lessons_of(schedule) -> set[str]:
    """The numbers of the lessons that a schedule goes through."""
    return {words[:2] for words, _ in schedule.runs}


def test_every_lesson_is_taught_in_two_days_with_three_afternoons_and_in_sixteen_evenings():
    by_name = {one.name: lessons_of(one) for one in schedules()}
    every = {lesson.stem[:2] for lesson in LESSONS}
    days = (
        "A day",
        "A second day",
        "An afternoon on your own data",
        "An afternoon on comparisons",
        "An afternoon on two GPUs",
    )
    evenings = (
        "Five evenings", "Five more evenings", "Two evenings on your own data", "Two evenings on comparisons",
        "Two evenings on two GPUs",
    )  # fmt: skip
    assert set().union(*(by_name[name] for name in days)) == every
    assert set().union(*(by_name[name] for name in evenings)) == every


def test_the_sixteen_evenings_teach_every_section_that_is_taught():
    steps = [
        step
        for one in schedules()
        if "vening" in one.name
        for session in one.sessions
        for step in session.steps
        if step.kind == "teach"
    ]
    done = {(step.where[:2], step.what) for step in steps}
    assert len(done) == len(steps), "no section is taught twice"
    for lesson in LESSONS[4:]:
        wanted = {part.heading for part in sections(lesson) if part.kind == "teach" and part.minutes}
        left = {heading for heading in wanted if (lesson.stem[:2], heading) not in done}
        assert left <= LOOKED_UP, f"{lesson.stem}: {left}"


def test_the_minutes_of_every_session_add_up_to_what_it_promises():
    for one in schedules():
        for session in one.sessions:
            assert sum(step.minutes for step in session.steps) == session.minutes, f"{one.name}, {session.name}"
            begins = [step.begin for step in session.steps]
            assert begins == sorted(set(begins)), "no step lasts no time"


def test_a_step_says_which_cells_of_which_lesson():
    for one in schedules():
        for session in one.sessions:
            for step in session.steps:
                if step.kind == "teach":
                    number, first, last = re.fullmatch(r"(\d\d), cells? (\d+)(?: to (\d+))?", step.where).groups()
                    notebook = course.to_notebook(course.find_lesson(number))
                    cells = notebook.cells[int(first) - 1 : int(last or first)]
                    assert any(step.what in cell.source for cell in cells), f"{step.where}: {step.what}"


def test_nobody_teaches_for_more_than_two_hours_without_a_break():
    for one in schedules():
        for session in one.sessions:
            since = 0
            for step in session.steps:
                since = 0 if step.kind == "break" else since + step.minutes
                assert since <= 120, f"{one.name}: {step.what}"


def test_what_is_cut_when_late_is_a_part_of_that_schedule_and_gives_a_tenth_of_its_time():
    for one in schedules():
        steps = {(step.what, step.minutes) for session in one.sessions for step in session.steps}
        assert set(one.cut) <= steps
        assert sum(minutes for _, minutes in one.cut) >= 0.09 * one.minutes


def test_measured_times_come_from_the_records_and_teaching_minutes_say_that_they_are_estimates(
    pages, monkeypatch, tmp_path
):
    page = words_of(pages["schedules.html"])
    assert "estimates: no class was timed yet" in page
    times = json.loads(course.TIMES.read_text(encoding="utf-8"))["lessons"]
    assert f"00 Start here {times['00_start_here']['cpu_time']}" in page
    (tmp_path / "times.json").write_text(json.dumps({"lessons": {"00_start_here": {"cpu_time": "about 7 h"}}}))
    monkeypatch.setattr(course, "TIMES", tmp_path / "times.json")
    assert schedules()[0].runs == [("00 Start here", "about 7 h")]
    assert schedules()[1].runs[1] == ("02 Memory math", "not measured yet")


@pytest.mark.parametrize(
    "line",
    [
        {"lesson": "00", "sections": ["9 Nowhere"]},
        {"lesson": "00", "sections": ["Exercises"]},
        {"lesson": "00", "exercises": [99]},
    ],
)
def test_a_section_that_no_lesson_has_is_one_line(line):
    with pytest.raises(CourseError, match=r"schedules.toml: lesson 00 has no"):
        room._steps(line, 0)


def test_minutes_as_a_clock():
    assert [late(minutes) for minutes in (0, 5, 60, 75, 450)] == ["0:00", "0:05", "1:00", "1:15", "7:30"]


# --- the command --------------------------------------------------------------------------------------------------

REFUSED = """
import sys
for name in ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "papermill", "pandas"):
    sys.modules[name] = None
from helpers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_kit_and_the_page_of_a_class_need_nothing_that_the_lessons_need(tmp_path):
    """README says so: an instructor's own machine installs three packages, and no torch."""
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8").partition("## Teaching it tomorrow")[2]
    assert "-m pip install -c constraints.txt nbconvert jupytext matplotlib\n" in readme
    write_class(tmp_path / "class")
    for words in (["workshop", "--out", str(tmp_path / "kit")], ["class", str(tmp_path / "class")]):
        done = subprocess.run([sys.executable, "-c", REFUSED, *words], capture_output=True, text=True, cwd=COURSE_ROOT)
        assert done.returncode == 0, done.stderr
    made = {file.relative_to(tmp_path / "kit").parts[0] for file in (tmp_path / "kit").rglob("*")}
    assert {"index.html", "learner", "solutions", "slides", "schedules.html"} <= made
    assert "data:image/png" in (tmp_path / "class" / "class.html").read_text(encoding="utf-8")


def test_one_learner_is_not_called_learners(tmp_path, capsys):
    (tmp_path / "ana.json").write_text(json.dumps(doctor_file()))
    (tmp_path / "notes.txt").write_text("no json")
    assert main(["class", str(tmp_path)]) == 0
    assert "1 learner, 1 file not counted: " in capsys.readouterr().out


def test_without_nbconvert_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["workshop", "--out", str(tmp_path)]) == 2
    assert "'.[workshop]'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kit_pages.course, "lessons", lambda: LESSONS[:1])
    assert main(["workshop", "--out", str(tmp_path / "file" / "in")]) == 2
    assert "cannot be written" in capsys.readouterr().err
