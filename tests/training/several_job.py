"""What tests start in the processes of a training: python several_job.py CONFIG.toml[=FAULT] ...

Each config is trained in turn as `python -m helpers train` does it in each process, with a fault planted where one is named. The
first process keeps, in kept.pt beside the config, what no record has: the gradients of each step as the optimizer gets them,
and the adapters after it. A CourseError is kept in its place. "resumed" is no fault: the run's last checkpoint is taken away,
and the run goes on from the one before; that is kept in resumed.pt.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from helpers import CourseError
from helpers.commands._job import Job
from helpers.commands._processes import end_on_leash
from helpers.training import several, without_padding
from helpers.training.without_padding import cut


def whole(tensor):
    """A tensor put together, on the CPU in float32."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().float().cpu().clone()


class Keep(TrainerCallback):
    """Per step: each gradient before the optimizer's step, each adapter matrix after it; and in how many parts weights lie."""

    def __init__(self):
        self.raw, self.gradients, self.adapters, self.divided = [], [], [], 0
        self.pieces = []  # of a batch without padding, two numbers for each batch that was cut

    def before_clipping(self, trainer):
        """Keep gradients as they are before they are clipped, too: in bfloat16, where no scaler comes between."""
        clip = trainer.accelerator.clip_grad_norm_

        def clipped(parameters, *given, **named):
            self.raw.append({name: whole(p.grad) for name, p in self.named(trainer.model).items()})
            return clip(parameters, *given, **named)

        trainer.accelerator.clip_grad_norm_ = clipped

    def cut(self, bounds, max_tokens, at_least=1):
        """Cut a batch without padding as it is cut, and keep into how many pieces: alone, and with the other process."""
        found = cut(bounds, max_tokens, at_least)
        self.pieces.append(len(found) - 1)
        return found

    @staticmethod
    def named(model):
        return {name.replace("module.", ""): p for name, p in model.named_parameters() if p.requires_grad}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: whole(p.grad) for name, p in self.named(model).items()})
        self.divided = sum(hasattr(p, "full_tensor") for p in model.parameters())

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.adapters.append({name: whole(p) for name, p in self.named(model).items()})


def no_all_reduce():
    """DDP as in the middle of an accumulation: every process keeps its own gradients."""
    return mock.patch.object(
        torch.nn.parallel.DistributedDataParallel, "forward", lambda self, *given, **named: self.module(*given, **named)
    )


def loss_as_trl_leaves_it():
    return mock.patch.object(several, "loss_where_the_head_lies", lambda trainer: trainer)


def state_without_adapters():
    """As under FSDP1: the model's state dict has none of the adapter's names."""
    return mock.patch.object(several, "_named_state", return_value={})


def accelerate_as_it_is():
    return mock.patch.object(several, "divide_on_a_cpu", return_value=None)


def policy_as_accelerate_sets_it():
    return mock.patch.object(several, "gather_bits", lambda trainer: trainer)


def resumed():
    """The same run once more."""
    return contextlib.nullcontext()


FAULTS = {
    "resumed": resumed,
    "policy as accelerate sets it": policy_as_accelerate_sets_it,
    "": contextlib.nullcontext,
    "no all-reduce": no_all_reduce,
    "loss as TRL leaves it": loss_as_trl_leaves_it,
    "state without adapters": state_without_adapters,
    "accelerate as it is": accelerate_as_it_is,
}


def train(config: Path, fault: str) -> None:
    first = int(os.environ.get("RANK", 0)) == 0
    if fault == "resumed":
        checkpoints = sorted(config.parent.glob("checkpoints-*/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        torch.distributed.barrier()
        if first:
            shutil.rmtree(checkpoints[-1])
        torch.distributed.barrier()
    keep = Keep()
    ready = several.Way.after_building

    def after_building(way, trainer):
        keep.before_clipping(trainer)
        return ready(way, trainer)

    try:
        with (
            FAULTS[fault](),
            mock.patch.object(several.Way, "after_building", after_building),
            mock.patch.object(without_padding, "cut", keep.cut),
        ):
            found = Job.read(config).run([keep])
    except CourseError as error:
        found = {"error": str(error)}
    in_all = gather_object([keep.pieces]) if torch.distributed.is_initialized() else [keep.pieces]
    if found is not None and first:
        kept = {name: getattr(keep, name) for name in ("raw", "gradients", "adapters", "divided")}
        kept |= {"found": found, "pieces": in_all}
        torch.save(kept, config.with_name("resumed.pt" if fault == "resumed" else "kept.pt"))
    AcceleratorState._reset_state()  # the next training may be of another way
    os.environ.pop("ACCELERATE_USE_FSDP", None)


if __name__ == "__main__":
    end_on_leash()
    for word in sys.argv[1:]:
        config, _, fault = word.partition("=")
        train(Path(config), fault)
