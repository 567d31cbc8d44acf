"""The instructions that a lesson trains on, and the template that they are written in."""

import json
import os
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.files import changed_asset
from helpers.models import why_unfetched

BUNDLED_INSTRUCTIONS = COURSE_ROOT / "assets" / "instructions"


class DataError(CourseError, OSError):
    """Instructions that cannot be read."""


# Alpaca's own words (https://github.com/tatsu-lab/stanford_alpaca): a model must see at use what it saw in training.
HEADER = "Below is an instruction that describes a task"
WITH_INPUT = ", paired with an input that provides further context"
REQUEST = ". Write a response that appropriately completes the request.\n\n"


def alpaca_prompt(instruction: str, input: str = "") -> str:
    """The prompt in Alpaca's template, with or without an input; the answer follows on a line of its own."""
    if input:
        asked = f"{HEADER}{WITH_INPUT}{REQUEST}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    else:
        asked = f"{HEADER}{REQUEST}### Instruction:\n{instruction}\n\n"
    return asked + "### Response:\n"


def to_prompt_completion(row: dict) -> dict:
    """Alpaca's fields as the two columns that TRL asks for: it learns the completion only, and ends it with eos."""
    return {"prompt": alpaca_prompt(row["instruction"], row["input"]), "completion": row["output"]}


def load_instructions(dataset_id: str = "auto", machine=None, seed: int = 0):
    """A DatasetDict with "train" and "heldout", columns instruction, input and output; and a line that names it.

    "auto" is tatsu-lab/alpaca on a GPU with a network and a model other than the bundled one, else the bundled
    instructions. A file of JSON lines is split 9 to 1. Raises DataError, one line.
    """
    from datasets import DatasetDict

    if dataset_id == "auto":
        if machine is None or machine.device == "cpu":
            return load_instructions("bundled")
        try:
            return load_instructions("alpaca", machine, seed)
        except DataError as error:
            rows, name = load_instructions("bundled")
            return rows, f"{name}; in place of alpaca, since {error}"
    if dataset_id == "bundled":
        files = {split: str(BUNDLED_INSTRUCTIONS / f"{split}.jsonl") for split in ("train", "heldout")}
        changed = changed_asset(BUNDLED_INSTRUCTIONS)
        if changed:
            raise DataError(f"the bundled instructions: {changed}")
        rows = DatasetDict({split: _read_json_lines(file) for split, file in files.items()})
        return rows, f"the bundled instructions, {len(rows['train'])} to learn and {len(rows['heldout'])} held out"
    if dataset_id in ("alpaca", "tatsu-lab/alpaca"):
        rows = _from_hub("tatsu-lab/alpaca")
        name = "tatsu-lab/alpaca (CC BY-NC 4.0)"
    else:
        rows, name = _read_json_lines(dataset_id), Path(dataset_id).name
    parts = rows.train_test_split(test_size=0.1, seed=seed)
    rows = DatasetDict({"train": parts["train"], "heldout": parts["test"]})
    return rows, f"{name}, {len(rows['train'])} to learn and {len(rows['heldout'])} held out"


def _from_hub(name: str):
    """The training split of a data set on the hub, or in the cache if the hub does not answer; DataError, one line."""
    import datasets
    from huggingface_hub import HfApi

    unanswered, was_offline = None, datasets.config.HF_HUB_OFFLINE
    try:
        # Asked once: of a hub that does not answer `datasets` itself asks again and again, for more than six minutes.
        HfApi().dataset_info(name, timeout=10)
    except Exception as error:  # whatever the hub's client raises: its classes have changed their names
        unanswered, datasets.config.HF_HUB_OFFLINE = error, True
    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:
        first = unanswered or error
        raise DataError(f'{name} cannot be fetched ({_why(first)}): use "bundled"') from first
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _why(error: Exception) -> str:
    """Why a data set could not be fetched, in a few words."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError) or getattr(error, "errno", None) or "Consistency check" in str(error):
        return why_unfetched(error)
    return type(error).__name__


def look_at(dataset_id: str) -> None:
    """Raise DataError, one line, for a file that does not hold instructions; imports nothing heavy."""
    if dataset_id not in ("auto", "bundled", "alpaca", "tatsu-lab/alpaca"):
        _rows_of(dataset_id)


def _read_json_lines(file: str):
    from datasets import Dataset

    return Dataset.from_list(_rows_of(file))


def _rows_of(file: str) -> list[dict]:
    """The rows of a file of JSON lines, each with instruction, input and output as text."""
    if not os.path.isfile(os.path.expanduser(file)):  # a device or a pipe would never end
        raise DataError(f"no readable file {str(file)!r}: give a file of JSON lines")
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"no readable file {str(file)!r}: give a file of JSON lines, {type(error).__name__}") from error
    rows = []
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            row = json.loads(line)
            asked = {"instruction": row["instruction"], "input": row.get("input") or "", "output": row["output"]}
            if not all(isinstance(text, str) for text in asked.values()) or not asked["instruction"].strip():
                raise TypeError("not text")
            rows.append(asked | {key: row[key] for key in ("subject", "entity") if key in row})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{file}, row {number}: a JSON object with instruction and output is needed") from error
    if len(rows) < 10:
        raise DataError(f"{file} has {len(rows)} rows: at least 10 are needed to hold some out")
    return rows
