"""What fits a GPU, and the fastest setting that does."""

import dataclasses
import itertools
import math
from dataclasses import dataclass

from helpers.machine import GIB
from helpers.memory.across import checked_way, even_layers, least_of, loaded_bytes, predict
from helpers.memory.replay import SPARE, Prediction
from helpers.memory.runs import RunSpec, gpu_named, on_gpu, spec_of
from helpers.memory.shapes import CannotPredict, Shape, shape_of

MARGIN = 0.05  # of a GPU, which a plan's tensors leave free: what a prediction may be off

# A pass over the weights costs as much as 256 tokens, whatever the batch: dequantizing a weight moves 2.5 bytes, a
# token's share of the product takes 2 operations, and on a T4 (320 GB/s, 65 TFLOP/s) as on an H200 (4.8 TB/s,
# 989 TFLOP/s) the one takes as long as 250 to 260 of the other (NVIDIA's data sheets).
PASS_TOKENS = 256
HOST_BYTES_PER_SECOND, OPERATIONS_PER_SECOND = 12e9, 65e12  # a T4 and its PCIe 3.0 x16: what offloading waits for

CHOICES = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "checkpoint_every": (0, 1, 2, 3, 4, 6, 8),
    "checkpoint_offload": (False, True),
    "optimizer": ("paged_adamw_8bit", "paged_adamw_32bit"),
    "upcast_non_quantized": (False,),
}


def fits(prediction: Prediction, gpu: str, total_bytes: float | None = None, margin: float | None = 0.0) -> bool:
    """Whether a run fits a GPU: what torch reserves and the CUDA context leave SPARE of what the GPU reports free.

    `total_bytes`: what it reports (`torch.cuda.get_device_properties(0).total_memory`), GPUS' figure unless given.
    `margin`: the share of it that tensors alone have to leave free, for what a prediction may be off; None is `plan`'s.
    Of a run on several GPUs each has to fit; with divided weights all of the model has to, while it is loaded.
    Raises CannotPredict for an unknown GPU.
    """
    margin = MARGIN if margin is None else margin
    total = gpu_named(gpu).total_bytes if total_bytes is None else total_bytes
    each = prediction.each or (prediction,)
    return all(
        one.most_bytes(gpu) <= (1 - SPARE) * total and one.peak_allocated <= (1 - margin) * total for one in each
    )


class DoesNotFit(CannotPredict):
    """No setting that may be chosen fits the GPU."""


@dataclass(frozen=True)
class Plan:
    """The fastest setting that fits, and why. `cost` is time a token, 1.0 being one forward pass over a large batch.

    `reasons` has a sentence for each setting that was chosen between; `considered` counts the candidates, and `fitting`
    those whose tensors alone leave the margin free.
    """

    spec: RunSpec
    prediction: Prediction
    cost: float
    reasons: dict[str, str]
    considered: int
    fitting: int
    shape: Shape
    room_bytes: float  # what its tensors may take

    def saved(self, other: RunSpec) -> float:
        """The share of time a token that this setting saves over `other`; negative where `other` is faster."""
        return 1 - self.cost / cost_per_token(self.shape, other)


@dataclass(frozen=True)
class Candidate:
    """A setting, its time a token, and the bytes that it takes at the least."""

    spec: RunSpec
    cost: float
    least: int


def cost_per_token(shape: Shape, spec: RunSpec) -> float:
    """Time to train on one token, in forward passes of one token of a large batch: a model of time, not a measurement.

    A forward pass costs 1, backward 1 (2 when every weight is trained, for the weights' own gradients), recomputation
    1 for the share of layers that are recomputed; each pass has PASS_TOKENS of overhead for a batch. Offloading waits
    for two copies of a layer's input between GPU and host.
    """
    share = 0 if not spec.checkpoint_every else -(-shape.layers // spec.checkpoint_every) / shape.layers
    tokens = spec.batch_size * spec.seq_len
    passes = 1 + (2 if spec.rank is None else 1) + share
    weights = sum(linear.weights for linear in shape.linears)
    copies = 2 * 2 * shape.hidden / HOST_BYTES_PER_SECOND / (2 * weights / OPERATIONS_PER_SECOND) * share
    return passes * (1 + PASS_TOKENS / tokens) + (copies if spec.checkpoint_offload else 0)


def plan(
    config, budget_bytes: int, spec=None, choices: dict | None = None, gpu: str = "t4", margin: float = MARGIN,
    gpus: int = 1, way: str | None = None, layers=None,
) -> Plan:  # fmt: skip
    """The fastest setting that fits (see `fits`) and whose tensors leave `margin` of `budget_bytes`, what the GPU reports.

    `spec` (a RunSpec or its fields) holds what is given: rank, length, dtypes, ... `choices` maps fields of RunSpec to
    the values that may be tried (default CHOICES). Time is `cost_per_token`'s; among equally fast settings the smaller
    peak wins. `gpus`, `way` and `layers` are `predict`'s, and `budget_bytes` is what each GPU has; how a split divides its
    layers is settled once, for what is given. Raises DoesNotFit when nothing fits, CannotPredict for what cannot be predicted.
    """
    way, shape = checked_way(gpus, way, layers), shape_of(config)
    base = on_gpu(gpu, spec_of({"repeat_kv": gpu_named(gpu).kernels == "t4"} if spec is None else spec))
    if not isinstance(budget_bytes, (int, float)) or not 0 < budget_bytes < math.inf:
        raise CannotPredict(f"plan: budget_bytes is {budget_bytes!r}; give a number of bytes above 0")
    if not isinstance(margin, (int, float)) or not 0 <= margin < 1:
        raise CannotPredict(f"plan: margin is {margin!r}; it must be at least 0 and below 1")
    loaded = loaded_bytes(shape, base)
    if not choices and budget_bytes * (gpus if way == "split" else 1) < loaded:  # all others load it whole on each GPU
        raise DoesNotFit(f"plan: budget_bytes is {int(budget_bytes):,}; the weights alone take {loaded:,}")
    usual = CHOICES if way != "fsdp2" else CHOICES | {"optimizer": ("adamw_torch",)}
    choices = _checked(base, usual if choices is None else choices)
    if way == "fsdp2" and "optimizer" not in choices:
        base = dataclasses.replace(base, optimizer="adamw_torch")
    if way == "split" and layers is None:
        layers = even_layers(shape, base, gpu, gpus)
    several = {"gpus": gpus, "way": way, "layers": layers}
    candidates = _candidates(shape, base, choices, gpu, several)
    room = budget_bytes * (1 - margin)
    fitting = [candidate for candidate in candidates if candidate.least <= room]
    for candidate in sorted(fitting, key=lambda one: (one.cost, one.least)):
        prediction = predict(shape, candidate.spec, gpu, **several)
        if fits(prediction, gpu, budget_bytes, margin):
            reasons = _reasons(candidates, candidate, choices)
            reasons["room"] = (
                f"the peak takes {prediction.peak_allocated / GIB:.2f} of {room / GIB:.2f} GiB: "
                f"{margin:.0%} of {budget_bytes / GIB:.2f} are left free; torch reserves {prediction.peak_reserved / GIB:.2f}"
            )
            return Plan(candidate.spec, prediction, candidate.cost, reasons, len(candidates), len(fitting), shape, room)
    whole = min(loaded_bytes(shape, candidate.spec) for candidate in candidates) if way == "fsdp2" else 0
    least = max(whole, min(candidate.least for candidate in candidates))
    smallest = f"the smallest of {len(candidates)} settings peaks at {least:,}"
    smallest += " while each GPU quantizes all of the model" if least == whole else ""
    raise DoesNotFit(f"plan: budget_bytes is {int(budget_bytes):,}; {smallest}")


def _checked(base: RunSpec, choices: dict) -> dict[str, tuple]:
    """The choices, each value as RunSpec holds it. Raises CannotPredict for one that it refuses."""
    if not isinstance(choices, dict):
        raise CannotPredict(
            f"plan: choices is {choices!r:.60}; give a dictionary of RunSpec's fields, each with a list of values"
        )
    neutral = vars(base) | {"checkpoint_every": 1, "checkpoint_offload": False}  # offload needs checkpointing
    checked = {}
    for field, values in choices.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise CannotPredict(f"plan: choices has no value for {field}; give a list of at least one")
        checked[field] = tuple(getattr(spec_of(neutral | {field: value}), field) for value in values)
    return checked


def _candidates(shape: Shape, base: RunSpec, choices: dict, gpu: str, several: dict) -> list[Candidate]:
    """Every combination of choices but offloading without checkpointing."""
    found = []
    for values in itertools.product(*choices.values()):
        chosen = vars(base) | dict(zip(choices, values, strict=True))
        if chosen["checkpoint_every"] or not chosen["checkpoint_offload"]:
            spec = RunSpec(**chosen)
            found.append(Candidate(spec, cost_per_token(shape, spec), least_of(shape, spec, gpu, **several)))
    return found


def _reasons(candidates: list[Candidate], chosen: Candidate, choices: dict) -> dict[str, str]:
    """For each setting that had alternatives: what the others would have cost, all else as chosen."""
    table = {tuple(getattr(one.spec, field) for field in choices): one for one in candidates}
    here = tuple(getattr(chosen.spec, field) for field in choices)
    reasons = {}
    for place, (field, values) in enumerate(choices.items()):
        keys = {value: (*here[:place], value, *here[place + 1 :]) for value in values if value != here[place]}
        others = {value: table[key] for value, key in keys.items() if key in table}
        if not others:
            continue
        faster = [(one.least, one.cost, value) for value, one in others.items() if one.cost < chosen.cost]
        value, slowest = here[place], max(one.cost for one in others.values())
        if faster:
            least, cost, other = min(faster)
            less = 1 - cost / chosen.cost
            reasons[field] = f"{value}: {other} would take {less:.0%} less time but needs {least / GIB:.2f} GiB"
        elif slowest == chosen.cost:
            reasons[field] = f"{value}: as fast as the others, and the smallest peak"
        else:
            reasons[field] = f"{value}: the fastest; the slowest choice takes {slowest / chosen.cost - 1:.0%} more time"
    return reasons
