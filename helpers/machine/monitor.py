"""Watching memory while something runs: GPU memory on a GPU, resident memory on a CPU, with the phases marked."""

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field


@dataclass
class MemoryMonitor:
    """A context manager that samples memory in a thread, every `interval` seconds.

    On a GPU: torch's allocated bytes (with torch's own exact peak) and NVML's used bytes, which count the CUDA context
    and other processes too. On a CPU: the resident bytes of this process, where a peak between samples can be missed.
    `samples` holds (seconds, phase, bytes, nvml_bytes or None); `peaks` maps each phase to its highest bytes.
    """

    interval: float = 0.05
    samples: list = field(default_factory=list)
    peaks: dict = field(default_factory=dict)
    phase_name: str = "other"
    tokens: int = 0
    largest_batch: tuple = (0, 0)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()

    def start(self):
        """Begin to sample, where a `with` block would have to span many cells; returns self."""
        import psutil
        import torch

        self._cuda = torch.cuda if torch.cuda.is_available() else None
        self._process = psutil.Process(os.getpid())
        self._nvml = _nvml_device() if self._cuda else None
        self._lock, self._stop, self._begin = threading.Lock(), threading.Event(), time.perf_counter()
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self.sample()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def stop(self):
        """Take the last sample and end the thread."""
        self._stop.set()
        self._thread.join()
        self.sample()

    def _watch(self):
        while not self._stop.wait(self.interval):
            self.sample()

    def sample(self) -> int:
        """Take one sample now; returns its bytes."""
        with self._lock:
            if self._cuda:
                now, peak = self._cuda.memory_allocated(), self._cuda.max_memory_allocated()
            else:
                now = peak = self._process.memory_info().rss
            nvml = _nvml_used(self._nvml)
            self.samples.append((time.perf_counter() - self._begin, self.phase_name, now, nvml))
            self.peaks[self.phase_name] = max(peak, self.peaks.get(self.phase_name, 0))
            return now

    @contextlib.contextmanager
    def phase(self, name: str):
        """Mark what happens inside the block; the phase before it goes on after it."""
        before = self._mark(name)
        try:
            yield
        finally:
            self._mark(before)

    def _mark(self, name: str) -> str:
        self.sample()
        with self._lock:
            before, self.phase_name = self.phase_name, name
            if self._cuda:
                self._cuda.reset_peak_memory_stats()
        self.sample()
        return before

    @property
    def peak_bytes(self) -> int:
        """The highest of all phases: allocated bytes on a GPU, resident bytes on a CPU."""
        return max(self.peaks.values())

    def last_steps(self, steps: int = 4) -> list[tuple]:
        """The samples of the last optimizer steps, or all samples if there was none."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        ends = [i for i, (a, b) in enumerate(pairs, 1) if a[1] == "step" != b[1]]
        return self.samples[ends[-min(steps, len(ends))] : ends[-1] + 1] if ends else self.samples

    def callback(self):
        """A TrainerCallback that marks forward, backward and step, and evaluate and "between steps" around them.

        It also keeps what was trained on: `monitor.tokens` in all, padding included, and `monitor.largest_batch`
        (rows, tokens a row).
        """
        from transformers import TrainerCallback

        monitor = self

        class Marks(TrainerCallback):
            def on_train_begin(self, args, state, control, model=None, **kwargs):
                self.hooks = [
                    model.register_forward_pre_hook(monitor._before_forward, with_kwargs=True),
                    model.register_forward_hook(monitor._after_forward),
                ]

            def on_pre_optimizer_step(self, args, state, control, **kwargs):
                monitor._mark("step")

            def on_step_end(self, args, state, control, **kwargs):
                monitor._mark("between steps")

            def on_prediction_step(self, args, state, control, **kwargs):
                if monitor.phase_name != "evaluate":
                    monitor._mark("evaluate")

            def on_evaluate(self, args, state, control, **kwargs):
                monitor._mark("between steps")

            def on_train_end(self, args, state, control, **kwargs):
                for hook in self.hooks:
                    hook.remove()

        return Marks()

    def _before_forward(self, module, args, kwargs) -> None:
        """Mark a forward pass of training, and note its batch."""
        ids = kwargs.get("input_ids")
        if module.training and ids is not None:
            self._mark("forward")
            self.tokens += ids.numel()
            self.largest_batch = max(self.largest_batch, tuple(ids.shape), key=lambda shape: shape[0] * shape[1])

    def _after_forward(self, module, args, output) -> None:
        if module.training:
            self._mark("backward")

    def peak_of(self, *phases: str) -> int:
        """The highest bytes in these phases; 0 for those that never came."""
        return max((self.peaks.get(name, 0) for name in phases), default=0)


def _nvml_device():
    """NVML's handle of torch's first GPU, or None where NVML does not answer."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    except Exception:  # no driver, an old driver, a container that hides it: the torch counters remain
        return None


def _nvml_used(device) -> int | None:
    if device is None:
        return None
    import pynvml

    return pynvml.nvmlDeviceGetMemoryInfo(device).used
