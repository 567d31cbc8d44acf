"""A run from loading to its second step, block by block: what it takes at its peak, and of what that consists."""

import dataclasses
import functools
from dataclasses import dataclass

from helpers.memory import labels
from helpers.memory.loading import prepared
from helpers.memory.loss import Loss
from helpers.memory.programs import layer_programs
from helpers.memory.runs import RunSpec, gpu_named, kind_of, on_gpu, spec_of, trained_sizes
from helpers.memory.shapes import Shape, shape_of
from helpers.memory.sizes import PAGE, blocks, state_sizes
from helpers.memory.tally import Tally


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

    @property
    def passing_bytes(self) -> int:
        """What is alive at the peak beside weights, adapters, their gradients and the optimizer's states."""
        return sum(size for part, size in self.parts.items() if part not in labels.STAYING)

    def held_bytes(self, gpu: str) -> int:
        """What a run holds of a GPU at its peak, as `nvidia-smi` shows it: what torch reserves, and the CUDA context."""
        return self.peak_reserved + gpu_named(gpu).context_bytes


def predict(config, spec, gpu: str = "h200") -> Prediction:
    """Predict the memory of a fine-tuning run, in bytes, from the model's configuration and the run's settings.

    `config`: a transformers config, a dictionary of its keys, a local folder or a hub id. `spec`: a RunSpec or a
    dictionary of its fields. `gpu`: a key of GPUS; it decides the cuBLAS workspace, and a T4 has no flash attention.
    Full sequences are assumed: padding only makes less. Raises CannotPredict for what cannot be predicted.
    """
    found = _replayed(shape_of(config), on_gpu(gpu, spec_of(spec)), gpu)
    return dataclasses.replace(found, parts=dict(found.parts))


@functools.lru_cache(maxsize=512)
def _replayed(shape: Shape, spec: RunSpec, gpu: str) -> Prediction:
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
    return Prediction(
        after_load=PAGE * after_load,
        before_training=PAGE * loaded.allocated,
        peak_allocated=PAGE * heap.peak,
        peak_reserved=PAGE * heap.peak_reserved,
        parts={label: heap.at_peak[label] for label in labels.LABELS if heap.at_peak.get(label)},
        moment=heap.moment_of_peak,
        notes=tuple(note for note, applies in notes.items() if applies),
    )


def least_peak(shape: Shape, spec: RunSpec, gpu: str) -> int:
    """Bytes that the run takes at least: the same two steps, with no block larger than what it holds."""
    heap = Tally(prepared(shape, spec)[0].allocated)
    train(heap, shape, spec, gpu)
    return PAGE * heap.peak


def train(heap: Tally, shape: Shape, spec: RunSpec, gpu: str) -> None:
    """Two steps: the first makes cuBLAS's workspaces and the optimizer's states, the second finds them there."""
    step, (in_layer, outside) = Step(heap, shape, spec), trained_sizes(shape, spec)
    in_layers = in_layer * shape.layers
    for number in range(2):
        gradients = step.play(gpu_named(gpu).workspace_bytes if number == 0 else 0)
        heap.moment = "optimizer step"
        if number == 0:
            for size in _states(in_layers, outside, spec.optimizer, spec.trained):
                heap.take(labels.STATES, size)
        if spec.optimizer == "adamw_torch":  # torch `_multi_tensor_adam` makes a square root of each second moment
            heap.borrow(labels.STEPPING, *(spec.trained * n for n in (*in_layers, *outside)))
        heap.give(*gradients)


def _states(in_layers: tuple, outside: tuple, optimizer: str, width: int) -> list[int]:
    """Bytes of the optimizer's states, in its order: those of the embedding, of the layers, of what is left.

    transformers `trainer.py create_optimizer` has an 8-bit optimizer keep the embedding's states in 32 bits.
    """
    wide = optimizer.replace("8bit", "32bit")
    ordered = ((outside[:1], wide), (in_layers, optimizer), (outside[1:], optimizer))
    return [size for numbers, name in ordered for n in numbers for size in state_sizes(n, name, width)]


class Step:
    """One training step on a heap."""

    def __init__(self, heap: Tally, shape: Shape, spec: RunSpec):
        self.heap, self.shape, self.spec, self.kind = heap, shape, spec, kind_of(shape, spec)
        every = spec.checkpoint_every
        self.checkpointed = [bool(every) and i % every == 0 for i in range(shape.layers)]
        outputs = [labels.INPUTS if follows else labels.KEPT for follows in self.checkpointed[1:]] + [labels.FINAL]
        firsts = [not every and not self.kind.full] + [False] * (shape.layers - 1)
        self.layers = [
            layer_programs(self.kind, *each) for each in zip(self.checkpointed, firsts, outputs, strict=True)
        ]

    def play(self, workspace: int) -> list:
        """One step up to the optimizer's; the gradients of weights. `workspace`: bytes, 0 where cuBLAS has them already."""
        heap, kind = self.heap, self.kind
        heap.moment = "forward pass of layer 0"
        tables = heap.take(labels.INPUT_IDS, _tables(self.shape, self.spec))
        embedded = heap.take(labels.INPUTS if self.checkpointed[0] else labels.KEPT, kind.residual * kind.stream)
        if workspace:
            heap.take(labels.WORKSPACES, workspace)
        inputs, held, casts = self._forward(embedded)
        loss = Loss(heap, kind, workspace)
        gradient = loss.play(inputs.pop(), casts, self.spec.trl_loss)
        gradient, gradients = self._backward(gradient, inputs, held)
        heap.moment = "backward pass of the embedding"
        if self.checkpointed[0]:
            heap.give(embedded)
        if kind.full:
            table = heap.take(labels.WEIGHT_GRADIENTS, kind.residual * self.shape.vocab * self.shape.hidden)
            if partial := _embedding_scratch(self.shape, kind.tokens):
                heap.borrow(labels.WEIGHT_GRADIENTS, partial)
            if self.shape.tied:  # added to the head's
                heap.give(table)
            else:
                gradients.append(table)
        if gradient is not None:
            heap.give(gradient)
        heap.give(tables)
        return loss.gradients + gradients

    def _forward(self, embedded):
        """All layers: (their inputs and the last one's output, each one's blocks by slot, autocast's copies)."""
        inputs, held, casts = [embedded], [], []
        for i, layer in enumerate(self.layers):
            self.heap.moment = f"forward pass of layer {i}"
            own = {layer.tape.source.made: inputs[i]}  # under checkpointing it has no number, and is not played
            self.heap.play(layer.forward, own)
            casts += [own[slot] for slot in layer.casts]
            # Of what is offloaded, the embedding's output stays: gradients are asked of it.
            if self.checkpointed[i] and self.kind.offload and i:
                self.heap.give(inputs[i])
            inputs.append(own[layer.tape.out.made])
            held.append(own)
        return inputs, held, casts

    def _backward(self, gradient, inputs: list, held: list):
        """All layers, the last one first: (the gradient of the embedding's output or None, gradients of weights)."""
        gradients = []
        for i in reversed(range(len(self.layers))):
            tape, own, again = self.layers[i].tape, held[i], " (recomputed)" if self.checkpointed[i] else ""
            self.heap.moment = f"backward pass of layer {i}{again}"
            own[tape.gradient.made] = gradient
            self.heap.play(self.layers[i].backward, own)
            gradient = own[tape.result.made] if tape.result else None
            gradients += [own[x.made] for x in tape.gradients if x.made in own]
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
