"""Drawings in one visual language: what is frozen is blue, what is trained orange, what only passes through grey."""

from helpers.plots.comparing import intervals as intervals
from helpers.plots.comparing import named_marks as named_marks
from helpers.plots.figures import COLOURS, FROZEN, GRADIENTS, INK, PASSING, TRAINED, axes
from helpers.plots.figures import bars as bars
from helpers.plots.figures import grouped_bars as grouped_bars
from helpers.plots.memory_left import holes as holes
from helpers.plots.memory_left import ladder as ladder
from helpers.plots.parts import BESIDES, GROUPS, HOST, grouped
from helpers.plots.several_gpus import one_step as one_step
from helpers.plots.several_gpus import peaks_by_cut as peaks_by_cut
from helpers.plots.several_gpus import two_panels as two_panels
from helpers.plots.several_gpus import who_holds_what as who_holds_what
from helpers.plots.survival import merge_lines as merge_lines
from helpers.plots.survival import survival as survival

# What a training run holds, from what stays to what passes, and its colour.
HELD = {
    "frozen weights": FROZEN,
    "trained weights": TRAINED,
    "gradients": GRADIENTS,
    "optimizer states": "#F8E3B0",
    "activations": PASSING,
}
DARK, OF_AN_ADAPTER = ("frozen weights", "activations"), ("trained weights", "gradients", "optimizer states")
THIN = 0.035  # inches: a bar that is thinner would not be seen


def lora(layers: dict, rank: int, alpha: float):
    """W + (alpha / r) B A, a row for each layer at a scale of its own: `layers` maps its name to (outputs, inputs).

    Within a row a millimetre is the same number of columns or rows in W, B, A, x and y; only what would be thinner than a
    hairline is drawn as one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 0.55 + 2.75 * len(layers)))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 8.2), ylim=(0, 0.55 + 2.75 * len(layers)))
    ax.set_axis_off()
    shares = ", ".join(f"{rank * (o + i) / (o * i):.1%} in {name}" for name, (o, i) in layers.items())
    title = f"B and A hold few numbers beside W: {shares}"
    ax.text(0.15, ax.get_ylim()[1] - 0.3, title, fontsize=10.5, va="center", color=INK)
    for number, (name, (outputs, inputs)) in enumerate(layers.items()):
        _lora_row(ax, 2.75 * (len(layers) - 1 - number), name, outputs, inputs, rank, alpha)
    return figure


def _lora_row(ax, bottom: float, name: str, outputs: int, inputs: int, rank: int, alpha: float) -> None:
    """One row of `lora`, 2.75 inches high: y = ( W + alpha/r B A ) x."""
    scale = 1.75 / max(outputs, inputs)  # inches a row or column
    high, wide, thin = scale * outputs, scale * inputs, max(THIN, scale * rank)
    middle, below = bottom + 1.55, bottom + 0.52

    def block(x, width, height, colour, text, ink="white"):
        from matplotlib.patches import Rectangle

        ax.add_patch(Rectangle((x, middle - height / 2), width, height, color=colour, lw=0))
        ax.text(x + width / 2, middle, text, ha="center", va="center", fontsize=15, color=ink, style="italic")

    def under(x, text, colour=INK):
        ax.text(x, below, text, ha="center", va="top", fontsize=8.5, color=colour, linespacing=1.35)

    def sign(x, text, size=18, colour=INK):
        ax.text(x, middle, text, ha="center", va="center", fontsize=size, color=colour)

    ax.text(0.15, bottom + 2.6, name, fontsize=9.5, va="center", color=INK, weight="bold")
    block(0.44, THIN, high, PASSING, "")
    under(0.46, f"y\n{outputs:,}", PASSING)
    sign(0.74, "=")
    sign(1.02, "(", 62)
    block(1.25, wide, high, FROZEN, "W")
    under(1.25 + wide / 2, f"{outputs:,} × {inputs:,}\nfrozen, in 4 bits", FROZEN)
    x = 1.25 + wide
    sign(x + 0.28, "+")
    sign(x + 0.85, r"$\frac{\alpha}{r}$", 22)
    ax.text(x + 0.85, middle - 0.42, f"= {alpha:g} / {rank}", ha="center", va="top", fontsize=8.5, color=INK)
    b = x + 1.42
    block(b, thin, high, TRAINED, "")
    ax.text(
        b + thin / 2, middle + high / 2 + 0.04, "B", ha="center", va="bottom", fontsize=15, color=INK, style="italic"
    )
    under(b + thin / 2, f"{outputs:,} × {rank}\ntrained, zero\nat first", INK)
    a = b + thin + 0.42
    block(a, wide, thin, TRAINED, "")
    above = middle + thin / 2 + 0.06
    ax.text(a + wide / 2, above, "A", ha="center", va="bottom", fontsize=15, color=INK, style="italic")
    under(a + wide / 2, f"{rank} × {inputs:,}\ntrained, random at first")
    sign(a + wide + 0.22, ")", 62)
    block(a + wide + 0.47, THIN, wide, PASSING, "")
    under(a + wide + 0.49, f"x\n{inputs:,}", PASSING)


def to_scale(ways: dict, cards: dict, title: str):
    """What ways of training hold, as stacked bars, under the memory of cards, in GB.

    `ways` maps a name to {one of HELD: bytes}; `cards` maps a card's name to its bytes.
    """
    ways = {way: {part: size / 1e9 for part, size in held.items()} for way, held in ways.items()}
    cards = {card: size / 1e9 for card, size in cards.items()}
    figure, ax = axes(title, "GB", "", size=(8.2, 1.9 + 0.62 * len(ways)))
    left, widest = dict.fromkeys(ways, 0.0), max(sum(held.values()) for held in ways.values())
    for part, colour in HELD.items():
        if not any(held.get(part) for held in ways.values()):
            continue
        sizes = [held.get(part, 0.0) for held in ways.values()]
        bars = ax.barh(range(len(ways)), sizes, 0.62, list(left.values()), color=colour, label=part)
        inside = [f"{size:.1f}" if size > 0.03 * widest else "" for size in sizes]
        ax.bar_label(bars, inside, label_type="center", fontsize=9, color="white" if part in DARK else INK)
        left = {way: left[way] + size for way, size in zip(ways, sizes, strict=True)}
    for row, (way, total) in enumerate(left.items()):
        adapter = sum(ways[way].get(part, 0.0) for part in OF_AN_ADAPTER) if "frozen weights" in ways[way] else 0
        said = f"{total:.1f} GB" + (f", {adapter:.1f} of it for the adapter" if adapter else "")
        text = ax.text(total + 0.6, row, said, va="center", fontsize=10, color=INK, zorder=5)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    for card, size in cards.items():
        ax.axvline(size, color=INK, linestyle="--", linewidth=1, zorder=0)
        ax.text(size, -0.66, f"{card}\n{size:.1f}", ha="center", va="bottom", fontsize=8.5, color=INK)
    ax.set_yticks(range(len(ways)), ways)
    ax.set(ylim=(len(ways) - 0.5, -0.62), xlim=(0, 1.13 * max(*left.values(), *cards.values())))
    ax.grid(False)
    figure.get_layout_engine().set(h_pad=0.12)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


SIGN, EXPONENT, FRACTION = COLOURS["red"], COLOURS["sky"], COLOURS["yellow"]
PALE = "#E3E6E8"  # behind numbers that are only numbers


def _bare(title: str, size):
    figure, ax = axes(title, "", "", size=size)
    ax.set_axis_off()
    ax.grid(False)
    return figure, ax


def _box(ax, x: float, y: float, text: str, colour: str, width=1.0, ink: str = INK, size=9.5) -> None:
    """A cell of a drawn table: `text` on `colour`, its lower left corner at (x, y), 0.8 high."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, 0.8, facecolor=colour, edgecolor="white", linewidth=1.5))
    ax.text(x + width / 2, y + 0.4, text, ha="center", va="center", fontsize=size, family="monospace", color=ink)


def bit_strips(numbers: dict[str, str], title: str):
    """Numbers as strips of bits: `numbers` maps a type's name to "sign exponent fraction", each in zeros and ones."""
    longest = max(len(text.replace(" ", "")) for text in numbers.values())
    figure, ax = _bare(title, (8.6, 1.1 + 0.5 * len(numbers)))
    for row, (name, text) in enumerate(numbers.items()):
        x = 0
        ax.text(-0.5, 0.4 - row, name, ha="right", va="center", fontsize=10.5, color=INK)
        for field, colour in zip(text.split(), (SIGN, EXPONENT, FRACTION), strict=True):
            for bit in field:
                _box(ax, x, -row, bit, colour, ink="white" if colour == SIGN else INK)
                x += 1
    for colour, label in ((SIGN, "sign"), (EXPONENT, "exponent: how large"), (FRACTION, "fraction: how exactly")):
        ax.fill_between([], [], color=colour, label=label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    ax.set(xlim=(-4.6, longest + 0.2), ylim=(0.9 - len(numbers), 0.9))
    return figure


def block_to_bytes(weights, absmax: float, levels, codes, inputs, title: str):
    """A block on its way to bytes, back to weights and into a product: a column for each weight, a row for each step.

    `weights`, `inputs`: floats; `levels`: of each weight, the level it went to; `codes`: whole numbers below 16, an even
    count. Beside the last row stands the sum of the products, and what the unrounded weights would give.
    """
    restored = [level * absmax for level in levels]
    rows = {
        "weight": (PALE, [f"{weight:+.3f}" for weight in weights]),
        "divided by absmax": (PALE, [f"{weight / absmax:+.2f}" for weight in weights]),
        "nearest level": (COLOURS["sky"], [f"{level:+.2f}" for level in levels]),
        "its code": (PALE, [f"{code:04b}" for code in codes]),
        "stored: a byte for two": (COLOURS["yellow"], None),
        "level times absmax": (COLOURS["sky"], [f"{weight:+.3f}" for weight in restored]),
        "input": (PALE, [f"{x:+.2f}" for x in inputs]),
        "product": (COLOURS["sky"], [f"{weight * x:+.3f}" for weight, x in zip(restored, inputs, strict=True)]),
    }
    figure, ax = _bare(title, (8.6, 0.7 + 0.45 * len(rows)))
    for row, (name, (colour, texts)) in enumerate(rows.items()):
        ax.text(-0.15, 0.4 - row, name, ha="right", va="center", fontsize=10, color=INK)
        for i in range(0, len(weights), 1 if texts else 2):
            text = texts[i] if texts else f"{codes[i] << 4 | codes[i + 1]:08b}"
            _box(ax, i, -row, text, colour, width=1 if texts else 2)
    product = sum(weight * x for weight, x in zip(restored, inputs, strict=True))
    exact = sum(weight * x for weight, x in zip(weights, inputs, strict=True))
    _box(ax, len(weights) + 0.15, -4, f"absmax {absmax:.3f}", COLOURS["yellow"], width=1.6)
    notes = {1: f"absmax {absmax:.3f}", 7: f"sum {product:+.3f}\n(exact {exact:+.3f})"}
    for row, note in notes.items():
        ax.text(len(weights) + 0.12, 0.4 - row, note, ha="left", va="center", fontsize=9.5, color=INK)
    ax.set(xlim=(-2.4, len(weights) + 1.8), ylim=(0.9 - len(rows), 0.9))
    return figure


def equal_slices(levels, title: str):
    """A bell curve cut into as many slices of equal share as there are `levels`, and these below it.

    `levels` are scaled to reach from -1 to 1; they are drawn with the outermost where the derivation starts.
    """
    from statistics import NormalDist

    bell, number, limit = NormalDist(), len(levels), 3.0
    edges = [-limit, *(bell.inv_cdf(i / number) for i in range(1, number)), limit]
    figure, ax = axes(title, "weight (in standard deviations)", "", size=(7.6, 3.4))
    for i in range(number):
        xs = [edges[i] + (edges[i + 1] - edges[i]) * k / 20 for k in range(21)]
        ax.fill_between(xs, [bell.pdf(x) for x in xs], color=COLOURS["sky" if i % 2 else "blue"], linewidth=0)
    outermost = bell.inv_cdf(1 - (1 / (2 * number) + 1 / (2 * number - 2)) / 2)  # as NF4 is derived
    ax.vlines([outermost * level for level in levels], -0.06, -0.012, color=COLOURS["red"], linewidth=2.2)
    ax.text(-limit, -0.036, "NF4's levels", color=COLOURS["red"], ha="left", va="center", fontsize=10)
    ax.set(yticks=[], xlim=(-limit, limit), ylim=(-0.075, 0.42))
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    return figure


def error_and_perplexity(ways, title: str, ceiling: float = 60.0):
    """The relative error of the weights beside the perplexity, a row for each way to round a model.

    `ways` are dictionaries with way, bits_per_weight, relative_error and perplexity. A bar that is longer than `ceiling`
    is drawn broken there, and its number says so. Ways that begin with "nf4" are blue, so that block sizes can be compared.
    """
    names = [f"{way['way']}: {way['bits_per_weight']:.4g} bits".removesuffix(f": {way['way']}") for way in ways]
    colours = [COLOURS["blue" if way["way"].startswith("nf4") else "sky"] for way in ways]
    figure, (left, right) = axes(title, "", "", size=(8.6, 1.1 + 0.3 * len(ways)), ncols=2, sharey=True)
    shares = [100 * way["relative_error"] for way in ways]
    lengths = [min(way["perplexity"], ceiling) for way in ways]
    for ax, values in ((left, shares), (right, lengths)):
        ax.barh(range(len(ways)), values, 0.72, color=colours)
        ax.set(xlim=(0, 1.3 * max(values)))
        ax.grid(False)
    for row, (way, share, length) in enumerate(zip(ways, shares, lengths, strict=True)):
        left.text(share + 0.6, row, f"{share:.1f}", va="center", fontsize=9, color=INK)
        cut = "» " if way["perplexity"] > ceiling else ""
        if cut:  # two white strokes break the bar
            for x in (0.92 * length, 0.95 * length):
                right.plot((x - 0.6, x + 0.6), (row + 0.45, row - 0.45), color="white", linewidth=2.5)
        right.text(length + 0.6, row, cut + _short(way["perplexity"]), va="center", fontsize=9, color=INK)
    left.set_yticks(range(len(ways)), names)
    left.set(ylim=(len(ways) - 0.4, -0.6), xlabel="relative error of the weights (%)")
    right.set(xlabel="perplexity")
    right.tick_params(left=False)
    return figure


def _short(number: float) -> str:
    """A number in few characters: 18.7, 10,283, 4 billion."""
    if number < 1e6:
        return f"{number:.1f}" if number < 1000 else f"{number:,.0f}"
    return f"{number / 1e6:,.0f} million" if number < 1e9 else f"{number / 1e9:,.0f} billion"


def run_parts(runs: dict, title: str, lines: dict | None = None, size=None):
    """What runs hold at their peaks, a stacked bar for each, in GB.

    `runs` maps a name to a prediction's parts (bytes). It may have two parts more: "reserved and context", which tensors do
    not take, and "averages on the host", which is hatched and outside the total.
    `lines` maps a label to the bytes at which it marks a limit.
    """
    runs = {name: {g: n / 1e9 for g, n in grouped(parts).items()} for name, parts in runs.items()}
    marks = {label: n / 1e9 for label, n in (lines or {}).items()}
    figure, ax = axes(title, "GB", "", size=size or (8.2, 1.9 + 0.5 * len(runs)))
    top = max(*(sum(held.values()) for held in runs.values()), *marks.values(), 0.0)
    left, named = dict.fromkeys(runs, 0.0), set()
    for group, (colour, _) in GROUPS.items():
        edge = PASSING if group in (HOST, BESIDES) else "white"
        ink = "white" if group in ("weights in 4 bits", "the loss") else INK
        for row, (name, held) in enumerate(runs.items()):
            if group not in held:
                continue
            if group == HOST:  # apart from the GPU's part, and beyond the limit that it does not count against
                left[name] = max(left[name], *marks.values()) + 0.02 * top
            bar = {"label": None if group in named else group, "hatch": "////" if group == HOST else None}
            ax.barh(row, held[group], 0.66, left[name], color=colour, edgecolor=edge, linewidth=0.5, **bar)
            if held[group] > 0.06 * top and group not in (HOST, BESIDES):
                at = left[name] + held[group] / 2
                ax.text(at, row, f"{held[group]:.2f}", ha="center", va="center", fontsize=9, color=ink)
            left[name] += held[group]
            named.add(group)
    for row, (name, held) in enumerate(runs.items()):
        total, host = sum(n for group, n in held.items() if group != HOST), held.get(HOST)
        said = f"{total:.2f} GB" + (f"\nand {host:.2f}" if host else "")
        text = ax.text(left[name] + 0.012 * top, row, said, va="center", fontsize=10, color=INK)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    for label, n in marks.items():
        ax.axvline(n, color=INK, linestyle="--", linewidth=1, zorder=0)
        side = "right" if n > 0.6 * top else "left"
        ax.text(n, -0.5, f"{label}: {n:.2f} GB", ha=side, va="bottom", fontsize=9, color=INK)
    ax.set_yticks(range(len(runs)), runs)
    ax.set(ylim=(len(runs) - 0.5, -0.75 if marks else -0.5), xlim=(0, max(1.16 * top, 1.2 * max(left.values()))))
    ax.grid(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


# The phases of a training step, and the words over them.
PHASES = {"forward": "forward pass", "loss": "loss", "backward": "backward pass", "step": "optimizer"}


def training_steps(
    steps: dict, frozen: int, trained: int, title: str, line: float | None = None, line_label="", room=None
):
    """Memory through one training step, a panel for each way, with the phases named and what stays at the bottom.

    `steps` maps a name to the points of `helpers.memory.step_over_time`: (place, phase, bytes). `frozen` and `trained` are
    bytes that stay: the weights, and the adapters with the optimizer's states. What lies above comes and goes. `line`: a
    limit in GB; `room`: how much of it a plan lets tensors take. A way whose name is "" has no words below its panel.
    """
    figure, panels = axes(title, "", "GB", size=(8.2, 3.6), ncols=len(steps), sharey=True, squeeze=False)
    weights, states = frozen / 1e9, (frozen + trained) / 1e9  # where the blue ends, and the orange
    top = max(line or 0, max(n for points in steps.values() for *_, n in points) / 1e9)
    for ax, (name, points) in zip(panels.flat, steps.items(), strict=True):
        at, begins = _laid_out(points)
        values = [n / 1e9 for *_, n in points]
        ax.fill_between(at, values, states, step="post", color=PASSING, linewidth=0)
        ax.fill_between(at, weights, states, color=TRAINED, linewidth=0)
        ax.fill_between(at, 0, weights, color=FROZEN, linewidth=0)
        ax.plot(at, values, drawstyle="steps-post", color=INK, linewidth=0.5)
        if line is not None:
            ax.axhline(
                line, color=INK, linestyle="--", linewidth=1.2, label=line_label if ax is panels.flat[0] else None
            )
        if room is not None:
            ax.axhline(room, color=INK, linestyle=":", linewidth=1.2, label="what tensors may take of it, by the plan")
        for phase, (begin, end) in begins.items():
            ax.axvline(begin, color=INK, linewidth=0.6, linestyle=":")
            middle, upright = (begin + end) / 2, end - begin < 0.2
            ax.text(middle, 1.02, PHASES[phase], ha="center", va="bottom", fontsize=8.5, color=INK,
                    rotation=90 if upright else 0, transform=ax.get_xaxis_transform())  # fmt: skip
        below = f"{name}: at most {max(values):.2f} GB" if name else ""
        ax.set(xlim=(0, 1), ylim=(0, 1.08 * top), xticks=[], xlabel=below)
        ax.grid(False)
    for ax in panels.flat[1:]:
        ax.set_ylabel("")
    colours = {"frozen weights": FROZEN, "adapters and optimizer states": TRAINED, "comes and goes": PASSING}
    for name, colour in colours.items():
        panels.flat[0].fill_between([], [], color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _laid_out(points) -> tuple[list, dict]:
    """Where each point of a step stands from 0 to 1, and where each phase begins and ends; a short phase gets a tenth."""
    counts: dict = {}
    for _, phase, _ in points:
        counts[phase] = counts.get(phase, 0) + 1
    shares = {phase: max(0.1, count / len(points)) for phase, count in counts.items()}
    whole, at, begin, spans = sum(shares.values()), [], 0.0, {}
    for phase, count in counts.items():
        width = shares[phase] / whole
        at += [begin + width * i / count for i in range(count)]
        spans[phase] = (begin, begin + width)
        begin += width
    return at, spans


def prefill_and_decode(prompt: list[str], made: list[str], title: str):
    """What is fed to the model in each step, what it has kept of earlier tokens, and what it makes: a row for each step.

    `prompt` and `made` are tokens as text. In the first step the whole prompt is fed, in each later one the last token made.
    """
    steps, number = len(made), len(prompt)
    figure, ax = _bare(title, (9.2, 1.5 + 0.6 * steps))
    texts, x = [text.strip()[:7] or "↵" for text in (*prompt, *made)], len(prompt) + steps
    for step in range(steps):
        begin, end, y = (number + step - 1 if step else 0), number + step, -1.25 * step
        ax.text(-0.2, y + 0.4, f"decode {step}" if step else "prefill", ha="right", va="center", fontsize=10, color=INK)
        for place in range(end):
            fed = place >= begin
            _box(ax, place, y, texts[place], PASSING if fed else PALE, ink="white" if fed else INK, size=8.5)
        _box(ax, x, y, "all layers", FROZEN, width=1.9, ink="white")
        ax.fill_between([x + 0.02, x + 1.88], y + 0.64, y + 0.8, color=TRAINED, linewidth=0)  # it is beside each layer
        ax.annotate("", (x - 0.05, y + 0.4), (end + 0.05, y + 0.4), arrowprops={"arrowstyle": "->", "color": INK})
        if begin:  # what was kept is read as well: a line below the kept boxes, into the layers from below
            ax.plot([0.05, begin - 0.05], [y - 0.1] * 2, color=INK, linewidth=2.5, solid_capstyle="butt")
            ax.plot([begin - 0.05, x + 0.95], [y - 0.1] * 2, color=INK, linewidth=0.8)
            ax.annotate("", (x + 0.95, y + 0.03), (x + 0.95, y - 0.12), arrowprops={"arrowstyle": "->", "color": INK})
        if step == 1:
            ax.text(x + 1.1, y - 0.2, "cache, read by attention", va="center", fontsize=8.5, color=INK)
        ax.text(x + 2.1, y + 0.4, f"→ {texts[end]}", va="center", fontsize=10, color=INK)
    names = {
        "fed in this step; its keys and values are kept": PASSING,
        "keys and values in the cache": PALE,
        "frozen weights": FROZEN,
        "adapter": TRAINED,
    }
    for name, colour in names.items():
        ax.fill_between([], [], color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    ax.set(xlim=(-1.4, x + 4.0), ylim=(1 - 1.25 * steps, 0.9))
    return figure
