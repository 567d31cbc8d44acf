"""Compile Liger's kernels for a T4 (sm_75) without any GPU, and print each one's target: run by test_turing.py.

Triton is told that the GPU at hand is a Turing, and every launch is turned into a compilation.
"""

import json

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
print(json.dumps(targets))
