"""The tape: one decoder layer, forward and backward, written down as the tensors that it makes.

Nothing is computed and no memory is asked for; only sizes are kept, and when a tensor comes and goes. Its life ends with
its last use: `Tape.use` notes one. What Python keeps alive longer, because a name still holds it, is used once more
where that name goes. The order of work is autograd's, and with checkpointing that of torch `utils/checkpoint.py` (2.11):
saved tensors are dropped, and the first that backward asks for has the layer played again, up to the last tensor that is
needed ("early stop").
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from helpers.memory.labels import ACTIVATIONS, GRADIENTS, INPUTS


@dataclass(slots=True, eq=False)
class Buffer:
    """A tensor's storage: `size` in bytes, what it is for, which-th it was made, and after which making it goes."""

    size: int
    label: str
    made: Any  # a number, but None for a tensor that is made nowhere in this layer
    last: Any  # a number, but None for one that outlives the layer


@dataclass(slots=True, eq=False)
class Value:
    """A tensor in play: storage, number of values, bytes a value, and the operation that made it."""

    buffer: Buffer
    values: int
    width: int
    node: "Node | None" = None


@dataclass(slots=True, eq=False)
class Node:
    """One operation in the autograd graph.

    `edges`: the operations that made its inputs. `saved`: buffers, or their numbers under checkpointing.
    `backward(gradient, *saved)` returns a gradient for each edge; the layer's input has none. `joins`: it has several
    outputs, whose gradients stay apart.
    """

    order: int
    edges: list
    backward: Callable | None
    joins: bool = False
    saved: list = field(default_factory=list)


class Tape:
    """One layer of the given kind (helpers.memory.runs.Kind), taped; `layer(tape, x)` does its forward pass.

    `buffers` are all tensors in the order in which they are made, the first `forward` of them in the forward pass.
    `source` and `out` are the layer's input and output, `gradient` and `result` the gradients of these two; `gradients`
    are those of weights. `first`: the input needs no gradient (the embedding's output, without checkpointing).
    """

    def __init__(self, kind, layer, checkpoint: bool, first: bool = False):
        self.kind, self.layer, self.checkpoint = kind, layer, checkpoint
        self.recording, self.ticks = True, 0
        self.buffers: list[Buffer] = []
        self.gradients: list[Buffer] = []
        self.result: Buffer | None = None
        self.saves = 0  # how many tensors the forward pass saves
        self.store: dict | None = None  # under checkpointing, what playing the layer again has saved, by number
        self.held: list = []  # what the graph holds outside of autograd's saved tensors: it goes with the graph
        source = self._input(recorded=not checkpoint)
        if first:
            source.node = None
        out, held = layer(self, source), self.held
        self.use(source, out)
        self.forward, self.source, self.out = len(self.buffers), source.buffer, out.buffer
        self.gradient = self.new_gradient(kind.stream, kind.residual)
        self._run(out.node, self.gradient)
        self.use(self.gradient, held)
        for buffer in (self.out, self.result, *self.gradients):
            if buffer:
                buffer.last = None

    # -- making and using

    def new(self, values: int, width: int, label: str = ACTIVATIONS) -> Buffer:
        """A new buffer of so many values of so many bytes each."""
        made = len(self.buffers) if self.recording else None
        buffer = Buffer(values * width, label, made, made)
        if self.recording:
            self.buffers.append(buffer)
        return buffer

    def new_gradient(self, values: int, width: int) -> Buffer:
        return self.new(values, width, GRADIENTS)

    def use(self, *used) -> None:
        """Buffers or values, or lists of them, are alive until here."""
        now = len(self.buffers) - 1
        for one in used:
            if isinstance(one, list):
                self.use(*one)
            elif one is not None:
                (one.buffer if isinstance(one, Value) else one).last = now

    def after(self, result, *inputs):
        """`result`, with its inputs alive until now: a caller's names outlive the operation that they are given to."""
        self.use(*inputs)
        return result

    def _input(self, recorded: bool) -> Value:
        """The layer's input, which somebody else has made; under checkpointing it is not on the tape."""
        self.recording = recorded
        values, width = self.kind.stream, self.kind.residual
        value = Value(self.new(values, width), values, width, Node(0, [], None))
        self.recording = True
        return value

    # -- autograd

    def node(self, edges, backward, joins: bool = False) -> Node:
        self.ticks += 1
        return Node(self.ticks, edges, backward, joins)

    def save(self, node: Node, *buffers) -> None:
        """Keep buffers for a node's backward pass."""
        if not self.checkpoint:
            node.saved += buffers
        elif self.store is None:
            node.saved += range(self.saves, self.saves + len(buffers))
            self.saves += len(buffers)
        else:
            for buffer in buffers:
                if self.recording:
                    self.store[len(self.store)] = buffer
                    self.recording = len(self.store) < self.saves  # early stop

    def apply(self, values, width, parents, backward=None, save=(), save_after=(), trained=False) -> Value:
        """One operation: saves inputs, makes its output, saves what is left to save.

        torch's own operations save their inputs before they run; a Python autograd.Function saves all of them after.
        Of `save_after`, "output" is the output itself. Without a `backward`, each parent that needs a gradient gets a
        fresh one of its own size.
        """
        node = None
        if trained or any(parent.node for parent in parents):
            needed = [(parent.values, parent.width) if parent.node else None for parent in parents]

            def fresh(_, *saved):
                return [self.new_gradient(*size) if size else None for size in needed]

            node = self.node([parent.node for parent in parents], backward or fresh)
            self.save(node, *save)
        out = Value(self.new(values, width), values, width, node)
        save_after = [out.buffer if buffer == "output" else buffer for buffer in save_after]
        if node and save_after:
            self.save(node, *save_after)
        self.use(*parents, *save, *save_after)
        return out

    def _run(self, node: Node, gradient: Buffer) -> None:
        """The backward pass: the latest operation first; a gradient that arrives second is added in place."""
        waiting = {node: [gradient]}
        queue = [(-node.order, node)]
        while queue:
            _, node = heapq.heappop(queue)
            gradients = waiting.pop(node)
            if node.backward is None:  # the layer's input
                (self.result,) = gradients
                continue
            saved = [self._unpack(x) if isinstance(x, int) else x for x in node.saved]
            made = node.backward(gradients[0], *saved)
            self.use(gradients, saved, made)
            for edge, arrived in zip(node.edges, made, strict=True):
                if edge is None or arrived is None:
                    continue
                if edge not in waiting:
                    waiting[edge] = []
                    heapq.heappush(queue, (-edge.order, edge))
                if not waiting[edge] or edge.joins:
                    waiting[edge].append(arrived)

    def _unpack(self, number: int) -> Buffer:
        """A saved tensor under checkpointing; the first that is asked for has the layer played again."""
        if self.store is None:
            self.store, self.held = {}, []  # a graph of its own
            fetched = self.new(self.kind.stream, self.kind.residual, INPUTS) if self.kind.offload else None
            self.layer(self, self._input(recorded=False))
            self.use(fetched, self.held)
            self.recording = True
        return self.store.pop(number)
