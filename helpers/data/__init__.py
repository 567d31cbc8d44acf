"""The instructions that a lesson trains on, of the course or of one's own, and the template that they are written in."""

from helpers.data.instructions import (
    alpaca_prompt,
    licence_of_rows,
    load_instructions,
    look_at,
    read_template,
    to_prompt_completion,
)
from helpers.data.layouts import parse_columns
from helpers.data.own_rows import Reading, load_rows
from helpers.data.readers import DataError
from helpers.data.splits import split_rows
from helpers.data.templates import ends_of_answers, to_chat, with_template

__all__ = [
    "load_instructions",  # the rows that dataset_id means, split in two
    "load_rows",  # rows of one's own: a file, a folder or a data set on the hub
    "Reading",  # the same rows one by one, without a library that takes seconds
    "split_rows",  # rows to learn and rows held out, copies and groups on one side
    "look_at",  # whether dataset_id can be read, before anything heavy
    "alpaca_prompt",  # a prompt in Alpaca's template
    "to_prompt_completion",  # a row as two texts, in Alpaca's template
    "to_chat",  # a row as a question and an answer, for any template
    "with_template",  # a tokenizer with the template that a run trains and asks with
    "ends_of_answers",  # the tokens that end an answer
    "read_template",  # the text of a file with a template
    "licence_of_rows",  # of the rows that the course knows
    "parse_columns",  # the column of each role, from "prompt=Question,completion=Answer"
    "DataError",  # rows that cannot be read
]
