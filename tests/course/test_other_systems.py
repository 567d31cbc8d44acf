"""What Windows and macOS lack must not stop a lesson: modules that only POSIX has, and files that two processes hold open.

Nobody has run the course there; here its own modules are refused what those systems do not have.
"""

import ast
import os
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from tests.places import place as places

POSIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
MODULES = sorted((COURSE_ROOT / "helpers").rglob("*.py"))

# Runs in the kernel before any cell: an import of a POSIX module by one of the course's own modules fails, as elsewhere.
REFUSE = f"""
def install():
    import builtins, os

    given = builtins.__import__

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        if name.split(".")[0] in {POSIX!r} and (globals or {{}}).get("__name__", "").split(".")[0] == "helpers":
            raise ImportError("No module named " + repr(name), name=name)
        return given(name, globals, locals, fromlist, level)

    builtins.__import__ = refuse
    os.__dict__.pop("posix_fadvise", None)


install()
"""


def imports_of(tree) -> list[tuple[str, bool]]:
    """(module, whether an ImportError of it is caught) of each import statement."""
    caught = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(h.type) for h in node.handlers if h.type):
            caught |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [(name.split(".")[0], id(node) in caught) for name in names]
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(COURSE_ROOT)))
def test_no_helper_needs_a_module_that_only_posix_has(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert [name for name, caught in imports_of(tree) if name in POSIX and not caught] == []
    # An open NamedTemporaryFile cannot be opened a second time on Windows; a file in a TemporaryDirectory can.
    assert "NamedTemporaryFile" not in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_a_planted_import_is_noticed():
    assert imports_of(ast.parse("import fcntl")) == [("fcntl", False)]
    assert imports_of(ast.parse("def f():\n    import resource.x")) == [("resource", False)]
    assert imports_of(ast.parse("try:\n    import resource\nexcept ImportError:\n    pass")) == [("resource", True)]


@pytest.mark.parametrize("stem", ["00_start_here", "01_quantization_basics"])
def test_lessons_00_and_01_run_without_what_only_posix_has(tmp_path, stem):
    (tmp_path / "content").mkdir()
    (tmp_path / "refuse.py").write_text(REFUSE)
    notebook = nbformat.read(course.NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    probe = "from helpers import machine\ntry:\n    exec('import fcntl', vars(machine))\n    print('found')\n"
    probe += "except ImportError:\n    print('refused')"
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    variables = {"PYTHONPATH": str(COURSE_ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    at_start = f"exec(open({str(tmp_path / 'refuse.py')!r}).read())"
    found = places.run(notebook, tmp_path / "content", Path(sys.prefix), os.environ | variables, at_start)
    assert [str(failure) for failure in found] == []
    assert notebook.cells[-1].outputs[0].text == "refused\n"  # the refusal was really at work
