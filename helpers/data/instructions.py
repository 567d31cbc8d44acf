"""The instructions that a lesson trains on, and the template that they are written in."""

import json
from pathlib import Path

from helpers import COURSE_ROOT
from helpers.data.hub_rows import from_hub, look_at_hub
from helpers.data.own_rows import Reading, is_hub_id, load_rows
from helpers.data.readers import DataError
from helpers.files import changed_asset

BUNDLED_INSTRUCTIONS = COURSE_ROOT / "assets" / "instructions"
COURSE_DATA = ("auto", "bundled", "alpaca", "tatsu-lab/alpaca")
LOOKED_AT = 20_000  # rows


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
    asked = alpaca_prompt(row["instruction"], row["input"]) if row["instruction"] else ""  # a plain text is all answer
    return {"prompt": asked, "completion": row["output"]}


def licence_of_rows(name: str) -> str | None:
    """The licence of rows that the course knows, by what load_instructions names them; None for any others."""
    known = {"tatsu-lab/alpaca": "CC BY-NC 4.0", "the bundled instructions": "Apache-2.0"}
    return next((licence for begins, licence in known.items() if name.startswith(begins)), None)


def load_instructions(dataset_id: str = "auto", machine=None, seed: int = 0, **own):
    """A DatasetDict with "train" and "heldout", columns instruction, input and output; and a line that names it.

    "auto" is tatsu-lab/alpaca on a GPU with a network and a model other than the bundled one, else the bundled
    instructions. Rows of one's own are split 9 to 1, copies and groups on one side; `own` are load_rows's columns,
    encoding, split and revision. Raises DataError, one line.
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
        files = {split: BUNDLED_INSTRUCTIONS / f"{split}.jsonl" for split in ("train", "heldout")}
        changed = changed_asset(BUNDLED_INSTRUCTIONS)
        if changed:
            raise DataError(f"the bundled instructions: {changed}")
        rows = DatasetDict({split: _read_json_lines(file) for split, file in files.items()})
        return rows, f"the bundled instructions, {len(rows['train'])} to learn and {len(rows['heldout'])} held out"
    if dataset_id not in COURSE_DATA:
        return load_rows(dataset_id, **own).split(seed)
    parts = from_hub("tatsu-lab/alpaca").train_test_split(test_size=0.1, seed=seed)
    rows = DatasetDict({"train": parts["train"], "heldout": parts["test"]})
    name = "tatsu-lab/alpaca (CC BY-NC 4.0)"
    return rows, f"{name}, {len(rows['train'])} to learn and {len(rows['heldout'])} held out"


def look_at(dataset_id: str, columns="auto", encoding: str = "auto", split="auto", revision="auto") -> None:
    """Raise DataError, one line, for rows that cannot be trained on; imports nothing heavy. Looks at the first 20,000."""
    if dataset_id in COURSE_DATA:
        if (columns, encoding, split, revision) != ("auto",) * 4:
            how = "columns, encoding, split and revision"
            raise DataError(f"{how} are for rows of your own, and dataset_id is {dataset_id!r}")
    elif is_hub_id(dataset_id):
        look_at_hub(dataset_id)
    else:
        for _ in Reading(dataset_id, columns, encoding, split, revision, LOOKED_AT):
            pass


def _read_json_lines(file: Path):
    """The course's own rows, which are known to be good."""
    from datasets import Dataset

    return Dataset.from_list([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
