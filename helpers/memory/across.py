"""What a run takes of one GPU or of each of several: `predict`, and the ways in which a training lies on them.

ddp     a process and a copy on each GPU. Beside what one GPU takes, DDP holds flat buffers as large as the gradients
        (torch `csrc/distributed/c10d/reducer.cpp`); while it is set up it sends its copy's weights, 250 MiB at a time
split   one process, layers divided (see `shares` and `replay.Step`)
fsdp2   a process on each GPU and every weight divided (torch `distributed/fsdp/_fully_shard/`): see `Divided`
"""

import dataclasses
import functools
from typing import Any

from helpers.machine import MOST_GPUS
from helpers.memory import labels
from helpers.memory.allocator import Allocator
from helpers.memory.labels import ADAPTERS, CODES, GATHERED, TABLES, WEIGHT_GRADIENTS
from helpers.memory.loading import prepared
from helpers.memory.replay import Prediction, Step, least_peak, play_steps, prediction, replayed, train, train_on
from helpers.memory.runs import RunSpec, on_gpu, spec_of, trained_sizes
from helpers.memory.shapes import CannotPredict, Shape, is_count, shape_of
from helpers.memory.shares import shares_of, whole
from helpers.memory.sizes import MIB, PAGE, layer_arrivals, weight_bytes
from helpers.memory.tally import Tally

WAYS = ("one", "ddp", "split", "fsdp2")


def predict(config, spec, gpu: str = "h200", gpus: int = 1, way: str | None = None, layers=None) -> Prediction:
    """Predict the memory of a fine-tuning run, in bytes, from the model's configuration and the run's settings.

    `config`: a transformers config, a dictionary of its keys, a local folder or a hub id. `spec`: a RunSpec or a
    dictionary of its fields. `gpu`: a key of GPUS; it decides the cuBLAS workspace, and a T4 has no flash attention.
    `gpus`, `way`: on several GPUs, "ddp", "split" or "fsdp2"; the batch is each process's. Then `each` of the result is a
    GPU's own prediction, and the rest is of the fullest. `layers`: of a split, how many lie on each GPU; where they are
    not given, they are chosen so that the fullest GPU takes the least. Full sequences are assumed: padding only makes
    less. Raises CannotPredict for what cannot be predicted.
    """
    way = checked_way(gpus, way, layers)
    shape, spec = shape_of(config), on_gpu(gpu, spec_of(spec))
    if way == "one":
        found = replayed(shape, spec, gpu)
    else:
        found = _several(shape, spec, gpu, gpus, way, tuple(layers) if layers is not None else None)
    return dataclasses.replace(found, parts=dict(found.parts))


def checked_way(gpus: int, way: str | None, layers) -> str:
    """The way, "one" or "ddp" where none is named; CannotPredict for one that does not go with the rest."""
    way = ("one" if gpus == 1 else "ddp") if way is None else way
    if not is_count(gpus) or gpus > MOST_GPUS:
        shown = f"more than {MOST_GPUS}" if is_count(gpus) else repr(gpus)
        raise CannotPredict(f"gpus is {shown}; give a whole number from 1 to {MOST_GPUS}")
    if way not in WAYS or (way == "one") != (gpus == 1):
        raise CannotPredict(f"way is {way!r} with gpus {gpus!r}; one goes with 1, and ddp, split, fsdp2 with 2 or more")
    if layers is not None and way != "split":
        raise CannotPredict(f"layers is {layers!r} with way {way!r}; only a split divides layers")
    if layers is not None and (
        not isinstance(layers, (list, tuple)) or not all(map(is_count, layers)) or len(layers) != gpus
    ):
        raise CannotPredict(
            f"layers is {layers!r} for {gpus} GPUs; each GPU needs at least one, in a list of {gpus} numbers"
        )
    return way


def least_of(shape: Shape, spec: RunSpec, gpu: str, gpus: int = 1, way: str | None = None, layers=None) -> int:
    """Bytes that the fullest GPU takes at least: the same steps, with no block larger than what it holds."""
    way = checked_way(gpus, way, layers)
    if way == "one":
        return least_peak(shape, spec, gpu)
    _refuse(spec, way)
    if way == "split":
        shares = shares_of(shape, tuple(layers))
        heaps = [Tally(prepared(shape, spec, share)[0].allocated) for share in shares]
        train_on(heaps, shares, shape, spec, gpu)
        return PAGE * max(heap.peak for heap in heaps)
    if way == "ddp":
        return least_peak(shape, spec, gpu) + _buckets(shape, spec)
    heap = Tally(_parts(shape, spec, gpus).allocated)
    play_steps(Divided(heap, shape, spec, gpus), gpu, gpus)
    return PAGE * heap.peak


def _refuse(spec: RunSpec, way: str) -> None:
    """CannotPredict for what is not described on several GPUs."""
    if spec.rank is None or spec.quant_type not in ("nf4", "fp4"):
        raise CannotPredict(f"way is {way!r}; several GPUs are predicted for adapters on 4-bit weights alone")
    if spec.padding_free and way != "ddp":
        raise CannotPredict(f"padding_free is True with way {way!r}; it goes with one and with ddp")
    if way == "fsdp2" and not spec.optimizer.startswith("adamw_torch"):
        raise CannotPredict(
            f"optimizer is {spec.optimizer!r} with way 'fsdp2'; bitsandbytes cannot take divided tensors"
        )


@functools.lru_cache(maxsize=256)
def _several(shape: Shape, spec: RunSpec, gpu: str, gpus: int, way: str, layers) -> Prediction:
    _refuse(spec, way)
    if way == "split":
        layers = layers or even_layers(shape, spec, gpu, gpus)
        each = _split(shape, spec, gpu, layers)
    else:
        each = ({"ddp": _copy, "fsdp2": _divided}[way](shape, spec, gpu, gpus),) * gpus
    notes = replayed(shape, spec, gpu).notes
    fullest = max(each, key=lambda one: one.peak_allocated)
    return dataclasses.replace(fullest, each=each, layers=layers or (), notes=notes)


def _split(shape: Shape, spec: RunSpec, gpu: str, layers: tuple[int, ...]) -> tuple[Prediction, ...]:
    shares = shares_of(shape, layers)
    loaded = [prepared(shape, spec, share) for share in shares]
    heaps = [heap.copy() for heap, _ in loaded]
    train_on(heaps, shares, shape, spec, gpu)
    return tuple(prediction(after, heap.allocated, played) for (heap, after), played in zip(loaded, heaps, strict=True))


def even_layers(shape: Shape, spec: RunSpec, gpu: str, gpus: int = 2) -> tuple[int, ...]:
    """How many layers each GPU has where the fullest takes the least: layers wander from the fullest to the emptiest.

    Raises CannotPredict for more GPUs than layers.
    """
    if shape.layers < gpus:
        raise CannotPredict(f"gpus is {gpus}; the model has {shape.layers} layers, and each GPU needs one")
    share, more = divmod(shape.layers, gpus)
    layers = [share + (i >= gpus - more) for i in range(gpus)]

    def peaks(layers) -> list[int]:
        return [one.peak_allocated for one in _split(shape, spec, gpu, tuple(layers))]

    best = peaks(layers)
    for _ in range(shape.layers):
        fullest, emptiest = best.index(max(best)), best.index(min(best))
        tried = layers.copy()
        tried[fullest] -= 1
        tried[emptiest] += 1
        if min(tried) < 1 or max(found := peaks(tried)) >= max(best):
            break
        layers, best = tried, found
    return tuple(layers)


def _copy(shape: Shape, spec: RunSpec, gpu: str, gpus: int) -> Prediction:
    """One of DDP's copies."""
    loaded, after = prepared(shape, spec)
    heap = loaded.copy()
    heap.borrow(TABLES, max(250 * MIB, 2 * shape.vocab * shape.hidden), 250 * MIB)
    heap.take(WEIGHT_GRADIENTS, _buckets(shape, spec))
    train(_from_here(heap), shape, spec, gpu)
    return prediction(after, loaded.allocated, heap)


def _buckets(shape: Shape, spec: RunSpec) -> int:
    """Bytes of the flat buffers that DDP averages gradients in."""
    return spec.trained * sum(trained_sizes(shape, spec)[0]) * shape.layers


def _divided(shape: Shape, spec: RunSpec, gpu: str, gpus: int) -> Prediction:
    """One of FSDP2's processes."""
    heap = _parts(shape, spec, gpus)
    before = heap.allocated
    play_steps(Divided(_from_here(heap), shape, spec, gpus), gpu, gpus)
    return dataclasses.replace(prediction(0, before, heap), whole_bytes=loaded_bytes(shape, spec))


def loaded_bytes(shape: Shape, spec: RunSpec) -> int:
    """Bytes of the whole model, loaded as the run wants it."""
    return sum(weight_bytes(shape, spec.quant_type, spec.double_quant).values())


def _parts(shape: Shape, spec: RunSpec, gpus: int) -> Allocator:
    """A GPU that has its parts of a model that was loaded on the CPU."""
    heap = Allocator()
    table = 2 * shape.vocab * shape.hidden
    sizes = trained_sizes(shape, spec)[0]
    for made in layer_arrivals(shape, spec.quant_type, spec.double_quant) * shape.layers:
        for label, size, stays in made:
            if stays:  # scales hang on the weights, and are not divided
                heap.take(label, -(-size // gpus) if label in (CODES, labels.PLAIN) else size)
    for size in sizes * shape.layers:
        heap.take(ADAPTERS, spec.trained * -(-size // gpus))
    for _ in range(1 if shape.tied else 2):
        heap.borrow(TABLES, table, table)  # moved to the GPU whole, then divided
        heap.take(TABLES, -(-table // gpus))
    return heap


def _from_here(heap: Allocator) -> Allocator:
    """The heap, whose peaks are counted anew."""
    heap.peak, heap.peak_reserved, heap.at_peak = heap.allocated, heap.reserved, heap.parts.copy()
    return heap


class Divided(Step):
    """A step of which every weight is gathered just before it is needed, into a flat buffer and then into tensors.

    Forward, a layer's buffer stays until the next one is gathered; backward, the next one's is there already. The
    embedding is gathered for both; the head, whose weight TRL takes directly, for the loss. A tied table is gathered once, and
    stays. (torch `_fsdp_param_group.py`: `unshard`, `wait_for_unshard`, `_prefetch_unshard`; accelerate 1.15
    `utils/fsdp_utils.py fsdp2_prepare_model`.)
    """

    def __init__(self, heap: Tally, shape: Shape, spec: RunSpec, processes: int):
        super().__init__([heap], [whole(shape)], shape, spec)
        self.heap, self.table = heap, 2 * shape.vocab * shape.hidden
        adapters = spec.trained * sum(trained_sizes(shape, spec)[0])
        packed = sum((x.weights + 1) // 2 + 2 * x.outputs * int(x.bias) for x in shape.linears)
        self.layer = packed + 2 * sum(shape.norms) + adapters
        self.buffer: Any = None
        self.whole: dict[Any, Any] = {}

    def gather(self, size: int) -> None:
        """Into a flat buffer, on a stream of its own."""
        with self.heap.elsewhere():
            self.buffer = self.heap.take(GATHERED, size)

    def scatter(self, what, size: int) -> None:
        """Out of the buffer into tensors; here they are one."""
        self.whole[what] = self.heap.take(GATHERED, size)

    def drop_buffer(self, buffer) -> None:
        if buffer is not None:
            with self.heap.elsewhere():
                self.heap.give(buffer)

    def size_of(self, what) -> int:
        return self.layer if isinstance(what, int) else self.table

    def meet(self, what, back: bool = False) -> None:
        if what in self.whole or (what == "head" and self.shape.tied):
            return
        if what == "head":
            self.scatter(what, self.table)
            return
        before, size = self.buffer, self.size_of(what)
        if back and what != self.shape.layers - 1:  # gathered while the layer above was at work
            self.scatter(what, size)
            self.drop_buffer(before)
            self.buffer = None
        else:
            self.gather(size)
            self.drop_buffer(before)
            self.scatter(what, size)
        if back and isinstance(what, int):
            self.drop_buffer(self.buffer)
            self.buffer = None
            if what or not self.shape.tied:
                self.gather(self.layer if what else self.table)

    def leave(self, what, back: bool = False) -> None:
        if what == "embedding" and self.shape.tied and not back:
            return
        if what in self.whole:
            self.heap.give(self.whole.pop(what))
