"""The calculator of lesson 02: controls for a run, its memory against a GPU's line, and what `plan` would change."""

import dataclasses
import functools
import queue
import threading
from typing import Any

from helpers import plots
from helpers.memory import GPUS, CannotPredict, RunSpec, fits, plan, predict
from helpers.models import PRESETS
from helpers.widgets.showing import show_panel

TARGETS: dict[str, Any] = {"q, k, v, o": RunSpec.QKVO, "all linear": "all-linear"}
CHECKPOINTING = {  # checkpoint_every, checkpoint_offload
    "every layer": (1, False), "every 2nd layer": (2, False), "every 4th layer": (4, False), "off": (0, False),
    "every layer, offloaded": (1, True),
}  # fmt: skip
SETTINGS = {  # of each control: what it is called, its values, the one it starts with
    "model": ("model", tuple(PRESETS), "qwen2.5-7b"),
    "gpu": ("GPU", tuple(GPUS), "t4"),
    "rank": ("rank", (4, 8, 16, 32, 64, 128), 16),
    "targets": ("adapters on", tuple(TARGETS), "all linear"),
    "batch_size": ("rows at once", (1, 2, 4, 8, 16, 32), 4),
    "seq_len": ("tokens per row", (128, 256, 512, 1024, 2048, 4096, 8192), 512),
    "optimizer": ("optimizer", ("paged_adamw_8bit", "paged_adamw_32bit", "adamw_8bit", "adamw_torch"), "adamw_torch"),
    "checkpointing": ("checkpointing", tuple(CHECKPOINTING), "every layer"),
}
AT_START: dict[str, Any] = {name: start for name, (_, _, start) in SETTINGS.items()}


def spec_for(gpu, rank, targets, batch_size, seq_len, optimizer, checkpointing) -> RunSpec:
    """The run that the controls describe; on a T4 with keys and values repeated, so that a fused attention kernel runs."""
    every, offload = CHECKPOINTING[checkpointing]
    return RunSpec(
        rank=rank, target_modules=TARGETS[targets], batch_size=batch_size, seq_len=seq_len, optimizer=optimizer,
        checkpoint_every=every, checkpoint_offload=offload, repeat_kv=GPUS[gpu].kernels == "t4",
    )  # fmt: skip


@functools.lru_cache(maxsize=512)
def predicted(model: str, spec: RunSpec, gpu: str):
    """`predict` for a preset, remembered."""
    return predict(PRESETS[model].shape, spec, gpu)


def held_parts(prediction, gpu: str) -> dict[str, int]:
    """The prediction's parts, and what torch and CUDA hold besides: together what `fits` compares with the GPU."""
    return prediction.parts | {"reserved and context": prediction.held_bytes(gpu) - prediction.peak_allocated}


def verdict_on(prediction, gpu: str) -> str:
    """In words: does it fit (`helpers.memory.fits`), with plan's margin or without, and by how much (GB)."""
    total, peak, held = GPUS[gpu].total_bytes / 1e9, prediction.peak_allocated / 1e9, prediction.held_bytes(gpu) / 1e9
    of_gpu = f"it takes {held:.2f} of {total:.2f} GB, of which tensors take {peak:.2f}"
    if fits(prediction, gpu, margin=None):
        return f"Fits: {of_gpu}."
    if fits(prediction, gpu):
        return f"Too tight: {of_gpu}, and a prediction may be off."
    if peak > total:
        return f"Does not fit: its tensors take {peak:.2f} GB, {peak - total:.2f} GB more than the GPU has."
    context = GPUS[gpu].context_bytes / 1e9
    besides = f"what torch reserves beside them {held - peak - context:.2f}, and the CUDA context {context:.2f}"
    kept = "" if held > total else " A hundredth of the GPU has to stay free."
    return f"Does not fit: it takes {held:.2f} of {total:.2f} GB: tensors {peak:.2f}, {besides}.{kept}"


@functools.lru_cache(maxsize=512)
def _planned(model: str, gpu: str, base: RunSpec):
    return plan(PRESETS[model].shape, GPUS[gpu].total_bytes, base, gpu=gpu)


def advice(model: str, gpu: str, spec: RunSpec) -> list[str]:
    """What `plan` would change for this model, rank and length on this GPU: a summary, then a reason for each change."""
    # What plan chooses anyway is set to one value, so that moving those controls finds the plan remembered.
    chosen: dict[str, Any] = {
        "batch_size": 1,
        "optimizer": "paged_adamw_8bit",
        "checkpoint_every": 1,
        "checkpoint_offload": False,
    }
    try:
        found = _planned(model, gpu, dataclasses.replace(spec, **chosen))
    except CannotPredict:
        return [f"plan finds no setting of this model, rank and length that fits a GPU of type {gpu}."]
    changes = [
        names
        for names in (("batch_size",), ("checkpoint_every", "checkpoint_offload"), ("optimizer",))
        if any(getattr(spec, name) != getattr(found.spec, name) for name in names)
    ]
    if not changes:
        return ["plan would change nothing: this is the fastest setting that fits."]
    saved = found.saved(spec)
    time = f"{abs(saved):.0%} {'less' if saved > 0 else 'more'} time per token"
    summary = f"plan would take {found.prediction.held_bytes(gpu) / 1e9:.2f} GB and {time} (by its model of time), with"
    return [summary, *(_instead(model, gpu, spec, found, names) for names in changes)]


def _instead(model: str, gpu: str, spec: RunSpec, found, names: tuple[str, ...]) -> str:
    """One thing that `plan` would change: from what to what, and what its choice would take without this change."""
    kept: dict[str, Any] = {name: getattr(spec, name) for name in names}
    title, was, now = (_said(one, names[0]) for one in (None, spec, found.spec))
    without = dataclasses.replace(found.spec, **kept)
    size, slower = predicted(model, without, gpu).held_bytes(gpu) / 1e9, found.saved(without)
    more = f"{abs(slower) / (1 - slower):.0%} {'more' if slower > 0 else 'less'}"
    time = "as much time" if abs(slower) < 0.005 else f"{more} time"
    return f"{title} {was} → {now}; without this change it would take {size:.2f} GB and {time}"


def _said(spec: RunSpec | None, name: str) -> str:
    """A setting as the controls call it; without a spec, what the control is called."""
    control = "checkpointing" if name == "checkpoint_every" else name
    if spec is None:
        return SETTINGS[control][0]
    if name != "checkpoint_every":
        return str(getattr(spec, name))
    pair = spec.checkpoint_every, spec.checkpoint_offload
    other = f"every {pair[0]} layers" + (", offloaded" if pair[1] else "")
    return next((label for label, value in CHECKPOINTING.items() if value == pair), other)


def spec_in(settings: dict) -> RunSpec:
    """The run of a value of each control."""
    return spec_for(**{name: value for name, value in settings.items() if name != "model"})


def assumed(settings: dict) -> str:
    """What the prediction takes for granted beside the controls, in words."""
    spec = spec_in(settings)
    repeated = ", keys and values repeated (repeat_kv)" if spec.repeat_kv else ""
    return f"also counted: LoRA dropout {spec.lora_dropout}{repeated}; one batch per step"


def describe(**settings) -> tuple:
    """(prediction, verdict) for a value of each control."""
    prediction = predicted(settings["model"], spec_in(settings), settings["gpu"])
    return prediction, verdict_on(prediction, settings["gpu"])


def bar_html(prediction, gpu: str) -> str:
    """The stacked bar as HTML, for it is drawn in a millisecond: a box per group, the GPU's line, a legend with numbers."""
    total, groups = GPUS[gpu].total_bytes, plots.diagrams.grouped(held_parts(prediction, gpu))
    scale = 100 / (1.08 * max(total, prediction.held_bytes(gpu)))  # per cent of the width for a byte
    boxes, legend = [], []
    for name, size in groups.items():
        title, colour = f"{name}: {size / 1e9:.2f} GB", plots.diagrams.GROUPS[name][0]
        boxes.append(f'<div title="{title}" style="width:{size * scale:.3f}%;background:{colour}"></div>')
        swatch = f'<span style="display:inline-block;width:0.8em;height:0.8em;background:{colour}"></span>'
        legend.append(f'<span style="white-space:nowrap;margin-right:1.2em">{swatch} {title}</span>')
    line = f"left:{total * scale:.3f}%;top:-4px;bottom:-4px;border-left:2px dashed currentColor"
    label = f"left:{total * scale:.3f}%;transform:translateX(-100%);white-space:nowrap"
    return (
        '<div style="line-height:1.5;max-width:760px;padding-bottom:6px">'
        '<div style="position:relative;height:1.6em">'
        f'<span style="position:absolute;{label}">{gpu}: {total / 1e9:.2f} GB</span></div>'
        f'<div style="position:relative;display:flex;height:34px">{"".join(boxes)}'
        f'<div style="position:absolute;{line}"></div></div>'
        f'<div style="margin-top:10px">{"".join(legend)}</div></div>'
    )


def still(prediction, gpu: str, said: str, words: str) -> bytes:
    """The same bar as a picture (PNG) under its settings and verdict, for a page that cannot run the controls."""
    lines = {f"the {gpu} has": GPUS[gpu].total_bytes}
    return plots.png(
        plots.diagrams.run_parts({"": held_parts(prediction, gpu)}, f"{said}. {words}", lines, size=(8.2, 2.9))
    )


def calculate(**start) -> None:
    """Display the calculator: controls where ipywidgets and a live front end are, a still figure elsewhere.

    `start`: values of controls (keys of SETTINGS) other than those it starts with by itself.
    """
    settings = AT_START | start
    prediction, words = describe(**settings)
    said = "; ".join(f"{SETTINGS[name][0]} {value}" for name, value in settings.items())
    said += f"; {assumed(settings)}"
    picture = still(prediction, settings["gpu"], said, words)
    alt = f"Memory of a run, stacked by what it holds. {words}"
    show_panel(_panel(settings), picture, f"{said}\n{words}", alt)


def _panel(settings: dict):
    """The controls over the bar; None without ipywidgets."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None
    style = {"style": {"description_width": "100px"}, "layout": {"width": "370px"}}
    controls = {}
    for name, (title, values, _) in SETTINGS.items():
        kind = widgets.SelectionSlider if isinstance(values[0], int) else widgets.Dropdown
        controls[name] = kind(options=values, value=settings[name], description=title, **style)
    line, bar, hints = widgets.HTML(), widgets.HTML(), widgets.HTML()

    def answered(words: list[str]) -> None:
        first, *reasons = words
        points = "".join(f"<li>{reason}</li>" for reason in reasons)
        hints.value = f'<div style="line-height:1.5">{first}<ul style="margin:0">{points}</ul></div>'

    ask = _in_background(lambda chosen: advice(chosen["model"], chosen["gpu"], spec_in(chosen)), answered)

    def changed(_=None):
        chosen = {name: control.value for name, control in controls.items()}
        prediction, words = describe(**chosen)
        line.value, bar.value = f"<b>{words}</b><br>{assumed(chosen)}", bar_html(prediction, chosen["gpu"])
        hints.value = f'<div style="opacity:0.4">{hints.value}</div>'  # of the setting before, until plan has thought
        ask(chosen)

    changed()
    for control in controls.values():
        control.observe(changed, names="value")
    boxes = list(controls.values())
    columns = widgets.HBox([widgets.VBox(boxes[:4]), widgets.VBox(boxes[4:])])
    return widgets.VBox([columns, line, bar, hints])


def _in_background(think, answered):
    """A function that takes a question and returns at once; `answered(think(question))` follows from another thread.

    Questions that a newer one has overtaken get no answer: a slider asks at every step.
    """
    questions = queue.SimpleQueue()

    def work():
        while True:
            question = questions.get()
            while not questions.empty():
                question = questions.get()
            answer = think(question)
            if questions.empty():
                answered(answer)

    threading.Thread(target=work, daemon=True).start()
    return questions.put
