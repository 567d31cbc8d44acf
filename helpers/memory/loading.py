"""Loading a model and preparing it for training, block by block in an allocator."""

import functools

from helpers.memory.allocator import Allocator
from helpers.memory.labels import ADAPTERS, PLAIN, SCALES, TABLES, UPCAST
from helpers.memory.runs import RunSpec, trained_sizes
from helpers.memory.shapes import Shape
from helpers.memory.shares import Share, whole
from helpers.memory.sizes import PAGE, WIDTH, layer_arrivals


def prepared(shape: Shape, spec: RunSpec, share: Share | None = None) -> tuple[Allocator, int]:
    """The allocator before training, and the pages that were allocated after loading. It is remembered: play on a copy.

    `share`: what of the model lies on this GPU, all of it unless given.
    """
    matters = (
        "quant_type", "double_quant", "load_dtype", "compute_dtype", "adapter_dtype", "rank", "target_modules",
        "upcast_non_quantized",
    )  # fmt: skip
    return _prepared(shape, RunSpec(**{name: getattr(spec, name) for name in matters}), share or whole(shape))


@functools.lru_cache(maxsize=64)
def _prepared(shape: Shape, spec: RunSpec, share: Share) -> tuple[Allocator, int]:
    heap = Allocator()
    plain = load(heap, shape, spec, share)
    after_load = heap.allocated
    if spec.upcast_non_quantized:
        for block in plain:
            _, size, *_ = block
            heap.replace(block, UPCAST, 2 * PAGE * size)
        heap.empty_cache()
    if spec.rank is not None:
        # Made in float32; TRL turns a quantized model's adapters to bfloat16; then to what the run holds them in.
        sizes = trained_sizes(shape, spec)[0] * share.layers
        held, before = [heap.take(ADAPTERS, 4 * n) for n in sizes], "float32"
        for dtype in (["bfloat16"] if spec.quant_type else []) + [str(spec.adapter_dtype)]:
            if dtype != before:
                held = [heap.replace(block, ADAPTERS, WIDTH[dtype] * n) for block, n in zip(held, sizes, strict=True)]
            before = dtype
    return heap, after_load


def load(heap: Allocator, shape: Shape, spec: RunSpec, share: Share) -> list[tuple]:
    """Load the model as transformers does; returns the 16-bit blocks, in the order in which they are upcast.

    First one block as large as the weights will be, taken and given back (`modeling_utils.py
    caching_allocator_warmup`); then tensor by tensor in the order of their names, each quantized as it arrives.
    """
    table = shape.vocab * shape.hidden
    tables = share.embedding + (share.norm and not shape.tied)
    linears = sum(linear.weights for linear in shape.linears) * share.layers
    others = table * tables + shape.hidden * share.norm
    others += share.layers * (sum(x.bias * x.outputs for x in shape.linears) + sum(shape.norms))
    each = {None: 2, "int8": 1}.get(spec.quant_type, 0.5)
    heap.borrow(PLAIN, int(each * linears) + 2 * others)
    for _ in range(2 * share.embedding):  # the rotary frequencies, and a copy
        heap.take(PLAIN, 2 * shape.head_dim)
    made_tables = [heap.take(TABLES, 2 * table) for _ in range(tables)]
    if spec.quant_type in ("nf4", "fp4") and spec.double_quant:
        heap.take(SCALES, 1024)  # bitsandbytes' table for 8-bit scales, one for all
    plain = [made_tables.pop()] if share.embedding else []
    for made in layer_arrivals(shape, spec.quant_type, spec.double_quant) * share.layers:
        blocks = [heap.take(label, size) for label, size, _ in made]
        for block, (label, _, stays) in zip(blocks, made, strict=True):
            if not stays:
                heap.give(block)
            elif label == PLAIN:
                plain.append(block)
    return [*plain, *([heap.take(PLAIN, 2 * shape.hidden)] if share.norm else []), *made_tables]
