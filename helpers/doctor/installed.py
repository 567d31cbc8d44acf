"""Checks of what is installed: Python, packages, the notebook's own parts."""

import os
import sys
from pathlib import Path

from helpers.doctor.findings import FAIL, INSTALL, OK, WARN
from helpers.packages import (
    NOTES,
    installed_version,
    needed_by_commands,
    refused_packages,
    requirements,
    shadowing,
)

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


# --- what is installed ------------------------------------------------------------------------------------------


def python():
    here = f"Python {sys.version.split()[0]}"
    if sys.version_info >= (3, 14):
        return WARN, f"{here}: the course was tested on 3.11 to 3.13", "if a package fails, use Python 3.13"
    return OK, here, ""


def packages():
    """A line for each package that requirements.txt does not accept, with what it breaks; else one line for all."""
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
    here = installed_version("torchao")
    if refused_packages():
        return FAIL, f"torchao {here}: beside it PEFT puts no adapter on a 16-bit layer (lessons 05 and 06)", INSTALL
    return OK, f"torchao {here}" if here else "no torchao, and none is needed", ""


def files_beside():
    """A file beside the notebook with a library's name would be loaded in its place."""
    found = [file for file, _ in shadowing()]
    if not found:
        return OK, "no file beside the notebook has a library's name", ""
    what = f"{', '.join(found)} beside the notebook: the set-up cell has the library found first"
    return WARN, what, "rename it if you want to import it in this notebook"


def pip_notes():
    """What pip said at the last installation: which packages now have a dependency in a version they do not accept."""
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
    missing = [name for name in ("ipywidgets", "jupyterlab_widgets") if installed_version(name) is None]
    if missing and (missing[0] == "ipywidgets" or installed_version("jupyterlab")):
        return WARN, f"{missing[0]} is missing: calculators show a still picture", "pip install --upgrade ipywidgets"
    return OK, f"ipywidgets {installed_version('ipywidgets')}; on GitHub's pages a still picture stands in", ""


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
