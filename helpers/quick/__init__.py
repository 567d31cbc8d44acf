"""For lessons opened on their own: a 4-bit base, and an adapter that is found or made in seconds."""

from helpers.quick.four_bits import load_4bit
from helpers.quick.short_training import adapter_for, train_adapter, which_adapter

__all__ = [
    "load_4bit",  # the base in 4 bits, and its tokenizer
    "train_adapter",  # a short training as lesson 03 does it
    "adapter_for",  # an adapter for a model: found, or trained now
    "which_adapter",  # in words, which adapter a lesson takes
]
