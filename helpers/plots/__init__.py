"""Figures from plain data."""

from helpers.plots import diagrams
from helpers.plots.figures import (
    COLOURS,
    axes,
    bars,
    curves,
    grouped_bars,
    histogram,
    levels_on_histogram,
    memory_timeline,
    png,
    show,
    stacked_bars,
    tokens_in_colour,
    training_still,
)

__all__ = [
    "show",  # show a figure with its alternative text
    "png",  # a figure as bytes
    "diagrams",  # drawings in one visual language: LoRA, ways of training to scale, bits, blocks, slices of a bell
    "axes",  # empty axes in the course's style
    "COLOURS",  # colours that colour-blind readers tell apart, by name
    "bars",  # one bar a name
    "grouped_bars",  # several bars a name
    "stacked_bars",  # parts of a whole
    "curves",  # lines over steps or lengths
    "histogram",  # how often each value occurs
    "levels_on_histogram",  # quantization levels on the weights they stand for
    "memory_timeline",  # memory over time, by phase
    "tokens_in_colour",  # which tokens are trained on
    "training_still",  # loss and memory of a finished training
]
