"""What the keys of an adapter's file say: which module gets which matrices, and which tensors and rows are replaced."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from helpers.merging.stored import MergeError, Stored

# What torch.compile, FSDP and activation checkpointing put into the names of a model that they wrap.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
LORA = re.compile(r"(.+?)((?:\.base_layer)*)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.(weight|bias))?")
NAMED = re.compile(r"\.lora_(?:embedding_)?[AB]\.([^.]+)(?=$|\.weight$|\.bias$)")  # the adapter's name, where it stands
ROWS = ".token_adapter.trainable_tokens_delta"
COPIES = (".original_module.", ".token_adapter.trainable_tokens_original")  # of the base, saved beside what was trained


@dataclass
class Parts:
    """The tensors of an adapter, by the names that its modules had when it was saved."""

    # (module, how many wrappers lie between the module and this one) -> {"A", "B", "bias", "magnitude", "embedding"}
    loras: dict[tuple[str, int], dict] = field(default_factory=dict)
    whole: dict[str, Stored] = field(default_factory=dict)  # by the name of the tensor that it replaces
    rows: dict[str, Stored] = field(default_factory=dict)  # by the embedding's name


def read_parts(tensors: dict[str, Stored]) -> Parts:
    """Sort the tensors of an adapter by what they do; MergeError for a file that holds two adapters."""
    parts, duplicates, names = Parts(), {}, _names(tensors)
    for key, tensor in tensors.items():
        name = names[key]
        lora = LORA.fullmatch(name)
        if any(copy in name for copy in COPIES):
            continue
        if lora:
            module, wrappers, part, kind = lora.groups()
            found = parts.loras.setdefault((module, wrappers.count(".base_layer")), {})
            found["embedding"] = part.startswith("embedding_") or found.get("embedding", False)
            part = "bias" if kind == "bias" else part.removeprefix("embedding_").removesuffix("_vector")
            if part in found:
                raise MergeError(f"the adapter's file has {name} under two names, one of them {key}: save it again")
            found[part] = tensor
        elif name.endswith(ROWS):
            parts.rows[name.removesuffix(ROWS)] = tensor
        elif ".modules_to_save." in name:
            duplicates[name.replace(".modules_to_save.", ".")] = tensor
        else:
            parts.whole[re.sub(r"\.(token_adapter\.)?base_layer\.", ".", name)] = tensor
    parts.whole = duplicates | parts.whole  # PEFT writes the plain key too, and reads that one
    return parts


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without what PEFT, torch.compile, DDP and FSDP put before and between the names of the modules."""
    adapters = {name for key in keys for name in NAMED.findall(key)} - {"weight", "bias"}
    if len(adapters) > 1:
        raise MergeError(
            f"the adapter's file holds {len(adapters)} adapters ({', '.join(sorted(adapters))}): save one of them alone "
            "(save_pretrained(folder, selected_adapters=[name]))"
        )
    named = "|".join(map(re.escape, adapters)) or r"\b\B"  # no adapter's name stands in the keys: match nothing
    own = re.compile(rf"\.(lora_\w+|modules_to_save|trainable_tokens_delta)\.(?:{named})(?=\.|$)")
    names = {}
    for key in keys:
        name = own.sub(r".\1", WRAPPERS.sub("", key))
        while name.startswith(("base_model.model.", "module.")):
            name = name.removeprefix("base_model.model.").removeprefix("module.")
        names[key] = name
    return names
