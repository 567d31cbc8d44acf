"""What lessons recorded, one JSON file a lesson in the folder of a run."""

from pathlib import Path

from helpers.files import read_object


def read_record(folder: Path, stem: str) -> dict:
    """What the lesson `stem` recorded in `folder`; {} where it recorded nothing, or nothing that can be read."""
    try:
        record = read_object(folder / f"{stem}.json")
    except ValueError:
        return {}
    return record if isinstance(record.get("run", {}), dict) else {}
