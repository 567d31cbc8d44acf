"""Rows of a learner's own, of any known format and layout, as instruction, input and output; and what was understood."""

import hashlib
import itertools
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.data.layouts import Converter, Layout, Notes, in_words, recognise
from helpers.data.readers import KINDS, DataError, RowFile, files_of, opened
from helpers.data.splits import split_rows

HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9](?:[\w.-]*\w)?")
AHEAD = 1000  # rows that are looked at for their columns
AT_ONCE = 1000  # rows that are in memory together
EXAMPLES = 3
KEPT = "course-rows-"  # begins the name of a temporary folder with rows, before the number of its process


def is_hub_id(dataset_id: str) -> bool:
    """Whether a name is a data set's on the hub, and no file or folder."""
    if not HUB_ID.fullmatch(dataset_id) or "--" in dataset_id or ".." in dataset_id or len(dataset_id) > 96:
        return False
    return not dataset_id.endswith((*KINDS, ".gz")) and not os.path.exists(dataset_id)


@dataclass
class Understood:
    """What was understood of a data set: its format and columns, how many rows, what was changed and left out."""

    name: str
    format: str = ""
    layout: Layout | None = None
    read: int = 0
    used: int = 0
    changed: list[Notes] = field(default_factory=list)
    left_out: list[Notes] = field(default_factory=list)
    files_left_out: list[str] = field(default_factory=list)
    examples: list[dict] = field(default_factory=list)
    answers: int = 0  # different ones, counted up to a thousand
    stopped_at: int = 0  # where reading was told to end, or 0
    digest: str = ""  # of all rows, once they are read: other rows are another run

    def lines(self) -> list[tuple[str, str]]:
        """(what, in words) of all of it but the examples."""
        layout = self.layout or Layout("", {})
        found = [("format", self.format), ("columns", str(layout))]
        if layout.unused:
            found.append(("columns not used", shorten(", ".join(map(str, layout.unused)), 200)))
        unread = f" (only the first {self.stopped_at:,} were looked at)" if self.stopped_at else ""
        out = self.read - self.used
        found.append(
            ("rows", f"{self.read:,} read, {self.used:,} to use{f', {out:,} left out' if out else ''}{unread}")
        )
        found += [("left out", line) for notes in self.left_out for line in notes.lines()]
        if self.files_left_out:
            found.append(("files left out", ", ".join(self.files_left_out[:8])))
        found += [("changed", line) for notes in self.changed for line in notes.lines()]
        if self.answers == 1 and self.used > 1:
            found.append(
                ("answers", f"all are {shorten(self.examples[0]['output'], 40)!r}: a model can only learn to say that")
            )
        return found

    def __str__(self) -> str:
        shown = [f"{what + ':':<18}{words}" for what, words in self.lines()]
        for number, row in enumerate(self.examples, 1):
            shown += [f"row {number}"] + [
                f"  {role:<16}{shorten(text)}" for role, text in row.items() if text and role != "messages"
            ]
        return "\n".join([self.name, *shown])


def shorten(text: str, width: int = 100) -> str:
    """A text in one line of at most `width` characters."""
    return textwrap.shorten(repr(text)[1:-1].replace("\\n", " "), width, placeholder=" ...")


class Reading:
    """Rows of a file, a folder or a data set on the hub, converted one by one; `understood` fills while they are read."""

    def __init__(self, dataset_id: str, columns="auto", encoding: str = "auto", split="auto", revision="auto", limit=0):
        self.columns, self.limit = columns, limit
        self.understood = Understood(Path(dataset_id).expanduser().resolve().name)
        self.files: list[RowFile] = []  # with the encoding of each, and what stands between its cells
        if is_hub_id(dataset_id):
            from helpers.data.hub_rows import hub_rows

            self.understood.name = dataset_id
            rows, self.understood.format = hub_rows(dataset_id, split, revision)
            self.parts = [(dataset_id, "row", rows)]
        else:
            if (split, revision) != ("auto", "auto"):
                raise DataError(f"split and revision are for data sets on the hub, and {dataset_id!r} is none")
            paths, self.understood.files_left_out = files_of(dataset_id)
            self.files = [opened(path, encoding) for path in paths]
            kinds, several = list(dict.fromkeys(map(str, self.files))), len(self.files) > 1
            self.understood.format = "; ".join(kinds) + (f"; {len(self.files)} files" if several else "")
            self.parts = [(file.path.name, file.unit, file.rows()) for file in self.files]

    def __iter__(self) -> Iterator[dict]:
        """Each row as instruction, input and output; DataError, one line, for what cannot be read or if nothing is left."""
        seen: set[str] = set()
        told, digest = self.understood, hashlib.blake2b(digest_size=8)
        for name, unit, rows in self.parts:
            ahead = list(itertools.islice(rows, AHEAD))
            columns = list(dict.fromkeys(str(column) for _, row in ahead for column in row))
            if not ahead:
                raise DataError(f"{name} holds no rows")
            converter = Converter(recognise(columns, self.columns, name), name, unit)
            told.layout = told.layout or converter.layout
            if told.layout.roles.keys() != converter.layout.roles.keys():
                raise DataError(f"{name} has other columns than the file before it: {in_words(columns)}")
            told.changed.append(converter.changed)
            told.left_out.append(converter.left_out)
            for place, row in itertools.chain(ahead, rows):
                if self.limit and told.read >= self.limit:
                    told.stopped_at = told.read
                    return
                told.read += 1
                converted = converter(row, place)
                if converted is not None:
                    told.used += 1
                    digest.update("\0".join(converted.values()).encode() + b"\n")
                    if len(seen) < AT_ONCE:
                        seen.add(converted["output"].strip())
                        told.answers = len(seen)
                    if len(told.examples) < EXAMPLES:
                        told.examples.append(converted)
                    yield converted
        if not told.used:
            why = "; ".join(line for notes in told.left_out for line in notes.lines())
            raise DataError(f"{told.name}: none of its {told.read:,} rows can be used: {why}")
        told.digest = digest.hexdigest()


@dataclass
class LoadedRows:
    """What load_rows returns: all rows as a Dataset with instruction, input and output; and what was understood."""

    rows: Any
    understood: Understood

    def __str__(self) -> str:
        return str(self.understood)

    def split(self, seed: int = 0):
        """A DatasetDict with "train" and "heldout", which share no copies and no group; and a line that names it."""
        from datasets import DatasetDict

        learn, held, told = split_rows(self.rows, seed, by_group="group" in self.rows.column_names)
        named = f"{self.understood.name}, {len(learn):,} to learn and {len(held):,} held out{told and '; ' + told}"
        return DatasetDict({"train": learn, "heldout": held}), named


def load_rows(dataset_id: str, columns="auto", encoding: str = "auto", split: str = "auto", revision: str = "auto"):
    """The rows of a file, a folder or a data set on the hub as `LoadedRows`; print it to see what was understood.

    Taken are JSON lines, JSON arrays, CSV, TSV, Parquet, each also as .gz, folders of them, and "owner/name" on the hub with
    its `split` and `revision`. Columns are known by their names (instruction, input, output; prompt, completion; question,
    answer; messages; conversations; Dolly's; text), or said: columns="prompt=Question,completion=Answer,group=Customer".
    The text is UTF-8, or what its byte order mark says, or `encoding`. The rows lie in a file that goes with this process,
    so memory does not grow with them. Raises DataError, one line with the row's line, for what cannot be read.
    """
    reading = Reading(dataset_id, columns, encoding, split, revision)
    return LoadedRows(_on_disk(reading), reading.understood)


def _forget_killed(folder: str) -> None:
    """Delete the rows of processes that were killed before they could do it, of this user alone."""
    import shutil

    import psutil

    for left in Path(folder).glob(f"{KEPT}*"):
        owner = left.name.removeprefix(KEPT).split("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _on_disk(rows) -> object:
    """A Dataset of the rows in a temporary file, which is deleted when this process ends."""
    import atexit
    import shutil
    import tempfile

    import pyarrow
    from datasets import Dataset

    _forget_killed(tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix=f"{KEPT}{os.getpid()}-")  # for this user's eyes alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file, rows = os.path.join(folder, "rows.arrow"), iter(rows)
    batch = list(itertools.islice(rows, AT_ONCE))
    schema = pyarrow.schema([(name, pyarrow.string()) for name in batch[0]])
    with pyarrow.ipc.new_stream(file, schema) as written:
        while batch:
            written.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
            batch = list(itertools.islice(rows, AT_ONCE))
    return Dataset.from_file(file)
