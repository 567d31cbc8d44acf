"""Widgets: the calculator, the explorer and the training panel, each with a still picture for pages without a kernel."""

from helpers.widgets.calculator import calculate
from helpers.widgets.explorer import explore
from helpers.widgets.panel import training_panel

__all__ = [
    "calculate",  # the memory calculator of lesson 02
    "explore",  # the quantization explorer of lesson 01
    "training_panel",  # loss and memory while a training runs
]
