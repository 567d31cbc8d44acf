"""Drawings of a training on several GPUs: what each of them holds, when each works, and what two bring over one."""

from helpers.plots.figures import COLOURS, FROZEN, INK, PASSING, TRAINED, axes
from helpers.plots.parts import BESIDES, GROUPS, grouped

HOST = "in the computer's memory, while loading"
# What a GPU holds, from the bottom up, in groups as GROUPS are. What lies on the host is hatched, and outside the GPU.
HELD = {
    "frozen weights": (FROZEN, GROUPS["weights in 4 bits"][1] + GROUPS["weights in 16 or 32 bits"][1]),
    "adapters, gradients, optimizer": GROUPS["adapters, gradients, optimizer"],
    "activations, and what one layer needs": (PASSING, ()),
    "weights gathered from all GPUs": ("#7DB8DF", ("weights gathered from all GPUs",)),
    BESIDES: GROUPS[BESIDES],
    HOST: ("white", ("on the host",)),
}
WORK = {"forward": COLOURS["sky"], "backward": FROZEN, "exchange": TRAINED}


def who_holds_what(ways: dict, says: dict, between: dict, limit: float, title: str):
    """A column for each GPU of each way, in GB, under the memory of one GPU (`limit`, in bytes).

    `ways` maps a way's name to a list, one a GPU, of a prediction's parts (bytes), with "reserved and context", which tensors
    do not take, and "on the host", which lies beside the column. `says` maps a way to words for each GPU's frozen weights,
    and `between` to words for what goes from one GPU to the other.
    """
    figure, ax = axes(title, "", "GB at the peak, predicted", size=(9.0, 5.2))
    ways = {way: [grouped(parts, HELD) for parts in gpus] for way, gpus in ways.items()}
    tallest = max(sum(n for key, n in gpu.items() if key != HOST) for gpus in ways.values() for gpu in gpus)
    named: set = set()
    top, x = max(tallest, limit) / 1e9, 0.0
    places = []  # the middle of each way's columns, and how tall they are
    for way, gpus in ways.items():
        begin = x
        for number, (gpu, words) in enumerate(zip(gpus, says[way], strict=True)):
            _column(ax, x, gpu, words, top, named)
            ax.text(x, -0.02 * top, f"GPU {number}", ha="center", va="top", fontsize=9, color=INK)
            x += 1
            if HOST in gpu:
                _box(ax, x - 0.36, 0, gpu[HOST] / 1e9, HOST, named)
                x += 0.4
        middle = (begin + x - 1) / 2
        places.append((middle, max(sum(n for key, n in gpu.items() if key != HOST) for gpu in gpus) / 1e9))
        ax.text(middle, -0.085 * top, way, ha="center", va="top", fontsize=10.5, color=INK, weight="bold")
        said = between.get(way, "")
        ax.text(middle, -0.145 * top, said, ha="center", va="top", fontsize=8.5, color=INK, linespacing=1.3)
        x += 0.6
    ax.axhline(limit / 1e9, color=INK, linestyle="--", linewidth=1.1, zorder=4)
    free = next(
        (at for at, tall in places if tall < 0.95 * limit / 1e9), 0.0
    )  # where no column stands behind the words
    ax.text(
        free, limit / 1e9 + 0.01 * top, f"a T4 has {limit / 1e9:.1f}", va="bottom", ha="center", fontsize=9.5, color=INK
    )
    ax.set(xlim=(-0.6, x - 1.0), ylim=(0, 1.06 * top), xticks=[])
    ax.grid(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _column(ax, x: float, gpu: dict, words: str, top: float, named: set) -> None:
    """What one GPU holds, from the bottom up, and the sum above it."""
    below = 0.0
    for key, size in gpu.items():
        if key == HOST:
            continue
        size /= 1e9
        _box(ax, x, below, size, key, named)
        if key == "frozen weights":
            said = f"{size:.1f}\n{words}"
            ax.text(x, below + size / 2, said, ha="center", va="center", fontsize=9, color="white", zorder=5)
        elif size > 0.045 * top and key != BESIDES:
            ax.text(x, below + size / 2, f"{size:.1f}", ha="center", va="center", fontsize=9, color=INK, zorder=5)
        below += size
    total = ax.text(x, below + 0.012 * top, f"{below:.1f}", ha="center", va="bottom", fontsize=10, color=INK, zorder=5)
    total.set_weight("bold")


def _box(ax, x: float, bottom: float, height: float, key: str, named: set) -> None:
    host, plain = key == HOST, key in (HOST, BESIDES)
    ax.bar(
        x, height, 0.3 if host else 0.86, bottom, color=HELD[key][0], edgecolor=PASSING if plain else "white", linewidth=0.6,
        hatch="////" if host else None, label=None if key in named else key, zorder=2,
    )  # fmt: skip
    named.add(key)


def peaks_by_cut(peaks: dict, marked: dict, title: str):
    """The peak of each of two GPUs, in GB, over the layers that the first has: `peaks` maps their number to both peaks in bytes.

    Where the fuller one takes the least is marked, and so is each cut of `marked`, which maps a number of layers to words.
    """
    figure, ax = axes(title, f"layers on GPU 0, of {max(peaks) + min(peaks)}", "peak (GB), predicted")
    cuts, best = list(peaks), min(peaks, key=lambda cut: max(peaks[cut]))
    for gpu, (colour, mark) in enumerate(((COLOURS["blue"], "o"), (COLOURS["sky"], "s"))):
        heights = [peaks[cut][gpu] / 1e9 for cut in cuts]
        ax.plot(cuts, heights, color=colour, marker=mark, markersize=4, label=f"GPU {gpu}")
    for cut, words in {best: "the least", **marked}.items():
        height = max(peaks[cut]) / 1e9
        ax.plot([cut], [height], "o", markersize=13, markerfacecolor="none", markeredgecolor=COLOURS["red"])
        offset, side = ((0, -58), "center") if cut == best else ((-26, 34), "right")
        ax.annotate(f"{words}: {cut} layers, {height:.2f} GB", (cut, height), offset, textcoords="offset points", ha=side,
                    fontsize=9.5, color=INK, arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.7})  # fmt: skip
    ax.set(xticks=cuts[::2], ylim=(0, None))
    ax.legend(frameon=False, loc="lower right")
    return figure


def one_step(ways: dict, title: str, done: dict):
    """When each GPU works during one training step: a row for each GPU of each way. A drawing, with no unit of time.

    `ways` maps a way's name to a list of rows, one a GPU: [(a key of WORK, begin, end, words), ...]. `done` maps it to words
    that stand where its step ends.
    """
    size = (9.0, 1.6 + 0.42 * sum(map(len, ways.values())))
    figure, ax = axes(title, "time, in forward passes of one batch through the whole model", "", size=size)
    named: set = set()
    y, ticks = 0.0, []
    for way, rows in ways.items():
        for number, row in enumerate(rows):
            for kind, begin, end, words in row:
                ax.barh(
                    y,
                    end - begin,
                    0.8,
                    begin,
                    color=WORK[kind],
                    edgecolor="white",
                    label=None if kind in named else kind,
                )
                ink = "white" if kind == "backward" else INK
                ax.text((begin + end) / 2, y, words, ha="center", va="center", fontsize=8.5, color=ink)
                named.add(kind)
            ticks.append((y, f"{way}, GPU {number}" if number == 0 else f"GPU {number}"))
            y += 1
        ended = max(end for row in rows for _, _, end, _ in row)
        ax.text(ended + 0.05, y - (1 + len(rows)) / 2, done[way], va="center", fontsize=9.5, color=INK, weight="bold")
        y += 0.5
    ax.set_xlim(0, 1.2 * ax.dataLim.x1)
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    ax.set_ylim(y - 1, -0.6)
    ax.grid(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def two_panels(panels: dict, title: str, colours: dict):
    """Bars in panels side by side, each with a scale and labels of its own: `panels` maps a scale to {label: value}.

    `colours` maps a label to the name of its colour; blue where it has none.
    """
    rows = max(len(values) for values in panels.values())
    figure, ax = axes(title, "", "", size=(9.0, 1.1 + 0.5 * rows), ncols=len(panels), squeeze=False)
    for each, (scale, values) in zip(ax.flat, panels.items(), strict=True):
        shades = [COLOURS[colours.get(label, "blue")] for label in values]
        drawn = each.barh(range(len(values)), list(values.values()), 0.68, color=shades)
        each.bar_label(
            drawn, [f"{v:,.0f}" if v >= 100 else f"{v:.1f}" for v in values.values()], padding=4, fontsize=9.5
        )
        each.set_yticks(range(len(values)), list(values))
        each.set(xlabel=scale, xlim=(0, 1.22 * max(values.values())))
        each.invert_yaxis()
        each.grid(False)
    return figure
