"""The weights of a model as GGUF has them: under its names, some rows rearranged, quantized by `gguf`, in little memory."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.export.carried import Described, ExportError
from helpers.merging import FLOATS, Stored

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # those that `gguf` itself quantizes
PIECE = 1 << 19  # numbers that are worked on at a time
LARGEST_F16, LARGEST_BF16 = 65504.0, 3.38e38
SMALL = 1e-5  # a block with a larger weight has a scale that float16 holds
MAY_VANISH = 1e-3  # a part of a tensor's weights: of any large tensor a few are that small, and do not matter
NOT_WEIGHTS = ".rotary_emb.inv_freq"  # old files hold these frequencies, which follow from the settings


@dataclass(frozen=True)
class Weight:
    """One tensor of the file: its name there, where it comes from, as what it is written."""

    name: str
    source: Stored | np.ndarray
    kind: Any  # gguf.GGMLQuantizationType
    head: int = 0  # rows of a head, where they are rearranged

    @property
    def bytes(self) -> int:
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.source.shape) // block * size


def plan_weights(wanted: dict[str, tuple], stored: dict[str, Stored], described: Described, type: str) -> list[Weight]:
    """The tensors in the order of writing; ExportError unless the files hold those of `wanted`, and no other."""
    import gguf

    have = {key: tensor for key, tensor in stored.items() if not key.endswith(NOT_WEIGHTS)}
    for key in sorted(wanted.keys() | have.keys()):
        there = have[key].shape if key in have else "absent"
        if there != wanted.get(key, "absent"):
            raise ExportError(f"{key} is {there} in the files and {wanted.get(key, 'absent')} by config.json")
        if have[key].code not in FLOATS:
            raise ExportError(f"{key} is stored as {have[key].code}: 16 or 32 bits are needed")
    architecture = described.architecture
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name.upper()], described.layers)
    weights = []
    for key in wanted:
        turned = architecture.turns_neighbours and key.rpartition(".")[0].endswith((".q_proj", ".k_proj"))
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"{key} has no name in GGUF's {architecture.name}")
        weights.append(Weight(name, have[key], _kind(have[key].shape, type), described.head if turned else 0))
    if described.rope_factors is not None:
        weights.append(Weight("rope_freqs.weight", described.rope_factors, gguf.GGMLQuantizationType.F32))
    return weights


def _kind(shape: tuple[int, ...], type: str):
    """What a tensor is written as: vectors in float32; a matrix whose rows are no whole blocks in float16."""
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    kind = gguf.GGMLQuantizationType[type.upper()]
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else gguf.GGMLQuantizationType.F16


def write_weights(writer, weights: list[Weight], file: Path, progress: bool, notes: list[str]) -> None:
    """Write the whole file: what `writer`, a GGUFWriter, was told, then the tensors, a piece at a time.

    notes: gets a line on weights that are too small for the format, if there are any.
    """
    from tqdm.auto import tqdm

    for weight in weights:
        writer.add_tensor_info(weight.name, weight.source.shape, np.dtype("float32"), weight.bytes, weight.kind)
    vanished: Counter[str] = Counter()
    try:
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        opened, total = writer.fout[0], sum(weight.bytes for weight in weights)
        writer.write_padding(opened, opened.tell())
        with tqdm(total=total, unit="B", unit_scale=True, desc="exporting", disable=not progress, leave=False) as bar:
            for weight in weights:
                begin = opened.tell()
                for piece in quantized(weight, vanished):
                    opened.write(piece)
                    bar.update(piece.nbytes)
                writer.write_padding(opened, opened.tell() - begin)
    finally:
        writer.close()
    lost = {w.name: vanished[w.name] for w in weights if vanished[w.name] > MAY_VANISH * math.prod(w.source.shape)}
    if lost:
        notes.append(
            f"{sum(lost.values()):,} weights are too small for the format and become 0, most of them in "
            f"{max(lost, key=lambda name: lost[name])}: choose bf16 or f32"
        )


def quantized(weight: Weight, vanished: Counter[str]):
    """Yield a tensor as it stands in the file, a piece at a time, each of whole rows.

    vanished: counts under the tensor's name the weights, none of them 0, that become 0 because float16 does not hold them,
    or the scale of their block.
    """
    import gguf

    for piece in _pieces(weight):
        sizes = np.abs(piece)
        largest = sizes.max(initial=0)
        if not np.isfinite(largest):
            raise ExportError(f"{weight.name} holds NaN or infinity in float32: the model is broken")
        with np.errstate(all="ignore"):
            data = np.ascontiguousarray(gguf.quantize(piece, weight.kind))
            # The scale of a block is a float16 too, and bf16 rounds the largest numbers of float32 to infinity.
            if largest > LARGEST_F16 and not np.isfinite(gguf.dequantize(data, weight.kind)).all():
                kind = weight.kind.name.lower()
                wider = "bf16 or f32" if kind != "bf16" and largest < LARGEST_BF16 else "f32"
                raise ExportError(f"{weight.name} holds {largest:.6g}, too large for {kind}: choose {wider}")
            vanished[weight.name] += _vanished(sizes, weight.kind)
        yield data


def _vanished(sizes: np.ndarray, kind) -> int:
    """How many weights of these sizes, whole rows of them, become 0 with all of their block, which is one weight in float16."""
    import gguf

    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.BF16):
        return 0
    blocks = sizes.reshape(-1, gguf.GGML_QUANT_SIZES[kind][0])
    small = blocks.max(axis=1)
    few = blocks[(small > 0) & (small < SMALL)]
    if not few.size:
        return 0
    kept = gguf.dequantize(gguf.quantize(few, kind), kind).reshape(few.shape)
    return int(np.count_nonzero(few[~kept.any(axis=1)]))


def _pieces(weight: Weight):
    """Yield a tensor as float32, some rows at a time, those of a head in the order in which llama.cpp turns them."""
    source = weight.source
    if isinstance(source, np.ndarray):
        yield source
        return
    own, row = np.dtype({"BF16": "u2"}.get(source.code) or FLOATS[source.code]), math.prod(source.shape[1:])
    unit = weight.head or 1
    step = unit * max(1, PIECE // (row * unit))  # rows
    for first in range(0, source.shape[0], step):
        rows = min(step, source.shape[0] - first)
        piece = np.fromfile(source.file, own, rows * row, offset=source.start + first * row * own.itemsize)
        if piece.size != rows * row:
            raise ExportError(f"{source.file} ended while it was read: copy or download it again")
        if source.code == "BF16":
            piece = (piece.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # of float64, which may be larger
            piece = piece.astype(np.float32, copy=False)
        piece = piece.reshape(rows, *source.shape[1:])
        yield _turned(piece, weight.head) if weight.head else piece


def _turned(rows: np.ndarray, head: int) -> np.ndarray:
    """The rows of each head rearranged: number i of its first half, then number i of its second, for each i.

    transformers rotates number i of the first half together with number i of the second, llama.cpp two neighbours.
    """
    return rows.reshape(-1, 2, head // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
