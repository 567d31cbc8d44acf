"""Batches without padding on every GPU: rows one behind the other, attention within each row, memory that is bounded."""

import contextlib
from itertools import pairwise
from unittest.mock import patch

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

NAME = "within_rows"  # among transformers' kinds of attention, once this file was imported


def within_rows(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **more):
    """Causal attention within each row of a batch that TRL's padding-free collator made.

    query [1, heads, tokens, size], key and value [1, heads or fewer, tokens, size]; `cu_seq_lens_q`, int32 [rows + 1], says
    where rows begin and end, and `max_length_q` how long the longest is. Returns ([1, tokens, heads, size], None). On a GPU
    all rows are one call of a kernel that a T4 has as well, torch's memory-efficient one; it builds no mask, whose size grows
    with the square of all tokens. Elsewhere one row is computed after the other. A batch that says nothing of rows is computed
    as transformers' sdpa does it. Raises ValueError for a window that is shorter than a row, and for a softcap.
    """
    bounds, longest = more.pop("cu_seq_lens_q", None), more.pop("max_length_q", None)
    if bounds is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    if more.get("softcap") is not None or longest > (more.get("sliding_window") or longest):
        raise ValueError(f"attention within rows has no softcap, and no window shorter than a row of {longest} tokens")
    groups = query.shape[1] // key.shape[1]
    states = (query, repeat_kv(key, groups), repeat_kv(value, groups))
    if query.device.type == "cuda":
        return _together(states, bounds, longest, dropout, scaling), None
    outputs = [
        scaled_dot_product_attention(*(x[:, :, a:b] for x in states), dropout_p=dropout, is_causal=True, scale=scaling)
        for a, b in pairwise(bounds.tolist())
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _together(states, bounds, longest, dropout, scaling):
    """All rows in one call of the kernel: [1, tokens, heads, size] from three tensors of [1, heads, tokens, size].

    torch has no public function for it that a T4 can run. Nested tensors call the same kernel, with so much work for Python
    around it that a step of a 7B model took two and a half times as long on an H100 (measurements/lengths_rows.jsonl).
    """
    flat = [x.transpose(1, 2) for x in states]
    causal, keep_for_backward = 1, True  # 1: each row's first token sees itself alone
    kernel = torch.ops.aten._efficient_attention_forward
    return kernel(*flat, None, bounds, bounds, longest, longest, dropout, causal, keep_for_backward, scale=scaling)[0]


AttentionInterface.register(NAME, within_rows)


def cut(bounds: list[int], max_tokens: int, at_least: int = 1) -> list[int]:
    """At which rows to cut a batch whose rows begin and end at `bounds`: the first row of each piece, and the number of rows.

    There are as few pieces as the order of the rows allows, but `at_least` so many, and none has more than `max_tokens` tokens.
    A row that is longer by itself is a piece by itself.
    """
    cuts = [0]
    for row in range(1, len(bounds)):
        if bounds[row] - bounds[cuts[-1]] > max_tokens and row - 1 > cuts[-1]:
            cuts.append(row - 1)
    cuts.append(len(bounds) - 1)
    while len(cuts) <= at_least:  # the piece with the most tokens among those of several rows, in its middle
        first, last = max(
            (pair for pair in pairwise(cuts) if pair[1] - pair[0] > 1), key=lambda p: bounds[p[1]] - bounds[p[0]]
        )
        middle = (bounds[first] + bounds[last]) / 2
        cuts = sorted([*cuts, min(range(first + 1, last), key=lambda row: abs(bounds[row] - middle))])
    return cuts


def pieces(batch: dict, cuts: list[int]) -> list[dict]:
    """A padding-free batch, cut between rows as `cut` says."""
    bounds = batch["cu_seq_lens_q"].tolist()
    found = []
    for first, last in pairwise(cuts):
        a, b = bounds[first], bounds[last]
        piece = {name: batch[name][:, a:b] for name in ("input_ids", "labels", "position_ids")}
        ends = batch["cu_seq_lens_q"][first : last + 1] - a
        longest = max(end - begin for begin, end in pairwise(bounds[first : last + 1]))
        piece |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        found.append(piece | {"seq_idx": batch["seq_idx"][:, a:b] - first})
    return found


@contextlib.contextmanager
def padding_free(trainer, max_tokens: int):
    """Inside this context, an SFTTrainer goes through its batches without padding, and in bounded memory.

    TRL's collator puts the rows of a batch one behind the other, as with `SFTConfig(padding_free=True)`. Rows do not see each
    other (`within_rows`), and at most `max_tokens` tokens go through the model at once: a longer batch is cut between rows into
    pieces, one after the other. TRL divides the loss by the labels of the whole step, so losses and gradients are those of
    padded batches of the same rows, up to rounding. Several processes that each have a copy of the model (DDP) cut their
    batches into equally many pieces, since TRL gathers numbers from all of them with each piece; gradients are averaged with
    the last one. For Llama's kind of model. Raises ValueError for another collator, and for FSDP, which was not tried.
    (SFTConfig refuses `max_length` beside `padding_free`, since only its preparation of rows cuts them; with this context it
    can stay.)
    """
    collate = trainer.data_collator
    padded = not trainer.padding_free
    if padded and not isinstance(collate, DataCollatorForLanguageModeling):
        raise ValueError(f"rows can be left without padding by TRL's own collator, and not by {type(collate).__name__}")
    if trainer.is_fsdp_enabled:
        raise ValueError("rows without padding were not tried with weights in parts (FSDP)")
    model, step = trainer.accelerator.unwrap_model(trainer.model), trainer.training_step
    model, before = model.get_base_model(), trainer.model.config._attn_implementation

    def pieces_of(batch) -> int:
        """How many pieces the batch needs; of several processes, the most that one of them needs."""
        count = 1  # where all goes at once, nobody waits for a GPU to say where rows end
        if batch["input_ids"].shape[1] > max_tokens:
            count = len(cut(batch["cu_seq_lens_q"].tolist(), max_tokens)) - 1
        if trainer.accelerator.num_processes == 1:
            return count
        return int(trainer.accelerator.gather(torch.tensor([count], device=trainer.args.device)).max())

    def in_pieces(model, batch, num_items_in_batch=None):
        count = pieces_of(batch)
        if count == 1:
            return step(model, batch, num_items_in_batch)
        if num_items_in_batch is None:
            raise ValueError("the loss is not divided by the labels of the whole step, so a batch cannot be cut")
        *first, last = pieces(batch, cut(batch["cu_seq_lens_q"].tolist(), max_tokens, count))
        with trainer.accelerator.no_sync(model):
            loss = sum(step(model, piece, num_items_in_batch) for piece in first)
        return loss + step(model, last, num_items_in_batch)

    model.set_attn_implementation(NAME)
    try:
        with contextlib.ExitStack() as around:
            around.enter_context(patch.object(trainer, "training_step", in_pieces))
            if padded:
                around.enter_context(patch.multiple(collate, padding_free=True, pad_to_multiple_of=None))
            yield
    finally:
        model.set_attn_implementation(before)
