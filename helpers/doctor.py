"""The doctor's checks: is this machine ready? Lesson 00 and `python -m helpers doctor` show them.

A check is a function that returns (status, what, cure), or a list of such. FAIL: a lesson will stop. WARN: the lessons
run, but not as you may expect. OK: nothing to do. No text holds a token, a host's name or an absolute path.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from helpers.machine import ALL_GPUS, choose_one_gpu, gpus_of_driver
from helpers.models import AUTO_LARGE, PRESETS, offline

OK, WARN, FAIL = "OK", "WARN", "FAIL"
PATIENCE = 4  # seconds to wait for a server
LITTLE_MEMORY, TOO_LITTLE_MEMORY = 3e9, 1.5e9  # bytes; tests/test_memory_limit.py prints what each lesson takes
LITTLE_DISK, TOO_LITTLE_DISK = 3e9, 0.3e9  # bytes: runs, with checkpoints and a merged model, on a CPU
CGROUP = Path("/sys/fs/cgroup")
INSTALL = "python -m helpers install"

# What stops working where a package is missing or in another version than requirements.txt asks for.
BREAKS = {
    "torch": "every lesson",
    "transformers": "loading a model, from lesson 00 on: arguments were renamed between releases",
    "trl": "training in lesson 03: SFTConfig's arguments were renamed between releases",
    "peft": "adapters, in lessons 03 to 05",
    "bitsandbytes": "4-bit layers, in every lesson",
    "accelerate": "placing a model on its device, in every lesson",
    "datasets": "reading instructions, from lesson 03 on",
    "huggingface-hub": "finding and fetching models",
    "safetensors": "reading and writing weights",
    "tokenizers": "loading a tokenizer",
    "matplotlib": "every figure",
    "pandas": "every table",
    "ipywidgets": "the calculators of lessons 01 and 02",
    "ipykernel": "running a notebook",
    "psutil": "looking at the machine, in every lesson",
    "packaging": "comparing versions",
    "filelock": "merging, in lesson 05",
    "nvidia-ml-py": "the driver's view of GPU memory",
    "jupytext": "the commands run and build",
    "nbformat": "the commands run and build",
    "nbclient": "the commands run and build",
    "papermill": "the commands run and sweep",
    "jinja2": "the report of a run",
    "joblib": "the command sweep",
    "tqdm": "the progress bars of a run",
    "pytest": "the tests",
    "nbval": "the tests of the notebooks",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `cure` is "" where nothing is to be done."""

    check: str
    status: str
    what: str
    cure: str
    seconds: float = 0.0


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


def worst(findings: list[Finding]) -> str:
    """OK, WARN or FAIL: the worst status among the findings."""
    return max((f.status for f in findings), key=(OK, WARN, FAIL).index, default=OK)


def tidy(text: str) -> str:
    """One line of at most 240 characters, without tokens, and with paths cut to their last part."""
    text = re.sub(r"\b(hf|ghp|sk)[_-]\w{8,}", "(a token)", " ".join(str(text).split()))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            text = text.replace(os.environ[name].strip(), "(a token)")
    text = re.sub(r"(?<![\w.:/])(?:/[\w.+@-]+)+/([\w.+@-]+)", r".../\1", text)
    return text if len(text) <= 240 else text[:237] + "..."


# --- what is installed ------------------------------------------------------------------------------------------


def python():
    here = f"Python {sys.version.split()[0]}"
    if sys.version_info < (3, 11):  # noqa: UP036 (it may be run before anything is installed)
        return FAIL, f"{here} is too old", "install Python 3.11 or 3.12, and make the environment again"
    if sys.version_info >= (3, 14):
        return WARN, f"{here}: the course was tested on 3.11 to 3.13", "if a package fails, use Python 3.13"
    return OK, here, ""


def packages():
    """A line for each package that requirements.txt does not accept, with what it breaks; else one line for all."""
    from helpers.tools.install import needed_by_commands, requirements

    rows, for_commands, wrong = requirements(), needed_by_commands(), []
    absent = [name for name, _, here, _ in rows if here is None and name in for_commands]
    for name, line, here, met in rows:
        if not met and name not in absent:
            status = WARN if name in for_commands | {"nvidia-ml-py"} else FAIL
            what = f"{name} is missing" if here is None else f"{name} {here}, where {line} is needed"
            cure = "pip install --upgrade torch, for your GPU as pytorch.org says" if name == "torch" else INSTALL
            wrong.append((status, f"{what}; breaks {BREAKS.get(name, 'what uses it')}", cure))
    if wrong:
        return wrong
    of = f"all {len(rows) - len(absent)} packages" + (" that lessons need" if absent else " of requirements.txt")
    without = f"; without {', '.join(absent)}, which only commands and tests need" if absent else ""
    return OK, f"{of}, in versions that the lessons were written for{without}", ""


def torchao():
    """Nobody needs it, but PEFT refuses adapters on 16-bit layers beside an old one, which Colab and Kaggle bring."""
    from helpers.tools.install import refused_packages

    here = _version("torchao")
    if refused_packages():
        return FAIL, f"torchao {here}: beside it PEFT puts no adapter on a 16-bit layer (lessons 05 and 06)", INSTALL
    return OK, f"torchao {here}" if here else "no torchao, and none is needed", ""


def files_beside():
    """A file beside the notebook with a library's name would be loaded in its place."""
    from helpers.tools.install import shadowing

    found = [file for file, _ in shadowing()]
    if not found:
        return OK, "no file beside the notebook has a library's name", ""
    what = f"{', '.join(found)} beside the notebook: the set-up cell has the library found first"
    return WARN, what, "rename it if you want to import it in this notebook"


def pip_notes():
    """What pip said while the course installed something: whose wishes it could not meet."""
    from helpers.tools.install import NOTES

    if not NOTES.is_file():
        return []
    unmet = [line for line in NOTES.read_text(encoding="utf-8").splitlines() if " requires " in line]
    return (
        OK,
        f"pip noted {len(unmet)} unmet wishes of other packages while installing: runs/install.txt in the course",
        "",
    )


def colab():
    """Which of Colab's runtimes this is; nothing elsewhere."""
    release = os.environ.get("COLAB_RELEASE_TAG")
    return (OK, f"Colab's runtime {release}", "") if release else []


def loaded_packages():
    """Packages that this process loaded before they were upgraded: Colab does that to whoever installs late."""
    from helpers.tools.install import requirements

    old = []
    for name, _, here, _ in requirements():
        module = sys.modules.get(name.replace("-", "_"))
        loaded = getattr(module, "__version__", None)
        if isinstance(loaded, str) and here is not None and loaded.split("+")[0] != here.split("+")[0]:
            old.append(f"{name} {loaded} (now {here})")
    if old:
        return FAIL, f"loaded before it was upgraded: {', '.join(old)}", "restart the runtime, then run all cells again"
    return OK, "what is loaded is what is installed", ""


def widgets():
    """Sliders need ipywidgets, and where JupyterLab is installed its widget extension too."""
    missing = [name for name in ("ipywidgets", "jupyterlab_widgets") if _version(name) is None]
    if missing and (missing[0] == "ipywidgets" or _version("jupyterlab")):
        return WARN, f"{missing[0]} is missing: calculators show a still picture", "pip install --upgrade ipywidgets"
    return OK, f"ipywidgets {_version('ipywidgets')}; on GitHub's pages a still picture stands in", ""


def kernel():
    """The kernel called python3, in which notebooks open, should be this Python."""
    from jupyter_client.kernelspec import KernelSpecManager

    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    own = command in (
        "python",
        "python3",
        f"python3.{sys.version_info[1]}",
    )  # Jupyter puts its own Python in their place
    if not own and Path(command).parent.resolve() != Path(sys.executable).parent.resolve():
        cure = "python -m ipykernel install --sys-prefix, in the environment that has the packages"
        return WARN, "notebooks open in another Python than this one", cure
    return OK, "notebooks open in this Python", ""


# --- what the machine has ---------------------------------------------------------------------------------------


def disk():
    """Really writes a megabyte into the folder of runs: quotas and read-only disks show themselves only then."""
    from helpers.results import output_folder

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
    """Space for a model from the hub, where the hub's client keeps them."""
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

    limits, used = {}, psutil.Process().memory_info()
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


# --- the network ------------------------------------------------------------------------------------------------


def network():
    """One request to the hub. Offline is no failure: the bundled model needs no network."""
    if offline():
        return WARN, "HF_HUB_OFFLINE is set: nothing is fetched", "unset it if you want models from the hub"
    try:
        _ask("/api/models/Qwen/Qwen2.5-0.5B")
    except urllib.error.HTTPError as error:
        cure = "if a proxy answers in the hub's place, ask for an exception; the bundled model needs no network"
        return WARN, f"the hub answers with status {error.code}", cure
    except (OSError, ValueError) as error:  # no route, refused, too slow, a bad certificate, a bad address
        why = tidy(getattr(error, "reason", error))
        return (
            WARN,
            f"the hub cannot be reached ({why})",
            'check the network or the proxy; model_id="bundled" needs none',
        )
    return OK, "the hub answers", ""


def hub_access():
    """Whether a token is set and the hub takes it: an expired one makes even public downloads fail."""
    token, where = _token()
    if not token:
        return OK, "no token is set, and none is needed: only gated models ask for one", ""
    if offline():
        return OK, f"a token is set ({where}); offline it is not tried", ""
    try:
        _ask("/api/whoami-v2", token)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return (
                WARN,
                f"the hub refuses the token from {where}: public downloads fail too",
                f"remove it ({where}), or log in anew",
            )
        return WARN, f"the hub answers with status {error.code}", "try again later"
    except (OSError, ValueError) as error:
        return (
            WARN,
            f"the token from {where} could not be tried ({type(error).__name__})",
            "see the line on the network",
        )
    return OK, f"the hub takes the token from {where}", ""


def _token() -> tuple[str, str]:
    """(token, where it comes from), both empty where there is none. The token itself is never shown."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return os.environ[name].strip(), name
    file = Path(os.environ.get("HF_TOKEN_PATH") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "token")
    try:
        return file.expanduser().read_text(encoding="utf-8").strip(), "a file that hf auth login wrote"
    except (OSError, UnicodeDecodeError):
        return "", ""


def _ask(path: str, token: str = "") -> None:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not endpoint.startswith(("https://", "http://")):
        raise ValueError("HF_ENDPOINT is no web address")
    head = {"User-Agent": "qlora-course-doctor"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(urllib.request.Request(endpoint + path, headers=head), timeout=PATIENCE) as answer:
        answer.read(100)


# --- torch, the GPU, 4 bits -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """What torch and the driver say of the GPUs; sizes in bytes."""

    visible: int  # GPUs that torch can use
    driver: tuple[str, ...]  # names of the GPUs that the driver has
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    total: int = 0
    free: int = 0
    says_bfloat16: bool = False  # torch.cuda.is_bf16_supported(), which counts emulation
    torch_cuda: str | None = None  # the CUDA that torch was built for
    in_colab: bool = False
    others_hidden: bool = False  # by the course, which chose one of several


def look_at_gpu() -> Gpu:
    """Ask torch and the driver."""
    choose_one_gpu()
    import torch

    about = {
        "driver": gpus_of_driver(),
        "torch_cuda": torch.version.cuda,
        "in_colab": "COLAB_RELEASE_TAG" in os.environ,
        "others_hidden": ALL_GPUS in os.environ,
    }
    if not torch.cuda.is_available():
        return Gpu(0, **about)
    free, total = torch.cuda.mem_get_info(0)
    return Gpu(
        torch.cuda.device_count(),
        name=torch.cuda.get_device_name(0),
        capability=torch.cuda.get_device_capability(0),
        total=total,
        free=free,
        says_bfloat16=torch.cuda.is_bf16_supported(),
        **about,
    )


def gpu():
    """Is there one, does torch see it, and does it multiply?"""
    here = look_at_gpu()
    if not here.visible:
        return unseen(here)
    import torch

    try:
        ones = torch.ones(64, 64, device="cuda", dtype=torch.float16)
        right = bool((ones @ ones == 64).all())
    except RuntimeError as error:  # such as: no kernel image is available for execution on the device
        cure = 'install a torch built for this GPU, or hide it: CUDA_VISIBLE_DEVICES=""'
        return FAIL, f"{here.name} cannot run this torch: {str(error).splitlines()[0]}", cure
    if not right:
        return FAIL, f"{here.name} multiplies wrongly", "restart the machine; if it stays so, use another GPU"
    about = (
        f"{here.total / 2**30:.2f} GiB, capability {here.capability[0]}.{here.capability[1]}, CUDA {here.torch_cuda}"
    )
    return OK, f"{here.name}, {about}", ""


def unseen(here: Gpu) -> tuple[str, str, str]:
    """Why torch sees no GPU, as far as can be told; every lesson runs on a CPU, so this is never a FAIL."""
    if here.in_colab and not here.driver:
        return WARN, "this Colab runtime has no GPU", "Runtime > Change runtime type > T4 GPU, then run all cells again"
    if not here.driver:
        return OK, "no GPU: the lessons run on the CPU, with the bundled model", ""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return WARN, f"CUDA_VISIBLE_DEVICES hides {here.driver[0]}", "unset it before Python starts"
    if here.torch_cuda is None:
        return (
            WARN,
            f"{here.driver[0]} is there, and this torch is built for CPUs",
            "install torch as pytorch.org says for CUDA",
        )
    cure = "update the driver, or install a torch built for an older CUDA; python -m torch.utils.collect_env says more"
    return WARN, f"{here.driver[0]} is there, and torch, built for CUDA {here.torch_cuda}, cannot use it", cure


def gpu_traps():
    """What surprises people on a GPU, a line each; nothing on a machine without one."""
    return traps_of(look_at_gpu())


def traps_of(here: Gpu) -> list[tuple[str, str, str]]:
    """The traps that this GPU has."""
    if not here.visible:
        return []
    found = []
    if here.visible > 1:
        what = f"CUDA_VISIBLE_DEVICES shows {here.visible} GPUs, and TRL refuses more than one in a process: lesson 03 stops"
        found.append((FAIL, what, "unset it before Python starts, then each lesson takes the first; or name one GPU"))
    elif here.others_hidden:
        found.append(
            (OK, f"{len(here.driver)} GPUs: a lesson uses the first, since TRL trains on one in a process", "")
        )
    if here.free < 0.9 * here.total:
        what = f"{(here.total - here.free) / 2**30:.1f} of {here.total / 2**30:.1f} GiB are taken already"
        found.append((WARN, what, "shut down the kernels of other notebooks; nvidia-smi lists who holds memory"))
    if here.total < 14 * 2**30:
        what = f"{here.total / 2**30:.1f} GiB is less than a T4 has: a 7B model may not fit"
        found.append((WARN, what, "python -m helpers memory predict qwen2.5-1.5b; lesson 02 shows how"))
    if here.capability < (8, 0):
        emulated = (
            "torch.cuda.is_bf16_supported() says True, for emulation counts there"
            if here.says_bfloat16
            else "torch says so too"
        )
        found.append((OK, f"no bfloat16 units ({emulated}): the lessons compute in float16", ""))
        found.append(
            (OK, "no flash attention before capability 8.0: the lessons repeat key and value heads instead", "")
        )
    return found


def four_bits():
    """Really multiplies a 4-bit matrix, where the lessons would: on the GPU, or on the CPU."""
    chosen = os.environ.get("BNB_CUDA_VERSION")
    if chosen is not None:
        folder = Path(importlib.util.find_spec("bitsandbytes").origin).parent
        if not (folder / f"libbitsandbytes_cuda{chosen}.so").is_file():
            what = f"BNB_CUDA_VERSION={chosen} names a library that bitsandbytes does not have"
            return FAIL, f"{what}: on a GPU every 4-bit layer fails", "unset BNB_CUDA_VERSION"
    import bitsandbytes as bnb
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    exact = torch.nn.Linear(256, 256, bias=False)
    packed = bnb.nn.Linear4bit(256, 256, bias=False, compute_dtype=dtype, quant_type="nf4")
    packed.load_state_dict(exact.state_dict())
    cure = f"{INSTALL}; on a GPU, python -m bitsandbytes says which CUDA it looks for"
    try:
        with torch.no_grad():
            packed, x = packed.to(device), torch.randn(4, 256)
            product = packed(x.to(device, dtype)).float().cpu()
            off = ((product - exact(x)).norm() / exact(x).norm()).item()
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return FAIL, f"bitsandbytes cannot multiply on {device}: {lines[0] if lines else error}", cure
    if not 0.01 < off < 0.15:
        return FAIL, f"the 4-bit product on {device} is off by {off:.0%}, where about a tenth is right", cure
    return (
        OK,
        f"bitsandbytes {_version('bitsandbytes')} multiplies in 4 bits on {device}: off by {off:.0%}, as it should be",
        "",
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


INSTALLED = (python, colab, packages, torchao, pip_notes, loaded_packages, files_beside, widgets, kernel)
MACHINE = (disk, downloads, host_memory)
NETWORK = (network, hub_access)
TORCH = (gpu, gpu_traps, four_bits)  # these import torch, which takes seconds, and a broken one may end the process
