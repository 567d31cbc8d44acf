"""For lessons opened on their own: a 4-bit base, and an adapter that is found or made in seconds."""

from helpers.quick.by_file import killed_by_file, train_by_file, two_gpus_here
from helpers.quick.diagnosis import FAULTS, broken_runs
from helpers.quick.four_bits import load_4bit
from helpers.quick.short_training import adapter_for, train_adapter, two_adapters, which_adapter
from helpers.quick.side_runs import forget_side_runs, killed_side_run, side_run

__all__ = [
    "load_4bit",  # the base in 4 bits, and its tokenizer
    "train_adapter",  # a short training as lesson 03 does it
    "adapter_for",  # an adapter for a model: found, or trained now
    "two_adapters",  # that one, and one that was stopped early
    "side_run",  # a small training of the bundled model, beside the lesson's own
    "killed_side_run",  # the same in a process that is killed
    "train_by_file",  # `python -m helpers train`, started from a notebook, and what it found
    "killed_by_file",  # the same, killed in all of its processes
    "two_gpus_here",  # whether it has two GPUs, or trains on the CPU
    "forget_side_runs",  # delete what they left
    "which_adapter",  # in words, which adapter a lesson takes
    "broken_runs",  # five trainings with a fault each, and a healthy one
    "FAULTS",  # which fault is whose
]
