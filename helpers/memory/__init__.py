"""Predict the GPU memory of a fine-tuning run from the model's configuration alone: no GPU, no weights, no torch.

A run is played block by block in a copy of torch's allocator; what is alive at its peak, by what it is for, is the
prediction. One RunSpec goes through these files:

    shapes     the model: sizes out of its configuration, or a refusal
    runs       the run: RunSpec as people set it, and what a layer sees of it
    terms      what memory is held for, by name, and the sizes of what stays: weights, adapters, optimizer states
    tape       how tensors come and go in one decoder layer: autograd, and checkpointing
    layers     that layer's operations, with elementwise, products (linear layers and adapters) and attention
    allocator  torch's rules for blocks and segments
    loading    the model arrives in the allocator and is prepared for training
    loss       the final norm, the head and the loss
    replay     two training steps; `predict`
    planner    what fits, and the fastest setting that does: `fits`, `plan`
    rows       predictions beside measured runs

Sources, read in the releases named: transformers 5.24 (modeling files, `integrations/sdpa_attention.py`), trl 1.16
(`kernels/chunked_logprob.py`), peft 0.21 (`tuners/lora/bnb.py`), bitsandbytes 0.50 (`autograd/_functions.py`,
`optim/optimizer.py`), torch 2.11 (autograd, `utils/checkpoint.py`, the caching allocator). No constant is fitted.
"""

from helpers.machine import GIB
from helpers.memory.over_time import step_over_time
from helpers.memory.planner import DoesNotFit, fits, plan
from helpers.memory.replay import predict
from helpers.memory.rows import gpu_of, score
from helpers.memory.runs import ALL_LINEAR, GPUS, RunSpec, spec_of
from helpers.memory.shapes import CannotPredict, shape_of
from helpers.memory.terms import MIB, adapter_bytes, kv_cache_bytes, state_bytes, weight_bytes
from helpers.records import read_rows

__all__ = [
    "RunSpec",  # how a model is trained
    "predict",  # the memory of a run, and what it is for
    "step_over_time",  # memory through one step
    "plan",  # the fastest setting that fits
    "fits",  # whether a prediction fits a GPU
    "CannotPredict",  # what cannot be predicted, and why
    "DoesNotFit",  # no setting fits
    "shape_of",  # a model's sizes, from its configuration
    "GPUS",  # what each GPU offers and takes
    "gpu_of",  # the key in GPUS of a device's name
    "weight_bytes",  # bytes of a loaded model, by kind
    "adapter_bytes",  # bytes of LoRA's matrices
    "kv_cache_bytes",  # bytes of the keys and values kept while a model generates
    "score",  # predictions beside measured rows
]
# For what measures, and for those who use this package alone.
MEASURING = (ALL_LINEAR, GIB, MIB, read_rows, spec_of, state_bytes)
