"""The page of measurements: of each kind of row a finding in words, a table, and a plot whose alternative text says it too."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

from helpers.files import write_whole
from helpers.memory import GPUS
from helpers.plots import COLOURS, axes, bars, diagrams
from helpers.records import MEASUREMENTS, measured_lessons, measured_runs, read_rows

# Next to each other in one plot, and told apart by shape as well.
SERIES = (("blue", "o"), ("orange", "s"), ("green", "^"), ("purple", "D"))
WAYS = {"one": "one GPU", "ddp": "copies", "split": "divided layers", "fsdp2": "divided weights"}  # on two GPUs
FIRST = ("full", "lora", "nf4", "fp4", "int8")  # of the ways of training


@dataclass(frozen=True)
class Chart:
    """A section of the page. `alt` is "" where there is no figure; `rows` are texts, ready to print."""

    title: str
    words: str
    columns: tuple[str, ...]
    rows: list[tuple]
    sources: tuple[str, ...]
    dates: str
    alt: str = ""
    figure: object = None
    file: str = field(default="", compare=False)


def _json(name: str) -> dict:
    return json.loads((MEASUREMENTS / name).read_text(encoding="utf-8"))


def _dates(rows) -> str:
    """From when to when rows were measured; rows of the first days have no date of their own."""
    days = sorted({row["date"] for row in rows if row.get("date")})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "November 2026"


def predictions() -> Chart:
    """The error of predicted peaks on the held-out runs, of `predict` and of two public estimators."""
    found = _json("estimators.json")
    rows = [row for row in found["rows"] if row["role"] == "holdout" and not row["ours"]["notes"]]
    names = {"ours": "predict", **{name: name for name in found["versions"]}}
    errors = {
        said: [abs(row[name]["tensors"] / row["measured"]["peak_allocated"] - 1) for row in rows if "tensors" in row[name]]
        for name, said in names.items()
    }  # fmt: skip
    ours, others = errors["predict"], [median(e) for name, e in errors.items() if name != "predict"]
    title = f"predict is off by {mean(ours):.2%} on average, and at most by {max(ours):.2%}"
    figure, ax = axes(title, "error of the peak (%, logarithmic)", "", size=(7.6, 2.9))
    for place, values in enumerate(errors.values()):
        colour, marker = SERIES[place]
        shown = [max(100 * value, 1e-4) for value in values]
        ax.scatter(shown, [place + 0.5 * (i / len(shown) - 0.5) for i in range(len(shown))], s=22, marker=marker,
                   color=COLOURS[colour], alpha=0.7, linewidth=0)  # fmt: skip
    ax.set(xscale="log", yticks=range(len(errors)), yticklabels=errors, ylim=(len(errors) - 0.5, -0.5))
    ax.xaxis.set_major_formatter("{x:g}")
    table = [
        (name, len(values), f"{mean(values):.2%}", f"{median(values):.2%}", f"{max(values):.2%}")
        for name, values in errors.items()
    ]
    words = (
        f"{len(rows)} runs of real shapes on an H200 that were measured to score the predictions; "
        "[their story](how-measured.md#roles) says which of them were predicted blind. Two public estimators were asked about "
        "the same runs, as far as they have words for them."
    )
    alt = (
        f"Error of the predicted peak, a dot for each held-out run. {title}; the other two have medians of {others[0]:.0%} "
        f"and {others[1]:.0%}."
    )
    return Chart("Predicted memory beside measured memory", words, ("estimator", "runs", "mean error", "median", "largest"),
                 table, ("estimators.json", "h200_memory_rows.jsonl"), found["date"], alt, figure)  # fmt: skip


def speed() -> Chart:
    """Tokens a second of each recipe under a T4's rules, in all runs."""
    runs = measured_runs("h200_speed").query("rules == 't4' and tokens_per_second.notna()")
    recipes = list(dict.fromkeys(runs["recipe"]))
    by = {name: runs[runs["recipe"] == name] for name in recipes}
    first, best = (
        by["source"]["tokens_per_second"].median(),
        max(recipes, key=lambda n: by[n]["tokens_per_second"].median()),
    )
    gain = by[best]["tokens_per_second"].median() / first
    title = f'"{best}" trains {gain:.1f} times as many tokens a second as the tutorials\' recipe ("source")'
    figure, ax = axes(title, "tokens a second", "", size=(7.6, 1.1 + 0.32 * len(recipes)))
    for place, name in enumerate(recipes):
        values = by[name]["tokens_per_second"]
        ax.scatter(values, [place] * len(values), s=26, color=COLOURS["blue"], alpha=0.75, linewidth=0)
    ax.set(yticks=range(len(recipes)), yticklabels=recipes, ylim=(len(recipes) - 0.5, -0.5), xlim=(0, None))
    ax.grid(axis="x", alpha=0.25)
    table = [
        (name, by[name]["change"].iloc[0], f"{by[name]['tokens_per_second'].median():,.0f}",
         f"{by[name]['tokens_per_second'].min():,.0f} to {by[name]['tokens_per_second'].max():,.0f}",
         f"{by[name]['peak_bytes'].max() / 1e9:.2f}")
        for name in recipes
    ]  # fmt: skip
    words = (
        "One step of 8 x 512 tokens on Mistral-7B's shape, one change of the recipe after the other, on an H200 that had "
        "14.56 GiB and a T4's attention kernels. Whole steps differ between runs, because the host does. A T4 computes many "
        "times slower, and nobody has timed it."
    )
    alt = f"Tokens a second of {len(recipes)} recipes, a dot for each run. {title}."
    return Chart("Speed, one change at a time", words,
                 ("recipe", "what it changes", "median tokens a second", "range", "peak (GB)"),
                 table, ("h200_speed.jsonl",), _dates(runs.to_dict("records")), alt, figure)  # fmt: skip


def side_by_side() -> Chart:
    """Scores of the ways of training on each task, a dot for each seed."""
    rows = [row for row in read_rows(MEASUREMENTS / "quality_rows.jsonl") if row["phase"] == "runs"]
    tasks, arms = list(dict.fromkeys(row["task"] for row in rows)), list(dict.fromkeys(row["arm"] for row in rows))
    arms.sort(key=lambda arm: FIRST.index(arm) if arm in FIRST else len(FIRST))
    scores = {
        (task, arm): [row["score"] for row in rows if (row["task"], row["arm"]) == (task, arm)]
        for task in tasks
        for arm in arms
    }
    shown = {"QLoRA (nf4)": "nf4", "LoRA": "lora", "full": "full"}
    said = [
        f"{task}: " + ", ".join(f"{words} {mean(scores[task, arm]):.1%}" for words, arm in shown.items())
        for task in tasks
        if all(scores[task, arm] for arm in shown.values())
    ]
    title = "Held-out answers that are right. " + "; ".join(said)
    figure, panels = axes(
        title, "right (%)", "", size=(8.6, 1.5 + 0.3 * len(arms)), ncols=len(tasks), sharey=True, squeeze=False
    )
    for ax, task in zip(panels.flat, tasks, strict=True):
        for place, arm in enumerate(arms):
            values = [100 * score for score in scores[task, arm]]
            ax.scatter(values, [place] * len(values), s=20, color=COLOURS["blue"], alpha=0.6, linewidth=0)
            if values:
                ax.scatter([mean(values)], [place], s=110, marker="|", color=COLOURS["red"], linewidth=2.2)
        ax.set_title(task, fontsize=10, loc="left")
        ax.set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
    table = [
        (arm, *(f"{mean(scores[task, arm]):.1%} ({min(scores[task, arm]):.1%} to {max(scores[task, arm]):.1%})"
                if scores[task, arm] else "not measured" for task in tasks))
        for arm in arms
    ]  # fmt: skip
    words = (
        "Full fine-tuning, LoRA and QLoRA on the same rows in the same order, each with the learning rate that was best for "
        "it on other rows. The table has the mean over the seeds, and the range. These are small models: it says nothing of 7B."
    )
    alt = f"{title}. A dot for each seed, a bar for the mean; every way that was measured has a row."
    return Chart("Ways of training, side by side", words, ("way", *tasks), table, ("quality_rows.jsonl", "quality_design.toml"),
                 _dates(rows), alt, figure)  # fmt: skip


def own_data() -> Chart:
    """How many answers are right after training on more and more messages."""
    rows = read_rows(MEASUREMENTS / "smollm2_own_data.jsonl")
    curve = sorted((row for row in rows if row["what"] == "curve"), key=lambda row: row["learned"])
    few, many = curve[0], curve[-1]
    title = f"From {few['learned']} messages {few['right']:.0%} of the answers are right"
    title += f", from {many['learned']:,} {many['right']:.0%}"
    figure, ax = axes(title, "messages to learn from (logarithmic)", "right in all fields (%)", size=(7.2, 3.4))
    middle = [100 * row["right"] for row in curve]
    spread = [
        [100 * (row["right"] - row["low"]) for row in curve],
        [100 * (row["high"] - row["right"]) for row in curve],
    ]
    ax.errorbar([row["learned"] for row in curve], middle, spread, color=COLOURS["blue"], marker="o", capsize=3)
    ax.set(xscale="log", ylim=(0, 100))
    ax.set_xticks([row["learned"] for row in curve], [f"{row['learned']:,}" for row in curve])
    ax.minorticks_off()
    table = [
        (f"{row['learned']:,}", f"{row['right']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}", row["rows"])
        for row in curve
    ]
    words = (
        "SmolLM2-135M-Instruct turns a workshop's messages into JSON. It was trained with as many steps each time and scored on "
        "messages that it never saw; an answer counts when every field is right."
    )
    alt = f"{title}; the bars are 95% intervals."
    return Chart("Your own data: how many rows are enough", words, ("messages learned", "right", "95% interval", "scored"),
                 table, ("smollm2_own_data.jsonl",), _dates(curve), alt, figure)  # fmt: skip


def rounding() -> Chart:
    """The error of rounded weights, and what it does to a model."""
    found = _json("smollm2_quality.json")
    ways = found["rows"]
    by = {way["way"]: way for way in ways}
    whole, four = by["16 bits"], by["nf4, double quantization"]
    title = f"NF4 with double quantization: perplexity {four['perplexity']:.1f}, where 16 bits have {whole['perplexity']:.1f}"
    table = [
        (way["way"], f"{way['bits_per_weight']:.4g}", f"{way['relative_error']:.2%}",
         f"{way['perplexity']:.2f}" if way["perplexity"] < 1e4 else f"{way['perplexity']:.1e}")
        for way in ways
    ]  # fmt: skip
    words = "SmolLM2-135M-Instruct rounded in many ways, and asked for a text that it was not trained on by the course."
    alt = f"Two bars for each way to round a model: the error of its weights, and its perplexity. {title}"
    alt += "; with fewer than 4 bits it grows fast."
    return Chart("What rounding does to a model", words, ("way", "bits per weight", "relative error", "perplexity"), table,
                 ("smollm2_quality.json",), found["date"], alt, diagrams.error_and_perplexity(ways, title))  # fmt: skip


def merges() -> Chart:
    """What is left of a tuning after each way to merge it."""
    row = read_rows(MEASUREMENTS / "smollm2_updates.jsonl")[0]
    scores = row["scores"]
    lost, kept = scores["into the 4-bit base"], scores["adapter beside the base"]
    title = f"Merged into the 4-bit base {lost['exact_match']:.0%} are right, beside it {kept['exact_match']:.0%}"
    names, shares = list(scores), [100 * of["exact_match"] for of in scores.values()]
    figure, ax = axes(title, "right (%)", "", size=(7.4, 2.8))
    lows, highs = zip(*(of["interval"] for of in scores.values()), strict=True)
    spread = [
        [share - 100 * low for share, low in zip(shares, lows, strict=True)],
        [100 * high - share for share, high in zip(shares, highs, strict=True)],
    ]
    ax.errorbar(shares, range(len(names)), xerr=spread, fmt="o", color=COLOURS["blue"], capsize=3)
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlim=(-1, None))
    table = [
        (name, f"{of['exact_match']:.1%}", f"{of['interval'][0]:.1%} to {of['interval'][1]:.1%}", f"{of['loss']:.3f}")
        for name, of in scores.items()
    ]
    words = (
        f"SmolLM2-135M-Instruct after {row['steps']} steps of {row['rows_per_step']} rows: {row['heldout_rows']} held-out "
        f"questions. A merge into 4 bits kept {row['mean_kept_in_4_bits']:.1%} of the update, averaged over the layers."
    )
    alt = f"The share of right answers with its 95% interval for the base, the adapter beside it, and three merges. {title}."
    return Chart("What a merge keeps", words, ("way", "right", "95% interval", "held-out loss"), table,
                 ("smollm2_updates.jsonl",), _dates([row]), alt, figure)  # fmt: skip


def merge_memory() -> Chart:
    """The memory of the course's own merge."""
    rows = sorted(
        read_rows(MEASUREMENTS / "cpu_merges.jsonl"), key=lambda row: (row["base_weights"], row["base_bytes"])
    )
    labels = [f"{row['layers']} of {row['layers_of_the_whole']} layers, {row['base_weights']}" for row in rows]
    values = [row["above_bare_python_bytes"] / 1e9 for row in rows]
    whole = max(rows, key=lambda row: row["base_bytes"])
    title = f"A base of {whole['base_bytes'] / 1e9:.1f} GB is merged in {whole['above_bare_python_bytes'] / 1e9:.2f} GB of memory"
    table = [
        (label, f"{row['base_bytes'] / 1e9:.2f}", f"{value:.2f}", f"{row['merge_seconds']:.0f}", f"{row['copy_seconds']:.0f}")
        for label, value, row in zip(labels, values, rows, strict=True)
    ]  # fmt: skip
    words = (
        "`helpers.merging.merge_adapter` on Mistral-7B's shape, random weights in float16, on two CPU cores that others used "
        "meanwhile: compare a merge with the copy of the same files beside it."
    )
    alt = f"A bar of memory for each merge. {title}; fewer layers take as much."
    columns = ("what is merged", "base (GB)", "memory above bare Python (GB)", "seconds", "seconds for a copy")
    return Chart("The memory of a merge", words, columns, table, ("cpu_merges.jsonl",), _dates(rows), alt,
                 bars(labels, values, title, "GB above bare Python"))  # fmt: skip


def two_gpus() -> Chart:
    """What the fuller of two GPUs holds, for each way to lay a training on both."""
    rows = [row for row in read_rows(MEASUREMENTS / "two_gpus_rows.jsonl") if row["error"] is None]
    rows.sort(key=lambda row: (row["config"]["hidden_size"], row["config"]["num_hidden_layers"], _setting(row)))
    settings = list(dict.fromkeys(map(_setting, rows)))
    by = {(_setting(row), row["way"]): max(row["measured"]["peak_allocated"]) / 1e9 for row in rows}
    compared = max(
        settings, key=lambda setting: sum((setting, way) in by for way in WAYS)
    )  # one that was measured in all ways
    said = ", ".join(f"{words} {by[compared, way]:.2f} GB" for way, words in WAYS.items() if (compared, way) in by)
    figure, ax = axes(
        f"{compared}: {said}", "GB at the peak, of the fuller GPU", "", size=(8.6, 1.6 + 0.24 * len(settings))
    )
    for (way, words), (colour, marker) in zip(WAYS.items(), SERIES, strict=True):
        places = [place for place, setting in enumerate(settings) if (setting, way) in by]
        ax.scatter(
            [by[settings[place], way] for place in places],
            places,
            s=34,
            marker=marker,
            color=COLOURS[colour],
            label=words,
        )
    cap = GPUS["t4"].total_bytes / 1e9
    ax.axvline(cap, color=COLOURS["black"], linewidth=1, linestyle="--", label=f"a T4 has {cap:.2f} GB")
    ax.set(yticks=range(len(settings)), yticklabels=settings, ylim=(len(settings) - 0.5, -0.5), xlim=(0, None))
    ax.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    table = [
        (_setting(row), WAYS[row["way"]] + (", loaded onto the GPUs" if row["loaded"] == "gpu" else ""),
         ", ".join(f"{size / 1e9:.2f}" for size in row["measured"]["peak_allocated"]),
         ", ".join(f"{size / 1e9:.2f}" for size in row["measured"]["peak_reserved"]), f"{row['measured']['step_s']:.2f}")
        for row in rows
    ]  # fmt: skip
    words = (
        f"{len(rows)} runs on two H200, or on one, that were held to a T4's memory each, with random weights. Copies: each "
        "GPU has the model, and rows of its own. Divided layers: one model, its first layers on one GPU and the rest on the "
        "other. Divided weights: each GPU keeps half of every weight (FSDP2). A model that has more layers than its own was "
        "made larger, to find the limit. Seconds are those of these GPUs."
    )
    alt = f"A mark for each run: GB at the peak of the fuller GPU, for {len(settings)} settings. {compared}: {said}."
    return Chart("Two GPUs", words, ("run", "way", "peak of tensors (GB)", "reserved (GB)", "seconds a step"), table,
                 ("two_gpus_rows.jsonl", "two_gpus_plan.toml"), _dates(rows), alt, figure)  # fmt: skip


def _setting(row: dict) -> str:
    """A run of two_gpus_rows.jsonl in words, without its way."""
    spec, layers = row["spec"], row["config"]["num_hidden_layers"]
    more = f" with {layers} layers" if row["role"] == "limit" else ""
    where = "attention" if len(spec["target_modules"]) == 4 else "all linear"
    size = f"{spec['batch_size']} x {spec['seq_len']:,}"
    return f"{row['model'].removesuffix('-v0.1')}{more}, {size}, r={spec['rank']} on {where}, {spec['load_dtype']}"


def lessons_on_gpus() -> Chart:
    """Whole lessons on GPUs: how many verdicts held."""
    rows = sorted(measured_lessons(), key=lambda row: (row["lesson"], row["date"], row["device"]))
    table = [
        (row["lesson"], row["run"], row["device"].removeprefix("NVIDIA "), row["date"],
         f"{row['verdicts_that_held']} of {row['verdicts']}")
        for row in rows
    ]  # fmt: skip
    held, all_of = (sum(row[name] for row in rows) for name in ("verdicts_that_held", "verdicts"))
    words = f"{len(rows)} runs of whole lessons, in which {held} of {all_of} verdicts held. Runs of one name are of one day."
    files = tuple(file.name for file in sorted(MEASUREMENTS.glob("*_lessons.jsonl")))
    return Chart(
        "Lessons on GPUs", words, ("lesson", "run", "GPU", "date", "verdicts that held"), table, files, _dates(rows)
    )


CHARTS = (predictions, speed, two_gpus, side_by_side, own_data, rounding, merges, merge_memory, lessons_on_gpus)


def svg(figure) -> str:
    """A figure as SVG, the same from the same data: no date, and ids that do not change."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "course", "svg.fonttype": "path"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def write_charts(folder: Path) -> list[Chart]:
    """Every section of the page, its figure written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for make in CHARTS:
        chart = make()
        if chart.figure is not None:
            chart = Chart(**(vars(chart) | {"file": f"{make.__name__}.svg"}))
            write_whole(folder / chart.file, svg(chart.figure))
        made.append(chart)
    return made
