"""What GGUF says of an architecture, and which of a model's settings llama.cpp follows; any other is refused by name.

Names of keys and tensors are the `gguf` package's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from helpers import CourseError


class ExportError(CourseError, OSError):
    """A model that cannot be exported, or a file that cannot be read or written."""


@dataclass(frozen=True)
class Architecture:
    """One that is known here: its name in GGUF, and what llama.cpp makes of it."""

    name: str
    turns_neighbours: bool = False  # rotary embeddings turn pairs (0, 1), (2, 3), ... of a head, not halves of it
    settings: tuple[str, ...] = ()  # biases that its files may have


# By transformers' model_type. llama.cpp runs Mistral as a Llama.
ARCHITECTURES = {
    "llama": Architecture("llama", True, ("attention_bias", "mlp_bias")),
    "mistral": Architecture("llama", True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}


@dataclass
class Described:
    """What goes into the header of the file, as calls of GGUFWriter, and what a reader has to know."""

    architecture: Architecture
    head: int  # width of a head
    layers: int
    calls: list[tuple] = field(default_factory=list)  # (name of GGUFWriter's method, its arguments ...)
    rope_factors: np.ndarray | None = None  # what each frequency is divided by, float32, half of a head
    notes: list[str] = field(default_factory=list)


def describe(config, name: str) -> Described:
    """The model's settings as GGUF has them. config: as transformers reads it. ExportError for what is not carried."""
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        known_here = ", ".join(ARCHITECTURES)
        raise ExportError(f"{name} is a {config.model_type!r} model: {known_here} are exported here, and no other")
    for bias in ("attention_bias", "mlp_bias"):
        if getattr(config, bias, False) and bias not in known.settings:
            raise ExportError(f"{bias} = true in a {config.model_type} model: llama.cpp has no such biases there")
    if config.hidden_act != "silu":
        raise ExportError(f"hidden_act = {config.hidden_act!r}: llama.cpp computes silu for every {config.model_type}")
    _check_numbers(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    done = Described(known, head, config.num_hidden_layers)
    done.calls += [
        ("add_name", _harmless(name, done)),
        ("add_context_length", _context(config, done)),
        ("add_embedding_length", config.hidden_size),
        ("add_block_count", config.num_hidden_layers),
        ("add_feed_forward_length", config.intermediate_size),
        ("add_head_count", config.num_attention_heads),
        ("add_head_count_kv", config.num_key_value_heads),
        ("add_key_length", head),
        ("add_value_length", head),
        ("add_layer_norm_rms_eps", config.rms_norm_eps),
        ("add_rope_dimension_count", head),
        ("add_vocab_size", config.vocab_size),
    ]
    _describe_rope(config, done)
    return done


def _harmless(name: str, done: Described) -> str:
    """A model's name that does not change its tokens: of some names llama.cpp takes spaces beside special tokens away.

    It looks for these three anywhere in the name, in small or capital letters (its llama-vocab.cpp).
    """
    changed = re.sub(
        "(phi)-?(3)|(modern)-(bert)", lambda found: "_".join(filter(None, found.groups())), name, flags=re.I
    )
    if changed != name:
        done.notes.append(
            f"the model is called {changed} in the file: of the name {name} llama.cpp would make other tokens"
        )
    return changed


LARGEST_WHOLE = 2**31 - 1  # llama.cpp counts tokens in 32 bits with a sign
SMALLEST_FLOAT, LARGEST_FLOAT = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
WHOLE = ("max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "vocab_size", "sliding_window", "attention_chunk_size")  # fmt: skip
PARTS = (
    "rms_norm_eps",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def _check_numbers(config) -> None:
    """ExportError, which names the field, for a number that GGUF does not hold or that no model works with."""
    for name, value in (vars(config) | dict(config.rope_parameters)).items():
        if value is None:
            continue
        if name in WHOLE and (type(value) is not int or not 1 <= value <= LARGEST_WHOLE):
            raise ExportError(f"{name} = {value!r}: config.json needs a whole number from 1 to {LARGEST_WHOLE:,}")
        least = 0.0 if name == "rms_norm_eps" else SMALLEST_FLOAT
        if name in PARTS and not (isinstance(value, int | float) and least <= value <= LARGEST_FLOAT):  # nor NaN
            raise ExportError(f"{name} = {value!r}: config.json needs a number above 0 that float32 holds")
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if heads % shared:
        raise ExportError(
            f"num_key_value_heads = {shared}: config.json needs a divisor of num_attention_heads, {heads}"
        )


def _context(config, done: Described) -> int:
    """How many tokens llama.cpp is to read: those of which every one attends to all in front of it, as it does there."""
    if not getattr(config, "is_causal", True):
        raise ExportError(
            f"is_causal = {config.is_causal!r}: the model attends to what stands behind a token too, and llama.cpp would not: "
            f"take it out of config.json if the model was trained without it"
        )
    length, layers = config.max_position_embeddings, getattr(config, "layer_types", None)
    odd = next((kind for kind in layers or () if kind not in ("full_attention", "sliding_attention")), None)
    if odd is not None:
        raise ExportError(f"layer_types has {odd!r}: full_attention and sliding_attention are carried, and no other")
    window = None if layers and "sliding_attention" not in layers else getattr(config, "sliding_window", None)
    if config.model_type == "llama":  # its attention has no window, but generate's cache has one where a file says so
        chunk = None if layers else getattr(config, "attention_chunk_size", None)
        for name, tokens in (("sliding_window", window), ("attention_chunk_size", chunk)):
            if tokens and tokens < length:
                done.notes.append(
                    f"{name} = {tokens:,}: transformers' generate forgets what is older, llama.cpp does not"
                )
    elif window and window < length:
        length = window  # as long as a text fits into it, attention with a window and without are the same
        done.notes.append(
            f"the model attends to the last {window:,} tokens (sliding_window) and llama.cpp to all: "
            f"the file's context ends at {window:,}, where the two are the same"
        )
    return length


# For each kind of scaling, the settings that are carried, and the value that llama.cpp computes with where it is not.
CARRIED: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": ...},
    "llama3": {"factor": ..., "low_freq_factor": ..., "high_freq_factor": ..., "original_max_position_embeddings": ...},
    "yarn": {"factor": ..., "original_max_position_embeddings": ..., "beta_fast": 32, "beta_slow": 1, "truncate": True},
}


def _describe_rope(config, done: Described) -> None:
    """Rotary embeddings: their base, and linear, yarn or llama3 scaling."""
    import gguf

    rope = {key: value for key, value in dict(config.rope_parameters).items() if value is not None}
    kind = rope.pop("rope_type", "default")
    done.calls.append(("add_rope_freq_base", rope.pop("rope_theta")))
    if kind not in CARRIED or (kind == "llama3" and done.architecture.name != "llama"):
        raise ExportError(f"rope_type = {kind!r} in a {config.model_type} model: llama.cpp would not scale as it does")
    if rope.pop("partial_rotary_factor", 1) != 1:
        raise ExportError("partial_rotary_factor: a part of each head is rotated, which is not carried here")
    for key, value in rope.items():
        if key != "type" and CARRIED[kind].get(key) not in (..., value):
            raise ExportError(f"{key} = {value!r} in {kind} scaling of rotary embeddings is not carried here")
    if kind == "llama3":
        done.rope_factors = _llama3_factors(config)
    elif kind != "default":
        if "factor" not in rope:
            raise ExportError(f"factor = None in {kind} scaling of rotary embeddings is not carried here")
        done.calls.append(("add_rope_scaling_type", gguf.RopeScalingType(kind)))
        done.calls.append(("add_rope_scaling_factor", rope["factor"]))
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
        if original != int(original):
            raise ExportError(f"original_max_position_embeddings = {original!r}: GGUF has whole numbers there")
        done.calls.append(("add_rope_scaling_orig_ctx_len", int(original)))  # some files have 4096.0


def _llama3_factors(config) -> np.ndarray:
    """What llama.cpp divides each frequency by: transformers' plain frequencies over its scaled ones."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].double().numpy()
    plain = float(config.rope_parameters["rope_theta"]) ** (-np.arange(len(scaled)) / len(scaled))
    return (plain / scaled).astype(np.float32)
