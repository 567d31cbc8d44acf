"""Merge a LoRA adapter into its base, bit for bit as PEFT does, in little memory."""

from helpers.merging.adapter import lora_layers, read_adapter, scaling
from helpers.merging.arithmetic import same_bits
from helpers.merging.matching import match
from helpers.merging.merger import alone, merge_adapter
from helpers.merging.stored import FLOATS, MERGED_DTYPES, MergeError, Stored, check_sums, find_base, read_base

__all__ = [
    "merge_adapter",  # write base and adapter as one ordinary model
    "MERGED_DTYPES",  # what a merged model can be written as
    "MergeError",  # what cannot be merged, read or written
    "find_base",  # the folder of a base model
    "read_base",  # its config, and where each tensor lies
    "Stored",  # where a tensor lies
    "FLOATS",  # dtypes by safetensors' names
    "check_sums",  # that the files are the ones that were published
    "same_bits",  # whether two stored tensors are equal to the last bit
    "alone",  # be the only one that writes a model's folder or file
    "read_adapter",  # an adapter's config, and where each tensor lies
    "lora_layers",  # A, B and the update of each layer that an adapter changes
    "match",  # which update, if any, each tensor of the base gets
    "scaling",  # alpha / r, or alpha / sqrt(r)
]
