"""One decoder layer on a tape, forward (transformers' MistralDecoderLayer and its siblings)."""

from helpers.memory.attention import attention
from helpers.memory.elementwise import add, each, multiply, norm
from helpers.memory.linear_layers import linear, project
from helpers.memory.tape import Buffer, Tape, Value


def decoder_layer(tape: Tape, x: Value) -> Value:
    """Attention and MLP, each after a norm and added to the residual stream; Gemma-2 norms what each gives, too."""
    gemma, tokens = tape.kind.shape.gemma, tape.kind.tokens
    for part in (self_attention, mlp):
        h = norm(tape, x, tokens)
        h = tape.after(part(tape, h, x.buffer), h)
        if gemma:
            h = tape.after(norm(tape, h, tokens), h)
        x = add(tape, x, h)
    return x


def self_attention(tape: Tape, h: Value, source: Buffer) -> Value:
    """`source`: what a norm made h from."""
    kind, shape = tape.kind, tape.kind.shape
    if shape.fused:
        sizes = [kind.tokens * heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
        q, k, v = _split(tape, linear(tape, h, shape.named["qkv_proj"]), sizes)
    else:
        q, k, v = project(tape, h, [shape.named[f"{name}_proj"] for name in "qkv"], source)
    if shape.qk_norm:
        normed = norm(tape, q, kind.tokens * shape.heads), norm(tape, k, kind.tokens * shape.kv_heads)
        q, k = tape.after(normed, q, k)
    q, k = tape.after((rope(tape, q), rope(tape, k)), q, k)
    if shape.fused and not kind.liger:  # Phi-3 joins the turned part and the rest
        q, k = tape.after((each(tape, q, passes=True), each(tape, k, passes=True)), q, k)
    y = tape.after(attention(tape, q, k, v), q, k, v)
    return tape.after(project(tape, y, [shape.named["o_proj"]])[0], y)


def _split(tape: Tape, x: Value, sizes) -> list[Value]:
    """Views of one tensor; their gradients are each laid out at full size and summed."""
    nodes = [tape.node([x.node], lambda g: [tape.new_gradient(x.values, x.width)]) if x.node else None for _ in sizes]
    return [Value(x.buffer, size, x.width, node) for size, node in zip(sizes, nodes, strict=True)]


def rope(tape: Tape, x: Value) -> Value:
    """Rotary embedding: x * cos + rotate_half(x) * sin. Liger turns x in place."""
    values, width = x.values, x.width
    if tape.kind.liger:
        return x

    def backward(g):
        turned, negative, first = (tape.new_gradient(size, width) for size in (values, values // 2, values))
        tape.use(negative)
        second = tape.new_gradient(values, width)
        tape.use(second, turned)
        tape.new_gradient(values, width)
        return [first]

    straight, negative, turned = (tape.new(size, width) for size in (values, values // 2, values))
    tape.use(negative)
    scaled = tape.new(values, width)
    tape.use(turned)
    return tape.after(tape.apply(values, width, [x], backward), straight, scaled)


def mlp(tape: Tape, h: Value, source: Buffer) -> Value:
    """SwiGLU: down(activation(gate(h)) * up(h)). `source`: what a norm made h from."""
    kind, shape = tape.kind, tape.kind.shape
    if shape.fused:
        gate, up = _split(tape, linear(tape, h, shape.named["gate_up_proj"]), (kind.tokens * shape.inner,) * 2)
    elif kind.liger or kind.fused:
        gate, up = project(tape, h, [shape.named["gate_proj"], shape.named["up_proj"]], source)
    else:
        gate = each(tape, linear(tape, h, shape.named["gate_proj"]), save_input=True)
        up = linear(tape, h, shape.named["up_proj"])
    if kind.liger:  # saves both inputs and writes their gradients into them
        both = (gate.buffer, up.buffer)
        y = tape.apply(up.values, up.width, [gate, up], lambda g, *saved: list(saved), save_after=both)
    else:
        if shape.fused or kind.fused:
            gate = each(tape, gate, save_input=True)
        y = multiply(tape, gate, up)
    return tape.after(project(tape, y, [shape.named["down_proj"]])[0], y)
