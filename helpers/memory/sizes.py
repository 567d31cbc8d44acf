"""Sizes of what stays all through a run: weights, adapters, optimizer states, and the cache of a model that generates."""

import functools

from helpers.memory.labels import CODES, PLAIN, SCALES, TABLES
from helpers.memory.shapes import CannotPredict, Linear, Shape, is_count, shape_of

MIB = 2**20
PAGE = 512  # bytes: what torch rounds sizes up to (`c10/cuda/CUDACachingAllocator.h`)
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes a value
MLP = ("down_proj", "gate_proj", "gate_up_proj", "up_proj")  # the others are attention's
PAGED_FROM = 100_000  # bitsandbytes optim/optimizer.py get_state_buffer: smaller states are not paged
EIGHT_BIT_FROM = 4096  # the same file, min_8bit_size: smaller states stay 32-bit


def pages(size: int) -> int:
    """Bytes in units of 512, rounded up, at least one."""
    return -(-size // PAGE) or 1


def blocks(*sizes: int) -> int:
    """Bytes that tensors of these sizes take, each rounded up."""
    return PAGE * sum(map(pages, sizes))


@functools.lru_cache(maxsize=512)
def arrivals(linear: Linear, quant_type: str | None, double_quant: bool) -> tuple[tuple[str, int, bool], ...]:
    """The tensors made while a linear layer is loaded, in order: (label, bytes, whether it stays).

    bitsandbytes 0.50 `functional.py quantize_4bit`: two codes a byte; a float32 absmax for each 64 weights, or with
    double quantization an 8-bit one, with a float32 for each 256 of those, an offset and a 256-entry code; each
    weight also keeps its 16-entry code. int8: a byte a weight and a float32 a row (`Int8Params`: CB, SCB).
    """
    number = -(-linear.weights // 64)
    made = [(PLAIN, 2 * linear.outputs, True)] if linear.bias else []
    made.append((PLAIN, 2 * linear.weights, quant_type is None))
    if quant_type == "int8":
        made += [(CODES, linear.weights, True), (SCALES, 4 * linear.outputs, True)]
    elif quant_type:
        made += [
            (SCALES, 4 * number, not double_quant),
            (CODES, (linear.weights + 1) // 2, True),
            (SCALES, 4 * 16, True),
        ]
        if double_quant:  # the offset, absmax less the offset, the code, the nested absmax, absmax in 8 bits
            nested = ((4, True), (4 * number, False), (4 * 256, True), (4 * -(-number // 256), True), (number, True))
            made += [(SCALES, size, stays) for size, stays in nested]
    return tuple(made)


def layer_arrivals(shape: Shape, quant_type: str | None, double_quant: bool) -> list[tuple[tuple[str, int, bool], ...]]:
    """`arrivals` of each weight of a decoder layer, as their names go: input_layernorm, mlp, post_..., pre_..., self_attn."""
    norms = [((PLAIN, 2 * size, True),) for size in shape.norms]
    mlp: list = []
    attention: list = []
    for linear in sorted(shape.linears, key=lambda linear: linear.name):
        part = mlp if linear.name in MLP else attention
        part.append(arrivals(linear, quant_type, double_quant))
    return [norms[0], *mlp, *norms[1:], *attention]


@functools.lru_cache(maxsize=512)
def weight_bytes(shape: Shape, quant_type: str | None, double_quant: bool) -> dict[str, int]:
    """Bytes of the loaded model, by kind: quantized codes, their scales, and what stays 16-bit, each in whole blocks.

    transformers leaves embeddings, head, norms and biases in `load_dtype`.
    """
    found = {CODES: 0, SCALES: 0, TABLES: blocks(2 * shape.vocab * shape.hidden) * (1 if shape.tied else 2)}
    found[PLAIN] = blocks(2 * shape.hidden, *(2 * shape.head_dim,) * 2)  # the final norm, rotary frequencies and a copy
    for made in layer_arrivals(shape, quant_type, double_quant):
        for label, size, stays in made:
            found[label] += shape.layers * blocks(size) if stays else 0
    return found


def adapter_bytes(targets: tuple[Linear, ...], layers: int, rank: int, width: int) -> int:
    """Bytes of the adapters: A (rank x inputs) and B (outputs x rank) of each target, `width` bytes a value."""
    return layers * blocks(*(width * rank * size for x in targets for size in (x.inputs, x.outputs)))


def kv_cache_bytes(config, tokens: int, batch: int = 1, dtype: str = "float16") -> int:
    """Bytes of the keys and values that generation keeps for `batch` rows of `tokens` tokens each, padding included.

    In each layer a key and a value of key-value heads x head size for each token (grouped-query attention: Ainslie et
    al. 2023, arXiv 2305.13245). transformers' `cache_utils.py`: a layer with a sliding window keeps its last
    window - 1 tokens; of Gemma-2's layers every other one has a window, from the first on. Raises CannotPredict for
    Qwen's use_sliding_window, an unknown dtype, and counts below 1.
    """
    shape = shape_of(config)
    if dtype not in WIDTH:
        raise CannotPredict(f"dtype is {dtype!r}; allowed: {', '.join(WIDTH)}")
    for name, value in (("tokens", tokens), ("batch", batch)):
        if not is_count(value):
            raise CannotPredict(f"{name} is {value!r}; it must be a whole number above 0")
    if shape.window and shape.model_type.startswith("qwen"):
        raise CannotPredict("config: use_sliding_window is True; which layers slide is not described here")
    sliding = 0 if shape.window is None else (shape.layers + 1) // 2 if shape.gemma else shape.layers
    within = min(tokens, shape.window - 1) if shape.window else tokens
    kept = sliding * within + (shape.layers - sliding) * tokens
    return 2 * batch * kept * shape.kv_heads * shape.head_dim * WIDTH[dtype]


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
    """Bytes of optimizer state on the GPU for parameters of these element counts (see state_sizes)."""
    return sum(blocks(*state_sizes(n, optimizer, width)) for n in sizes)
