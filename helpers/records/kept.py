"""Records in files: one JSON object a lesson in the folder of a run, and measured rows, one JSON object a line."""

import json
from pathlib import Path

from helpers.files import read_object


def read_record(folder: Path, stem: str) -> dict:
    """What the lesson `stem` recorded in `folder`; {} where it recorded nothing, or nothing that can be read."""
    try:
        record = read_object(folder / f"{stem}.json")
    except ValueError:
        return {}
    return record if isinstance(record.get("run", {}), dict) else {}


def read_rows(path) -> list[dict]:
    """Measured rows from a file of JSON lines; ValueError for a line that is no JSON."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
