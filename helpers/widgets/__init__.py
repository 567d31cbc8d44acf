"""What a reader moves: calculators and panels; and stills of them for a page without a kernel."""

from helpers.widgets.calculator import calculate
from helpers.widgets.explorer import explore
from helpers.widgets.panel import training_panel

__all__ = [
    "calculate",  # the memory calculator of lesson 02
    "explore",  # the quantization explorer of lesson 01
    "training_panel",  # loss and memory while a training runs
]
