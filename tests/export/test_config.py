"""Settings of a model: what llama.cpp does not follow, or the format does not hold, is refused in one line that names it."""

import gguf
import pytest
import torch
from safetensors.torch import save_file

from helpers.export import export_gguf
from tests.export import makers
from tests.export.refusing import edit, refused

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip

PART = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("gemma", {}, "is a 'gemma' model: llama, mistral, qwen2, qwen3 are exported here"),
        ("qwen3", {"attention_bias": True}, "attention_bias = true in a qwen3 model"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type = 'dynamic'"),
        ("qwen2", {"rope_parameters": LLAMA3}, "rope_type = 'llama3' in a qwen2 model"),
        ("qwen3", {"rope_parameters": LLAMA3}, "rope_type = 'llama3' in a qwen3 model"),
        ("llama", {"rope_parameters": YARN | {"attention_factor": 1.0}}, "attention_factor = 1.0 in yarn scaling"),
        ("llama", {"rope_parameters": YARN | {"beta_fast": 16}}, "beta_fast = 16 in yarn scaling"),
        ("llama", {"rope_parameters": YARN | {"truncate": False}}, "truncate = False in yarn scaling"),
        ("llama", {"rope_parameters": PART}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": YARN | {"factor": None}}, "factor = None in yarn scaling"),
        ("llama", {"rope_parameters": YARN | {"original_max_position_embeddings": 64.5}}, "GGUF has whole numbers there"),
    ],
)  # fmt: skip
def test_settings_that_llama_cpp_does_not_follow_are_refused_by_name(kind, settings, words, tmp_path):
    config = makers.AutoConfig.for_model(kind, vocab_size=64, max_position_embeddings=256, **makers.SHAPE, **settings)
    config.architectures = ["LlamaForCausalLM"]
    (tmp_path / "model").mkdir()
    config.save_pretrained(tmp_path / "model")
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "model" / "model.safetensors")
    refused(tmp_path / "model", words)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"is_causal": False}, "is_causal = False: the model attends to what stands behind a token too"),
        ({"is_causal": None}, "is_causal = None"),
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0: config.json needs a whole number from 1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings = -1"),
        ({"max_position_embeddings": 2**33}, "max_position_embeddings = 8589934592"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: config.json needs a divisor of num_attention_heads, 4"),
        ({"rms_norm_eps": 1e39}, "rms_norm_eps = 1e.39: config.json needs a number above 0 that float32 holds"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps = -1e-06"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e39}}, "rope_theta = 1e.39"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta = 0.0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_theta = nan"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}}, "factor = 0"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": float("inf")}}, "factor = inf"),
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_another_model_or_none_is_refused_by_the_fields_name(kind, settings, words, bare):
    folder = bare(kind)
    edit(folder / "config.json", lambda config: config.update(settings))
    refused(folder, f"^{words}")


@pytest.mark.parametrize("other", ["chunked_attention", "linear_attention"])
@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3"]
)  # with layer_types, a Mistral is a Ministral to transformers
def test_layers_of_another_kind_are_refused(kind, other, bare):
    folder = bare(kind)
    edit(folder / "config.json", lambda config: config.update(layer_types=["full_attention", other]))
    refused(folder, f"^layer_types has '{other}'")


@pytest.mark.parametrize("window", [0, -1, 2**40])
def test_a_window_that_is_none_is_refused(window, bare):
    folder = bare("mistral")
    edit(folder / "config.json", lambda config: config.update(sliding_window=window))
    refused(folder, f"^sliding_window = {window}:")


def test_a_model_without_layers_is_refused(bare):
    folder = bare("llama")
    edit(folder / "config.json", lambda config: config.update(num_hidden_layers=0))
    refused(folder, "^num_hidden_layers = 0: ")


REAL = {
    "is_decoder": False,
    "use_cache": True,
    "tie_word_embeddings": False,
    "pretraining_tp": 1,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "is_encoder_decoder": False,
    "is_causal": True,
    "attention_chunk_size": None,
    "torch_dtype": "bfloat16",
    "temperature": 0.7,
    "top_p": 0.9,
    "do_sample": True,
    "transformers_version": "4.40.0.dev0",
}
WINDOWED = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21}
SCALED = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
          "rope_type": "llama3"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", REAL | {"rope_scaling": SCALED, "rope_theta": 500000.0, "max_position_embeddings": 131072}),
        ("llama", REAL | {"rope_scaling": None, "rope_theta": 100000, "rope_interleaved": False, "is_llama_config": True}),
        ("llama", REAL | {"sliding_window": None, "rms_norm_eps": 1e-05, "head_dim": 32}),
        ("mistral", REAL | {"sliding_window": None, "rope_theta": 1000000.0, "max_position_embeddings": 32768}),
        ("mistral", REAL | {"sliding_window": 4096, "rope_theta": 10000.0}),
        ("qwen2", REAL | WINDOWED | {"layer_types": ["full_attention"] * 2, "rope_theta": 1000000.0}),
        ("qwen2", REAL | WINDOWED | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}),
        ("qwen3", REAL | WINDOWED | {"sliding_window": None, "rope_scaling": None, "rope_theta": 1000000}),
    ],
)  # fmt: skip
def test_what_the_files_of_known_models_hold_is_exported_without_a_note_on_it(kind, settings, with_tokens):
    folder = with_tokens(kind)
    edit(folder / "config.json", lambda config: (config.pop("rope_parameters"), config.update(settings)))
    notes = export_gguf(folder, folder.parent / "out.gguf", "f16", progress=False)["notes"]
    assert [note for note in notes if "sliding_window" in note or "attention" in note or "config" in note] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sliding_window": 100}, "sliding_window = 100: transformers' generate forgets what is older"),
        ({"attention_chunk_size": 100}, "attention_chunk_size = 100: transformers' generate forgets"),
        ({"sliding_window": 100, "layer_types": ["sliding_attention"] * 2}, "sliding_window = 100"),
        ({"sliding_window": 100, "layer_types": ["full_attention"] * 2}, None),
        ({"sliding_window": 256}, None),
    ],
)
def test_what_transformers_cache_alone_follows_is_said(settings, said, with_tokens):
    folder = with_tokens("llama")
    edit(folder / "config.json", lambda config: config.update(settings))
    notes = " ".join(export_gguf(folder, folder.parent / "out.gguf", "f16", progress=False)["notes"])
    assert (said in notes) if said else ("forgets" not in notes)
    assert gguf.GGUFReader(folder.parent / "out.gguf").fields["llama.context_length"].contents() == 256
