"""Checks of disk and memory."""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from helpers.doctor.findings import FAIL, OK, WARN
from helpers.files import output_folder
from helpers.models import AUTO_LARGE, PRESETS

LITTLE_MEMORY, TOO_LITTLE_MEMORY = 3e9, 1.5e9  # bytes; tests/machine/test_memory_limit.py prints what each lesson takes
LITTLE_DISK, TOO_LITTLE_DISK = 3e9, 0.3e9  # bytes: runs, with checkpoints and a merged model, on a CPU
CGROUP = Path("/sys/fs/cgroup")


# --- what the machine has ---------------------------------------------------------------------------------------


def disk():
    """Really writes a megabyte into the folder of runs: quotas and read-only disks show themselves only then."""
    try:
        folder = output_folder("auto")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 1_000_000)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why = error.strerror or str(error)
        return FAIL, f"nothing can be written where runs go: {why}", "set COURSE_RUNS to a folder that can be written"
    free = shutil.disk_usage(folder).free
    if free < TOO_LITTLE_DISK:
        return (
            FAIL,
            f"{free / 1e9:.2f} GB free where runs go",
            "free some, or set COURSE_RUNS to a folder on another disk",
        )
    if free < LITTLE_DISK:
        return WARN, f"{free / 1e9:.1f} GB free where runs go", "set COURSE_RUNS to a folder on another disk"
    return OK, f"{free / 1e9:.0f} GB free where runs go", ""


def downloads():
    """Free space in the folder where the hub's client keeps models."""
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    folder = next(p for p in (cache.expanduser(), *cache.expanduser().parents) if p.is_dir())
    free, needed = shutil.disk_usage(folder).free, PRESETS[AUTO_LARGE].download_bytes
    fits = [name for name, preset in PRESETS.items() if preset.download_bytes < 0.9 * free]
    if AUTO_LARGE not in fits:
        what = f"{free / 1e9:.1f} GB free for models; {PRESETS[AUTO_LARGE].hub_id} takes {needed / 1e9:.1f} GB"
        return WARN, what, f'on a GPU use model_id="{fits[0] if fits else "bundled"}", or set HF_HOME to another disk'
    return OK, f"{free / 1e9:.0f} GB free for models; {PRESETS[AUTO_LARGE].hub_id} takes {needed / 1e9:.1f} GB", ""


def host_memory():
    """What this process may still take: the machine's memory, a container's limit and the shell's, whichever is least."""
    import psutil

    available, limit = psutil.virtual_memory().available, "the machine"
    for name, room in _limits().items():
        if room < available:
            available, limit = max(0, room), name
    what = f"{available / 1e9:.1f} GB of memory available, limited by {limit}"
    if available < TOO_LITTLE_MEMORY:
        return FAIL, f"{what}: lessons will be killed", "close other programs and notebooks, or raise the limit"
    if available < LITTLE_MEMORY:
        return WARN, what, "close other programs and notebooks; run one lesson at a time"
    return OK, what, ""


def machine_in_numbers() -> dict:
    """System, processor, cores and bytes of memory, for whoever collects the doctor's files: no name of a host or person."""
    import platform

    system = f"{platform.system()} {platform.release().split('-')[0]}"
    about = {
        "system": system,
        "processor": platform.machine(),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }
    with contextlib.suppress(ImportError):  # the packages' line says what is missing
        import psutil

        about["memory_bytes"] = psutil.virtual_memory().total
    release = os.environ.get("COLAB_RELEASE_TAG")
    return about | ({"colab": release} if release else {})


def _limits() -> dict[str, float]:
    """Bytes left under each limit that is set on this process."""
    import psutil

    limits: dict[str, float] = {}
    used = psutil.Process().memory_info()
    for size, now, stat in (  # cgroup version 2, and 1
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            taken = int((CGROUP / now).read_text())
            cached = re.search(
                r"^inactive_file (\d+)$", (CGROUP / stat).read_text(), re.MULTILINE
            )  # given back on demand
            limits["the container"] = int((CGROUP / size).read_text()) - taken + int(cached[1] if cached else 0)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    try:
        import resource
    except ImportError:  # not on Windows
        return limits
    for kind, name, taken in (
        (resource.RLIMIT_AS, "ulimit -v", used.vms),
        (resource.RLIMIT_DATA, "ulimit -d", used.rss),
    ):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            limits[name] = soft - taken
    return limits
