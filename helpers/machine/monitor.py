"""Watching memory while something runs: GPU memory on a GPU, resident memory on a CPU, with the phases marked."""

import contextlib
import ctypes
import gc
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


class HostPeak:
    """A context manager: `bytes` is how far this process's resident memory rose inside the block, at its highest.

    Linux keeps the highest value itself and is asked to begin anew; elsewhere it is sampled every 2 ms.
    """

    bytes = 0

    def __enter__(self):
        import psutil

        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # what was freed goes back first, or it would hide a rise
            ctypes.CDLL(None).malloc_trim(0)
        self._rss, self._stop = psutil.Process().memory_info, threading.Event()
        self._exact = _reset_highest()
        self._begin = self._top = self._rss().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if not self._exact:
            self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.002):
            self._top = max(self._top, self._rss().rss)

    def __exit__(self, *exception):
        self._stop.set()
        if not self._exact:
            self._thread.join()
        self.bytes = max(_highest() if self._exact else self._top, self._rss().rss) - self._begin


def _reset_highest() -> bool:
    """Have Linux forget the highest resident size so far (proc_pid_clear_refs(5)); False where that is not to be had."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return _highest() > 0
    except (OSError, StopIteration):
        return False


def _highest() -> int:
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])


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
