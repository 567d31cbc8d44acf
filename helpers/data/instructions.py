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
TEMPLATES = ("alpaca", "question")


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
    """A DatasetDict with "train" and "heldout", columns instruction, input and output; a line that names it; what was understood.

    The last is an Understood of rows of one's own, and None of those that the course knows.
    "auto" is tatsu-lab/alpaca on a GPU with a network and a model other than the bundled one, else the bundled
    instructions. Rows of one's own are split 9 to 1, copies and groups on one side; `own` are load_rows's columns,
    encoding, split and revision, of which Alpaca takes the revision. Raises DataError, one line.
    """
    from datasets import DatasetDict

    _check_own(dataset_id, **own)
    if dataset_id == "auto":
        if machine is None or machine.device == "cpu":
            return load_instructions("bundled")
        try:
            return load_instructions("alpaca", machine, seed)
        except DataError as error:
            rows, name, _ = load_instructions("bundled")
            return rows, f"{name}; in place of alpaca, since {error}", None
    if dataset_id == "bundled":
        files = {split: BUNDLED_INSTRUCTIONS / f"{split}.jsonl" for split in ("train", "heldout")}
        changed = changed_asset(BUNDLED_INSTRUCTIONS)
        if changed:
            raise DataError(f"the bundled instructions: {changed}")
        rows = DatasetDict({split: _read_json_lines(file) for split, file in files.items()})
        return (
            rows,
            f"the bundled instructions, {len(rows['train'])} to learn and {len(rows['heldout'])} held out",
            None,
        )
    if dataset_id not in COURSE_DATA:
        loaded = load_rows(dataset_id, **own)
        return *loaded.split(seed), loaded.understood
    revision = _revision(**own)
    parts = from_hub("tatsu-lab/alpaca", revision=revision)[0].train_test_split(test_size=0.1, seed=seed)
    rows = DatasetDict({"train": parts["train"], "heldout": parts["test"]})
    name = "tatsu-lab/alpaca (CC BY-NC 4.0)" + (f", revision {revision}" if revision else "")
    return rows, f"{name}, {len(rows['train'])} to learn and {len(rows['heldout'])} held out", None


def look_at(
    dataset_id: str, columns="auto", encoding: str = "auto", split="auto", revision="auto", template: str = "auto",
    output: Path | None = None,
) -> None:  # fmt: skip
    """Raise DataError, one line, for rows that cannot be trained on, or a template that is not there; imports nothing heavy.

    Looks at the first 20,000 rows. `output` is the folder that the run writes to: it may not lie in a folder of rows.
    """
    read_template(template)
    _check_own(dataset_id, columns, encoding, split, revision)
    asked = _revision(revision=revision)
    if dataset_id in COURSE_DATA:
        if dataset_id not in ("auto", "bundled"):
            look_at_hub("tatsu-lab/alpaca", asked)
    elif is_hub_id(dataset_id):
        look_at_hub(dataset_id, asked)
    else:
        folder = Path(dataset_id).expanduser().resolve()
        if output is not None and folder.is_dir() and output.resolve().is_relative_to(folder):
            raise DataError(
                f"output_dir, {output}, lies in the folder of rows {dataset_id!r}, and what the run writes there would be "
                "read as rows: name another output_dir"
            )
        for _ in Reading(dataset_id, columns, encoding, split, revision, LOOKED_AT):
            pass


def read_template(template: str) -> str:
    """The text of a file with a template, "" for a name of one; DataError, one line, for what is neither."""
    if template in ("auto", *TEMPLATES):
        return ""
    try:
        return Path(template).expanduser().read_text(encoding="utf-8-sig")  # a byte order mark is no part of it
    except (OSError, ValueError) as error:
        names = ", ".join(f'"{name}"' for name in ("auto", *TEMPLATES))
        raise DataError(
            f"template = {template!r} is no readable file: name a file with a Jinja template, or {names}"
        ) from error


def _check_own(dataset_id: str, columns="auto", encoding: str = "auto", split="auto", revision="auto") -> None:
    """Raise DataError, one line, where rows of the course are told how to be read; Alpaca alone has revisions."""
    on_hub = dataset_id in ("alpaca", "tatsu-lab/alpaca")
    told = (columns, encoding, split, "auto" if on_hub else revision)
    if dataset_id in COURSE_DATA and told != ("auto",) * 4:
        how = "columns, encoding and split" if on_hub else "columns, encoding, split and revision"
        raise DataError(f"{how} are for rows of your own, and dataset_id is {dataset_id!r}")


def _revision(revision="auto", **_) -> str | None:
    return None if revision == "auto" else revision


def _read_json_lines(file: Path):
    """The course's own rows, which are known to be good."""
    from datasets import Dataset

    return Dataset.from_list([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
