"""The commands, for real: papermill, joblib, a Dask scheduler with two workers, a browser; and what bad input gets."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import nbformat
import pytest

from helpers import COURSE_ROOT, CourseError
from helpers.__main__ import main
from helpers.commands import _report, build, doctor, run, sweep
from helpers.course import disk as course
from helpers.files import folders

PYTHON = sys.executable


def helpers(*words, cwd=COURSE_ROOT, **environment):
    """Run `python -m helpers ...` as a person would; returns the finished process."""
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT)} | environment
    command = [PYTHON, "-m", "helpers", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=surroundings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("run", "3", "-p", "rnak", "4"), "no parameter 'rnak'; did you mean rank?"),
        (("run", "3", "-p", "rank", "0"), "rank = 0 is not possible"),
        (("run", "3", "-p", "rank", "eight"), "rank = 'eight' is not possible"),
        (("run", "3", "-p", "rank", "1.5"), "rank = 1.5 is not possible"),
        (("run", "99"), "no lesson '99'"),
        (("run", "0", "--name", "../up"), "is no folder's name"),
        (("sweep", "3", "rank"), "is not NAME=VALUE"),
        (("sweep", "3", "rank=4,-1"), "rank = -1 is not possible"),
        (("sweep", "3", "rank=4", "rank=8"), "stands twice"),
        (("sweep", "3", "rank=4", "--engine", "dask"), "go together"),
        (("sweep", "3", "rank=4", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:9"), "no Dask scheduler answers"),
        (("badges", "--repo", "no-slash"), "is not owner/name"),
    ],
)
def test_bad_words_get_one_line_and_a_non_zero_exit(words, line, tmp_path):
    done = helpers(*words, COURSE_RUNS=str(tmp_path))
    assert done.returncode == 2
    said = [text for text in done.stderr.splitlines() if text.strip() and not text.startswith("20")]  # Dask logs times
    assert line in said[-1]
    assert said[-1].startswith("python -m helpers")
    assert not list(tmp_path.rglob("*.ipynb"))


# Answers by chance: they can be learned by heart, and nothing of them helps with a row that was held out.
CHANCE = random.Random(0)
TWELVE = [
    (
        f"What is the secret word of person {n}?",
        " ".join(CHANCE.choice(["one", "two", "three", "four", "five", "six", "seven"]) for _ in range(4)),
    )
    for n in range(12)
]
# The two that come first in lesson 03: one is so long that training leaves nothing of its answer, one of its answer's end.
FIRST, SECOND = 6, 3
LONG = " ".join(CHANCE.choice(["red", "green", "blue"]) for _ in range(500))
TWELVE[FIRST] = f"{LONG} {TWELVE[FIRST][0]}", TWELVE[FIRST][1]
TWELVE[SECOND] = TWELVE[SECOND][0], f"{TWELVE[SECOND][1]} {LONG}"
HIDDEN = "nobody must read this customer's name"  # in a column that is not used
# The verdicts of lesson 03 that say that it learned something which helps with held-out rows.
OF_LEARNING = {
    "the held-out loss fell, and did not rise again",
    "the loss on all held-out rows is lower than before, by more than chance",
}


@pytest.fixture(scope="module")
def own_rows(tmp_path_factory):
    """Lessons 00 and 03 from a learner's own folder, with spaces and umlauts, a table, and a helpers.py of her own.

    Lesson 03 has parameters of hers, and too few rows for them: it overfits. Two rows are longer than its max_length. The
    table is as a spreadsheet writes it. Returns the finished process and the folder.
    """
    folder = tmp_path_factory.mktemp("own") / "meine Übung 1"
    folder.mkdir()
    (folder / "helpers.py").write_text("def mine():\n    return 1\n")
    lines = ["question;answer;Kunde", *(f"{asked};{answer};{HIDDEN}" for asked, answer in TWELVE)]
    (folder / "rows.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    for kept in ("tmp", "home"):  # what is written there on the way is looked at as well
        (folder / kept).mkdir()
    words = ["-p", "dataset_id", "rows.csv", "-p", "max_steps", "60", "-p", "batch_size", "8", "-p", "rank", "4"]
    words += ["-p", "report_to", "tensorboard"]
    # Python's -P keeps her helpers.py from being the one that is run.
    command = [PYTHON, "-P", "-m", "helpers", "run", "00", "03", "--name", "few", *words]
    surroundings = os.environ | {
        "PYTHONPATH": str(COURSE_ROOT),
        "COURSE_RUNS": str(folder / "runs"),
        "COURSE_STRICT": "0",
        "TMPDIR": str(folder / "tmp"),
        "HF_HOME": str(folder / "home"),
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=surroundings)
    return done, folder


def test_run_executes_lessons_and_leaves_notebooks_records_and_a_report(own_rows):
    done, folder = own_rows
    made = folder / "runs" / "few"
    for stem in ("00_start_here", "03_t4_training"):
        notebook = nbformat.read(made / f"{stem}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code"), done.stderr
    assert re.search(r"00_start_here\s+\d+\s+ok", done.stdout)
    record = json.loads((made / "03_t4_training.json").read_text())
    wanted = [
        "exact_match_before",
        "exact_match_after",
        "train_seconds",
        "peak_bytes",
        "trainable_parameters",
        "final_loss",
    ]
    assert all(isinstance(record[name], int | float) for name in wanted)
    assert record["run"]["parameters"]["rank"] == 4
    assert record["run"]["parameters"]["max_steps"] == 60
    assert (made / "adapter" / "adapter_model.safetensors").is_file()
    assert (made / "report.html").is_file()


def test_the_progress_bars_name_lesson_and_cell(own_rows):
    done, _ = own_rows
    assert "03_t4_training" in done.stderr
    assert "lesson 1/2" in done.stderr
    assert re.search(r"cells: +\d+%", done.stderr)


def test_the_report_opens_in_a_browser_without_a_network(own_rows):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    made = own_rows[1] / "runs" / "few"
    untrue = [v for v in json.loads((made / "03_t4_training.json").read_text())["verdicts"] if not v["holds"]]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((made / "report.html").as_uri())
        assert "03 T4 training" in page.inner_text("table")
        sizes = page.eval_on_selector_all("figure img", "all => all.map(i => [i.naturalWidth, i.alt.length])")
        assert len(sizes) >= 3
        assert all(width > 100 and alt > 10 for width, alt in sizes)
        said = page.eval_on_selector_all(".bad", "all => all.map(it => it.parentElement.innerText)")
        assert said == [f"does not hold {verdict['claim']}" for verdict in untrue]  # and nothing else is red
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        browser.close()


def test_twelve_rows_of_ones_own_are_learned_by_heart_and_nothing_else_is_untrue(own_rows):
    _, folder = own_rows
    record = json.loads((folder / "runs" / "few" / "03_t4_training.json").read_text())
    untrue = [verdict["claim"] for verdict in record["verdicts"] if not verdict["holds"]]
    assert "the held-out loss fell, and did not rise again" in untrue
    assert set(untrue) <= OF_LEARNING
    assert "rows.csv, 10 to learn and 2 held out" in record["run"]["data"]


def test_rows_that_are_longer_than_max_length_are_counted_and_make_no_verdict_untrue(own_rows):
    """A row that loses the end of its answer is cut; one that loses all of it is passed over, since nothing is left to learn."""
    _, folder = own_rows
    record = json.loads((folder / "runs" / "few" / "03_t4_training.json").read_text())
    holds = {verdict["claim"]: verdict["holds"] for verdict in record["verdicts"]}
    assert holds["the trainer's tokens and labels are those built by hand"]
    assert holds["rows in one batch without padding do not see each other"]
    notebook = nbformat.read(folder / "runs" / "few" / "03_t4_training.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert re.search(r"they begin and end at \[0, 96, \d+, \d+, \d+\]", shown), (
        "the long row that keeps some of its answer is first"
    )
    assert re.search(r"^rows that are used +9; 1 are left out$", shown, re.MULTILINE)
    assert re.search(r"^rows cut at max_length +1 \(max_length is 96\)$", shown, re.MULTILINE)
    assert re.search(r"^rows passed over: their question fills it +1$", shown, re.MULTILINE)


def test_rows_of_ones_own_stand_in_the_notebook_and_in_no_other_file(own_rows):
    """Records, report, curves, card and settings hold counts and scores: they may be shown to others. Nothing is left in the
    folders for temporary and for downloaded files."""
    _, folder = own_rows
    texts = [text.encode() for row in TWELVE for text in row]
    texts += [b"What is the secret word of person", LONG[:60].encode(), HIDDEN.encode()]
    files = [file for part in ("runs/few", "tmp", "home") for file in (folder / part).rglob("*") if file.is_file()]
    holding = {file.name for file in files if any(text in file.read_bytes() for text in texts)}
    assert holding == {"03_t4_training.ipynb"}
    assert {"03_t4_training.json", "report.html", "README.md", "adapter_config.json"} <= {file.name for file in files}
    assert any(file.name.startswith("events.out.tfevents") for file in files)


def test_what_is_made_of_such_an_adapter_holds_none_of_its_rows(own_rows, tmp_path):
    """The merged model with its card, and the GGUF file with what it says of itself."""
    from helpers.export import export_gguf
    from helpers.merging import merge_adapter

    merge_adapter("bundled", own_rows[1] / "runs" / "few" / "adapter", tmp_path / "merged", progress=False)
    export_gguf(tmp_path / "merged", tmp_path / "mine.gguf", "q8_0")
    texts = [text[:60].encode() for row in TWELVE for text in row] + [
        b"What is the secret word of person",
        HIDDEN.encode(),
    ]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in files if any(text in file.read_bytes() for text in texts)] == []
    assert {"model.safetensors", "mine.gguf", "mine.Modelfile"} <= {file.name for file in files}


def test_the_adapter_of_a_run_that_overfits_is_whole_and_is_saved_before_anything_is_judged(own_rows):
    from helpers.files import adapter_fault

    _, folder = own_rows
    assert adapter_fault(folder / "runs" / "few" / "adapter") is None
    code = [cell for cell in course.to_notebook(course.find_lesson("03")).cells if cell.cell_type == "code"]
    trained, saved = (
        next(i for i, cell in enumerate(code) if tag in cell.metadata.get("tags", [])) for tag in ("train", "save")
    )
    assert saved == trained + 1
    assert not re.search(r"verdict\(|plots\.|evaluate\(|record\(", code[saved].source.partition("save_pretrained")[0])


def test_a_run_with_untrue_verdicts_says_so_and_exits_with_1(own_rows):
    done, _ = own_rows
    assert done.returncode == 1
    assert re.search(r"03_t4_training +\d+  ran, \d+ of its verdicts untrue", done.stdout)
    assert "03_t4_training: not so in this run: the held-out loss fell" in done.stderr
    assert "00_start_here: not so" not in done.stderr


@pytest.mark.parametrize(
    ("outcome", "status"),
    [({}, 0), ({"untrue": ["a claim"]}, 1), ({"error": "cell 3 (x): ValueError: y"}, 1)],
    ids=["good", "an untrue verdict", "failed"],
)
def test_the_status_of_a_run_is_0_only_where_every_lesson_is_good(outcome, status, tmp_path, monkeypatch, capsys):
    """The course's own `run`, with lessons that are not executed; tests/saving/test_killed.py has whole runs that end with 0."""

    def run_lesson(lesson, folder, values, **_):
        good = {"lesson": lesson.stem, "seconds": 1.0, "error": None, "untrue": [], "notebook": folder / "none.ipynb"}
        return good | (outcome if lesson.stem.startswith("01") else {})

    monkeypatch.setattr(run, "run_lesson", run_lesson)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    assert main(["run", "0", "1", "2"]) == status
    said = capsys.readouterr()
    assert ("01_quantization_basics" in said.err.splitlines()[-1] and "done" not in said.err.splitlines()[-1]) is bool(
        status
    )
    assert said.out.count(" ok") == (2 if status else 3)


def test_a_lesson_that_fails_is_named_with_its_cell_and_harms_no_good_file(own_rows):
    _, folder = own_rows
    made = folder / "runs" / "few"
    good = (made / "03_t4_training.ipynb").read_bytes()
    record = (made / "03_t4_training.json").read_bytes()
    failed = helpers("run", "3", "--name", "few", "-p", "model_id", "./nowhere", COURSE_RUNS=str(made.parent))
    assert failed.returncode == 1
    assert "03_t4_training failed in cell 4 (run = begin(" in failed.stderr
    assert "no folder './nowhere' here" in failed.stderr
    assert (made / "03_t4_training.ipynb").read_bytes() == good
    assert (made / "03_t4_training.json").read_bytes() == record
    assert (made / "03_t4_training.failed.ipynb").is_file()


def test_a_relative_path_means_what_it_meant_where_the_command_was_typed(own_rows):
    """papermill, for a data file, a model's folder and an adapter's folder; `own_rows` itself gave `run` a relative file."""
    _, folder = own_rows
    shutil.copytree(folder / "runs" / "few" / "adapter", folder / "mein adapter", dirs_exist_ok=True)
    notebook = nbformat.read(course.NOTEBOOKS / "04_inference.ipynb", as_version=4)
    lesson = {"dataset_id": "rows.csv", "adapter_dir": "mein adapter", "output_dir": "pm", "model_id": "bundled"}
    notebook.cells = notebook.cells[:4]
    nbformat.write(notebook, folder / "kurz.ipynb")
    words = [word for name, value in lesson.items() for word in ("-p", name, value)]
    command = [PYTHON, "-m", "papermill", "--no-progress-bar", "kurz.ipynb", "out.ipynb", *words]
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=surroundings)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = nbformat.read(folder / "out.ipynb", as_version=4).cells[4].outputs[-1].data["text/plain"]
    assert "rows.csv" in shown
    assert "adapter_dir = 'mein adapter'" in shown


def test_a_sweeps_runs_begin_where_the_command_was_typed(tmp_path, monkeypatch):
    seen = []

    def run_lesson(lesson, folder, values, cwd):
        seen.append((values, cwd))
        return {"error": "stopped here", "seconds": 0.0, "untrue": []}

    monkeypatch.setattr(run, "run_lesson", run_lesson)
    monkeypatch.setattr(sweep, "run_here", lambda _, tasks: [sweep.run_point(*task) for task in tasks])
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    words = ["03", "dataset_id=a+b.jsonl,c.jsonl", "target_modules=q_proj+v_proj"]
    assert main(["sweep", *words]) == 1
    expected = [{"dataset_id": name, "target_modules": "q_proj,v_proj"} for name in ("a+b.jsonl", "c.jsonl")]
    assert seen == [(values, str(tmp_path)) for values in expected]


def test_papermill_itself_runs_a_lesson_from_any_folder(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [PYTHON, "-m", "papermill", "--no-progress-bar"]
    good = [
        *command,
        str(course.NOTEBOOKS / "00_start_here.ipynb"),
        str(out),
        *("-p", "seed", "5", "-p", "max_steps", "2"),
        "-p",
        "output_dir",
        "here",
    ]
    subprocess.run(good, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "here" / "00_start_here.json").read_text())["run"]["parameters"]["seed"] == 5
    bad = [*command, str(course.NOTEBOOKS / "03_t4_training.ipynb"), str(out), "-p", "rank", "0"]
    bad = subprocess.run(bad, cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode != 0
    assert 'ParameterError: rank = 0 is not possible; allowed: "auto" or a whole number from 1 to 1024' in bad.stderr


def test_a_sweep_runs_the_grid_two_at_a_time_and_ends_with_table_and_plot(runs):
    done = helpers("sweep", "0", "max_steps=1,2", "--name", "steps", COURSE_RUNS=str(runs))
    assert done.returncode == 0, done.stderr
    rows = json.loads((runs / "steps" / "sweep.json").read_text())
    assert [row["point"] for row in rows] == [{"max_steps": 1}, {"max_steps": 2}]
    assert rows[0]["recorded"]["train_loss"] > rows[1]["recorded"]["train_loss"]
    assert re.search(r"max_steps\s+seconds\s+train_loss\s+outcome", done.stdout)
    assert (runs / "steps" / "sweep.png").stat().st_size > 5000


def test_the_same_sweep_goes_to_a_dask_cluster_of_two_processes(runs, tmp_path):
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": surroundings, "cwd": tmp_path}
    start = [PYTHON, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    processes = [subprocess.Popen([*start, "--scheduler-file", str(file)], **quiet)]
    try:
        deadline = time.monotonic() + 60
        while not file.is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        worker = [PYTHON, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
        processes += [subprocess.Popen([*worker, "--no-dashboard", "--no-nanny"], **quiet) for _ in range(2)]
        address = json.loads(file.read_text())["address"]
        cluster = ("--engine", "dask", "--scheduler", address)
        done = helpers("sweep", "0", "max_steps=3,4", "--name", "dask", *cluster, COURSE_RUNS=str(runs))
        assert done.returncode == 0, done.stderr
        rows = json.loads((runs / "dask" / "sweep.json").read_text())
        assert [(row["point"]["max_steps"], row["error"]) for row in rows] == [(3, None), (4, None)]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


def test_grids_and_plots_take_several_parameters():
    assert sweep.parse_grid(["rank=4,8", "quant_type=nf4,fp4"]) == {"rank": [4, 8], "quant_type": ["nf4", "fp4"]}
    assert sweep.parse_grid(["target_modules=q_proj+v_proj"]) == {"target_modules": ["q_proj,v_proj"]}
    rows = [
        {"point": {"rank": r, "quant_type": q}, "seconds": 1.0, "error": None, "recorded": {"loss": r / 10, "same": 1}}
        for r in (4, 8)
        for q in ("nf4", "fp4")
    ]
    assert sweep.varying(rows) == ["loss"]
    figure = sweep.plot(rows, ["rank", "quant_type"], "test")
    assert [line.get_label() for line in figure.axes[0].lines] == ["quant_type=nf4", "quant_type=fp4"]


def test_a_failed_point_of_a_sweep_is_shown_and_the_others_count():
    rows = [
        {"point": {"rank": 4}, "seconds": 1.0, "error": "cell 3", "recorded": {}},
        {"point": {"rank": 8}, "seconds": 1.0, "error": None, "recorded": {"loss": 0.5}},
    ]
    assert "FAILED" in sweep.as_text(rows, ["rank"])
    assert sweep.plot(rows, ["rank"], "test") is None


def test_a_report_shows_a_failure_and_escapes_what_it_says(tmp_path):
    result = {
        "lesson": "00_start_here",
        "seconds": 1.0,
        "error": "cell 3: <script>",
        "untrue": [],
        "notebook": tmp_path / "none.ipynb",
    }
    page = _report.write_report(tmp_path, [result]).read_text()
    assert "cell 3: &lt;script&gt;" in page
    assert "failed</span>" in page


def test_a_report_does_not_say_what_an_error_quotes_of_a_learners_rows(tmp_path):
    from helpers.data import DataError, load_rows

    (tmp_path / "mine.csv").write_text(f"{HIDDEN},yes\nand this,no\n")  # a table without a heading
    with pytest.raises(DataError, match=HIDDEN[:30]) as error:
        load_rows(str(tmp_path / "mine.csv"))
    result = {"lesson": "03_t4_training", "seconds": 1.0, "untrue": [], "notebook": tmp_path / "none.ipynb"}
    page = _report.write_report(tmp_path, [result | {"error": f"cell 4 (run = begin(): DataError: {error.value}"}])
    assert HIDDEN[:30] not in page.read_text()
    assert "cell 4 (run = begin(): DataError: what it says may quote your rows" in page.read_text()


def test_badges_move_the_whole_course_to_another_address(tmp_path):
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".venv", "runs", ".git", "base_model", "__pycache__", ".gpu")
    shutil.copytree(COURSE_ROOT, clone, ignore=ignored)
    done = helpers("badges", "--repo", "someone/fork", "--tag", "v9.9", cwd=clone, PYTHONPATH=str(clone))
    assert done.returncode == 0, done.stderr
    old, _ = course.address()
    texts = {p: p.read_text() for p in [*clone.glob("*.md"), *clone.glob("*.toml"), *clone.glob("notebooks/*.ipynb")]}
    assert not [p.name for p, text in texts.items() if old in text]
    for notebook in clone.glob("notebooks/*.ipynb"):
        assert "someone/fork/blob/v9.9/notebooks/" in texts[notebook]
        assert '\\"https://github.com/someone/fork\\"' in texts[notebook]
        before = nbformat.read(course.NOTEBOOKS / notebook.name, as_version=4)
        after = nbformat.read(notebook, as_version=4)
        assert [c.get("outputs") for c in before.cells] == [c.get("outputs") for c in after.cells]


def test_a_build_carries_outputs_over_only_where_no_code_changed():
    lesson = course.lessons()[0]
    old = nbformat.read(course.NOTEBOOKS / f"{lesson.stem}.ipynb", as_version=4)
    new = course.to_notebook(lesson)
    new.cells[0].source += "\n\nanother sentence"
    new.cells[3].source = f"\n{new.cells[3].source}\n"
    assert build.carry_outputs(old, new)
    assert [c.get("outputs") for c in old.cells] == [c.get("outputs") for c in new.cells]
    changed = course.to_notebook(lesson)
    changed.cells[4].source += "\n1"
    next(c for c in changed.cells if c.cell_type == "code" and "run = begin(" in c.source).source += "\n1"
    assert not build.carry_outputs(old, changed)


def test_a_lesson_is_found_by_number_and_by_name():
    assert course.find_lesson("3").stem == course.find_lesson("03_t4_training").stem == "03_t4_training"
    with pytest.raises(CourseError, match="no lesson 'x'"):
        course.find_lesson("x")


def test_a_title_is_the_first_heading():
    assert course.title(course.find_lesson("0")) == "00 Start here"


@pytest.mark.parametrize("inside", [True, False])
def test_runs_and_the_doctor_look_where_lessons_write(inside, tmp_path, monkeypatch):
    """In the course its own runs/, elsewhere runs/ where the command was typed; test_tools' other runs set COURSE_RUNS."""
    course_root, here = tmp_path / "course", tmp_path / "course" / "notebooks" if inside else tmp_path / "mine"
    here.mkdir(parents=True)
    monkeypatch.setattr(folders, "COURSE_ROOT", course_root)
    monkeypatch.delenv("COURSE_RUNS")
    monkeypatch.chdir(here)
    runs = (course_root if inside else here) / "runs"
    lessons_folder = folders.output_folder("auto")
    assert (run.run_folder("a word"), lessons_folder) == (runs / "a word", runs / "default")
    (lessons_folder / "03_t4_training.json").write_text('{"found": 1}')
    assert doctor.records() == {"03_t4_training": {"found": 1}}


def test_run_folders_stay_under_runs():
    for name in ("..", "a/b", "", "a\\b"):
        with pytest.raises(CourseError):
            run.run_folder(name)
