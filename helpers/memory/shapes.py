"""What of a model's configuration decides memory: sizes, counts and a few yes or no, as a Shape."""

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

from helpers import CourseError
from helpers.files import read_object


class CannotPredict(CourseError, ValueError):
    """A configuration or a setting with no answer: one line with field, value, and what is allowed."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer: its name, sizes and whether it has a bias."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """What of a configuration decides memory. Built by `shape_of`; every field is a count, a width or a yes or no."""

    model_type: str
    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    window: int | None  # sliding window in tokens
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3: a norm on each head's query and key
    fused: bool = False  # Phi-3: qkv_proj and gate_up_proj
    gemma: bool = False  # Gemma-2: four norms a layer, computed in float32, and soft caps

    @property
    def described(self) -> bool:
        """Whether this architecture is known here; another is taken for one that is built like a Llama."""
        return self.model_type in KNOWN

    @functools.cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, in the order in which they run."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            first = [Linear("qkv_proj", h, q + 2 * kv, self.qkv_bias)]
            mlp = [Linear("gate_up_proj", h, 2 * self.inner, self.mlp_bias)]
        else:
            first = [Linear(f"{n}_proj", h, size, self.qkv_bias) for n, size in (("q", q), ("k", kv), ("v", kv))]
            mlp = [Linear(f"{n}_proj", h, self.inner, self.mlp_bias) for n in ("gate", "up")]
        return (*first, Linear("o_proj", q, h, self.o_bias), *mlp, Linear("down_proj", self.inner, h, self.mlp_bias))

    @functools.cached_property
    def named(self) -> dict[str, Linear]:
        """`linears` by name."""
        return {linear.name: linear for linear in self.linears}

    @functools.cached_property
    def norms(self) -> tuple[int, ...]:
        """Sizes of the norm weights of one decoder layer, in the order in which they load."""
        return (self.hidden,) * (4 if self.gemma else 2) + ((self.head_dim,) * 2 if self.qk_norm else ())

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        layer = sum(x.weights + x.bias * x.outputs for x in self.linears) + sum(self.norms)
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)


# What a config class of transformers takes for a flag that a configuration leaves out (models/*/configuration_*.py).
# A flag that is not listed is not read by that class. `head_dim` None means hidden_size / num_attention_heads.
DEFAULTS: dict[str, dict] = {
    "llama": {"attention_bias": False, "mlp_bias": False, "head_dim": None, "num_key_value_heads": None},
    "mistral": {"head_dim": None, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"head_dim": None, "num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False},
    "qwen3": {
        "attention_bias": False, "head_dim": 128, "num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False,
    },
    "phi3": {"head_dim": None, "num_key_value_heads": None, "sliding_window": None},
    "gemma2": {
        "attention_bias": False, "head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096, "tie_word_embeddings": True,
    },
}  # fmt: skip
KNOWN = tuple(DEFAULTS)
NOT_DECODERS = (
    "moe", "mixtral", "mamba", "bert", "t5", "deepseek", "whisper", "gpt_oss", "vision", "_vl", "gemma3n", "rwkv",
)  # fmt: skip


def shape_of(config) -> Shape:
    """The shape behind a transformers config, a dictionary of its keys, a local folder, or a hub id.

    Raises CannotPredict (one line: field, value, what is allowed) for an impossible shape or an architecture that these
    formulas do not describe. A plain decoder that is merely unknown is taken for a Llama, with a warning.
    """
    if isinstance(config, Shape):
        return config
    if isinstance(config, (str, Path)):
        config = _load_config(str(config))
    given = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(given, dict) or not isinstance(given.get("text_config") or {}, dict):
        raise CannotPredict(f"config: {config!r:.60} is no configuration; give one, a dictionary, a folder or a hub id")
    kind = _kind_of(given := {**given, **(given.get("text_config") or {})})
    flags: dict = {**DEFAULTS.get(kind, DEFAULTS["llama"])}
    flags |= {name: given[name] for name in (*flags, "tie_word_embeddings") if name in given}
    hidden, heads = _count(given, "hidden_size"), _count(given, "num_attention_heads")
    kv_heads = _count(flags, "num_key_value_heads", heads)
    if not flags["head_dim"] and hidden % heads:
        raise CannotPredict(f"config: num_attention_heads {heads} does not divide hidden_size {hidden}; give head_dim")
    if heads % kv_heads:
        raise CannotPredict(f"config: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    slides = flags.get("use_sliding_window", True)
    attention_bias = bool(flags.get("attention_bias"))
    return Shape(
        model_type=kind,
        vocab=_count(given, "vocab_size"),
        hidden=hidden,
        inner=_count(given, "intermediate_size"),
        layers=_count(given, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_count(flags, "head_dim", hidden // heads),
        tied=bool(flags.get("tie_word_embeddings")),
        window=_count(flags, "sliding_window") if slides and flags.get("sliding_window") is not None else None,
        qkv_bias=kind == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=bool(flags.get("mlp_bias")),
        qk_norm=kind == "qwen3",
        fused=kind == "phi3",
        gemma=kind == "gemma2",
    )


def _kind_of(given: dict) -> str:
    """The architecture; CannotPredict for one that is not described, a warning for one that is merely unknown."""
    kind = given.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CannotPredict(f"config: model_type is {kind!r}; give the architecture, one of {', '.join(KNOWN)}")
    experts = experts_in(given)
    if experts:
        raise CannotPredict(f"config: {experts} in a {kind}; mixtures of experts are not described here")
    if kind not in KNOWN:
        needed = {"num_attention_heads", "intermediate_size"}
        if any(word in kind.lower() for word in NOT_DECODERS) or not needed <= given.keys():
            raise CannotPredict(f"config: model_type {kind!r} is not described here; described are {', '.join(KNOWN)}")
        message = f"model_type {kind!r} is not described here: predicted as a Llama of the same sizes"
        warnings.warn(message, stacklevel=4)
    return kind


def experts_in(given) -> str:
    """The first key, at any depth, that tells of several experts, as "key is value"; "" where there is none.

    Such keys have "expert" or "moe" in their name (num_experts, num_local_experts, n_routed_experts, moe_topk, ...) and
    a number above 1, a list with one, or a list of several configurations.
    """
    inside = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, (list, tuple)) else ()
    for key, value in inside:
        listed = list(value) if isinstance(value, (list, tuple)) else [value]
        numbers = [float(n) for n in listed if str(n).removesuffix(".0").isdecimal()]  # also 8.0 and "8", but not True
        several = max(numbers, default=sum(isinstance(one, dict) for one in listed)) > 1
        if several and any(word in str(key).lower() for word in ("expert", "moe")):
            return f"{key} is {value!r:.60}"
        if found := experts_in(value):
            return found
    return ""


def is_count(value, least: int = 1) -> bool:
    """Whether a value is a whole number of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _count(given: dict, key: str, default=None) -> int:
    value = given.get(key)
    value = default if value is None else value
    if not is_count(value):
        raise CannotPredict(f"config: {key} is {value!r}; it must be a whole number above 0")
    return value


def _load_config(name: str) -> dict:
    """A configuration from a folder's config.json, from a preset (helpers/models/presets.py), or from the hub."""
    from helpers.models import PRESETS

    file = Path(name) / "config.json"
    if file.is_file():
        try:
            return read_object(file)
        except ValueError as error:
            raise CannotPredict(f"config: {name}: {error}") from error
    for short, preset in PRESETS.items():
        if name in (short, preset.hub_id):
            return dict(preset.shape)
    try:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name).to_dict()
    except Exception as error:
        raise CannotPredict(
            f"config: no configuration at {name!r}; give a preset, a folder with config.json or a hub id you can reach"
        ) from error
