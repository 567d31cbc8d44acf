"""What was found: the records of lessons, and the measured runs in measurements/."""

from helpers.records.kept import read_record

__all__ = [
    "read_record",  # what a lesson recorded in a folder
]
