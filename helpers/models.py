"""Which model a lesson uses: the bundled one, a preset, a local folder or a hub id; with clear words when it cannot."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.files import AGAIN, adapter_fault, asks_for_code, changed_asset, model_fault, read_object

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
# "mistral-7b" and "llama-3.1-8b" hold what widely copied tutorials train these two with; the rest is from "other".
RECIPES = {
    "bundled": {
        "rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "max_steps": 40,
        "batch_size": 16,  # rows of some 55 tokens
        "gradient_accumulation": 1,
        "max_length": 96,  # tokens
        "learning_rate": 3e-3,  # a small model takes a large one
        "optimizer": "adamw_torch",
        "checkpointing": False,  # a small model needs no recomputing
        "save_steps": 20,
    },
    "other": {
        "rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "max_steps": 60,
        "batch_size": 4,
        "gradient_accumulation": 4,
        "max_length": 512,  # tokens
        "learning_rate": 2e-4,
        "optimizer": "paged_adamw_8bit",
        "checkpointing": True,
        "save_steps": 10,
    },
    "mistral-7b": {
        "rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": "q_proj,k_proj,v_proj,o_proj",
        "optimizer": "paged_adamw_32bit",
    },
    "llama-3.1-8b": {"lora_dropout": 0.05},
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

    @property
    def local(self) -> bool:
        """A folder that somebody named, neither the bundled one nor one from the hub."""
        return os.path.isdir(self.path) and not self.bundled

    def __str__(self) -> str:
        size = f", {self.download_bytes / 1e9:.1f} GB to download and keep on disk" if self.download_bytes else ""
        return f"{self.name} ({self.licence}{size})" + (f"; {self.note}" if self.note else "")


def recipe_for(model: Model | None) -> dict:
    """What "auto" means for `model`: the bundled model's recipe, a preset's own, or the one for all others."""
    if model is None or model.bundled:
        return dict(RECIPES["bundled"])
    preset = next((name for name, p in PRESETS.items() if p.hub_id == model.path), None)
    return RECIPES["other"] | RECIPES.get(preset, {})


def bundled(note: str = "") -> Model:
    """The model in assets/: about 5.5 million parameters, trained on simple true facts; ModelError if it was damaged."""
    changed = changed_asset(BUNDLED_MODEL)
    if changed:
        raise ModelError(f"the bundled model: {changed}: {AGAIN}")
    return Model(str(BUNDLED_MODEL), "the bundled model", "Apache-2.0", 0, note)


def resolve_model(model_id: str, machine, large: bool = False, adapter: Path | None = None) -> Model:
    """The model that `model_id` means on `machine`; raises ModelError, one line, where there is none.

    "auto" is the base of `adapter` where lesson 03 left one; else the bundled model on a CPU, and on a GPU a 7B model
    from the hub (`large`) or a 0.5B one; without a network it is the bundled model with a note.
    """
    if model_id == "auto":
        if adapter is not None:
            base = base_of(adapter)
            fault = adapter_fault(adapter)
            if fault:
                raise ModelError(f"{fault}, in {adapter.name}: run lesson 03 again, or name another adapter_dir")
            return resolve_model(base, machine)
        if machine.device == "cpu":
            return bundled()
        try:
            return resolve_model(AUTO_LARGE if large else AUTO_SMALL, machine)
        except ModelError as error:
            return bundled(note=f"in place of the default, since {error}")
    folder = Path(os.path.expanduser(model_id))
    if model_id == "bundled" or os.path.realpath(folder) == str(BUNDLED_MODEL):
        return bundled()
    if os.path.isdir(folder):
        return _local(folder)
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
        name = read_object(Path(adapter) / "adapter_config.json")["base_model_name_or_path"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError("no base is named")
    except (ValueError, KeyError) as error:
        raise ModelError(f"{adapter} holds no readable adapter_config.json: run lesson 03 again") from error
    return "bundled" if Path(name).parts[-2:] == BUNDLED_MODEL.parts[-2:] else name


def offline() -> bool:
    """Whether HF_HUB_OFFLINE is set now, to one of the words that the hub's client takes for true when it is imported."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _local(folder: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: name a folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors: pickled weights are not loaded here; convert them first")
    fault = model_fault(folder)
    if fault:
        raise ModelError(f"{folder}: {fault}")
    return Model(str(folder), folder.name, "your local folder", 0)


def _reach(hub_id: str, gated: str) -> None:
    """Fetch config.json, or find it in the cache, so that a model out of reach is known before anything heavy."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    why = "HF_HUB_OFFLINE is set" if offline() else "the hub cannot be reached"
    unreached = f'{hub_id} is not on this disk and {why}: use model_id="bundled"'
    try:
        code = asks_for_code(_fetched_config(hub_id).parent)
        whole = _has_safetensors(hub_id)
    except HFValidationError as error:
        raise ModelError(f"{hub_id!r} is not a hub id (owner/name)") from error
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: {gated or 'accept its terms on its page, and log in'}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {hub_id}, or it is private and you are not logged in") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(unreached) from error
    except EntryNotFoundError as error:
        raise ModelError(f"{hub_id} has no config.json: it is no model that transformers can load") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"{hub_id} cannot be fetched: {why_unfetched(error)}") from error
    except Exception as error:  # no connection: the class is the HTTP library's, which has changed its name
        raise ModelError(unreached) from error
    if code:
        raise ModelError(f"{hub_id}: {code}")
    if not whole:
        raise ModelError(f"{hub_id} has no *.safetensors: pickled weights are not loaded here")


def why_unfetched(error: Exception) -> str:
    """What the hub answered, or what the disk did, in a few words that say what to do; of another error, its class."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not accept your token: log in with another, or log out where no login is needed"
    if status == 403:
        return f"the hub forbids it: {error.server_message or 'your token may not read this'}"
    if status == 429:
        return "the hub asks you to wait (429): try again in some minutes"
    if status is not None:
        return f"the hub {'has a fault of its own' if status >= 500 else 'answers'} ({status}): try again later"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: make room, or set HF_HOME to a folder on a larger disk"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the hub's cache cannot be used ({error.strerror}): set HF_HOME to a folder of your own"
    if "Consistency check failed" in str(error):  # the client compares the size with the announced one
        return "it did not arrive whole: try again"
    if type(error) is ValueError:  # of read_object
        return f"{error}. Remove it from the cache with `hf cache rm`, then try again"
    return f"{type(error).__name__}: check the name and the network"


def _fetched_config(hub_id: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "config.json", local_files_only=True))
    except LocalEntryNotFoundError:
        # Asked once: without a network the download itself would try six times, for half a minute, and warn.
        get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=5)
        return Path(hf_hub_download(hub_id, "config.json", etag_timeout=5))


def _has_safetensors(hub_id: str) -> bool:
    """Whether the model has weights that are no pickles: in the cache, or on the hub."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = ("model.safetensors", "model.safetensors.index.json")
    if any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in names):
        return True
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(hub_id, name), timeout=5)
            return True
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    return False


def rehearse(model: Model) -> None:
    """Build the model without its weights, and its tokenizer; ModelError, one line, for what transformers refuses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.path))
        tokenizer = AutoTokenizer.from_pretrained(model.path)
    except Exception as error:  # whatever transformers raises for a setting that it cannot use
        raise ModelError(f"{model.name} cannot be loaded: {type(error).__name__}: {str(error)[:200]}") from error
    if tokenizer.eos_token is None:
        raise ModelError(f"{model.name} cannot be used: its tokenizer names no eos_token, and answers would never end")
