"""Merge a LoRA adapter into its base, bit for bit as PEFT does, in little memory."""

from helpers.merging.adapter import read_adapter, scaling
from helpers.merging.matching import match
from helpers.merging.merger import merge_adapter
from helpers.merging.stored import MERGED_DTYPES, MergeError, find_base, read_base

__all__ = [
    "merge_adapter",  # write base and adapter as one ordinary model
    "MERGED_DTYPES",  # what a merged model can be written as
    "MergeError",  # what cannot be merged, read or written
    "find_base",  # the folder of a base model
    "read_base",  # its config, and where each tensor lies
    "read_adapter",  # an adapter's config, and where each tensor lies
    "match",  # which update, if any, each tensor of the base gets
    "scaling",  # alpha / r, or alpha / sqrt(r)
]
