"""One training on several GPUs, in three ways: where its layers lie, what its trainer is told, and what has to be cured.

    ddp     a process and a whole 4-bit copy of the model on each GPU; each computes its own rows, and gradients are averaged
    split   one process; the first layers lie on the first GPU, the others on the next, and every row passes through both
    fsdp2   a process on each GPU; every weight lies there in part, and a layer is put together just before it is needed

The first is the fast one, the second takes the largest model, and the third is between them in both. TRL refuses what torch
calls DataParallel, several GPUs in one process that each have a copy.
"""

import dataclasses
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from helpers import CourseError
from helpers.memory import CannotPredict, RunSpec, predict, shape_of
from helpers.training.divided import checkpoints_in_parts, divide_on_a_cpu, gather_bits

NO_SETTINGS = Path(__file__).with_name("no_settings.json")  # for accelerate's launcher: all is said on its command line


class SeveralError(CourseError):
    """A training on several GPUs that would not do what it says: one line with what to change."""


@dataclass(frozen=True)
class Way:
    """How a training lies on its GPUs. `layers`: for "split", how many layers each GPU has, in the model's order."""

    NAMES: ClassVar[tuple[str, ...]] = ("one", "ddp", "split", "fsdp2")
    name: str = "one"
    gpus: int = 1
    layers: tuple[int, ...] = ()

    def __post_init__(self):
        if self.name not in self.NAMES:
            raise SeveralError(f"way is {self.name!r}; it can be {', '.join(self.NAMES)}")
        if isinstance(self.gpus, bool) or not isinstance(self.gpus, int) or self.gpus < 1:
            raise SeveralError(f"gpus is {self.gpus!r}; give how many there are to be")
        if (self.name == "one") != (self.gpus == 1):
            raise SeveralError(
                f"way is {self.name!r} with gpus {self.gpus}; one goes with 1, the others with 2 or more"
            )
        if self.layers and self.name != "split":
            raise SeveralError(f"layers is {list(self.layers)} with way {self.name!r}; only a split divides layers")
        if self.layers and (len(self.layers) != self.gpus or min(self.layers) < 1):
            raise SeveralError(
                f"layers is {list(self.layers)} for {self.gpus} GPUs; a split gives at least one to each"
            )

    def with_layers(self, config, spec: RunSpec, gpu: str) -> "Way":
        """This way for a model: a split that names no shares gets those with which the fullest GPU takes the least.

        What cannot be predicted is divided evenly, the smaller shares first. SeveralError for shares that are not the model's.
        """
        if self.name != "split":
            return self
        self.require_layers(shape_of(config).layers)
        if self.layers:
            return self
        try:
            return dataclasses.replace(self, layers=predict(config, spec, gpu, self.gpus, "split").layers)
        except CannotPredict:
            share, more = divmod(shape_of(config).layers, self.gpus)
            return dataclasses.replace(self, layers=(share,) * (self.gpus - more) + (share + 1,) * more)

    def require_layers(self, layers: int) -> None:
        """Raise SeveralError where a model of so many layers cannot be split like this."""
        if self.layers and sum(self.layers) != layers:
            raise SeveralError(f"layers is {list(self.layers)}, {sum(self.layers)} in all; the model has {layers}")
        if self.gpus > layers:
            raise SeveralError(
                f"gpus is {self.gpus} with way 'split', and the model has {layers} layers: each GPU needs one"
            )

    @property
    def processes(self) -> int:
        return self.gpus if self.name in ("ddp", "fsdp2") else 1

    def quantization(self, dtype) -> dict:
        """What BitsAndBytesConfig is told besides: FSDP2 divides only tensors of a floating dtype, that of the adapters' base.

        Stored as bytes, which is the default, 4-bit weights stay whole on each GPU, and accelerate 1.15 only warns of it.
        """
        return {"bnb_4bit_quant_storage": dtype} if self.name == "fsdp2" else {}

    def optimizer(self, asked: str, recipe: str) -> str:
        """The optimizer: bitsandbytes' cannot take FSDP2's divided tensors, so torch's does there where none is asked for."""
        if self.name != "fsdp2" or recipe == "adamw_torch":
            return recipe
        if asked != "auto":
            raise SeveralError(f"optimizer is {asked!r} with way 'fsdp2'; it can be adamw_torch there")
        return "adamw_torch"

    def device_map(self, layers: int, tied: bool, rank: int = 0, device: str = "cuda") -> dict:
        """For from_pretrained: where each module of a model with so many layers lies.

        Of a split model the final norm and the head lie with the last layers. A tied head is the embedding's own table,
        so it lies with the first. On a CPU all lies on that.
        """
        if device == "cpu":
            return {"": "cpu"}
        if self.name != "split":
            return {"": rank}
        self.require_layers(layers)
        last = self.gpus - 1
        places = [gpu for gpu, count in enumerate(self.layers) for _ in range(count)]
        where = {f"model.layers.{i}": gpu for i, gpu in enumerate(places)}
        return {
            "model.embed_tokens": 0, "model.rotary_emb": 0, **where, "model.norm": last, "lm_head": 0 if tied else last,
        }  # fmt: skip

    def arguments(self, model) -> dict:
        """What SFTConfig is told besides."""
        if self.name == "fsdp2":
            divide_on_a_cpu()
            kept = {"version": 2, "reshard_after_forward": True, "cpu_ram_efficient_loading": False}
            layer = type(model.get_decoder().layers[0]).__name__
            return {"fsdp": True, "fsdp_config": kept | {"transformer_layer_cls_to_wrap": [layer]}}
        # Without it DDP looks, in each step, for parameters that got no gradient. All adapters get one.
        return {"ddp_find_unused_parameters": False} if self.name == "ddp" else {}

    def after_building(self, trainer):
        """What a trainer of this way needs before `train()`; returns it."""
        if self.name == "split":
            loss_where_the_head_lies(trainer)
        if self.name == "fsdp2" and not trainer.is_fsdp_enabled:
            raise SeveralError("way is 'fsdp2', and accelerate would not divide the weights here: use way = 'ddp'")
        if self.name == "fsdp2":
            checkpoints_in_parts(gather_bits(trainer), whole_adapter)
        return save_whole_or_not_at_all(trainer)

    def adapter(self, trainer) -> dict:
        """`whole_adapter`."""
        return whole_adapter(trainer)

    def command(self, *words: str) -> list[str]:
        """The command that starts all processes of this way, each with these words for Python: a script or "-m", a module.

        It is accelerate's own launcher (`accelerate launch`), for one process Python itself. A notebook cannot train in
        several processes by itself: accelerate's notebook_launcher refuses once bitsandbytes has been imported, which
        importing SFTTrainer does. The launcher is told multi_gpu on a CPU as well, where it starts the same processes; told
        cpu, it starts one alone (accelerate 1.15, without MPI). Port 0 takes any that is free. Without a file of settings named
        it would take the one that `accelerate config` once wrote, whatever that says of GPUs and ways.
        """
        if self.processes == 1:
            return [sys.executable, *words]
        told: dict[str, int | str] = {
            "config_file": str(NO_SETTINGS),
            "gpu_ids": "all",
            "num_processes": self.processes,
        }
        told |= {"num_machines": 1, "main_process_port": 0}
        told |= {"mixed_precision": "no", "dynamo_backend": "no", "num_cpu_threads_per_process": 1}
        options = [word for name, value in told.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *options, *words]


def loss_where_the_head_lies(trainer):
    """Let TRL compute the loss of a model whose head does not lie on the first GPU; returns the trainer.

    TRL's loss has two faults there. Its Triton kernels are started on the process's current GPU, whichever their tensors lie
    on: "Pointer argument cannot be accessed from Triton". And it leaves each token's loss with the head, and divides by a
    number that lies on the first GPU: "Expected all tensors to be on the same device". So the current GPU is the head's
    while the model runs, that of its weights in each layer (Liger's kernels are Triton's, too), and what the head gives goes
    to the first. Seen in TRL 1.16 with torch 2.11.
    """
    base = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    first, head, fused = trainer.args.device, base.get_output_embeddings().weight.device, base.forward

    @functools.wraps(fused)
    def forward(*args, **kwargs):
        with _current(head):
            found = fused(*args, **kwargs)
        for name, value in found.items() if kwargs.get("fused_lm_head") else ():
            if hasattr(value, "device"):
                found[name] = value.to(first)
        return found

    base.forward = forward
    for layer in base.get_decoder().layers:
        layer.forward = _beside(layer.forward, next(layer.parameters()).device)
    return trainer


def _beside(forward, device):
    @functools.wraps(forward)
    def inside(*args, **kwargs):
        with _current(device):
            return forward(*args, **kwargs)

    return inside


def _current(device):
    """A context in which a GPU is the current one; on a CPU it does nothing."""
    import contextlib

    import torch

    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def whole_adapter(trainer) -> dict:
    """The adapter's tensors, put together and in the computer's memory, by their names in the model. All processes call it.

    SeveralError if it is not what was built: where weights lie in parts, a state dict may hold parts, other names, or none.
    Under FSDP1, as the libraries set it up, it holds none at all, and `save_model` writes that without a word (seen with
    transformers 5.23 and accelerate 1.15).
    """
    state = _named_state(trainer.accelerator.unwrap_model(trainer.model))
    state = {name: tensor for name, tensor in state.items() if name in trainer.adapter_shapes}
    state = {name: _put_together(tensor) for name, tensor in state.items()}
    wrong = [name for name, shape in trainer.adapter_shapes.items() if name not in state or state[name].shape != shape]
    if wrong:
        raise SeveralError(
            f"the adapter would be saved without {len(wrong)} of its {len(trainer.adapter_shapes)} tensors, {wrong[0]} the "
            "first: this way of dividing weights hides them (FSDP1 does). Use way = 'ddp', 'split' or 'fsdp2'"
        )
    return state


def _named_state(model) -> dict:
    return model.state_dict()


def _put_together(tensor):
    """A tensor in the computer's memory, whole where it lies in parts."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu().clone()


def save_whole_or_not_at_all(trainer):
    """Have a trainer stop before its first step if its adapter could not be saved whole; returns it."""
    from transformers import TrainerCallback

    trained = {name: parameter.shape for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    trainer.adapter_shapes = trained

    class BeforeTheFirstStep(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            whole_adapter(trainer)

    trainer.add_callback(BeforeTheFirstStep())
    return trainer
