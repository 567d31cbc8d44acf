"""Methods side by side: intervals as rows, a panel for each task, or marks with their names."""

import textwrap

from helpers.plots.figures import COLOURS, INK, PASSING, TRAINED, axes

# What is compared is told apart by colour and by shape.
MARKS = ((TRAINED, "s"), (COLOURS["green"], "o"), (COLOURS["blue"], "D"), (COLOURS["purple"], "^"))
BAND = "#E3EDF4"


def intervals(
    panels: dict,
    title: str,
    x: str,
    kinds: dict | None = None,
    *,
    hollow=None,
    band: float | None = None,
    notes=None,
    thin=None,
):
    """Means with their intervals: `panels` maps a panel's name to {label: (mean, low, high)}, all as shares from 0 to 1.

    The axis is in per cent. `kinds` maps a label to the kind that it is, at most four of them; a kind has a colour and a
    shape. Without `kinds` all are drawn alike. `hollow` maps a panel's name to the labels that are drawn hollow. `band`: the
    share on both sides of zero within which a difference is too small to matter. `notes` maps a panel's name to {label:
    words}, written at the right; `thin` maps it to {label: (low, high)}, a second interval, drawn as a thin line below. A
    label that a panel lacks is "not measured" there.
    """
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    every = dict.fromkeys((kinds or {}).values())  # those that this figure lacks too, so that figures look alike
    marks = dict(zip(every, MARKS, strict=False))
    marked = {label: marks[kinds[label]] if kinds else (INK, "o") for label in labels}
    size = (8.6 + 2.4 * max(0, len(panels) - 2), 1.9 + 0.36 * len(labels))
    x = textwrap.fill(x, 76 // len(panels), break_on_hyphens=False)
    figure, ax = axes(title, x, "", size=size, ncols=len(panels), sharey=True, squeeze=False)
    for each, (name, panel) in zip(ax.flat, panels.items(), strict=True):
        _panel(each, name, panel, labels, marked, (hollow or {}).get(name, ()))
        for label, ends in (thin or {}).get(name, {}).items():
            row = labels.index(label) + 0.22
            each.plot([100 * end for end in ends], [row, row], color=PASSING, linewidth=1.2, zorder=2)
        if band is not None:
            each.axvspan(-100 * band, 100 * band, color=BAND, zorder=0, label="too small to matter")
            each.axvline(0, color=INK, linewidth=0.9, zorder=1)
        for label, words in (notes or {}).get(name, {}).items():
            each.text(1.01, labels.index(label), words, transform=each.get_yaxis_transform(), ha="left", va="center",
                      fontsize=8.5, color=INK)  # fmt: skip
    for kind in dict.fromkeys(kinds[label] for label in labels if kinds):
        colour, mark = marks[kind]
        ax.flat[0].plot([], [], mark, color=colour, label=kind)
    if hollow and any(hollow.values()):
        ax.flat[0].plot(
            [], [], "o", color=PASSING, markerfacecolor="white", label="hollow: rate at the edge of those tried"
        )
    handles = dict(zip(*reversed(ax.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, frameon=False, ncols=2, loc="outside lower center", fontsize=9)
    return figure


def _panel(ax, name: str, panel: dict, labels: list, marks: dict, hollow) -> None:
    """One panel of `intervals`: a line from low to high for each label, and a mark at the mean."""
    for label, (mean, low, high) in panel.items():
        row, (colour, mark) = labels.index(label), marks[label]
        ax.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt", zorder=2)
        inside = "white" if label in hollow else colour
        ax.plot(
            100 * mean, row, mark, color=colour, markerfacecolor=inside, markersize=7.5, markeredgewidth=1.6, zorder=3
        )
    for row, label in enumerate(labels):
        if label not in panel:
            ax.text(0.5, row, "not measured", transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=8.5,
                    color=PASSING)  # fmt: skip
    ax.set_title(name, fontsize=10, loc="left")
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.6)
    ax.grid(False)
    ax.grid(axis="x", alpha=0.25)


def named_marks(marks: dict, title: str, x: str, y: str):
    """Marks with their names beside them: `marks` maps a name to (x, y, kind), at most four kinds, drawn as in `intervals`."""
    figure, ax = axes(title, x, y, size=(8.6, 4.2))
    looks = dict(zip(dict.fromkeys(kind for *_, kind in marks.values()), MARKS, strict=False))
    places = [at for at, *_ in marks.values()]
    middle = (min(places) + max(places)) / 2
    for name, (at, height, kind) in marks.items():
        colour, mark = looks[kind]
        ax.plot(at, height, mark, color=colour, markersize=8)
        side, far = ("left", 8) if at <= middle else ("right", -8)
        ax.annotate(name, (at, height), (far, 0), textcoords="offset points", ha=side, va="center", fontsize=9)
    for kind, (colour, mark) in looks.items():
        ax.plot([], [], mark, color=colour, label=kind)
    figure.legend(frameon=False, ncols=2, loc="outside lower center", fontsize=9)
    ax.margins(0.08)
    ax.set_ylim(bottom=0)
    return figure
