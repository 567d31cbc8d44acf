"""The tape on which one decoder layer is played, forward and backward: which tensors are made, how large, and how long they live.

Nothing is computed; only sizes are kept. A tensor's life ends with its last use: `Tape.use` notes one. What Python keeps
alive longer, because a name still holds it, is used once more where that name goes. The order of work is autograd's, and
with checkpointing that of torch `utils/checkpoint.py` (2.11): saved tensors are dropped, and the first that backward asks
for has the layer played again, up to the last tensor that is needed ("early stop").
"""

import heapq
from typing import Any

from helpers.memory.terms import ACTIVATIONS, GRADIENTS, INPUTS


class Buffer:
    """A tensor's storage: `size` in bytes, what it is for, which-th it was made, and after which making it goes."""

    __slots__ = ("size", "label", "made", "last")

    def __init__(self, size: int, label: str, made: int | None):
        self.size, self.label = size, label
        self.made: Any = made  # a number, but for a tensor that is made nowhere in this layer
        self.last: Any = made


class Value:
    """A tensor in play: storage, number of values, bytes a value, and the operation that made it."""

    __slots__ = ("buffer", "values", "width", "node")

    def __init__(self, buffer, values, width, node=None):
        self.buffer, self.values, self.width, self.node = buffer, values, width, node


class Node:
    """One operation in the autograd graph.

    `edges`: the operations that made its inputs. `saved`: buffers, or their numbers under checkpointing.
    `backward(gradient, *saved)` returns a gradient for each edge.
    """

    __slots__ = ("order", "edges", "backward", "outputs", "saved")

    def __init__(self, order, edges, backward, outputs=1):
        self.order, self.edges, self.backward, self.outputs, self.saved = order, edges, backward, outputs, []


class Tape:
    """Plays one layer of the given kind (helpers.memory.runs.Kind); `layer(tape, x)` plays its forward pass.

    `buffers` are all tensors in the order in which they are made; `gradients` those of weights, and `result` that of the
    layer's input: they outlive the layer.
    """

    def __init__(self, kind, layer, checkpoint: bool):
        self.kind, self.layer, self.checkpoint = kind, layer, checkpoint
        self.recording, self.ticks = True, 0
        self.buffers: list[Buffer] = []
        self.gradients: list[Buffer] = []
        self.result: Buffer | None = None
        self.saves = 0  # how many tensors the forward pass saves
        self.store: dict | None = None  # under checkpointing, what playing the layer again has saved, by number
        self.held: list = []  # what the graph holds outside of autograd's saved tensors: it goes with the graph

    # -- making and using

    def new(self, values: int, width: int, label: str = ACTIVATIONS) -> Buffer:
        """A new buffer of so many values of so many bytes each."""
        buffer = Buffer(values * width, label, len(self.buffers) if self.recording else None)
        if self.recording:
            self.buffers.append(buffer)
        return buffer

    def gradient(self, values: int, width: int) -> Buffer:
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

    def source(self) -> Value:
        """The layer's input, which somebody else has made."""
        return Value(
            self.new(self.kind.stream, self.kind.residual), self.kind.stream, self.kind.residual, Node(0, [], None)
        )

    # -- autograd

    def node(self, edges, backward, outputs: int = 1) -> Node:
        self.ticks += 1
        return Node(self.ticks, edges, backward, outputs)

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
                return [self.gradient(*size) if size else None for size in needed]

            node = self.node([parent.node for parent in parents], backward or fresh)
            self.save(node, *save)
        out = Value(self.new(values, width), values, width, node)
        save_after = [out.buffer if buffer == "output" else buffer for buffer in save_after]
        if node and save_after:
            self.save(node, *save_after)
        self.use(*parents, *save, *save_after)
        return out

    def run(self, node: Node, gradient: Buffer) -> None:
        """The backward pass: the latest operation first; a gradient that arrives second is added in place."""
        waiting: dict = {node: gradient}  # of an edge with several outputs, a list
        queue = [(-node.order, node)]
        while queue:
            _, node = heapq.heappop(queue)
            gradient = waiting.pop(node)
            if node.backward is None:  # the layer's input
                self.result = gradient
                continue
            saved = [self._unpack(x) if isinstance(x, int) else x for x in node.saved]
            made = node.backward(gradient, *saved)
            self.use(gradient, saved, made)
            for edge, arrived in zip(node.edges, made, strict=True):
                if edge is None or arrived is None:
                    continue
                if edge.outputs > 1:  # waits for a gradient of each of its outputs
                    waiting.setdefault(edge, []).append(arrived)
                    if len(waiting[edge]) < edge.outputs:
                        continue
                elif edge in waiting:
                    continue
                else:
                    waiting[edge] = arrived
                heapq.heappush(queue, (-edge.order, edge))

    def _unpack(self, number: int) -> Buffer:
        """A saved tensor under checkpointing; the first that is asked for has the layer played again."""
        if self.store is None:
            self.store, self.held = {}, []  # a graph of its own
            fetched = self.new(self.kind.stream, self.kind.residual, INPUTS) if self.kind.offload else None
            self.recording = False
            source = self.source()
            self.recording = True
            self.layer(self, source)
            self.use(fetched, self.held)
            self.recording = True
        return self.store.pop(number)
