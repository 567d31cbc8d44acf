"""The course as it lies on disk: lessons, notebooks, address."""

from helpers.course.disk import (
    LESSONS,
    NOTEBOOKS,
    TIMES,
    address,
    carry_outputs,
    find_lesson,
    lesson_parameters,
    lessons,
    read_notebook,
    source_hash,
    title,
    to_notebook,
    write_badges,
    write_notebook,
)

__all__ = [
    "LESSONS",  # the folder of the sources
    "NOTEBOOKS",  # the folder of the notebooks
    "lessons",  # the lesson sources in order
    "find_lesson",  # the lesson that a number or a name means
    "title",  # a lesson's title
    "address",  # repository and release tag
    "source_hash",  # of which lesson a notebook or a record is
    "lesson_parameters",  # names and defaults of a lesson's parameters
    "to_notebook",  # the notebook, without outputs, that a lesson becomes
    "read_notebook",  # a notebook from its file
    "write_notebook",  # a notebook into its file
    "carry_outputs",  # keep outputs where no code changed
    "write_badges",  # colab_badges.md
    "TIMES",  # the file with the measured times of lessons
]
