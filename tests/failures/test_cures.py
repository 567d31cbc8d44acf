"""The cures of the table: code in them can be pasted after lesson 00's plain script, and what needs the course says so."""

import ast
import builtins
import importlib
import inspect
import pkgutil
import re

import pytest

import helpers
from helpers.course import NOTEBOOKS, read_notebook
from helpers.failures import FAILURES, Known

# What begins a line for a terminal, or for the magic of a notebook.
COMMANDS = ("python ", "%pip", "pip ", "hf ", "accelerate ", "jupyter ", "git ")
YOURS = {"folder", "file", "name", "text", "texts", "value", "inputs"}  # stand for something of the reader's
ROOMS = [room.name for room in pkgutil.iter_modules(helpers.__path__) if room.ispkg and room.name != "commands"]
# Public names of the course that are no ordinary word.
OF_THE_COURSE = {name for room in ROOMS for name in importlib.import_module(f"helpers.{room}").__all__ if "_" in name}


def bound(source: str) -> set[str]:
    """The names that a piece of code makes: by import, assignment, definition, or as a parameter."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
              for alias in node.names}  # fmt: skip
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def used(source: str) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def plain_script() -> str:
    cells = read_notebook(NOTEBOOKS / "00_start_here.ipynb").cells
    return "\n".join(cell.source for cell in cells if "copy" in cell.metadata.get("tags", []))


SCRIPT = bound(plain_script()) | {"base", "data", "adapter", "steps", "rate", "seed"}


def code_in(cure: str) -> list[str]:
    """The pieces of Python between backticks, with a name put in where the message's words go."""
    pieces = [re.sub(r"\{(saved|here|where)\}", "seed", piece) for piece in cure.split("`")[1::2]]
    return [piece for piece in pieces if re.search(r"[\s(\[]", piece) and not piece.startswith(COMMANDS)]


def faults_of(cure: str) -> list[str]:
    """What keeps a reader from pasting what a cure says."""
    found = []
    for outside in cure.split("`")[::2]:
        found += [f"a call that is not marked as code: {call}" for call in re.findall(r"[\w.]*\w\([^)]*\)?", outside)]
    brought: set[str] = set()
    for piece in code_in(cure):
        try:
            brought |= bound(piece)
        except SyntaxError as problem:
            return [*found, f"not Python: {piece} ({problem.msg})"]
    for piece in code_in(cure):
        unknown = used(piece) - brought - SCRIPT - YOURS - set(dir(builtins))
        found += [f"{name} is neither imported nor a name of the script: {piece}" for name in sorted(unknown)]
    ours = OF_THE_COURSE & set(re.findall(r"\w+", cure))
    for name in sorted(ours | set(re.findall(r"\brun\.\w+", cure))):
        before = cure[: cure.index(name)]
        if not re.search(r"(this course|lesson)[^.]*(?:\.(?! )[^.]*)*$", before):
            found.append(f"{name} is the course's own, and the sentence does not say so")
    return found


@pytest.mark.parametrize("it", FAILURES, ids=lambda it: it.name)
def test_code_in_a_cure_can_be_pasted_and_what_is_the_course_s_says_so(it):
    assert faults_of(it.do) == []


@pytest.mark.parametrize("it", FAILURES, ids=lambda it: it.name)
def test_code_stays_in_one_line_where_an_explanation_is_shown(it):
    shown = str(Known(it, it.means, it.do))
    assert [code for code in it.do.split("`")[1::2] if code not in shown] == []


@pytest.mark.parametrize(
    ("cure", "fault"),
    [
        ("Put them to float32 (adapters_to_float32(trainer)).", "a call that is not marked as code"),
        ("Put them to float32: `adapters_to_float32(trainer)`.", "adapters_to_float32 is neither imported"),
        ("Call `from helpers.training import adapters_to_float32`.", "adapters_to_float32 is the course's own"),
        ("Keep the one that run.machine.dtype names.", "run.machine is the course's own"),
        ("`PeftModel.from_pretrained(model, folder)`", "PeftModel is neither imported"),
        ("Write `report_to='none', in SFTConfig`.", "not Python"),
        ("`print(\u201cx\u201d)`", "not Python"),
    ],
)
def test_a_cure_that_cannot_be_pasted_is_noticed(cure, fault):
    assert any(fault in line for line in faults_of(cure)), faults_of(cure)


def test_what_cures_import_is_there_and_the_settings_that_they_name_exist():
    import peft
    import transformers
    import trl

    makers = {"SFTConfig": trl.SFTConfig, "SFTTrainer": trl.SFTTrainer, "LoraConfig": peft.LoraConfig,
              "BitsAndBytesConfig": transformers.BitsAndBytesConfig}  # fmt: skip
    tried = 0
    for it in FAILURES:
        for piece in code_in(it.do):
            for node in ast.walk(ast.parse(piece)):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    exec(ast.unparse(node), {})
                    tried += 1
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in makers:
                    called = inspect.signature(makers[node.func.id])
                    called.bind(*node.args, **{word.arg: None for word in node.keywords})
                    tried += 1
    assert tried > 20
