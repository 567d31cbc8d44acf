"""The merged weight W + scaling * B A, a piece at a time, with the bits of PEFT's merge.

(Hu et al. 2021, arXiv 2106.09685, section 4.1.) What is held at once is a few megabytes of rows; one product B A,
float32, when its shape is first seen; and with "dequantized" the 4-bit codes of one weight.
"""

import math
from pathlib import Path

from helpers.merging.stored import FLOATS, OTHERS, MergeError, Stored

PIECE = 1 << 19  # elements worked on at a time: they stay in the processor's cache. A multiple of bitsandbytes' block


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

    Integers keep their dtype, and so does everything for None. A piece is valid until the second `next()` after it.
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
