"""Attention on a tape, by the kernel that torch picks."""

from helpers.memory.elementwise import cast, each, multiply
from helpers.memory.tape import Tape, Value


def attention(tape: Tape, q: Value, k: Value, v: Value) -> Value:
    """Returns (batch, length, heads x head size) in the compute dtype."""
    kind, full = tape.kind, q.values
    if kind.attention == "eager":
        return _eager(tape, q, _repeat(tape, k, full), _repeat(tape, v, full))
    if kind.repeat:
        k, v = _repeat(tape, k, full), _repeat(tape, v, full)
    q, k, v = tape.after([cast(tape, x, kind.compute) for x in (q, k, v)], q, k, v)
    kernel = _math if kind.attention == "math" else _fused
    return tape.after(kernel(tape, q, k, v), q, k, v)


def _repeat(tape: Tape, x: Value, values: int) -> Value:
    """Keys or values copied once for each query head that shares them."""
    return x if x.values == values else tape.apply(values, x.width, [x])


def _fused(tape: Tape, q: Value, k: Value, v: Value) -> Value:
    """Flash and memory-efficient attention: no scores in memory; one float32 value is kept for each row and head."""
    kind, width = tape.kind, tape.kind.compute
    full, small, rows = q.values, k.values, kind.tokens * kind.shape.heads
    spread = kind.attention == "flash" and small != full  # flash backward spreads dk and dv over all query heads
    bias = tape.new(kind.length * kind.length, width) if kind.masked else None

    def backward(g, *saved):
        dq, dk, dv = (tape.new_gradient(size, width) for size in (full, small, small))
        scratch = [tape.new_gradient(full, 4), tape.new_gradient(rows, 4)]  # float32 sums of dq, and one value a row
        if spread:
            scratch += [tape.new_gradient(full, width), tape.new_gradient(full, width)]
        tape.use(scratch)
        return [dq, dk, dv]

    inputs = [x.buffer for x in (q, k, v)] + ([bias] if bias else [])
    return tape.apply(full, width, [q, k, v], backward, inputs, ("output", tape.new(rows, 4)))


def _math(tape: Tape, q: Value, k: Value, v: Value) -> Value:
    """torch's math kernel: everything in float32, scores for all heads at once.

    Source: torch `aten/src/ATen/native/transformers/attention.cpp`, `_scaled_dot_product_attention_math`. Its
    locals live until it returns.
    """
    kind, full, width = tape.kind, q.values, tape.kind.compute
    q, k, v = (cast(tape, x, 4) for x in (q, k, v))
    scaled, mask = each(tape, q), tape.new(kind.length * kind.length, 4)
    many_k, many_v = _repeat(tape, k, full), _repeat(tape, v, full)
    raw = multiply(tape, scaled, each(tape, many_k), kind.scores)
    soft = _softmax(tape, raw)
    tape.use(tape.new(kind.scores, 1), raw)  # where a row is infinite
    returned = tape.new(kind.scores, width)
    y = cast(tape, multiply(tape, soft, many_v, full), width)
    tape.use(returned, mask, scaled, soft, q, k, v, many_k, many_v)
    return each(tape, y, passes=True)  # laid out again as (batch, length, heads, size)


def _softmax(tape: Tape, x: Value) -> Value:
    """In float32 whatever the input; saves its result."""
    scores, back = x.values, x.width

    def backward(g, saved):
        out = tape.new_gradient(scores, back)
        tape.new_gradient(scores, 4)  # the product with the gradient
        return [out]

    return tape.apply(scores, 4, [x], backward, save_after=("output",))


def _eager(tape: Tape, q: Value, k: Value, v: Value) -> Value:
    """transformers `eager_attention_forward`: scores and softmax as tensors of their own."""
    kind, full, width, query_width = tape.kind, q.values, tape.kind.compute, q.width
    q, k, v = tape.after([cast(tape, x, width) for x in (q, k, v)], q, k, v)
    q = each(tape, q, passes=True)  # the matrix product wants it in another layout
    weights = each(tape, multiply(tape, q, k, kind.scores))
    if kind.shape.gemma:  # the soft cap: divide, tanh, multiply
        weights = each(tape, weights)
        weights = each(tape, weights, save_output=True)
        weights = each(tape, weights)
    # Plus the mask, which has the stream's dtype.
    weights = each(tape, weights, width=max(width, kind.residual), passes=True)
    weights = tape.after(cast(tape, cast(tape, _softmax(tape, weights), query_width), width), weights)
    return each(tape, multiply(tape, weights, v, full), passes=True)
