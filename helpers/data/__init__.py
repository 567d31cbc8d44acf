"""The instructions that a lesson trains on, and the template that they are written in."""

from helpers.data.instructions import DataError, alpaca_prompt, load_instructions, look_at, to_prompt_completion

__all__ = [
    "load_instructions",  # the rows that dataset_id means, split in two
    "look_at",  # whether dataset_id can be read, before anything heavy
    "alpaca_prompt",  # a prompt in Alpaca's template
    "to_prompt_completion",  # a row as TRL trains on it
    "DataError",  # instructions that cannot be read
]
