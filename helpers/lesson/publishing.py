"""What has to be settled before others may see a model: licences and what they ask for, and the learner's own rows."""

from pathlib import Path

OBLIGATIONS = {  # what a base's licence asks of whoever publishes a model that was made from it
    "Apache-2.0": "a copy of it, and the base's NOTICE file if there is one",
    "Llama 3.1 Community License": (
        'a copy of it, its Notice file, "Built with Llama" on the page, and a name that begins with "Llama"'
    ),
}
LOOK = "not known here: look it up, it may forbid publishing"


def to_settle(licences: dict, merged: Path, own_rows: bool) -> dict[str, str]:
    """Rows for `table`: `licences` are those of a Run, `merged` is the folder that would be published."""
    known, asked = licences["licence_known"], OBLIGATIONS.get(licences["licence"])
    files = sorted(file.name for file in merged.glob("*") if file.name.upper().startswith(("LICENSE", "NOTICE")))
    rows = {
        "the base's licence": ": ".join(filter(None, (licences["licence"], asked))) if known else LOOK,
        "the data's licence": licences["data_licence"] or LOOK,
        "licence files in the folder": ", ".join(files) or "none: put them there",
    }
    if rows["the data's licence"] == "CC BY-NC 4.0":
        rows["the data's licence"] += ": attribution, and no commercial use"
    if own_rows:
        rows["WARNING: your own rows"] = (
            "a model can repeat what it was trained on, names and addresses included. Publish only what every row may "
            "show to anybody, and whose people have agreed; what is on the hub once is copied"
        )
    return rows
