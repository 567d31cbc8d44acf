"""What every lesson does: begin a run, show tables, record, judge, check answers."""

from helpers.lesson.checks import check
from helpers.lesson.parameters import RULES, ParameterError, Rule, validate
from helpers.lesson.session import NOT_SO, Run, begin, record, verdict
from helpers.lesson.tables import table

__all__ = [
    "begin",  # check the parameters, find machine, model and data, and show them
    "Run",  # one run of one lesson
    "record",  # add to what the run found
    "verdict",  # state what the reader should now believe
    "NOT_SO",  # begins an untrue verdict
    "table",  # rows as a table, each column by its format
    "check",  # check the answer to an exercise
    "validate",  # check the parameters by their rules
    "Rule",  # what a parameter can be, as words and as a check
    "RULES",  # the rule of each parameter
    "ParameterError",  # a value that is not possible
]
