"""Is this machine ready for the course? A line a check, with the cure; on a GPU, prediction beside measurement.

    python -m helpers doctor            OK, WARN or FAIL a line; exit status 1 if anything is FAIL
    python -m helpers doctor --json     the same as one JSON object, for whoever collects it from a class

On a GPU it ends with a page that compares predicted with measured memory, ready to paste into an issue.
"""

import json
import time

from helpers import CourseError, course, doctor
from helpers.doctor import Child
from helpers.files import output_folder
from helpers.records import read_record


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--no-page", action="store_true", help="on a GPU: no measured step and no page")
    parser.add_argument("--seconds", type=float, default=20, help="give up on what is not done by then (default: 20)")


def main(arguments) -> int:
    if not 1 <= arguments.seconds <= 3600:
        raise CourseError(f"--seconds {arguments.seconds:g} is not possible; allowed: a number from 1 to 3600")
    begun, shown = time.monotonic(), (lambda finding: None) if arguments.json else _print
    child = Child(measure=not arguments.no_page)  # it imports torch while the checks here run
    try:
        findings = doctor.examine(*doctor.INSTALLED, *doctor.MACHINE, *doctor.NETWORK)
        for finding in findings:
            shown(finding)
        for finding in child.findings(begun + arguments.seconds):
            findings.append(finding)
            shown(finding)
    finally:
        child.end()
    said = {
        "worst": doctor.worst(findings),
        "seconds": round(time.monotonic() - begun, 1),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "checks": [vars(finding) for finding in findings],
        "about": doctor.machine_in_numbers() | child.about,
        "measured": child.measured,
    }
    said["page"] = page(said) if child.about.get("gpu") and not arguments.no_page else None
    if arguments.json:
        print(json.dumps(said, indent=1))
    else:
        counts = {s: sum(f.status == s for f in findings) for s in (doctor.OK, doctor.WARN, doctor.FAIL)}
        print(f"\n{', '.join(f'{n} {s}' for s, n in counts.items())}, in {said['seconds']:.0f} s")
        if said["page"]:
            print(f"\nTo paste into an issue, from here on:\n\n{said['page']}")
    return 1 if said["worst"] == doctor.FAIL else 0


def _print(finding: doctor.Finding) -> None:
    print(f"{finding.status:<5} {finding.check:<16} {finding.what}", flush=True)
    if finding.cure:
        print(f"{'':<5} {'':<16} -> {finding.cure}", flush=True)


# --- the page ---------------------------------------------------------------------------------------------------


def page(said: dict) -> str:
    """Markdown for an issue: predicted beside measured, then what the checks said; nothing that names a person or a host."""
    about = said["about"]
    repository, tag = course.address()
    rows = comparisons(said["measured"], records())
    lines = [f"## Predicted and measured memory on {about['gpu']}", ""]
    lines += [f"Course {tag}, {said['date'][:10]}. {about['machine']}.", ""]
    lines += [", ".join(f"{name} {number}" for name, number in about["versions"].items()) + ".", ""]
    if rows:
        lines += ["| run | predicted GiB | measured GiB | predicted / measured - 1 |", "|---|---:|---:|---:|"]
        lines += [f"| {what} | {p / 2**30:.3f} | {m / 2**30:.3f} | {p / m - 1:+.2%} |" for what, p, m in rows]
    else:
        lines += ["Nothing was measured: the step did not finish in time, or failed; `--seconds 60` gives it longer."]
    lines += ["", "| check | status | what |", "|---|---|---|"]
    lines += [f"| {f['check']} | {f['status']} | {f['what'].replace('|', '/')} |" for f in said["checks"]]
    lines += [
        "",
        "The formulas were derived from runs on an H200, part of them held to a T4's rules. A page from a real T4",
    ]
    lines += [f"is welcome at https://github.com/{repository}/issues/new"]
    return "\n".join(lines)


def comparisons(measured: dict | None, lessons: dict[str, dict]) -> list[tuple[str, int, int]]:
    """(what, predicted bytes, measured bytes): the doctor's own step, and what lessons recorded of runs on a GPU."""
    rows = []
    if measured:
        for key, words in (
            ("after_load", "loaded"),
            ("peak_allocated", "peak allocated"),
            ("peak_reserved", "peak reserved"),
        ):
            rows.append((f"{measured['what']}: {words}", measured["predicted"][key], measured["measured"][key]))
    for stem, record in lessons.items():
        on_cpu = record.get("run", {}).get("machine", "CPU").startswith("CPU")
        predicted, peak = record.get("predicted_peak_bytes"), record.get("training_peak_bytes")
        if not on_cpu and all(isinstance(v, int | float) and v > 0 for v in (predicted, peak)):
            rows.append((f"{stem}, {record['run'].get('model')}: peak allocated", predicted, peak))
    return rows


def records() -> dict[str, dict]:
    """What lessons recorded in runs/default, by lesson; files that cannot be read are left out."""
    try:
        folder = output_folder("auto")
    except CourseError:  # the check of the disk has said why
        return {}
    found = {file.stem: read_record(folder, file.stem) for file in sorted(folder.glob("[0-9][0-9]_*.json"))}
    return {stem: record for stem, record in found.items() if record}
