"""The merged weight W + scaling * B A, a piece at a time, with the bits of PEFT's merge.

(Hu et al. 2021, arXiv 2106.09685, section 4.1.) What is held at once is some twenty megabytes of rows; one product B A,
float32, when its shape is first seen; and with "dequantized" the 4-bit codes of one weight. Updates of less usual kinds
(DoRA, LoRA on an embedding, a Conv1D or stacked experts, rows of tokens) take their whole tensor at once.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from helpers.merging.stored import FLOATS, OTHERS, MergeError, Stored

# Elements worked on at a time, a multiple of bitsandbytes' block. A quarter of it stays in more processors' caches, but the
# threads are started and joined at each piece: with two threads it took 1.4 times as long.
PIECE = 1 << 21


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
    return _joined(piece.float() for piece in _pieces(tensor, {}, None)).view(tensor.shape)


def _joined(pieces):
    import torch

    return torch.cat([piece.clone() for piece in pieces])  # a piece is overwritten by the second one after it


def _requantized(pieces, quant_type: str, double_quant: bool, conv1d: tuple[int, ...] = (), device: str = "cpu"):
    """Yield the weight as bitsandbytes quantizes and dequantizes it, from its pieces; blocks of 64, nested ones of 256.

    Equal to quantize_4bit of the whole, which would take nine times the weight's memory: only the mean of the absmax,
    in double quantization, looks beyond a block. conv1d: the shape of a weight that is transposed before. device: where it
    is computed; what is yielded lies in the computer's memory.
    """
    import torch
    from bitsandbytes import functional

    if conv1d:
        turned = _joined(pieces).view(conv1d).T
        whole = _joined(_requantized(turned.reshape(-1).split(PIECE), quant_type, double_quant, device=device))
        yield whole.view(turned.shape).T.reshape(-1)
        return
    there = (piece.to(device) for piece in pieces)
    packed = [functional.quantize_4bit(piece, quant_type=quant_type, compress_statistics=False) for piece in there]
    absmax = torch.cat([state.absmax for _, state in packed])
    if double_quant:
        offset = absmax.mean()
        codes, nested = functional.quantize_blockwise(absmax - offset, blocksize=256)
        absmax = functional.dequantize_blockwise(codes, nested).add_(offset)
    for (codes, state), own in zip(packed, absmax.split([len(state.absmax) for _, state in packed]), strict=True):
        state.absmax = own
        yield functional.dequantize_4bit(codes, state).view(-1).cpu()


def _updated(pieces, update: dict, shape: tuple[int, ...]):
    """Yield the pieces of a tensor with the adapter's update in them.

    A, B, scaling: scaling * B A is added to a weight; add, scaling: scaling * add to a bias. With these: transposed, for
    a weight that lies (in, out); rounded, where PEFT gives the update the weight's dtype before it adds; magnitude, for
    DoRA. rows, indices: rows that are replaced. stacked: see `Stacked`. instead was read in place of the base's own.
    """
    if update.keys() & {"transposed", "rounded", "magnitude", "rows", "stacked"}:
        yield _changed(_joined(pieces).view(shape), update).reshape(-1)
        return
    if "A" in update:
        steps = _product(_whole(update["B"]), _whole(update["A"]), _piece_size(update["B"], update["A"].shape[1]))
    elif "add" in update:
        steps = _whole(update["add"]).split(_piece_size(update["add"]))
    else:
        yield from pieces
        return
    for piece, step in zip(pieces, steps, strict=True):
        yield piece.copy_(step.mul_(update["scaling"]).add_(piece))  # in float32, rounded once


def _changed(weight, update: dict):
    """A whole weight with its update, computed in the order and the dtypes of PEFT's merge."""
    import torch

    if "rows" in update:
        weight[torch.tensor(update["indices"])] = _whole(update["rows"]).to(weight.dtype)
        return weight
    if "stacked" in update:
        return weight.add_(_stacked(update["stacked"], weight.dtype)[update["key"]])
    delta = _whole(update["B"]) @ _whole(update["A"])
    delta = (delta.T if update.get("transposed") else delta) * update["scaling"]
    if "magnitude" in update:  # DoRA (arXiv 2402.09353, equation 5): each column is scaled to a trained length
        return _of_length(weight, delta, _whole(update["magnitude"]), update.get("transposed", False)).to(weight.dtype)
    return weight.add_(delta.to(weight.dtype) if update.get("rounded") else delta)


def _of_length(weight, delta, magnitude, transposed: bool):
    """The sum of weight and update, each of its outputs' weights scaled to the length that `magnitude` has for it."""
    import torch

    if transposed:
        factor = magnitude.view(-1) / torch.linalg.norm(weight.T + delta.T, dim=1)
        return factor.view(1, -1) * (weight + delta)
    return (magnitude.view(-1) / torch.linalg.norm(weight + delta, dim=1)).view(-1, 1) * (weight + delta)


@dataclass(frozen=True, eq=False)
class Stacked:
    """LoRA on a parameter that stacks experts: (experts, out, in), or (experts, in, out) where it is transposed."""

    parameter: str
    A: Stored  # (rank * experts, in)
    B: Stored  # (out, rank * experts)
    scaling: float
    experts: int
    transposed: bool
    parted: Callable  # of a tensor of the parameter's shape: {name in the base's files: its part}


@functools.lru_cache(maxsize=2)  # the tensors of one layer's two parameters lie mixed in a file
def _stacked(update: Stacked, dtype):
    """{name in the base's files: what is added to it}, rounded to `dtype` as PEFT does."""
    import torch

    a, b = _whole(update.A), _whole(update.B)
    a, b = a.view(update.experts, -1, a.shape[1]), b.view(b.shape[0], -1, update.experts)
    delta = torch.einsum(f"ore,eri->{'eio' if update.transposed else 'eoi'}", b, a) * update.scaling
    return update.parted(update.parameter, delta.to(dtype))


def same_bits(one: Stored, two: Stored) -> bool:
    """Whether two stored tensors are equal to the last bit."""
    if (one.code, one.shape) != (two.code, two.shape):
        return False
    pairs = zip(_pieces(one, {}, None), _pieces(two, {}, None), strict=True)
    return all(a.equal(b) for a, b in pairs)


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
