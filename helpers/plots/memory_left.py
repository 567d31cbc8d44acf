"""Drawings of a GPU's memory that ran out: what is allocated, what lies in holes, and what each cure leaves."""

from helpers.plots.figures import COLOURS, FROZEN, GRADIENTS, INK, axes, bars


def holes(cases: dict, title: str):
    """A GPU's memory, a bar a case: `cases` maps a name to {"has", "allocated", "holes", "asked"} in GiB."""
    import matplotlib.patches as patches

    figure, ax = axes(title, "GiB", "", size=(7.2, 1.7 + 0.75 * len(cases)))
    kinds = {"allocated to tensors": FROZEN, "reserved, in holes": GRADIENTS, "not reserved": "#ECEFF1"}
    for row, case in enumerate(cases.values()):
        sizes = (case["allocated"], case["holes"], case["has"] - case["allocated"] - case["holes"])
        for start, size, colour in zip((0, sizes[0], sizes[0] + sizes[1]), sizes, kinds.values(), strict=True):
            ax.barh(row, size, left=start, color=colour, edgecolor="white", height=0.5)
            ink = "white" if colour == FROZEN else INK
            ax.text(start + size / 2, row, f"{size:.2f}", ha="center", va="center", fontsize=9, color=ink)
        ax.barh(row + 0.42, case["asked"], left=sizes[0], color="none", edgecolor=COLOURS["red"], height=0.2, lw=1.4)
        ax.text(sizes[0] - 0.1, row + 0.42, f"asked for: {case['asked']:.2f}", ha="right", va="center", fontsize=8.5)
    ax.set(yticks=range(len(cases)), yticklabels=list(cases), ylim=(len(cases) - 0.3, -0.4))
    ax.grid(False)
    figure.legend(
        handles=[patches.Patch(color=colour, label=name) for name, colour in kinds.items()],
        loc="outside lower center", ncols=3, frameon=False,
    )  # fmt: skip
    return figure


def ladder(held: dict, fitting: list, limit: float, title: str):
    """Memory after each cure, in GiB, a bar a cure: green where it fits, orange where not; `limit` is what the GPU has."""
    colours = [COLOURS["green" if enough else "orange"] for enough in fitting]
    figure = bars(list(held), list(held.values()), title, "GiB held on the GPU, predicted", colours, "{:.1f}",
                  (8.2, 4.6), limit, "a T4 has")  # fmt: skip
    (ax,) = figure.axes
    for colour, meaning in {"orange": "does not fit", "green": "fits"}.items():
        ax.scatter([], [], marker="s", color=COLOURS[colour], label=meaning)
    ax.legend(frameon=False, loc="lower right")
    return figure
