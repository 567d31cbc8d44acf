"""Is this machine ready for the course? A line a check, with the cure; on a GPU, prediction beside measurement.

    python -m helpers doctor            OK, WARN or FAIL a line; exit status 1 if anything is FAIL
    python -m helpers doctor --json     the same as one JSON object, for whoever collects it from a class

On a GPU it ends with a page that compares predicted with measured memory, ready to paste into an issue.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from helpers import COURSE_ROOT, CourseError, doctor
from helpers.tools._doctor_child import MARK


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


# --- the checks that need torch, in a process of their own: a broken library may hang or end it -----------------


class Child:
    """A Python that runs doctor.TORCH, and on a GPU the measured step; its lines are read as they come."""

    def __init__(self, measure: bool):
        self.measure, self.about, self.measured, self.found = measure, {}, None, []
        self.now, self.last_words, self.done = "import torch", [], threading.Event()
        code = f"import sys; sys.path.insert(0, {str(COURSE_ROOT)!r}); from helpers.tools import _doctor_child; "
        code += f"_doctor_child.main({measure!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        self.threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith(MARK):
                said = json.loads(line.removeprefix(MARK))
                self.now = said.get("now", self.now)
                self.about |= said.get("about", {})
                self.measured = said.get("measured", self.measured)
                self.found += [doctor.Finding(**finding) for finding in said.get("findings", [])]
        self.process.wait()
        self.done.set()

    def _listen(self):
        for line in self.process.stderr:
            self.last_words = ([*self.last_words, line.strip()] if line.strip() else self.last_words)[-3:]

    def findings(self, deadline: float):
        """Yield what the child found; a child that hangs or dies gives a FAIL that names what it was doing."""
        sent = 0
        while True:
            over = self.done.wait(0.05)
            while sent < len(self.found):
                yield self.found[sent]
                sent += 1
            if over or time.monotonic() > deadline:
                break
        if over and self.process.returncode == 0:
            return
        measuring = self.now == "measured step"
        status = doctor.WARN if measuring else doctor.FAIL
        if over:
            self.threads[1].join(1)
            how = f"ended by signal {-self.process.returncode}" if self.process.returncode < 0 else "stopped"
            what = f"{how}: {self.last_words[-1] if self.last_words else 'no message'}"
            cure = "python -c 'import torch, bitsandbytes' shows the whole message; " + doctor.INSTALL
        else:
            what, cure = "no answer in time", "run it again with --seconds 60; if it repeats, restart the machine"
        yield doctor.Finding(self.now, status, doctor.tidy(what), cure)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


# --- the page ---------------------------------------------------------------------------------------------------


def page(said: dict) -> str:
    """Markdown for an issue: predicted beside measured, then what the checks said; nothing that names a person or a host."""
    from helpers import course

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
    folder, found = Path(os.environ.get("COURSE_RUNS") or COURSE_ROOT / "runs") / "default", {}
    for file in sorted(folder.glob("[0-9][0-9]_*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and isinstance(record.get("run", {}), dict):
            found[file.stem] = record
    return found
