"""What was found: the records of lessons, and the measured runs in measurements/."""

from helpers.records.arms import SideBySide, hits_of, measured_arms, nats_of
from helpers.records.kept import read_record, read_rows
from helpers.records.measured import MEASUREMENTS, measured_failures, measured_lessons, measured_runs, measured_two_gpus

__all__ = [
    "read_record",  # what a lesson recorded in a folder
    "read_rows",  # measured rows from a file, one a line
    "MEASUREMENTS",  # the folder of what was measured
    "measured_runs",  # the runs of measurements/ as a DataFrame, one flat row a run
    "measured_two_gpus",  # the same of those on two GPUs
    "measured_lessons",  # what lessons recorded on GPUs, a row a run
    "measured_failures",  # what a GPU said of each failure that was provoked on one
    "measured_arms",  # full fine-tuning, LoRA and QLoRA side by side
    "SideBySide",  # what measured_arms gives
    "hits_of",  # of one of its rows: which scored rows were right
    "nats_of",  # of one of its rows: the loss of each scored row
]
