"""What a decoder layer does with plain tensors: casts, sums, products, dropout and norms, on a tape."""

from helpers.memory.tape import Tape, Value


def cast(tape: Tape, x: Value, width: int) -> Value:
    """To another dtype; nothing is done where it already is."""
    return x if x.width == width else tape.apply(x.values, width, [x])


def each(tape: Tape, x: Value, width=None, save_input=False, save_output=False, passes=False) -> Value:
    """An operation with one input; `passes` when its backward pass hands the gradient on."""
    handed = (lambda g, *saved: [g]) if passes and width in (None, x.width) else None
    saved = (x.buffer,) if save_input else ()
    return tape.apply(x.values, width or x.width, [x], handed, saved, ("output",) if save_output else ())


def multiply(tape: Tape, a: Value, b: Value, values: int | None = None) -> Value:
    """A product, value by value, or of matrices, which gives so many `values`; it saves both."""
    return tape.apply(values or a.values, max(a.width, b.width), [a, b], None, (a.buffer, b.buffer))


def add(tape: Tape, a: Value, b: Value) -> Value:
    """A sum; its gradient is handed on to both, and cast for one that is narrower."""
    wide = max(a.width, b.width)

    def backward(g):
        return [g if x.width == wide else tape.new_gradient(x.values, x.width) for x in (a, b)]

    return tape.apply(a.values, wide, [a, b], backward)


def dropout(tape: Tape, x: Value) -> Value:
    """Keeps a mask of a byte a value."""
    return tape.apply(x.values, x.width, [x], None, (tape.new(x.values, 1),)) if tape.kind.dropout else x


def norm(tape: Tape, x: Value, rows: int) -> Value:
    """RMSNorm. `rows` is the number of norms taken.

    As written in transformers: to float32, square, mean, rsqrt, multiply, back to the input's dtype, times the
    weight. Gemma-2 multiplies by the weight in float32. Liger's kernel saves its input and one value a row.
    """
    kind, values, width = tape.kind, x.values, x.width
    scaled = 4 if kind.shape.gemma else width  # bytes a value of what the weight multiplies
    if kind.liger:
        return tape.apply(values, width, [x], lambda g, *saved: [g], save_after=(x.buffer, tape.new(rows, 4)))

    def backward_square(g, wide):
        # The mean's gradient, spread out again; the power; its double; their product.
        *between, out = (tape.new_gradient(values, 4) for _ in range(4))
        return [tape.after(out, *between)]

    def backward_scale(g, wide, scale):
        out = tape.new_gradient(values, 4)
        tape.new_gradient(values, 4)  # summed to one value a row
        return [out, tape.new_gradient(rows, 4) if square.node else None]

    def backward_weight(g, y):
        out = tape.new_gradient(values, scaled)
        tape.new_gradient(values, scaled)  # summed to the weight's gradient
        return [out]

    wide = cast(tape, x, 4)
    square = tape.apply(values, 4, [wide], backward_square, (wide.buffer,))
    scale = tape.after(Value(tape.new(rows, 4), rows, 4, square.node), square)
    y = tape.apply(values, 4, [wide, scale], backward_scale, (wide.buffer, scale.buffer))
    y = cast(tape, y, scaled)
    if not kind.full:
        return cast(tape, each(tape, y), width)
    return cast(tape, tape.apply(values, scaled, [y], backward_weight, (y.buffer,), trained=True), width)


def norm_again(tape: Tape, values: int, width: int):
    """A norm's output, made again in the backward pass of helpers/training/fused_lora.py."""
    scratch = [] if tape.kind.liger else [tape.new(values, 4), tape.new(values, 4)]
    return tape.after(tape.new(values, width), *scratch)
