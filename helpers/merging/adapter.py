"""A LoRA adapter as it lies on disk: its settings, each of which a merge follows or refuses, and its tensors."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.merging.arithmetic import _joined, _pieces, _whole
from helpers.merging.stored import MergeError, Stored, _read_json, find_base, read_base, tensors_in

# Settings of an adapter that a merge follows, or that leave it unchanged. Any other of PEFT's that is set is refused.
FOLLOWED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "modules_to_save"}
FOLLOWED |= {"use_dora", "fan_in_fan_out", "target_parameters", "trainable_token_indices", "ensure_weight_tying"}
IRRELEVANT = {"peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type"}
IRRELEVANT |= {"peft_version", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform"}
IRRELEVANT |= {"layers_pattern", "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size"}
IRRELEVANT |= {"runtime_config"}  # where the arithmetic of training took place
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base weights as well


def read_adapter(folder: Path) -> tuple[dict, dict[str, Stored]]:
    """(adapter_config, where each tensor lies); raises MergeError for what a merge here cannot do, by its name."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file() and (folder / "adapter_model.bin").is_file():
        raise MergeError(
            f"{folder.name} holds a pickled adapter_model.bin, and reading a pickle can run any code. If you trust its "
            "source: PeftModel.from_pretrained(base, folder).save_pretrained(new_folder) writes it as safetensors"
        )
    settings = _read_json(folder / "adapter_config.json")
    if settings.get("peft_type") != "LORA":
        raise MergeError(f"peft_type = {settings.get('peft_type')!r} in {folder.name}: only LORA is merged here")
    if settings.get("init_lora_weights", True) not in PLAIN_INITS:
        raise MergeError(
            f"init_lora_weights = {settings['init_lora_weights']!r} in {folder.name} changed the base weights too: "
            "save it with path_initial_model_for_weight_conversion, or merge with PEFT"
        )
    settings = {"r": 8, "lora_alpha": 8} | settings  # PEFT's own defaults
    _check_numbers(folder.name, settings)
    _refuse_what_is_not_followed(folder.name, settings)
    stored = tensors_in(weights)
    _see_that_it_holds_something(folder, stored)
    for key, tensor in stored.items():
        if not all(piece.isfinite().all() for piece in _pieces(tensor, {}, None)):
            raise MergeError(
                f"{key} in {folder.name} holds NaN or infinity: the training went wrong, take an earlier one"
            )
    return settings, stored


def _check_numbers(name: str, settings: dict) -> None:
    patterns = [settings.get(f"{of}_pattern") or {} for of in ("rank", "alpha")]
    if not all(isinstance(pattern, dict) for pattern in patterns):
        raise MergeError(
            f"rank_pattern or alpha_pattern in {name} is no object of numbers: take the file as PEFT wrote it"
        )
    ranks, alphas = [
        [settings[own], *pattern.values()] for own, pattern in zip(("r", "lora_alpha"), patterns, strict=True)
    ]
    for value in ranks + alphas:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise MergeError(f"r or lora_alpha in {name} is {value!r}: a number is needed")
    for pattern in [*patterns[0], *patterns[1]]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise MergeError(
                f"rank_pattern or alpha_pattern in {name} has {pattern!r}, which is no pattern ({error})"
            ) from error
    if min(ranks) <= 0:
        raise MergeError(f"a rank in {name} is {min(ranks)}: it has to be above zero")


def _refuse_what_is_not_followed(name: str, settings: dict) -> None:
    """MergeError for a setting that may change the result. What PEFT does not know, another tool wrote for itself.

    Unless a newer PEFT wrote the file: then a name that is not known here may be one of its own.
    """
    unknown = {key for key, value in settings.items() if value not in (None, False, {}, [])} - FOLLOWED - IRRELEVANT
    if not unknown:
        return
    from peft import LoraConfig  # only now: it takes seconds

    key = min(unknown & LoraConfig.__dataclass_fields__.keys(), default=None)
    if key:
        raise MergeError(f"{key} = {settings[key]!r} in {name} is not supported here: use PEFT's merge_and_unload()")
    if _newer(settings.get("peft_version")):
        key, version = min(unknown), settings["peft_version"]
        raise MergeError(
            f"{key} = {settings[key]!r} in {name} is not known here, and PEFT {version} wrote it: merge with that"
        )


def _newer(version) -> bool:
    """Whether PEFT of this version is newer than the one that is installed."""
    from packaging.version import InvalidVersion, Version
    from peft import __version__

    try:
        return Version(str(version).partition("@")[0]).release > Version(__version__).release
    except InvalidVersion:  # none, or none that can be compared: adapters had no such entry before PEFT 0.16
        return False


def _see_that_it_holds_something(folder: Path, stored: dict[str, Stored]) -> None:
    """MergeError for an adapter that was saved without what was trained: a merge would write a copy of the base."""
    again = "save the adapter again from the whole weights"
    if not stored:
        raise MergeError(f"{folder.name} holds no LoRA matrices, nor any other tensor (FSDP1 can save that): {again}")
    empty = next((key for key, tensor in stored.items() if not tensor.numel), None)
    if empty:
        raise MergeError(f"{empty} in {folder.name} is empty (ZeRO-3 can save that, each GPU holding a part): {again}")
    # The matrices that begin at random say nothing.
    trained = [key for key in stored if ".lora_A." not in key and ".lora_embedding_B" not in key]
    if not any(piece.any() for key in trained for piece in _pieces(stored[key], {}, None)):
        raise MergeError(f"{folder.name} changes nothing, its matrices B are all zero: untrained, or saved wrongly")


def scaling(settings: dict, module: str) -> float:
    """What the product B A is multiplied with: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
    rank = of_pattern(settings.get("rank_pattern"), module, settings["r"])
    alpha = of_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"])
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def of_pattern(pattern: dict | None, module: str, default):
    """The value of the first pattern that is the end of the module's name, as PEFT's get_pattern_key matches."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


@dataclass(frozen=True)
class LoraLayer:
    """What an adapter holds for one linear layer: A (r x inputs) and B (outputs x r), float32, and alpha / r."""

    name: str
    A: Any
    B: Any
    scale: float

    @property
    def update(self):
        """What the adapter adds to the weights, float32: outputs x inputs."""
        return (self.B @ self.A) * self.scale

    def stored_weight(self, base):
        """The layer's weights as they lie in the files of `base`, a folder or a hub id; MergeError if there are none."""
        _, stored = read_base(find_base(base))
        if f"{self.name}.weight" not in stored:
            raise MergeError(f"{base} has no {self.name}.weight: the adapter was trained on another base")
        tensor = stored[f"{self.name}.weight"]
        return _joined(_pieces(tensor, {}, None)).view(tensor.shape)


def lora_layers(adapter) -> dict[str, LoraLayer]:
    """The linear layers that an adapter changes, by their names in the model, sorted; MergeError as read_adapter."""
    settings, stored = read_adapter(Path(adapter))
    names = [
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in stored if ".lora_A.w" in key
    ]

    def matrix(name: str, which: str):
        return _whole(stored[f"base_model.model.{name}.lora_{which}.weight"])

    return {
        name: LoraLayer(name, matrix(name, "A"), matrix(name, "B"), scaling(settings, name)) for name in sorted(names)
    }
