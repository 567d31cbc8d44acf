"""Predict the GPU memory of a fine-tuning run from the model's configuration alone: no GPU, no weights, no torch.

Three steps, each open to inspection:

1. What stays: weights, adapters, optimizer states, workspaces. Counted tensor by tensor from the layouts of
   bitsandbytes, PEFT and torch.
2. What comes and goes: one decoder layer is played through on a tape, operation by operation, forward and backward,
   with the lifetimes that torch gives its tensors. Nothing is computed; only sizes are kept, as formulas in tokens,
   length and rank, so that one tape serves every batch.
3. The peak: the largest of a handful of moments (loss, backward of a layer, optimizer step), and what is alive then.

Sources, read in the releases named: transformers 5.23 (modeling files, `integrations/sdpa_attention.py`), trl 1.16
(`kernels/chunked_logprob.py`), peft 0.21 (`tuners/lora/bnb.py`), bitsandbytes 0.50 (`autograd/_functions.py`,
`optim/optimizer.py`), torch 2.11 (autograd, `utils/checkpoint.py`, the caching allocator). No constant is fitted.
"""

import contextlib
import copy
import dataclasses
import functools
import heapq
import itertools
import json
import operator
import warnings
from bisect import bisect_left, insort
from dataclasses import dataclass
from pathlib import Path

from helpers import CourseError

MIB, GIB = 2**20, 2**30
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes a value

# What each GPU offers (bytes, as torch reports it; T4 and H200 were seen, the others are rounded down) and takes.
# `workspace` is what one cuBLAS handle reserves: 32 MiB on Hopper, else :4096:2:16:8, that is 4096 x 2 + 16 x 8 KiB
# (torch `aten/src/ATen/cuda/CublasHandlePool.cpp`). Training has two handles, one in the main thread and one in the
# thread that runs backward.
GPUS = {
    "t4": {"total": int(14.56 * GIB), "workspace": 8320 * 1024, "kernels": "t4"},
    "l4": {"total": int(22.0 * GIB), "workspace": 8320 * 1024, "kernels": "all"},
    "a100": {"total": int(39.5 * GIB), "workspace": 8320 * 1024, "kernels": "all"},
    "a100-80gb": {"total": int(79.2 * GIB), "workspace": 8320 * 1024, "kernels": "all"},
    "h100": {"total": int(79.1 * GIB), "workspace": 32 * MIB, "kernels": "all"},
    "h200": {"total": int(139.8 * GIB), "workspace": 32 * MIB, "kernels": "all"},
}

TOKEN_TILE, VOCABULARY_TILE = 4096, 32768  # trl: kernels/chunked_logprob.py, trainer/utils.py
PAGED_FROM = 100_000  # bitsandbytes optim/optimizer.py get_state_buffer: smaller states are not paged
EIGHT_BIT_FROM = 4096  # the same file, min_8bit_size: smaller states stay 32-bit


class CannotPredict(CourseError, ValueError):
    "A configuration or a setting with no answer: one line with field, value, and what is allowed."


# ---------------------------------------------------------------------------------------------------------- the model


class _Hashed:
    "Computes its hash once: shapes are keys of caches that `plan` asks tens of thousands of times."

    def __hash__(self):
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))
            object.__setattr__(self, "_hash", known)
        return known


@dataclass(frozen=True)
class Linear(_Hashed):
    "One linear layer of a decoder layer: its name, sizes and whether it has a bias."

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    __hash__ = _Hashed.__hash__

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape(_Hashed):
    "What of a configuration decides memory. Built by `shape_of`; every field is a count, a width or a yes or no."

    model_type: str
    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    window: int | None  # sliding window in tokens
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3: a norm on each head's query and key
    fused: bool = False  # Phi-3: qkv_proj and gate_up_proj
    gemma: bool = False  # Gemma-2: four norms a layer, computed in float32, and soft caps
    __hash__ = _Hashed.__hash__

    @functools.cached_property
    def linears(self) -> tuple[Linear, ...]:
        "The linear layers of one decoder layer, in the order in which they run."
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            first = [Linear("qkv_proj", h, q + 2 * kv, self.qkv_bias)]
            mlp = [Linear("gate_up_proj", h, 2 * self.inner, self.mlp_bias)]
        else:
            first = [Linear(f"{n}_proj", h, size, self.qkv_bias) for n, size in (("q", q), ("k", kv), ("v", kv))]
            mlp = [Linear(f"{n}_proj", h, self.inner, self.mlp_bias) for n in ("gate", "up")]
        return (*first, Linear("o_proj", q, h, self.o_bias), *mlp, Linear("down_proj", self.inner, h, self.mlp_bias))

    @functools.cached_property
    def norms(self) -> tuple[int, ...]:
        "Sizes of the norm weights of one decoder layer."
        return (self.hidden,) * (4 if self.gemma else 2) + ((self.head_dim,) * 2 if self.qk_norm else ())

    @property
    def parameters(self) -> int:
        "Number of parameters, a tied head counted once."
        layer = sum(x.weights + x.bias * x.outputs for x in self.linears) + sum(self.norms)
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)


KNOWN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2")
NOT_DECODERS = (
    "moe", "mixtral", "mamba", "bert", "t5", "deepseek", "whisper", "gpt_oss", "vision", "_vl", "gemma3n", "rwkv",
)  # fmt: skip


def shape_of(config) -> Shape:
    """The shape behind a transformers config, a dictionary of its keys, a local folder, or a hub id.

    Raises CannotPredict (one line: field, value, what is allowed) for an impossible shape or an architecture that these
    formulas do not describe. A plain decoder that is merely unknown is taken for a Llama, with a warning.
    """
    if isinstance(config, Shape):
        return config
    if isinstance(config, (str, Path)):
        config = _load_config(str(config))
    given = config if isinstance(config, dict) else config.to_dict()
    given = {**given, **(given.get("text_config") or {})}
    kind = given.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CannotPredict(f"config: model_type is {kind!r}; give the architecture, one of {', '.join(KNOWN)}")
    if kind not in KNOWN:
        needed = {"num_attention_heads", "intermediate_size"}
        if any(word in kind.lower() for word in NOT_DECODERS) or not needed <= given.keys():
            raise CannotPredict(f"config: model_type {kind!r} is not described here; described are {', '.join(KNOWN)}")
        message = f"model_type {kind!r} is not described here: predicted as a Llama of the same sizes"
        warnings.warn(message, stacklevel=3)

    def count(key, default=None):
        value = given.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CannotPredict(f"config: {key} is {value!r}; it must be a whole number above 0")
        return value

    hidden, heads = count("hidden_size"), count("num_attention_heads")
    kv_heads = count("num_key_value_heads", heads)
    if not given.get("head_dim") and hidden % heads:
        raise CannotPredict(f"config: num_attention_heads {heads} does not divide hidden_size {hidden}; give head_dim")
    if heads % kv_heads:
        raise CannotPredict(f"config: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    # Mistral's and Gemma-2's configurations have a window of 4,096 where none is written; a written None means none.
    window = given.get("sliding_window", 4096 if kind in ("mistral", "gemma2") else None)
    if kind in ("qwen2", "qwen3") and not given.get("use_sliding_window"):
        window = None
    attention_bias = bool(given.get("attention_bias"))
    return Shape(
        model_type=kind,
        vocab=count("vocab_size"),
        hidden=hidden,
        inner=count("intermediate_size"),
        layers=count("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=count("head_dim", {"gemma2": 256, "qwen3": 128}.get(kind, hidden // heads)),
        tied=bool(given.get("tie_word_embeddings", kind == "gemma2")),
        window=window,
        qkv_bias=kind == "qwen2" or attention_bias,
        o_bias=attention_bias and kind != "qwen2",
        mlp_bias=bool(given.get("mlp_bias")),
        qk_norm=kind == "qwen3",
        fused=kind == "phi3",
        gemma=kind == "gemma2",
    )


def _load_config(name: str) -> dict:
    "A configuration from a folder's config.json, from a preset (helpers/models/presets.py), or from the hub."
    from helpers.models import PRESETS

    file = Path(name) / "config.json"
    if file.is_file():
        return json.loads(file.read_text())
    for short, preset in PRESETS.items():
        if name in (short, preset.hub_id):
            return dict(preset.shape)
    try:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name).to_dict()
    except Exception as error:
        raise CannotPredict(
            f"config: no configuration at {name!r}; give a preset, a folder with config.json or a hub id you can reach"
        ) from error


# ------------------------------------------------------------------------------------------------------------ the run

OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit",
    "paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit", "sgd",
)  # fmt: skip
ALLOWED = {
    "quant_type": ("nf4", "fp4", "int8", None), "load_dtype": ("float16", "bfloat16"),
    "compute_dtype": ("float16", "bfloat16"), "adapter_dtype": (*WIDTH, None), "optimizer": OPTIMIZERS,
    "attention": ("sdpa", "eager"), "attention_kernels": ("all", "t4"), "layer_kernels": (None, "liger"),
    "trl_loss": ("tiled", "full"),
}  # fmt: skip
LEAST = {"batch_size": 1, "seq_len": 2, "checkpoint_every": 0, "rank": 1}
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*QKVO, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class RunSpec:
    """How a model is trained. Every field but the last is a field of the measured rows' `spec`.

    `quant_type`: "nf4", "fp4", "int8", or None for 16-bit weights. `rank` None trains every weight (then `quant_type`
    is None). `adapter_dtype`: what the adapters are held in during training. `checkpoint_every`: 0 is off, 1 every
    layer, n every n-th. `attention_kernels`: "all", or "t4": memory-efficient and math, as on Turing.
    `repeat_kv`: keys and values repeated before attention instead of `enable_gqa`. `layer_kernels`: None or "liger".
    `fused_lora`: fuse_lora is on; where it does not apply (dropout, no 4-bit weights, upcast) it changes nothing.
    `trl_loss`: "tiled" (TRL 1.15 and later) or "full", where all logits exist at once in float32 and 16 bit.
    Raises CannotPredict naming field and value.
    """

    quant_type: str | None = "nf4"
    double_quant: bool = True
    load_dtype: str = "float16"
    compute_dtype: str = "float16"
    adapter_dtype: str = "float32"
    rank: int | None = 16
    target_modules: tuple[str, ...] | None = ALL_LINEAR
    lora_dropout: float = 0.05
    batch_size: int = 1
    seq_len: int = 512
    optimizer: str = "paged_adamw_8bit"
    upcast_non_quantized: bool = False
    checkpoint_every: int = 1
    checkpoint_offload: bool = False
    attention: str = "sdpa"
    attention_kernels: str = "all"
    repeat_kv: bool = False
    layer_kernels: str | None = None
    fused_lora: bool = False
    trl_loss: str = "tiled"

    def __post_init__(self):
        for field, values in ALLOWED.items():
            if getattr(self, field) not in values:
                options = ", ".join(str(value) for value in values)
                raise CannotPredict(f"spec: {field} is {getattr(self, field)!r}; allowed: {options}")
        for field, least in LEAST.items():
            value, full = getattr(self, field), field == "rank" and self.rank is None
            if not full and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise CannotPredict(f"spec: {field} is {value!r}; it must be a whole number of at least {least}")
        modules = ALL_LINEAR if self.target_modules == "all-linear" else self.target_modules
        if isinstance(modules, str):
            raise CannotPredict(f"spec: target_modules is {modules!r}; give a list of names, or 'all-linear'")
        full = self.rank is None
        object.__setattr__(self, "target_modules", None if full or not modules else tuple(modules))
        for wrong, message in (
            (not full and not self.target_modules, "target_modules is empty; name the layers to adapt, or set rank to None"),
            (not full and self.adapter_dtype is None, "adapter_dtype is None; allowed with adapters: " + ", ".join(WIDTH)),
            (full and self.quant_type is not None,
             f"rank is None with quant_type {self.quant_type!r}; quantized weights cannot train, set a rank"),
            (not 0 <= self.lora_dropout < 1, f"lora_dropout is {self.lora_dropout!r}; it must be at least 0 and below 1"),
            (self.upcast_non_quantized and self.quant_type is None,
             "upcast_non_quantized is True with quant_type None; it makes every weight float32"),
            (full and "float16" in (self.load_dtype, self.compute_dtype),
             "load_dtype or compute_dtype is 'float16' with rank None; the scaler wants bfloat16"),
            (self.checkpoint_offload and not self.checkpoint_every,
             "checkpoint_offload is True with checkpoint_every 0; offload needs checkpointing"),
        ):  # fmt: skip
            if wrong:
                raise CannotPredict(f"spec: {message}")


def spec_of(spec) -> RunSpec:
    "A RunSpec from a RunSpec or a dictionary of its fields."
    if isinstance(spec, RunSpec):
        return spec
    names = {field.name for field in dataclasses.fields(RunSpec)}
    unknown = sorted(set(spec) - names)
    if unknown:
        raise CannotPredict(f"spec: no field {unknown[0]!r}; fields are {', '.join(sorted(names))}")
    return RunSpec(**spec)


def _targets(shape: Shape, spec: RunSpec) -> tuple[Linear, ...]:
    "The linear layers that carry an adapter; names that the model lacks are an error."
    if spec.rank is None:
        return ()
    wanted = set(spec.target_modules)
    if shape.fused and wanted == set(ALL_LINEAR):
        wanted = {linear.name for linear in shape.linears}
    unknown = sorted(wanted - {linear.name for linear in shape.linears})
    if unknown:
        names = ", ".join(linear.name for linear in shape.linears)
        raise CannotPredict(f"spec: target_modules has {unknown[0]!r}; this {shape.model_type} has {names}")
    chosen = tuple(linear for linear in shape.linears if linear.name in wanted)
    for linear in chosen:
        if spec.rank > min(linear.inputs, linear.outputs):
            size = min(linear.inputs, linear.outputs)
            raise CannotPredict(f"spec: rank {spec.rank} is above {linear.name}'s size, {size}")
    return chosen


# --------------------------------------------------------------------------------------------------- 1. what stays


def blocks(*sizes: int) -> int:
    "Bytes that tensors of these sizes take: torch rounds each up to 512 (`c10/cuda/CUDACachingAllocator.h`)."
    return sum(-(-size // 512) * 512 for size in sizes)


@functools.lru_cache(maxsize=512)
def weight_bytes(shape: Shape, quant_type: str | None, double_quant: bool) -> dict[str, int]:
    """Bytes of the loaded model, by kind: quantized codes, their scales, and what stays 16-bit.

    bitsandbytes 0.50 `functional.py quantize_4bit`: two codes a byte; a float32 absmax for each 64 weights, or with
    double quantization an 8-bit one, with a float32 for each 256 of those, an offset and a 256-entry code; each
    weight also keeps its 16-entry code. int8: a byte a weight and a float32 a row (`Int8Params`: CB, SCB).
    transformers leaves embeddings, head, norms and biases in `load_dtype`.
    """
    codes = scales = plain = 0
    for linear in shape.linears:
        n = linear.weights
        if quant_type is None:
            plain += blocks(2 * n)
        elif quant_type == "int8":
            codes, scales = codes + blocks(n), scales + blocks(4 * linear.outputs)
        else:
            codes, absmax = codes + blocks((n + 1) // 2), -(-n // 64)
            if double_quant:
                scales += blocks(absmax, 4 * -(-absmax // 256), 4 * 256, 4, 4 * 16)
            else:
                scales += blocks(4 * absmax, 4 * 16)
        plain += blocks(2 * linear.outputs) if linear.bias else 0
    plain += blocks(*(2 * size for size in shape.norms))
    rotary = blocks(2 * shape.head_dim, 2 * shape.head_dim)  # float32 inverse frequencies, and a copy
    tables = blocks(2 * shape.vocab * shape.hidden) * (1 if shape.tied else 2)
    return {
        "quantized weights": codes * shape.layers,
        "quantization scales": scales * shape.layers,
        "embeddings and head": tables,
        "norms, biases, 16-bit weights": plain * shape.layers + blocks(2 * shape.hidden) + rotary,
    }


def kv_cache_bytes(config, tokens: int, batch: int = 1, dtype: str = "float16") -> int:
    """Bytes of the keys and values that generation keeps for `batch` rows of `tokens` tokens each, padding included.

    In each layer a key and a value of key-value heads x head size for each token (grouped-query attention: Ainslie et
    al. 2023, arXiv 2305.13245). transformers 5.23 `cache_utils.py`: a layer with a sliding window keeps its last
    window - 1 tokens; of Gemma-2's layers every other one has a window, from the first on. Raises CannotPredict for
    Qwen's use_sliding_window, an unknown dtype, and counts below 1.
    """
    shape = shape_of(config)
    if dtype not in WIDTH:
        raise CannotPredict(f"dtype is {dtype!r}; allowed: {', '.join(WIDTH)}")
    for name, value in (("tokens", tokens), ("batch", batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CannotPredict(f"{name} is {value!r}; it must be a whole number above 0")
    if shape.window and shape.model_type.startswith("qwen"):
        raise CannotPredict("config: use_sliding_window is True; which layers slide is not described here")
    sliding = 0 if shape.window is None else (shape.layers + 1) // 2 if shape.gemma else shape.layers
    within = min(tokens, shape.window - 1) if shape.window else tokens
    kept = sliding * within + (shape.layers - sliding) * tokens
    return 2 * batch * kept * shape.kv_heads * shape.head_dim * WIDTH[dtype]


@functools.lru_cache(maxsize=4096)
def adapter_bytes(targets: tuple[Linear, ...], layers: int, rank: int, width: int) -> int:
    "Bytes of the adapters: A (rank x inputs) and B (outputs x rank) of each target, `width` bytes a value."
    return layers * blocks(*(width * rank * size for x in targets for size in (x.inputs, x.outputs)))


@functools.lru_cache(maxsize=4096)
def state_sizes(n: int, optimizer: str, width: int) -> tuple[int, ...]:
    """Bytes of each tensor of optimizer state on the GPU for a parameter of n elements, `width` bytes a value.

    torch AdamW: two tensors of the parameter's dtype. bitsandbytes (`optim/optimizer.py`): two 32-bit tensors, or two
    8-bit ones with a float32 per block of 256; tensors under 4,096 elements stay 32-bit; paged ones of 100,000 and
    more live in managed memory, outside torch's count.
    """
    if optimizer == "sgd":
        return ()
    if optimizer.startswith("adamw_torch"):
        return (width * n,) * 2
    eight = "8bit" in optimizer and n >= EIGHT_BIT_FROM
    averages = () if optimizer.startswith("paged") and n >= PAGED_FROM else (n if eight else 4 * n,) * 2
    return averages + ((4 * -(-n // 256),) * 2 if eight else ())


def state_bytes(sizes: tuple[int, ...], optimizer: str, width: int) -> int:
    "Bytes of optimizer state on the GPU for parameters of these element counts (see state_sizes)."
    return sum(blocks(*state_sizes(n, optimizer, width)) for n in sizes)


def _trained_sizes(shape: Shape, spec: RunSpec, targets: tuple[Linear, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    "Element counts of what is trained: (in each layer, outside the layers)."
    if spec.rank is not None:
        return tuple(spec.rank * size for x in targets for size in (x.inputs, x.outputs)), ()
    layer = [x.weights for x in shape.linears] + [x.outputs for x in shape.linears if x.bias] + list(shape.norms)
    return tuple(layer), (*(shape.vocab * shape.hidden,) * (1 if shape.tied else 2), shape.hidden)


def _optimized(optimizer: str, layers: tuple, outside: tuple):
    """(element counts, optimizer) for the embedding, the layers, and what is left, in the optimizer's order.

    transformers `trainer.py create_optimizer` has an 8-bit optimizer keep the embedding's states in 32 bits.
    """
    embedding = optimizer.replace("8bit", "32bit")
    return (outside[:1], embedding), (layers, optimizer), (outside[1:], optimizer)


# ------------------------------------------------------------------------------------ 2. what comes and goes: the tape

# A size is a sum of terms, kept as its coefficients: bytes (or values) for each of these. Tokens are batch x length.
BASIS = ("1", "tokens", "rank", "tokens x rank", "tokens x length", "length", "length x length")


def _size(*, one=0, tokens=0, rank=0, tokens_rank=0, tokens_length=0, length=0, length_length=0):
    return (one, tokens, rank, tokens_rank, tokens_length, length, length_length)


NOTHING = _size()


def _times(size, factor):
    return tuple(factor * x for x in size)


def _at(size, point) -> float:
    return sum(x * y for x, y in zip(size, point, strict=True))


class _Buffer:
    "A tensor's storage. It is counted from its making until Python drops the last reference, as torch does."

    __slots__ = ("tape", "size", "label", "key")

    def __init__(self, tape, size, label):
        self.tape, self.size, self.label, self.key = (None if tape.muted else tape), size, label, tape.keys
        if self.tape:
            tape.keys += 1
            tape.events.append((self.key, size, label))
            tape.change(size, label, 1)

    def __del__(self):
        if self.tape and not self.tape.muted:
            self.tape.events.append((self.key, None, None))
            self.tape.change(self.size, self.label, -1)


class _Value:
    "A tensor in play: storage, number of values, bytes a value, and the operation that made it."

    __slots__ = ("buffer", "values", "width", "node")

    def __init__(self, buffer, values, width, node=None):
        self.buffer, self.values, self.width, self.node = buffer, values, width, node


class _Node:
    "One operation in the autograd graph."

    __slots__ = ("order", "edges", "saved", "backward", "outputs")

    def __init__(self, order, edges, backward, outputs=1):
        self.order, self.edges, self.backward, self.outputs, self.saved = order, edges, backward, outputs, []


class _Stop(Exception):
    "Recomputation ends at the last tensor that backward needs (torch `utils/checkpoint.py`, early stop)."


# Names of parts of a peak.
KEPT, INPUTS = "activations kept for backward", "layer inputs kept by checkpointing"
ACT, WEIGHT, CAST = "one layer's activations", "a dequantized weight", "16-bit copies of the adapters"
GRAD, PARAM = "gradients of activations", "gradients of weights"


class _Tape:
    """Plays one decoder layer forward and backward and notes what is alive at each local maximum.

    `kind` is a _Kind. With `checkpoint`, tensors saved in the forward pass are only numbered; the first that backward
    asks for triggers the recomputation, which fills `store`.
    """

    def __init__(self, kind, checkpoint):
        self.kind, self.checkpoint, self.muted = kind, checkpoint, False
        self.alive, self.total, self.moments, self.growing, self.ticks = {}, NOTHING, [], False, 0
        self.events, self.keys = [], 0  # every making (key, size, label) and release (key, None, None), in order
        self.gradients, self.result = [], None  # of weights, and of the layer's input: they outlive the layer
        self.saves, self.store, self.replaying = 0, None, False

    def change(self, size, label, sign):
        if sign < 0 and self.growing:
            self.moments.append((self.total, dict(self.alive)))
        self.growing = sign > 0
        change = operator.add if sign > 0 else operator.sub
        self.alive[label] = tuple(map(change, self.alive.get(label, NOTHING), size))
        self.total = tuple(map(change, self.total, size))

    # -- making and saving

    def new(self, values, width, label=ACT):
        return _Buffer(self, _times(values, width), label)

    def gradient(self, values, width):
        return self.new(values, width, GRAD)

    def save(self, node, *buffers):
        for buffer in buffers:
            if not self.checkpoint:
                node.saved.append(buffer)
            elif self.replaying:
                self.store[self.count] = buffer
                self.count += 1
                if self.count == self.saves:
                    raise _Stop
            else:
                node.saved.append(self.saves)
                self.saves += 1

    def apply(self, values, width, parents, backward=None, save=(), save_output=(), trained=False):
        """One operation: saves inputs, makes its output, saves outputs. `backward(gradient, *saved)` returns buffers.

        torch's own operations save their inputs before they run; a Python autograd.Function saves all of them after.
        A parent that needs no gradient gets none: `backward` receives `need`, a tuple of flags, as keyword. Without a
        `backward`, each parent that needs one gets a fresh gradient of its own size.
        """
        node = None
        if trained or any(parent.node for parent in parents):
            sizes = [(parent.values, parent.width) for parent in parents]

            def fresh(g, *saved, need):
                return [self.gradient(*size) if needed else None for size, needed in zip(sizes, need, strict=True)]

            self.ticks += 1
            edges = [parent.node for parent in parents]
            need = tuple(edge is not None for edge in edges)
            node = _Node(self.ticks, edges, functools.partial(backward or fresh, need=need))
            self.save(node, *save)
        out = _Value(self.new(values, width), values, width, node)
        if node and save_output:
            self.save(node, *(out.buffer if buffer == "output" else buffer for buffer in save_output))
        return out

    # -- operations

    def cast(self, x, width):
        "To another dtype; a no-op where it already is."
        return x if x.width == width else self.apply(x.values, width, [x])

    def each(self, x, width=None, save_input=False, save_output=False, passes=False):
        "An elementwise operation with one tensor input; `passes` when its backward hands the gradient on."
        handed = (lambda g, *saved, need: [g]) if passes and width in (None, x.width) else None
        saved = (x.buffer,) if save_input else ()
        return self.apply(x.values, width or x.width, [x], handed, saved, ("output",) if save_output else ())

    def multiply(self, a, b):
        return self.apply(a.values, max(a.width, b.width), [a, b], None, (a.buffer, b.buffer))

    def add(self, a, b):
        values, widths = a.values, (a.width, b.width)
        wide = max(widths)
        return self.apply(
            values, wide, [a, b], lambda g, need: [g if w == wide else self.gradient(values, w) for w in widths]
        )

    def dropout(self, x):
        if not self.kind.dropout:
            return x
        return self.apply(x.values, x.width, [x], None, (self.new(x.values, 1),))

    def norm(self, x, rows):
        """RMSNorm. `rows` is the number of norms taken.

        As written in transformers: to float32, square, mean, rsqrt, multiply, back to the input's dtype, times the
        weight. Gemma-2 multiplies by the weight in float32. Liger's kernel saves its input and one value a row.
        """
        kind, values, width = self.kind, x.values, x.width
        if kind.liger:
            rstd = self.new(rows, 4)
            return self.apply(values, width, [x], lambda g, a, b, need: [g], save_output=(x.buffer, rstd))
        wide = self.cast(x, 4)

        def backward_square(g, saved, need):
            mean = self.gradient(values, 4)  # the mean's gradient, spread out again
            power = self.gradient(values, 4)
            double = self.gradient(values, 4)
            out = self.gradient(values, 4)
            del mean, power, double
            return [out]

        square = self.apply(values, 4, [wide], backward_square, (wide.buffer,))
        scale = _Value(self.new(rows, 4), rows, 4, square.node)
        del square

        def backward_scale(g, a, b, need):
            out, other = self.gradient(values, 4), self.gradient(values, 4)
            del other  # summed to one value a row
            return [out, None] if scale_node is None else [out, self.gradient(rows, 4)]

        scale_node = scale.node
        y = self.apply(values, 4, [wide, scale], backward_scale, (wide.buffer, scale.buffer))
        del wide, scale
        if kind.shape.gemma:
            y = self.each(y)
            return self.cast(y, width)
        y = self.cast(y, width)
        if not kind.full:
            return self.each(y)

        def backward_weight(g, saved, need):
            out, other = self.gradient(values, width), self.gradient(values, width)
            del other
            return [out]

        return self.apply(values, width, [y], backward_weight, (y.buffer,), trained=True)

    def dequantize(self, linear, backward=False):
        "Scratch for one weight in 16 bit, as bitsandbytes makes it before every matrix product."
        absmax = _size(one=-(-linear.weights // 64))
        scratch = []
        if self.kind.nested:
            scratch = [self.new(absmax, 4, WEIGHT) for _ in range(1 if backward else 2)]
        return scratch, self.new(_size(one=linear.weights), self.kind.compute, WEIGHT)

    def base(self, x, linear):
        "The layer's own matrix product: quantized, frozen or trained."
        kind, out = self.kind, _size(tokens=linear.outputs)
        values, width = x.values, x.width
        if kind.full:

            def backward_trained(g, saved, need):
                self.gradients.append(self.new(_size(one=linear.weights), width, PARAM))
                return [self.gradient(values, width)]

            return self.apply(out, width, [x], backward_trained, (x.buffer,), trained=True)
        inner = self.cast(x, kind.compute)
        if kind.quant is None:
            return self.apply(out, kind.compute, [inner])
        if kind.quant == "int8":
            return self._int8(inner, linear, out)

        def backward(g, need):
            scratch, weight = self.dequantize(linear, backward=True)
            del scratch
            result = self.gradient(values, kind.compute)
            del weight
            return [result]

        scratch, weight = self.dequantize(linear)
        y = self.apply(out, kind.compute, [inner], backward)
        del scratch, weight
        return self.cast(y, width)

    def _int8(self, x, linear, out):
        """bitsandbytes `MatMul8bitLt`: its graph node holds its input outside autograd's saved tensors.

        So the forward pass of a checkpointed layer keeps the input of every linear layer. Outlier columns, which
        depend on the activations' values, are not counted.
        """
        values, compute = x.values, self.kind.compute
        _quantized, _wide = self.new(values, 1), self.new(out, 4)
        holds = x.buffer

        def backward(g, need, held=holds):  # `held` lives as long as the node
            weight = self.new(_size(one=linear.weights), compute, WEIGHT)
            result = self.gradient(values, compute)
            del weight
            return [result]

        return self.apply(out, compute, [x], backward)

    def project(self, x, linears, source=None):
        """A value for each of the layers of one input: as one operation where helpers/training/fused_lora.py applies.

        `source` is what a norm made x from: kept in place of x, from which backward makes x again.
        """
        kind, values, width = self.kind, x.values, x.width
        if not kind.fused:
            return [self.linear(x, linear) for linear in linears]
        tuned = [linear for linear in linears if linear.name in kind.targets]
        low, a = _size(tokens_rank=len(tuned)), _times(_size(rank=len(tuned)), linears[0].inputs)
        kept = []
        if tuned:
            if kind.adapter != width:
                kept = [self.new(_size(rank=linear.outputs), width) for linear in tuned]
            joined = self.new(a, kind.adapter)
            kept.append(self.new(a, width) if kind.adapter != width else joined)
            del joined
            kept += [self.new(low, width), source or x.buffer]
        outputs = []
        for linear in linears:
            scratch, weight = self.dequantize(linear)
            outputs.append(self.new(_size(tokens=linear.outputs), width))
            del scratch, weight

        def backward(gradients, *saved):
            result = remade = None
            for linear in linears:
                scratch, weight = self.dequantize(linear)
                del scratch
                result = result or (self.gradient(values, width) if x_node else None)
                del weight
            if remakes:
                remade = self._remade(values, width)
            for linear in tuned:
                self.gradients += [
                    self.new(_times(_size(rank=1), n), kind.adapter, PARAM) for n in (linear.inputs, linear.outputs)
                ]
            del remade, gradients
            return [result]

        x_node, remakes = x.node, bool(tuned and source)  # the graph must not hold what checkpointing drops
        self.ticks += 1
        node = _Node(self.ticks, [x_node], backward, len(linears))
        self.save(node, *kept)
        del kept
        found = []
        for linear, output in zip(linears, outputs, strict=True):
            self.ticks += 1
            found.append(_Value(output, _size(tokens=linear.outputs), width, _Node(self.ticks, [node], lambda g: [g])))
        return found

    def _remade(self, values, width):
        "A norm's output, made again in backward."
        scratch = [] if self.kind.liger else [self.new(values, 4), self.new(values, 4)]
        out = self.new(values, width)
        del scratch
        return out

    def linear(self, x, linear):
        "One linear layer, with its adapter if it is a target (peft `tuners/lora/bnb.py` and `layer.py`, forward)."
        kind = self.kind
        result = self.base(x, linear)
        if linear.name not in kind.targets:
            return result
        if kind.quant in ("nf4", "fp4"):  # "defensively clone", says PEFT
            result = self.each(result, passes=True)
        elif kind.quant is None:
            x = self.cast(x, kind.adapter)
        low = self._adapter(self.dropout(x), _size(rank=linear.inputs), _size(tokens_rank=1))
        high = self._adapter(low, _size(rank=linear.outputs), _size(tokens=linear.outputs))
        del low
        high = self.each(high)  # times the scaling
        return self.add(result, high)

    def _adapter(self, x, weights, out):
        "One of the two small matrix products under autocast, its weight cast to the compute dtype."
        kind = self.kind
        x = self.cast(x, kind.compute)
        values = x.values
        casts = kind.adapter != kind.compute
        weight = self.new(weights, kind.compute, CAST) if casts else None

        def backward(g, *saved, need):
            gradient = self.new(weights, kind.compute, PARAM)
            if casts:
                narrow, gradient = gradient, self.new(weights, kind.adapter, PARAM)
                del narrow
            self.gradients.append(gradient)
            return [self.gradient(values, kind.compute) if need[0] else None]

        saved = (x.buffer, weight) if casts and x.node else (x.buffer,)
        return self.apply(out, kind.compute, [x], backward, saved, trained=True)

    def rope(self, x):
        "Rotary embedding: x * cos + rotate_half(x) * sin. Liger turns x in place."
        kind, values, width = self.kind, x.values, x.width
        if kind.liger:
            return x
        half = _times(values, 0.5)

        def backward(g, need):
            turned = self.gradient(values, width)
            negative = self.gradient(half, width)
            first = self.gradient(values, width)
            del negative
            second = self.gradient(values, width)
            del second, turned
            straight = self.gradient(values, width)
            del straight
            return [first]

        straight = self.new(values, width)
        negative = self.new(half, width)
        turned = self.new(values, width)
        del negative
        scaled = self.new(values, width)
        del turned
        y = self.apply(values, width, [x], backward)
        del straight, scaled
        return y

    def repeat(self, x, values):
        "Keys or values copied once for each query head that shares them."
        return x if x.values == values else self.apply(values, x.width, [x])

    def attention(self, q, k, v):
        "Attention by the kernel that torch picks; returns (batch, length, heads x head size) in the compute dtype."
        kind = self.kind
        full, width, scores = q.values, kind.compute, _size(tokens_length=kind.shape.heads)
        rows = _size(tokens=kind.shape.heads)
        if kind.attention == "eager":
            return self._eager(q, self.repeat(k, full), self.repeat(v, full), scores)
        if kind.repeat:
            k, v = self.repeat(k, full), self.repeat(v, full)
        q, k, v = (self.cast(x, width) for x in (q, k, v))
        small = k.values
        if kind.attention == "math":
            return self._math(q, k, v, scores)
        wide = kind.attention == "flash" and small != full  # flash backward spreads dk and dv over all query heads
        bias = self.new(_size(length_length=1), width) if kind.masked else None

        def backward(g, *saved, need):
            dq, dk, dv = self.gradient(full, width), self.gradient(small, width), self.gradient(small, width)
            scratch = [self.gradient(full, 4), self.gradient(rows, 4)]  # float32 sums of dq, and one value a row
            if wide:
                scratch += [self.gradient(full, width), self.gradient(full, width)]
            del scratch
            return [dq, dk, dv]

        inputs = (q.buffer, k.buffer, v.buffer) + ((bias,) if bias else ())
        logsumexp = self.new(rows, 4)
        return self.apply(full, width, [q, k, v], backward, inputs, ("output", logsumexp))

    def _math(self, q, k, v, scores):
        """torch's math kernel: everything in float32, scores for all heads at once.

        Source: torch `aten/src/ATen/native/transformers/attention.cpp`, `_scaled_dot_product_attention_math`. Its
        locals live until it returns.
        """
        full, width = q.values, self.kind.compute
        q, k, v = (self.cast(x, 4) for x in (q, k, v))
        scaled = self.each(q)
        mask = self.new(_size(length_length=1), 4)
        many_k, many_v = self.repeat(k, full), self.repeat(v, full)
        raw = self._scores(scaled, self.each(many_k), scores, 4)
        soft = self._softmax(raw)
        infinite = self.new(scores, 1)
        del infinite, raw
        returned = self.new(scores, width)
        y = self.cast(self._mix(soft, many_v, full, 4), width)
        del returned, mask, scaled, soft, q, k, v, many_k, many_v
        return self.each(y, passes=True)  # laid out again as (batch, length, heads, size)

    def _scores(self, q, k, scores, width):
        return self.apply(scores, width, [q, k], None, (q.buffer, k.buffer))

    def _softmax(self, x):
        "In float32 whatever the input; saves its result."
        scores, back = x.values, x.width

        def backward(g, saved, need):
            out = self.gradient(scores, back)
            product = self.gradient(scores, 4)
            del product
            return [out]

        return self.apply(scores, 4, [x], backward, save_output=("output",))

    def _mix(self, weights, v, full, width):
        "Attention weights times values."
        return self.apply(full, width, [weights, v], None, (weights.buffer, v.buffer))

    def _eager(self, q, k, v, scores):
        "transformers `eager_attention_forward`: scores and softmax as tensors of their own."
        kind, full, width = self.kind, q.values, self.kind.compute
        query_width = q.width
        q, k, v = (self.cast(x, width) for x in (q, k, v))
        q = self.each(q, passes=True)  # the matrix product wants it in another layout
        weights = self._scores(q, k, scores, width)
        del q, k
        weights = self.each(weights)
        if kind.shape.gemma:  # the soft cap: divide, tanh, multiply
            weights = self.each(weights)
            weights = self.each(weights, save_output=True)
            weights = self.each(weights)
        # Plus the mask, which has the stream's dtype.
        weights = self.each(weights, width=max(width, kind.residual), passes=True)
        weights = self.cast(self.cast(self._softmax(weights), query_width), width)
        y = self._mix(weights, v, full, width)
        del weights, v
        return self.each(y, passes=True)

    def layer(self, x):
        "One decoder layer, forward (transformers: MistralDecoderLayer and its siblings)."
        kind = self.kind
        residual = x
        h = self.norm(x, _size(tokens=1))
        h = self._self_attention(h, residual.buffer)
        if kind.shape.gemma:
            h = self.norm(h, _size(tokens=1))
        x = self.add(residual, h)
        del residual, h
        residual = x
        h = self.norm(x, _size(tokens=1))
        del x
        h = self._mlp(h, residual.buffer)
        if kind.shape.gemma:
            h = self.norm(h, _size(tokens=1))
        return self.add(residual, h)

    def _self_attention(self, h, source):
        kind, shape = self.kind, self.kind.shape
        by_name = {linear.name: linear for linear in shape.linears}
        full, small = _size(tokens=shape.heads * shape.head_dim), _size(tokens=shape.kv_heads * shape.head_dim)
        if shape.fused:
            qkv = self.linear(h, by_name["qkv_proj"])
            q, k, v = self._split(qkv, (full, small, small))
            del qkv
        else:
            q, k, v = self.project(h, [by_name[f"{name}_proj"] for name in "qkv"], source)
        if kind.shape.qk_norm:
            q, k = self.norm(q, _size(tokens=shape.heads)), self.norm(k, _size(tokens=shape.kv_heads))
        q, k = self.rope(q), self.rope(k)
        if shape.fused and not kind.liger:  # Phi-3 joins the turned part and the rest
            q, k = self.each(q, passes=True), self.each(k, passes=True)
        y = self.attention(q, k, v)
        del q, k, v
        return self.project(y, [by_name["o_proj"]])[0]

    def _split(self, x, parts):
        "Views of one tensor; their gradients are each laid out at full size and summed."
        values, width, views = x.values, x.width, []
        for part in parts:
            node = None
            if x.node:
                self.ticks += 1
                backward = functools.partial(lambda g, need: [self.gradient(values, width)], need=(True,))
                node = _Node(self.ticks, [x.node], backward)
            views.append(_Value(x.buffer, part, width, node))
        return views

    def _mlp(self, h, source):
        kind, shape = self.kind, self.kind.shape
        by_name = {linear.name: linear for linear in shape.linears}
        if shape.fused:
            both = self.linear(h, by_name["gate_up_proj"])
            gate, up = self._split(both, (_size(tokens=shape.inner),) * 2)
            del both
        elif kind.liger or kind.fused:
            gate, up = self.project(h, [by_name["gate_proj"], by_name["up_proj"]], source)
        else:
            gate = self.linear(h, by_name["gate_proj"])
            gate = self.each(gate, save_input=True)
            up = self.linear(h, by_name["up_proj"])
        del h
        if kind.liger:  # saves both inputs and writes their gradients into them
            saved = (gate.buffer, up.buffer)
            y = self.apply(up.values, up.width, [gate, up], lambda g, a, b, need: [a, b], save_output=saved)
            del saved
        else:
            if shape.fused or kind.fused:
                gate = self.each(gate, save_input=True)
            y = self.multiply(gate, up)
        del gate, up
        return self.project(y, [by_name["down_proj"]])[0]

    # -- backward

    def run(self, node, gradient):
        "Autograd's order: the latest operation first; a gradient that arrives second is added in place."
        waiting, queue = {id(node): gradient}, [(-node.order, id(node), node)]
        del gradient, node
        while queue:
            _, key, node = heapq.heappop(queue)
            g = waiting.pop(key)
            if node.backward is None:  # the layer's input
                self.result = g
                continue
            saved = [self._unpack(x) if isinstance(x, int) else x for x in node.saved]
            node.saved = []
            outs = node.backward(g, *saved)
            del g, saved
            for edge, out in zip(node.edges, outs, strict=True):
                if edge is None or out is None:
                    continue
                if edge.outputs > 1:  # a gradient for each of its outputs
                    waiting.setdefault(id(edge), []).append(out)
                    if len(waiting[id(edge)]) < edge.outputs:
                        continue
                elif id(edge) in waiting:
                    continue  # added in place: `out` is dropped
                else:
                    waiting[id(edge)] = out
                heapq.heappush(queue, (-edge.order, id(edge), edge))
            out = outs = edge = None
            del node

    def _unpack(self, index):
        if self.store is None:
            self.store, self.count, self.replaying = {}, 0, True
            fetched = self.new(self.kind.stream, self.kind.residual) if self.kind.offload else None
            self.muted = True
            source = self._input()
            self.muted = False
            with contextlib.suppress(_Stop):
                self.layer(source)
            self.replaying = False
            del fetched
        return self.store.pop(index)

    def _input(self):
        values, width = self.kind.stream, self.kind.residual
        return _Value(self.new(values, width), values, width, _Node(0, [], None))


@dataclass(frozen=True)
class _Kind(_Hashed):
    "All that decides a layer's tape, apart from tokens, length and rank. Widths in bytes."

    shape: Shape
    quant: str | None
    nested: bool
    compute: int
    residual: int
    adapter: int
    targets: frozenset
    dropout: bool
    attention: str
    repeat: bool
    masked: bool
    liger: bool
    full: bool
    offload: bool
    fused: bool
    __hash__ = _Hashed.__hash__

    @property
    def stream(self):
        return _size(tokens=self.shape.hidden)


@dataclass(frozen=True)
class _Played:
    "What a tape found: moments of both passes as (total, label -> size), and sizes of what stays after each."

    forward: tuple
    kept: tuple
    backward: tuple
    gradients: tuple
    events: tuple  # of the forward and of the backward pass
    keys: tuple  # of the input, the output, the output's gradient and the input's gradient


def _prune(moments):
    "Moments, as (total, parts), that no other moment exceeds in every coefficient: a peak is always one of them."
    kept = []
    for total, moment in sorted(moments, key=lambda pair: -sum(pair[0])):
        if not any(all(map(operator.ge, other, total)) for other, _ in kept):
            kept.append((total, moment))
    return tuple(kept)


@functools.lru_cache(maxsize=4096)
def _play(kind: _Kind, checkpoint: bool, first: bool = False) -> _Played:
    "Play one layer. `first`: its input needs no gradient (the embedding's output, without checkpointing)."
    if kind.offload and not checkpoint:  # nothing of this layer is offloaded
        return _play(dataclasses.replace(kind, offload=False), checkpoint, first)
    tape = _Tape(kind, checkpoint)
    if checkpoint:
        tape.muted = True
        source = tape._input()
        tape.muted = False
    else:
        source = tape._input()
        if first:
            source.node = None
    # The forward pass, in which a checkpointed layer keeps nothing.
    out = tape.layer(source)
    node, keys = out.node, [source.buffer.key, out.buffer.key]
    del out, source
    forward, events, kept = _prune(tape.moments), [tape.events], tape.total
    tape.moments, tape.growing, tape.events = [], False, []
    gradient = tape.gradient(kind.stream, kind.residual)
    keys.append(gradient.key)
    tape.run(node, gradient)
    del gradient, node
    tape.moments.append((tape.total, dict(tape.alive)))
    keys.append(tape.result.key if tape.result else None)
    gradients = tuple(map(sum, zip(NOTHING, *(g.size for g in tape.gradients), strict=True)))
    tape.muted = True  # what is left now outlives the layer
    return _Played(forward, kept, _prune(tape.moments), gradients, (*events, tape.events), tuple(keys))


# ------------------------------------------------------------------------------------------------------- 3. the peak


@dataclass(frozen=True)
class Prediction:
    """What a run will take, in bytes as torch counts them (`torch.cuda.max_memory_allocated` and its siblings).

    `parts` names what is alive at the peak, in order; its values add up to `peak_allocated`. `moment` says which
    moment the peak is. Outside these counts: the CUDA context, 0.15 to 0.5 GB by GPU and driver.
    """

    after_load: int
    before_training: int
    peak_allocated: int
    peak_reserved: int
    parts: dict[str, int]
    moment: str
    notes: tuple[str, ...] = ()  # what this prediction leaves out or assumes


def predict(config, spec, gpu: str = "h200") -> Prediction:
    """Predict the memory of a fine-tuning run, in bytes, from the model's configuration and the run's settings.

    `config`: a transformers config, a dictionary of its keys, a local folder or a hub id. `spec`: a RunSpec or a
    dictionary of its fields. `gpu`: a key of GPUS; it decides the cuBLAS workspace, and a T4 has no flash attention.
    Full sequences are assumed: padding only makes less. Raises CannotPredict for what cannot be predicted.
    """
    shape, spec = shape_of(config), _on(gpu, spec_of(spec))
    kind, standing, cast = _settled(shape, spec, _gpu(gpu))
    moment, groups = max(_moments(shape, spec, kind, cast), key=lambda pair: _bytes(pair[1]))
    parts = standing | {TABLES: _tables(shape, spec)}
    for group in groups:
        for name, size in group.items():
            parts[name] = parts.get(name, 0) + size
    parts = {name: round(size) for name, size in parts.items() if round(size)}
    after_load, before_training, peak, reserved = _replay(shape, spec, gpu)
    parts["blocks larger than what they hold"] = peak - sum(parts.values())
    return Prediction(after_load, before_training, peak, reserved, parts, moment, _notes(shape, spec))


def _notes(shape: Shape, spec: RunSpec) -> tuple[str, ...]:
    notes = []
    if shape.model_type not in KNOWN:
        notes.append(f"{shape.model_type} is predicted as a Llama of the same sizes")
    if spec.quant_type == "int8":
        notes.append("int8: outlier columns, which depend on the activations' values, come on top")
    return tuple(notes)


def _on(gpu: str, spec: RunSpec) -> RunSpec:
    "The spec with the attention kernels that this GPU has: a T4 lacks flash attention whatever was asked for."
    if _gpu(gpu)["kernels"] == "t4" and spec.attention_kernels == "all":
        return dataclasses.replace(spec, attention_kernels="t4")
    return spec


def _gpu(name: str) -> dict:
    if name not in GPUS:
        raise CannotPredict(f"gpu: {name!r} is not known; known are {', '.join(GPUS)}")
    return GPUS[name]


def _fuses(spec: RunSpec) -> bool:
    "Whether fuse_lora applies: plain adapters on 4-bit layers whose input has the dtype that they compute in."
    plain = spec.rank is not None and spec.lora_dropout == 0 and spec.quant_type in ("nf4", "fp4")
    return spec.fused_lora and plain and not spec.upcast_non_quantized and spec.load_dtype == spec.compute_dtype


def _kind(shape: Shape, spec: RunSpec, targets) -> _Kind:
    "The part of the settings that shapes a layer's tape, and which attention kernel torch will pick."
    compute = WIDTH[spec.compute_dtype]
    masked = shape.window is not None and spec.seq_len >= shape.window  # transformers masking_utils: no skip then
    shared = shape.heads != shape.kv_heads
    repeat = shared and (spec.repeat_kv or masked)
    if spec.attention == "eager":
        kernel = "eager"
    elif masked:
        kernel = "efficient"  # flash takes no mask
    elif spec.attention_kernels == "all":
        kernel = "flash"
    else:
        kernel = "math" if shared and not repeat else "efficient"  # Turing's fused kernels refuse differing head counts
    if shape.gemma and kernel != "eager":
        raise CannotPredict("spec: attention is 'sdpa'; transformers has Gemma-2's soft cap only in 'eager'")
    return _Kind(
        shape=shape,
        quant="nf4" if spec.quant_type == "fp4" else spec.quant_type,
        nested=spec.double_quant and spec.quant_type in ("nf4", "fp4"),
        compute=compute,
        residual=4 if spec.upcast_non_quantized else WIDTH[spec.load_dtype],
        adapter=WIDTH[spec.adapter_dtype or "float32"],
        targets=frozenset(linear.name for linear in targets),
        dropout=spec.lora_dropout > 0,
        attention=kernel,
        repeat=repeat,
        masked=masked,
        liger=spec.layer_kernels == "liger",
        full=spec.rank is None,
        offload=spec.checkpoint_offload,
        fused=_fuses(spec),
    )


def _settled(shape: Shape, spec: RunSpec, gpu: dict) -> tuple[_Kind, dict[str, int], int]:
    """What batch and checkpointing do not change: the kind of layer, what is there at every moment of a training step
    by name, and autocast's copies of a layer's adapters (until the forward pass ends), in bytes.
    """
    targets = _targets(shape, spec)
    kind = _kind(shape, spec, targets)
    casts = 0
    if spec.rank is not None and kind.adapter != kind.compute and not kind.fused:
        casts = blocks(*(kind.compute * spec.rank * size for x in targets for size in (x.inputs, x.outputs)))
    parts = dict(weight_bytes(shape, spec.quant_type, spec.double_quant))
    layer, outside = _trained_sizes(shape, spec, targets)
    width = WIDTH[spec.adapter_dtype or "float32"] if spec.rank is not None else WIDTH[spec.load_dtype]
    parts["float32 copies of what is not quantized"] = 0
    if spec.upcast_non_quantized:  # prepare_model_for_kbit_training: 16-bit parameters become float32
        # A Linear4bit's bias goes back to the compute dtype at its first use.
        biases = sum(blocks(2 * x.outputs) for x in shape.linears if x.bias) * shape.layers if spec.quant_type else 0
        plain = parts["embeddings and head"] + parts["norms, biases, 16-bit weights"] - biases
        parts["float32 copies of what is not quantized"] = plain
    if spec.rank is not None:
        parts["adapters"] = adapter_bytes(targets, shape.layers, spec.rank, width)
    states = [state_bytes(sizes, name, width) for sizes, name in _optimized(spec.optimizer, layer, outside)]
    parts["optimizer states"] = shape.layers * states[1] + states[0] + states[2]
    parts["cuBLAS workspaces"] = 2 * gpu["workspace"]
    return kind, parts, casts


TABLES = "token ids, masks, rotary tables"


def _tables(shape: Shape, spec: RunSpec) -> int:
    "Made once a forward pass: ids, labels and padding mask (int64), cos and sin, an attention mask if needed."
    tokens, length = spec.batch_size * spec.seq_len, spec.seq_len
    residual = 4 if spec.upcast_non_quantized else WIDTH[spec.load_dtype]
    size = blocks(*(8 * tokens,) * 3, *(residual * length * shape.head_dim,) * 2)
    if spec.attention == "eager":
        kinds = 2 if shape.gemma else 1
        size += kinds * blocks(residual * tokens * length)
    elif shape.window is not None and length >= shape.window:
        size += blocks(length * length)
    return size


@functools.lru_cache(maxsize=1 << 17)
def _layer(kind: _Kind, checkpoint: bool, first: bool, point: tuple) -> tuple[dict, dict, float, float]:
    "One layer at these tokens, in bytes: (its forward pass at the peak, its backward pass, what it keeps, gradients)."
    played = _play(kind, checkpoint, first)
    peaks = []
    for moments in (played.forward, played.backward):
        _, largest = max(moments, key=lambda pair: _at(pair[0], point), default=(0, {}))
        peaks.append({name: _at(size, point) for name, size in largest.items()})
    return (*peaks, _at(played.kept, point), _at(played.gradients, point))


def _moments(shape: Shape, spec: RunSpec, kind: _Kind, cast: int):
    """Every candidate for the peak: its name, and what is there besides what always is, as dictionaries of bytes.

    `plan` asks for thousands of these: layers and loss come from caches.
    """
    tokens, length, rank = spec.batch_size * spec.seq_len, spec.seq_len, spec.rank or 0
    point = (1, tokens, rank, tokens * rank, tokens * length, length, length * length)
    every, layers, last = spec.checkpoint_every, shape.layers, shape.layers - 1
    stream = tokens * shape.hidden * kind.residual
    on = _layer(kind, True, False, point) if every else None
    off = _layer(kind, False, False, point) if every != 1 else None
    extra = 0 if every or kind.full else _layer(kind, False, True, point)[2] - off[2]  # of the first layer

    def checkpointed(index):
        return -(-index // every) if every else 0

    def held(index):
        "What layers 0 .. index - 1 hold for their backward pass."
        number = checkpointed(index)
        kept = (number * on[2] if on else 0) + ((index - number) * off[2] if off else 0) + (extra if index else 0)
        # Of what is offloaded, the embedding's output stays: it is the leaf that gradients are asked of.
        return {KEPT: kept, INPUTS: stream if kind.offload else number * stream}

    def layer(index):
        "The layer, and its own input where checkpointing keeps it on the GPU."
        own = bool(every) and index % every == 0
        return (on, {INPUTS: 0 if kind.offload else stream}) if own else (off, {})

    # The last layer's forward pass; the loss; backward through the last layers; the first; the optimizer.
    # Layers without checkpointing saved autocast's copies anyway, and they are not counted again.
    played, own = layer(last)
    yield "forward pass of the last layer", (held(last), own, {CAST: cast * checkpointed(last)}, played[0])
    for name, parts in _loss(shape, kind, spec.batch_size, length, spec.trl_loss):
        yield name, (held(layers), {CAST: cast * checkpointed(layers) if "forward" in name else 0}, parts)
    outside, table = _outside_gradients(shape, kind)
    per_layer = (on or off)[3]
    for index in {last, *range(max(0, layers - (every or 1)), layers), 0}:
        played, own = layer(index)
        name = f"backward pass of layer {index}" + (" (recomputed)" if played is on else "")
        before = held(index) if index or not kind.offload else {INPUTS: stream}
        yield name, (before, own, {PARAM: (last - index) * per_layer + outside}, played[1])
    trained = layers * per_layer + outside + table
    if table:
        scratch = _embedding_scratch(shape, spec)
        yield "backward pass of the embedding", ({PARAM: trained, GRAD: stream + scratch},)
    trained -= table if shape.tied else 0
    # torch `_multi_tensor_adam` makes a square root of each second moment.
    yield "optimizer step", ({PARAM: trained, "optimizer scratch": trained if spec.optimizer == "adamw_torch" else 0},)


def _bytes(groups) -> float:
    return sum(sum(group.values()) for group in groups)


def _outside_gradients(shape: Shape, kind: _Kind) -> tuple[int, int]:
    """Bytes of gradients outside the layers when everything is trained: (there all the time, the embedding's own).

    The head's gradient comes with the loss; the embedding's comes last, and where the two are tied it is added to the
    head's and goes.
    """
    if not kind.full:
        return 0, 0
    table = blocks(kind.residual * shape.vocab * shape.hidden)
    return table + blocks(kind.residual * shape.hidden), table


def _embedding_scratch(shape: Shape, spec: RunSpec) -> int:
    """Bytes of partial sums in the embedding's backward pass; none up to 3,072 tokens.

    torch `aten/src/ATen/native/cuda/Embedding.cu` and `EmbeddingBackwardKernel.cu`: a float32 row for each distinct
    token at most, and one more for each ten tokens.
    """
    tokens = spec.batch_size * spec.seq_len
    return 4 * shape.hidden * (tokens // 10 + min(tokens, shape.vocab)) if tokens > 3072 else 0


@functools.lru_cache(maxsize=1 << 15)
def _loss(shape: Shape, kind: _Kind, batch: int, length: int, trl_loss: str) -> list[tuple[str, dict]]:
    """Moments of final norm, head and loss, on top of what the layers keep.

    trl 1.16 `kernels/chunked_logprob.py`: logits exist one tile at a time, at most 4,096 tokens x 32,768 entries of
    the vocabulary in the compute dtype, in the forward pass and again in the backward pass; the head's slice is cast
    when it is float32; the gradient of the hidden states is summed in float32.
    """
    scored, stream = batch * (length - 1), batch * length * shape.hidden
    hidden, compute, residual = scored * shape.hidden, kind.compute, kind.residual
    norm = stream * (residual if kind.liger else 4)  # what the final norm saves
    name, output = "final norm and hidden states", stream * residual
    tile, *casts = _tile(shape, kind, scored, backward=False)
    if trl_loss == "full":
        # Before 1.15: all logits in the compute dtype, a float32 copy, and its gradient.
        logits = batch * length * shape.vocab * (compute + 4 + 4)
        return [("loss, backward", {name: norm + output, LOSS: logits + sum(casts)})]
    small = blocks(*(4 * scored,) * 7, *(8 * scored,) * 2)
    # Gradients are summed in float32; what comes back in 16 bit is made while all else of the function still lives.
    head = shape.vocab * shape.hidden * 4 if kind.full else 0
    summed = hidden * (4 if residual == 4 else 4 + residual)
    backward = sum(_tile(shape, kind, scored, backward=True)) + small
    found = [
        ("loss, forward", {name: norm + output + hidden * residual, LOSS: tile + sum(casts) + small}),
        ("loss, backward", {name: norm + hidden * residual, GRAD: summed, PARAM: head * 3 // 2, LOSS: backward}),
    ]
    if not kind.liger:  # the final norm's backward pass: five float32 tensors beside its input (see _Tape.norm)
        found.append(("backward pass of the final norm", {name: norm, GRAD: stream * 4 * 5, PARAM: head // 2}))
    return found


LOSS = "tile of logits"


def _tile(shape: Shape, kind: _Kind, scored: int, backward: bool) -> list[int]:
    """Bytes of the tile of logits, and of the slices cast for it when embeddings and stream are float32.

    In trl's loops a name is bound anew while its old tensor still lives, so two slices coexist: of the hidden states
    when there is more than one, of the head (in the backward pass, where it has a name) likewise.
    """
    rows, compute = min(scored, TOKEN_TILE), kind.compute
    sizes = [rows * VOCABULARY_TILE * compute]
    if kind.residual != compute:
        sizes.append(rows * shape.hidden * compute)
        sizes.append(min(scored - rows, TOKEN_TILE) * shape.hidden * compute)
        sizes.append(min(shape.vocab, VOCABULARY_TILE) * shape.hidden * compute)
        if backward and shape.vocab > VOCABULARY_TILE:
            second = min(shape.vocab - VOCABULARY_TILE, VOCABULARY_TILE)
            sizes.append(second * shape.hidden * compute)
        elif backward and scored > rows:
            sizes.append(shape.vocab * shape.hidden * compute)
    return [size for size in sizes if size]


# -------------------------------------------------------------------------------------------------- 4. the allocator


class _Allocator:
    """torch's caching allocator in miniature: best fit, splitting, merging, segments that are never given back.

    Rules from torch 2.11 `c10/cuda/CUDACachingAllocator.cpp`: sizes are rounded to 512 bytes; up to 1 MiB come from
    2 MiB segments, up to 10 MiB from 20 MiB ones, larger ones from their own, rounded to 2 MiB; a block is split if
    more than 1 MiB is left (512 bytes in the small pool). What is not split off counts as allocated.

    Addresses and sizes are in units of 512 bytes. A block is one number, size << 40 | address, so that the best fit
    in a sorted list of free blocks is the first that is large enough.
    """

    def __init__(self):
        self.small, self.large = [], []  # free blocks in order
        self.edges = {}  # of each free block: start -> end and end -> start, to find free neighbours
        self.segments = {}  # start -> size
        self.end = self.allocated = self.reserved = self.peak = self.peak_reserved = 0

    def take(self, *sizes) -> list[int]:
        "Allocate blocks of these sizes in bytes, one after the other; returns them."
        held = [None] * len(sizes)
        self.play([(i, pages(size)) for i, size in enumerate(sizes)], held)
        return held

    def give(self, *blocks) -> None:
        "Free blocks, each merged with free neighbours."
        self.play([(i, None) for i in range(len(blocks))], blocks)

    def play(self, events, held) -> None:
        "In order: (i, size) allocates a block and puts it into `held[i]`, (i, None) frees the one that is there."
        small, large, edges, allocated, peak = self.small, self.large, self.edges, self.allocated, self.peak
        address = ADDRESS
        for i, need in events:
            if need is None:
                block = held[i]
                size, start = block >> 40, block & address
                allocated -= size
                pool, end = small if size <= 2048 else large, start + size
                if end in edges:
                    after = edges.pop(end)
                    del pool[bisect_left(pool, after - end << 40 | end)]
                    end = after
                if start in edges:
                    before = edges.pop(start)
                    del pool[bisect_left(pool, start - before << 40 | before)]
                    start = before
                edges[start], edges[end] = end, start
                insort(pool, end - start << 40 | start)
                continue
            pool = small if need <= 2048 else large
            place = bisect_left(pool, need << 40)
            if place < len(pool):
                block = pool.pop(place)
                size, start = block >> 40, block & address
                end = edges.pop(start)
            else:
                size = 4096 if need <= 2048 else 40960 if need < 20480 else -(-need // 4096) * 4096
                start, end = self.end, self.end + size
                block, self.end = size << 40 | start, end + 1  # the gap keeps segments from being merged
                edges[end], self.segments[start] = start, size
                self.reserved += size
                self.peak_reserved = max(self.peak_reserved, self.reserved)
            if size - need > 2048 or need <= 2048 and size > need:
                after = start + need
                edges[after], edges[end] = end, after
                insort(pool, size - need << 40 | after)
                block, size = need << 40 | start, need
            else:
                del edges[end]
            held[i] = block
            allocated += size
            if allocated > peak:
                peak = allocated
        self.allocated, self.peak = allocated, peak

    def copy(self):
        "Another allocator in the same state."
        other = copy.copy(self)
        other.small, other.large, other.edges = self.small[:], self.large[:], dict(self.edges)
        other.segments = dict(self.segments)
        return other

    def empty_cache(self) -> None:
        "Give back every segment that is wholly free (`torch.cuda.empty_cache`)."
        for start, size in list(self.segments.items()):
            if self.edges.get(start) == start + size:
                (self.small if size == 4096 else self.large).remove(size << 40 | start)
                del self.edges[start], self.edges[start + size], self.segments[start]
                self.reserved -= size


ADDRESS = (1 << 40) - 1


def pages(size) -> int:
    "Bytes in units of 512, rounded up, at least one."
    return int(size) + 511 >> 9 or 1


def _replay_load(heap: _Allocator, shape: Shape, spec: RunSpec) -> list[int]:
    """Load the model as transformers 5.23 does; returns the 16-bit blocks, in the order in which they are upcast.

    First one block as large as the weights will be, taken and given back (`modeling_utils.py
    caching_allocator_warmup`); then tensor by tensor in the order of their names, each quantized as it arrives.
    """
    linears = sum(linear.weights for linear in shape.linears) * shape.layers
    each = {None: 2, "int8": 1}.get(spec.quant_type, 0.5)
    heap.give(*heap.take(each * linears + 2 * (shape.parameters - linears)))
    table = 2 * shape.vocab * shape.hidden
    heap.take(2 * shape.head_dim, 2 * shape.head_dim)
    head = [] if shape.tied else heap.take(table)
    embedding = heap.take(table)
    if spec.quant_type in ("nf4", "fp4") and spec.double_quant:
        heap.take(1024)
    # Names in natural order: input_layernorm, mlp, post_..., pre_..., self_attn.
    by_name = sorted(shape.linears, key=lambda linear: linear.name)
    mlp = [linear for linear in by_name if linear.name.split("_")[0] in ("gate", "up", "down")]
    norm, *norms = shape.norms
    events = [(("norm", 0), pages(2 * norm))]
    for linear in mlp:
        events += _arrival(linear, spec)
    events += [(("norm", i + 1), pages(2 * size)) for i, size in enumerate(norms)]
    for linear in by_name:
        events += [] if linear in mlp else _arrival(linear, spec)
    kept = [name for name, size in events if size and name[0] in ("norm", "bias")]
    plain = []
    for _ in range(shape.layers):
        held = {}
        heap.play(events, held)
        plain += [held[name] for name in kept]
    return [*embedding, *plain, *heap.take(2 * shape.hidden), *head]


def _arrival(linear: Linear, spec: RunSpec) -> list[tuple]:
    "The allocator's events while one weight arrives and is quantized (bitsandbytes `functional.py`)."
    number = -(-linear.weights // 64)
    made = {"bias": 2 * linear.outputs} if linear.bias else {}
    made["weight"], gone = 2 * linear.weights, ["weight"]
    if spec.quant_type is None:
        gone = []
    elif spec.quant_type == "int8":
        made |= {"codes": linear.weights, "scales": 4 * linear.outputs}
    else:
        made |= {"absmax": 4 * number, "codes": (linear.weights + 1) // 2, "levels": 4 * 16}
        if spec.double_quant:
            made |= {
                "offset": 4,
                "shifted": 4 * number,
                "code": 4 * 256,
                "nested": 4 * -(-number // 256),
                "8 bit": number,
            }
            gone = ["shifted", "absmax", "weight"]
    return [((name, linear.name), pages(size)) for name, size in made.items()] + [
        ((x, linear.name), None) for x in gone
    ]


@functools.lru_cache(maxsize=64)
def _prepared(shape: Shape, spec: RunSpec) -> tuple[_Allocator, int]:
    "The allocator before training, and what was allocated after loading; of `spec` only what matters until then."
    heap = _Allocator()
    plain = _replay_load(heap, shape, spec)
    after_load = heap.allocated
    if spec.upcast_non_quantized:  # one tensor after the other: a float32 copy, then the 16-bit one goes
        for block in plain:
            heap.take(2 * 512 * (block >> 40))
            heap.give(block)
        heap.empty_cache()
    if spec.rank is not None:
        # Made in float32; TRL turns a quantized model's adapters to bfloat16; then to what the run holds them in.
        sizes = _trained_sizes(shape, spec, _targets(shape, spec))[0] * shape.layers
        held = heap.take(*(4 * n for n in sizes))
        width, adapter = 4, WIDTH[spec.adapter_dtype]
        for then in ([2] if spec.quant_type else []) + [adapter]:
            if then != width or spec.quant_type and spec.adapter_dtype == "float16":
                for i, n in enumerate(sizes):
                    (fresh,) = heap.take(then * n)
                    heap.give(held[i])
                    held[i] = fresh
                width = then
    return heap, after_load


# What does not matter until training starts, set to one value.
UNTRAINED = {
    "batch_size": 1, "seq_len": 2, "optimizer": "sgd", "checkpoint_every": 1, "checkpoint_offload": False,
    "attention_kernels": "all", "repeat_kv": False, "lora_dropout": 0.0,
}  # fmt: skip


@functools.lru_cache(maxsize=256)
def _replay(shape: Shape, spec: RunSpec, gpu: str) -> tuple[int, int, int, int]:
    "Load, prepare and train two steps in an allocator of our own: the four figures of a Prediction, in bytes."
    heap, after_load = _prepared(shape, _unchecked(spec, UNTRAINED))
    heap = heap.copy()
    before_training = heap.allocated
    heap.peak, heap.peak_reserved = heap.allocated, heap.reserved
    targets = _targets(shape, spec)
    kind = _kind(shape, spec, targets)
    layer, outside = _trained_sizes(shape, spec, targets)
    width = WIDTH[spec.load_dtype] if spec.rank is None else kind.adapter
    step = _Step(heap, shape, spec, kind)
    for number in range(2):
        step.play(workspace=GPUS[gpu]["workspace"] if number == 0 else 0)
        if number == 0:
            for sizes, name in _optimized(spec.optimizer, layer * shape.layers, outside):
                heap.take(*itertools.chain.from_iterable(state_sizes(n, name, width) for n in sizes))
        if spec.optimizer == "adamw_torch":
            heap.give(*heap.take(*(width * n for n in (*layer * shape.layers, *outside))))
        heap.give(*step.gradients)
        step.gradients = []
    return tuple(512 * units for units in (after_load, before_training, heap.peak, heap.peak_reserved))


class _Step:
    "One training step, event by event, in an allocator."

    def __init__(self, heap, shape, spec, kind):
        self.heap, self.shape, self.spec, self.kind = heap, shape, spec, kind
        tokens, length, rank = spec.batch_size * spec.seq_len, spec.seq_len, spec.rank or 0
        self.point = (1, tokens, rank, tokens * rank, tokens * length, length, length * length)
        self.gradients, self.compiled = [], {}

    def events(self, played, checkpointed):
        """A tape for the allocator: (forward, backward, places of casts, places of gradients, number of places).

        What a layer is given (its input, its output's gradient) is not allocated here. Its output, and the casts in
        autocast's cache, outlive its forward pass. Anything under 4 KiB is left out.
        """
        found = self.compiled.get(id(played))
        if found is None:
            source, out, gradient, result = played.keys
            casts, alive, labels, passes = [], {out}, {}, ([], [])
            for into, events, given in zip(
                passes, played.events, (None if checkpointed else source, gradient), strict=True
            ):
                alive.add(given)
                for key, size, label in events:
                    if size is not None:
                        number, labels[key] = int(_at(size, self.point)), label
                        if key != given and number >= 4096:
                            into.append((key, pages(number)))
                            alive.add(key)
                    elif key not in alive or into is passes[0] and key == out:
                        continue
                    elif into is passes[0] and labels.get(key) == CAST:
                        casts.append(key)
                        alive.remove(key)
                    else:
                        into.append((key, None))
                        alive.remove(key)
                alive.discard(out)
            found = *passes, casts, sorted(alive - {None, result}), 1 + max(labels)
            self.compiled[id(played)] = found
        return found

    def play(self, workspace):
        heap, shape, spec, kind = self.heap, self.shape, self.spec, self.kind
        take, give, residual = heap.take, heap.give, kind.residual
        stream = spec.batch_size * spec.seq_len * shape.hidden
        every, layers = spec.checkpoint_every, shape.layers
        check = [bool(every) and i % every == 0 for i in range(layers)]
        played = [_play(kind, check[i], i == 0 and not every and not kind.full) for i in range(layers)]
        tables, embedded = take(_tables(shape, spec), residual * stream)
        out = embedded
        if workspace:
            take(workspace)
        casts, inputs, handles = [], [], []
        for i in range(layers):
            source_key, out_key, *_ = played[i].keys
            forward, _, cached, _, number = self.events(played[i], check[i])
            own = [None] * number
            if not check[i]:
                own[source_key] = out
            inputs.append(out)
            heap.play(forward, own)
            casts += [own[key] for key in cached]
            if check[i] and kind.offload and i:
                give(inputs[i])
            out = own[out_key]
            handles.append(own)
        gradient = self._loss(out, casts, workspace)
        for i in reversed(range(layers)):
            _, _, gradient_key, result_key = played[i].keys
            _, backward, _, gradients, _ = self.events(played[i], check[i])
            own = handles[i]
            own[gradient_key] = gradient
            heap.play(backward, own)
            gradient = None if result_key is None else own[result_key]
            self.gradients += [own[key] for key in gradients]
            if check[i] and i and not kind.offload:
                give(inputs[i])
        if every:
            give(embedded)
        if kind.full:
            (table,) = take(residual * shape.vocab * shape.hidden)
            if partial := _embedding_scratch(shape, spec):
                give(*take(partial))
            give(table) if shape.tied else self.gradients.append(table)
        if gradient is not None:
            give(gradient)
        give(tables)

    def _loss(self, hidden, casts, workspace):
        """Final norm, tiled head and their backward passes; returns the address of the last layer's gradient.

        Autograd's thread has a cuBLAS workspace of its own, taken for its first product: a tile of logits, made again.
        """
        heap, shape, spec, kind = self.heap, self.shape, self.spec, self.kind
        take, give, residual, compute = heap.take, heap.give, kind.residual, kind.compute
        stream = spec.batch_size * spec.seq_len * shape.hidden
        scored = spec.batch_size * (spec.seq_len - 1)

        def sized(*values):  # in the residual stream's dtype
            return take(*(residual * number for number in values))

        saved = hidden
        if kind.liger:
            (y,) = sized(stream)
        else:
            if residual != 4:
                (saved,) = take(4 * stream)
                give(hidden)
            give(*take(4 * stream))
            wide = take(4 * stream)
            if residual != 4 and not kind.shape.gemma:
                narrow = sized(stream)
                give(*wide)
                wide = narrow
            (y,) = sized(stream)
            give(*wide)
        (picked,) = sized(scored * shape.hidden)
        if spec.trl_loss == "full":
            give(*take(*(width * spec.batch_size * spec.seq_len * shape.vocab for width in (compute, 4, 4))))
        else:
            give(*take(*_tile(shape, kind, scored, backward=False)))
        give(y, *casts)
        # Gradients of hidden states and head are summed in float32; the 16-bit ones are made before anything goes.
        summed = gradient = take(4 * scored * shape.hidden)
        head = take(4 * shape.vocab * shape.hidden) if kind.full else []
        tiles = take(*_tile(shape, kind, scored, backward=True))
        if workspace:
            take(workspace)
        if residual != 4:
            gradient = sized(scored * shape.hidden)
        if head:
            self.gradients += sized(shape.vocab * shape.hidden)
        give(*(summed if residual != 4 else []), *head, *tiles, picked)
        for size in (scored * shape.hidden, stream):  # gradients of the choice of positions, and of the shift by one
            fresh = sized(size)
            give(*gradient)
            gradient = fresh
        if kind.liger:
            give(saved)
            return gradient[0]
        wide = take(4 * stream)
        give(*gradient)
        give(*take(*(4 * stream,) * 4))
        give(saved)
        if residual != 4:
            gradient = sized(stream)
            give(*wide)
            wide = gradient
        return wide[0]


# ------------------------------------------------------------------------------------------------------- 5. planning


def _unchecked(spec: RunSpec, changes: dict) -> RunSpec:
    "A copy of a spec with other values, each of which has been checked already: `plan` makes thousands."
    copy = object.__new__(RunSpec)
    copy.__dict__.update(spec.__dict__)
    copy.__dict__.update(changes)
    return copy


# A pass over the weights costs as much as 256 tokens, whatever the batch: dequantizing a weight moves 2.5 bytes, a
# token's share of the product takes 2 operations, and on a T4 (320 GB/s, 65 TFLOP/s) as on an H200 (4.8 TB/s,
# 989 TFLOP/s) the one takes as long as 250 to 260 of the other (NVIDIA's data sheets).
PASS_TOKENS = 256
HOST_BYTES_PER_SECOND, OPERATIONS_PER_SECOND = 12e9, 65e12  # a T4 and its PCIe 3.0 x16: what offloading waits for

CHOICES = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "checkpoint_every": (0, 1, 2, 3, 4, 6, 8),
    "checkpoint_offload": (False, True),
    "optimizer": ("paged_adamw_8bit", "paged_adamw_32bit"),
    "upcast_non_quantized": (False,),
}


@dataclass(frozen=True)
class Plan:
    """The fastest setting that fits, and why. `cost` is time a token, 1.0 being one forward pass over a large batch.

    `reasons` has a sentence for each setting that was chosen between; `considered` and `fitting` count candidates.
    """

    spec: RunSpec
    prediction: Prediction
    cost: float
    reasons: dict[str, str]
    considered: int
    fitting: int


def cost_per_token(shape: Shape, spec: RunSpec) -> float:
    """Time to train on one token, in forward passes of one token of a large batch: a model of time, not a measurement.

    A forward pass costs 1, backward 1 (2 when every weight is trained, for the weights' own gradients), recomputation
    1 for the share of layers that are recomputed; each pass has PASS_TOKENS of overhead for a batch. Offloading waits
    for two copies of a layer's input between GPU and host.
    """
    share = 0 if not spec.checkpoint_every else -(-shape.layers // spec.checkpoint_every) / shape.layers
    tokens = spec.batch_size * spec.seq_len
    passes = 1 + (2 if spec.rank is None else 1) + share
    weights = sum(linear.weights for linear in shape.linears)
    copies = 2 * 2 * shape.hidden / HOST_BYTES_PER_SECOND / (2 * weights / OPERATIONS_PER_SECOND) * share
    return passes * (1 + PASS_TOKENS / tokens) + (copies if spec.checkpoint_offload else 0)


def plan(
    config, budget_bytes: int, spec=None, choices: dict | None = None, gpu: str = "t4", margin: float = 0.05
) -> Plan:
    """The fastest setting whose predicted peak leaves `margin` of `budget_bytes` free.

    `spec` (a RunSpec or its fields) holds what is given: rank, length, dtypes, ... `choices` maps fields of RunSpec to
    the values that may be tried (default CHOICES). Time is `cost_per_token`'s; among equally fast settings the smaller
    peak wins. What torch reserves must fit the whole budget too. Raises CannotPredict when nothing fits.
    """
    shape, hardware = shape_of(config), _gpu(gpu)
    base = _on(gpu, spec_of({"repeat_kv": hardware["kernels"] == "t4"} if spec is None else spec))
    if not isinstance(budget_bytes, (int, float)) or budget_bytes <= 0:
        raise CannotPredict(f"plan: budget_bytes is {budget_bytes!r}; give a number of bytes above 0")
    if not 0 <= margin < 1:
        raise CannotPredict(f"plan: margin is {margin!r}; it must be at least 0 and below 1")
    loaded = sum(weight_bytes(shape, base.quant_type, base.double_quant).values())
    if not choices and budget_bytes < loaded:
        raise CannotPredict(f"plan: budget_bytes is {int(budget_bytes):,}; the weights alone take {loaded:,}")
    choices = CHOICES if choices is None else choices
    neutral = vars(base) | {"checkpoint_every": 1, "checkpoint_offload": False}  # offload needs checkpointing
    checked = {}
    for field, values in choices.items():  # each value on its own
        if not values:
            raise CannotPredict(f"plan: choices has no value for {field}; give at least one")
        checked[field] = tuple(getattr(spec_of(neutral | {field: value}), field) for value in values)
    choices = checked
    candidates = _candidates(shape, base, choices, hardware)
    room = budget_bytes * (1 - margin)
    fitting = sorted((cost, peak, i) for i, (cost, peak, _) in enumerate(candidates) if peak <= room)
    for cost, _, i in fitting:
        chosen = RunSpec(**vars(candidates[i][2]))
        prediction = predict(shape, chosen, gpu)
        if prediction.peak_allocated <= room and prediction.peak_reserved <= budget_bytes:
            reasons = _reasons(candidates, candidates[i][2], choices)
            left = f"{margin:.0%} of {budget_bytes / GIB:.2f} are left free; torch reserves"
            reasons["room"] = (
                f"the peak takes {prediction.peak_allocated / GIB:.2f} of {room / GIB:.2f} GiB: "
                f"{left} {prediction.peak_reserved / GIB:.2f}"
            )
            return Plan(chosen, prediction, cost, reasons, len(candidates), len(fitting))
    least = min(peak for _, peak, _ in candidates)
    smallest = f"the smallest of {len(candidates)} settings peaks at {int(least):,}"
    raise CannotPredict(f"plan: budget_bytes is {int(budget_bytes):,}; {smallest}")


def _candidates(shape: Shape, base: RunSpec, choices: dict, gpu: dict) -> list[tuple[float, float, RunSpec]]:
    "Every combination of choices as (cost, peak in bytes, spec)."
    found, settled = [], {}
    settling = [field for field in choices if field not in ("batch_size", "checkpoint_every")]
    for values in itertools.product(*choices.values()):
        spec = _unchecked(base, dict(zip(choices, values, strict=True)))
        if spec.checkpoint_offload and not spec.checkpoint_every:
            continue
        key = tuple(getattr(spec, field) for field in settling)
        if key not in settled:
            settled[key] = _settled(shape, spec, gpu)
        kind, standing, cast = settled[key]
        peak = max(_bytes(groups) for _, groups in _moments(shape, spec, kind, cast))
        found.append((cost_per_token(shape, spec), sum(standing.values()) + _tables(shape, spec) + peak, spec))
    return found


def _reasons(candidates, chosen: RunSpec, choices: dict) -> dict[str, str]:
    "For each setting that had alternatives: what the others would have cost, all else as chosen."
    table = {tuple(getattr(spec, field) for field in choices): (cost, peak) for cost, peak, spec in candidates}
    here = tuple(getattr(chosen, field) for field in choices)
    mine, _ = table[here]
    reasons = {}
    for place, (field, values) in enumerate(choices.items()):
        keys = {value: (*here[:place], value, *here[place + 1 :]) for value in values if value != here[place]}
        others = {value: table[key] for value, key in keys.items() if key in table}
        if not others:
            continue
        faster = sorted((peak, cost, value) for value, (cost, peak) in others.items() if cost < mine)
        value, slowest = here[place], max(cost for cost, _ in others.values())
        if faster:
            peak, cost, other = faster[0]
            reasons[field] = (
                f"{value}: {other} would take {1 - cost / mine:.0%} less time but needs {peak / GIB:.2f} GiB"
            )
        elif slowest == mine:
            reasons[field] = f"{value}: as fast as the others, and the smallest peak"
        else:
            reasons[field] = f"{value}: the fastest; the slowest choice takes {slowest / mine - 1:.0%} more time"
    return reasons


# ------------------------------------------------------------------------------------------------------- 6. checking


def read_rows(path) -> list[dict]:
    "Measured rows from a JSON-lines file."
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def gpu_of(device: str) -> str:
    "The key in GPUS of a device's name, as torch reports it."
    words = device.lower().replace("tesla", "").replace("nvidia", "").replace("-", " ").split()
    for word in words:
        if word in GPUS:
            return word
    return "h200" if "hopper" in words else "a100"


def score(rows) -> list[dict]:
    """Predictions beside measurements, for rows without an error: bytes and relative errors, a dictionary a row.

    Keys: model, role, spec, moment, notes, and for each of after_load, before_training, peak_allocated and peak_reserved a
    triple (predicted, measured, predicted / measured - 1).
    """
    table = []
    for row in rows:
        if row["error"] is not None:
            continue
        predicted = predict(row["config"], row["spec"], gpu_of(row["device"]))
        scored = {"model": row["model"], "role": row.get("role"), "spec": row["spec"]}
        scored |= {"moment": predicted.moment, "notes": predicted.notes}
        for key in ("after_load", "before_training", "peak_allocated", "peak_reserved"):
            guess, truth = getattr(predicted, key), row["measured"][key]
            scored[key] = (guess, truth, guess / truth - 1)
        table.append(scored)
    return table
