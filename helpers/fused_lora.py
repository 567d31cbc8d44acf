"""A 4-bit layer and its adapter as one operation: the same numbers with fewer kernels and no copies between them."""

import torch
from bitsandbytes.functional import dequantize_4bit


class _Fused(torch.autograd.Function):
    """y = x W' + scaling (x A') B', with W frozen and packed; half the kernel launches of PEFT's modules one by one."""

    @staticmethod
    def forward(ctx, x, lora_a, lora_b, weight, bias, scaling):
        rows = x.reshape(-1, x.shape[-1])
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)  # [r, in], [out, r]
        down = rows @ a.T
        y = torch.nn.functional.linear(rows, dequantize_4bit(weight.data, weight.quant_state).to(x.dtype), bias)
        y.addmm_(down, b.T, alpha=scaling)
        ctx.save_for_backward(x, down, a, b)
        ctx.weight, ctx.scaling, ctx.adapter_dtype = weight, scaling, lora_a.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        x, down, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_down = (grad @ b).mul_(ctx.scaling)
        grad_a = (grad_down.T @ x.reshape(-1, x.shape[-1])).to(ctx.adapter_dtype)
        grad_b = (grad.T @ (down * ctx.scaling)).to(ctx.adapter_dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ dequantize_4bit(ctx.weight.data, ctx.weight.quant_state).to(grad.dtype)
            grad_x = grad_x.addmm_(grad_down, a).view_as(x)
        return grad_x, grad_a, grad_b, None, None, None


def fuse_lora(model) -> int:
    """Have every plain LoRA layer on a 4-bit weight compute in one operation; returns how many there were.

    Works on a PEFT model with one active adapter, in place. A layer with dropout, DoRA or another variant keeps PEFT's
    own forward, and so does any call that the fused operation does not cover: an adapter that is switched off or
    merged, an input of another dtype than the layer computes in. LoRA's product
    is that of Hu et al. 2021 (arXiv 2106.09685), eq. 3; one autograd function for base and adapter is what Unsloth does.
    """
    from peft.tuners.lora.bnb import Linear4bit

    count = 0
    for module in model.modules():
        if isinstance(module, Linear4bit) and _is_plain(module):
            module.forward = _forward_of(module, module.forward)
            count += 1
    return count


def _is_plain(module) -> bool:
    names = list(module.lora_A)
    return (
        len(names) == 1
        and not module.lora_variant
        and isinstance(module.lora_dropout[names[0]], torch.nn.Identity)
        and module.lora_A[names[0]].bias is None
        and module.lora_B[names[0]].bias is None
    )


def _forward_of(module, by_peft):
    def forward(x, *args, **kwargs):
        base, names = module.base_layer, module.active_adapters
        covered = not (args or kwargs or module.disable_adapters or module.merged) and len(names) == 1
        if not covered or x.dtype != base.compute_dtype or not torch.is_grad_enabled():
            return by_peft(x, *args, **kwargs)
        a, b = module.lora_A[names[0]].weight, module.lora_B[names[0]].weight
        bias = None if base.bias is None else base.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return _Fused.apply(x, a, b, base.weight, bias, module.scaling[names[0]])

    return forward
