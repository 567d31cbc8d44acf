"""What the cheat sheet says: the steps as lesson 00 has them, and numbers that are computed when the site is built."""

import re

from helpers.course import NOTEBOOKS, read_notebook
from helpers.failures import FAILURES, RENAMED
from helpers.memory import RunSpec, predict
from helpers.models import PRESETS
from helpers.models.presets import RECIPES

ASKING = ("Step 5", "Step 9")  # of lesson 00: what it asks before and after, which a sheet has no room for
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
    """The code of lesson 00's steps, which runs without the course."""
    cells = read_notebook(NOTEBOOKS / "00_start_here.ipynb").cells
    chosen = [cell.source for cell in cells if "copy" in cell.metadata.get("tags", [])]
    kept = [code for code in chosen if not code.startswith(tuple(f"# {step}" for step in ASKING))]
    return "\n\n".join(kept).replace("\n\n\n", "\n\n").replace("  # fmt: skip", "")


def ladder() -> list[tuple[str, float]]:
    """(what was changed last, the peak in GB) for the run as it begins and after each change."""
    changed, found = dict(BEGIN), []
    for words, change in (("as many tutorials have it", {}), *LADDER):
        changed |= change
        spec = RunSpec(attention_kernels="t4", **changed)
        found.append((words, predict(PRESETS[MODEL].shape, spec, "t4").peak_allocated / 1e9))
    return found


def first_sentence(text: str, most: int = 118) -> str:
    """The first sentence, of at most some hundred characters."""
    sentence = re.split(r"(?<=\.)\s", text, maxsplit=1)[0]
    return sentence if len(sentence) <= most else sentence[: most - 2].rsplit(" ", 1)[0].rstrip(",:;") + " ..."


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
        "steps": steps(), "ladder": ladder(), "messages": messages(), "renames": renames(), "recipe": RECIPES["other"],
        "begin": BEGIN,
    }  # fmt: skip
