"""The report of a run: one HTML page that opens without a network, and the same as a short table of text."""

import datetime
from pathlib import Path

import jinja2

from helpers import course
from helpers.course import title
from helpers.files import write_whole
from helpers.records import read_record


def write_report(folder: Path, results: list[dict]) -> Path:
    """Write <folder>/report.html from what the lessons recorded and the figures in their notebooks."""
    template = jinja2.Environment(autoescape=True).from_string(Path(__file__).with_suffix(".html").read_text("utf-8"))
    lessons = [_lesson(folder, result) for result in results]
    about: dict = next((r["about"] for r in lessons if r["about"]), {})
    page = template.render(
        name=folder.name,
        when=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        machine=about.get("machine", "machine not known"),
        versions=", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items()),
        lessons=lessons,
    )
    file = folder / "report.html"
    write_whole(file, page)
    return file


def _lesson(folder: Path, result: dict) -> dict:
    # What a failed lesson recorded before it failed is shown too; a record left by an earlier run is not.
    record = read_record(folder, result["lesson"])
    about = record.pop("run", {})
    verdicts = record.pop("verdicts", [])
    peak = about.get("peak_resident_bytes")
    return result | {
        "title": title(course.find_lesson(result["lesson"])),
        "error": _without_rows(result["error"]),
        "verdicts": verdicts,
        "held": sum(v["holds"] for v in verdicts),
        "peak": f"{peak / 1e9:.2f} GB" if peak else "-",
        "numbers": [(k, _short(v)) for k, v in record.items() if isinstance(v, int | float | str)],
        "figures": figures(result["notebook"]),
        "about": about,
    }


def _without_rows(error: str | None) -> str | None:
    """A failure as a report shows it: what a DataError says may quote a learner's rows, which stand in her notebook alone."""
    where, mark, _ = (error or "").partition(": DataError: ")
    return f"{where}{mark}what it says may quote your rows, so it stands in the notebook alone" if mark else error


def figures(notebook: Path) -> list[dict]:
    """The PNG figures of an executed notebook, in order, as base64 with their alternative text."""
    import nbformat

    if not notebook.is_file():
        return []
    found = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        for out in cell.get("outputs", []):
            data = out.get("data", {}).get("image/png")
            if data:
                alt = out.get("metadata", {}).get("image/png", {}).get("alt", "")
                found.append({"data": data.replace("\n", ""), "alt": alt})
    return found


def as_text(results: list[dict]) -> str:
    """The table that the command prints: lesson, seconds, outcome."""
    lines = [f"{'lesson':<28}{'seconds':>8}  outcome"]
    lines += [f"{r['lesson']:<28}{r['seconds']:>8.0f}  {outcome(r)}" for r in results]
    return "\n".join(lines)


def outcome(result: dict) -> str:
    """How a run of a lesson ended, in a few words."""
    untrue = len(result["untrue"])
    return "FAILED" if result["error"] else f"ran, {untrue} of its verdicts untrue" if untrue else "ok"


def _short(value) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
