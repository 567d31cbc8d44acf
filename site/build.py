"""Build the site: lessons as read, pages, calculator, measurements, and the API, as static pages in runs/site/html.

    python site/build.py                      all lessons (make site)
    python site/build.py --lessons 00 03 --small --out FOLDER      a site for tests: two lessons, one model
    python site/build.py --external           look only whether the links to elsewhere still answer

Sphinx with myst-nb makes the pages. Nothing is fetched, and no lesson is run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cheat_sheet
import checks
import planned
from charts import write_charts
from staging import SITE, write_sources

from helpers import COURSE_ROOT, CourseError, course
from helpers.failures import FAILURES, failures_page
from helpers.files import write_whole
from helpers.memory import GPUS
from helpers.memory.planner import MARGIN

RUNS = COURSE_ROOT / "runs" / "site"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lessons", nargs="*", help="numbers; all that have a notebook unless given")
    parser.add_argument("--small", action="store_true", help="one model in the calculator")
    parser.add_argument(
        "--out", type=lambda text: Path(text).resolve(), default=RUNS, help="folder (default: runs/site)"
    )
    parser.add_argument("--external", action="store_true", help="check the links to elsewhere, and write no pages")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    source = write_all_sources(arguments.out, arguments.lessons, arguments.small)
    if arguments.external:
        return sphinx("linkcheck", source, arguments.out / "linkcheck", ())
    html = arguments.out / "html"
    if status := sphinx("html", source, html, ("--fail-on-warning", "--keep-going")):
        return status
    if found := checks.faults(html):
        print(*found, sep="\n", file=sys.stderr)
        return 1
    pages = sum(1 for _ in html.rglob("*.html"))
    print(f"{html / 'index.html'}: {pages} pages in {time.perf_counter() - begun:.0f} s")
    return 0


def write_all_sources(out: Path, numbers: list[str] | None, small: bool) -> Path:
    """Write what Sphinx reads into `out`/source, anew, and what scripts read beside it; returns that folder."""
    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    wanted = map(course.find_lesson, numbers) if numbers else course.lessons()
    lessons = [lesson for lesson in wanted if (course.NOTEBOOKS / f"{lesson.stem}.ipynb").is_file()]
    models, ranks = planned.SMALL if small else (planned.MODELS, planned.RANKS)
    predicted = planned.planned(RUNS / "cache", models, ranks)
    if found := planned.faults(predicted):
        raise CourseError("\n".join(found))
    write_sources(source, [lesson.stem for lesson in lessons], values(source, lessons, predicted, models, ranks))
    (source / "figures").mkdir(exist_ok=True)
    shutil.copy(SITE / "figures" / "three_ways.png", source / "figures")
    generated = out / "generated"
    generated.mkdir(parents=True, exist_ok=True)
    write_whole(generated / "calculator-numbers.js", planned.script(predicted))
    write_whole(generated / "failure-patterns.js", failure_patterns())
    return source


def values(source: Path, lessons, predicted: dict, models: dict, ranks: tuple) -> dict:
    """What the pages' templates fill in."""
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    alt, words = re.search(r"!\[([^\]]+)\]\(site/figures/three_ways\.png\)\n\n\*(.+)\*\n", readme).groups()
    promises = re.findall(r"\]\(notebooks/(\w+)\.ipynb\) \| (.+?) \|", readme)
    return {
        "lessons": [(lesson.stem, course.title(lesson)) for lesson in lessons],
        "promise": {stem: f"afterwards you can {can}" for stem, can in promises},
        "t4": planned.on_a_t4(predicted, models),
        "plain": planned.example(predicted),
        "t4_bytes": GPUS["t4"].total_bytes,
        "lengths": planned.LENGTHS,
        "batches": planned.BATCHES,
        "margin": MARGIN,
        "in_table": in_table,
        "numeric": lambda cell: str(cell)[:1].isdecimal(),  # such columns stand right
        "controls": planned.controls(models, ranks),
        "failures": len(FAILURES),
        "failures_list": failures_list(),
        "figure_alt": alt,
        "figure_words": words,
        "charts": write_charts(source / "figures"),
        "sheet": cheat_sheet.values(),
    }


def failures_list() -> str:
    """The page of failures without its head. A part is called one, so that no part and failure have one name, hence one id."""
    listed = failures_page().partition("cures them.\n")[2]
    return re.sub(r"^## (\d+) ", r"## Part \1: ", listed, flags=re.MULTILINE)


def in_table(found: tuple[int, int, str]) -> str:
    """The peak of the tensors and all that is held, in GB, and in a word whether it fits."""
    peak, held, verdict = found
    sizes = f"{peak / 1e9:.1f} / {held / 1e9:.1f}" if held else f"at least {peak / 1e9:.1f}"
    return sizes + {"fits": "", "tight": " tight", "no": " no"}[verdict]


def failure_patterns() -> str:
    """The patterns of the table, and the words that people type, as a script."""
    rows = [
        {"name": it.name, "words": it.words, "patterns": [in_javascript(one.pattern) for one in it.patterns]}
        for it in FAILURES
    ]
    return f"window.FAILURES = {json.dumps(rows)};\n"


def in_javascript(pattern: str) -> str:
    """A pattern of Python's: JavaScript writes the names of groups in another way."""
    return re.sub(r"\(\?P=(\w+)\)", r"\\k<\1>", pattern.replace("(?P<", "(?<"))


def sphinx(builder: str, source: Path, out: Path, options: tuple[str, ...]) -> int:
    """Run Sphinx with the settings of site/conf.py; its exit status."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "-b",
        builder,
        "-c",
        str(SITE),
        "-d",
        str(out.parent / "doctrees"),
    ]
    surroundings = os.environ | {"COURSE_SITE_GENERATED": str(out.parent / "generated"), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, *options, str(source), str(out)], env=surroundings).returncode


if __name__ == "__main__":
    sys.exit(main())
