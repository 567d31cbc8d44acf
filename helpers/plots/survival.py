"""Drawings of what a merge into few levels keeps: weights on their number line, and the share of an update that survives."""

from helpers.plots.figures import COLOURS, FROZEN, INK, TRAINED, axes

PALE = "#E3EDF4"  # what rounds back to the old level


def merge_lines(levels, moves: dict, title: str):
    """One weight on its number line, a line for each merge: where it stood, what training made of it, where it ends.

    `levels`: the values that it can have in 4 bits. `moves` maps a name to (before, trained, after). The band around
    `before` is what rounds back to the level nearest to it; its borders lie halfway to the two neighbours.
    """
    levels = sorted(levels)
    low, high = min(map(min, moves.values())), max(map(max, moves.values()))
    first = max(0, sum(level < low for level in levels) - 2)
    shown = levels[first : sum(level <= high for level in levels) + 2]
    figure, ax = axes(title, "value of the weight", "", size=(8.2, 1.5 + 1.15 * len(moves)))
    for row, (name, (before, trained, after)) in enumerate(moves.items()):
        _one_line(ax, -row, name, shown, before, trained, after)
    margin = 0.06 * (shown[-1] - shown[0])
    ax.set(xlim=(shown[0] - margin, shown[-1] + margin), ylim=(0.55 - len(moves), 0.72), yticks=[])
    ax.set_xticks(shown, [f"{level:+.4f}" for level in shown])
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    marks = {"a level that 4 bits can hold": (FROZEN, "|"), "in training: the level and the update": (TRAINED, "o")}
    ax.fill_between([], [], color=PALE, label="what rounds back to the old level")
    for text, (colour, mark) in (marks | {"after the merge": (INK, "D")}).items():
        ax.plot([], [], mark, color=colour, markersize=11 if mark == "|" else 7, markeredgewidth=2, label=text)
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    return figure


def _one_line(ax, y: float, name: str, levels, before: float, trained: float, after: float) -> None:
    """One line of `merge_lines` at the height `y`."""
    nearest = min(range(len(levels)), key=lambda i: abs(levels[i] - before))
    borders = [(levels[i] + levels[i + 1]) / 2 for i in (nearest - 1, nearest) if 0 <= i < len(levels) - 1]
    ax.fill_between([min(borders), max(borders)], y - 0.2, y + 0.2, color=PALE, linewidth=0)
    ax.plot([levels[0], levels[-1]], [y, y], color=INK, linewidth=0.8, zorder=1)
    ax.vlines(levels, y - 0.2, y + 0.2, color=FROZEN, linewidth=3, zorder=2)
    ax.annotate("", (trained, y), (before, y), arrowprops={"arrowstyle": "-", "color": TRAINED, "linewidth": 4})
    ax.plot(trained, y, "o", color=TRAINED, markersize=8, zorder=4)
    ax.annotate("", (after, y + 0.22), (trained, y + 0.06), arrowprops={
        "arrowstyle": "-|>", "color": INK, "linewidth": 1.3, "connectionstyle": "arc3,rad=0.25"})  # fmt: skip
    ax.plot(after, y, "D", color=INK, markersize=6, zorder=5)
    share = round(100 * (after - before) / (trained - before)) if trained != before else 0
    ax.text(levels[0], y + 0.32, f"{name}: update {trained - before:+.4f}, {share}% of it is left",
            ha="left", va="bottom", fontsize=10, color=INK)  # fmt: skip


def survival(curve, crossing: float, layers: dict, title: str):
    """The share of an update that a merge keeps, over the update's size on a logarithmic axis; both in per cent.

    `curve`: (sizes, shares), sizes above zero. `crossing`: the size at which half is kept. `layers` maps an adapter's name
    to the (sizes, shares) of its layers, a dot for each. The label stands at the left above the middle, where a curve that
    climbs leaves room.
    """
    x, y = "size of the update (% of the weights, logarithmic)", "kept by a merge into 4 bits (%)"
    figure, ax = axes(title, x, y, size=(7.6, 4.3))
    for (name, (sizes, shares)), colour, mark in zip(
        layers.items(), ("orange", "purple", "green", "sky"), "o^sv", strict=False
    ):
        ax.plot(sizes, shares, mark, color=COLOURS[colour], markersize=4.5, alpha=0.75, label=name, linestyle="none")
    ax.plot(*curve, color=FROZEN, linewidth=1.8, label="a random matrix", zorder=1)
    left, right = min(curve[0]), max(curve[0])
    ax.plot([left, crossing, crossing], [50, 50, -3], color=INK, linestyle=":", linewidth=1.2, zorder=1)
    ax.text(left, 52, f" half is kept at {crossing:.1f}%", ha="left", va="bottom", color=INK)
    ax.set(xscale="log", xlim=(left, right), ylim=(-3, 105))
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if left <= tick <= right]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    return figure
