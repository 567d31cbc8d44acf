"""What lesson 03 adds to the libraries' own calls: each cure by its name, at its moment, on or off, and what it is worth."""

import contextlib

from helpers.models import bundled
from helpers.records import measured_runs
from helpers.training.finite import require_finite_logits, stop_when_not_finite
from helpers.training.planning import TrainingPlan
from helpers.training.targets import require_targets
from helpers.training.workarounds import (
    adapters_to_float32,
    fewer_walks,
    keep_4bit_layout,
    repeat_kv_heads,
    stop_at_max_steps,
)

# (name, moment, what happens without it, the recipe of measurements/h200_speed.jsonl that adds it)
CURES = (
    ("repeat_kv_heads", "before loading", "a T4 computes attention with its slow kernel", "repeated heads"),
    ("liger_layers", "before loading", "norms, rotary embedding and SwiGLU take several kernels each", "Liger"),
    ("keep_4bit_layout", "after loading", "on some CPUs the 4-bit weights become garbage", None),
    ("require_finite_logits", "after loading", "a model that overflows in float16 trains on nothing", None),
    ("adapters_to_float32", "after building", "with fp16=True the first step stops with an error", None),
    ("stop_when_not_finite", "after building", "the trainer goes on after a loss that is no number", None),
    ("fuse_lora", "after building", "copies between each base layer and its adapter", "one operation"),
    ("fewer_walks", "while training", "the trainer visits every module several times a step", "fewer walks"),
    ("padding_free", "while training", "what rows are filled up with is computed, too", None),
    ("recorded", "while training", "a fast GPU waits for Python", "recorded"),
)
NEEDED = ("keep_4bit_layout", "adapters_to_float32")  # without them nothing runs, somewhere


BUNDLED = bundled().name  # its stored outputs were made without fused layers, which round otherwise


def padding_free_saves() -> tuple[float, float]:
    """The shares of GPU time and of a step's time a token that rows without padding save (measurements/lengths_rows.jsonl)."""
    timed = measured_runs("lengths_rows").query("rules == 't4'").set_index("recipe")
    rates = timed[["tokens_per_busy_second", "tokens_per_clock_second"]]
    return tuple(1 - rates.loc["padded"] / rates.loc["padding-free"])


class Cures:
    """The cures of one run, at their four moments; `plain` leaves all out but those without which nothing runs."""

    def __init__(
        self,
        plan: TrainingPlan,
        machine,
        model_name: str,
        cuda_graphs="auto",
        max_length: int = 512,
        targets="all-linear",
    ):
        self.plan, self.machine, self.model_name, self.max_length = plan, machine, model_name, max_length
        self.targets = targets  # the run's target_modules
        self.graphs = plan.record_graphs(machine, cuda_graphs)
        self.shapes: list = []  # (rows, tokens) of the recorded graphs, once training has begun

    @property
    def pad_to_multiple_of(self) -> int | None:
        """For SFTConfig: batches of a few lengths only, where CUDA graphs are recorded, one for each length."""
        if not self.graphs:
            return None
        from helpers.training.graphs import MULTIPLE  # this room's list holds nothing that imports torch at once

        return MULTIPLE

    def used(self) -> dict[str, bool]:
        """Which cures do something in this run."""
        gpu, plain = self.machine.device == "cuda", self.plan.plain
        return {
            "repeat_kv_heads": gpu and not self.machine.native_bfloat16 and not plain,
            "liger_layers": self.plan.layer_kernels,
            "keep_4bit_layout": not gpu,
            "require_finite_logits": not plain,
            "adapters_to_float32": self.machine.dtype != "bfloat16",
            "stop_when_not_finite": not plain,
            "fuse_lora": (gpu or self.model_name != BUNDLED) and not plain,
            "fewer_walks": not plain,
            "padding_free": self.plan.max_tokens is not None,
            "recorded": self.graphs,
        }

    def rows(self) -> list[dict]:
        """A row for each cure: when, what happens without it, whether it is used here, and what it saves.

        The shares of GPU time and of a whole step's time that it saves were measured on an H200 held to a T4's attention
        kernels, each recipe against the one before it (measurements/h200_speed.jsonl): medians over runs of Mistral-7B's shape.
        Those rows have one length. What `padding_free` saves was measured on an H100 with rows of real lengths, against padding.
        """
        used, timed = self.used(), measured_runs("h200_speed").query("rules == 't4'").groupby("recipe", sort=False)
        busy, step = timed.gpu_busy_seconds.median(), timed.step_seconds.median()
        order, rows = list(busy.index), []

        def before(recipe: str) -> str:
            return {"recorded": "nothing recomputed", "Liger": "fused Adam"}.get(recipe, order[order.index(recipe) - 1])

        for name, moment, without, recipe in CURES:
            of_gpu, of_step = (1 - t[recipe] / t[before(recipe)] if recipe else None for t in (busy, step))
            if name == "padding_free":
                of_gpu, of_step = padding_free_saves()
            row = {"cure": name, "moment": moment, "without it": without, "used here": "yes" if used[name] else "no"}
            saved = {"GPU time saved": of_gpu, "step time saved": of_step}
            rows.append(row | {"needed": "yes" if name in NEEDED else "no"} | saved)
        return rows

    def before_loading(self) -> None:
        """repeat_kv_heads; liger_layers was applied when the run was planned, since a plan has to know it."""
        if not self.plan.plain:
            repeat_kv_heads(self.machine)

    def after_loading(self, model, tokenizer=None, texts=()):
        """keep_4bit_layout, then require_finite_logits on `texts`; returns the model.

        Raises CourseError, one line, for logits that are not finite, and for target_modules that the model has not.
        """
        require_targets(model, self.targets)
        keep_4bit_layout(model)
        if texts and not self.plan.plain:
            require_finite_logits(model, tokenizer, list(texts), self.model_name, self.max_length)
        return model

    def after_building(self, trainer):
        """adapters_to_float32, stop_when_not_finite and fuse_lora, before `train()`; returns the trainer."""
        adapters_to_float32(trainer)
        if not self.plan.plain:
            stop_when_not_finite(trainer)
        if self.used()["fuse_lora"]:
            from helpers.training.fused_lora import fuse_lora

            fuse_lora(trainer.model)
        return trainer

    @contextlib.contextmanager
    def while_training(self, trainer):
        """A context around `train()`: fewer_walks, padding_free or recorded, advice when memory runs out, no step too many."""
        stop_at_max_steps(trainer)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.plan.guarded())
            if not self.plan.plain:
                stack.enter_context(fewer_walks(trainer))
            if self.plan.max_tokens:
                from helpers.training.without_padding import padding_free

                stack.enter_context(padding_free(trainer, self.plan.max_tokens))
            if self.graphs:
                from helpers.training.graphs import recorded

                self.shapes = stack.enter_context(recorded(trainer))
            yield
