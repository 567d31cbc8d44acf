"""Tensors where they lie: the files of a base model, read by offset, not mapped."""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from helpers import CourseError
from helpers.files import WIDTHS, changed_asset, read_object, safetensors_header
from helpers.models import BUNDLED_MODEL, offline
from helpers.packages import smollm2_folder

FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # safetensors' names, and torch's
OTHERS = {"U8": "uint8", "I8": "int8", "BOOL": "bool", "I16": "int16", "I32": "int32", "I64": "int64"}
MERGED_DTYPES = ("float16", "bfloat16", "float32")
BEHIND = 1 << 24  # bytes written that wait for the disk
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
             "chat_template*", "additional_chat_templates")  # fmt: skip
BESIDE = ("generation_config.json", "*processor_config.json", "tekken.json", "*.tiktoken", "sentencepiece*.model",
          "LICENSE*", "NOTICE*")  # fmt: skip


class MergeError(CourseError, OSError):
    """An adapter that cannot be merged, or a folder that cannot be read or written."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: file, first byte, safetensors' name of its dtype, shape."""

    file: Path
    start: int
    code: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def find_base(base) -> Path:
    """The folder of a base model: as named, the bundled one, or the hub's files (downloaded where they are not here).

    "smollm2-135m" is the folder that `python -m helpers model smollm2` made.
    """
    here = {"bundled": BUNDLED_MODEL, "smollm2-135m": smollm2_folder()}
    folder = here.get(str(base)) or Path(base).expanduser()
    if folder.is_dir():
        return folder
    if str(base) in here:
        raise MergeError(f"{base} is not on this disk: make it with python -m helpers model smollm2")
    from huggingface_hub import errors, snapshot_download

    why = "HF_HUB_OFFLINE is set" if offline() else "the hub cannot be reached"
    reasons = {  # a gated one is one not found, for the hub's client, so it comes first
        errors.HFValidationError: "it is no hub id (owner/name)",
        errors.GatedRepoError: "on the hub it is gated: accept its terms on its page, and log in",
        errors.RepositoryNotFoundError: "the hub has none of that name, or it is private and you are not logged in",
        errors.LocalEntryNotFoundError: f"it is not in the hub's cache, and {why}: fetch it where there is a network",
    }
    try:
        found = Path(snapshot_download(str(base), allow_patterns=["*.safetensors", "*.json", *TOKENIZER, *BESIDE]))
    except Exception as error:  # whatever the hub, the network or the name is
        other = f"the hub did not give it ({type(error).__name__})"
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), other)
        raise MergeError(f"no folder {str(base)!r} here, and {reason}") from error
    if not any(found.glob("*.safetensors")):
        part = f"it was fetched in part and {why}, or the hub has it as a pickle alone, which is not read here"
        raise MergeError(f"{base} is in the hub's cache without *.safetensors: {part}")
    return found


def check_sums(base: Path, files) -> None:
    """Raise MergeError for a file whose SHA-256 is not the one published: the bundled model's, or one from the hub.

    The hub's cache names each large file by its sum. For other folders nobody has said what it should be.
    """
    changed = changed_asset(base.resolve())
    if changed:
        raise MergeError(f"the bundled model: {changed}")
    for file in files:
        name = file.resolve().name
        if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", name):
            with open(file, "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != name:
                    raise MergeError(f"{file.name} has not the SHA-256 that the hub published: download it again")


def read_base(folder: Path) -> tuple[dict, dict[str, Stored]]:
    """(config, where each tensor lies) of a model; raises MergeError for one that is broken, pickled or quantized."""
    config, index = _read_json(folder / "config.json"), folder / "model.safetensors.index.json"
    for part in (config, config.get("text_config")):
        quantized = part.get("quantization_config") if isinstance(part, dict) else None
        if quantized:
            method = quantized.get("quant_method", "some method") if isinstance(quantized, dict) else "some method"
            raise MergeError(
                f"{folder.name} is stored quantized ({method}): name the 16-bit model that it was made from"
            )
    # One whole file comes first, as transformers chooses: an index beside it may be stale.
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return config, _unquantized(folder, tensors_in(folder / "model.safetensors"))
    where = _read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise MergeError(
            f"{index.name} does not say which file each tensor is in (weight_map): download the base again"
        )
    stored = {shard: tensors_in(folder / shard) for shard in sorted(set(where.values()))}
    lost = next((key for key, shard in where.items() if key not in stored[shard]), None)
    if lost:
        raise MergeError(
            f"{index.name} says that {lost} is in {where.get(lost)}, and it is not: download the base again"
        )
    return config, _unquantized(folder, {key: stored[shard][key] for key, shard in where.items()})


def _unquantized(folder: Path, stored: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors, unless a weight is made of whole numbers: then it is packed, whatever the config says."""
    for key, tensor in stored.items():
        if key.endswith("weight") and tensor.code not in FLOATS:
            raise MergeError(
                f"{folder.name} is stored quantized ({key} is {tensor.code}): name the 16-bit model that it was made from"
            )
    return stored


def tensors_in(file: Path) -> dict[str, Stored]:
    """Where each tensor of a safetensors file lies; raises MergeError for a file that is absent or not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):  # checks header, offsets and length, and reads no tensor
            pass
        start, header = safetensors_header(file)
    except FileNotFoundError as error:
        pickled = [old.name for old in file.parent.glob("*.bin")]
        cure = f"; {pickled[0]} is a pickle, which can run code: load it once and save it again" if pickled else ""
        raise MergeError(f"{file} is not there{cure}") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise MergeError(f"{file} is broken ({str(error).splitlines()[0]}): copy or download it again") from error
    header.pop("__metadata__", None)
    for key, entry in header.items():
        if entry["dtype"] not in FLOATS | OTHERS:
            raise MergeError(f"{key} in {file.name} is stored as {entry['dtype']}: 16 or 32 bits are needed")
    return {k: Stored(file, start + e["data_offsets"][0], e["dtype"], tuple(e["shape"])) for k, e in header.items()}


def _layout(tensors: dict[str, Stored], code: str) -> tuple[bytes, dict[str, int]]:
    """(header, bytes of each tensor in the order of writing) of a file whose floats are written as `code`."""
    codes = {key: code if tensor.code in FLOATS else tensor.code for key, tensor in tensors.items()}
    order = sorted(tensors, key=lambda key: -WIDTHS[codes[key]])  # so that each lies at a multiple of its own width
    sizes = {key: tensors[key].numel * WIDTHS[codes[key]] for key in order}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    start = 0
    for key in order:
        end = start + sizes[key]
        header[key] = {"dtype": codes[key], "shape": tensors[key].shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text, sizes


def _fetch(tensor: Stored) -> None:
    """Have the system read a tensor into its cache beside what is being computed (Linux; elsewhere it is read later)."""
    if hasattr(os, "posix_fadvise"):
        with open(tensor.file, "rb") as file:
            os.posix_fadvise(file.fileno(), tensor.start, tensor.numel * WIDTHS[tensor.code], os.POSIX_FADV_WILLNEED)


def _read_json(file: Path) -> dict:
    if not file.is_file():
        raise MergeError(f"no {file.name} in {file.parent}: name a folder that save_pretrained wrote")
    try:
        return read_object(file)
    except ValueError as error:
        raise MergeError(f"{file} cannot be read ({error})") from error
