"""Final norm, head and loss, forward and backward, on a heap.

The tiled loss is that of trl 1.16, `kernels/chunked_logprob.py`: logits exist one tile at a time, at most 4,096 tokens x
32,768 entries of the vocabulary in the compute dtype, in the forward pass and again in the backward pass; the head's
slice is cast when it is float32; the gradients of hidden states and head are summed in float32.
"""

from helpers.memory.runs import Kind, RunSpec
from helpers.memory.terms import FINAL, GRADIENTS, LOGITS, WEIGHT_GRADIENTS, WORKSPACES

TOKEN_TILE, VOCABULARY_TILE = 4096, 32768  # trl: kernels/chunked_logprob.py, trainer/utils.py
# Bytes a logit of transformers' own loss (`loss/loss_utils.py`), beside the one in the compute dtype: the log-softmax, its
# gradient and that of the float32 copy, all float32. Up to 4.48 the forward pass came to as many (transformers#35646).
FULL_WIDTHS = (4, 4, 4)


class Loss:
    """The loss of one step; `gradients` are those of weights (the head's), and outlive it."""

    def __init__(self, heap, kind: Kind, spec: RunSpec, workspace: int):
        self.heap, self.kind, self.spec, self.workspace = heap, kind, spec, workspace
        self.scored = spec.batch_size * (spec.seq_len - 1)  # tokens: the first of a row is not predicted
        self.gradients: list = []

    def play(self, hidden, casts: list):
        """From the last layer's output to its gradient; gives both the output and autocast's copies (`casts`)."""
        self.heap.moment = "loss, forward"
        saved, output = self._norm(hidden)
        picked = self._stream(FINAL, self.scored)
        self._forward()
        self.heap.give(*output, *casts)
        self.heap.moment = "loss, backward"
        gradient = self._backward(picked)
        self.heap.moment = "backward pass of the final norm"
        return self._norm_backward(saved, gradient)

    def _stream(self, label: str, tokens: int, width: int | None = None) -> list:
        """A block for so many tokens of the residual stream, in its own dtype or in another width."""
        return self.heap.take(label, (width or self.kind.residual) * tokens * self.kind.shape.hidden)

    def _norm(self, hidden):
        """The final norm: (what it saves, its output)."""
        heap, kind, tokens = self.heap, self.kind, self.kind.tokens
        if kind.liger:
            return hidden, self._stream(FINAL, tokens)
        saved = hidden
        if kind.residual != 4:
            (saved,) = self._stream(FINAL, tokens, 4)
            heap.give(hidden)
        heap.give(*self._stream(FINAL, tokens, 4))  # the square
        normed = self._stream(FINAL, tokens, 4)
        if kind.residual != 4 and not kind.shape.gemma:
            narrow = self._stream(FINAL, tokens)
            heap.give(*normed)
            normed = narrow
        output = self._stream(FINAL, tokens)
        heap.give(*normed)
        return saved, output

    def _forward(self) -> None:
        if self.spec.trl_loss == "full":
            self.heap.moment = "loss, backward"  # the last of these is a gradient
            number = self.kind.tokens * self.kind.shape.vocab
            widths = (self.kind.compute, *FULL_WIDTHS)
            self.heap.give(*self.heap.take(LOGITS, *(width * number for width in widths)))
        else:
            self.heap.give(*self.heap.take(LOGITS, *tile(self.kind, self.scored, backward=False)))

    def _backward(self, picked: list) -> list:
        """The loss's backward pass: the gradient of the hidden states. What returns in 16 bits is made before anything goes.

        Autograd's thread has a cuBLAS workspace of its own, taken for its first product: a tile of logits, made again.
        """
        heap, kind = self.heap, self.kind
        summed = gradient = self._stream(GRADIENTS, self.scored, 4)
        table = kind.shape.vocab * kind.shape.hidden
        head = heap.take(WEIGHT_GRADIENTS, 4 * table) if kind.full else []
        tiles = heap.take(LOGITS, *tile(kind, self.scored, backward=True))
        if self.workspace:
            heap.take(WORKSPACES, self.workspace)
        if kind.residual != 4:
            gradient = self._stream(GRADIENTS, self.scored)
        if head:
            self.gradients += heap.take(WEIGHT_GRADIENTS, kind.residual * table)
        heap.give(*(summed if kind.residual != 4 else []), *head, *tiles, *picked)
        return gradient

    def _norm_backward(self, saved, gradient: list):
        """Back through the choice of positions, the shift by one, and the final norm; the last layer's gradient."""
        heap, kind, tokens = self.heap, self.kind, self.kind.tokens
        for number in (self.scored, tokens):
            fresh = self._stream(GRADIENTS, number)
            heap.give(*gradient)
            gradient = fresh
        if kind.liger:
            heap.give(saved)
            return gradient[0]
        wide = self._stream(GRADIENTS, tokens, 4)
        heap.give(*gradient)
        between = [self._stream(GRADIENTS, tokens, 4)[0] for _ in range(4)]
        heap.give(*between)
        heap.give(saved)
        if kind.residual != 4:
            gradient = self._stream(GRADIENTS, tokens)
            heap.give(*wide)
            wide = gradient
        return wide[0]


def tile(kind: Kind, scored: int, backward: bool) -> list[int]:
    """Bytes of the tile of logits, and of the slices cast for it when embeddings and stream are float32.

    In trl's loops a name is bound anew while its old tensor still lives. So two slices exist at once: of the hidden
    states when there is more than one, and of the head in the backward pass, where it has a name.
    """
    rows, compute, shape = min(scored, TOKEN_TILE), kind.compute, kind.shape
    sizes = [rows * VOCABULARY_TILE * compute]
    if kind.residual != compute:
        sizes.append(rows * shape.hidden * compute)
        sizes.append(min(scored - rows, TOKEN_TILE) * shape.hidden * compute)
        sizes.append(min(shape.vocab, VOCABULARY_TILE) * shape.hidden * compute)
        if backward and shape.vocab > VOCABULARY_TILE:
            second = min(shape.vocab - VOCABULARY_TILE, VOCABULARY_TILE)
            sizes.append(second * shape.hidden * compute)
        elif backward and scored > rows:
            sizes.append(shape.vocab * shape.hidden * compute)
    return [size for size in sizes if size]
