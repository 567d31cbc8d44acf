"""Weights that FSDP2 divides among processes: 4-bit ones that arrive whole, and checkpoints of each process's own parts."""

from pathlib import Path


def gather_bits(trainer):
    """Have FSDP2 gather 4-bit weights bit for bit, and compute under autocast; returns the trainer. Call it before `train()`.

    Packed 4-bit weights can be divided only as numbers of a floating dtype, and some of their bit patterns then are NaNs.
    FSDP2 gathers a layer with `torch._foreach_copy_`, which takes 16-bit floats through float32 and back on a GPU, and
    writes every NaN as one and the same. Of normally distributed weights in NF4 one number in 60 is a NaN in float16, and
    one in 1,300 in bfloat16; each holds four weights. On the bundled model, gradients were 74% and 20% off. Where the
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
    """Have checkpoints hold the whole adapter, and in parts_RANK.pt each process's own parts; returns the trainer.

    accelerate's own have each process load rank 0's state by broadcasts, of which two processes on a CPU wait for each other
    without end; in float16 loading the optimizer stops with "Attempted step but _scale is None" (accelerate 1.15, torch 2.11
    and 2.13). And for each checkpoint they put all of the model together. Here nobody waits for anybody, and the same number
    of processes has to go on.
    """
    import torch

    name = f"parts_{trainer.args.process_index}.pt"

    def save(folder):
        optimizer = _inner(trainer).state_dict()
        state = {i: {k: _local(v) for k, v in s.items()} for i, s in optimizer["state"].items()}
        adapter = {n: _local(p) for n, p in trainer.model.named_parameters() if p.requires_grad}
        kept = {"optimizer": optimizer | {"state": state}, "adapter": adapter}
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(kept, Path(folder) / name)
        if trainer.args.should_save:
            torch.save(trainer.lr_scheduler.state_dict(), Path(folder) / "scheduler.pt")

    def load_adapter(folder, model=None):
        kept = torch.load(Path(folder) / name, map_location="cpu", weights_only=True)["adapter"]
        for n, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter.to_local().copy_(kept[n])

    def load_optimizer(folder):
        if folder is None:
            return
        kept = torch.load(Path(folder) / name, map_location="cpu", weights_only=True)["optimizer"]
        parameters = [p for group in _inner(trainer).param_groups for p in group["params"]]
        for i, state in kept["state"].items():
            kept["state"][i] = {k: v if v.dim() == 0 else _part_like(v, parameters[i]) for k, v in state.items()}
        _inner(trainer).load_state_dict(kept)
        schedule = torch.load(Path(folder) / "scheduler.pt", weights_only=True)
        trainer.lr_scheduler.load_state_dict(schedule)

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


def _part_like(part, parameter):
    """A part of a divided tensor that is laid out like a parameter."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
