"""Merge a LoRA adapter into its base tensor by tensor, bit for bit as PEFT's merge_and_unload(), in little memory.

A merged weight is W + scaling * B A (Hu et al. 2021, arXiv 2106.09685, section 4.1). The files of the base are read by
offset, not mapped, and each output file is written as it is read: a JSON header, then the tensors one behind the other
(https://huggingface.co/docs/safetensors, "Format"). What is held at once is some twenty megabytes of rows; one
product B A, float32, when its shape is first seen; and with "dequantized" the 4-bit codes of one weight.
"""

import contextlib
import fnmatch
import functools
import glob
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout  # it comes with huggingface-hub

from helpers.files import finish_replacing, replace_folder
from helpers.merging.adapter import read_adapter
from helpers.merging.arithmetic import _pieces, _requantized, _stacked, _updated
from helpers.merging.keys import read_parts
from helpers.merging.matching import match, plain, wrong_base
from helpers.merging.names import Built
from helpers.merging.stored import (
    BEHIND,
    BESIDE,
    FLOATS,
    MERGED_DTYPES,
    TOKENIZER,
    MergeError,
    Stored,
    _fetch,
    _layout,
    check_sums,
    find_base,
    read_base,
)
from helpers.merging.tying import untie, vocabulary


@dataclass(frozen=True)
class _Plan:
    """What a merge will write: known, and checked, before the first byte is written."""

    base: Path
    adapter: Path
    out: Path
    settings: dict  # the merged model's config.json
    dtype: str
    updates: dict[str, dict]  # of each tensor that changes: see `match`
    files: dict[str, dict[str, Stored]]  # the tensors of each output file, by the file's name
    layouts: dict[str, tuple]  # header and sizes of each: see `_layout`

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return sum(sum(sizes.values()) for _, sizes in self.layouts.values())


def merge_adapter(
    base,
    adapter,
    out,
    base_weights: str = "original",
    dtype=None,
    *,
    quant_type: str = "nf4",
    double_quant: bool = True,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Write base + adapter to the folder `out` as an ordinary model; returns tensors, merged, bytes, seconds.

    base: a folder with *.safetensors, a hub id, or "bundled". adapter: a folder that PEFT's save_pretrained wrote.
    base_weights: "original", or "dequantized" for what a base loaded in 4 bits (quant_type, double_quant) computes with.
    device: where the base is quantized for that, "cuda" or "cpu"; None is a GPU where there is one. Let it be what the base
    was loaded on: of the scales, one in 500 lies midway between two 8-bit codes, and bitsandbytes' quantizers on GPU and CPU
    choose different ones (all weights of the bundled model, one H100 against its host).
    dtype: "float16", "bfloat16" or "float32"; None is the base's own. `out` is complete or absent, whatever happens.
    Raises MergeError, one line, before anything is written where that can be known.
    """
    if base_weights not in ("original", "dequantized"):
        raise MergeError(f'base_weights = {base_weights!r}: "original" or "dequantized"')
    if quant_type not in ("nf4", "fp4"):
        raise MergeError(f'quant_type = {quant_type!r}: "nf4" or "fp4"')
    if device not in (None, "cuda", "cpu"):
        raise MergeError(f'device = {device!r}: "cuda", "cpu", or None for a GPU where there is one')
    begun, out = time.perf_counter(), Path(out).expanduser()
    base, adapter = find_base(base), Path(adapter).expanduser()
    finish_replacing(out.parent, glob.escape(out.name))
    _check_out(out, (base, adapter), overwrite)
    plan, built = _planned(base, adapter, out, dtype)
    device = _quantizing_device(device)
    quantized = _quantized(built()) if base_weights == "dequantized" else {}

    def quantize(key: str, pieces, shape: tuple[int, ...]):
        if key not in quantized:
            return pieces
        return _requantized(pieces, quant_type, double_quant, shape if quantized[key] else (), device)

    try:
        with alone(out):
            _write_model(plan, quantize, progress)
    except MergeError:
        raise
    except OSError as error:
        raise MergeError(f"{out} was not written: {error.strerror or error}") from error
    finally:
        _stacked.cache_clear()  # some gigabytes
    merged = sum(bool({"A", "stacked"} & update.keys()) for update in plan.updates.values())
    tensors = sum(map(len, plan.files.values()))
    return {"tensors": tensors, "merged": merged, "bytes": plan.bytes, "seconds": time.perf_counter() - begun}


def _quantizing_device(wanted: str | None) -> str:
    """ "cuda" or "cpu"; MergeError if a GPU is asked for and there is none."""
    import torch  # after the checks: it takes seconds

    if wanted == "cuda" and not torch.cuda.is_available():
        raise MergeError('device = "cuda": no GPU is in sight')
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def _planned(base: Path, adapter: Path, out: Path, dtype) -> tuple[_Plan, Callable[[], Built]]:
    """(what a merge will write, the base's model where it is asked for); MergeError if the two do not fit together."""
    of_adapter, tensors = read_adapter(adapter)
    config, stored = read_base(base)
    own = next((FLOATS[tensor.code] for tensor in stored.values() if tensor.code in FLOATS), None)
    name = str(dtype or config.get("dtype") or config.get("torch_dtype") or own).removeprefix("torch.")
    if name not in MERGED_DTYPES:
        raise MergeError(f"dtype = {name!r}: one of {', '.join(MERGED_DTYPES)}")
    built, parts = functools.cache(lambda: Built(base.name, config, stored)), read_parts(tensors)
    settings = {k: v for k, v in config.items() if k not in ("torch_dtype", "quantization_config")} | {"dtype": name}
    if plain(of_adapter, parts, stored, config):
        updates = match(of_adapter, parts, stored, base.name)
    else:
        updates = match(of_adapter, parts, stored, base.name, built())
        added, tied = untie(built(), of_adapter, updates, stored)
        stored = stored | added
        size = vocabulary(built(), updates, stored, wrong_base(of_adapter, base.name))
        settings = _changed_settings(settings, {"vocab_size": size} if size else {}, tied)
        misfit = Built(base.name, settings, stored).misfit(stored) if size else None
        if misfit:
            raise MergeError(
                f"a vocabulary of {size} tokens does not fit {misfit} of the base: resize the base, and save it"
            )
    files: dict[str, dict] = {}  # an output file for each of the base's, with the same tensors in it
    for key, tensor in sorted(stored.items(), key=lambda item: (item[1].file, item[1].start)):
        files.setdefault(tensor.file.name, {})[key] = tensor
    code = next(code for code, float_name in FLOATS.items() if float_name == name)
    layouts = {file: _layout(held, code) for file, held in files.items()}
    check_sums(base, {tensor.file for tensor in stored.values()})
    return _Plan(base, adapter, out, settings, name, updates, files, layouts), built


def _changed_settings(config: dict, new: dict, tied: bool) -> dict:
    """A config with a new vocab_size, or an untied head, wherever it says either: a multimodal one has text_config too."""
    new = new if tied else new | {"tie_word_embeddings": False}
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config | new
    inner = {"text_config": text | new}
    return config | {key: value for key, value in new.items() if key in config or key != "vocab_size"} | inner


def _quantized(of: Built) -> dict[str, bool]:
    """The file's names of the weights that a base in 4 bits quantizes, and whether it turns them round first."""
    linear = of.linear()
    if not linear:  # Falcon's are a class of its own
        raise MergeError(
            f"loading in 4 bits quantizes no layer of a {type(of.model).__name__}: merge into the original weights instead"
        )
    joined = next((name for name in linear if name not in of.key_of), None)
    if joined:
        raise MergeError(
            f"the base's files hold {joined} in another layout or not at all: merge into the original weights instead"
        )
    return {of.key_of[name]: turned for name, turned in linear.items()}


def _write_model(plan: _Plan, quantize, progress: bool) -> None:
    """Write what was planned into a folder of its own, which then becomes `plan.out`."""
    free = shutil.disk_usage(plan.out.parent).free
    if free < plan.bytes * 1.01:
        raise MergeError(f"{plan.out} needs {plan.bytes / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free")
    with (
        replace_folder(plan.out) as new,
        _bar(plan.bytes, progress) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        for name in plan.files:
            for written in _write_file(new / name, plan, quantize, writer):
                bar.update(written)
        for name in plan.files:  # on the disk itself, so that "complete" holds after a power cut too
            with open(new / name, "rb") as file:
                os.fsync(file.fileno())
        if list(plan.files) != ["model.safetensors"]:
            where = {key: name for name, tensors in plan.files.items() for key in tensors}
            index = {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(where.items()))}
            _write_json(new / "model.safetensors.index.json", index)
        _write_json(new / "config.json", plan.settings)
        _copy_beside(plan.base, plan.adapter, new)


def _write_file(path: Path, plan: _Plan, quantize, writer):
    """Write one file of the merged model; yields the bytes written, piece by piece.

    `quantize(key, pieces, shape)` gives the pieces as a base in 4 bits computes with them. One piece is written by `writer`
    while the next one is computed.
    """
    import torch  # after the checks: it takes seconds

    (header, sizes), tensors = plan.layouts[path.name], plan.files[path.name]
    with open(path, "wb", buffering=0) as file:
        file.write(header)
        for key, following in zip(sizes, [*list(sizes)[1:], list(sizes)[-1]], strict=True):
            _fetch(tensors[following])
            update = plan.updates.get(key, {})
            pieces = _pieces(tensors[key], update, getattr(torch, plan.dtype))
            if "instead" not in update:
                pieces = quantize(key, pieces, tensors[key].shape)
            writing = None
            for piece in _updated(pieces, update, tensors[key].shape):
                yield writing.result() if writing else 0
                writing = writer.submit(_write, file, piece.view(torch.uint8).numpy())
            yield writing.result() if writing else 0


def _copy_beside(base: Path, adapter: Path, new: Path) -> None:
    """Tokenizer (the adapter's, where training saved one: its template is the one trained on), generation config."""
    source = adapter if (adapter / "tokenizer_config.json").is_file() else base
    for folder, patterns in ((base, BESIDE), (source, TOKENIZER)):
        for file in (file for pattern in patterns for file in folder.glob(pattern)):
            copy = shutil.copytree if file.is_dir() else shutil.copyfile
            copy(file, new / file.name)


def _check_out(out: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    if any(source.resolve().is_relative_to(out.resolve()) for source in sources):
        raise MergeError(f"{out} holds the base or the adapter: name another folder for the merged model")
    if out.exists() and not overwrite:
        raise MergeError(f"{out} is there already: name another folder, or say overwrite")
    if out.exists() and not (out / "config.json").is_file():
        raise MergeError(f"{out} is not the folder of a model, and is not overwritten: name another")
    own = ("config.json", "*.safetensors", "*.safetensors.index.json", "README.md", *BESIDE, *TOKENIZER)
    inside = sorted(place.name for place in out.iterdir()) if out.exists() else []
    other = next((name for name in inside if not any(fnmatch.fnmatch(name, pattern) for pattern in own)), None)
    if other:
        raise MergeError(f"{out} holds {other}, which no merge wrote, and is not overwritten: name another")


@contextlib.contextmanager
def alone(out: Path):
    """Be the only one that writes to `out`, and remove what others left there when they were killed.

    The lock lies beside the folders that it guards, is there before the first of them, and goes after the last. The
    system lets it go when a process ends, however it ends. So whoever holds it knows that every half folder is nobody's.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(f".{out.name}.merging"), blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise MergeError(f"{out} is being written by another process now: wait for it, or name another") from error
    with lock:
        try:
            finish_replacing(out.parent, glob.escape(out.name), at_once=True)
            yield
        finally:
            # While it is held: a merge that waits sees that the file is gone, and makes its own.
            Path(lock.lock_file).unlink(missing_ok=True)


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


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
