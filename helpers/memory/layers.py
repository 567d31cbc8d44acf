"""One decoder layer on a tape, forward (transformers' MistralDecoderLayer and its siblings)."""

import functools
from dataclasses import dataclass, replace

from helpers.memory import products
from helpers.memory.attention import attention
from helpers.memory.elementwise import add, each, multiply, norm
from helpers.memory.runs import Kind
from helpers.memory.tape import Buffer, Tape, Value


def layer(tape: Tape, x: Value) -> Value:
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
        q, k, v = _split(tape, products.linear(tape, h, shape.named["qkv_proj"]), (kind.queries, kind.keys, kind.keys))
    else:
        q, k, v = products.project(tape, h, [shape.named[f"{name}_proj"] for name in "qkv"], source)
    if shape.qk_norm:
        normed = norm(tape, q, kind.tokens * shape.heads), norm(tape, k, kind.tokens * shape.kv_heads)
        q, k = tape.after(normed, q, k)
    q, k = tape.after((rope(tape, q), rope(tape, k)), q, k)
    if shape.fused and not kind.liger:  # Phi-3 joins the turned part and the rest
        q, k = tape.after((each(tape, q, passes=True), each(tape, k, passes=True)), q, k)
    y = tape.after(attention(tape, q, k, v), q, k, v)
    return tape.after(products.project(tape, y, [shape.named["o_proj"]])[0], y)


def _split(tape: Tape, x: Value, sizes) -> list[Value]:
    """Views of one tensor; their gradients are each laid out at full size and summed."""
    nodes = [tape.node([x.node], lambda g: [tape.gradient(x.values, x.width)]) if x.node else None for _ in sizes]
    return [Value(x.buffer, size, x.width, node) for size, node in zip(sizes, nodes, strict=True)]


def rope(tape: Tape, x: Value) -> Value:
    """Rotary embedding: x * cos + rotate_half(x) * sin. Liger turns x in place."""
    values, width = x.values, x.width
    if tape.kind.liger:
        return x

    def backward(g):
        turned, negative, first = (tape.gradient(size, width) for size in (values, values // 2, values))
        tape.use(negative)
        second = tape.gradient(values, width)
        tape.use(second, turned)
        tape.gradient(values, width)
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
        gate, up = _split(tape, products.linear(tape, h, shape.named["gate_up_proj"]), (kind.tokens * shape.inner,) * 2)
    elif kind.liger or kind.fused:
        gate, up = products.project(tape, h, [shape.named["gate_proj"], shape.named["up_proj"]], source)
    else:
        gate = each(tape, products.linear(tape, h, shape.named["gate_proj"]), save_input=True)
        up = products.linear(tape, h, shape.named["up_proj"])
    if kind.liger:  # saves both inputs and writes their gradients into them
        both = (gate.buffer, up.buffer)
        y = tape.apply(up.values, up.width, [gate, up], lambda g, *saved: list(saved), save_after=both)
    else:
        if shape.fused or kind.fused:
            gate = each(tape, gate, save_input=True)
        y = multiply(tape, gate, up)
    return tape.after(products.project(tape, y, [shape.named["down_proj"]])[0], y)


@dataclass(frozen=True)
class Played:
    """One layer's life: every buffer in the order of its making, and how many of them the forward pass made.

    `source`, `out`, `gradient` and `result` are the layer's input, its output, and the gradients of both.
    """

    buffers: list[Buffer]
    forward: int
    source: Buffer
    out: Buffer
    gradient: Buffer
    result: Buffer | None
    gradients: list[Buffer]  # of weights


@functools.lru_cache(maxsize=1024)
def play(kind: Kind, checkpoint: bool, first: bool = False) -> Played:
    """Play one layer. `first`: its input needs no gradient (the embedding's output, without checkpointing)."""
    if kind.offload and not checkpoint:  # nothing of this layer is offloaded
        kind = replace(kind, offload=False)
    tape = Tape(kind, layer, checkpoint)
    tape.recording = not checkpoint
    source = tape.source()
    tape.recording = True
    if first:
        source.node = None
    # The forward pass, in which a checkpointed layer keeps nothing.
    out = layer(tape, source)
    tape.use(source, out)
    forward, held = len(tape.buffers), tape.held
    gradient = tape.gradient(kind.stream, kind.residual)
    tape.run(out.node, gradient)
    tape.use(gradient, held, tape.gradients, tape.result)
    return Played(tape.buffers, forward, source.buffer, out.buffer, gradient, tape.result, tape.gradients)
