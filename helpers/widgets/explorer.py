"""The explorer of lesson 01: sliders that change how weights are quantized, and a still figure without them."""

import functools

from helpers import plots
from helpers.widgets.showing import show_panel

SIGMA = 0.02  # standard deviation of the pretended weights, as in a small language model
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)


@functools.cache
def pretended_weights():
    """16,384 numbers from a bell curve, float32; the same on each call."""
    import torch

    return torch.randn(16_384, generator=torch.Generator().manual_seed(0)) * SIGMA


def measure(quantize, dequantize, levels, block_size: int, outlier: int) -> tuple:
    """Quantize the pretended weights, the first of them moved out to `outlier` standard deviations (0: left alone).

    Returns the values after block scaling, the relative error (RMS of the error over RMS of the weights, the outlier
    left out of both) and the bits per weight, float32 absmax included.
    """
    weights = pretended_weights().clone()
    if outlier:
        weights[0] = outlier * SIGMA
    codes, absmax = quantize(weights, levels, block_size)
    restored = dequantize(codes, absmax, levels, block_size, weights.shape)
    error = ((weights - restored)[1:].norm() / weights[1:].norm()).item()
    scaled = weights / absmax.repeat_interleave(block_size)[: len(weights)]
    return scaled, error, 4 + 32 * len(absmax) / len(weights)


def draw(quantize, dequantize, sets: dict, name: str, block_size: int, outlier: int) -> tuple:
    """The picture (PNG bytes) and the line of numbers for one setting of the sliders."""
    scaled, error, bits = measure(quantize, dequantize, sets[name], block_size, outlier)
    beside = f"one outlier at {outlier} deviations" if outlier else "no outlier"
    numbers = f"{name}, blocks of {block_size}, {beside}: relative error {error:.1%}, {bits:.3f} bits per weight"
    title = numbers.replace("relative ", "").replace("one outlier", "outlier")  # fits one line
    figure = plots.levels_on_histogram(scaled, {name: sets[name]}, title)
    return plots.png(figure, dpi=80), numbers


def explore(quantize, dequantize, sets: dict) -> None:
    """Display the explorer: sliders where ipywidgets and a live front end are, a still figure elsewhere.

    `quantize` and `dequantize` are lesson 01's quantize_blockwise and dequantize_blockwise, `sets` names levels.
    """
    at_start = {"name": next(iter(sets)), "block_size": 4096, "outlier": 20}  # one block of four is spoiled
    picture, numbers = draw(quantize, dequantize, sets, **at_start)
    panel = _panel(functools.partial(draw, quantize, dequantize, sets), sets, at_start, picture, numbers)
    show_panel(panel, picture, numbers, f"Histogram of block-scaled weights. {numbers}.")


def _panel(redraw, sets: dict, at_start: dict, picture: bytes, numbers: str):
    """The sliders over the picture; None without ipywidgets."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None
    controls = {
        "name": widgets.Dropdown(options=list(sets), value=at_start["name"], description="levels"),
        "block_size": widgets.SelectionSlider(
            options=BLOCK_SIZES, value=at_start["block_size"], description="block size"
        ),
        "outlier": widgets.IntSlider(
            at_start["outlier"], 0, 100, 5, description="outlier", tooltip="in standard deviations; 0 is none"
        ),
    }
    image, line = widgets.Image(value=picture, format="png"), widgets.HTML(f"<b>{numbers}</b>")

    def changed(_):
        image.value, text = redraw(**{name: control.value for name, control in controls.items()})
        line.value = f"<b>{text}</b>"

    for control in controls.values():
        control.observe(changed, names="value")
    return widgets.VBox([*controls.values(), line, image])
