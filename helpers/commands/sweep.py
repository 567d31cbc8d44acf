"""Run one lesson over a grid of parameters: python -m helpers sweep 03 rank=4,8,16 quant_type=nf4,fp4

Two runs at a time where memory allows. With --engine dask --scheduler ADDRESS the same runs go to a Dask cluster whose
workers see this folder and have the course installed. Ends with a table and a plot of what was recorded.
"""

import itertools
import json
import os
import sys
from pathlib import Path

from helpers import CourseError, course, plots
from helpers.commands import run
from helpers.files import output_folder, write_whole
from helpers.machine import gpus_of_driver
from helpers.records import read_record

BYTES_A_RUN = 4e9  # generous for the bundled model: lesson 03 peaks well below it


def add_arguments(parser):
    parser.add_argument("lesson", help="a number or a name")
    parser.add_argument("grid", nargs="+", metavar="NAME=VALUE,VALUE", help="a parameter and its values")
    parser.add_argument("--name", default="sweep", help="the folder under runs/ (default: sweep)")
    parser.add_argument("--engine", choices=("local", "dask"), default="local")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, such as tcp://127.0.0.1:8786")


def main(arguments) -> int:
    lesson, grid = course.find_lesson(arguments.lesson), parse_grid(arguments.grid)
    if (arguments.engine == "dask") != (arguments.scheduler is not None):
        raise CourseError("--engine dask and --scheduler ADDRESS go together")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for point in points:
        run.check_parameters([lesson], point)
    folder = run.run_folder(arguments.name)
    print(f"{lesson.stem}: {len(points)} runs into {os.path.relpath(folder)}", flush=True)
    engine = run_on_dask if arguments.engine == "dask" else run_here
    rows = engine(arguments.scheduler, [(str(lesson), str(folder / point_name(p)), p, os.getcwd()) for p in points])
    write_whole(folder / "sweep.json", json.dumps(rows, indent=1) + "\n")
    print(as_text(rows, list(grid)))
    swept = [name for name, values in grid.items() if len(values) > 1] or list(grid)
    figure = plot(rows, swept, lesson.stem)
    if figure is not None:
        figure.savefig(folder / "sweep.png", dpi=110)
        print(f"table: {os.path.relpath(folder / 'sweep.json')}, plot: {os.path.relpath(folder / 'sweep.png')}")
    for row in rows:
        if row["error"]:
            print(f"{point_name(row['point'])} failed in {row['error']}", file=sys.stderr)
    return 1 if any(row["error"] for row in rows) else 0


def parse_grid(words: list[str]) -> dict[str, list]:
    """{"rank": [4, 8]} from ["rank=4,8"]; "target_modules" lists are joined with + instead of commas."""
    grid = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not name or "" in values.split(","):
            raise CourseError(f"{word!r} is not NAME=VALUE,VALUE")
        if name in grid:
            raise CourseError(f"{name} stands twice in the grid")
        lists = name == "target_modules"
        grid[name] = [run.parse_value(v.replace("+", ",") if lists else v) for v in values.split(",")]
    return grid


def point_name(point: dict) -> str:
    return ",".join(f"{name}={str(value).replace('/', '_')}" for name, value in point.items())


def run_point(lesson: str, folder: str, point: dict, cwd: str, threads: int | None = None) -> dict:
    """One run of the grid, in this process; returns point, seconds, error and what was recorded.

    `cwd` is where the command was typed: a relative path in a parameter starts there.
    """
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    where = output_folder(folder)
    result = run.run_lesson(Path(lesson), where, point, cwd)
    found = {} if result["error"] else read_record(where, Path(lesson).stem)
    values = {k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    untrue = [f"a verdict: not so in this run: {claim}" for claim in result["untrue"]]
    error = result["error"] or "; ".join(untrue) or None
    return {"point": point, "seconds": result["seconds"], "error": error, "recorded": values}


def run_here(_, tasks: list[tuple]) -> list[dict]:
    import joblib
    import psutil

    room = psutil.virtual_memory().available > 2 * BYTES_A_RUN
    at_once = 2 if room and len(tasks) > 1 and not gpus_of_driver() else 1  # two on one GPU would share its memory
    threads = max(1, (os.cpu_count() or 1) // at_once)
    parallel = joblib.Parallel(n_jobs=at_once, verbose=5)
    return parallel(joblib.delayed(run_point)(*task, threads) for task in tasks)


def run_on_dask(address: str, tasks: list[tuple]) -> list[dict]:
    try:
        from distributed import Client
    except ImportError as error:
        raise CourseError("--engine dask needs the packages dask and distributed: pip install distributed") from error
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise CourseError(f"no Dask scheduler answers at {address!r} ({type(error).__name__})") from error
    with client:
        return client.gather([client.submit(run_point, *task, pure=False) for task in tasks])


def varying(rows: list[dict]) -> list[str]:
    """The recorded numbers that differ between runs, in the order in which they were recorded."""
    good = [row["recorded"] for row in rows if not row["error"]]
    names = list(dict.fromkeys(name for values in good for name in values))
    return [name for name in names if len({values.get(name) for values in good}) > 1]


def as_text(rows: list[dict], names: list[str]) -> str:
    import pandas as pd

    shown = [{n: r["point"][n] for n in names} | {"seconds": r["seconds"]} | r["recorded"] for r in rows]
    columns = [*names, "seconds", *varying(rows)]
    frame = pd.DataFrame(shown).reindex(columns=columns)
    frame["outcome"] = ["FAILED" if row["error"] else "ok" for row in rows]
    return frame.to_string(index=False, float_format=lambda x: f"{x:,.4g}")


def plot(rows: list[dict], names: list[str], title: str):
    """A small plot for each number that varies, over the first parameter, with a line for each value of the others."""
    from matplotlib.figure import Figure

    good, values = [row for row in rows if not row["error"]], varying(rows)[:6]
    if not values:
        return None
    figure = Figure(figsize=(4.2 * min(3, len(values)), 3.1 * -(-len(values) // 3)), layout="constrained")
    figure.suptitle(f"{title}: what changes with {' and '.join(names)}")
    panels = figure.subplots(-(-len(values) // 3), min(3, len(values)), squeeze=False).ravel()
    for panel, value in zip(panels, values, strict=False):
        groups: dict[str, list] = {}
        for row in good:
            label = ", ".join(f"{n}={row['point'][n]}" for n in names[1:])
            groups.setdefault(label, []).append((str(row["point"][names[0]]), row["recorded"].get(value)))
        for (label, dots), colour in zip(groups.items(), [*plots.COLOURS.values()] * 9, strict=False):
            panel.plot(*zip(*dots, strict=True), "o-", color=colour, label=label or None)
        panel.set_title(value, fontsize=10)
        panel.set_xlabel(names[0])
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    for panel in panels[len(values) :]:
        panel.set_visible(False)
    if len(names) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
