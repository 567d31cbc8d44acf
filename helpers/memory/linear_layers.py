"""Linear layers on a tape: quantized, frozen or trained, with an adapter or without.

Sources: bitsandbytes 0.50 `autograd/_functions.py`, peft 0.21 `tuners/lora/bnb.py` and `layer.py`, and
helpers/training/fused_lora.py.
"""

from helpers.memory.elementwise import add, cast, dropout, each, norm_again
from helpers.memory.labels import CASTS, DEQUANTIZED, WEIGHT_GRADIENTS
from helpers.memory.shapes import Linear
from helpers.memory.tape import Buffer, Tape, Value


def linear(tape: Tape, x: Value, layer: Linear) -> Value:
    """One linear layer, with its adapter if it is a target."""
    kind = tape.kind
    result = base(tape, x, layer)
    if layer.name not in kind.targets:
        return result
    if kind.quant == "nf4":  # "defensively clone", says PEFT
        result = each(tape, result, passes=True)
    inner = cast(tape, x, kind.adapter) if kind.quant is None else x
    low = _adapter(tape, dropout(tape, inner), kind.rank * layer.inputs, kind.tokens * kind.rank)
    high = _adapter(tape, low, kind.rank * layer.outputs, kind.tokens * layer.outputs)
    high = each(tape, high)  # times the scaling
    return tape.after(add(tape, result, high), inner)


def _adapter(tape: Tape, x: Value, weights: int, out: int) -> Value:
    """One of the two small matrix products under autocast, its weights (so many) cast to the compute dtype."""
    kind = tape.kind
    x = cast(tape, x, kind.compute)
    casts = kind.adapter != kind.compute
    weight = tape.new(weights, kind.compute, CASTS) if casts else None

    def backward(g, *saved):
        gradient = tape.new(weights, kind.compute, WEIGHT_GRADIENTS)
        if casts:
            gradient = tape.after(tape.new(weights, kind.adapter, WEIGHT_GRADIENTS), gradient)
        tape.gradients.append(gradient)
        return [tape.new_gradient(x.values, kind.compute) if x.node else None]

    saved = (x.buffer, weight) if casts and x.node else (x.buffer,)
    return tape.after(tape.apply(out, kind.compute, [x], backward, saved, trained=True), weight)


def dequantize(tape: Tape, layer: Linear, backward: bool = False) -> list[Buffer]:
    """One weight in 16 bits, as bitsandbytes makes it before every matrix product, and what of its scratch outlives it."""
    scratch = []
    if tape.kind.nested:
        scratch = [tape.new(-(-layer.weights // 64), 4, DEQUANTIZED) for _ in range(1 if backward else 2)]
    weight = tape.new(layer.weights, tape.kind.compute, DEQUANTIZED)
    tape.use(*scratch)
    return [weight] if backward else [*scratch, weight]


def base(tape: Tape, x: Value, layer: Linear) -> Value:
    """The layer's own matrix product: quantized, frozen or trained."""
    kind, out = tape.kind, tape.kind.tokens * layer.outputs
    if kind.full:

        def backward_trained(g, saved):
            tape.gradients.append(tape.new(layer.weights, x.width, WEIGHT_GRADIENTS))
            return [tape.new_gradient(x.values, x.width)]

        return tape.apply(out, x.width, [x], backward_trained, (x.buffer,), trained=True)
    inner = cast(tape, x, kind.compute)
    if kind.quant is None:
        return tape.apply(out, kind.compute, [inner])
    if kind.quant == "int8":
        return tape.after(_int8(tape, inner, layer, out), inner)

    def backward(g):
        weight = dequantize(tape, layer, backward=True)
        return [tape.after(tape.new_gradient(x.values, kind.compute), *weight)]

    scratch = dequantize(tape, layer)
    y = tape.after(tape.apply(out, kind.compute, [inner], backward), *scratch)
    return tape.after(cast(tape, y, x.width), inner)


def _int8(tape: Tape, x: Value, layer: Linear, out: int) -> Value:
    """bitsandbytes `MatMul8bitLt`: its graph node holds its input outside autograd's saved tensors.

    So the forward pass of a checkpointed layer keeps the input of every linear layer. Outlier columns, which
    depend on the activations' values, are not counted.
    """
    compute = tape.kind.compute

    def backward(g):
        weight = tape.new(layer.weights, compute, DEQUANTIZED)
        return [tape.after(tape.new_gradient(x.values, compute), weight)]

    codes, wide = tape.new(x.values, 1), tape.new(out, 4)
    y = tape.after(tape.apply(out, compute, [x], backward), codes, wide)
    tape.held += [x.buffer] if y.node else []
    return y


def project(tape: Tape, x: Value, layers: list[Linear], source: Buffer | None = None) -> list[Value]:
    """A value for each of the layers of one input: as one operation where helpers/training/fused_lora.py applies.

    `source` is what a norm made x from: kept in place of x, from which backward makes x again.
    """
    kind, values, width = tape.kind, x.values, x.width
    if not kind.fused:
        return [linear(tape, x, layer) for layer in layers]
    tuned = [layer for layer in layers if layer.name in kind.targets]
    kept = _kept_fused(tape, x, tuned, source) if tuned else []
    outputs = []
    for layer in layers:
        scratch = dequantize(tape, layer)
        outputs.append(tape.after(tape.new(kind.tokens * layer.outputs, width), *scratch))

    def backward(g, *saved):
        result = None
        for layer in layers:
            weight = dequantize(tape, layer)[-1]
            if x.node and not result:
                result = tape.new_gradient(values, width)
            tape.use(weight)
        again = norm_again(tape, values, width) if tuned and source else None
        for layer in tuned:
            for size in (layer.inputs, layer.outputs):
                tape.gradients.append(tape.new(kind.rank * size, kind.adapter, WEIGHT_GRADIENTS))
        return [tape.after(result, again)]

    node = tape.node([x.node], backward, joins=True)
    tape.save(node, *kept)
    tape.use(x, *kept)
    sizes = [kind.tokens * layer.outputs for layer in layers]
    nodes = [tape.node([node], lambda g: [g]) for _ in layers]
    return [Value(out, size, width, node) for out, size, node in zip(outputs, sizes, nodes, strict=True)]


def _kept_fused(tape: Tape, x: Value, tuned: list[Linear], source: Buffer | None) -> list[Buffer]:
    """What the fused operation keeps: narrow copies of its adapters, their small products, and its input or its source."""
    kind, width, number = tape.kind, x.width, len(tuned)
    narrow = kind.adapter != width
    kept = [tape.new(kind.rank * layer.outputs, width) for layer in tuned] if narrow else []
    joined = tape.new(number * kind.rank * tuned[0].inputs, kind.adapter)
    kept.append(tape.after(tape.new(number * kind.rank * tuned[0].inputs, width), joined) if narrow else joined)
    return [*kept, tape.new(number * kind.tokens * kind.rank, width), source or x.buffer]
