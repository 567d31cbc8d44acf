"""Evidence: what a claim or a choice rests on, weighed. Each piece is of one kind:

    row = {file, where, value}   a number in a file of measurements/ or assets/; or file = the name of a row in claims.toml
    computed = "..."             a number that follows from published shapes or installed packages, in the NAMES below
    test = "tests/...::name"     a test of this course
    cell = {lesson, verdict}     a verdict in a lesson, or a cell by its tag: {lesson, tag}
    citation = {link, date}      a paper or a page, with the day on which it was looked up

A row and a computed number are compared with what is said (`op` and `bound`, in `unit`), so they show by themselves whether
they speak for it or against it. A measured difference with an interval that holds the bound speaks for neither: it is shown and
does not count. Of the other kinds `shows` says what they show. With `note = true` a piece is shown and does not count.
"""

import ast
import datetime
import functools
import importlib.metadata
import json
import operator
import re
import tomllib
from typing import NamedTuple

import numpy

from helpers import COURSE_ROOT
from helpers.course import find_lesson
from helpers.evaluation import interval_of_mean
from helpers.memory import GPUS, RunSpec, adapter_bytes, fits, predict, shape_of, weight_bytes
from helpers.memory.sizes import state_bytes
from helpers.models import PRESETS
from helpers.models.presets import RECIPES
from helpers.records import measured_arms, read_rows

SITE = COURSE_ROOT / "site"
KINDS = ("row", "computed", "test", "cell", "citation")
OURS = ("row", "computed", "test", "cell")  # what this course has by itself
UNITS = {"": 1, "GB": 1e9, "MB": 1e6, "%": 0.01, "million": 1e6}


class NoEvidence(Exception):
    """A piece of evidence that is gone or cannot be read, in words."""


def load(name: str) -> dict:
    return tomllib.loads((SITE / name).read_text(encoding="utf-8"))


# --- rows and computed numbers ----------------------------------------------------------------------------------------


def _read(name: str):
    """The rows of a file of JSON lines, or what a JSON file holds; measurements/ where no folder is named."""
    file = COURSE_ROOT / (name if "/" in name else f"measurements/{name}")
    if not file.is_file():
        raise NoEvidence(f"there is no file {name}")
    return read_rows(file) if file.suffix == ".jsonl" else json.loads(file.read_text(encoding="utf-8"))


def _look_up(row: dict, name: str):
    """A value of a row by its name, wherever it stands: in the row, or in its spec, measured or recorded part."""
    for part in (row, row.get("spec"), row.get("measured"), row.get("recorded")):
        if part and name in part:
            return part[name]
    raise NoEvidence(f"a row has no {name}")


@functools.cache
def named_rows() -> dict:
    """The rows that claims.toml gives a name: {name: {file, where}}."""
    return load("claims.toml")["rows"]


def measured(file: str, value: str, **where):
    """The value of the one row of a file for which each name in `where` has the value that is given.

    `file` may also be the name of a row in claims.toml. Raises NoEvidence where no row is like that, or several are.
    """
    if file in named_rows():
        file, where = named_rows()[file]["file"], named_rows()[file]["where"] | where
    found = _read(file)
    rows = found if isinstance(found, list) else found["rows"] if where else [found]
    chosen = [row for row in rows if all(_is(row, name, wanted) for name, wanted in where.items())]
    if len(chosen) != 1:
        raise NoEvidence(f"{len(chosen)} rows of {file} have {where}; one should")
    return _look_up(chosen[0], value)


def smi_bytes(file: str) -> float:
    """What nvidia-smi showed at the end of a measured run, in bytes."""
    return float(measured(file, "nvidia_smi").split()[0]) * 2**20


def beyond_tensors() -> list[float]:
    """By which share nvidia-smi showed more than the peak of the tensors, for every measured run in which it was asked."""
    runs = [row["measured"] for row in _read("h200_earlier_rows.jsonl") if row["measured"]["nvidia_smi"]]
    return [float(run["nvidia_smi"].split()[0]) * 2**20 / run["peak_allocated"] - 1 for run in runs]


class Apart(NamedTuple):
    """What one arm of lesson 08 has more than another: the mean and its 95% interval, in points out of a hundred."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} points ({self.low:+.1f} to {self.high:+.1f})"


def apart(task: str, arm: str, other: str) -> Apart:
    """The share of held-out questions that `arm` answers right, less that of `other`, seed by seed and question by question."""
    return Apart(*(100 * end for end in interval_of_mean(*measured_arms().apart(task, arm, other))))


def farther(task: str, where: str, arm: str = "nf4") -> float:
    """How many times as far a quantized model's guesses lie from the unquantized model's after training as before it.

    `where`: on the right "answers" to held-out questions, or on other "text". Mean Kullback-Leibler divergences over the seeds.
    """
    runs = measured_arms().runs
    means = runs[(runs.task == task) & (runs.arm == arm)][
        [f"{where}_distance_{when}" for when in ("before", "after")]
    ].mean()
    return float(means.iloc[1] / means.iloc[0])


def spread(task: str, arm: str) -> float:
    """The standard deviation of an arm's score over its seeds, in points out of a hundred."""
    runs = measured_arms().runs
    return 100 * float(runs[(runs.task == task) & (runs.arm == arm)].score.std())


def _is(row: dict, name: str, wanted) -> bool:
    try:
        found = _look_up(row, name)
    except NoEvidence:
        return False
    return len(found) == wanted if name == "target_modules" and isinstance(wanted, int) else found == wanted


@functools.lru_cache(maxsize=256)
def _predicted(name: str, gpu: str, settings: tuple):
    return predict(SHAPES[name], RunSpec(**dict(settings)), gpu)


def run(name: str, gpu: str, **settings):
    """helpers.memory.predict for a model by its name, with the settings of RunSpec."""
    return _predicted(name, gpu, tuple(settings.items()))


def full(name: str, optimizer: str, gpu: str = "h200", **more):
    """Every weight trained in bfloat16."""
    return run(name, gpu, quant_type=None, rank=None, optimizer=optimizer, **BFLOAT16, **more)


def numbers(name: str, rank: int, modules: tuple[str, ...]) -> int:
    """How many numbers LoRA trains: rank x (inputs + outputs) of each adapted matrix."""
    shape = shape_of(SHAPES[name])
    return shape.layers * sum(rank * (x.inputs + x.outputs) for x in shape.linears if x.name in modules)


def paging_share(name: str, rank: int, modules: tuple[str, ...]) -> float:
    """The share of the trained numbers in tensors of 100,000 and more, the only ones that bitsandbytes pages."""
    sizes = [rank * n for x in shape_of(SHAPES[name]).linears if x.name in modules for n in (x.inputs, x.outputs)]
    return sum(n for n in sizes if n >= 100_000) / sum(sizes)


def in_linear_layers(name: str) -> int:
    """The number of weights in the layers that are quantized."""
    shape = shape_of(SHAPES[name])
    return shape.layers * sum(x.weights for x in shape.linears)


def needed_by(*packages: str) -> set[str]:
    """The packages that pip installs beside these, without extras: their own needs, one level deep."""
    lines = [line for name in packages for line in importlib.metadata.requires(name) or () if "extra" not in line]
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines}


def installed_files(package: str, pattern: str) -> list[str]:
    """What the pattern's one group finds in the names of an installed package's files."""
    names = map(str, importlib.metadata.files(package) or ())
    return [found[1] for name in names if (found := re.search(pattern, name))]


def shown(lesson: str, words: str, pattern: str) -> list[str]:
    """What the pattern finds in the output of the one cell of a lesson's stored notebook that has these words."""
    file = COURSE_ROOT / "notebooks" / f"{find_lesson(lesson).stem}.ipynb"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    chosen = [cell for cell in cells if words in "".join(cell["source"]) and cell.get("outputs")]
    if len(chosen) != 1:
        raise NoEvidence(f"{len(chosen)} cells of {file.name} show something and have the words {words!r}; one should")
    texts = [
        "".join(out.get("data", out).get(key, "")) for out in chosen[0]["outputs"] for key in ("text", "text/plain")
    ]
    return re.findall(pattern, "\n".join(texts), re.MULTILINE)


def found_in(package: str, file: str, pattern: str) -> str:
    """What the pattern's one group finds in a file of an installed package, which is read and not imported; "" if nothing."""
    (path,) = [path for path in importlib.metadata.files(package) or () if str(path) == file]
    found = re.search(pattern, path.read_text())
    return found[1] if found else ""


def _llama(hidden, inner, layers, heads, kv_heads, model_type="llama", vocabulary=32_000) -> dict:
    """The published sizes of a model that is built like a Llama."""
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": False,
    }


SHAPES = {name: preset.shape for name, preset in PRESETS.items()} | {
    "7B": _llama(4096, 11008, 32, 32, 32),  # Llama 2
    "13B": _llama(5120, 13824, 40, 40, 40),  # Llama 2
    "34B": _llama(8192, 22016, 48, 64, 8),  # Code Llama
    "65B": _llama(8192, 22016, 80, 64, 64),  # LLaMA, which the QLoRA paper trained
    "70B": _llama(8192, 28672, 80, 64, 8),  # Llama 2
    "14B": _llama(5120, 13824, 48, 40, 8, "qwen2", 152_064),  # Qwen2.5
    "32B": _llama(5120, 27648, 64, 40, 8, "qwen2", 152_064),  # Qwen2.5
}
BFLOAT16 = {"load_dtype": "bfloat16", "compute_dtype": "bfloat16", "lora_dropout": 0.0}
QKVO, ALL = RunSpec.QKVO, RunSpec().target_modules
# The recipe of the first text, on Mistral-7B: rank 8 on q, k, v and o, four rows of 512 tokens, everything upcast.
TEXT = {
    "rank": 8,
    "target_modules": QKVO,
    "batch_size": 4,
    "optimizer": "paged_adamw_32bit",
    "upcast_non_quantized": True,
}
NAMES = {
    "measured": measured, "smi_bytes": smi_bytes, "beyond_tensors": beyond_tensors,
    "apart": apart, "farther": farther, "spread": spread,
    "run": run, "full": full, "numbers": numbers, "paging_share": paging_share,
    "in_linear_layers": in_linear_layers, "needed_by": needed_by, "installed_files": installed_files,
    "found_in": found_in, "shown": shown, "shape": lambda name: shape_of(SHAPES[name]), "fits": fits, "GPUS": GPUS,
    "weight_bytes": weight_bytes, "adapter_bytes": adapter_bytes, "state_bytes": state_bytes, "PRESETS": PRESETS,
    "RECIPES": RECIPES,
    "BFLOAT16": BFLOAT16, "QKVO": QKVO, "ALL": ALL, "TEXT": TEXT, "numpy": numpy, "sum": sum, "min": min, "max": max, "len": len,
    "abs": abs, "int": int, "float": float, "all": all, "str": str, "sorted": sorted,
}  # fmt: skip


def _places(printed: str) -> int:
    return len(printed.partition(".")[2])


def rounds_to(value: float, printed: str) -> bool:
    """Whether a number is the printed one in all digits that are shown."""
    return round(value, _places(printed)) == float(printed)


def about(value: float, printed: str) -> bool:
    """Whether a number is near a printed one that has a tilde: within a tenth of it, or equal to it once rounded."""
    return abs(value - float(printed)) <= abs(float(printed)) / 10 or rounds_to(value, printed)


OPERATORS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "rounds to": rounds_to, "about": about, "contains": lambda value, bound: bound in value,
    "between": lambda value, bound: bound[0] <= value <= bound[1],
}  # fmt: skip
# Of a difference with its interval: whether the whole of it is on the side that is claimed, or the whole of it on the other.
OF_INTERVALS = {
    ">": (lambda value, bound: value.low > bound, lambda value, bound: value.high < bound),
    "<": (lambda value, bound: value.high < bound, lambda value, bound: value.low > bound),
    "within": (
        lambda value, bound: -bound < value.low and value.high < bound,
        lambda value, bound: value.high < -bound or value.low > bound,
    ),
}


def side_of(value, op: str, bound) -> str:
    """ "for" or "against"; "note" where an interval holds the bound, since it cannot tell. NoEvidence for an unknown op."""
    known = OF_INTERVALS if isinstance(value, Apart) else OPERATORS
    if op not in known:
        raise NoEvidence(f"op is {op!r}; there are: {', '.join(known)}")
    if isinstance(value, Apart):
        claimed, other = (test(value, bound) for test in OF_INTERVALS[op])
        return "for" if claimed else "against" if other else "note"
    return "for" if OPERATORS[op](value, bound) else "against"


@functools.lru_cache(maxsize=256)
def _computed(expression: str):
    try:
        return eval(expression, {"__builtins__": {}} | NAMES)  # our own files, claims.toml and decisions.toml
    except NoEvidence:
        raise
    except Exception as error:
        raise NoEvidence(f"{expression!r} cannot be computed: {type(error).__name__}: {error}") from error


def value_of(evidence: dict):
    """The number behind a row or a computed piece of evidence, in its unit."""
    if "row" in evidence:
        row = evidence["row"]
        value = measured(row["file"], row["value"], **row.get("where", {}))
    else:
        value = _computed(evidence["computed"])
    scale = UNITS[evidence.get("unit", "")]
    return value if scale == 1 else value / scale


# --- tests, cells, citations ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _tests(file: str) -> dict[str, str]:
    """Name of each test function in a file -> its decorators; parametrised ones count once."""
    path = COURSE_ROOT / file
    if not path.is_file():
        raise NoEvidence(f"there is no file {file}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: " ".join(map(ast.unparse, node.decorator_list)) for node in functions}


def _look_at_test(name: str) -> None:
    file, _, function = name.partition("::")
    if function not in _tests(file):
        raise NoEvidence(f"there is no test {name}")
    if re.search(r"mark\.(skip\b|xfail)", _tests(file)[function]):
        raise NoEvidence(f"{name} is skipped or expected to fail")


@functools.lru_cache(maxsize=16)
def _cells(lesson: str) -> tuple[set[str], set[str]]:
    """(the claims of all verdicts, the tags of all cells) of a lesson."""
    text = find_lesson(lesson).read_text(encoding="utf-8")
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "verdict"]
    verdicts = {n.args[0].value for n in calls if isinstance(n.args[0], ast.Constant)}
    headers = re.findall(r"^# %%.*?tags=\[(.*?)\]", text, re.MULTILINE)
    return verdicts, {tag for header in headers for tag in re.findall(r'"([\w-]+)"', header)}


def _look_at_cell(cell: dict) -> None:
    verdicts, tags = _cells(cell["lesson"])
    if "verdict" in cell and cell["verdict"] not in verdicts:
        raise NoEvidence(f"lesson {cell['lesson']} has no verdict {cell['verdict']!r}")
    if "tag" in cell and cell["tag"] not in tags:
        raise NoEvidence(f"lesson {cell['lesson']} has no cell with the tag {cell['tag']!r}")
    if not {"verdict", "tag"} & cell.keys():
        raise NoEvidence("a cell is named by its verdict or by its tag")


def _look_at_citation(citation: dict) -> None:
    if not str(citation.get("link", "")).startswith("https://"):
        raise NoEvidence(f"a citation needs a link: {citation}")
    if not isinstance(citation.get("date"), datetime.date):
        raise NoEvidence(f"{citation['link']} has no date on which it was looked up")


def weigh(evidence: dict) -> tuple[str, object]:
    """("for", "against" or "note", the number or None) of a piece of evidence; NoEvidence where it is gone."""
    kinds = [kind for kind in KINDS if kind in evidence]
    if len(kinds) != 1:
        raise NoEvidence(f"evidence is of one kind, and this is of {kinds or 'none'}: {evidence}")
    if not evidence.get("says"):
        raise NoEvidence(f"evidence says in words what it shows, and this does not: {evidence}")
    kind, value = kinds[0], None
    if kind in ("row", "computed"):
        value = value_of(evidence)
        if evidence.get("note"):
            return "note", value
        return side_of(value, evidence.get("op"), evidence.get("bound")), value
    {"test": _look_at_test, "cell": _look_at_cell, "citation": _look_at_citation}[kind](evidence[kind])
    side = "note" if evidence.get("note") else evidence.get("shows")
    if side not in ("for", "against", "note"):
        raise NoEvidence(f"shows is {side!r}; it is for or against")
    return side, value
