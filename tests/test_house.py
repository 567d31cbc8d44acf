"""The house: arrows between rooms go down only, and who enters a room takes what stands in its list."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from helpers import COURSE_ROOT

HELPERS = COURSE_ROOT / "helpers"
# From the ground up. A room may use what lies below it, and nothing beside it or above.
LAYERS = [
    {"files"},
    {"course", "records"},
    {"machine", "failures", "plots"},
    {"packages"},
    {"models"},
    {"memory", "data"},
    {"training", "saving", "merging", "evaluation"},
    {"quick", "export"},
    {"doctor", "widgets", "lesson"},
    {"workshop"},
    {"commands"},
]
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}

AT_MOST = 14  # names in a room's list
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines


def imports(tree: ast.AST) -> list[tuple[str, str | None]]:
    """(module, name or None) of every import of the course's own, those inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "helpers":
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(("." * node.level + (node.module or ""), None))
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names if alias.name.split(".")[0] == "helpers"]
    return found


def room_of(file: Path) -> str:
    """The room that a file lies in; "" for the hall, helpers/__init__.py and __main__.py."""
    inside = file.relative_to(HELPERS)
    return (
        inside.parts[0].removesuffix(".py")
        if len(inside.parts) > 1 or file.stem not in ("__init__", "__main__")
        else ""
    )


def entered(module: str, name: str | None) -> str:
    """The room that an import enters; "" for the hall."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else name if name in HEIGHT else ""


def lines_of(room: str) -> list[str]:
    """The lines of __all__ in a room's __init__: one a name."""
    text = (HELPERS / room / "__init__.py").read_text(encoding="utf-8")
    return text.partition("__all__ = [\n")[2].partition("]\n")[0].splitlines()


def listed(room: str) -> list[str]:
    """The public names of a room."""
    return re.findall(r'^ +"(\w+)"', "\n".join(lines_of(room)), re.MULTILINE)


def attributes(tree: ast.AST) -> list[tuple[str, str]]:
    """(room, name) of every ROOM.NAME in a file that has imported the room as a whole."""
    whole = {name for module, name in imports(tree) if module == "helpers" and name in HEIGHT}
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    return [(node.value.id, node.attr) for node in nodes if node.value.id in whole]


def wrong_arrows(file: Path, text: str) -> list[str]:
    """What is wrong with the imports of a file of helpers/, in words."""
    here = room_of(file)
    found = [
        f"{file.name} takes {room}.{name}, which is not in {room}'s list"
        for room, name in attributes(ast.parse(text))
        if name not in listed(room)
    ]
    for module, name in imports(ast.parse(text)):
        room, deep = entered(module, name), module.count(".") > 1
        if module.startswith("."):
            found.append(f"{file.name} imports from {module}: write the room's name")
        elif not room or room == here:
            continue
        elif room not in HEIGHT:
            found.append(f"{file.name} imports {module}, which is no room")
        elif here and HEIGHT[room] >= HEIGHT[here]:
            found.append(f"{here}/{file.name} imports from {room}, which does not lie below it")
        elif deep:
            found.append(f"{here}/{file.name} reaches into {module}: take it from helpers.{room}")
        elif module.count(".") == 1 and name and name not in listed(room):
            found.append(f"{here}/{file.name} takes {name}, which is not in {room}'s list")
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, in order; [] if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(edges.get(name, ())):
                if found := walk(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def files() -> list[Path]:
    return sorted(HELPERS.rglob("*.py"))


def edges_within(room: str) -> dict[str, set[str]]:
    """Which file of a room imports which other."""
    edges = {}
    for file in (HELPERS / room).rglob("*.py"):
        if file.name != "__init__.py":
            taken = [
                f"{m}.{n}" if (HELPERS / room / f"{n}.py").is_file() else m
                for m, n in imports(ast.parse(file.read_text()))
            ]
            edges[file.stem] = {m.split(".")[2] for m in taken if m.startswith(f"helpers.{room}.")}
    return edges


def test_every_folder_is_a_room_with_a_height():
    rooms = {p.name for p in HELPERS.iterdir() if p.is_dir() and p.name != "__pycache__"}
    rooms |= {p.stem for p in HELPERS.glob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(HEIGHT)


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(HELPERS)))
def test_arrows_go_down_and_take_listed_names(file):
    assert wrong_arrows(file, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", sorted(HEIGHT))
def test_no_circle_within_a_room(room):
    assert circle(edges_within(room)) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/instructions.py", "from helpers.lesson import begin"),
        ("data/instructions.py", "def late():\n    from helpers.commands import run"),
        ("data/instructions.py", "from helpers import quick"),
        ("data/instructions.py", "import helpers.memory"),
        ("training/finite.py", "from helpers.saving import adapter_folder"),
        ("lesson/session.py", "from helpers.files.writing import write_whole"),
        ("lesson/session.py", "from helpers.models import _shape"),
        ("lesson/session.py", "from .tables import table"),
        ("lesson/session.py", "from helpers.cellar import wine"),
    ],
)
def test_a_planted_arrow_is_seen(file, line):
    assert wrong_arrows(HELPERS / file, line)


def test_a_planted_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("room", sorted(set(HEIGHT) - {"commands"}))
def test_a_room_lists_few_names_with_a_line_each(room):
    assert 1 <= len(listed(room)) == len(lines_of(room)) <= AT_MOST
    assert all(re.fullmatch(r' +"\w+",  # .{8,}', line) for line in lines_of(room)), lines_of(room)
    front = importlib.import_module(f"helpers.{room}")
    assert [name for name in listed(room) if not hasattr(front, name)] == []


def test_no_two_files_have_one_name_and_none_a_rooms():
    names = [f.stem for f in files() if f.name not in ("__init__.py", "__main__.py") and room_of(f) != "commands"]
    assert len(names) == len(set(names))
    assert not set(names) & set(HEIGHT)
    assert not [
        room
        for room in set(HEIGHT) - {"commands"}
        for f in (HELPERS / room).glob("[a-z]*.py")
        if f.stem in listed(room)  # a list may name a file as a whole, and nothing else of that name
        and not inspect.ismodule(getattr(importlib.import_module(f"helpers.{room}"), f.stem))
    ]


@pytest.mark.parametrize("lesson", sorted((COURSE_ROOT / "lessons").glob("*.py")), ids=lambda f: f.stem)
def test_a_lesson_enters_a_room_once_and_takes_listed_names(lesson):
    tree = ast.parse(lesson.read_text(encoding="utf-8"))
    taken = imports(tree)
    assert [name for room, name in attributes(tree) if name not in listed(room)] == []
    lines = re.findall(
        r"^from (helpers\.\w+) import", lesson.read_text(encoding="utf-8").partition('"""')[0], re.MULTILINE
    )
    assert len(lines) == len(set(lines))
    for module, name in taken:
        room = entered(module, name)
        assert room != "commands"
        assert module.count(".") < 2
        if module.count(".") == 1:
            assert name in listed(room), f"{name} is not in {room}'s list"


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(HELPERS)))
def test_no_file_and_no_function_is_long(file):
    text = file.read_text(encoding="utf-8")
    longest = max(
        (n.end_lineno - n.lineno + 1 for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)), default=0
    )
    assert len(text.splitlines()) <= LONGEST_FILE
    assert longest <= LONGEST_FUNCTION
