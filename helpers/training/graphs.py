"""The decoder's passes as CUDA graphs: recorded once for each shape of batch, then replayed with one launch."""

import contextlib
import gc
import warnings
from unittest.mock import patch

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

MULTIPLE = 64  # pad batches to a multiple of it, SFTConfig(pad_to_multiple_of=MULTIPLE): fewer shapes to record


class _Decoder(torch.nn.Module):
    """What is recorded: token ids [rows, tokens] in, the last hidden states [rows, tokens, hidden] out."""

    def __init__(self, decoder, plain):
        super().__init__()
        self.decoder, self.plain = decoder, plain

    def forward(self, input_ids):
        return self.plain(input_ids=input_ids, use_cache=False).last_hidden_state


@contextlib.contextmanager
def recorded(trainer):
    """Inside this context, training passes through the decoder are CUDA graphs, by torch.cuda.make_graphed_callables.

    A 7B model's step is thousands of small launches, and a fast GPU waits for Python to send them; a graph sends them all
    at once. The longest batch, `per_device_train_batch_size` x `max_length` rounded up to MULTIPLE, is recorded first.
    Other shapes are replayed in its memory, but while one is recorded its warm-up takes ordinary memory beside it, and each
    keeps a set of the adapters' gradients. Yields a list that will hold the recorded shapes, (rows, tokens).

    For a PEFT model of Llama's kind (tried: Llama's and Mistral's) on one GPU, without activation checkpointing, whose
    batches are padded on the right, as TRL pads: such rows need no attention mask, and none is looked at. A decoder whose
    Python waits for the GPU's answer cannot be recorded. Evaluation, and anything with more inputs than ids and mask, goes
    the plain way. With dropout a resumed run draws other masks than an unbroken one.
    """
    model, args, graphs, shapes = trainer.model, trainer.args, {}, []
    decoder, pool = model.get_base_model().base_model, torch.cuda.graph_pool_handle()
    plain = decoder.forward

    def forward(input_ids=None, attention_mask=None, **others):
        more = any(value is not None for name, value in others.items() if name != "use_cache")
        if input_ids is None or more or not (decoder.training and torch.is_grad_enabled()):
            return plain(input_ids=input_ids, attention_mask=attention_mask, **others)
        if not graphs:
            for p in model.parameters():  # autograd would take a graph's own memory, which the next batch overwrites
                if p.requires_grad and p.grad is None:
                    p.grad = torch.zeros_like(p)
            longest = max(args.max_length or 0, input_ids.shape[1])
            record(args.per_device_train_batch_size, -(-longest // MULTIPLE) * MULTIPLE)
        if tuple(input_ids.shape) not in graphs:
            record(*input_ids.shape)
        return BaseModelOutputWithPast(last_hidden_state=graphs[tuple(input_ids.shape)](input_ids))

    def record(*shape):
        kind = model.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with (
            torch.autocast(kind, dtype, enabled, cache_enabled=False),
            # Whether rows are packed is a question to the GPU, and a recording cannot wait for an answer. They are not.
            patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None),
        ):
            sample = torch.zeros(shape, dtype=torch.long, device=model.device)
            passes = _Decoder(decoder, plain).train()
            graphs[shape] = torch.cuda.make_graphed_callables(passes, (sample,), num_warmup_iters=2, pool=pool)
        shapes.append(shape)

    try:
        with (
            patch.object(decoder, "forward", forward),
            patch.object(model, "zero_grad", lambda set_to_none=True: trainer.optimizer.zero_grad(set_to_none=False)),
            warnings.catch_warnings(),
        ):
            # Gradients are added up on another stream than the one that recorded: as it must be.
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
            yield shapes
    finally:
        graphs.clear()
        for p in model.parameters():
            p.grad = None
        gc.collect()  # a graph refers to itself
        torch.cuda.empty_cache()
