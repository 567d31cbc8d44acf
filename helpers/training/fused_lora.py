"""4-bit layers that share an input, and their adapters, as one operation: the same numbers in fewer kernels and bytes."""

from typing import NamedTuple

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",))


class _Frozen(NamedTuple):
    """What stays of one layer, and how much of its adapter is added."""

    weight: object  # packed, four bits a number
    bias: torch.Tensor | None
    scaling: float | None = None
    rank: int = 0  # 0 where there is no adapter


class _Project(torch.autograd.Function):
    """y_i = x W_i' + s_i (x A_i') B_i' for the layers i of one input x; W_i stays frozen and packed.

    `layers` holds a _Frozen for each; `factors` holds all A_i, then all B_i, of the layers that have an adapter.
    With `norm`, which made x from `source`, backward makes x again: `source` is kept by the norm in any case.
    """

    @staticmethod
    def forward(ctx, x, source, norm, layers, *factors):
        rows, outputs, at = x.reshape(-1, x.shape[-1]), [], 0
        bs = [b.to(x.dtype) for b in factors[len(factors) // 2 :]]  # each [out, r]
        if factors:
            a = torch.cat(factors[: len(bs)]).to(x.dtype)  # [sum of r, in]
            down, left = rows @ a.T, iter(bs)
            ctx.save_for_backward(source if norm else x, down, a, *bs)
        for layer in layers:
            y = torch.nn.functional.linear(rows, _restored(layer.weight, x.dtype), layer.bias)
            if layer.rank:
                y.addmm_(down[:, at : at + layer.rank], next(left).T, alpha=layer.scaling)
                at += layer.rank
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.layers, ctx.norm, ctx.dtypes = layers, norm, [factor.dtype for factor in factors]
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        shape, grads = grads[0].shape[:-1], [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grad_x, grad_factors = None, []
        if ctx.needs_input_grad[0]:
            for grad, layer in zip(grads, ctx.layers, strict=True):
                product = torch.matmul if grad_x is None else grad_x.addmm_  # one restored weight at a time
                grad_x = product(grad, _restored(layer.weight, grad.dtype))
        if ctx.dtypes:
            x, down, a, *bs = ctx.saved_tensors
            x = ctx.norm(x) if ctx.norm else x
            tuned = [(grad, layer.scaling) for grad, layer in zip(grads, ctx.layers, strict=True) if layer.rank]
            ranks = [layer.rank for layer in ctx.layers if layer.rank]
            scaled = [(grad @ b).mul_(s) for (grad, s), b in zip(tuned, bs, strict=True)]  # gradients of down
            grad_bs = [grad.T @ (d * s) for (grad, s), d in zip(tuned, down.split(ranks, dim=1), strict=True)]
            grad_down = torch.cat(scaled, dim=1)
            grad_as = (grad_down.T @ x.reshape(-1, x.shape[-1])).split(ranks)
            grad_factors = [grad.to(dtype) for grad, dtype in zip([*grad_as, *grad_bs], ctx.dtypes, strict=True)]
            if grad_x is not None:
                grad_x.addmm_(grad_down, a)
        return grad_x if grad_x is None else grad_x.view(*shape, -1), None, None, None, *grad_factors


def _restored(weight, dtype):
    return dequantize_4bit(weight.data, weight.quant_state).to(dtype)


class _Group:
    """Layers of one input: the first that is called computes all of them, the others hand out what is theirs."""

    def __init__(self, modules):
        self.modules, self.by_peft, self.waiting = modules, [module.forward for module in modules], {}
        for index, module in enumerate(modules):
            module.forward = self.forward_of(index)

    def forward_of(self, index):
        def forward(x, *args, **kwargs):
            made_for, output = self.waiting.pop(index, (None, None))
            if made_for is x:
                return output
            layers = None if index or args or kwargs or not torch.is_grad_enabled() else self.layers(x)
            if layers is None:
                return self.by_peft[index](x, *args, **kwargs)
            norm, source = getattr(x, "made_by", (None, None))
            frozen, factors = layers
            with torch.autocast(x.device.type, enabled=False):
                outputs = _Project.apply(x, source, norm, frozen, *factors)
            self.waiting = {i: (x, output) for i, output in enumerate(outputs) if i}
            return outputs[0]

        return forward

    def layers(self, x):
        """(a _Frozen of each layer, all A and then all B), or None if one of the layers needs PEFT's own forward."""
        frozen, down, up = [], [], []
        for module in self.modules:
            base = getattr(module, "base_layer", module)
            if x.dtype != base.compute_dtype:
                return None
            bias = None if base.bias is None else base.bias.to(x.dtype)
            if base is module:
                frozen.append(_Frozen(base.weight, bias))
                continue
            names = module.active_adapters
            if module.disable_adapters or module.merged or len(names) != 1:
                return None
            down.append(module.lora_A[names[0]].weight)
            up.append(module.lora_B[names[0]].weight)
            frozen.append(_Frozen(base.weight, bias, module.scaling[names[0]], rank=len(down[-1])))
        return frozen, [*down, *up]


def fuse_lora(model) -> int:
    """Have 4-bit layers and their LoRA adapters compute in few operations; returns how many adapters take part.

    Works on a PEFT model with one active adapter, in place, for training: q, k and v become one operation, gate and up
    another, and the input that a norm made for them is made again in backward instead of being kept. A layer with dropout,
    DoRA or another variant keeps PEFT's own forward, and so does any call that is not covered: without gradients, with an
    adapter that is switched off or merged, with an input of another dtype than the layer computes in. LoRA's product is
    that of Hu et al. 2021 (arXiv 2106.09685), eq. 3; one autograd function for base and adapter is what Unsloth does.
    """
    count = 0
    for name, parent in list(model.named_modules()):
        if name.endswith("layernorm"):
            parent.register_forward_hook(_sign)
        for names in SIBLINGS:
            modules = [getattr(parent, name, None) for name in names]
            if all(_is_plain(module) for module in modules):
                count += sum(module is not getattr(module, "base_layer", module) for module in modules)
                _Group(modules)
    return count


def _sign(norm, inputs, output):
    output.made_by = (norm, inputs[0].detach())


def _is_plain(module) -> bool:
    from peft.tuners.lora.bnb import Linear4bit as Adapted

    if not isinstance(module, Adapted):
        return isinstance(module, Linear4bit)
    names = list(module.lora_A)
    return (
        len(names) == 1
        and not module.lora_variant
        and isinstance(module.lora_dropout[names[0]], torch.nn.Identity)
        and module.lora_A[names[0]].bias is None
        and module.lora_B[names[0]].bias is None
    )
