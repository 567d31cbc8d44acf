"""A LoRA adapter: its settings, its tensors, and which tensor of the base each one changes."""

import math
import re
from pathlib import Path

from helpers.merging.arithmetic import _pieces
from helpers.merging.stored import MergeError, Stored, _read_json, tensors_in

# Settings of an adapter that a merge follows, or that leave it unchanged. Any other that is set is refused by name.
FOLLOWED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "modules_to_save"}
IRRELEVANT = {"peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type"}
IRRELEVANT |= {"peft_version", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform"}
IRRELEVANT |= {"layers_pattern", "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size"}
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
    for key, value in settings.items():
        if key not in FOLLOWED | IRRELEVANT and value not in (None, False, {}, []):
            raise MergeError(f"{key} = {value!r} in {folder.name} is not supported here: use PEFT's merge_and_unload()")
    stored = tensors_in(weights)
    _see_that_it_holds_something(folder, stored)
    for key, tensor in stored.items():
        if "lora_embedding" in key:
            raise MergeError(f"{key}: LoRA on embeddings is not supported here: use PEFT's merge_and_unload()")
        if not all(piece.isfinite().all() for piece in _pieces(tensor, {}, None)):
            raise MergeError(
                f"{key} in {folder.name} holds NaN or infinity: the training went wrong, take an earlier one"
            )
    return settings, stored


def _see_that_it_holds_something(folder: Path, stored: dict[str, Stored]) -> None:
    """MergeError for an adapter that was saved without what was trained: a merge would write a copy of the base."""
    again = "save the adapter again from the whole weights"
    if not stored:
        raise MergeError(f"{folder.name} holds no LoRA matrices, nor any other tensor (FSDP1 can save that): {again}")
    empty = next((key for key, tensor in stored.items() if not tensor.numel), None)
    if empty:
        raise MergeError(f"{empty} in {folder.name} is empty (ZeRO-3 can save that, each GPU holding a part): {again}")
    if all(".lora_A." in key or not any(piece.any() for piece in _pieces(stored[key], {}, None)) for key in stored):
        raise MergeError(f"{folder.name} changes nothing, its matrices B are all zero: untrained, or saved wrongly")


def match(settings: dict, updates: dict[str, Stored], stored: dict[str, Stored], base: str) -> dict[str, dict]:
    """What happens to each tensor of the base: {"A", "B" or "add", "scaling"} or {"instead"}, with its shape checked."""
    plan: dict[str, dict] = {}
    for key, tensor in updates.items():
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        lora = re.fullmatch(r"(.+)\.lora_([AB])\.(weight|bias)", name)
        if not lora:
            plan.setdefault(name, {})["instead"] = tensor  # a bias, or one of modules_to_save
        else:
            module, part, kind = lora.groups()
            part = "add" if kind == "bias" else part
            plan.setdefault(f"{module}.{kind}", {}).update({part: tensor, "scaling": scaling(settings, module)})
    wrong = f"the adapter was trained on {settings.get('base_model_name_or_path')!r}, and this base is {base!r}"
    if Path(str(settings.get("base_model_name_or_path"))).name == base:  # then to say "another base" would be untrue
        wrong = f"the adapter names {base!r} as its base too, so the names or shapes in the two files differ otherwise"
    for name, update in plan.items():
        if name not in stored and name != "lm_head.weight":  # a tied head is not stored: see _untie
            raise MergeError(f"the base has no {name}, which the adapter changes: {wrong}")
        have = stored[name].shape if name in stored else None
        if "A" in update or "B" in update:
            if not ("A" in update and "B" in update):
                raise MergeError(f"{name} has only one of lora_A and lora_B in the adapter: the file is not whole")
            a, b = update["A"].shape, update["B"].shape
            rank = _of_pattern(settings.get("rank_pattern"), name.removesuffix(".weight"), settings["r"])
            if a[0] != rank or b[1] != rank:
                raise MergeError(f"{name}: the rank is {a[0]} in the adapter's file and {rank} in its config")
            if have is not None and (b[0], a[1]) != have:
                raise MergeError(f"{name} is {have} in the base and {(b[0], a[1])} in the adapter: {wrong}")
        for kind in ("instead", "add"):
            if have is not None and kind in update and update[kind].shape != have:
                raise MergeError(f"{name} is {have} in the base and {update[kind].shape} in the adapter: {wrong}")
    return plan


def scaling(settings: dict, module: str) -> float:
    """What the product B A is multiplied with: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
    rank = _of_pattern(settings.get("rank_pattern"), module, settings["r"])
    alpha = _of_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"])
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _of_pattern(pattern: dict | None, module: str, default):
    """The value of the first pattern that is the end of the module's name, as PEFT's get_pattern_key matches."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)
