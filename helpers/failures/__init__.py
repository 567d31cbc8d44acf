"""The table of known failures, and what recognises one in a message or a log."""

from helpers.failures.page import failures_page
from helpers.failures.recognising import (
    LOG,
    Known,
    all_in,
    explanation,
    last_error,
    recognise,
    switch_off,
    switch_on,
)
from helpers.failures.table import FAILURES, PARTS, RENAMED, Failure, failure

__all__ = [
    "FAILURES",  # the table
    "PARTS",  # the parts of the page that shows it, in order
    "failures_page",  # the page, site/failures.md
    "RENAMED",  # arguments that got another name
    "Failure",  # one row of it
    "failure",  # the row of a name
    "Known",  # a failure that was recognised, with its words
    "explanation",  # of an error or a log, for a reader
    "recognise",  # the name of the failure that a text shows
    "all_in",  # every known failure in a long log
    "last_error",  # the first line of a log's last error
    "LOG",  # how many characters at the end of a log are read
    "switch_on",  # explain the errors of a notebook's cells
    "switch_off",  # explain them no more
]
