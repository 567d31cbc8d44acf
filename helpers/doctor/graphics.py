"""Checks that import torch: the GPU, what is known to go wrong with one, and a product in 4 bits."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from helpers.doctor.findings import FAIL, INSTALL, OK, WARN
from helpers.machine import ALL_GPUS, choose_one_gpu, gpus_of_driver
from helpers.packages import installed_version

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
    """Known surprises of this GPU, a line each; none on a machine without a GPU."""
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
        f"bitsandbytes {installed_version('bitsandbytes')} multiplies in 4 bits on {device}: off by {off:.0%}, as it should be",
        "",
    )
