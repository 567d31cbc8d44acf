"""What was found: the records of lessons, and the measured runs in measurements/."""

from helpers.records.kept import read_record, read_rows
from helpers.records.measured import MEASUREMENTS, measured_lessons, measured_pairs, measured_runs, nearest_pair

__all__ = [
    "read_record",  # what a lesson recorded in a folder
    "read_rows",  # measured rows from a file, one a line
    "MEASUREMENTS",  # the folder of what was measured
    "measured_runs",  # the runs of measurements/ as a DataFrame, one flat row a run
    "measured_lessons",  # what lessons recorded on GPUs, a row a run
    "measured_pairs",  # pairs of measured runs of one model that differ in one setting
    "nearest_pair",  # the pair that is nearest to two settings
]
