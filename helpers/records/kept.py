"""What lessons recorded, one JSON file a lesson in the folder of a run."""

import json
from pathlib import Path


def read_record(folder: Path, stem: str) -> dict:
    """What a lesson recorded in `folder`, {} where it recorded nothing."""
    file = folder / f"{stem}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
