"""What was found: the records of lessons, and the measured runs in measurements/."""

from helpers.records.kept import read_record, read_rows

__all__ = [
    "read_record",  # what a lesson recorded in a folder
    "read_rows",  # measured rows from a file, one a line
]
