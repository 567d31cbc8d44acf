"""Weights that FSDP2 divides among processes: 4-bit ones that arrive whole, and checkpoints of each process's own parts."""

import json
from pathlib import Path


def gather_bits(trainer):
    """Have FSDP2 gather 4-bit weights bit for bit, and compute under autocast; returns the trainer. Call it before `train()`.

    Packed 4-bit weights can be divided only as numbers of a floating dtype, and some of their bit patterns then are NaNs.
    FSDP2 gathers a layer with `torch._foreach_copy_`, which takes 16-bit floats through float32 and back on a GPU, and
    writes every NaN as one and the same. Of normally distributed weights in NF4 one number in 60 is a NaN in float16, and
    one in 1,300 in bfloat16; each holds four weights. On the bundled model gradients were 20 to 79% off. Where the
    parts of a layer differ in dtype, FSDP2 gathers plain bytes. They do here: adapters are in float32, unless a policy of
    mixed precision has them cast first, which accelerate sets and this takes away. Seen in torch 2.11, accelerate 1.15.
    """
    import torch

    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = None
    dtype = torch.float16 if trainer.args.fp16 else torch.bfloat16 if trainer.args.bf16 else None
    if dtype is not None:
        kind = trainer.args.device.type
        trainer.compute_loss_context_manager = lambda: torch.autocast(kind, dtype)
    return trainer


def divide_on_a_cpu() -> None:
    """Have accelerate divide weights on a CPU as well; on a GPU this changes nothing. Call it before the trainer is built.

    accelerate knows FSDP for processes on GPUs and their like. On a CPU it drops what it was told of it, without a word, and
    trains with a whole copy in each process. Seen in accelerate 1.15.
    """
    from accelerate.state import AcceleratorState, DistributedType

    begin = AcceleratorState.__init__
    if begin.__name__ == "divides":
        return

    def divides(self, *given, fsdp_plugin=None, **named):
        begin(self, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = divides


def checkpoints_in_parts(trainer, whole_adapter):
    """Have checkpoints hold the whole adapter, and in parts_RANK.safetensors each process's own parts; returns the trainer.

    accelerate's own have each process load rank 0's state by broadcasts, of which two processes on a CPU wait for each other
    without end; in float16 loading the optimizer stops with "Attempted step but _scale is None" (accelerate 1.15, torch 2.11
    and 2.13). And for each checkpoint they put all of the model together. Here nobody waits for anybody, and the same number
    of processes has to go on.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    name = f"parts_{trainer.args.process_index}.safetensors"

    def save(folder):
        optimizer = _inner(trainer).state_dict()
        tensors = {f"adapter.{n}": _local(p) for n, p in trainer.model.named_parameters() if p.requires_grad}
        tensors |= {f"{i}.{k}": _local(v) for i, state in optimizer["state"].items() for k, v in state.items()}
        about = {"groups": optimizer["param_groups"], "scheduler": trainer.lr_scheduler.state_dict()}
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(tensors, Path(folder) / name, {key: json.dumps(value) for key, value in about.items()})

    def load_adapter(folder, model=None):
        with safe_open(Path(folder) / name, "pt") as kept:
            for n, parameter in trainer.model.named_parameters():
                if parameter.requires_grad:
                    _local_view(parameter).copy_(kept.get_tensor(f"adapter.{n}"))

    def load_optimizer(folder):
        if folder is None:
            return
        parameters = [p for group in _inner(trainer).param_groups for p in group["params"]]
        state: dict[int, dict] = {i: {} for i in range(len(parameters))}
        with safe_open(Path(folder) / name, "pt") as kept:
            about = {key: json.loads(value) for key, value in kept.metadata().items()}
            for key in kept.keys():  # noqa: SIM118 (a file, no dictionary)
                number, _, what = key.partition(".")
                if number != "adapter":
                    value = kept.get_tensor(key)
                    state[int(number)][what] = value if value.dim() == 0 else _part_like(value, parameters[int(number)])
        _inner(trainer).load_state_dict({"state": state, "param_groups": about["groups"]})
        trainer.lr_scheduler.load_state_dict(about["scheduler"])

    trainer._save_optimizer_and_scheduler = save
    trainer._load_from_checkpoint = load_adapter
    trainer._load_optimizer_and_scheduler = load_optimizer
    trainer.accelerator.get_state_dict = lambda model, unwrap=True: whole_adapter(trainer)
    return trainer


def _inner(trainer):
    """The optimizer itself, inside accelerate's."""
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


def _local(tensor):
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().cpu().clone()


def _local_view(parameter):
    """The part of a parameter that lies here, to be written into."""
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).detach()


def _part_like(part, parameter):
    """A part of a divided tensor that is laid out like a parameter."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
