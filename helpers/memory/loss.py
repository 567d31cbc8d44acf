"""Final norm, head and loss, forward and backward, on a heap.

The tiled loss is that of trl 1.16, `kernels/chunked_logprob.py`: logits exist one tile at a time, at most 4,096 tokens x
32,768 entries of the vocabulary in the compute dtype, in the forward pass and again in the backward pass; the head's
slice is cast when it is float32; the gradients of hidden states and head are summed in float32.
"""

from helpers.memory.labels import FINAL, GRADIENTS, LOGITS, WEIGHT_GRADIENTS, WORKSPACES
from helpers.memory.runs import Kind
from helpers.memory.tally import Tally

TOKEN_TILE, VOCABULARY_TILE = 4096, 32768  # trl: kernels/chunked_logprob.py, trainer/utils.py
# Bytes a logit of transformers' own loss (`loss/loss_utils.py`), beside the one in the compute dtype: the log-softmax, its
# gradient and that of the float32 copy, all float32. Up to 4.48 the forward pass came to as many (transformers#35646).
FULL_WIDTHS = (4, 4, 4)


class Loss:
    """The loss of one step. `scored` tokens are predicted, all but the first of a row.

    `gradients` are those of weights (the head's), and outlive it. `workspace`: bytes, 0 where cuBLAS has them already.
    """

    def __init__(self, heap: Tally, kind: Kind, workspace: int):
        self.heap, self.kind, self.workspace = heap, kind, workspace
        self.scored = kind.tokens - kind.tokens // kind.length
        self.narrow, self.wide = (width * kind.stream for width in (kind.residual, 4))
        self.gradients: list = []

    def play(self, hidden, casts: list, trl_loss: str):
        """From the last layer's output to its gradient; gives both the output and autocast's copies (`casts`)."""
        heap, kind = self.heap, self.kind
        heap.moment = "loss, forward"
        saved, output = self._norm(hidden)
        picked = heap.take(FINAL, kind.residual * self.scored * kind.shape.hidden)
        if trl_loss == "full":
            heap.moment = "loss, backward"  # the last of these is a gradient
            heap.borrow(LOGITS, *(width * kind.tokens * kind.shape.vocab for width in (kind.compute, *FULL_WIDTHS)))
        else:
            heap.borrow(LOGITS, *tile(kind, self.scored, backward=False))
        heap.give(output, *casts)
        heap.moment = "loss, backward"
        gradient = self._backward()
        heap.give(picked)
        heap.moment = "backward pass of the final norm"
        return self._norm_backward(saved, gradient)

    def _norm(self, hidden):
        """The final norm: (what it saves, its output)."""
        heap, kind = self.heap, self.kind
        if kind.liger:
            return hidden, heap.take(FINAL, self.narrow)
        saved = hidden if kind.residual == 4 else heap.replace(hidden, FINAL, self.wide)
        heap.borrow(FINAL, self.wide)  # the square
        normed = heap.take(FINAL, self.wide)
        if kind.residual != 4 and not kind.shape.gemma:
            normed = heap.replace(normed, FINAL, self.narrow)
        return saved, heap.replace(normed, FINAL, self.narrow)

    def _backward(self):
        """The loss's backward pass: the gradient of the hidden states. What returns in 16 bits is made before anything goes.

        Autograd's thread has a cuBLAS workspace of its own, taken for its first product: a tile of logits, made again.
        """
        heap, kind = self.heap, self.kind
        hidden, table = self.scored * kind.shape.hidden, kind.shape.vocab * kind.shape.hidden
        gradient = heap.take(GRADIENTS, 4 * hidden)
        going = [heap.take(WEIGHT_GRADIENTS, 4 * table)] if kind.full else []
        going += [heap.take(LOGITS, size) for size in tile(kind, self.scored, backward=True)]
        if self.workspace:
            heap.take(WORKSPACES, self.workspace)
        if kind.residual != 4:
            going.insert(0, gradient)
            gradient = heap.take(GRADIENTS, kind.residual * hidden)
        if kind.full:
            self.gradients.append(heap.take(WEIGHT_GRADIENTS, kind.residual * table))
        heap.give(*going)
        return gradient

    def _norm_backward(self, saved, gradient):
        """Back through the choice of positions, the shift by one, and the final norm; the last layer's gradient."""
        heap, kind = self.heap, self.kind
        gradient = heap.replace(gradient, GRADIENTS, kind.residual * self.scored * kind.shape.hidden)
        gradient = heap.replace(gradient, GRADIENTS, self.narrow)
        if kind.liger:
            heap.give(saved)
            return gradient
        gradient = heap.replace(gradient, GRADIENTS, self.wide)
        heap.borrow(GRADIENTS, *(self.wide,) * 4)
        heap.give(saved)
        return gradient if kind.residual == 4 else heap.replace(gradient, GRADIENTS, self.narrow)


def tile(kind: Kind, scored: int, backward: bool) -> list[int]:
    """Bytes of the tile of logits, and of the slices cast for it when embeddings and stream are float32.

    In trl's loops a name is bound anew while its old tensor still lives. So two slices exist at once: of the hidden
    states when there is more than one, and of the head in the backward pass, where it has a name.
    """
    rows, vocab = min(scored, TOKEN_TILE), kind.shape.vocab
    logits = rows * VOCABULARY_TILE * kind.compute
    if kind.residual == kind.compute:
        return [logits]
    slices = [rows, min(scored - rows, TOKEN_TILE), min(vocab, VOCABULARY_TILE)]
    if backward and vocab > VOCABULARY_TILE:
        slices.append(min(vocab - VOCABULARY_TILE, VOCABULARY_TILE))
    elif backward and scored > rows:
        slices.append(vocab)
    return [logits, *(number * kind.shape.hidden * kind.compute for number in slices if number)]
