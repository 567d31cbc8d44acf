"""The machine: its processor or GPU, and the memory that is used."""

from helpers.machine.hardware import (
    ALL_GPUS,
    GIB,
    MOST_GPUS,
    T4_BYTES,
    Machine,
    choose_one_gpu,
    detect,
    gpus_for_processes,
    gpus_of_driver,
    limit_memory,
    own_gpus,
    peak_resident,
)
from helpers.machine.monitor import MemoryMonitor

__all__ = [
    "Machine",  # what lessons need to know of a machine
    "detect",  # the machine that this process runs on
    "choose_one_gpu",  # take one of several GPUs, before CUDA starts
    "gpus_of_driver",  # the GPUs that the driver knows, asked without CUDA
    "gpus_for_processes",  # those that processes started from here may take
    "limit_memory",  # the most bytes that this process may take of its GPUs
    "own_gpus",  # those in sight that this process uses
    "ALL_GPUS",  # the environment variable that keeps what CUDA_VISIBLE_DEVICES was before
    "GIB",  # 2**30 bytes
    "MOST_GPUS",  # of one computer
    "T4_BYTES",  # the memory that a T4 reports
    "peak_resident",  # the most memory this process has held
    "MemoryMonitor",  # GPU memory over time, by phase
]
