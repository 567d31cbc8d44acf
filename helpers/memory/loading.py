"""Loading a model and preparing it for training, block by block in an allocator."""

import functools

from helpers.memory.allocator import PAGE, Allocator, Program
from helpers.memory.runs import RunSpec, trained_sizes
from helpers.memory.shapes import Shape
from helpers.memory.terms import ADAPTERS, PLAIN, SCALES, TABLES, UPCAST, WIDTH, arrivals


def load(heap: Allocator, shape: Shape, spec: RunSpec) -> list[tuple]:
    """Load the model as transformers does; returns the 16-bit blocks, in the order in which they are upcast.

    First one block as large as the weights will be, taken and given back (`modeling_utils.py
    caching_allocator_warmup`); then tensor by tensor in the order of their names, each quantized as it arrives.
    """
    linears = sum(linear.weights for linear in shape.linears) * shape.layers
    each = {None: 2, "int8": 1}.get(spec.quant_type, 0.5)
    heap.give(*heap.take(PLAIN, each * linears + 2 * (shape.parameters - linears)))
    table = 2 * shape.vocab * shape.hidden
    heap.take(PLAIN, 2 * shape.head_dim, 2 * shape.head_dim)
    head = [] if shape.tied else heap.take(TABLES, table)
    embedding = heap.take(TABLES, table)
    if spec.quant_type in ("nf4", "fp4") and spec.double_quant:
        heap.take(SCALES, 1024)  # bitsandbytes' table for 8-bit scales, one for all
    program, plain = _one_layer(shape, spec)
    layers = []
    for _ in range(shape.layers):
        held: list = [None] * len(program.pages)
        heap.play(program, held)
        layers += [held[slot] for slot in plain]
    return [*embedding, *layers, *heap.take(PLAIN, 2 * shape.hidden), *head]


def _one_layer(shape: Shape, spec: RunSpec) -> tuple[Program, list[int]]:
    """What one layer's tensors do as they arrive, and the slots of norms and biases.

    Names in natural order: input_layernorm, mlp, post_..., pre_..., self_attn.
    """
    linears = sorted(shape.linears, key=lambda linear: linear.name)
    of_mlp = {name: name.split("_")[0] in ("gate", "up", "down") for name in shape.named}
    norms = [(((PLAIN, 2 * size, True),), True) for size in shape.norms]
    arriving = {x.name: (arrivals(x, spec.quant_type, spec.double_quant), x.bias) for x in linears}
    mlp, attention = ([arriving[x.name] for x in linears if of_mlp[x.name] == wanted] for wanted in (True, False))
    tensors = [norms[0], *mlp, *norms[1:], *attention]
    program, plain, slot = Program(sum(len(made) for made, _ in tensors)), [], 0
    for made, begins_plain in tensors:
        plain += [slot] if begins_plain else []  # a norm, or the bias, which comes before its weight
        for number, (label, size, _) in enumerate(made, slot):
            program.take(number, size, label)
        for number, (_, _, stays) in enumerate(made, slot):
            if not stays:
                program.give(number)
        slot += len(made)
    return program, plain


@functools.lru_cache(maxsize=64)
def prepared(shape: Shape, spec: RunSpec) -> tuple[Allocator, int]:
    """The allocator before training, and the pages that were allocated after loading.

    It is remembered, so play on a copy; ask with a spec in which all that starts to matter later has its default
    (`until_training`).
    """
    heap = Allocator()
    plain = load(heap, shape, spec)
    after_load = heap.allocated
    if spec.upcast_non_quantized:  # one tensor after the other: a float32 copy, then the 16-bit one goes
        for block in plain:
            _, size, *_ = block
            heap.take(UPCAST, 2 * PAGE * size)
            heap.give(block)
        heap.empty_cache()
    if spec.rank is not None:
        # Made in float32; TRL turns a quantized model's adapters to bfloat16; then to what the run holds them in.
        sizes = trained_sizes(shape, spec)[0] * shape.layers
        held, width, adapter = heap.take(ADAPTERS, *(4 * n for n in sizes)), 4, WIDTH[spec.adapter_dtype]
        for then in ([2] if spec.quant_type else []) + [adapter]:
            if then != width or spec.quant_type and spec.adapter_dtype == "float16":
                for i, n in enumerate(sizes):
                    (fresh,) = heap.take(ADAPTERS, then * n)
                    heap.give(held[i])
                    held[i] = fresh
                width = then
    return heap, after_load


def until_training(spec: RunSpec) -> RunSpec:
    """The settings that matter before training starts, the others at their defaults."""
    kept = (
        "quant_type", "double_quant", "load_dtype", "compute_dtype", "adapter_dtype", "rank", "target_modules",
        "upcast_non_quantized",
    )  # fmt: skip
    return RunSpec(**{name: getattr(spec, name) for name in kept})
