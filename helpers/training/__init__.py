"""What a training needs beside the libraries: cures, faster layers, graphs, and advice when memory runs out."""

from typing import TYPE_CHECKING

from helpers.training.cures import Cures
from helpers.training.finite import stop_when_not_finite
from helpers.training.planning import goes_padding_free, plan_training
from helpers.training.several import Way
from helpers.training.targets import require_targets
from helpers.training.workarounds import (
    adapters_to_float32,
    keep_4bit_layout,
    repeat_kv_heads,
    right_dequantization,
    stop_at_max_steps,
)

if TYPE_CHECKING:
    from helpers.training.fused_lora import fuse_lora
    from helpers.training.graphs import recorded
    from helpers.training.without_padding import padding_free

__all__ = [
    "plan_training",  # what a run will take, and the fastest setting that fits
    "Way",  # how a training lies on several GPUs
    "Cures",  # the cures of a run, each at its moment
    "keep_4bit_layout",  # the packed weights stay as the GPU's kernel wants them
    "right_dequantization",  # cures a fault of bitsandbytes on some CPUs
    "adapters_to_float32",  # adapters in float32 for the gradient scaler
    "repeat_kv_heads",  # attention on a T4 without its slow kernel
    "require_targets",  # no training without a layer that target_modules names
    "fuse_lora",  # adapters of one input as one operation
    "padding_free",  # batches without padding, in bounded memory
    "goes_padding_free",  # whether a model can be trained so
    "recorded",  # CUDA graphs of a training step
    "stop_when_not_finite",  # no training beyond a loss that is no number
    "stop_at_max_steps",  # no step beyond the last one in a run that goes on
]


LATE = {"fuse_lora": "fused_lora", "recorded": "graphs", "padding_free": "without_padding"}


def __getattr__(name: str):
    """What imports torch, which takes seconds, only when it is asked for: a command refuses its words before that."""
    if name in LATE:
        import importlib

        return getattr(importlib.import_module(f"helpers.training.{LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
