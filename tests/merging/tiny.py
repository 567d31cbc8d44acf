"""Tiny models of many families with random weights, adapters for them, and what PEFT makes of both."""

import warnings

import torch
import transformers
from bitsandbytes import functional
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

VOCABULARY = 96

LLAMA = {"hidden_size": "width", "intermediate_size": 112, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
GPT2 = {"n_embd": "width", "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 32}
MOE = LLAMA | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
NEOX = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "head_dim")}
OPT = {"hidden_size": "width", "ffn_dim": 112, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
       "num_attention_heads": 4, "word_embed_proj_dim": "width", "max_position_embeddings": 32}  # fmt: skip
BLOOM = {"hidden_size": "width", "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}
FALCON = {"hidden_size": "width", "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
PAD = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# model_type -> (class, settings, modules that get LoRA, the embedding's name, the head's name)
FAMILIES = {
    "llama": ("LlamaForCausalLM", LLAMA, ["q_proj", "down_proj"], "embed_tokens", "lm_head"),
    "mistral": ("MistralForCausalLM", LLAMA, ["q_proj", "down_proj"], "embed_tokens", "lm_head"),
    "qwen2": ("Qwen2ForCausalLM", LLAMA, ["k_proj", "up_proj"], "embed_tokens", "lm_head"),
    "qwen3": ("Qwen3ForCausalLM", LLAMA, ["k_proj", "up_proj"], "embed_tokens", "lm_head"),
    "gemma": ("GemmaForCausalLM", LLAMA | PAD, ["v_proj", "gate_proj"], "embed_tokens", "lm_head"),
    "gemma2": ("Gemma2ForCausalLM", LLAMA | PAD, ["v_proj", "gate_proj"], "embed_tokens", "lm_head"),
    "gemma3_text": ("Gemma3ForCausalLM", LLAMA | PAD, ["v_proj", "gate_proj"], "embed_tokens", "lm_head"),
    "phi3": ("Phi3ForCausalLM", LLAMA | PAD, ["qkv_proj", "gate_up_proj"], "embed_tokens", "lm_head"),
    "gpt2": ("GPT2LMHeadModel", GPT2, ["c_attn", "c_proj"], "wte", "lm_head"),
    "gpt_neox": ("GPTNeoXForCausalLM", NEOX, ["query_key_value", "dense"], "embed_in", "lm_head"),
    "bloom": ("BloomForCausalLM", BLOOM, ["query_key_value", "dense"], "word_embeddings", "lm_head"),
    "falcon": ("FalconForCausalLM", FALCON, ["query_key_value", "dense"], "word_embeddings", "lm_head"),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2, ["c_attn", "c_proj"], "wte", "lm_head"),
    "starcoder2": ("Starcoder2ForCausalLM", LLAMA, ["q_proj", "c_fc"], "embed_tokens", "lm_head"),
    "opt": ("OPTForCausalLM", OPT, ["q_proj", "fc1"], "embed_tokens", "lm_head"),
    "qwen3_moe": ("Qwen3MoeForCausalLM", MOE, ["q_proj", "gate_proj", "up_proj", "down_proj"], "embed_tokens", "lm_head"),
    "mixtral": ("MixtralForCausalLM", LLAMA | {"num_local_experts": 3}, ["q_proj", "w1", "w2", "w3"], "embed_tokens", "lm_head"),
}  # fmt: skip


def make_tiny(folder, kind, width=64, tied=False, dtype=torch.float16, **settings):
    """A random model of a family in a folder, every parameter away from its beginning; returns the folder."""
    name, own, *_ = FAMILIES[kind]
    own = {key: width if value == "width" else value for key, value in own.items()} | settings
    return save_tiny(
        folder, getattr(transformers, name), AutoConfig.for_model(kind, tie_word_embeddings=tied, **own), dtype
    )


def save_tiny(folder, of_class, config, dtype=torch.float16):
    torch.manual_seed(0)
    model = of_class(config).to(dtype)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def load_tiny(folder, dtype="auto"):
    config = AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder, config=config, dtype=dtype)


def adapted(model, **settings):
    """The model with an adapter in which everything that trains is random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"r": 3, "lora_alpha": 12, "task_type": "CAUSAL_LM"} | settings
        model = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    return model


def train_tiny(base, folder, **settings):
    """Save an adapter of the base into the folder; returns what PEFT merges, loaded as `base` is stored."""
    model = adapted(load_tiny(base), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        return model.merge_and_unload()


def as_in_4_bits(folder, names, quant_type="nf4"):
    """The base of a folder with the weights that a GPU computes with, where `names` are in 4 bits.

    Each weight is quantized as one row: how long its own rows are makes a CPU's kernel err, and a GPU's not.
    """
    model = load_tiny(folder)
    for name, module in model.named_modules():
        if name in names:
            turned = type(module).__name__ == "Conv1D"
            weight = module.weight.data.T if turned else module.weight.data
            flat = weight.contiguous().view(1, -1)
            codes, state = functional.quantize_4bit(flat, quant_type=quant_type, compress_statistics=True)
            weight = functional.dequantize_4bit(codes, state).view(weight.shape)
            module.weight.data = (weight.T if turned else weight).contiguous()
    return model


def different(folder, expected):
    """Names of the tensors that differ in a single bit between a merged folder and what was expected; [] is right."""
    loaded = load_tiny(folder)
    have, want = loaded.state_dict(), expected.state_dict()
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    if tied != (
        expected.get_input_embeddings().weight.data_ptr() == expected.get_output_embeddings().weight.data_ptr()
    ):
        return ["tied" if tied else "not tied"]
    if have.keys() != want.keys():
        return sorted(have.keys() ^ want.keys())
    bits = [
        (name, have[name].contiguous().view(torch.uint8), want[name].contiguous().view(torch.uint8)) for name in want
    ]
    return [name for name, mine, theirs in bits if mine.shape != theirs.shape or not mine.equal(theirs)]
