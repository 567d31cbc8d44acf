"""A run from loading to its second step, block by block: what it takes at its peak, and of what that consists."""

import dataclasses
import functools
from dataclasses import dataclass

from helpers.memory import layers, terms
from helpers.memory.allocator import PAGE, Program, Tally
from helpers.memory.loading import prepared, until_training
from helpers.memory.loss import Loss
from helpers.memory.runs import GPUS, Kind, RunSpec, gpu_named, kind_of, on_gpu, spec_of, trained_sizes
from helpers.memory.shapes import KNOWN, Shape, shape_of
from helpers.memory.terms import CASTS, INPUTS, KEPT, WIDTH, blocks, state_sizes

LEFT_OUT = 4096  # bytes: smaller tensors of a layer are not played


@dataclass(frozen=True)
class Prediction:
    """What a run will take, in bytes as torch counts them (`torch.cuda.max_memory_allocated` and its siblings).

    `parts` is what is alive at the peak, by what it is for (helpers/memory/terms.py): it adds up to `peak_allocated`.
    `moment` says when the peak is. Outside these counts is the CUDA context (see `fits`).
    """

    after_load: int
    before_training: int
    peak_allocated: int
    peak_reserved: int
    parts: dict[str, int]
    moment: str
    notes: tuple[str, ...] = ()  # what this prediction leaves out or assumes

    @property
    def passing_bytes(self) -> int:
        """What is alive at the peak beside weights, adapters, their gradients and the optimizer's states."""
        return sum(size for part, size in self.parts.items() if part not in terms.STAYING)

    def held_bytes(self, gpu: str) -> int:
        """What a run holds of a GPU at its peak, as `nvidia-smi` shows it: what torch reserves, and the CUDA context."""
        return self.peak_reserved + gpu_named(gpu).context_bytes


def predict(config, spec, gpu: str = "h200") -> Prediction:
    """Predict the memory of a fine-tuning run, in bytes, from the model's configuration and the run's settings.

    `config`: a transformers config, a dictionary of its keys, a local folder or a hub id. `spec`: a RunSpec or a
    dictionary of its fields. `gpu`: a key of GPUS; it decides the cuBLAS workspace, and a T4 has no flash attention.
    Full sequences are assumed: padding only makes less. Raises CannotPredict for what cannot be predicted.
    """
    shape, spec = shape_of(config), on_gpu(gpu, spec_of(spec))
    found = replayed(shape, spec, gpu)
    return dataclasses.replace(found, parts=dict(found.parts))


@functools.lru_cache(maxsize=512)
def replayed(shape: Shape, spec: RunSpec, gpu: str) -> Prediction:
    """The prediction, from two steps played in an allocator."""
    loaded, after_load = prepared(shape, until_training(spec))
    heap = loaded.copy()
    train(heap, shape, spec, GPUS[gpu].workspace_bytes)
    return Prediction(
        after_load=PAGE * after_load,
        before_training=PAGE * loaded.allocated,
        peak_allocated=PAGE * heap.peak,
        peak_reserved=PAGE * heap.peak_reserved,
        parts={label: heap.at_peak[label] for label in terms.LABELS if heap.at_peak.get(label)},
        moment=heap.moment_of_peak,
        notes=_notes(shape, spec),
    )


def least_peak(shape: Shape, spec: RunSpec, gpu: str) -> int:
    """Bytes that the run takes at least: the same two steps, with no block larger than what it holds."""
    heap = Tally(prepared(shape, until_training(spec))[0].allocated)
    train(heap, shape, spec, gpu_named(gpu).workspace_bytes)
    return PAGE * heap.peak


def _notes(shape: Shape, spec: RunSpec) -> tuple[str, ...]:
    notes = []
    if shape.model_type not in KNOWN:
        notes.append(f"{shape.model_type} is predicted as a Llama of the same sizes")
    if spec.quant_type == "int8":
        notes.append("int8: outlier columns, which depend on the activations' values, come on top")
    if spec.trl_loss == "full":
        notes.append(
            "trl_loss 'full' is TRL's before 1.15: 1 to 5% above public runs of TRL 0.13; none other was compared"
        )
    return tuple(notes)


def train(heap, shape: Shape, spec: RunSpec, workspace: int) -> None:
    """Two steps: the first makes the optimizer's states, the second finds them there."""
    step, width = Step(heap, shape, spec), _trained_width(spec)
    layer, outside = trained_sizes(shape, spec)
    states = _states_of(layer, outside, shape.layers, spec.optimizer, width)
    for number in range(2):
        gradients = step.play(workspace if number == 0 else 0)
        heap.moment = "optimizer step"
        if number == 0:
            heap.play(states, [None] * len(states.pages))
        if spec.optimizer == "adamw_torch":  # torch `_multi_tensor_adam` makes a square root of each second moment
            heap.give(*heap.take(terms.STEPPING, *(width * n for n in (*layer * shape.layers, *outside))))
        heap.give(*gradients)


@functools.lru_cache(maxsize=64)
def _states_of(layer: tuple, outside: tuple, layers: int, optimizer: str, width: int) -> Program:
    """The optimizer's states, in its order: those of the embedding, of the layers, of what is left.

    transformers `trainer.py create_optimizer` has an 8-bit optimizer keep the embedding's states in 32 bits.
    """
    wide = optimizer.replace("8bit", "32bit")
    ordered = ((outside[:1], wide), (layer * layers, optimizer), (outside[1:], optimizer))
    sizes = [size for numbers, name in ordered for n in numbers for size in state_sizes(n, name, width)]
    program = Program(len(sizes))
    for slot, size in enumerate(sizes):
        program.take(slot, size, terms.STATES)
    return program


def _trained_width(spec: RunSpec) -> int:
    """Bytes a value of what is trained: the adapters, or without them the model itself."""
    return WIDTH[spec.load_dtype if spec.rank is None else spec.adapter_dtype or "float32"]


@dataclass(frozen=True)
class Passes:
    """A layer's two programs over the same slots, and the slots in which blocks come and go."""

    forward: Program
    backward: Program
    source: int | None  # None under checkpointing, where it stays with the caller
    out: int
    casts: list[int]  # autocast's copies, until the forward pass of all layers ends
    gradient: int
    result: int | None
    gradients: list[int]  # of weights


@functools.lru_cache(maxsize=1024)
def passes(kind: Kind, checkpoint: bool, first: bool, out_label: str) -> Passes:
    """A layer as programs. Its input and its output's gradient are given to it; its output gets a label of its own."""
    played = layers.play(kind, checkpoint, first)
    buffers, out, begun = played.buffers, played.out.made, played.forward
    given = {played.gradient.made} | (set() if checkpoint else {played.source.made})
    lasting = {out} | {x.made for x in (*played.gradients, played.result) if x}
    tracked = {x.made for x in buffers if x.size >= LEFT_OUT} | given | {out}
    goes, casts = tracked - lasting, []
    ending: dict[int | None, list] = {}
    for x in buffers:
        if x.made in goes:
            ending.setdefault(x.last, []).append(x.made)
    forward = Program(len(buffers))
    backward = Program(len(buffers), sharing=forward)
    for now, x in enumerate(buffers):
        program = forward if now < begun else backward
        if now in given:
            program.expect(now, x.size)
        elif now in tracked:
            kept = x.label == terms.ACTIVATIONS and now < begun <= x.last
            program.take(now, x.size, out_label if now == out else KEPT if kept else x.label)
        for gone in ending.get(now, ()):
            if program is forward and buffers[gone].label == CASTS:
                casts.append(gone)
            else:
                program.give(gone)
    source = None if checkpoint else played.source.made
    result = played.result.made if played.result else None
    gradients = [x.made for x in played.gradients if x.made in tracked]
    return Passes(forward, backward, source, out, casts, played.gradient.made, result, gradients)


class Step:
    """One training step on a heap."""

    def __init__(self, heap, shape: Shape, spec: RunSpec):
        self.heap, self.shape, self.spec, self.kind = heap, shape, spec, kind_of(shape, spec)
        self.every, last = spec.checkpoint_every, shape.layers - 1
        self.checkpointed = [bool(self.every) and i % self.every == 0 for i in range(shape.layers)]
        labels = [INPUTS if follows else KEPT for follows in self.checkpointed[1:]] + [terms.FINAL]
        self.passes = [
            passes(self.kind, self.checkpointed[i], i == 0 and not self.every and not self.kind.full, labels[i])
            for i in range(last + 1)
        ]

    def play(self, workspace: int) -> list:
        """One step up to the optimizer's; the gradients of weights. `workspace`: bytes, 0 where cuBLAS has them already."""
        heap = self.heap
        heap.moment = "forward pass of layer 0"
        tables = heap.take(terms.INPUT_IDS, _tables(self.shape, self.spec))
        (embedded,) = heap.take(INPUTS if self.every else KEPT, self.kind.residual * self.kind.stream)
        if workspace:
            heap.take(terms.WORKSPACES, workspace)
        out, inputs, handles, casts = self._forward(embedded)
        loss = Loss(heap, self.kind, self.spec, workspace)
        gradient = loss.play(out, casts)
        gradient, gradients = self._backward(gradient, inputs, handles)
        gradients = loss.gradients + gradients
        heap.moment = "backward pass of the embedding"
        if self.every:
            heap.give(embedded)
        if self.kind.full:
            table = heap.take(terms.WEIGHT_GRADIENTS, self.kind.residual * self.shape.vocab * self.shape.hidden)
            if partial := _embedding_scratch(self.shape, self.kind.tokens):
                heap.give(*heap.take(terms.WEIGHT_GRADIENTS, partial))
            if self.shape.tied:  # added to the head's
                heap.give(*table)
            else:
                gradients += table
        if gradient is not None:
            heap.give(gradient)
        heap.give(*tables)
        return gradients

    def _forward(self, out):
        """All layers: (the last one's output, each one's input, each one's blocks, autocast's copies)."""
        inputs, handles, casts = [], [], []
        for i, layer in enumerate(self.passes):
            self.heap.moment = f"forward pass of layer {i}"
            held = [None] * len(layer.forward.pages)
            inputs.append(out)
            if layer.source is not None:
                held[layer.source] = out
            self.heap.play(layer.forward, held)
            casts += [held[slot] for slot in layer.casts]
            if (
                self.checkpointed[i] and self.kind.offload and i
            ):  # the embedding's output stays: gradients are asked of it
                self.heap.give(inputs[i])
            out = held[layer.out]
            handles.append(held)
        return out, inputs, handles, casts

    def _backward(self, gradient, inputs: list, handles: list):
        """All layers, the last one first: (the gradient of the embedding's output or None, gradients of weights)."""
        gradients = []
        for i in reversed(range(len(self.passes))):
            layer, held, again = self.passes[i], handles[i], " (recomputed)" if self.checkpointed[i] else ""
            self.heap.moment = f"backward pass of layer {i}{again}"
            held[layer.gradient] = gradient
            self.heap.play(layer.backward, held)
            gradient = None if layer.result is None else held[layer.result]
            gradients += [held[slot] for slot in layer.gradients]
            if self.checkpointed[i] and i and not self.kind.offload:
                self.heap.give(inputs[i])
        return gradient, gradients


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
