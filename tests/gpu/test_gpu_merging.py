"""A merge into dequantized weights takes those that a GPU computed with, and not those that a CPU would have.

COURSE_GPU_TESTS=1 CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu/test_gpu_merging.py
"""

import pytest
import torch

from helpers.merging.arithmetic import PIECE, _requantized
from helpers.models import BUNDLED_MODEL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("double_quant", [True, False])
def test_weights_are_quantized_as_the_gpu_quantizes_them(double_quant):
    from bitsandbytes import functional
    from safetensors.torch import load_file

    (file,) = BUNDLED_MODEL.glob("*.safetensors")
    weights = [tensor.half() for name, tensor in load_file(file).items() if "proj" in name]
    otherwise = 0
    for weight in weights:
        packed = functional.quantize_4bit(weight.cuda(), quant_type="nf4", compress_statistics=double_quant)
        expected = functional.dequantize_4bit(*packed).view(-1).cpu()
        made = {
            device: torch.cat(
                [p.clone() for p in _requantized(weight.view(-1).split(PIECE), "nf4", double_quant, (), device)]
            )
            for device in ("cuda", "cpu")
        }
        assert torch.equal(made["cuda"], expected)
        otherwise += (made["cpu"] != expected).sum().item()
    assert otherwise > 0, "CPU and GPU agree now: the device no longer matters"
