"""What the calculator's page shows: `helpers.memory.predict` asked for every setting that its controls can make.

Nothing is interpolated. A setting whose tensors cannot fit the largest GPU of its kind is not played through: of it the
page says what it needs at the least, which the planner's own count gives (`least_peak`).
"""

import dataclasses
import hashlib
import itertools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from evidence import BFLOAT16, SHAPES

from helpers import COURSE_ROOT
from helpers.files import write_whole
from helpers.memory import GPUS, RunSpec, fits, predict, shape_of
from helpers.memory.planner import MARGIN
from helpers.memory.replay import Prediction, least_peak
from helpers.memory.runs import on_gpu
from helpers.models import PRESETS
from helpers.plots import diagrams

MODELS = {name: preset.hub_id.partition("/")[2] for name, preset in PRESETS.items()} | {
    "14B": "Qwen2.5-14B",
    "32B": "Qwen2.5-32B",
}
METHODS = {
    "qlora": ("QLoRA: weights in 4 bits, NF4", {"quant_type": "nf4"}),
    "lora": ("LoRA: weights in 16 bits", {"quant_type": None}),
    "full": ("full fine-tuning: every weight", {"quant_type": None, "rank": None, **BFLOAT16}),
}
LAYERS = {"all": ("all linear layers", "all-linear"), "qkvo": ("attention: q, k, v, o", RunSpec.QKVO)}
RANKS, BATCHES, LENGTHS = (8, 16, 64), (1, 2, 4, 8), (512, 1024, 2048, 4096)
# What every run here has in common; lesson 02's calculator can change these, too.
COMMON = {"lora_dropout": 0.0, "optimizer": "paged_adamw_8bit", "checkpoint_every": 1}
# A block of torch's may be larger than what it holds, and one for fewer tokens may waste more than one for more tokens.
ROUNDING = 0.005
# A script without this course's `repeat_kv_heads`, and with a TRL before 1.15, whose loss keeps all logits at once.
PLAIN = {"repeat_kv": False, "trl_loss": "full"}
NO_ADAPTER = "-"  # of full fine-tuning, where a rank and layers would stand
PLAIN_BATCHES = (1, 4)  # of the first page's table
EXAMPLE = ("qwen2.5-7b", 4, 4096)  # model, rows at once, tokens a row
SMALL = ({"qwen2.5-7b": MODELS["qwen2.5-7b"]}, (16,))  # for the tests' site: models, ranks


def kinds_of_gpu() -> dict[str, str]:
    """{GPU: the first GPU that has the same workspace and kernels}: a prediction is the same for both."""
    first: dict = {}
    return {name: first.setdefault((gpu.workspace_bytes, gpu.kernels), name) for name, gpu in GPUS.items()}


def keys(models, ranks) -> list[tuple]:
    """(model, method, rank, layers, batch, length, kind of GPU) of every setting."""
    adapters = [(method, rank, layers) for method in ("qlora", "lora") for rank in ranks for layers in LAYERS]
    ways = [*adapters, ("full", NO_ADAPTER, NO_ADAPTER)]
    kinds = dict.fromkeys(kinds_of_gpu().values())
    found = itertools.product(models, ways, BATCHES, LENGTHS, kinds)
    return [(model, *way, batch, length, kind) for model, way, batch, length, kind in found]


def spec_of_key(key: tuple) -> RunSpec:
    """The run of a setting."""
    _, method, rank, layers, batch, length, kind = key
    given = COMMON | {"batch_size": batch, "seq_len": length, "repeat_kv": GPUS[kind].kernels == "t4"}
    if method != "full":
        given |= {"rank": rank, "target_modules": LAYERS[layers][1]}
    return RunSpec(**(given | METHODS[method][1]))


def numbers_of(key: tuple) -> list[int]:
    """Bytes of a setting: [peak of the tensors, reserved by torch, then a number for each of GROUPS]; or [the least]."""
    model, kind = key[0], key[-1]
    spec, shape = spec_of_key(key), shape_of(SHAPES[model])
    least = least_peak(shape, on_gpu(kind, spec), kind)
    if least > max(GPUS[name].total_bytes for name, first in kinds_of_gpu().items() if first == kind):
        return [least]
    found = predict(shape, spec, kind)
    groups = diagrams.grouped(found.parts)
    return [found.peak_allocated, found.peak_reserved, *(groups.get(name, 0) for name in diagrams.GROUPS)]


def _hash(wanted: list[tuple]) -> str:
    """Of all that the numbers follow from: the planner, the shapes, the settings, and the groups that are shown."""
    shapes = {model: SHAPES[model] for model, *_ in wanted}
    asked = [(key, spec_of_key(key)) for key in wanted]
    digest = hashlib.sha256(repr((asked, shapes, GPUS, diagrams.GROUPS)).encode())
    for file in sorted((COURSE_ROOT / "helpers" / "memory").glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def planned(cache: Path, models=MODELS, ranks=RANKS) -> dict[str, list[int]]:
    """{key joined by "/": its numbers}. Kept in the folder `cache` as long as nothing has changed that they follow from."""
    wanted = keys(models, ranks)
    file = cache / f"planned-{_hash(wanted)}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(map(joined, wanted), pool.map(numbers_of, wanted, chunksize=24), strict=True))
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(found))
    return found


def faults(found: dict[str, list[int]]) -> list[str]:
    """Numbers that contradict themselves, or each other: parts that do not add up, and less memory for more tokens."""
    lines = []
    for name, numbers in found.items():
        *way, batch, length, kind = name.split("/")
        if len(numbers) > 1 and (sum(numbers[2:]) != numbers[0] or numbers[1] < numbers[0]):
            lines.append(f"calculator: the parts of {name} do not add up")
        larger = ((batch, other, kind) for other in map(str, LENGTHS) if int(other) > int(length))
        more = ((other, length, kind) for other in map(str, BATCHES) if int(other) > int(batch))
        for after in (*larger, *more):
            other = "/".join((*way, *after))
            if other in found and found[other][0] < (1 - ROUNDING) * numbers[0]:
                lines.append(f"calculator: {name} takes more than {other}")
    return lines


def joined(key: tuple) -> str:
    return "/".join(map(str, key))


def script(found: dict[str, list[int]]) -> str:
    """The numbers as a script: a page that was opened as a file may not fetch one."""
    kinds = kinds_of_gpu()
    data: dict = {
        "margin": MARGIN,
        "gpus": {name: [gpu.total_bytes, gpu.context_bytes, kinds[name]] for name, gpu in GPUS.items()},
        "groups": [[name, colour] for name, (colour, _) in diagrams.GROUPS.items()],
        "runs": found,
    }
    return f"window.CALCULATOR = {json.dumps(data, separators=(',', ':'))};\n"


def controls(models=MODELS, ranks=RANKS) -> dict:
    """{name of a control: (its label, {value: words}, the value it starts with)}."""
    return {
        "model": ("Model", models, "qwen2.5-7b"),
        "method": ("Method", {name: words for name, (words, _) in METHODS.items()}, "qlora"),
        "rank": ("Rank", {rank: str(rank) for rank in ranks}, 16),
        "layers": ("Adapters on", {name: words for name, (words, _) in LAYERS.items()}, "all"),
        "batch": ("Rows at once", {n: str(n) for n in BATCHES}, 4),
        "length": ("Tokens per row", {n: f"{n:,}" for n in LENGTHS}, 512),
        "gpu": ("GPU", {name: f"{name.upper()}, {gpu.total_bytes / 1e9:.2f} GB" for name, gpu in GPUS.items()}, "t4"),
    }


def verdict_on(numbers: list[int], gpu: str) -> str:
    """`helpers.memory.fits` in one word: "fits" with the planner's margin, "tight" without it, or "no"."""
    if len(numbers) == 1:
        return "no"
    found = Prediction(0, 0, peak_allocated=numbers[0], peak_reserved=numbers[1], parts={}, moment="")
    return "fits" if fits(found, gpu, margin=None) else "tight" if fits(found, gpu) else "no"


def on_a_t4(found: dict[str, list[int]], models=MODELS) -> list[dict]:
    """What a T4 trains with QLoRA, rank 16 on all linear layers: a row for each model.

    `peaks` maps (batch, length) to (bytes of the tensors, bytes held in all or 0 where that was not asked, verdict);
    `longest` maps a batch to the longest rows that fit with the planner's margin, and 0 stands for none; `plain` is
    `longest` for a plain script (PLAIN), for the batches of PLAIN_BATCHES.
    """
    rows = []
    for model, name in models.items():
        numbers = {(b, n): found[joined(key_on_a_t4(model, b, n))] for b, n in itertools.product(BATCHES, LENGTHS)}
        plain = {(b, n): [*plain_peaks(model, b, n)] for b, n in itertools.product(PLAIN_BATCHES, LENGTHS)}
        peaks = {place: (one[0], held(one, "t4"), verdict_on(one, "t4")) for place, one in numbers.items()}
        rows.append({"model": name, "peaks": peaks, "longest": longest(numbers), "plain": longest(plain)})
    return rows


def key_on_a_t4(model: str, batch: int, length: int) -> tuple:
    return (model, "qlora", 16, "all", batch, length, "t4")


def plain_peaks(model: str, batch: int, length: int, **kept) -> tuple[int, int]:
    """Bytes that a plain script takes on a T4: (peak of the tensors, reserved). `kept`: fields of PLAIN that it does have."""
    spec = dataclasses.replace(spec_of_key(key_on_a_t4(model, batch, length)), **(PLAIN | kept))
    prediction = predict(shape_of(SHAPES[model]), spec, "t4")
    return prediction.peak_allocated, prediction.peak_reserved


def longest(numbers: dict[tuple[int, int], list[int]]) -> dict[int, int]:
    """{batch: the longest rows that fit a T4 with the planner's margin, or 0} of {(batch, length): numbers}."""
    fitting: dict[int, int] = {}
    for (batch, length), one in numbers.items():
        fitting[batch] = length if verdict_on(one, "t4") == "fits" else fitting.get(batch, 0)
    return fitting


def held(numbers: list[int], gpu: str) -> int:
    """What is compared with the GPU: what torch reserves, tensors among it, and the CUDA context; 0 if it was not asked."""
    return numbers[1] + GPUS[gpu].context_bytes if len(numbers) > 1 else 0


def example(found: dict[str, list[int]]) -> dict:
    """One run with and without what a plain script lacks: its words, and peaks of its tensors in bytes."""
    model, batch, length = EXAMPLE
    return {
        "model": MODELS[model], "batch": batch, "length": length, "both": found[joined(key_on_a_t4(*EXAMPLE))][0],
        "neither": plain_peaks(*EXAMPLE)[0], "tiled": plain_peaks(*EXAMPLE, trl_loss="tiled")[0],
    }  # fmt: skip
