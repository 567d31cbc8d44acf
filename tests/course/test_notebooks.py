"""The notebooks are what their lessons say, were executed, and hold nothing that should not be published.

Each rule is a function from a notebook to a list of complaints; for each, a fault is planted and must be found.
"""

import ast
import copy
import re

import nbformat
import pytest
from papermill.translators import PythonTranslator

from helpers.course import disk as course

LESSONS = course.lessons()
IDS = [lesson.stem for lesson in LESSONS]


def stored(lesson):
    return nbformat.read(course.NOTEBOOKS / f"{lesson.stem}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


# --- the rules ---------------------------------------------------------------------------------------------------


def differs_from_lesson(notebook, lesson):
    built = course.to_notebook(lesson)
    if len(built.cells) != len(notebook.cells):
        return [f"{len(notebook.cells)} cells, and the lesson makes {len(built.cells)}"]
    return [
        f"cell {i}: {what}"
        for i, (a, b) in enumerate(zip(built.cells, notebook.cells, strict=True))
        for what, same in {
            "type": a.cell_type == b.cell_type,
            "source": a.source == b.source,
            "tags": tags(a) == tags(b),
            "id": a.id == b.id,
        }.items()
        if not same
    ]


def not_executed(notebook, lesson):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}"]


def stale(notebook, lesson):
    return (
        [] if notebook.metadata["course"]["source_sha256"] == course.source_hash(lesson) else ["another source's hash"]
    )


def too_much_ignored(notebook, lesson):
    shown = [cell for cell in code_cells(notebook) if cell.outputs]
    ignored = [cell for cell in shown if "nbval-ignore-output" in tags(cell)]
    complaints = [f"no reason: {c.source[:50]!r}" for c in ignored if not c.metadata.get("reason")]
    complaints += [f"tag {t}" for c in code_cells(notebook) for t in tags(c) if t in ("nbval-skip", "raises-exception")]
    if 3 * len(ignored) > len(shown):
        complaints.append(f"{len(ignored)} of {len(shown)} cells with output are ignored")
    return complaints


UNCLEAN = {
    "absolute path": r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|mnt|work|workspace|content|Users|var|private)/|[A-Z]:\\\\",
    "token": r"\bhf_[A-Za-z0-9]{16,}|\bghp_\w{20,}|\bsk-\w{20,}",
    "traceback": r"Traceback \(most recent call last\)|\x1b\[",
    "host name": r"\b[\w-]+\.(?:local|internal|localdomain|lan)\b|ip-\d+-\d+-\d+-\d+",
}


def unclean(notebook, lesson):
    complaints = []
    for cell in code_cells(notebook):
        for out in cell.outputs:
            if out.output_type == "error":
                complaints.append(f"an error: {out.ename}")
            if out.get("name") == "stderr":
                complaints.append("something on stderr")
            texts = [out.get("text", "")] + [
                str(v) for k, v in out.get("data", {}).items() if not k.startswith("image/")
            ]
            for what, pattern in UNCLEAN.items():
                found = re.search(pattern, "\n".join(texts))
                complaints += [f"{what}: {found[0]!r}"] if found else []
    if "widgets" in notebook.metadata or "papermill" in notebook.metadata:
        complaints.append("widget state or papermill's parameters in the metadata")
    return complaints


def breaks_the_contract(notebook, lesson):
    first, second, third, fourth = notebook.cells[:4]
    numbers = {
        "the first cell has badge and title": first.cell_type == "markdown"
        and "colab-badge.svg" in first.source
        and re.search(r"^# \d\d ", first.source, re.MULTILINE),
        "the second is the bootstrap": second.source == course.bootstrap_source(),
        "the third holds the parameters": tags(third) == ["parameters"],
        "no other cell is tagged parameters": sum("parameters" in tags(c) for c in notebook.cells) == 1,
        "the fourth begins the run": fourth.cell_type == "code" and "begin(" in fourth.source,
        "the fourth checks every parameter": all(
            f"{name}={name}" in fourth.source for name in course.lesson_parameters(lesson)
        ),
        "the kernelspec has a language": notebook.metadata["kernelspec"].get("language") == "python",
        "there are three exercises": len(set(re.findall(r'check\("\d\d\.(\d+)"', sources(notebook, "code")))) >= 3,
        "each exercise has its solution": set(re.findall(r'check\("(\d\d\.\d+)"', sources(notebook, "code")))
        == set(re.findall(r'check\("(\d\d\.\d+)"', sources(notebook, "markdown"))),
        "a figure has alternative text": all(
            out.metadata.get("image/png", {}).get("alt")
            for c in code_cells(notebook)
            for out in c.outputs
            if "image/png" in out.get("data", {})
        ),
        "there is a figure": any("image/png" in out.get("data", {}) for c in code_cells(notebook) for out in c.outputs),
        "it has a verdict": "verdict(" in sources(notebook, "code"),
        "it records what it found": "record(" in sources(notebook, "code"),
        "no placeholder is left": "{{" not in re.sub(r"```.*?```", "", sources(notebook, "markdown"), flags=re.DOTALL),
    }
    return [claim for claim, holds in numbers.items() if not holds]


def loses_a_table(notebook, lesson):
    """Jupyter shows what a cell's last line returns; a table made anywhere else is made for nobody."""
    complaints = []
    for cell in code_cells(notebook):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            made = (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func) == "table"
            )
            if made and node is not tree.body[-1]:
                complaints.append(ast.unparse(node)[:80])
    return complaints


def hides_a_parameter(notebook, lesson):
    """papermill reads names out of the cell's lines: it lists and takes without a warning what is in a line with one "="."""
    cell = next(cell for cell in notebook.cells if "parameters" in tags(cell))
    listed = [parameter.name for parameter in PythonTranslator.inspect(cell)]
    return sorted(set(course.lesson_parameters(lesson)) ^ set(listed))


def sources(notebook, kind):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


RULES = [
    differs_from_lesson,
    not_executed,
    stale,
    too_much_ignored,
    unclean,
    breaks_the_contract,
    loses_a_table,
    hides_a_parameter,
]


@pytest.mark.parametrize("lesson", LESSONS, ids=IDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_notebook_keeps_each_rule(rule, lesson):
    assert rule(stored(lesson), lesson) == []


def test_every_lesson_has_a_notebook_and_no_notebook_is_an_orphan():
    assert sorted(p.stem for p in course.NOTEBOOKS.glob("*.ipynb")) == IDS


def test_lessons_are_numbered_from_00_without_a_gap():
    assert [int(name[:2]) for name in IDS] == list(range(len(IDS)))


def test_every_lesson_has_teaching_notes():
    assert [p for p in LESSONS if not p.with_suffix(".instructor.md").is_file()] == []


# --- planted faults: each rule must notice -------------------------------------------------------------------------


def example_beside_a_parameter(nb):
    nb.cells[2].source = nb.cells[2].source.replace(
        'output_dir = "auto"', 'output_dir = "auto"  # or output_dir = "drive"'
    )


def shown_cell(notebook):
    return next(cell for cell in code_cells(notebook) if cell.outputs)


def edit_source(nb):
    nb.cells[-1].source += "\nand more"


def edit_tags(nb):
    code_cells(nb)[3].metadata["tags"] = ["skip"]


def edit_id(nb):
    nb.cells[5].id = "another"


def drop_cell(nb):
    del nb.cells[6]


def forget_execution(nb):
    code_cells(nb)[4].execution_count = None


def run_out_of_order(nb):
    cells = code_cells(nb)
    cells[3].execution_count, cells[4].execution_count = cells[4].execution_count, cells[3].execution_count


def other_hash(nb):
    nb.metadata["course"]["source_sha256"] = "0" * 64


def ignore_without_reason(nb):
    cell = shown_cell(nb)
    cell.metadata["tags"] = ["nbval-ignore-output"]
    cell.metadata.pop("reason", None)


def ignore_everything(nb):
    for cell in code_cells(nb):
        cell.metadata.update(tags=["nbval-ignore-output"], reason="it varies")


def skip_a_cell(nb):
    shown_cell(nb).metadata["tags"] = ["nbval-skip"]


def print_text(text):
    def plant(nb):
        shown_cell(nb).outputs.append(nbformat.v4.new_output("stream", name="stdout", text=text))

    plant.__name__ = f"print_{text[:12]!r}"
    return plant


def leave_an_error(nb):
    shown_cell(nb).outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]))


def leave_widgets(nb):
    nb.metadata["widgets"] = {}


def second_parameters_cell(nb):
    code_cells(nb)[5].metadata["tags"] = ["parameters"]


def other_bootstrap(nb):
    nb.cells[1].source = "import helpers"


def no_alt(nb):
    for cell in code_cells(nb):
        for out in cell.outputs:
            if "image/png" in out.get("data", {}):
                out.metadata.pop("image/png", None)


def forget_return(nb):
    shown_cell(nb).source = "def shown(rows):\n    table(rows)\n\n\nshown([])"


PLANTED = [
    (loses_a_table, forget_return),
    (differs_from_lesson, edit_source),
    (differs_from_lesson, edit_tags),
    (differs_from_lesson, edit_id),
    (differs_from_lesson, drop_cell),
    (not_executed, forget_execution),
    (not_executed, run_out_of_order),
    (stale, other_hash),
    (too_much_ignored, ignore_without_reason),
    (too_much_ignored, ignore_everything),
    (too_much_ignored, skip_a_cell),
    (unclean, print_text("/home/someone/course/model")),
    (unclean, print_text("C:\\\\Users\\\\someone")),
    (unclean, print_text("hf_" + "a" * 30)),
    (unclean, print_text("Traceback (most recent call last):")),
    (unclean, print_text("node7.internal says hello")),
    (unclean, leave_an_error),
    (unclean, leave_widgets),
    (breaks_the_contract, second_parameters_cell),
    (breaks_the_contract, other_bootstrap),
    (breaks_the_contract, no_alt),
    (hides_a_parameter, example_beside_a_parameter),
]


@pytest.mark.parametrize(("rule", "plant"), PLANTED, ids=[f"{r.__name__}-{p.__name__}" for r, p in PLANTED])
def test_a_planted_fault_is_found(rule, plant):
    lesson = LESSONS[0]
    notebook = copy.deepcopy(stored(lesson))
    plant(notebook)
    assert rule(notebook, lesson) != []


def test_a_lesson_that_takes_a_larger_model_on_a_gpu_asks_colab_and_kaggle_for_one():
    asks = {lesson.stem[:2] for lesson in course.lessons() if "accelerator" in course.to_notebook(lesson).metadata}
    assert asks == {"02", "03", "04", "05", "07"}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_every_lesson_asks_kaggle_for_the_internet_since_the_course_is_fetched_there(lesson):
    metadata = course.to_notebook(lesson).metadata
    assert metadata["kaggle"]["isInternetEnabled"] is True
    assert ("accelerator" in metadata) == ("colab" in metadata) == ("accelerator" in metadata["kaggle"])
