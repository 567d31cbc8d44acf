"""What tests start in the processes of a training: python several_job.py CONFIG.toml OUT [FAULT]

Trains as `python -m helpers train` does in each process, keeps what no record has, the gradients of each step as the optimizer
gets them and the adapters after it, and can plant a fault.
"""

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from helpers.commands._job import Job
from helpers.training import several


def whole(tensor):
    """A tensor put together, on the CPU in float32."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().float().cpu().clone()


class Keep(TrainerCallback):
    """Per step: each gradient before the optimizer's step, each adapter matrix after it."""

    def __init__(self):
        self.gradients, self.adapters = [], []

    @staticmethod
    def named(model):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return {name.replace("module.", ""): p for name, p in trained}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: whole(p.grad) for name, p in self.named(model).items()})

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.adapters.append({name: whole(p) for name, p in self.named(model).items()})


def no_all_reduce():
    """DDP as in the middle of an accumulation: every process keeps its own gradients."""
    torch.nn.parallel.DistributedDataParallel.forward = lambda self, *inputs, **named: self.module(*inputs, **named)


def no_cure():
    several.loss_where_the_head_lies = lambda trainer: trainer


if __name__ == "__main__":
    config, out, *fault = sys.argv[1:]
    if fault:
        {"no all-reduce": no_all_reduce, "loss as TRL leaves it": no_cure}[fault[0]]()
    keep = Keep()
    found = Job.read(Path(config)).run([keep])
    if found is not None:
        torch.save({"found": found, "gradients": keep.gradients, "adapters": keep.adapters}, out)
