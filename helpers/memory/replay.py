"""A run from loading to its second step, block by block: what it takes at its peak, and of what that consists."""

import functools
from dataclasses import dataclass

from helpers.memory import labels
from helpers.memory.loading import prepared
from helpers.memory.loss import Loss
from helpers.memory.programs import layer_programs
from helpers.memory.runs import RunSpec, gpu_named, kind_of, trained_sizes
from helpers.memory.shapes import Shape
from helpers.memory.shares import whole
from helpers.memory.sizes import PAGE, blocks, state_sizes
from helpers.memory.tally import Tally

SPARE = 0.01  # of a GPU, which every run that fits leaves free: as much as predicted peaks of measured runs were off


@dataclass(frozen=True)
class Prediction:
    """What a run will take, in bytes as torch counts them (`torch.cuda.max_memory_allocated` and its siblings).

    `parts` is what is alive at the peak, by what it is for (helpers/memory/labels.py): it adds up to `peak_allocated`.
    `moment` says when the peak is. Outside these counts is the CUDA context (see `fits`).
    """

    after_load: int
    before_training: int
    peak_allocated: int
    peak_reserved: int
    parts: dict[str, int]
    moment: str
    notes: tuple[str, ...] = ()  # what this prediction leaves out or assumes
    each: tuple["Prediction", ...] = ()  # of a run on several GPUs, that of each; then this is the fullest one's
    layers: tuple[int, ...] = ()  # of a model that is split, how many lie on each GPU
    whole_bytes: int = 0  # of divided weights: all of the model, which each GPU quantizes before it keeps its part

    @property
    def passing_bytes(self) -> int:
        """What is alive at the peak beside weights, adapters, their gradients and the optimizer's states."""
        return sum(size for part, size in self.parts.items() if part not in labels.STAYING)

    def held_bytes(self, gpu: str) -> int:
        """What a run holds of a GPU at its peak, as `nvidia-smi` shows it: what torch reserves, and the CUDA context."""
        return self.peak_reserved + gpu_named(gpu).context_bytes

    def most_bytes(self, gpu: str) -> int:
        """What it holds at most, be it at the peak of training or while the model is loaded."""
        return max(self.peak_reserved, self.whole_bytes) + gpu_named(gpu).context_bytes

    def why_not_loaded(self, gpu: str, total_bytes: float) -> str:
        """Why a run does not fit whose training alone would, in words; "" where that is not so."""
        if not self.held_bytes(gpu) <= (1 - SPARE) * total_bytes < self.most_bytes(gpu):
            return ""
        return f"each GPU quantizes all of the model, {self.whole_bytes / 1e9:.2f} GB, before it keeps its part"


@functools.lru_cache(maxsize=512)
def replayed(shape: Shape, spec: RunSpec, gpu: str) -> Prediction:
    """The prediction, from two steps played in an allocator."""
    loaded, after_load = prepared(shape, spec)
    heap = loaded.copy()
    train(heap, shape, spec, gpu)
    notes = {
        f"{shape.model_type} is predicted as a Llama of the same sizes": not shape.described,
        "int8: outlier columns, which depend on the activations' values, come on top": spec.quant_type == "int8",
        "trl_loss 'full' is TRL's before 1.15: 1 to 5% above public runs of TRL 0.13; none other was compared": (
            spec.trl_loss == "full"
        ),
    }
    return prediction(after_load, loaded.allocated, heap, tuple(note for note, applies in notes.items() if applies))


def prediction(after_load: int, before: int, heap, notes: tuple = ()) -> Prediction:
    """What a heap saw of a run, and before it, in pages, as a Prediction."""
    return Prediction(
        after_load=PAGE * after_load,
        before_training=PAGE * before,
        peak_allocated=PAGE * heap.peak,
        peak_reserved=PAGE * heap.peak_reserved,
        parts={label: heap.at_peak[label] for label in labels.LABELS if heap.at_peak.get(label)},
        moment=heap.moment_of_peak,
        notes=notes,
    )


def least_peak(shape: Shape, spec: RunSpec, gpu: str) -> int:
    """Bytes that the run takes at least: the same two steps, with no block larger than what it holds."""
    heap = Tally(prepared(shape, spec)[0].allocated)
    train(heap, shape, spec, gpu)
    return PAGE * heap.peak


def train(heap: Tally, shape: Shape, spec: RunSpec, gpu: str) -> None:
    """Two steps on one GPU: the first makes cuBLAS's workspaces and the optimizer's states, the second finds them there."""
    train_on([heap], [whole(shape)], shape, spec, gpu)


def train_on(heaps: list, shares, shape: Shape, spec: RunSpec, gpu: str) -> None:
    """`train`, on the GPUs that have these shares of the model."""
    play_steps(Step(heaps, shares, shape, spec), gpu)


def play_steps(step: "Step", gpu: str, processes: int = 1) -> None:
    """Two steps. Where weights are divided among processes, each has its part of what the optimizer keeps."""
    heaps, shares, shape, spec = step.heaps, step.shares, step.shape, step.spec
    (in_layer, outside) = trained_sizes(shape, spec)
    in_layer = tuple(-(-n // processes) for n in in_layer)
    for number in range(2):
        gradients = step.play(gpu_named(gpu).workspace_bytes if number == 0 else 0)
        for heap, share, made in zip(heaps, shares, gradients, strict=True):
            heap.moment = "optimizer step"
            in_layers = in_layer * share.layers
            others = outside[: share.embedding] + outside[1:] * share.norm
            if number == 0:
                for size in _states(in_layers, others, spec.optimizer, spec.trained):
                    heap.take(labels.STATES, size)
            if spec.optimizer == "adamw_torch":  # torch `_multi_tensor_adam` makes a square root of each second moment
                heap.borrow(labels.STEPPING, *(spec.trained * n for n in (*in_layers, *others)))
            heap.give(*made)


def _states(in_layers: tuple, outside: tuple, optimizer: str, width: int) -> list[int]:
    """Bytes of the optimizer's states, in its order: those of the embedding, of the layers, of what is left.

    transformers `trainer.py create_optimizer` has an 8-bit optimizer keep the embedding's states in 32 bits.
    """
    wide = optimizer.replace("8bit", "32bit")
    ordered = ((outside[:1], wide), (in_layers, optimizer), (outside[1:], optimizer))
    return [size for numbers, name in ordered for n in numbers for size in state_sizes(n, name, width)]


class Step:
    """One training step on the heaps of the GPUs that have these shares of the model; on one, most often.

    Where a layer's GPU is another than that before it, accelerate's hooks copy what comes to it (`hooks.py AlignDevicesHook`),
    and autograd its gradient on the way back. For each layer of a later GPU they copy the rotary tables and the positions,
    too, and checkpointing keeps these.
    """

    def __init__(self, heaps: list, shares, shape: Shape, spec: RunSpec):
        self.heaps, self.shares = heaps, shares
        self.on = [gpu for gpu, share in enumerate(shares) for _ in range(share.layers)]  # of each layer
        self.shape, self.spec, self.kind = shape, spec, kind_of(shape, spec)
        every = spec.checkpoint_every
        self.checkpointed = [bool(every) and i % every == 0 for i in range(shape.layers)]
        outputs = [labels.INPUTS if follows else labels.KEPT for follows in self.checkpointed[1:]] + [labels.FINAL]
        firsts = [not every and not self.kind.full] + [False] * (shape.layers - 1)
        self.layers = [
            layer_programs(self.kind, *each) for each in zip(self.checkpointed, firsts, outputs, strict=True)
        ]
        self.border = [i > 0 and self.on[i] != self.on[i - 1] for i in range(shape.layers)]

    def play(self, workspace: int) -> list[list]:
        """One step up to the optimizer's; each GPU's gradients of weights.

        `workspace`: bytes, 0 where cuBLAS has them already.
        """
        first, kind = self.heaps[0], self.kind
        first.moment = "forward pass of layer 0"
        gradients: list[list] = [[] for _ in self.heaps]
        tables = first.take(labels.INPUT_IDS, _tables(self.shape, self.spec))
        self.meet("embedding")
        embedded = first.take(labels.INPUTS if self.checkpointed[0] else labels.KEPT, kind.residual * kind.stream)
        self.leave("embedding")
        if workspace:
            for heap in self.heaps:
                heap.take(labels.WORKSPACES, workspace)
        copies = [heap.take(labels.INPUT_IDS, self._rotary(share)) for heap, share in self._later()]
        inputs, held, casts = self._forward(embedded)
        at = 0 if self.shape.tied else len(self.heaps) - 1  # a tied head lies with the embedding
        for place, heap in enumerate(self.heaps):
            if place != at:
                heap.give(*casts[place])
                if workspace:
                    heap.take(labels.WORKSPACES, workspace)
        self.meet("head")
        gradient, made = self._loss(at, inputs.pop(), casts[at], workspace)
        self.leave("head")
        gradients[at] += made
        gradient = self._backward(gradient, inputs, held, gradients)
        for (heap, _), copy in zip(self._later(), copies, strict=True):
            heap.give(copy)
        first.moment = "backward pass of the embedding"
        self.meet("embedding", back=True)
        if self.checkpointed[0]:
            first.give(embedded)
        if kind.full:
            table = first.take(labels.WEIGHT_GRADIENTS, kind.residual * self.shape.vocab * self.shape.hidden)
            if partial := _embedding_scratch(self.shape, kind.tokens):
                first.borrow(labels.WEIGHT_GRADIENTS, partial)
            if self.shape.tied:  # added to the head's
                first.give(table)
            else:
                gradients[0].append(table)
        if gradient is not None:
            first.give(gradient)
        first.give(tables)
        self.leave("embedding", back=True)
        return gradients

    def _loss(self, at: int, hidden, casts: list, workspace: int) -> tuple:
        """The loss on the GPU that has the head: (the gradient of the last layer's output, gradients of weights).

        Where that is not the last layer's GPU, the norm's float32 input stays there, and what it gives is copied; the norm's
        passing tensors are counted with the head all the same.
        """
        head, last, size = self.heaps[at], self.heaps[-1], self.kind.residual * self.kind.stream
        loss = Loss(head, self.kind, workspace)
        if head is last:
            return loss.play(hidden, casts, self.spec.trl_loss), loss.gradients
        last.moment = "loss, forward"
        saved = last.replace(hidden, labels.FINAL, 4 * self.kind.stream)
        gradient = loss.play(head.take(labels.FINAL, size), casts, self.spec.trl_loss)
        last.moment = "backward pass of the final norm"
        arrived = last.take(labels.GRADIENTS, size)
        head.give(gradient)
        last.borrow(labels.GRADIENTS, *(4 * self.kind.stream,) * 4)
        last.give(saved)
        return arrived, loss.gradients

    def meet(self, what, back: bool = False) -> None:
        """Called before a layer (its number), the embedding or the head is needed, and again on the way back."""

    def leave(self, what, back: bool = False) -> None:
        """Called when it is done with."""

    def _later(self):
        """(heap, share) of each GPU but the first."""
        return list(zip(self.heaps, self.shares, strict=True))[1:]

    def _rotary(self, share) -> int:
        """Bytes of the copies of cos, sin and positions that a later GPU's layers have."""
        table = self.spec.residual * self.spec.seq_len * self.shape.head_dim
        return share.layers * blocks(table, table, 8 * self.spec.seq_len)

    def _forward(self, embedded):
        """All layers: (their inputs and the last one's output, each one's blocks by slot, autocast's copies on each GPU)."""
        inputs, held, casts = [embedded], [], [[] for _ in self.heaps]
        for i, layer in enumerate(self.layers):
            heap = self.heaps[self.on[i]]
            heap.moment = f"forward pass of layer {i}"
            if self.border[i]:
                copy = heap.take(labels.INPUTS, self.kind.residual * self.kind.stream)
                self.heaps[self.on[i - 1]].give(inputs[i])
                inputs[i] = copy
            own = {layer.tape.source.made: inputs[i]}  # under checkpointing it has no number, and is not played
            self.meet(i)
            heap.play(layer.forward, own)
            self.leave(i)
            casts[self.on[i]] += [own[slot] for slot in layer.casts]
            # Of what is offloaded, the embedding's output stays: gradients are asked of it.
            if self.checkpointed[i] and self.kind.offload and i:
                heap.give(inputs[i])
            inputs.append(own[layer.tape.out.made])
            held.append(own)
        return inputs, held, casts

    def _backward(self, gradient, inputs: list, held: list, gradients: list[list]):
        """All layers, the last one first; the gradient of the embedding's output or None. Adds to each GPU's gradients."""
        for i in reversed(range(len(self.layers))):
            tape, own, again = self.layers[i].tape, held[i], " (recomputed)" if self.checkpointed[i] else ""
            heap = self.heaps[self.on[i]]
            heap.moment = f"backward pass of layer {i}{again}"
            own[tape.gradient.made] = gradient
            self.meet(i, back=True)
            heap.play(self.layers[i].backward, own)
            self.leave(i, back=True)
            gradient = own[tape.result.made] if tape.result else None
            gradients[self.on[i]] += [own[x.made] for x in tape.gradients if x.made in own]
            if self.border[i]:
                arrived = self.heaps[self.on[i - 1]].take(labels.GRADIENTS, self.kind.residual * self.kind.stream)
                heap.give(gradient)
                gradient = arrived
            if self.checkpointed[i] and i and not self.kind.offload:
                heap.give(inputs[i])
        return gradient


def _tables(shape: Shape, spec: RunSpec) -> int:
    """Bytes made once a forward pass: ids, labels and padding mask (int64), cos and sin, an attention mask if needed."""
    tokens, length = spec.batch_size * spec.seq_len, spec.seq_len
    size = blocks(*(8 * tokens,) * 3, *(spec.residual * length * shape.head_dim,) * 2)
    if spec.attention == "eager":
        size += (2 if shape.gemma else 1) * blocks(spec.residual * tokens * length)
    elif shape.window is not None and length >= shape.window:
        size += blocks(length * length)
    return size


def _embedding_scratch(shape: Shape, tokens: int) -> int:
    """Bytes of partial sums in the embedding's backward pass; none up to 3,072 tokens.

    torch `aten/src/ATen/native/cuda/Embedding.cu` and `EmbeddingBackwardKernel.cu`: a float32 row for each distinct
    token at most, and one more for each ten tokens.
    """
    return 4 * shape.hidden * (tokens // 10 + min(tokens, shape.vocab)) if tokens > 3072 else 0
