"""Each workaround once, with the link that says why and the version in which to look again.

For each there is a test that asks `still_needed`, in tests/machine/test_machine.py or, for `right_dequantization`, in
tests/training/test_bitsandbytes_cpu.py: it fails when a change upstream has made the cure unnecessary.
"""

import contextlib


def keep_4bit_layout(model):
    """Stop bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16; returns the model.

    There a forward pass in eval mode changes the packing, after which dequantizing gives garbage, and so do LoRA
    gradients and merges. Call it right after loading. Seen in bitsandbytes 0.50.2; elsewhere it changes nothing.
    """
    import bitsandbytes as bnb

    right_dequantization()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def right_dequantization() -> None:
    """Have bitsandbytes dequantize 4-bit matrices as one long row, on a CPU, in this process from now on.

    Its kernel for CPUs with AVX512 takes the scales of row i from `i * (columns // block size)` on. That is the wrong place
    where a block reaches over the end of a row: where the columns are a multiple of 16, but not of the block size. Then
    training, generating and merging all go on with wrong weights. As one row no block reaches over an end, and the bytes
    of a matrix lie in one row anyway. Seen in bitsandbytes 0.50.2; on other CPUs it changes no result.
    """
    from bitsandbytes.cextension import lib

    for quant_type in ("nf4", "fp4"):
        for dtype in ("fp32", "fp16", "bf16"):
            name = f"cdequantize_blockwise_cpu_{quant_type}_{dtype}"
            kernel = getattr(lib, name, None)  # a build of bitsandbytes without it has no CPU kernels at all
            if kernel is not None and not hasattr(kernel, "as_one_row"):
                setattr(lib, name, _as_one_row(kernel))


def _as_one_row(kernel):
    import ctypes

    def dequantize(codes, absmax, out, block_size, rows, columns):
        kernel(codes, absmax, out, block_size, ctypes.c_longlong(1), ctypes.c_longlong(rows.value * columns.value))

    dequantize.as_one_row = kernel
    return dequantize


def adapters_to_float32(trainer):
    """Put trainable parameters back to float32, after SFTTrainer is built and before train(); returns the trainer.

    TRL casts the adapters of a quantized model to bfloat16 (huggingface/peft#2889). With fp16=True, which a T4 needs,
    the gradient scaler then stops: "_amp_foreach_non_finite_check_and_unscale_cuda" not implemented for 'BFloat16'.
    Seen in TRL 1.16.
    """
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def repeat_kv_heads(machine) -> bool:
    """Before Ampere, have transformers repeat key and value heads for SDPA; returns whether it did.

    transformers passes enable_gqa to SDPA whatever the GPU, and Turing's fused kernels refuse differing head counts:
    attention falls to the math kernel, whose memory grows with length squared (transformers#48633). Seen in 5.23.
    """
    if machine.device != "cuda" or machine.native_bfloat16:  # the units and these kernels came with the same GPUs
        return False
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = lambda *args, **kwargs: False
    return True


def liger_layers(path: str, machine) -> bool:
    """Have Liger's kernels compute norms, rotary embedding and SwiGLU, if it can; returns whether. Call before loading.

    Liger (https://github.com/linkedin/Liger-Kernel, `pip install liger-kernel`) is optional: without it, on a CPU, or for
    an architecture that it does not know, nothing changes. SFTConfig(use_liger_kernel=True) is deprecated in TRL 1.16,
    and TRL has a fused head of its own, so Liger's stays off.
    """
    if machine.device != "cuda":
        return False
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        return False
    from transformers import AutoConfig

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(AutoConfig.from_pretrained(path).model_type)
    if apply is None:
        return False
    apply(fused_linear_cross_entropy=False)
    return True


@contextlib.contextmanager
def fewer_walks(trainer):
    """Inside this context, the trainer does not walk through all of the model's modules several times a step.

    With adapters on q, k, v and o a 7B model has 1,705 modules, and each step of transformers' Trainer visits them all for
    train(), parameters(), zero_grad() and, to count FLOPs, num_parameters(), while the GPU waits. Within, model.parameters()
    gives the trained ones only, and the trainer counts no FLOPs. Seen in transformers 5.23.
    """
    model = trainer.model.train()  # every module, once
    trained, switch = [p for p in model.parameters() if p.requires_grad], model.train
    model.parameters = lambda recurse=True: iter(trained)
    model.train = lambda mode=True: model if model.training == mode else switch(mode)
    trainer.floating_point_ops = lambda inputs: 0
    try:
        yield
    finally:
        del model.parameters, model.train, trainer.floating_point_ops


def stop_at_max_steps(trainer):
    """Have `train()` take no step beyond `max_steps`, whatever checkpoint it goes on from; returns the trainer.

    transformers asks behind a step whether it was the last one, and never before a step. So a run that goes on from the
    checkpoint of its last step, in the middle of an epoch, takes one step more each time. Without batches there is none to
    take.
    """
    batches = trainer.get_batch_samples

    def none_beyond(*words, **more):
        return ([], None) if trainer.state.global_step >= trainer.state.max_steps else batches(*words, **more)

    trainer.get_batch_samples = none_beyond
    return trainer
