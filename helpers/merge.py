"""Merge a LoRA adapter into its base tensor by tensor, bit for bit as PEFT's merge_and_unload(), in little memory.

A merged weight is W + scaling * B A (Hu et al. 2021, arXiv 2106.09685, section 4.1). The files of the base are read by
offset, not mapped, and each output file is written as it is read: a JSON header, then the tensors one behind the other
(https://huggingface.co/docs/safetensors, "Format"). What is held at once is a few megabytes of rows; one
product B A, float32, when its shape is first seen; and with "dequantized" the 4-bit codes of one weight.
"""

import glob
import hashlib
import json
import math
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout  # it comes with huggingface-hub

from helpers import CourseError
from helpers.files import WIDTHS, read_object, safetensors_header
from helpers.results import finish_replacing, replace_folder

FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # safetensors' names, and torch's
OTHERS = {"U8": "uint8", "I8": "int8", "BOOL": "bool", "I16": "int16", "I32": "int32", "I64": "int64"}
MERGED_DTYPES = ("float16", "bfloat16", "float32")
BEHIND = 1 << 24  # bytes written that wait for the disk
PIECE = 1 << 19  # elements worked on at a time: they stay in the processor's cache. A multiple of bitsandbytes' block
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model")
TOKENIZER += ("chat_template*", "additional_chat_templates")
BESIDE = ("generation_config.json", "preprocessor_config.json", "LICENSE*", "NOTICE*")
# Settings of an adapter that a merge follows, or that leave it unchanged. Any other that is set is refused by name.
FOLLOWED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "modules_to_save"}
IRRELEVANT = {"peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type"}
IRRELEVANT |= {"peft_version", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform"}
IRRELEVANT |= {"layers_pattern", "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size"}
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base weights as well


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


def merge_adapter(
    base,
    adapter,
    out,
    base_weights: str = "original",
    dtype=None,
    *,
    quant_type: str = "nf4",
    double_quant: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Write base + adapter to the folder `out` as an ordinary model; returns tensors, merged, bytes, seconds.

    base: a folder with *.safetensors, a hub id, or "bundled". adapter: a folder that PEFT's save_pretrained wrote.
    base_weights: "original", or "dequantized" for what a base loaded in 4 bits (quant_type, double_quant) computes with.
    dtype: "float16", "bfloat16" or "float32"; None is the base's own. `out` is complete or absent, whatever happens.
    Raises MergeError, one line, before anything is written where that can be known.
    """
    if base_weights not in ("original", "dequantized"):
        raise MergeError(f'base_weights = {base_weights!r}: "original" or "dequantized"')
    if quant_type not in ("nf4", "fp4"):
        raise MergeError(f'quant_type = {quant_type!r}: "nf4" or "fp4"')
    begun, out = time.perf_counter(), Path(out).expanduser()
    base, adapter = find_base(base), Path(adapter).expanduser()
    finish_replacing(out.parent, glob.escape(out.name))
    _check_out(out, (base, adapter), overwrite)
    settings, updates = read_adapter(adapter)
    config, stored = read_base(base)
    own = next((FLOATS[tensor.code] for tensor in stored.values() if tensor.code in FLOATS), None)
    name = str(dtype or config.get("dtype") or config.get("torch_dtype") or own).removeprefix("torch.")
    if name not in MERGED_DTYPES:
        raise MergeError(f"dtype = {name!r}: one of {', '.join(MERGED_DTYPES)}")
    plan = match(settings, updates, stored, base.name)
    untied = _untie(config, plan, stored)
    quantized = _linear_weights(base, name) if base_weights == "dequantized" else set()

    shards: dict[str, dict] = {}  # an output file for each of the base's, with the same tensors in it
    for key, tensor in sorted((stored | untied).items(), key=lambda item: (item[1].file, item[1].start)):
        shards.setdefault(tensor.file.name, {})[key] = tensor
    code = next(code for code, float_name in FLOATS.items() if float_name == name)
    layouts = {shard: _layout(tensors, code) for shard, tensors in shards.items()}
    total = sum(sum(sizes.values()) for _, sizes in layouts.values())
    check_sums(base, {tensor.file for tensor in stored.values()})
    import torch  # after the checks: it takes seconds

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        free = shutil.disk_usage(out.parent).free
        if free < total * 1.01:
            raise MergeError(f"{out} needs {total / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free")
        with (
            replace_folder(out) as new,
            FileLock(new / ".merging") as lock,  # let go when this process ends, however it does: see _sweep
            _bar(total, progress) as bar,
            ThreadPoolExecutor(1) as writer,
        ):
            for shard, tensors in shards.items():
                with open(new / shard, "wb", buffering=0) as file:
                    header, sizes = layouts[shard]
                    file.write(header)
                    for key, following in zip(sizes, [*list(sizes)[1:], list(sizes)[-1]], strict=True):
                        _fetch(tensors[following])
                        update = plan.get(key, {})
                        pieces = _pieces(tensors[key], update, getattr(torch, name))
                        if key in quantized and "instead" not in update:
                            pieces = _requantized(pieces, quant_type, double_quant)
                        writing = None  # one piece is written while the next one is computed
                        for piece in _updated(pieces, update):
                            bar.update(writing.result() if writing else 0)
                            writing = writer.submit(_write, file, piece.view(torch.uint8).numpy())
                        bar.update(writing.result() if writing else 0)
            for shard in shards:  # on the disk itself, so that "complete" holds after a power cut too
                with open(new / shard, "rb") as file:
                    os.fsync(file.fileno())
            if list(shards) != ["model.safetensors"]:
                where = {key: shard for shard, tensors in shards.items() for key in tensors}
                index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
                _write_json(new / "model.safetensors.index.json", index)
            changed = {"dtype": name} | ({"tie_word_embeddings": False} if untied else {})
            kept = {k: v for k, v in config.items() if k not in ("torch_dtype", "quantization_config")}
            _write_json(new / "config.json", kept | changed)
            _copy_beside(base, adapter, new)
            lock.release()
            (new / ".merging").unlink(missing_ok=True)
    except MergeError:
        raise
    except OSError as error:
        raise MergeError(f"{out} was not written: {error.strerror or error}") from error
    merged = sum("A" in update for update in plan.values())
    return {"tensors": len(stored | untied), "merged": merged, "bytes": total, "seconds": time.perf_counter() - begun}


def find_base(base) -> Path:
    """The folder of a base model: as named, the bundled one, or the hub's files (downloaded where they are not here)."""
    from helpers.models import BUNDLED_MODEL, offline

    folder = BUNDLED_MODEL if str(base) == "bundled" else Path(base).expanduser()
    if folder.is_dir():
        return folder
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
    from helpers.files import changed_asset

    changed = changed_asset(base.resolve())
    if changed:
        raise MergeError(f"the bundled model: {changed}: fetch the course again")
    for file in files:
        name = file.resolve().name
        if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", name):
            with open(file, "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != name:
                    raise MergeError(f"{file.name} has not the SHA-256 that the hub published: download it again")


def read_base(folder: Path) -> tuple[dict, dict[str, Stored]]:
    """(config, where each tensor lies) of a model; raises MergeError for one that is broken, pickled or quantized."""
    config, index = _read_json(folder / "config.json"), folder / "model.safetensors.index.json"
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        raise MergeError(f"{folder.name} is stored quantized ({method}): name the 16-bit model that it was made from")
    if not index.is_file():
        return config, tensors_in(folder / "model.safetensors")
    where = _read_json(index).get("weight_map", {})
    stored = {shard: tensors_in(folder / shard) for shard in sorted(set(where.values()))}
    lost = next((key for key, shard in where.items() if key not in stored[shard]), None)
    if lost or not where:
        raise MergeError(
            f"{index.name} says that {lost} is in {where.get(lost)}, and it is not: download the base again"
        )
    return config, {key: stored[shard][key] for key, shard in where.items()}


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
            raise MergeError(f"{key} in {file.name} is stored as {entry['dtype']}: merging needs 16 or 32 bits")
    return {k: Stored(file, start + e["data_offsets"][0], e["dtype"], tuple(e["shape"])) for k, e in header.items()}


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
    for key, tensor in stored.items():
        if "lora_embedding" in key:
            raise MergeError(f"{key}: LoRA on embeddings is not supported here: use PEFT's merge_and_unload()")
        if not all(piece.isfinite().all() for piece in _pieces(tensor, {}, None)):
            raise MergeError(
                f"{key} in {folder.name} holds NaN or infinity: the training went wrong, take an earlier one"
            )
    return settings, stored


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


def _untie(config: dict, plan: dict, stored: dict) -> dict[str, Stored]:
    """{"lm_head.weight": where it comes from} where the adapter parts a head from the embedding that it was tied to."""
    head, embedding = "lm_head.weight", next((k for k in stored if k.endswith("embed_tokens.weight")), None)
    if not config.get("tie_word_embeddings", head not in stored) or not ({head, embedding} & set(plan)):
        if head in plan and head not in stored:
            raise MergeError(
                "the adapter changes lm_head.weight, and the base has none: it was trained on another base"
            )
        return {}
    if embedding is None or "A" in plan.get(head, {}):
        raise MergeError(
            "LoRA on lm_head, which this base ties to its embedding: a merge would change both; untie it first"
        )
    if plan.get(head, plan.get(embedding))["instead"].shape != stored[embedding].shape:
        raise MergeError(
            f"lm_head.weight is {plan[head]['instead'].shape} in the adapter: it was trained on another base"
        )
    return {head: stored.get(head, stored[embedding])}


def _linear_weights(base: Path, dtype: str) -> set[str]:
    """Names of the weights that transformers quantizes on loading: those of linear layers, less head and tied ones."""
    import torch
    import transformers
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    with torch.device("meta"):  # shapes without memory
        config = transformers.AutoConfig.from_pretrained(base)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    skipped = get_keys_to_not_convert(model) + list(model._keep_in_fp32_modules or ())
    modules = [(name, module) for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    return {f"{name}.weight" for name, _ in modules if should_convert_module(name, skipped)}


def _pieces(tensor: Stored, update: dict, dtype):
    """Yield a stored tensor, or the one that the adapter has instead, flat, a piece at a time, as `dtype`.

    Integers keep their dtype, and so does everything for None. A piece is overwritten by the next but one.
    """
    import torch

    tensor, size = update.get("instead", tensor), _piece_size(tensor)
    own = getattr(torch, (FLOATS | OTHERS)[tensor.code])
    with open(tensor.file, "rb") as file:
        file.seek(tensor.start)
        rooms = [torch.empty(min(size, tensor.numel), dtype=own) for _ in range(2)]
        for done in range(0, tensor.numel, size):
            rooms.reverse()
            piece = rooms[0][: tensor.numel - done]
            if file.readinto(piece.view(torch.uint8).numpy()) != piece.nbytes:
                raise MergeError(f"{tensor.file} ended while it was read: copy or download it again")
            yield piece.to(dtype) if dtype and own.is_floating_point else piece


def _piece_size(tensor: Stored, row: int = 0) -> int:
    """Elements in a piece: about PIECE, in whole rows of a matrix and in whole blocks of 64."""
    row = row or math.prod(tensor.shape[1:]) or 1
    rows = max(16, 64 // math.gcd(row, 64))
    return row * rows * max(1, PIECE // (row * rows))


def _whole(tensor: Stored):
    """A tensor of the adapter, float32 as PEFT holds it (autocast_adapter_dtype), in its shape."""
    import torch

    return torch.cat([piece.float().clone() for piece in _pieces(tensor, {}, None)]).view(tensor.shape)


def _requantized(pieces, quant_type: str, double_quant: bool):
    """Yield the weight as bitsandbytes quantizes and dequantizes it, from its pieces; blocks of 64, nested ones of 256.

    Equal to quantize_4bit of the whole, which would take nine times the weight's memory: only the mean of the absmax,
    in double quantization, looks beyond a block.
    """
    import torch
    from bitsandbytes import functional

    packed = [functional.quantize_4bit(piece, quant_type=quant_type, compress_statistics=False) for piece in pieces]
    absmax = torch.cat([state.absmax for _, state in packed])
    if double_quant:
        offset = absmax.mean()
        codes, nested = functional.quantize_blockwise(absmax - offset, blocksize=256)
        absmax = functional.dequantize_blockwise(codes, nested).add_(offset)
    for (codes, state), own in zip(packed, absmax.split([len(state.absmax) for _, state in packed]), strict=True):
        state.absmax = own
        yield functional.dequantize_4bit(codes, state).view(-1)


def _updated(pieces, update: dict):
    """Yield the pieces with the adapter's update added: scaling * B A for a weight, scaling * add for a bias."""
    if "A" in update:
        steps = _product(_whole(update["B"]), _whole(update["A"]), _piece_size(update["B"], update["A"].shape[1]))
    elif "add" in update:
        steps = _whole(update["add"]).split(_piece_size(update["add"]))
    else:
        yield from pieces
        return
    for piece, step in zip(pieces, steps, strict=True):
        yield piece.copy_(step.mul_(update["scaling"]).add_(piece))  # in float32, rounded once


def _product(b, a, size: int):
    """Yield B A, float32, flat, `size` elements at a time (one room for all), with the bits of the whole product.

    A few rows at a time are twice as fast, since they stay in the cache. But how a matrix library sums at the edge of a
    matrix depends on its shape (513 x 777 differs by rows with MKL), so each shape is first compared with the whole.
    """
    import torch

    rows = size // a.shape[1]
    shape = (*b.shape, a.shape[1], rows, torch.get_num_threads())
    room = torch.empty(min(rows, len(b)), a.shape[1])
    parts = (torch.mm(part, a, out=room[: len(part)]) for part in b.split(rows))
    if shape not in _same_by_rows:
        whole = b @ a
        pairs = zip(b.split(rows), whole.split(rows), strict=True)
        _same_by_rows[shape] = all(torch.equal(torch.mm(part, a, out=room[: len(part)]), e) for part, e in pairs)
        parts = whole.split(rows)
    elif not _same_by_rows[shape]:
        parts = (b @ a).split(rows)
    yield from (part.view(-1) for part in parts)


_same_by_rows: dict[tuple, bool] = {}  # (out, rank, in, rows, threads): whether a product by rows has the same bits


def _layout(tensors: dict[str, Stored], code: str) -> tuple[bytes, dict[str, int]]:
    """(header, bytes of each tensor in the order of writing) of a file whose floats are written as `code`."""
    codes = {key: code if tensor.code in FLOATS else tensor.code for key, tensor in tensors.items()}
    order = sorted(tensors, key=lambda key: -WIDTHS[codes[key]])  # so that each lies at a multiple of its own width
    sizes = {key: tensors[key].numel * WIDTHS[codes[key]] for key in order}
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for key in order:
        end = start + sizes[key]
        header[key] = {"dtype": codes[key], "shape": tensors[key].shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text, sizes


def _copy_beside(base: Path, adapter: Path, new: Path) -> None:
    """Tokenizer (the adapter's, where training saved one: its template is the one trained on), generation config."""
    source = adapter if (adapter / "tokenizer_config.json").is_file() else base
    for folder, patterns in ((base, BESIDE), (source, TOKENIZER)):
        for file in (file for pattern in patterns for file in folder.glob(pattern)):
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, new / file.name)


def _check_out(out: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    if any(source.resolve().is_relative_to(out.resolve()) for source in sources):
        raise MergeError(f"{out} holds the base or the adapter: name another folder for the merged model")
    if out.exists() and not overwrite:
        raise MergeError(f"{out} is there already: name another folder, or say overwrite")
    if out.exists() and not (out / "config.json").is_file():
        raise MergeError(f"{out} is not the folder of a model, and is not overwritten: name another")


def _sweep(out: Path) -> None:
    """Remove what merges into `out` left behind when they were killed: nobody holds their lock any more."""
    for lock in out.parent.glob(f".{glob.escape(out.name)}.*.part/.merging"):
        try:
            FileLock(lock).acquire(blocking=False).lock.release()
        except Timeout:
            continue  # of a merge that is running
        shutil.rmtree(lock.parent, ignore_errors=True)


def _fetch(tensor: Stored) -> None:
    """Have the system read a tensor into its cache beside what is being computed (Linux; elsewhere it is read later)."""
    if hasattr(os, "posix_fadvise"):
        with open(tensor.file, "rb") as file:
            os.posix_fadvise(file.fileno(), tensor.start, tensor.numel * WIDTHS[tensor.code], os.POSIX_FADV_WILLNEED)


def _write(file, piece) -> int:
    """Write a piece; every BEHIND bytes have the system put on the disk what is new, and forget what is there already.

    So its cache takes little memory, and the same pages again. Writing to fresh ones took several times as long on a
    virtual machine: presumably its host must give it each of them first.
    """
    done = file.tell()
    rest = memoryview(piece)
    while rest:  # an unbuffered write may take a part
        rest = rest[file.write(rest) :]
    if done // BEHIND < file.tell() // BEHIND and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return piece.nbytes


def _bar(total: int, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc="merging", disable=not progress, leave=False)


def _read_json(file: Path) -> dict:
    if not file.is_file():
        raise MergeError(f"no {file.name} in {file.parent}: name a folder that save_pretrained wrote")
    try:
        return read_object(file)
    except ValueError as error:
        raise MergeError(f"{file} cannot be read ({error})") from error


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
