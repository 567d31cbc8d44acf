"""Drawings in one visual language: what is frozen is blue, what is trained orange, what only passes through grey."""

from helpers.plots.figures import COLOURS, axes

FROZEN, TRAINED, PASSING, INK = COLOURS["blue"], COLOURS["orange"], "#8D9499", "#22272B"
# What a training run holds, from what stays to what passes, and its colour.
HELD = {
    "frozen weights": FROZEN,
    "trained weights": TRAINED,
    "gradients": "#F2C35C",
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
    ax.text(0.15, ax.get_ylim()[1] - 0.3, title, fontsize=11, va="center", color=INK)
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
