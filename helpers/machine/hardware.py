"""What this machine is, and what follows from it: the one place where CPU, T4 and larger GPUs part ways."""

import itertools
import os
import platform
import sys
from dataclasses import dataclass

from helpers import CourseError


def peak_resident() -> int:
    """The most memory that this process has held so far, in bytes; where the system does not keep that, what it holds now."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().rss
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


ALL_GPUS = "COURSE_ALL_GPUS"  # the variable that keeps what CUDA_VISIBLE_DEVICES was before one GPU was chosen: nothing
GIB = 2**30
MOST_GPUS = 16  # of one computer
T4_BYTES = int(14.56 * GIB)  # what a Colab T4 reports as its total memory


@dataclass(frozen=True)
class Machine:
    """One machine. Sizes in bytes; `dtype` is a torch dtype's name."""

    device: str  # "cuda" or "cpu"
    name: str
    gpu_bytes: int  # 0 without a GPU
    ram_bytes: int
    cores: int
    capability: tuple[int, int] | None  # CUDA compute capability, None without a GPU
    t4_rules: bool = False

    @property
    def native_bfloat16(self) -> bool:
        """Whether the GPU has bfloat16 units: capability 8.0 (Ampere) and later; never under T4 rules.

        torch.cuda.is_bf16_supported() also answers True for emulation, as on a T4 (pytorch#148322).
        """
        return self.capability is not None and self.capability >= (8, 0) and not self.t4_rules

    @property
    def is_t4(self) -> bool:
        return self.t4_rules or "T4" in self.name.split()

    @property
    def dtype(self) -> str:
        """What to load and compute in: float32 on a CPU, float16 before Ampere, bfloat16 since."""
        if self.device == "cpu":
            return "float32"
        return "bfloat16" if self.native_bfloat16 else "float16"

    @property
    def torch_dtype(self):
        import torch

        return getattr(torch, self.dtype)

    @property
    def device_map(self) -> dict:
        """For from_pretrained: the whole model on one device."""
        return {"": 0 if self.device == "cuda" else "cpu"}

    def __str__(self) -> str:
        if self.device == "cpu":
            return f"CPU, no GPU: computes in {self.dtype}"
        rules = ", under T4 rules" if self.t4_rules else ""
        return f"{self.name}, {self.gpu_bytes / 2**30:.2f} GiB{rules}: computes in {self.dtype}"


class MachineError(CourseError):
    """A machine that a lesson cannot use as it is."""


def gpus_of_driver() -> tuple[str, ...]:
    """The names of the GPUs that the driver has, without asking torch, which would take seconds to import."""
    try:
        import pynvml

        pynvml.nvmlInit()
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())
        ]
        return tuple(name.decode() if isinstance(name, bytes) else name for name in names)
    except Exception:  # no driver: no GPU
        return ()


def gpus_for_processes() -> list[str]:
    """The GPUs that processes started from here may take, as CUDA_VISIBLE_DEVICES names them; all where nobody has chosen.

    A lesson's own choice, by `choose_one_gpu`, does not count. What somebody else named is read as CUDA reads it: up to the
    first that is empty or negative.
    """
    if ALL_GPUS in os.environ or "CUDA_VISIBLE_DEVICES" not in os.environ:
        return [str(number) for number in range(len(gpus_of_driver()))]
    named = (gpu.strip() for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    return list(itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), named))


def choose_one_gpu() -> str:
    """Where several GPUs are and nobody has chosen, have this process and its children see the first; says so, else "".

    TRL trains on one GPU in a process and refuses to go on with several in sight; Kaggle's machine has two. A
    CUDA_VISIBLE_DEVICES that somebody set is respected. Must come before CUDA is used; MachineError if it is too late.
    """
    if ALL_GPUS in os.environ:
        return _chosen()
    if "CUDA_VISIBLE_DEVICES" in os.environ or len(gpus_of_driver()) < 2:
        return ""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise MachineError(
            f"{len(gpus_of_driver())} GPUs are here, and this session has used them already: TRL refuses to train beside "
            "several. Restart the session, then run the lesson's own cells first"
        )
    os.environ |= {"CUDA_VISIBLE_DEVICES": "0", ALL_GPUS: ""}
    return _chosen()


def _chosen() -> str:
    return f"{len(gpus_of_driver())} are here; this lesson uses the first (it sets CUDA_VISIBLE_DEVICES=0)"


def detect() -> Machine:
    """Look at the machine, after `choose_one_gpu`. With COURSE_T4_RULES=1 in the environment a larger GPU is held to a T4's
    rules first."""
    choose_one_gpu()
    import psutil
    import torch

    ram, cores = psutil.virtual_memory().total, os.cpu_count() or 1
    if not torch.cuda.is_available():
        return Machine("cpu", platform.processor() or platform.machine(), 0, ram, cores, None)
    rules = os.environ.get("COURSE_T4_RULES") == "1"
    own = own_gpus()
    if rules:
        apply_t4_rules(own)
    properties = torch.cuda.get_device_properties(own[0])
    gpu_bytes = min(properties.total_memory, T4_BYTES) if rules else properties.total_memory
    return Machine("cuda", properties.name, gpu_bytes, ram, cores, torch.cuda.get_device_capability(own[0]), rules)


def own_gpus() -> list[int]:
    """The GPUs in sight that this process uses: all of them, or that of its rank where a launcher started several processes.

    [] without a GPU. A process must not touch another's: a mere question may take half a gigabyte there, for a context.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return [rank] if int(os.environ.get("WORLD_SIZE", 1)) > 1 else list(range(torch.cuda.device_count()))


def limit_memory(gpus: list[int], most: int) -> None:
    """Let this process take so many bytes at most of each of these GPUs; of a smaller one, all that it has."""
    import torch

    for gpu in gpus:
        total = torch.cuda.get_device_properties(gpu).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), gpu)


def apply_t4_rules(gpus: list[int]) -> None:
    """Hold larger GPUs to what a T4 has: 14.56 GiB each, and no flash or cuDNN attention.

    float16 follows from `Machine.dtype`. What this does not reproduce is the T4's speed.
    """
    import torch

    limit_memory(gpus, T4_BYTES)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
