"""A training run before it begins: what it will take, what it is trained with so that it fits, how long a T4 would take."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from helpers import CourseError
from helpers.memory import (
    GPUS,
    CannotPredict,
    DoesNotFit,
    RunSpec,
    fits,
    gpu_of,
    plan,
    predict,
    shape_of,
    step_over_time,
)
from helpers.models import AUTO_LARGE, PRESETS, RECIPES
from helpers.records import measured_runs
from helpers.training.out_of_memory import OutOfMemory, explain, explained
from helpers.training.workarounds import liger_layers

H200_OPERATIONS, T4_OPERATIONS = 989e12, 65e12  # float16 with tensor cores, a second (NVIDIA's data sheets)
T4_SUSTAINED = 24e12  # in matrix products one after the other, at its 70 W (forums.developer.nvidia.com/t/264462)


@dataclass
class TrainingPlan:
    """What `plan_training` found. `spec` is a RunSpec, `chosen` a memory.Plan or None where nothing can be predicted.

    `own` says whether the plan is for the run at hand; on a CPU, or with the bundled model, it is for a 7B model on a T4.
    Without padding `spec` is of one row, as long as all the tokens that go through the model at once.
    """

    model_name: str
    config: Any  # what `predict` takes
    spec: RunSpec
    gpu: str
    budget_bytes: int
    rows_per_step: int
    rows_at_once: int  # of one batch; without padding a longer one than the tokens of `spec` is cut between rows
    max_length: int  # of a row
    own: bool
    plain: bool
    layer_kernels: bool  # Liger's
    checkpoint_every: int  # of the run at hand: every n-th layer is recomputed; 0 for none
    offload: bool  # of the run at hand: what is checkpointed waits in the computer's memory
    max_tokens: int | None  # of the run at hand: go through the model at once, without padding; None pads
    full_rows: int  # of the run at hand: rows of full length that go through the model at once
    chosen: Any = None
    unknown: str = ""  # why nothing can be predicted

    @property
    def gradient_accumulation(self) -> int:
        return self.rows_per_step // self.rows_at_once

    @property
    def planned_rows(self) -> int:
        """How many rows of full length go through the model at once, as planned."""
        return max(1, self.spec.seq_len // self.max_length) if self.spec.padding_free else self.spec.batch_size

    def __str__(self) -> str:
        return self.in_words()

    def in_words(self, of_this_run: str = "the run below is a smaller one") -> str:
        """The plan in three lines; `of_this_run` is said where the plan is an example and not for the run at hand."""
        gpu = "this GPU" if self.own else "a T4"
        head = f"Planned for {self.model_name} on {gpu}, {self.budget_bytes / 1e9:.2f} GB"
        head += "" if self.own else f"; {of_this_run}"
        if self.chosen is None:
            return f"{head}: no plan, the recipe's settings stay ({self.unknown})"
        spec, found = self.spec, self.chosen
        layers = {0: "no layer", 1: "every layer"}.get(spec.checkpoint_every, f"one layer in {spec.checkpoint_every}")
        offloaded = ", and its input waits in the computer's memory" if spec.checkpoint_offload else ""
        if spec.padding_free:
            batches = f"{self.rows_at_once} rows in a batch, without padding, and up to {spec.seq_len:,} of their tokens at once"
        else:
            batches = f"{spec.batch_size} rows of up to {spec.seq_len:,} tokens at once"
        times = f", {self.gradient_accumulation} times per step" if self.gradient_accumulation > 1 else ""
        return "\n".join([
            head,
            f"  {batches}{times}; {layers} is recomputed{offloaded}",
            f"  tensors take {found.prediction.peak_allocated / 1e9:.2f} GB at the peak, "
            f"of the {found.room_bytes / 1e9:.2f} GB that they may take "
            f"({found.considered} settings were tried, {found.fitting} of them fit, and this is the fastest)",
        ])  # fmt: skip

    def guarded(self):
        """A context in which running out of memory ends in advice (`explained`) in place of a stack trace."""
        # What can be changed is rows: without padding as many full ones as take the same memory.
        spec = dataclasses.replace(self.spec, batch_size=self.planned_rows, seq_len=self.max_length)
        accumulation = -(-self.rows_per_step // self.planned_rows)
        return explained(self.config, spec, self.gpu, self.budget_bytes, accumulation)

    def compare(self, setting: str, *values) -> list[dict]:
        """The predicted peak in GB for each value of one of RunSpec's fields; [] where nothing can be predicted."""
        if self.chosen is None:
            return []
        rows = []
        for value in values:
            found = predict(self.config, dataclasses.replace(self.spec, **{setting: value}), self.gpu)
            fit = "yes" if fits(found, self.gpu, self.budget_bytes) else "no"
            rows.append({setting: value, "peak (GB)": found.peak_allocated / 1e9, "fits": fit})
        return rows

    def step_over_time(self, **changes) -> list[tuple]:
        """Predicted memory through one step (helpers.memory.step_over_time), with some of RunSpec's fields changed."""
        return step_over_time(self.config, dataclasses.replace(self.spec, **changes), self.gpu)

    def stays(self) -> dict[str, int]:
        """Bytes that stay through a step, predicted: the frozen weights, and the adapters with the optimizer's states."""
        found = self.chosen.prediction
        trained = found.parts["adapters"] + found.parts["optimizer states"]
        return {"frozen": found.after_load, "trained": trained}

    def peak_beside(self, monitor, trained: int, shapes: list) -> tuple[int, int]:
        """(predicted, measured) peak bytes: of this run on a GPU, else of a run that was measured under T4 rules.

        On a GPU the prediction is made again for the largest batch that came by, since rows are shorter than
        `max_length`; CUDA graphs are recorded for the largest that could come. With several batches to a step, with one that
        may be cut, or with graphs, gradients of the `trained` numbers wait in memory, four bytes each.
        """
        if self.own and self.chosen and monitor.tokens:
            rows, widest = shapes[0] if shapes else monitor.largest_batch
            cut = self.max_tokens is not None and self.max_tokens < self.rows_at_once * self.max_length
            waits = bool(shapes) or cut or self.gradient_accumulation > 1
            spec = dataclasses.replace(self.spec, batch_size=rows, seq_len=widest)
            guess = predict(self.config, spec, self.gpu).peak_allocated + 4 * trained * waits
            return guess, monitor.peak_of("forward", "backward", "step")
        runs = measured_runs("h200_memory_rows").query("attention_kernels == 't4' and repeat_kv and seq_len == 2048")
        row = runs[runs.model.str.startswith("Mistral-7B")].iloc[0]
        return predict(row.config, row.spec, gpu_of(row.device)).peak_allocated, int(row.peak_bytes)

    def t4_minutes(self, steps: int, tokens_per_row: float | None = None) -> tuple[float, float] | None:
        """A prediction of the minutes that a T4 computes for `steps` steps, from and to; None for an unknown model.

        Nobody has timed it on one. The rule: GPU time for a token on an H200 held to a T4's attention kernels
        (measurements/h200_speed.jsonl, the recipe with the same recomputing), times the model's linear weights over
        Mistral-7B's, times how much slower a T4 is: at best as the two data sheets say, else by what a T4 sustains
        against the H200's data sheet. Rows are full unless `tokens_per_row` is given; padding is not counted. Those runs had
        Liger's layers, so without them the time is longer by what they saved where all else was the same.
        """
        if self.chosen is None:
            return None
        layers = {0: "nothing recomputed", 1: "fewer walks"}.get(self.spec.checkpoint_every, "every third layer")
        runs = measured_runs("h200_speed").query("rules == 't4'")
        timed = runs[runs.recipe == ("no dropout" if self.plain else layers)]
        seconds = timed.gpu_busy_seconds.median() / (8 * 512)  # each step of these runs has 8 rows of 512 tokens
        if not (self.plain or self.layer_kernels):
            busy = runs.groupby("recipe").gpu_busy_seconds.median()
            seconds *= busy["fused Adam"] / busy["Liger"]
        scale = _linear_weights(self.config) / _linear_weights(timed.config.iloc[0])
        tokens = steps * self.rows_per_step * (tokens_per_row or self.max_length)
        operations = tokens * seconds * scale * H200_OPERATIONS
        return operations / T4_OPERATIONS / 60, operations / T4_SUSTAINED / 60

    def record_graphs(self, machine, wanted) -> bool:
        """Whether the passes are to be recorded as CUDA graphs: where that helps, fits, and nothing is recomputed.

        `wanted`: "auto", True or False. Graphs need padding, so where rows go without it they are not recorded. While a graph
        is recorded for a second length of rows, the activations of both lengths are there. On a T4, where GPU time is what
        counts, nothing is gained.
        """
        if machine.device != "cuda" or self.checkpoint_every or self.plain or self.max_tokens:
            return False
        if wanted != "auto":
            return wanted
        found = self.chosen.prediction if self.own and self.chosen else None
        both = 2 * found.peak_allocated - found.after_load if found else 0
        return machine.native_bfloat16 and both <= self.budget_bytes


def _linear_weights(config) -> int:
    shape = shape_of(config)
    return shape.layers * sum(linear.weights for linear in shape.linears)


def goes_padding_free(config, max_length: int) -> bool:
    """Whether `padding_free` can train this model: attention of Llama's kind, with no soft cap and no window shorter than a row.

    `config`: what `predict` takes. What is not known to be so keeps its padding: a model of another type may compute attention
    by code of its own. The kernel takes heads of a multiple of 8.
    """
    try:
        shape = shape_of(config)
    except CannotPredict:
        return False
    return (
        shape.described and not shape.gemma and shape.head_dim % 8 == 0 and (shape.window or max_length) >= max_length
    )


def plan_training(
    model, machine, settings: SimpleNamespace, asked: dict, plain: bool = False, lengths: Sequence[int] | None = None
) -> TrainingPlan:
    """Plan a run of lesson 03: the fastest way to split its step and to recompute that fits, all else as `settings` say.

    `asked` are the parameters as they were given: only what is "auto" there is chosen. Rows in an optimizer step stay
    what the recipe says, since that is part of what is learned. `lengths`, the tokens of each row that will be trained, say
    how long a batch without padding can become; without them each row may be as long as `max_length`. `plain` leaves out
    what the course adds for speed. Applies Liger's kernels, if they are to be used: it must come before the model is loaded.
    Raises OutOfMemory, with the settings to change, if nothing fits.
    """
    on_gpu = machine.device == "cuda"
    if settings.checkpointing == "offload" and not on_gpu:
        raise CourseError(
            'checkpointing = "offload" needs a GPU, and none can be seen: set it to True, False or "auto"'
        )
    own = on_gpu and not model.bundled
    values = SimpleNamespace(**(vars(settings) if own else vars(settings) | RECIPES["other"]))
    gpu, budget = (gpu_of(machine.name), machine.gpu_bytes) if on_gpu else ("t4", GPUS["t4"].total_bytes)
    liger = not plain and liger_layers(model.path, machine)
    like_t4 = not machine.native_bfloat16
    name, config = (model.name, model.path) if own else (PRESETS[AUTO_LARGE].hub_id, PRESETS[AUTO_LARGE].shape)
    rows, free = values.batch_size * values.gradient_accumulation, _free(asked)
    here = not plain and settings.cuda_graphs is not True and goes_padding_free(model.path, settings.max_length)
    padding_free = here if own else not plain
    at_once = rows if padding_free and free else values.batch_size
    more = {"repeat_kv": like_t4 and not plain, "fused_lora": values.lora_dropout == 0 and not plain}
    if padding_free:
        longest = _longest_batch(at_once, values.max_length, lengths if own else None)
        more |= {"padding_free": True, "batch_size": 1, "seq_len": longest}
    spec = RunSpec.of_settings(values, like_t4, layer_kernels="liger" if liger else None, **more)
    every, offload = int(bool(settings.checkpointing)), settings.checkpointing == "offload"
    tokens = settings.batch_size * settings.max_length if here else None
    found = TrainingPlan(
        name, config, spec, gpu, budget, rows, at_once, values.max_length, own, plain, liger, every, offload, tokens,
        settings.batch_size,
    )  # fmt: skip
    try:
        found.chosen = plan(config, budget, spec, _choices(asked, rows, spec, values.max_length), gpu=gpu)
        found.spec = found.chosen.spec
        found.rows_at_once = at_once if padding_free else found.spec.batch_size
        if own:
            found.checkpoint_every, found.offload = found.spec.checkpoint_every, found.spec.checkpoint_offload
            found.max_tokens, found.full_rows = found.spec.seq_len if padding_free else None, found.planned_rows
    except DoesNotFit:
        one_row = dataclasses.replace(spec, seq_len=values.max_length)  # a batch without padding can be cut down to it
        raise OutOfMemory(explain(None, config, one_row, gpu, budget, values.gradient_accumulation)) from None
    except CannotPredict as unknown:
        found.unknown = str(unknown)
    return found


def _free(asked: dict) -> bool:
    """Whether it may be chosen how a step is split."""
    return asked["batch_size"] == asked["gradient_accumulation"] == "auto"


def _longest_batch(rows: int, max_length: int, lengths) -> int:
    """Tokens of the longest batch without padding that can come: that of the longest rows."""
    longest = sorted((min(n, max_length) for n in lengths), reverse=True)[:rows] if lengths else [max_length] * rows
    return max(2, sum(longest))


def _choices(asked: dict, rows_per_step: int, spec: RunSpec, max_length: int) -> dict:
    """What may be chosen: how a step is split into batches or pieces, and which layers are recomputed."""
    if spec.padding_free:
        shortest = min(max_length, spec.seq_len)
        choices: dict = {"seq_len": [*range(shortest, spec.seq_len, max(1, max_length // 2)), spec.seq_len]}
    else:
        splits = [n for n in (1, 2, 4, 8, 16) if rows_per_step % n == 0] if _free(asked) else [spec.batch_size]
        choices = {"batch_size": splits}
    if asked["checkpointing"] == "auto":
        choices |= {"checkpoint_every": (0, 1, 2, 3, 4, 6, 8), "checkpoint_offload": (False, True)}
    return choices
