"""Compile Liger's kernels for a T4 (sm_75) without any GPU, and patch Llama's layers for one: run by test_turing.py.

Triton is told that the GPU at hand is a Turing, and every launch is turned into a compilation. Prints one JSON object:
each kernel's target, what `liger_layers` said, and the class that a Llama's norms then have. Both in one process, for
each would import the same libraries, and a process that has been patched is of no use to other tests.
"""

import json
import sys
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Turing:
    def get_current_target(self):
        return GPUTarget("cuda", 75, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


driver.set_active(Turing())
launch, targets = JITFunction.run, {}


def compile_only(self, *args, grid, warmup, **options):
    kernel = launch(self, *args, grid=grid, warmup=True, **options)
    targets[self.__name__] = next(line.split()[1] for line in kernel.asm["ptx"].splitlines() if ".target" in line)
    assert kernel.asm["cubin"]  # the assembler took it, too
    return kernel


JITFunction.run = compile_only

from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # noqa: E402
from liger_kernel.ops.rope import LigerRopeFunction  # noqa: E402
from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # noqa: E402


def half(*shape):
    return torch.ones(*shape, dtype=torch.float16, requires_grad=True)


LigerRMSNormFunction.apply(half(2, 8, 4096), half(4096).detach(), 1e-6).sum().backward()
LigerSiLUMulFunction.apply(half(16, 14336), half(16, 14336)).sum().backward()
query, key = LigerRopeFunction.apply(half(1, 32, 16, 128), half(1, 8, 16, 128), half(1, 16, 128), half(1, 16, 128))
(query.sum() + key.sum()).backward()

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers.models.llama import modeling_llama  # noqa: E402

from helpers.models import BUNDLED_MODEL  # noqa: E402
from helpers.training.workarounds import liger_layers  # noqa: E402
from tests.training.test_turing import T4  # noqa: E402

patched = liger_layers(str(BUNDLED_MODEL), T4)
print(json.dumps({"targets": targets, "patched": patched, "norm": modeling_llama.LlamaRMSNorm.__name__}))
