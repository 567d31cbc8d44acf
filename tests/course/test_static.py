"""What can be known without running a lesson: APIs that still exist, requirements that are used, links that lead somewhere."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys

import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from helpers.lesson import parameters
from helpers.packages.lists import _lines, _name, pinned_versions

LESSONS = course.lessons()
LIBRARIES = ("transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "huggingface_hub", "safetensors")


def code_of(lesson) -> ast.Module:
    return ast.parse(lesson.read_text(encoding="utf-8"))


def imported_from_libraries(tree) -> dict:
    """Name in the lesson -> the object it is, for `from library import name`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LIBRARIES:
            for alias in node.names:
                found[alias.asname or alias.name] = getattr(importlib.import_module(node.module), alias.name)
    return found


def keyword_faults(tree) -> list[str]:
    """Keywords passed by name to a library's class or function that the installed version does not have."""
    known, faults = imported_from_libraries(tree), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in known:
            continue
        target = known[node.func.id]
        signature = inspect.signature(target).parameters
        parents = [c for c in getattr(target, "__mro__", ()) if dataclasses.is_dataclass(c)]  # TRL overrides some help
        for keyword in node.keywords:
            open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
            if keyword.arg is not None and keyword.arg not in signature and not open_ended:  # None stands for **more
                faults.append(f"{node.func.id} has no {keyword.arg}")
            found = [c.__dataclass_fields__.get(keyword.arg) for c in parents]
            about = " ".join(f.metadata.get("help", "") for f in found if f)
            is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is None
            if "deprecated" in about.lower() and not is_off:
                faults.append(f"{node.func.id}({keyword.arg}=) is deprecated: {about[:80]}")
    return faults


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_every_keyword_that_a_lesson_passes_exists_and_is_not_deprecated(lesson):
    assert keyword_faults(code_of(lesson)) == []


@pytest.mark.parametrize(
    "call",
    [
        "from trl import SFTConfig\nSFTConfig(max_seq_length=512)",
        "from trl import SFTTrainer\nSFTTrainer(model=m, tokenizer=t)",
        "from peft import LoraConfig\nLoraConfig(rank=8)",
        "from trl import SFTConfig\nSFTConfig(gradient_checkpointing=True)",
    ],
)
def test_a_renamed_keyword_is_noticed(call):
    assert keyword_faults(ast.parse(call)) != []


def test_every_requirement_is_imported_somewhere():
    modules = {"nvidia-ml-py": "pynvml", "huggingface-hub": "huggingface_hub"}
    files = [
        *COURSE_ROOT.glob("lessons/*.py"),
        *COURSE_ROOT.glob("helpers/**/*.py"),
        *COURSE_ROOT.glob("tests/**/*.py"),
    ]
    files += [*COURSE_ROOT.glob("assets/*.py")]
    text = "\n".join(f.read_text(encoding="utf-8") for f in files)
    # Three are used by what runs the notebooks, not by an import.
    text += "import nbval\n" if "--nbval" in (COURSE_ROOT / "Makefile").read_text() else ""
    text += "import ipykernel\n" if course.KERNELSPEC["name"] == "python3" else ""
    for line in _lines("requirements.txt"):
        module = modules.get(_name(line), _name(line))
        assert re.search(rf"^\s*(import|from) {module}\b", text, re.MULTILINE), f"{line} is never imported"


def test_the_constraints_meet_the_requirements():
    from packaging.requirements import Requirement

    pinned = pinned_versions()
    for line in _lines("requirements.txt"):
        assert Requirement(line).specifier.contains(pinned[_name(line)]), line


def test_every_parameter_of_a_lesson_has_a_rule_and_a_default_that_keeps_it():
    for lesson in LESSONS:
        values = course.lesson_parameters(lesson)
        assert "output_dir" in values, lesson.stem
        parameters.validate(values)


def test_no_lesson_trusts_remote_code_or_unpickles():
    for file in [*LESSONS, *COURSE_ROOT.glob("helpers/**/*.py"), *COURSE_ROOT.glob("assets/*.py")]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"trust_remote_code\s*=\s*True|\bpickle\.load|torch\.load\(", text), file.name


def test_the_address_stands_in_pyproject_alone_and_follows_from_there():
    repository, tag = course.address()
    for file in [*LESSONS, *COURSE_ROOT.glob("helpers/**/*.py"), COURSE_ROOT / "Makefile"]:
        assert repository not in file.read_text(encoding="utf-8"), f"{file.name} holds the address"
    badges = (COURSE_ROOT / "colab_badges.md").read_text(encoding="utf-8")
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    for lesson in LESSONS:
        assert course.badges(lesson.stem) in badges
        assert f"{repository}/blob/{tag}/notebooks/{lesson.stem}.ipynb" in readme


def test_links_between_files_lead_somewhere():
    for folder, files in {
        "notebooks": LESSONS,
        ".": [COURSE_ROOT / "README.md", COURSE_ROOT / "CONTRIBUTING.md"],
    }.items():
        for file in files:
            for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", file.read_text(encoding="utf-8")):
                assert (COURSE_ROOT / folder / target).exists(), f"{file.name} links to {target}"


def test_the_last_cell_of_each_lesson_but_the_last_links_to_the_next():
    for lesson, following in zip(LESSONS, LESSONS[1:], strict=False):
        assert f"]({following.stem}.ipynb)" in course.to_notebook(lesson).cells[-1].source


def test_prose_of_lessons_has_no_cell_too_long_to_read():
    for lesson in LESSONS:
        for cell in course.to_notebook(lesson).cells:
            lines = [line for line in cell.source.splitlines() if line.strip()]
            limit = 45 if cell.cell_type == "code" else 40  # SFTConfig's list of arguments is the longest
            assert len(lines) <= limit, f"{lesson.stem}: {cell.source[:60]!r} has {len(lines)} lines"


def test_importing_helpers_and_listing_commands_imports_nothing_heavy():
    code = "import sys, helpers.__main__ as m; m.main([]); print([n for n in ('torch', 'peft') if n in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=COURSE_ROOT
    ).stdout
    assert out.strip().endswith("[]")
    for tool in (COURSE_ROOT / "helpers" / "commands").glob("[a-z]*.py"):
        assert tool.stem in out


def test_no_file_of_the_project_names_a_machine_it_was_made_on():
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=COURSE_ROOT, check=True
    ).stdout.split()
    for name in tracked:
        if not name.endswith((".safetensors", ".ipynb")) and name != "tests/course/test_notebooks.py":
            text = (COURSE_ROOT / name).read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"(?<![\w.])/(home|root|work)/\w", text), name
