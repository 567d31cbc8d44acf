"""Which model a lesson uses: the bundled one, a preset, a local folder or a hub id; with clear words when it cannot."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from helpers import COURSE_ROOT, CourseError

BUNDLED_MODEL = COURSE_ROOT / "assets" / "base_model"


class ModelError(CourseError, OSError):
    """A model that is not there: a missing folder, no network, a gated or unknown id."""


@dataclass(frozen=True)
class Preset:
    """A model on the Hugging Face hub, with the shape that its config.json publishes, for arithmetic without a network.

    `download_bytes`: the size of its weights, two bytes a parameter.
    """

    hub_id: str
    licence: str
    gated: str  # "" or what must be done first
    download_bytes: int
    shape: dict


def _shape(model_type, vocab, hidden, intermediate, layers, heads, kv_heads, tied=False) -> dict:
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "tie_word_embeddings": tied,
    }


# None but the gated ones needs an account.
PRESETS = {
    "qwen2.5-0.5b": Preset(
        "Qwen/Qwen2.5-0.5B", "Apache-2.0", "", 988_065_536, _shape("qwen2", 151_936, 896, 4864, 24, 14, 2, tied=True)
    ),
    "qwen2.5-1.5b": Preset(
        "Qwen/Qwen2.5-1.5B", "Apache-2.0", "", 3_087_428_608, _shape("qwen2", 151_936, 1536, 8960, 28, 12, 2, tied=True)
    ),
    "qwen2.5-7b": Preset(
        "Qwen/Qwen2.5-7B", "Apache-2.0", "", 15_231_233_024, _shape("qwen2", 152_064, 3584, 18_944, 28, 28, 4)
    ),
    "mistral-7b": Preset(
        "mistralai/Mistral-7B-v0.1",
        "Apache-2.0",
        "accept the terms on its page once, and log in",
        14_483_464_192,
        _shape("mistral", 32_000, 4096, 14_336, 32, 32, 8),
    ),
    "llama-3.1-8b": Preset(
        "meta-llama/Llama-3.1-8B",
        "Llama 3.1 Community License",
        "ask for access on its page, and log in",
        16_060_522_496,
        _shape("llama", 128_256, 4096, 14_336, 32, 32, 8),
    ),
}
# What "auto" means for the parameters of training, by the model. Effective batch: batch_size * gradient_accumulation.
RECIPES = {
    "bundled": {
        "max_steps": 40,
        "batch_size": 16,  # rows of some 55 tokens
        "gradient_accumulation": 1,
        "max_length": 96,  # tokens
        "learning_rate": 3e-3,  # a small model takes a large one
        "optimizer": "adamw_torch",
        "checkpointing": False,  # a small model needs no recomputing
    },
    "other": {
        "max_steps": 60,
        "batch_size": 4,
        "gradient_accumulation": 4,
        "max_length": 512,  # tokens
        "learning_rate": 2e-4,
        "optimizer": "paged_adamw_8bit",
        "checkpointing": True,
    },
}
AUTO_LARGE, AUTO_SMALL = "qwen2.5-7b", "qwen2.5-0.5b"  # on a GPU: lesson 03, and the others


@dataclass(frozen=True)
class Model:
    """A model that can be loaded: `path` goes to from_pretrained."""

    path: str  # a local folder, or a hub id
    name: str  # what a reader sees, never an absolute path
    licence: str
    download_bytes: int  # 0 for a local one
    note: str = ""  # why it is not what was asked for, where it is not

    @property
    def bundled(self) -> bool:
        return self.path == str(BUNDLED_MODEL)

    def __str__(self) -> str:
        size = f", {self.download_bytes / 1e9:.1f} GB to download and keep on disk" if self.download_bytes else ""
        return f"{self.name} ({self.licence}{size})" + (f"; {self.note}" if self.note else "")


def bundled(note: str = "") -> Model:
    """The model in assets/: about 5.5 million parameters, trained on simple true facts."""
    return Model(str(BUNDLED_MODEL), "the bundled model", "Apache-2.0", 0, note)


def resolve_model(model_id: str, machine, large: bool = False, adapter: Path | None = None) -> Model:
    """The model that `model_id` means on `machine`; raises ModelError, one line, where there is none.

    "auto" is the base of `adapter` where lesson 03 left one; else the bundled model on a CPU, and on a GPU a 7B model
    from the hub (`large`) or a 0.5B one; without a network it is the bundled model with a note.
    """
    if model_id == "auto":
        if adapter is not None:
            return resolve_model(base_of(adapter), machine)
        if machine.device == "cpu":
            return bundled()
        try:
            return resolve_model(AUTO_LARGE if large else AUTO_SMALL, machine)
        except ModelError as error:
            return bundled(note=f"in place of the default, since {error}")
    if model_id == "bundled" or Path(model_id).expanduser().resolve() == BUNDLED_MODEL:
        return bundled()
    if Path(model_id).expanduser().is_dir():
        return _local(Path(model_id).expanduser())
    preset = PRESETS.get(model_id.lower()) or next((p for p in PRESETS.values() if p.hub_id == model_id), None)
    if preset is None and (model_id.count("/") != 1 or model_id.startswith((".", "/", "~")) or model_id.endswith("/")):
        raise ModelError(
            f"no folder {model_id!r} here, and it is no preset ({', '.join(PRESETS)}) and no hub id (owner/name)"
        )
    hub_id = preset.hub_id if preset else model_id
    _reach(hub_id, preset.gated if preset else "")
    if preset:
        return Model(hub_id, hub_id, preset.licence, preset.download_bytes)
    return Model(hub_id, hub_id, "licence: see its page", 0)


def base_of(adapter: Path) -> str:
    """The base model that an adapter's adapter_config.json names; "bundled" for the bundled one, wherever it lay."""
    try:
        name = json.loads((Path(adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter} holds no readable adapter_config.json: run lesson 03 again") from error
    return "bundled" if Path(name).parts[-2:] == BUNDLED_MODEL.parts[-2:] else name


def _local(folder: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: name a folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors: pickled weights are not loaded here; convert them first")
    return Model(str(folder), folder.name, "your local folder", 0)


def _reach(hub_id: str, gated: str) -> None:
    """Fetch config.json, or find it in the cache, so that a model out of reach is known before anything heavy."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        hf_hub_download(hub_id, "config.json", etag_timeout=5)
    except HFValidationError as error:
        raise ModelError(f"{hub_id!r} is not a hub id (owner/name)") from error
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: {gated or 'accept its terms on its page, and log in'}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {hub_id}, or it is private and you are not logged in") from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") == "1" else "the hub cannot be reached"
        raise ModelError(f'{hub_id} is not on this disk and {why}: use model_id="bundled"') from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{hub_id} cannot be fetched ({type(error).__name__}): check the name and the network"
        ) from error
