"""The page of a class: who is ready, who fails on what, who finished which lesson, scores and losses, versions."""

import base64
import datetime
from collections import Counter, defaultdict
from pathlib import Path

from helpers import course, plots
from helpers.course import title
from helpers.doctor import FAIL, OK, WARN
from helpers.files import write_whole
from helpers.workshop.class_files import LOSSES, SCORES, Handed, Learner, LessonRecord
from helpers.workshop.sections import KIT


def write_class_page(handed: Handed, file: Path) -> Path:
    """Write one HTML page that opens without a network; raises OSError where it cannot be written."""
    import jinja2

    surroundings = jinja2.Environment(loader=jinja2.FileSystemLoader(KIT), autoescape=True, trim_blocks=True)
    learners = handed.learners
    picture, words = scores_picture(learners)
    page = surroundings.get_template("class.html.j2").render(
        when=datetime.date.today().isoformat(),
        counts=counts(handed),
        lessons=[(lesson.stem[:2], lesson.stem, title(lesson)) for lesson in course.lessons()],
        learners=learners,
        finished=Counter(stem for each in learners for stem, record in each.lessons.items() if record.finished),
        status=status,
        state=state,
        machine=machine,
        problems=problems(learners),
        versions=versions(learners),
        faults=handed.faults,
        picture=base64.b64encode(picture).decode() if picture else "",
        words=words,
        old=[each.name for each in learners if any(not record.current for record in each.lessons.values())],
    )
    write_whole(file, page)
    return file


def status(learner: Learner) -> tuple[str, str]:
    """(class of the mark, words) for whether somebody is ready."""
    if learner.doctor is None:
        return "none", "no doctor's file"
    fails = sum(found.status == FAIL for found in learner.doctor.findings)
    warns = sum(found.status == WARN for found in learner.doctor.findings)
    if fails:
        return "bad", f"{fails} FAIL" + (f", {warns} WARN" if warns else "")
    return ("soso", f"ready, {warns} WARN") if warns else ("ok", "ready")


def state(record: LessonRecord | None) -> tuple[str, str]:
    """(class of the mark, words) for how far somebody came in a lesson."""
    if record is None:
        return "none", ""
    verdicts = "" if record.held == record.verdicts else f", {record.held} of {record.verdicts} verdicts hold"
    return ("ok" if not verdicts else "soso", "done" + verdicts) if record.finished else ("part", "begun" + verdicts)


def machine(learner: Learner) -> str:
    """System, Python and GPU in a few words, as far as the doctor's file says them."""
    if learner.doctor is None:
        return ""
    about = learner.doctor.about
    parts = ["Colab" if "colab" in about else about.get("system", ""), about.get("gpu", "no GPU")]
    return ", ".join(part for part in [*parts, f"Python {about['python']}" if "python" in about else ""] if part)


def counts(handed: Handed) -> dict[str, int]:
    """The numbers of the page's first line."""
    kinds = Counter(status(learner)[0] for learner in handed.learners)
    return {
        "learners": len(handed.learners),
        "ready": kinds["ok"] + kinds["soso"],
        "not ready": kinds["bad"],
        "without a doctor's file": kinds["none"],
        "files not counted": len(handed.faults),
    }


def problems(learners: list[Learner]) -> list[dict]:
    """What is not OK, those who fail first: the check, its status, the cure, and what each learner's doctor saw."""
    found: dict[tuple, list[tuple[str, str]]] = defaultdict(list)
    for learner in learners:
        for finding in learner.doctor.findings if learner.doctor else ():
            if finding.status != OK:
                found[finding.status, finding.check, finding.cure].append((learner.name, finding.what))
    rows = [{"status": s, "check": check, "cure": cure, "who": who} for (s, check, cure), who in found.items()]
    return sorted(rows, key=lambda row: (row["status"] != FAIL, -len(row["who"]), row["check"]))


def versions(learners: list[Learner]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """For each package, its versions and who has them, the commonest first; packages that differ come first."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for learner in learners:
        if learner.doctor:
            python = {"Python": learner.doctor.about["python"]} if "python" in learner.doctor.about else {}
            for package, version in (python | learner.doctor.versions).items():
                found[package][version].append(learner.name)
    rows = [(package, sorted(of.items(), key=lambda item: -len(item[1]))) for package, of in found.items()]
    return sorted(rows, key=lambda row: (-len(row[1]), row[0] != "Python", row[0]))


# --- the plot ---------------------------------------------------------------------------------------------------


def judged(learners: list[Learner]) -> list[tuple[str, LessonRecord]]:
    """(name, record): for each learner the last lesson that recorded scores and losses, both before and after."""
    found = []
    for learner in learners:
        whole = [record for _, record in sorted(learner.lessons.items()) if set(record.scores) >= {*SCORES, *LOSSES}]
        found += [(learner.name, whole[-1])] if whole else []
    return sorted(found, key=lambda pair: (pair[1].own_data, -pair[1].scores[SCORES[1]], pair[1].scores[LOSSES[1]]))


def scores_picture(learners: list[Learner]) -> tuple[bytes, str]:
    """(a PNG, the finding in words): a row a learner, held-out exact match and loss, before and after; (b"", "") for none."""
    rows = judged(learners)
    if not rows:
        return b"", ""
    better = sum(record.scores[LOSSES[1]] < record.scores[LOSSES[0]] for _, record in rows)
    words = f"Held-out loss fell for {better} of {len(rows)}"
    figure, axes = plots.axes(words, "", "", (9, 1.6 + 0.28 * len(rows)), ncols=2, sharey=True)
    for ax, names, label, scale in (
        (axes[0], SCORES, "exact answers (%)", 100),
        (axes[1], LOSSES, "loss (nats per token)", 1),
    ):
        for height, (_, record) in enumerate(rows):
            before, after = (scale * record.scores[name] for name in names)
            colour = plots.COLOURS["orange" if record.own_data else "blue"]
            ax.plot([before, after], [height, height], color=plots.COLOURS["grey"], linewidth=2, zorder=1)
            ax.scatter([before], [height], facecolor="white", edgecolor=colour, zorder=2)
            ax.scatter([after], [height], color=colour, zorder=3)
        ax.set_xlabel(label)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", alpha=0.25)
    axes[0].set_xlim(-3, 103)
    axes[1].set_xlim(left=min(0, axes[1].get_xlim()[0]))
    axes[0].set_yticks(range(len(rows)), [name.replace("$", r"\$") for name, _ in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return plots.png(figure, dpi=110), words
