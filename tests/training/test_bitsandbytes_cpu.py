"""bitsandbytes' 4-bit kernels on a CPU: right for every width with the course's guard, and the guard is still needed."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from helpers import COURSE_ROOT
from helpers.training import workarounds

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
WIDTHS = (*range(16, 1025, 16), 2064, 4096, 4112)

# In a process of its own: the largest difference to what the codes and scales say, over widths, block sizes and types.
PROGRAM = """
import sys, torch
import bitsandbytes.functional as F
from bitsandbytes.backends.utils import _get_4bit_code
from helpers.training import workarounds

if sys.argv[1] == "guarded":
    workarounds.right_dequantization()
worst = 0.0
torch.manual_seed(0)
for width in map(int, sys.argv[3:]):
    weights = torch.randn(max(3, 1024 // width), width)  # so many rows that blocks reach over their ends
    for quant_type in ("nf4", "fp4"):
        for block_size in map(int, sys.argv[2].split(",")):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                packed, state = F.quantize_4bit(weights.to(dtype), blocksize=block_size, quant_type=quant_type)
                codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: weights.numel()]
                scales = state.absmax.repeat_interleave(block_size)[: weights.numel()]
                right = (_get_4bit_code(quant_type, packed.device)[codes.long()] * scales).reshape(weights.shape)
                here = F.dequantize_4bit(packed, state).float()
                worst = max(worst, ((here - right).norm() / right.norm()).item())
print(worst)
"""


def worst_error(how: str, block_sizes: str, widths) -> float:
    command = [sys.executable, "-c", PROGRAM, how, block_sizes, *map(str, widths)]
    # Without a GPU in sight bitsandbytes loads its library for CPUs; the kernels in the one for CUDA do not use AVX512.
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=COURSE_ROOT, env=hidden)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


def test_with_the_guard_every_width_that_is_a_multiple_of_16_dequantizes_rightly():
    assert worst_error("guarded", "32,64,128,512,4096", WIDTHS) < 5e-3  # bfloat16 rounds to 3 digits


@pytest.mark.skipif(not AVX512, reason="bitsandbytes' fault needs a CPU with AVX512")
@pytest.mark.parametrize(("block_size", "width"), [("64", 208), ("64", 16), ("128", 64), ("512", 256)])
def test_the_guard_is_still_needed(block_size, width, still_needed):
    error = worst_error("as it is", block_size, [width])
    print(f"off by {error:.3f}")
    still_needed(error > 0.02, "bitsandbytes dequantizes rightly now: drop workarounds.right_dequantization")


def test_the_kernel_is_asked_for_one_row_and_wrapped_once(monkeypatch):
    """Holds on any CPU: what the guard changes is the two numbers that the kernel gets."""
    from bitsandbytes.cextension import lib

    asked = []
    name = "cdequantize_blockwise_cpu_nf4_fp32"
    monkeypatch.setitem(vars(lib), name, lambda *given: asked.append([n.value for n in given[3:]]))
    workarounds.right_dequantization()
    wrapped = getattr(lib, name)
    workarounds.right_dequantization()
    assert getattr(lib, name) is wrapped
    wrapped(None, None, None, ctypes.c_longlong(64), ctypes.c_longlong(96), ctypes.c_longlong(208))
    assert asked == [[64, 1, 96 * 208]]


@pytest.mark.parametrize("width", [48, 80, 208])
def test_a_4bit_layer_of_odd_width_trains_and_merges_as_its_dequantized_weight_does(width):
    """Forward, the gradient of the input, and PEFT's merge, against plain arithmetic with the weight that the codes mean."""
    import bitsandbytes as bnb
    import bitsandbytes.functional as F
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(
        width, 96, bias=False, compute_dtype=torch.float32, compress_statistics=False, quant_type="nf4"
    )
    net = torch.nn.Sequential(layer).to("cpu")
    net.is_loaded_in_4bit = True  # what PEFT goes by
    workarounds.keep_4bit_layout(net)
    packed, state = layer.weight.data, layer.weight.quant_state
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()
    weight = (state.code[codes.long()] * state.absmax.repeat_interleave(64)[: codes.numel()]).reshape(96, width)
    x = torch.randn(4, width, requires_grad=True)
    out = net(x)
    out.sum().backward()
    assert torch.allclose(out, x @ weight.T, atol=1e-5)
    assert torch.allclose(x.grad, weight.sum(0).expand(4, -1), atol=1e-4)
    tuned = get_peft_model(net, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    update = tuned.base_model.model[0].get_delta_weight("default").detach()
    merged = tuned.merge_and_unload()[0].weight
    expected, again = F.quantize_4bit(weight + update, blocksize=64, quant_type="nf4")
    assert (merged.data.flatten() != expected.flatten()).float().mean() < 0.001  # a value on the border of two codes
    assert torch.allclose(merged.quant_state.absmax, again.absmax)
