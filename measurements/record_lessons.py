"""Turn what lessons recorded in one run into rows: a line of JSON a lesson, with date, device, versions and the lesson's hash.

    python measurements/record_lessons.py RUN_NAME FOLDER >> measurements/h100_lessons.jsonl

FOLDER holds NN_slug.json files as `python -m helpers run` leaves them, or RUN_NAME-NN_slug.json as tests/gpu keeps them.
A row of another version of a lesson stays: it says which (`source_sha256`), and tests/course/test_measurements.py names it.
"""

import json
import sys
from pathlib import Path

PRIVATE = {
    "model_id",
    "dataset_id",
    "data_file",
    "adapter_dir",
    "output_dir",
    "merged_dir",
}  # may be paths of the machine


def row_of(name: str, file: Path) -> dict:
    """One row from one record."""
    record = json.loads(file.read_text(encoding="utf-8"))
    about, verdicts = record.pop("run"), record.pop("verdicts")
    settings = {k: v for k, v in about["parameters"].items() if k not in PRIVATE or "/" not in str(v)}
    numbers = {k: v for k, v in record.items() if isinstance(v, int | float | str)}
    return {
        "run": name,
        "lesson": file.stem.removeprefix(f"{name}-"),
        "device": about["machine"].split(",")[0],
        "machine": about["machine"],
        "gpus": about["gpus"],
        "model": about["model"],
        "verdicts": len(verdicts),
        "verdicts_that_held": sum(verdict["holds"] for verdict in verdicts),
        "untrue": [verdict["claim"] for verdict in verdicts if not verdict["holds"]],
        "recorded": numbers,
        "settings": settings,
        "date": about["date"],
        "python": about["python"],
        "versions": about["versions"],
        "source_sha256": about["source_sha256"],
    }


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    for file in sorted([*folder.glob("[0-9][0-9]_*.json"), *folder.glob(f"{name}-[0-9][0-9]_*.json")]):
        print(json.dumps(row_of(name, file)))


if __name__ == "__main__":
    main()
