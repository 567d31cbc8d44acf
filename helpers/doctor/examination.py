"""The checks in order. A check is a function that returns (status, what, cure), or a list of such."""

import time
from collections.abc import Callable

from helpers.doctor.findings import FAIL, OK, Finding, tidy
from helpers.doctor.graphics import four_bits, gpu, gpu_traps
from helpers.doctor.installed import (
    colab,
    files_beside,
    kernel,
    loaded_packages,
    packages,
    pip_notes,
    python,
    torchao,
    widgets,
)
from helpers.doctor.network_access import hub_access, network
from helpers.doctor.resources import disk, downloads, host_memory


def examine(*checks: Callable) -> list[Finding]:
    """Run checks in order; one that raises is itself a FAIL, so that the others still run."""
    found = []
    for check in checks:
        begun = time.perf_counter()
        try:
            said = check()
        except Exception as error:  # whatever a broken installation raises
            said = (FAIL, f"{type(error).__name__}: {error}", "mend the lines above first, then run the doctor again")
        seconds = time.perf_counter() - begun
        for status, what, cure in said if isinstance(said, list) else [said]:
            found.append(Finding(check.__name__.replace("_", " "), status, tidy(what), tidy(cure), round(seconds, 2)))
    return found


INSTALLED = (python, colab, packages, torchao, pip_notes, loaded_packages, files_beside, widgets, kernel)
MACHINE = (disk, downloads, host_memory)
NETWORK = (network, hub_access)
TORCH = (gpu, gpu_traps, four_bits)  # these import torch, which takes seconds, and a broken one may end the process


def problems() -> list[Finding]:
    """What the doctor's checks find that is not OK."""
    return [found for found in examine(*INSTALLED, *MACHINE, *NETWORK, *TORCH) if found.status != OK]
