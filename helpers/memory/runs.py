"""How a model is trained, and on which GPU: RunSpec as people set it, Kind as a layer sees it."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from helpers.machine import GIB, T4_BYTES
from helpers.memory.shapes import CannotPredict, Linear, Shape, is_count
from helpers.memory.sizes import MIB, WIDTH


@dataclass(frozen=True)
class Gpu:
    """What a GPU offers and takes, in bytes.

    `total_bytes`: as torch reports it (T4, H100 and H200 were seen, the others are rounded down). `workspace_bytes`: what
    one cuBLAS handle reserves, 32 MiB on Hopper, else :4096:2:16:8, that is 4096 x 2 + 16 x 8 KiB (torch
    `aten/src/ATen/cuda/CublasHandlePool.cpp`); training has two handles, one in the main thread and one in the thread that
    runs backward. `context_bytes`: what CUDA, its libraries and loaded kernels hold outside torch's count. It was measured
    on an H100 with torch 2.11 and driver 580: 527 MiB at first, 767 MiB after a training step. On a T4 141 MiB at first
    were reported; nearly twice that is set aside here. The other three are taken for a middle case.
    """

    total_bytes: int
    workspace_bytes: int
    kernels: str  # of attention: "all", or "t4" without the flash kernel
    context_bytes: int


GPUS = {
    "t4": Gpu(T4_BYTES, 8320 * 1024, "t4", 256 * MIB),
    "l4": Gpu(int(22.0 * GIB), 8320 * 1024, "all", 512 * MIB),
    "a100": Gpu(int(39.5 * GIB), 8320 * 1024, "all", 512 * MIB),
    "a100-80gb": Gpu(int(79.2 * GIB), 8320 * 1024, "all", 512 * MIB),
    "h100": Gpu(int(79.1 * GIB), 32 * MIB, "all", 768 * MIB),
    "h200": Gpu(int(139.8 * GIB), 32 * MIB, "all", 768 * MIB),
}

OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit",
    "paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit", "sgd",
)  # fmt: skip
ALLOWED = {
    "quant_type": ("nf4", "fp4", "int8", None), "load_dtype": ("float16", "bfloat16"),
    "compute_dtype": ("float16", "bfloat16"), "adapter_dtype": (*WIDTH, None), "optimizer": OPTIMIZERS,
    "attention": ("sdpa", "eager"), "attention_kernels": ("all", "t4"), "layer_kernels": (None, "liger"),
    "trl_loss": ("tiled", "full"),
}  # fmt: skip
LEAST = {"batch_size": 1, "seq_len": 2, "checkpoint_every": 0, "rank": 1}
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*QKVO, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class RunSpec:
    """How a model is trained. Every field but the last two is a field of the measured rows' `spec`.

    `quant_type`: "nf4", "fp4", "int8", or None for 16-bit weights. `rank` None trains every weight (then `quant_type`
    is None). `adapter_dtype`: what the adapters are held in during training. `checkpoint_every`: 0 is off, 1 every
    layer, n every n-th. `attention_kernels`: "all", or "t4": memory-efficient and math, as on Turing.
    `repeat_kv`: keys and values repeated before attention instead of `enable_gqa`. `layer_kernels`: None or "liger".
    `fused_lora`: fuse_lora is on; where it does not apply (dropout, no 4-bit weights, upcast) it changes nothing.
    `trl_loss`: "tiled" is TRL's from 1.15 on. "full" is transformers' own, which TRL had before: all logits at once, 14
    bytes each in 16-bit training. It was compared with public runs of TRL 0.13 alone, and is 1 to 5% above them.
    `padding_free`: rows lie one behind the other, `seq_len` tokens of them at once, and attention stays within each row
    (helpers.training.without_padding): the memory-efficient kernel on every GPU, keys and values repeated, no mask.
    Raises CannotPredict naming field and value.
    """

    QKVO: ClassVar = QKVO  # the four linear layers of attention, by their names

    quant_type: str | None = "nf4"
    double_quant: bool = True
    load_dtype: str = "float16"
    compute_dtype: str = "float16"
    adapter_dtype: str = "float32"
    rank: int | None = 16
    target_modules: tuple[str, ...] | None = ALL_LINEAR
    lora_dropout: float = 0.05
    batch_size: int = 1
    seq_len: int = 512
    optimizer: str = "paged_adamw_8bit"
    upcast_non_quantized: bool = False
    checkpoint_every: int = 1
    checkpoint_offload: bool = False
    attention: str = "sdpa"
    attention_kernels: str = "all"
    repeat_kv: bool = False
    layer_kernels: str | None = None
    fused_lora: bool = False
    trl_loss: str = "tiled"
    padding_free: bool = False

    def __post_init__(self):
        names = ALL_LINEAR if self.target_modules == "all-linear" else self.target_modules or None
        if isinstance(names, (list, set, frozenset)):
            names = tuple(names)
        object.__setattr__(self, "target_modules", None if self.rank is None else names)
        for fault in self._faults():
            raise CannotPredict(f"spec: {fault}")

    def _faults(self):
        """What is wrong, in words, one after the other."""
        full = self.rank is None
        for field, values in ALLOWED.items():
            if getattr(self, field) not in values:
                yield f"{field} is {getattr(self, field)!r}; allowed: {', '.join(str(value) for value in values)}"
        for field, least in LEAST.items():
            value = getattr(self, field)
            if not (field == "rank" and full) and not is_count(value, least):
                yield f"{field} is {value!r}; it must be a whole number of at least {least}"
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool) and not isinstance(getattr(self, field.name), bool):
                yield f"{field.name} is {getattr(self, field.name)!r}; it must be True or False"
        names = self.target_modules or ()
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            yield f"target_modules is {names!r}; give a list of names, or 'all-linear'"
        if not isinstance(self.lora_dropout, (int, float)) or not 0 <= self.lora_dropout < 1:
            yield f"lora_dropout is {self.lora_dropout!r}; it must be at least 0 and below 1"
        if full and self.quant_type is not None:
            yield f"rank is None with quant_type {self.quant_type!r}; quantized weights cannot train, set a rank"
        if full and "float16" in (self.load_dtype, self.compute_dtype):
            yield "load_dtype or compute_dtype is 'float16' with rank None; the scaler wants bfloat16"
        if not full and not self.target_modules:
            yield "target_modules is empty; name the layers to adapt, or set rank to None"
        if not full and self.adapter_dtype is None:
            yield "adapter_dtype is None; allowed with adapters: " + ", ".join(WIDTH)
        if self.upcast_non_quantized and self.quant_type is None:
            yield "upcast_non_quantized is True with quant_type None; it makes every weight float32"
        if self.checkpoint_offload and not self.checkpoint_every:
            yield "checkpoint_offload is True with checkpoint_every 0; offload needs checkpointing"

    @classmethod
    def of_settings(cls, settings, like_t4: bool, **more) -> "RunSpec":
        """The run that a recipe's settings describe, by their names in a lesson; `more` are fields that they do not say.

        `like_t4`: in float16, with a T4's attention kernels and keys and values repeated; else in bfloat16 with all kernels.
        """
        dtype, targets = "float16" if like_t4 else "bfloat16", settings.target_modules
        said = {
            "quant_type": settings.quant_type, "double_quant": settings.double_quant, "load_dtype": dtype,
            "compute_dtype": dtype, "rank": settings.rank, "lora_dropout": settings.lora_dropout,
            "target_modules": targets if targets == "all-linear" else targets.split(","),
            "optimizer": settings.optimizer, "batch_size": settings.batch_size, "seq_len": settings.max_length,
            "checkpoint_every": int(bool(settings.checkpointing)),
            "checkpoint_offload": settings.checkpointing == "offload",
            "attention_kernels": "t4" if like_t4 else "all", "repeat_kv": like_t4,
        }  # fmt: skip
        return cls(**said | more)

    @property
    def trained(self) -> int:
        """Bytes a value of what is trained: the adapters, or without them the model itself."""
        return WIDTH[self.load_dtype if self.rank is None else str(self.adapter_dtype)]

    @property
    def residual(self) -> int:
        """Bytes a value of the residual stream."""
        return 4 if self.upcast_non_quantized else WIDTH[self.load_dtype]


def spec_of(spec) -> RunSpec:
    """A RunSpec from a RunSpec or a dictionary of its fields."""
    if isinstance(spec, RunSpec):
        return spec
    if not isinstance(spec, dict):
        raise CannotPredict(f"spec: {spec!r:.60} is no RunSpec; give one, or a dictionary of its fields")
    names = {field.name for field in dataclasses.fields(RunSpec)}
    unknown = sorted(set(spec) - names)
    if unknown:
        raise CannotPredict(f"spec: no field {unknown[0]!r}; fields are {', '.join(sorted(names))}")
    return RunSpec(**spec)


def gpu_named(name: str) -> Gpu:
    """A GPU's entry in GPUS. Raises CannotPredict for an unknown name."""
    if not isinstance(name, str) or name not in GPUS:
        raise CannotPredict(f"gpu: {name!r} is not known; known are {', '.join(GPUS)}")
    return GPUS[name]


def on_gpu(gpu: str, spec: RunSpec) -> RunSpec:
    """The spec with the attention kernels that this GPU has: a T4 lacks flash attention whatever was asked for."""
    if gpu_named(gpu).kernels == "t4" and spec.attention_kernels == "all":
        return dataclasses.replace(spec, attention_kernels="t4")
    return spec


def targets_of(shape: Shape, spec: RunSpec) -> tuple[Linear, ...]:
    """The linear layers that carry an adapter; CannotPredict for names that the model lacks, and for too high a rank."""
    if spec.rank is None:
        return ()
    wanted = set(spec.target_modules or ())
    if shape.fused and wanted == set(ALL_LINEAR):
        wanted = set(shape.named)
    unknown = sorted(wanted - shape.named.keys())
    if unknown:
        names = ", ".join(shape.named)
        raise CannotPredict(f"spec: target_modules has {unknown[0]!r}; this {shape.model_type} has {names}")
    chosen = tuple(linear for linear in shape.linears if linear.name in wanted)
    for linear in chosen:
        size = min(linear.inputs, linear.outputs)
        if spec.rank > size:
            raise CannotPredict(f"spec: rank {spec.rank} is above {linear.name}'s size, {size}")
    return chosen


def trained_sizes(shape: Shape, spec: RunSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Element counts of what is trained: (in each layer, outside the layers)."""
    if spec.rank is not None:
        return tuple(spec.rank * size for x in targets_of(shape, spec) for size in (x.inputs, x.outputs)), ()
    layer = [x.weights for x in shape.linears] + [x.outputs for x in shape.linears if x.bias] + list(shape.norms)
    return tuple(layer), (*(shape.vocab * shape.hidden,) * (1 if shape.tied else 2), shape.hidden)


@dataclass(frozen=True)
class Kind:
    """All that decides what one layer does: sizes in tokens and values, widths in bytes."""

    shape: Shape
    tokens: int  # in the batch
    length: int  # tokens a row
    rank: int
    quant: str | None
    nested: bool
    compute: int
    residual: int
    adapter: int
    targets: frozenset
    dropout: bool
    attention: str  # the kernel: "flash", "efficient", "math", "eager"
    repeat: bool
    masked: bool
    liger: bool
    full: bool  # every weight is trained
    offload: bool
    fused: bool

    @property
    def stream(self) -> int:
        """Values of the residual stream."""
        return self.tokens * self.shape.hidden

    @property
    def scores(self) -> int:
        """Values of the attention scores of all heads."""
        return self.tokens * self.length * self.shape.heads


def kind_of(shape: Shape, spec: RunSpec) -> Kind:
    """What a layer does under these settings, and which attention kernel torch will pick."""
    long = shape.window is not None and spec.seq_len >= shape.window  # transformers masking_utils: no skip then
    masked = long and not spec.padding_free
    shared = shape.heads != shape.kv_heads
    repeat = shared and (spec.repeat_kv or masked or spec.padding_free)
    if spec.attention == "eager":
        kernel = "eager"
    elif masked or spec.padding_free:
        kernel = "efficient"  # flash takes no mask
    elif spec.attention_kernels == "all":
        kernel = "flash"
    else:
        kernel = "math" if shared and not repeat else "efficient"  # Turing's fused kernels refuse differing head counts
    if shape.gemma and kernel != "eager":
        raise CannotPredict("spec: attention is 'sdpa'; transformers has Gemma-2's soft cap only in 'eager'")
    # fuse_lora applies to plain adapters on 4-bit layers whose input has the dtype that they compute in.
    four_bit = spec.quant_type in ("nf4", "fp4")
    same = not spec.upcast_non_quantized and spec.load_dtype == spec.compute_dtype
    fused = spec.fused_lora and spec.rank is not None and spec.lora_dropout == 0 and four_bit and same
    return Kind(
        shape=shape,
        tokens=spec.batch_size * spec.seq_len,
        length=spec.seq_len,
        rank=spec.rank or 0,
        quant="nf4" if spec.quant_type == "fp4" else spec.quant_type,
        nested=spec.double_quant and four_bit,
        compute=WIDTH[spec.compute_dtype],
        residual=spec.residual,
        adapter=spec.trained,
        targets=frozenset(linear.name for linear in targets_of(shape, spec)),
        dropout=spec.lora_dropout > 0,
        attention=kernel,
        repeat=repeat,
        masked=masked,
        liger=spec.layer_kernels == "liger",
        full=spec.rank is None,
        offload=spec.checkpoint_offload,
        fused=fused,
    )
