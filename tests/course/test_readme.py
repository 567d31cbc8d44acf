"""Every command in the README works as it is written there: it is parsed, and what is quick is run."""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from helpers import COURSE_ROOT
from helpers.__main__ import FOLDER, Parser
from helpers.commands import run, sweep
from helpers.course import disk as course
from helpers.lesson import parameters

README = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
BIN = ".venv/bin/"


def commands(text: str) -> list[str]:
    """The indented lines, without what stands after a # in them."""
    return [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines() if re.match(r"    \S", line)]


COMMANDS = commands(README)
WITHOUT_MAKE = [line for line in COMMANDS if not line.startswith("make ")]


def fault(command: str) -> str:
    """What is wrong with a command of the README; "" if nothing is."""
    words = shlex.split(re.sub(r"[<>] *\S+", "", command))
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (COURSE_ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        given = [word.removeprefix("ARGS=") for word in words[2:]]
        return "" if words[1] in targets and all((COURSE_ROOT / path).exists() for path in given) else "no such target"
    if words[:4] == ["python3", "-m", "venv", ".venv"]:
        return ""
    if words[0] == "git":
        return (
            ""
            if words[1] in ("commit", "tag", "push") and course.address()[1] in " ".join(words)
            else "no such release"
        )
    if re.fullmatch(r"COURSE_[A-Z]+=\d", words[0]):  # a variable that the course's own code reads
        files = [COURSE_ROOT / "conftest.py", *(COURSE_ROOT / "helpers").rglob("*.py")]
        named = any(words[0].partition("=")[0] in file.read_text(encoding="utf-8") for file in files)
        return fault(shlex.join(words[1:])) if named else "nobody reads this variable"
    if not words[0].startswith(BIN):
        return f"{words[0]} is not in {BIN}"
    program, rest = words[0].removeprefix(BIN), words[1:]
    if (program, rest[:2]) == ("python", ["-m", "helpers"]):
        return fault_of_command(rest[2], rest[3:])
    if (program, rest[:2]) == ("python", ["-m", "pip"]):
        return fault_of_pip(rest[2:])
    if (program, rest[:2]) == ("python", ["-m", "pytest"]):
        return (
            ""
            if all((COURSE_ROOT / word).exists() for word in rest[2:] if not word.startswith("-"))
            else "no such file"
        )
    if program == "papermill":
        given = dict(zip(rest[3::3], map(run.parse_value, rest[4::3]), strict=True))
        lesson = course.find_lesson(rest[0].removeprefix("notebooks/").removesuffix(".ipynb"))
        parameters.validate(given, set(course.lesson_parameters(lesson)))
        return "" if (COURSE_ROOT / rest[0]).is_file() and set(rest[2::3]) == {"-p"} else "no such notebook"
    if program == "jupyter":
        return "" if (COURSE_ROOT / rest[1]).is_dir() else "no such folder"
    return f"what is {program}?"


def fault_of_command(name: str, words: list[str]) -> str:
    if not (FOLDER / f"{name}.py").is_file():
        return f"no command {name}"
    tool = __import__(f"helpers.commands.{name}", fromlist=["main"])
    parser = Parser(prog=name)
    tool.add_arguments(parser)
    arguments = parser.parse_args(words)
    if name == "run":
        run.check_parameters(
            list(map(course.find_lesson, arguments.lessons)), {k: run.parse_value(v) for k, v in arguments.p}
        )
    if name == "sweep":
        lesson, grid = course.find_lesson(arguments.lesson), sweep.parse_grid(arguments.grid)
        for key, values in grid.items():
            run.check_parameters([lesson], {key: values[0]})
    return ""


def fault_of_pip(words: list[str]) -> str:
    pinned = (COURSE_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    extras = tomllib.loads((COURSE_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words[1:]:
        if word.startswith(".["):
            if word[2:-1] not in extras["optional-dependencies"]:
                return f"no extra {word}"
        elif "==" in word and word not in pinned:
            return f"{word} is not what constraints.txt has"
        elif word == "jupyterlab" and not any(line.startswith("jupyterlab==") for line in pinned):
            return "jupyterlab is not among the constraints"
    return ""


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_exists_with_these_words(command):
    assert fault(command) == ""


def test_the_readme_has_commands_of_every_kind_and_tells_each_once():
    assert len(COMMANDS) > 12
    assert len(set(COMMANDS)) == len(COMMANDS)
    told = [line for line in COMMANDS if "doctor" in line]
    assert [line.split("helpers ")[1] for line in told] == ["doctor", "doctor --json > NAME.json"]


@pytest.mark.parametrize(
    "wrong",
    ["make everything", ".venv/bin/python -m helpers doctr", ".venv/bin/python -m helpers run 03 -p rank 0"]
    + [".venv/bin/python -m helpers memory predict mistral-7b --gpuu t4", "papermill notebooks/03_t4_training.ipynb out.ipynb"]
    + [".venv/bin/papermill notebooks/03_t4_training.ipynb out.ipynb -p rnak 4", ".venv/bin/python -m pip install torch==1.0"]
    + [".venv/bin/python -m pytest --nbval notebooks/07_nothing.ipynb", ".venv/bin/python -m helpers sweep 03 rank"],
)  # fmt: skip
def test_a_wrong_command_is_noticed(wrong):
    try:
        noticed = fault(wrong)
    except (Exception, SystemExit) as error:
        noticed = str(error) or type(error).__name__
    assert noticed


@pytest.mark.parametrize("command", [line for line in WITHOUT_MAKE if re.search(r"helpers (memory|explain)", line)])
def test_what_is_quick_is_run(command, tmp_path):
    (tmp_path / "log.txt").write_text("OSError: [Errno 28] No space left on device\n")
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT)}
    command = command.replace(f"{BIN}python", shlex.quote(sys.executable))
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=surroundings)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("GiB|disk is full", done.stdout)


def test_the_figure_is_the_one_that_lesson_00_shows():
    from helpers.commands.build import readme_picture

    (shown,) = re.findall(r"!\[.{20,}\]\((\S+\.png)\)", README)
    assert (COURSE_ROOT / shown).read_bytes() == readme_picture()


def test_every_preset_of_a_model_is_named():
    from helpers.models import PRESETS

    assert [name for name in PRESETS if f"`{name}`" not in README] == []
