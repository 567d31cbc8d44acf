"""Files of a model or an adapter, looked at before anything heavy reads them: what is wrong, in a few words, or None.

What can be known from names, sizes and headers is found in milliseconds. A changed bit inside the weights cannot be
seen that way: the course's own files have a list of SHA-256 sums for it (assets/SHA256SUMS), other models have not.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TypeGuard

from helpers import COURSE_ROOT

ASSETS = COURSE_ROOT / "assets"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}  # bytes a value, by safetensors' names # fmt: skip
# What transformers and the lessons read of a model's folder; others may lie there, and hold what they like.
READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.json")  # fmt: skip
LLAMAS = ("llama", "mistral", "qwen2")  # model types with one set of names and shapes
PACKED = (
    ".absmax",
    ".SCB",
    ".qweight",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    "_blocks",
)  # beside codes
SIXTEEN = "the lessons do that themselves: name the 16-bit model it was made from"
PAIRED = re.compile(r"(.+\.lora_(?:embedding_)?)([AB])((?:\.weight)?)")  # begin, letter, end of an adapter's key
WRAPPED = re.compile(
    r"\.(lora_\w+|base_layer|modules_to_save|original_module|token_adapter)\b.*"
)  # behind a module's name
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def changed_asset(folder: Path) -> str | None:
    """Which file of `folder`, in assets/, is not the one that the course ships, and what to do."""
    again = "fetch the course again (git checkout assets)"
    for line in (ASSETS / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split(maxsplit=1)
        file = ASSETS / name
        if file.parent != folder:
            continue
        if not file.is_file():
            return f"{file.name} is missing: {again}"
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return f"{file.name} is damaged, or was changed: {again}"
    return None


def model_fault(folder: Path) -> str | None:
    """What makes a model's folder unusable: its JSON files, its *.safetensors, and how these fit together."""
    try:
        config = read_object(folder / "config.json")
        for name in READ:
            if (folder / name).is_file():
                read_object(folder / name)
        tensors = _weights(folder)
    except ValueError as error:
        return str(error)
    if any(key.startswith("base_model.model.") for key in tensors):
        return "its weights are an adapter's: give it as adapter_dir, and its base as model_id"
    packed = next((key for key in tensors if key.endswith(PACKED)), None)
    if packed and not config_fault(folder):  # a config that says nothing of it
        return f"it is stored quantized ({packed} is no weight), and {SIXTEEN}"
    return config_fault(folder) or _misfit(config, tensors) or _tokenizer_fault(folder, config)


def adapter_fault(folder: Path, base: Path | None = None) -> str | None:
    """What makes an adapter's folder unusable, by itself or for its base's folder, where that is at hand."""
    try:
        config = read_object(folder / "adapter_config.json")
        tensors = safetensors_shapes(folder / "adapter_model.safetensors")
    except ValueError as error:
        return str(error)
    if config.get("peft_type") != "LORA":
        return f"adapter_config.json says peft_type = {config.get('peft_type')!r}, and the lessons use LORA"
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _count(rank) or isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        return f"adapter_config.json says r = {rank!r}, lora_alpha = {alpha!r}"
    if not any(".lora_" in key or ".token_adapter." in key for key in tensors):
        return "adapter_model.safetensors holds no LoRA matrices"
    odd = next((key for key in tensors if not key.startswith("base_model.model.")), None)
    if odd:
        return f"{odd} does not begin with base_model.model., as PEFT writes it, and would be passed over"
    for key, shape in tensors.items():
        matched = PAIRED.fullmatch(key)
        if not matched:
            continue
        begin, letter, end = matched.groups()
        other = "B" if letter == "A" else "A"
        if f"{begin}{other}{end}" not in tensors:
            return f"{key} has no matrix {other} beside it"
        own = shape[0 if letter == "A" else -1] if shape else None
        if own != rank and not config.get("rank_pattern") and not config.get("target_parameters"):
            return f"{key} has rank {own}, and adapter_config.json says {rank}"
    return _foreign(tensors, base) if base else None


def _foreign(tensors: dict[str, list[int]], base: Path) -> str | None:
    """A tensor for a module that the base has not: PEFT would pass over it. Known for Llama and its near relations."""
    try:
        known = read_object(base / "config.json").get("model_type") in LLAMAS
        names = {key.rpartition(".")[0] for key in _weights(base)} | {"lm_head"} if known else set()
    except ValueError:  # model_fault says what is wrong with the base
        return None
    for key in tensors:
        name = key.removeprefix("base_model.model.")
        if names and WRAPPED.sub("", name) not in names and name.rpartition(".")[0] not in names:
            return f"{key} is for a part that the base does not have"
    return None


def config_fault(folder: Path) -> str | None:
    """What a model's config.json says that the course cannot use: code of its own, or weights in few bits."""
    return _asks_for_code(folder) or _stored_quantized(folder)


def _asks_for_code(folder: Path) -> str | None:
    """Whether a model would bring Python code of its own, which the course never runs."""
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in read_object(folder / name):
            return f"{name} asks to run code that comes with the model (auto_map): the course never does that"
    return None


def _stored_quantized(folder: Path) -> str | None:
    """Whether a model's weights are stored in few bits, where the lessons quantize ordinary ones themselves."""
    config = read_object(folder / "config.json")
    inner = config.get("text_config")
    found = config.get("quantization_config") or (inner.get("quantization_config") if isinstance(inner, dict) else None)
    if not found:
        return None
    method = found.get("quant_method", "some method") if isinstance(found, dict) else "some method"
    bits = next((f" in {n} bits" for n in (4, 8) if isinstance(found, dict) and found.get(f"load_in_{n}bit")), "")
    return f"it is stored quantized ({method}{bits}), and {SIXTEEN}"


def read_object(file: Path) -> dict:
    """A JSON file that holds an object; ValueError, with the file's name, for anything else."""
    try:
        read = json.loads(Path(file).read_text(encoding="utf-8-sig"))  # a BOM is passed over
    except FileNotFoundError as error:
        raise ValueError(f"{file.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is no readable JSON: empty, cut off or damaged") from error
    if not isinstance(read, dict):
        raise ValueError(f"{file.name} holds {type(read).__name__}, not an object")
    return read


def safetensors_header(file: Path) -> tuple[int, dict]:
    """(bytes before the tensors, header): the header's length in 8 bytes, then the header as JSON.

    ValueError if the file ends before that. The format: https://huggingface.co/docs/safetensors
    """
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(min(length, 100_000_000))
    if not length or len(text) != length:
        raise ValueError(f"{Path(file).name} ends within its header")
    return 8 + length, json.loads(text)


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """The shape of each tensor; ValueError unless header, shapes, offsets and length agree to the byte."""
    try:
        begin, header = safetensors_header(file)
        header.pop("__metadata__", None)
        spans = {k: (*t["data_offsets"], WIDTHS[t["dtype"]] * math.prod(t["shape"])) for k, t in header.items()}
    except FileNotFoundError as error:
        raise ValueError(f"{file.name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file.name} is no readable safetensors file: empty, cut off or damaged") from error
    end = 0
    for first, last, size in sorted(spans.values()):
        if first != end or last - first != size:
            raise ValueError(f"{file.name} is damaged: its header does not describe its tensors")
        end = last
    if file.stat().st_size != begin + end:
        raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes, and its header says {begin + end:,}")
    return {key: tensor["shape"] for key, tensor in header.items()}


def _weights(folder: Path) -> dict[str, list[int]]:
    """The shapes of the tensors that transformers would load: of the one whole file, of an index's shards, or of all."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():  # an index beside it may be stale
        return safetensors_shapes(whole)
    listed = read_object(index).get("weight_map") if index.is_file() else None
    if index.is_file() and not isinstance(listed, dict):
        raise ValueError(f"{index.name} holds no weight_map")
    files = sorted({folder / name for name in listed.values()}) if listed else sorted(folder.glob("*.safetensors"))
    tensors: dict[str, list[int]] = {}
    for file in files:
        tensors |= safetensors_shapes(file)
    lost = next((key for key in listed or () if key not in tensors), None)
    if lost:
        raise ValueError(f"{index.name} names {lost}, and no file here holds it")
    return tensors


def _misfit(config: dict, tensors: dict[str, list[int]]) -> str | None:
    """The first tensor that config.json asks for and the files lack or hold in another shape.

    transformers would fill what is missing with random numbers, and only warn. Known for Llama and its near relations.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return "config.json names no model_type"
    if kind not in LLAMAS:
        return None
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    wrong = next((name for name in sizes if not _count(config.get(name))), None)
    if wrong:
        return f"config.json says {wrong} = {config.get(wrong)!r}"
    vocab, hidden, inner, layers, heads = (config[name] for name in sizes)
    kv, head = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
    if not _count(kv) or not _count(head) or heads % kv:
        return f"config.json says num_key_value_heads = {kv!r}, head_dim = {head!r}, for {heads} heads"
    wanted = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not config.get("tie_word_embeddings"):
        wanted["lm_head.weight"] = [vocab, hidden]
    of_layer = {"input_layernorm": [hidden], "post_attention_layernorm": [hidden],
                "self_attn.q_proj": [heads * head, hidden], "self_attn.k_proj": [kv * head, hidden],
                "self_attn.v_proj": [kv * head, hidden], "self_attn.o_proj": [hidden, heads * head],
                "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner]}  # fmt: skip
    for i in range(min(layers, 1000)):
        wanted |= {f"model.layers.{i}.{name}.weight": shape for name, shape in of_layer.items()}
    for key, shape in wanted.items():
        if tensors.get(key) != shape:
            there = f"has shape {tensors[key]}" if key in tensors else "is missing"
            return f"{key} {there}, and config.json asks for {shape}: other weights, or another config"
    beyond = next((key for key in tensors if key.startswith(f"model.layers.{layers}.")), None)
    return f"{beyond} is one layer more than config.json's {layers}" if beyond else None


def _tokenizer_fault(folder: Path, config: dict) -> str | None:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return "it holds no tokenizer: save one beside the model (tokenizer.save_pretrained)"
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer, size = read_object(folder / "tokenizer.json"), config.get("vocab_size")
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list) or not model.get("vocab"):
        return "tokenizer.json holds no vocabulary"
    vocabulary = model["vocab"]
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    added = {str(t.get("content")): t.get("id") for t in (t if isinstance(t, dict) else {} for t in added)}
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in [*numbers, *added.values()]):
        return "tokenizer.json gives a token a number that is none"
    if not _count(size):
        return None
    own = set(numbers) - set(added.values())
    if own and max(own) >= size:
        return f"tokenizer.json has a token {max(own)}, and the model's vocabulary ends at {size - 1}: another model's"
    # More tokens than the model has rows are usual (Gemma 3 1B has one for images), as long as no text needs them.
    for role in ("bos_token", "eos_token", "pad_token"):
        if added.get(_token(folder, role), 0) >= size:
            return (
                f"the tokenizer's {role} has the number {added[_token(folder, role)]}, and the model's vocabulary ends at "
                f"{size - 1}: choose another {role}, or resize the model's embeddings and save it"
            )
    return None


def _token(folder: Path, role: str) -> str | None:
    """The text of a special token, as tokenizer_config.json names it: plainly, or as an object."""
    file = folder / "tokenizer_config.json"
    token = read_object(file).get(role) if file.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _count(value) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**8
