"""Which tensor of a base each part of an adapter changes, and how; nothing is written before all of it fits."""

import os
from pathlib import Path

from helpers.merging.adapter import of_pattern, scaling
from helpers.merging.arithmetic import Stacked
from helpers.merging.keys import Parts
from helpers.merging.names import Built
from helpers.merging.stored import MergeError, Stored


def plain(settings: dict, parts: Parts, stored: dict[str, Stored], config: dict) -> bool:
    """Whether names and shapes alone tell what a merge must do: LoRA on linear layers that the file has by their names.

    Where one shape could be two things (a square weight may be a Conv1D's; a weight with a row for each token may be
    tied), or a name is not in the file, the model itself is asked, which takes seconds (`Built`).
    """
    vocabulary = config.get("vocab_size")
    asks = settings.get("fan_in_fan_out") or settings.get("target_parameters") or parts.rows or not vocabulary
    if asks or any("experts" in key and config[key] for key in config):
        return False
    shapes = []
    for (module, wrappers), lora in parts.loras.items():
        weight = stored.get(f"{module}.weight")
        if wrappers or lora["embedding"] or weight is None or not {"A", "B"} <= lora.keys():
            return False
        shapes.append((lora["B"].shape[0], lora["A"].shape[-1]))
        if weight.shape != shapes[-1] or vocabulary in shapes[-1]:
            return False
    if not any(rows != columns for rows, columns in shapes):
        return False
    return all(
        name in stored and stored[name].shape == own.shape and len(own.shape) == 1 for name, own in parts.whole.items()
    )


def match(
    settings: dict, parts: Parts, stored: dict[str, Stored], base: str, of: Built | None = None
) -> dict[str, dict]:
    """What happens to each tensor of the base, with its shape checked: see `arithmetic._updated` for the words.

    of: the base's model, where names and shapes are not enough (see `plain`).
    """
    plan: dict[str, dict] = {}
    _see_that_all_is_there(settings, parts, {*stored, *(f"{name}." for name in (of.modules if of else ()))})

    def key(name: str) -> str:
        found = name if name in stored else _key_in_model(of, name)
        if found is None:
            raise MergeError(_absent(name, settings, stored, base, of))
        return found

    for name, tensor in parts.whole.items():
        plan.setdefault(key(name), {})["instead"] = tensor
    for module, tensor in parts.rows.items():
        plan.setdefault(key(f"{module}.weight"), {}).update(rows=tensor, indices=_indices(settings, module, tensor))
    for (module, wrappers), lora in parts.loras.items():
        targeted = of.targeted(module, settings.get("target_parameters") or []) if of else []
        if targeted and len(targeted) <= wrappers:
            raise MergeError(
                f"{module} has {wrappers + 1} LoRA pairs, and target_parameters names {len(targeted)} of its own"
            )
        parameter = targeted[-1 - wrappers] if targeted else f"{module}.weight"
        if of and targeted and len(of.shape(parameter)) == 3:
            plan |= _stacked(of, parameter, settings, lora, stored)
            continue
        update = _lora(settings, module, lora)
        weight = key(parameter)
        if "A" in plan.get(weight, {}):
            raise MergeError(f"the adapter's file has {weight} under two names, one of them {module}: save it again")
        plan.setdefault(weight, {}).update(update | (_kind(of, weight, bool(targeted)) if of else {}))
        if "bias" in lora:
            plan.setdefault(key(f"{module}.bias"), {}).update(add=lora["bias"], scaling=update["scaling"])
    _check_shapes(plan, stored, of, wrong=wrong_base(settings, base))
    return plan


def _see_that_all_is_there(settings: dict, parts: Parts, names: set[str]) -> None:
    """MergeError for an adapter whose config names trained modules or rows that its file lacks; names: the base's own."""
    saved = settings.get("modules_to_save") or []
    for module in [] if settings.get("ensure_weight_tying") else [saved] if isinstance(saved, str) else saved:
        own = f".{module}."
        if any(own in f".{name}" for name in names) and not any(own in f".{name}" for name in parts.whole):
            raise MergeError(f"modules_to_save names {module}, and the adapter's file has none of it: it is not whole")
    if settings.get("trainable_token_indices") and not parts.rows:
        raise MergeError("trainable_token_indices names rows, and the adapter's file has none: it is not whole")


def _key_in_model(of: Built | None, name: str) -> str | None:
    """The file's key of a tensor that an adapter calls `name`; of a tied one that is not stored, the model's name."""
    own = of.rename(name) if of else None
    if of is None or own is None:
        return None
    return of.key_of.get(own) or (own if own in {name for tie in of.ties() for name in tie} else None)


def _lora(settings: dict, module: str, lora: dict) -> dict:
    """The update of a pair of matrices, if the pair is whole and of the rank that the config says."""
    if not {"A", "B"} <= lora.keys():
        raise MergeError(f"{module} has only one of lora_A and lora_B in the adapter: the file is not whole")
    a, b, rank = lora["A"].shape, lora["B"].shape, of_pattern(settings.get("rank_pattern"), module, settings["r"])
    if len(a) != 2 or len(b) != 2:
        raise MergeError(f"{module} is no linear layer, its lora_A is {a}: use PEFT's merge_and_unload()")
    if a[0] != rank or b[1] != rank:
        raise MergeError(f"{module}: the rank is {a[0]} in the adapter's file and {rank} in its config")
    if settings.get("use_dora") and "magnitude" not in lora:
        raise MergeError(f"{module} has no lora_magnitude_vector in the adapter, and its config says use_dora")
    embedding = {"transposed": True, "rounded": True} if lora["embedding"] else {}
    magnitude = {"magnitude": lora["magnitude"]} if "magnitude" in lora else {}
    return {"A": lora["A"], "B": lora["B"], "scaling": scaling(settings, module)} | embedding | magnitude


def _kind(of: Built, key: str, targeted: bool) -> dict:
    """What the kind of module changes: Conv1D holds its weight transposed; a parameter's update is rounded first."""
    import torch
    from transformers.pytorch_utils import Conv1D

    module = of.module(key)
    if isinstance(module, Conv1D):
        return {"transposed": True}
    return {} if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and not targeted else {"rounded": True}


def _stacked(of: Built, parameter: str, settings: dict, lora: dict, stored: dict[str, Stored]) -> dict[str, dict]:
    """The updates of a parameter that stacks experts: of one tensor in the file, or of one for each expert."""
    import torch

    shape, module = of.shape(parameter), of.modules[parameter.rpartition(".")[0]]
    transposed = bool(getattr(module, "is_transposed", False))  # (experts, in, out) where it is, as PEFT asks
    rank = of_pattern(settings.get("rank_pattern"), parameter, settings["r"])
    rows, columns = (shape[2], shape[1]) if transposed else (shape[1], shape[2])
    want = {"A": (rank * shape[0], columns), "B": (rows, rank * shape[0])}
    for part, size in want.items():
        if part not in lora or lora[part].shape != size:
            have = lora[part].shape if part in lora else "absent"
            raise MergeError(f"lora_{part} of {parameter} is {have} in the adapter, and this base and rank want {size}")
    stacked = Stacked(parameter, lora["A"], lora["B"], scaling(settings, parameter), shape[0], transposed, of.parted)
    parted = of.parted(parameter, torch.empty(shape, device="meta"))
    for key, part in parted.items():
        if key not in stored or stored[key].shape != tuple(part.shape):
            raise MergeError(f"the base's files hold {parameter} in another layout (no {key} of {tuple(part.shape)})")
    return {key: {"stacked": stacked, "key": key} for key in parted}


def _indices(settings: dict, module: str, rows: Stored) -> list[int]:
    """Which rows of an embedding an adapter replaces (trainable_token_indices: a list, or one for each module)."""
    named = settings.get("trainable_token_indices")
    if isinstance(named, dict):
        named = next((own for name, own in named.items() if f".{module}".endswith(f".{name}")), None)
    if not isinstance(named, list) or len(named) != rows.shape[0]:
        raise MergeError(f"{module} has {rows.shape[0]} rows in the adapter, and trainable_token_indices says {named}")
    return named


def _check_shapes(plan: dict[str, dict], stored: dict[str, Stored], of: Built | None, wrong: str) -> None:
    """MergeError for an update that does not fit; a vocabulary that has grown or shrunk fits (see `tying`)."""
    resizable = of.of_vocabulary() if of else set()
    for key, update in plan.items():
        have = stored[key].shape if key in stored else of.shape(key) if of else ()  # a tied one is not stored
        if "instead" in update:
            new = update["instead"].shape
            if new != have and not (key in resizable and new[1:] == have[1:]):
                raise MergeError(f"{key} is {have} in the base and {new} in the adapter: {wrong}")
            have = new
        if "A" in update:
            new = (update["B"].shape[0], update["A"].shape[1])
            if (new[::-1] if update.get("transposed") else new) != have:
                raise MergeError(f"{key} is {have} in the base and {new} in the adapter: {wrong}")
        if "add" in update and update["add"].shape != have:
            raise MergeError(f"{key} is {have} in the base and {update['add'].shape} in the adapter: {wrong}")
        if "rows" in update and (update["rows"].shape[1:] != have[1:] or max(update["indices"]) >= have[0]):
            raise MergeError(
                f"{key} is {have} in the base, and the adapter's rows {update['indices']} are not in it: {wrong}"
            )


def wrong_base(settings: dict, base: str) -> str:
    named = settings.get("base_model_name_or_path")
    if Path(str(named)).name == base:  # then to say "another base" would be untrue
        return f"the adapter names {base!r} as its base too, so the names or shapes in the two files differ otherwise"
    return f"the adapter was trained on {named!r}, and this base is {base!r}"


def _absent(name: str, settings: dict, stored: dict[str, Stored], base: str, of: Built | None) -> str:
    if str(settings.get("task_type")) in ("SEQ_CLS", "TOKEN_CLS") and of and not name.endswith("proj.weight"):
        return (
            f"{name} is the head of a classifier (task_type {settings['task_type']}), and {base} is a "
            f"{type(of.model).__name__}, which has none: save the base as a classifier first, or use PEFT's merge_and_unload()"
        )
    # The name there that ends alike shows what is odd in this one.
    alike = max(stored, key=lambda key: len(os.path.commonprefix([key[::-1], name[::-1]])), default="")
    end = ".".join(alike.split(".")[-3:])
    near = f" (it has {alike})" if end.count(".") == 2 and name.endswith(f".{end}") else ""
    return f"the base has no {name}{near}, which the adapter changes: {wrong_base(settings, base)}"
