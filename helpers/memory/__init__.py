"""Predict the GPU memory of a fine-tuning run from the model's configuration alone: no GPU, no weights, no torch.

What is computed is not tensors but their sizes, and when each comes and goes. One RunSpec takes this path:

    shapes, runs         the model's sizes out of its configuration, or a refusal; the run as people set it (RunSpec),
     |                   and what one layer needs to know of it (Kind)
    decoder_layer        writes a layer's operations down, forward and backward, with linear_layers, attention and
     |                   elementwise
    tape                 a layer written down once: its tensors, how large each is, what it is for, and until when it lives
     |
    programs             the tape as takings and givings of memory in their order, which every layer of its kind plays
     |
    loading, replay      the model is loaded and prepared; then two training steps, with loss between the layers' forward
     |                   and backward passes. What is alive at the peak is `predict`'s answer; over_time keeps all of it
     |
     +- allocator        what they are played on, a heap: torch's rules, so it knows what torch reserves, too
     +- tally            or a mere sum, which takes a fraction of the time: planner ranks hundreds of settings by it, before
                         it predicts the best of them in earnest (`plan`; what fits is `fits`)

across has `predict`: a run on one GPU, or on several (`shares` of a model that is split; copies; every weight divided).
labels has the names of what memory is held for; each taking carries one. sizes has the formulas for what stays all through
a run, which lessons use, too. rows puts predictions beside measured runs.

Sources, read in the releases named: transformers 5.24 (modeling files, `integrations/sdpa_attention.py`), trl 1.16
(`kernels/chunked_logprob.py`), peft 0.21 (`tuners/lora/bnb.py`), bitsandbytes 0.50 (`autograd/_functions.py`,
`optim/optimizer.py`), torch 2.11 (autograd, `utils/checkpoint.py`, the caching allocator). No constant is fitted.
"""

from helpers.memory.across import predict
from helpers.memory.over_time import step_over_time
from helpers.memory.planner import DoesNotFit, fits, plan
from helpers.memory.rows import gpu_of, score
from helpers.memory.runs import GPUS, RunSpec
from helpers.memory.shapes import CannotPredict, shape_of
from helpers.memory.sizes import adapter_bytes, kv_cache_bytes, weight_bytes

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
