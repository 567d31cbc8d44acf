"""Figures from plain data: the finding as title, axes with units, colour-blind-safe colours, alternative text."""

import base64
import io
import textwrap

# Okabe and Ito's palette, safe for colour-blind readers (https://jfly.uni-koeln.de/color/).
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
GREY = "#D0D0D0"  # what is not there
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK)


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

    return Image(png(figure, dpi), format="png", alt=alt)


def png(figure, dpi: int = 90) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def show_panel(panel, picture: bytes, text: str, alt: str) -> None:
    """Display a widget with a still picture (PNG) of it; `panel` None leaves the picture.

    One output, two forms: a live front end shows the panel, and whatever cannot (a page on GitHub) the picture.
    """
    from IPython.display import display

    output = {"text/plain": text, "image/png": base64.b64encode(picture).decode()}
    if panel is not None:
        view = "application/vnd.jupyter.widget-view+json"
        output[view] = panel._repr_mimebundle_()[view]
    display(output, raw=True, metadata={"image/png": {"alt": alt}})


def memory_timeline(samples, title: str, unit: str = "MB"):
    """Memory over time, a colour for each phase; `samples` as in MemoryMonitor: (seconds, phase, bytes, ...)."""
    scale = {"MB": 1e6, "GB": 1e9}[unit]
    figure, ax = axes(title, "seconds", f"memory ({unit})")
    names = list(dict.fromkeys(phase for _, phase, *_ in samples))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    seconds, values = [s[0] for s in samples], [s[2] / scale for s in samples]
    begin = 0
    for i in range(1, len(samples) + 1):  # one filled area for each stretch of one phase, so that no seams show
        if i == len(samples) or samples[i][1] != samples[begin][1]:
            area = slice(begin, i + 1)
            ax.fill_between(seconds[area], values[area], color=colour[samples[begin][1]], alpha=0.8, linewidth=0)
            begin = i
    for name in names:
        ax.fill_between([], [], color=colour[name], alpha=0.8, label=name)
    ax.set_ylim(bottom=0)
    ax.set_xlim(0, max(seconds))
    figure.legend(frameon=False, ncols=min(3, len(names)), loc="outside lower center")
    return figure


def bars(labels, values, title: str, x: str, colours=None, numbers: str = "{:,.2f}", size=None):
    """Horizontal bars with their numbers beside them, first label on top."""
    figure, ax = axes(title, x, "", size=size or (7.2, 0.9 + 0.42 * len(labels)))
    drawn = ax.barh(range(len(labels)), values, color=colours or BLUE)
    ax.bar_label(drawn, [numbers.format(v) for v in values], padding=4)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.grid(False)
    ax.grid(axis="x", alpha=0.25)
    ax.set_xlim(0, 1.16 * max(values) if max(values) > 0 else 1)
    return figure


def stacked_bars(labels, parts: dict, title: str, x: str, line=None, line_label="", size=None, colours=COLOURS):
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
        ax.axvline(line, color=BLACK, linestyle="--", linewidth=1.2, label=line_label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def curves(series: dict, title: str, x: str, y: str, log: bool = False, markers: bool = True):
    """Lines: `series` maps a label to (xs, ys)."""
    figure, ax = axes(title, x, y)
    for (label, (xs, ys)), colour, mark in zip(series.items(), COLOURS, "osD^vPX*", strict=False):
        ax.plot(xs, ys, color=colour, marker=mark if markers else None, markersize=4, label=label)
    if log:
        ax.set_yscale("log")
    if len(series) > 1:
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
    for row, ((name, levels), colour) in enumerate(zip(sets.items(), COLOURS, strict=False)):
        height = top * 0.11
        ax.vlines(levels.tolist(), -(row + 1) * height, -row * height - 0.15 * height, color=colour, linewidth=2)
        ax.text(1.05, -(row + 0.55) * height, name, color=colour, va="center", fontweight="bold")
    ax.set_xlim(-1.05, 1.05)
    ax.set_yticks([t for t in ax.get_yticks() if 0 <= t <= top * 1.05])
    return figure
