"""A live panel while a model trains: memory, loss, tokens a second, time left; a still picture of it remains."""

import time

from helpers import plots
from helpers.widgets.showing import show_panel


def training_panel(monitor, budget_bytes: int = 0):
    """A TrainerCallback that shows `monitor` and the loss while `train()` runs.

    Where ipywidgets is, a bar and a line change as it goes; a page that only shows the notebook has a picture of the end.
    `budget_bytes` is the GPU's memory; 0 on a CPU, where the process's resident memory is shown.
    """
    from transformers import TrainerCallback

    unit, scale = ("GB", 1e9) if budget_bytes else ("MB", 1e6)
    of = f"of {budget_bytes / 1e9:.1f} GB GPU memory" if budget_bytes else "MB resident"

    class Panel(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.losses, self.drawn, self.watched = [], 0.0, max(1, len(monitor.samples))
            self.first, self.begun, self.tokens = state.global_step, time.perf_counter(), monitor.tokens
            self.bar, self.line, self.box = _widgets(state.max_steps)
            self.handle = show_panel(self.box, None, "training begins", "")

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                self.losses.append((state.global_step, logs["loss"]))

        def on_step_end(self, args, state, control, **kwargs):
            if self.box and time.perf_counter() - self.drawn > 0.25:  # a front end need not redraw more often
                self.drawn = time.perf_counter()
                self.bar.value, self.line.value = state.global_step, self.words(state)

        def on_train_end(self, args, state, control, **kwargs):
            words = self.words(state)
            if self.box:
                self.bar.value, self.line.value = state.global_step, words
            samples = list(monitor.samples)[
                self.watched - 1 :
            ]  # the monitor goes on adding to it in a thread of its own
            picture = plots.png(plots.training_still(self.losses, samples, words, unit))
            alt = f"Training loss over steps and memory over time. {words}"
            show_panel(self.box, picture, words, alt, self.handle)

        def words(self, state) -> str:
            """The panel's numbers in a line."""
            done, seconds = state.global_step - self.first, time.perf_counter() - self.begun
            left = seconds / max(done, 1) * (state.max_steps - state.global_step)
            return ", ".join([
                f"step {state.global_step} of {state.max_steps}",
                *(f"loss {loss:.3f}" for _, loss in self.losses[-1:]),
                f"{(monitor.tokens - self.tokens) / seconds:,.0f} tokens a second",
                f"{monitor.samples[-1][2] / scale:,.1f} {of}",
                f"{left:,.0f} s left" if left else f"{seconds:,.0f} s in all",
            ])  # fmt: skip

    return Panel()


def _widgets(steps: int):
    """(progress bar, line, box of both), or three times None without ipywidgets."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None, None, None
    bar, line = widgets.IntProgress(max=steps, layout={"width": "98%"}), widgets.HTML("training begins")
    return bar, line, widgets.VBox([bar, line])
