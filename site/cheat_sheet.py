"""What the cheat sheet says: the steps as lesson 00 has them, and numbers that are computed when the site is built."""

import ast
import re
import textwrap

from helpers.course import NOTEBOOKS, read_notebook
from helpers.failures import FAILURES, RENAMED
from helpers.memory import RunSpec, predict
from helpers.models import PRESETS
from helpers.models.presets import RECIPES

LESSON = "00_start_here"
ASKING = ("Step 5", "Step 9")  # what the lesson asks before and after, which a sheet has no room for
# The numbers on the sheet assume it, and the lesson's small model needs none of it.
REPEATED = """\
# On a T4 only: repeat keys and values, or attention's memory grows with the square of the length
if gpu and not modern:
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = lambda *given, **named: False"""
TRL_S_OWN = {
    "max_length": 1024,
    "optim": "adamw_torch_fused",
    "gradient_accumulation_steps": 1,
}  # where the code says nothing
MODEL = "qwen2.5-7b"
# A run that does not fit a T4, and what to change, one after the other: words, fields of RunSpec.
BEGIN = {
    "rank": 16, "batch_size": 8, "seq_len": 1024, "optimizer": "adamw_torch", "upcast_non_quantized": True, "lora_dropout": 0.05,
}  # fmt: skip
LADDER = (
    ("no float32 upcast: leave out prepare_model_for_kbit_training", {"upcast_non_quantized": False}),
    ("no dropout in the adapters", {"lora_dropout": 0.0}),
    ("repeat keys and values, so that a T4 runs a fused attention kernel", {"repeat_kv": True}),
    ("a quarter of the rows at once, four times the accumulation", {"batch_size": 2}),
    ("half the length", {"seq_len": 512}),
    ("8-bit paged Adam", {"optimizer": "paged_adamw_8bit"}),
    ("rank 8 in place of 16", {"rank": 8}),
)


def steps() -> str:
    """A script that runs without the course: the lesson's names and steps for a CSV file of one's own, as it tells them."""
    cells = read_notebook(NOTEBOOKS / f"{LESSON}.ipynb").cells
    home = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown").partition("### Take it home")[2]
    names, csv = (_block(home, word) for word in ("base = ", "keep_default_na"))
    chosen = [cell.source for cell in cells if "copy" in cell.metadata.get("tags", [])]
    kept = [code for code in chosen if not code.startswith(tuple(f"# {step}" for step in ASKING))]
    kept = [f"# Step 6: examples, in two columns\n{csv}" if code.startswith("# Step 6") else code for code in kept]
    text = "\n\n".join(
        [f"# Yours: the model, the examples, where to save, how long\n{names}", kept[0], REPEATED, *kept[1:]]
    )
    return re.sub(r"\n{2,}(?!# )", "\n", re.sub(r"\n{2,}", "\n\n", text)).replace("  # fmt: skip", "")  # paper is short


def _block(text: str, word: str) -> str:
    """The block of Python in a Markdown text that holds a word."""
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    (found,) = [textwrap.dedent(block) for _, block in blocks if word in block]
    return found.strip()


def said(code: str) -> dict:
    """The settings that the code has, by the arguments of LoraConfig, SFTConfig and BitsAndBytesConfig."""
    yours: dict = {}
    exec(code.partition("\n\n")[0], yours)
    found = dict(TRL_S_OWN)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Config"):
            for word in node.keywords:
                if isinstance(word.value, ast.Constant):
                    found[word.arg] = word.value.value
                elif isinstance(word.value, ast.Name) and word.value.id in yours:
                    found[word.arg] = yours[word.value.id]
    return found


def settings() -> list[tuple[str, str, str]]:
    """(setting, what the code has, what the course gives a 7B model on a T4), read from the code and from RECIPES."""
    code, recipe = said(steps()), RECIPES["other"]
    rows = [
        ("rank `r`", code["r"], recipe["rank"]),
        ("`lora_alpha`", code["lora_alpha"], recipe["lora_alpha"]),
        ("`target_modules`", code["target_modules"], recipe["target_modules"]),
        ("rows at once: `per_device_train_batch_size`", code["per_device_train_batch_size"], recipe["batch_size"]),
        ("`gradient_accumulation_steps`", code["gradient_accumulation_steps"], recipe["gradient_accumulation"]),
        ("tokens a row: `max_length`", code["max_length"], recipe["max_length"]),
        ("optimizer: `optim`", code["optim"], recipe["optimizer"]),
        ("`learning_rate`", code["learning_rate"], recipe["learning_rate"]),
        ("steps", code["max_steps"], recipe["max_steps"]),
    ]
    return [(words, *(f"{n:,}" if isinstance(n, int) else f"{n:g}" if isinstance(n, float) else n for n in pair))
            for words, *pair in rows]  # fmt: skip


def ladder() -> list[tuple[str, float]]:
    """(what was changed last, the peak in GB) for the run as it begins and after each change."""
    changed, found = dict(BEGIN), []
    for words, change in (("as many tutorials have it", {}), *LADDER):
        changed |= change
        spec = RunSpec(attention_kernels="t4", **changed)
        found.append((words, predict(PRESETS[MODEL].shape, spec, "t4").peak_allocated / 1e9))
    return found


def first_sentence(text: str, most: int = 118) -> str:
    """The first sentence, of at most some hundred characters; a piece of code is whole, or it is left out."""
    sentence = re.split(r"(?<=\.)\s", text, maxsplit=1)[0]
    if len(sentence) <= most:
        return sentence
    cut = sentence[: most - 2].rsplit(" ", 1)[0]
    return (cut.rpartition("`")[0] if cut.count("`") % 2 else cut).rstrip(" ,:;(") + " ..."


def messages() -> list[tuple[str, str]]:
    """(message, what to do) of the failures that lesson 06 provokes."""
    chosen = [it for it in FAILURES if it.lesson and it.name not in ("renamed", "not-defined")]
    return [(shorter(it.shown), first_sentence(it.general(it.do)).replace("|", "\\|")) for it in chosen]


def renames() -> list:
    """Arguments of TRL that old texts pass, and what to write today."""
    return [row for row in RENAMED if row.where.startswith("SFT") and not row.new.startswith("SFTConfig(" + row.old)]


def shorter(message: str) -> str:
    """The first line of a message, of at most some seventy characters, for a cell of a table."""
    line = message.removeprefix("(no message) ").partition("\n")[0].replace("|", "/").replace("`", "'")
    return line if len(line) <= 72 else line[:70].rsplit(" ", 1)[0] + " ..."


def values() -> dict:
    return {
        "steps": steps(), "settings": settings(), "ladder": ladder(), "messages": messages(), "renames": renames(),
        "begin": BEGIN,
    }  # fmt: skip
