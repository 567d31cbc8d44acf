"""Drawings of a GPU's memory that ran out: what is allocated, what lies in holes, and what each cure leaves."""

from helpers.plots.figures import COLOURS, FROZEN, GRADIENTS, INK, axes, bars

PIECES = 8  # in which holes are drawn: a message does not say how they lie


def holes(cases: dict, title: str):
    """A GPU's memory, a bar a case: `cases` maps a name to {"has", "allocated", "holes", "free", "asked"} in GiB.

    What is left over is held by others: by CUDA itself, or by another process. How tensors and holes lie is a sketch; how large
    they are in all is not.
    """
    import matplotlib.patches as patches

    figure, ax = axes(title, "GiB", "", size=(7.6, 1.9 + 0.85 * len(cases)))
    kinds = {
        "allocated": FROZEN,
        "in holes (a sketch)": GRADIENTS,
        "free": "#ECEFF1",
        "CUDA and others": "#90A4AE",
    }
    for row, case in enumerate(cases.values()):
        tensors, gaps, free = case["allocated"], case["holes"], case["free"]
        others = case["has"] - tensors - gaps - free
        ax.barh(row, tensors + gaps, color=FROZEN, height=0.4)
        for piece in range(1, PIECES + 1):
            end = (tensors + gaps) * piece / PIECES
            ax.barh(row, gaps / PIECES, left=end - gaps / PIECES, color=GRADIENTS, height=0.4)
        ax.barh(row, free, left=tensors + gaps, color=kinds["free"], edgecolor="white", height=0.4)
        ax.barh(row, others, left=tensors + gaps + free, color=kinds["CUDA and others"], height=0.4)
        said = f"{tensors:.2f} allocated, {gaps:.2f} in holes, {free:.2f} free"
        ax.text(0, row - 0.3, said, ha="left", va="center", fontsize=8.5, color=INK)
        ax.barh(row + 0.36, case["asked"], color="none", edgecolor=COLOURS["red"], height=0.2, lw=1.4)
        ax.text(
            case["asked"] + 0.15, row + 0.36, f"asked for, in one piece: {case['asked']:.2f}", va="center", fontsize=8.5
        )
    ax.set(yticks=range(len(cases)), yticklabels=list(cases), ylim=(len(cases) - 0.3, -0.6))
    ax.grid(False)
    figure.legend(
        handles=[patches.Patch(color=colour, label=name) for name, colour in kinds.items()],
        loc="outside lower center", ncols=4, frameon=False,
    )  # fmt: skip
    return figure


def ladder(held: dict, tensors: dict, limit: float, title: str):
    """Memory after each cure, in GiB, a bar a cure: green where it fits, orange where not; `limit` is what the GPU has.

    `held` is what the run holds, `tensors` what its tensors alone take: a tick on each bar.
    """
    colours = [COLOURS["green" if size <= limit else "orange"] for size in held.values()]
    figure = bars(list(held), list(held.values()), title, "GiB held on the GPU, predicted", colours, "{:.1f}",
                  (8.2, 4.8), limit, "a T4 has")  # fmt: skip
    (ax,) = figure.axes
    ax.plot([tensors[name] for name in held], range(len(held)), "|", color=INK, ms=22, mew=2.2)
    ax.scatter([], [], marker="|", s=90, lw=2.2, color=INK, label="tensors alone")
    for colour, meaning in {"orange": "does not fit", "green": "fits"}.items():
        ax.scatter([], [], marker="s", color=COLOURS[colour], label=meaning)
    ax.legend(frameon=False, loc="lower right")
    return figure
