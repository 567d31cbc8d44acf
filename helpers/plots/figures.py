"""Figures from plain data: the finding as title, axes with units, colour-blind-safe colours, alternative text."""

import io
import itertools
import textwrap

# Okabe and Ito's palette, safe for colour-blind readers (https://jfly.uni-koeln.de/color/); grey is for what is not there.
COLOURS = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "purple": "#CC79A7", "sky": "#56B4E9",
    "yellow": "#F0E442", "black": "#000000", "grey": "#D0D0D0",
}  # fmt: skip
PALETTE = tuple(COLOURS.values())
# Of drawings: what is frozen, what is trained, its gradients, what only passes through, and words.
FROZEN, TRAINED, GRADIENTS, PASSING, INK = COLOURS["blue"], COLOURS["orange"], "#F2C35C", "#8D9499", "#22272B"
OF_PHASE = {  # of a training run, the same in every figure
    "other": "grey", "load": "black", "evaluate": "green", "prepare": "purple", "forward": "sky", "loss": "orange",
    "backward": "blue", "step": "red", "between steps": "yellow",
}  # fmt: skip


def axes(title: str, x: str, y: str, size=(7.2, 3.8), **subplots):
    """A figure with one Axes (or what `subplots` asks for), titled and labelled; returns (figure, axes)."""
    from matplotlib.figure import Figure  # no pyplot: no global state, nothing shown twice

    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots(**subplots)
    figure.suptitle("\n".join(textwrap.wrap(title, int(11.5 * size[0]))), x=0.01, ha="left", fontsize=11)
    for each in ax.flat if hasattr(ax, "flat") else [ax]:
        each.set_xlabel(x)
        each.set_ylabel(y)
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", alpha=0.25)
    return figure, ax


def show(figure, alt: str, dpi: int = 90):
    """The figure as an image with alternative text, for the last line of a cell."""
    from IPython.display import Image

    # Image(alt=...) came with IPython 8, and Colab has 7.34; both take the metadata.
    return Image(png(figure, dpi), format="png", metadata={"alt": alt})


def png(figure, dpi: int = 90) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def memory_timeline(samples, title: str, unit: str = "MB", x: str = "seconds", line=None, line_label: str = ""):
    """Memory over time, a colour for each phase; `samples` as in MemoryMonitor: (seconds, phase, bytes, ...).

    `x` names what the first numbers count, if not seconds; `line` marks a limit, in `unit`.
    """
    scale = {"MB": 1e6, "GB": 1e9}[unit]
    figure, ax = axes(title, x, f"memory ({unit})")
    names = list(dict.fromkeys(phase for _, phase, *_ in samples))
    others = itertools.cycle((COLOURS["orange"], *PALETTE))
    colour = {name: COLOURS[OF_PHASE[name]] if name in OF_PHASE else next(others) for name in names}
    seconds, values = [s[0] for s in samples], [s[2] / scale for s in samples]
    begin = 0
    for i in range(1, len(samples) + 1):  # one filled area for each stretch of one phase, so that no seams show
        if i == len(samples) or samples[i][1] != samples[begin][1]:
            area = slice(begin, i + 1)
            ax.fill_between(seconds[area], values[area], color=colour[samples[begin][1]], alpha=0.8, linewidth=0)
            begin = i
    for name in names:
        ax.fill_between([], [], color=colour[name], alpha=0.8, label=name)
    if line is not None:
        ax.axhline(line, color=COLOURS["black"], linestyle="--", linewidth=1.2, label=line_label)
    ax.set_ylim(bottom=0)
    ax.set_xlim(min(seconds), max(seconds))
    figure.legend(frameon=False, ncols=min(3, len(names)), loc="outside lower center")
    return figure


def histogram(values, title: str, x: str, y: str, line=None, line_label=""):
    """How often each value comes. Of whole numbers every bar counts equally many of them.

    `line` marks a limit, which is left out where it is so far off that the bars would be squeezed.
    """
    figure, ax = axes(title, x, y)
    low, high = min(values), max(values)
    most = min(40, max(10, int(2 * len(values) ** 0.5)))  # few values in many bars are a fence
    bins: int | list[float] = most
    if all(float(value).is_integer() for value in values):
        width = int(high - low) // most + 1
        bins = [n - 0.5 for n in range(int(low), int(high) + width + 1, width)]
    ax.hist(values, bins=bins, color=COLOURS["blue"], edgecolor="white", linewidth=0.5)
    if line is not None and line <= 3 * high:
        ax.axvline(line, color=COLOURS["black"], linestyle="--", linewidth=1.2, label=line_label)
        figure.legend(frameon=False, loc="outside lower center")
    return figure


def training_still(losses, samples, title: str, unit: str = "MB"):
    """Loss over steps and memory since training began, as a live panel showed them at its end; `losses` holds (step, loss)."""
    figure, (left, right) = axes(title, "", "", size=(8.2, 2.8), ncols=2)
    left.plot(*zip(*losses, strict=True) if losses else ([], []), color=COLOURS["blue"], marker="o", markersize=3)
    left.set(xlabel="step", ylabel="training loss (nats per token)", yscale="log" if losses else "linear")
    begin = samples[0][0] if samples else 0
    right.plot(
        [s[0] - begin for s in samples], [s[2] / {"MB": 1e6, "GB": 1e9}[unit] for s in samples], color=COLOURS["orange"]
    )
    right.set(xlabel="seconds of training", ylabel=f"memory ({unit})", ylim=(0, None))
    return figure


def tokens_in_colour(ids, learned, decode):
    """Tokens as text, those that the loss sees on a coloured ground and underlined, the masked ones grey.

    `decode` is a tokenizer's. A letter that takes several tokens, as an umlaut may, is shown whole, in the colour of its last.
    """
    from html import escape

    from IPython.display import HTML

    half = "\ufffd"  # what stands for a letter of which not all tokens are there yet
    texts = [decode(ids[:n]) if n else "" for n in range(len(ids) + 1)]
    ends = [len(text.rstrip(half)) for text in texts[:-1]] + [len(texts[-1])]
    pieces = [text[begin:end] for text, begin, end in zip(texts[1:], ends, ends[1:], strict=False)]
    seen, masked = f"background:{COLOURS['yellow']};color:#000;text-decoration:underline", "color:#707070"
    spans = [
        f'<span style="{seen if see else masked}">{escape(piece).replace(chr(10), "&#8629;<br>")}</span>'
        for piece, see in zip(pieces, learned, strict=True)
    ]
    return HTML(f'<div style="font-family:monospace;line-height:1.5">{"".join(spans)}</div>')


def bars(labels, values, title, x, colours=None, numbers="{:,.2f}", size=None, line=None, line_label=""):
    """Horizontal bars with their numbers beside them, first label on top; `line` marks a limit.

    `colours`: one for each bar, a name of COLOURS or what matplotlib takes.
    """
    figure, ax = axes(title, x, "", size=size or (7.2, 0.9 + 0.42 * len(labels)))
    drawn = ax.barh(range(len(labels)), values, color=[COLOURS.get(one, one) for one in colours or ["blue"]])
    for text in ax.bar_label(drawn, [numbers.format(v) for v in values], padding=4):
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # the line may run behind it
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.grid(False)
    ax.grid(axis="x", alpha=0.25)
    ax.set_xlim(0, 1.16 * max(values) if max(values) > 0 else 1)
    if line is not None:
        ax.axvline(line, color=COLOURS["black"], linestyle="--", linewidth=1.2, label=line_label)
        ax.legend(frameon=False, loc="lower right")
    return figure


def grouped_bars(labels, panels: dict, title: str, lines=None):
    """Horizontal bars, a panel for each quantity: `panels` maps its name to {group: values, one a label}.

    `lines` maps a quantity to (value, label) of a line across its panel.
    """
    groups = list(next(iter(panels.values())))
    height, number = 0.8 / len(groups), len(panels)
    figure, ax = axes(title, "", "", size=(8.2, 1.5 + 0.5 * len(labels)), ncols=number, sharey=True, squeeze=False)
    for each, (name, of_groups) in zip(ax.flat, panels.items(), strict=True):
        for i, (group, values) in enumerate(of_groups.items()):
            rows = [row + height * (i - (len(groups) - 1) / 2) for row in range(len(labels))]
            drawn = each.barh(rows, values, 0.92 * height, color=PALETTE[i], label=group)
            numbers = [
                f"{v:,.0f}" if v >= 1000 else f"{v:.1f}" if v >= 10 else f"{v:.2f}" if v >= 0.1 else f"{v:.1g}"
                for v in values
            ]
            texts = each.bar_label(drawn, numbers, padding=2, fontsize=8)
            for text in texts:  # a line may run behind it
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        top = max(v for values in of_groups.values() for v in values)
        if name in (lines or {}):
            value, label = lines[name]
            each.axvline(value, color=COLOURS["black"], linestyle="--", linewidth=1.2, label=label, zorder=0)
            top = max(top, value)
        each.set(xlabel=name, yticks=range(len(labels)), yticklabels=labels, xlim=(0, 1.2 * top or 1))
        if top >= 1000:
            each.xaxis.set_major_formatter("{x:,.0f}")
        each.grid(False)
        each.grid(axis="x", alpha=0.25)
    ax.flat[0].invert_yaxis()
    shown = {text: handle for each in ax.flat for handle, text in zip(*each.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, frameon=False)
    return figure


def stacked_bars(labels, parts: dict, title: str, x: str, line=None, line_label="", size=None, colours=PALETTE):
    """Horizontal stacked bars: `parts` maps each term to its values, one a label; `line` marks a limit."""
    figure, ax = axes(title, x, "", size=size or (7.2, 1.7 + 0.5 * len(labels)))
    left = [0.0] * len(labels)
    for (name, values), colour in zip(parts.items(), tuple(colours) * 3, strict=False):
        ax.barh(range(len(labels)), values, left=left, label=name, color=colour, edgecolor="white", linewidth=0.5)
        left = [a + b for a, b in zip(left, values, strict=True)]
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.grid(False)
    if line is not None:
        ax.axvline(line, color=COLOURS["black"], linestyle="--", linewidth=1.2, label=line_label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def curves(
    series: dict, title: str, x: str, y: str, log: bool = False, doubling: bool = False, colours=tuple(COLOURS), *,
    intervals=None, line=None, line_label="",
):  # fmt: skip
    """Lines: `series` maps a label to (xs, ys). `log`: of y. `doubling`: equal steps to the right multiply x equally.

    `colours`: the names of the lines' colours in turn, where the same things have theirs in other figures. `intervals`
    maps a label to (lows, highs), which are drawn at its points; the axis of y then begins at 0. `line` marks a value of y.
    """
    figure, ax = axes(title, x, y)
    for (label, (xs, ys)), colour, mark in zip(series.items(), colours, "osD^vPX*", strict=False):
        ax.plot(xs, ys, color=COLOURS[colour], marker=mark, markersize=4, label=label)
        if label in (intervals or {}):
            ax.vlines(xs, *intervals[label], color=COLOURS[colour], linewidth=1.6, alpha=0.6)
            ax.set_ylim(bottom=0)
    if line is not None:
        ax.axhline(line, color=COLOURS["black"], linestyle="--", linewidth=1.2, label=line_label)
    if log:
        ax.set_yscale("log")
    if doubling:
        ticks = sorted({tick for xs, _ in series.values() for tick in xs})
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        ax.set_xticks([], minor=True)
    if len(series) > 1 or line is not None:
        ax.legend(frameon=False)
    return figure


def levels_on_histogram(values, sets: dict, title: str):
    """A histogram of block-scaled values (a tensor, -1 to 1) over rows of ticks, a row for each named set of levels."""
    figure, ax = axes(title, "weight / absmax of its block", "share of the weights (%)")
    counts = values.float().histc(bins=101, min=-1.01, max=1.01)
    shares = (100 * counts / counts.sum()).tolist()
    top = max(shares)
    edges = [-1.01 + i * 2.02 / 101 for i in range(102)]
    ax.stairs(shares, edges, fill=True, color="#bbbbbb")  # one shape: 101 bars would take most of the drawing time
    for row, ((name, levels), colour) in enumerate(zip(sets.items(), PALETTE, strict=False)):
        height = top * 0.11
        ax.vlines(levels.tolist(), -(row + 1) * height, -row * height - 0.15 * height, color=colour, linewidth=2)
        ax.text(1.05, -(row + 0.55) * height, name, color=colour, va="center", fontweight="bold")
    ax.set_xlim(-1.05, 1.05)
    ax.set_yticks([t for t in ax.get_yticks() if 0 <= t <= top * 1.05])
    return figure
