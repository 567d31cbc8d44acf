"""The models that have a short name here, with their shapes, and what "auto" means for each."""

import dataclasses
from dataclasses import dataclass
from typing import Any


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
# Chat models: tables of shapes leave them out.
SMOLLM2 = "smollm2-135m"
CHAT_PRESETS = {
    "qwen2.5-0.5b-instruct": dataclasses.replace(PRESETS["qwen2.5-0.5b"], hub_id="Qwen/Qwen2.5-0.5B-Instruct"),
    SMOLLM2: Preset(  # see helpers/packages/chat_model.py
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0",
        "",
        269_030_016,
        _shape("llama", 49_152, 576, 1536, 30, 9, 3, tied=True),
    ),
}
# What "auto" means for the parameters of training, by the model. Effective batch: batch_size * gradient_accumulation.
# "mistral-7b" and "llama-3.1-8b" hold what widely copied tutorials train these two with. What one leaves out is from "other".
RECIPES: dict[str, dict[str, Any]] = {
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
    SMOLLM2: {  # small enough for a CPU: a step of 4 rows of 128 tokens takes two seconds on two cores
        "rank": 8,
        "lora_alpha": 16,
        "max_steps": 20,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "max_length": 256,  # tokens
        "learning_rate": 2e-3,
        "optimizer": "adamw_torch",
        "checkpointing": False,
    },
}
AUTO_LARGE, AUTO_SMALL = "qwen2.5-7b", "qwen2.5-0.5b"  # on a GPU: lesson 03, and the others
AUTO_CHAT = "qwen2.5-0.5b-instruct"  # on a GPU, for lessons that want a chat model
