"""Folders that people have, as model_id and adapter_dir: taken where they are whole, and named as what they are."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helpers.files import adapter_fault, model_fault
from helpers.machine import Machine
from helpers.merging import MergeError, read_base
from helpers.models import BUNDLED_MODEL, ModelError, resolve_model

CPU = Machine("cpu", "test", 0, 2**34, 2, None)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(BUNDLED_MODEL, tmp_path / "mine")


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def add_token(folder, content="<image_soft_token>", number=3072):
    token = {"id": number, "content": content, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}  # fmt: skip
    edit(folder / "tokenizer.json", lambda tokenizer: tokenizer["added_tokens"].append(token))


def test_tokenizer_with_more_tokens_than_the_model_has_rows_is_taken(folder):
    add_token(folder)
    add_token(folder, "<another>", 3080)
    assert resolve_model(str(folder), CPU).path == str(folder)


@pytest.mark.parametrize("named", ["<pad>", {"content": "<pad>", "special": True}], ids=["text", "object"])
def test_token_that_training_needs_has_to_be_in_the_model(named, folder):
    add_token(folder, "<pad>")
    edit(folder / "tokenizer_config.json", lambda config: config.update(pad_token=named))
    with pytest.raises(
        ModelError, match="pad_token has the number 3072, and the model's vocabulary ends at 3071: choose"
    ):
        resolve_model(str(folder), CPU)


def test_tokenizer_of_another_model_is_still_one(folder):
    edit(folder / "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update(another=3072))
    with pytest.raises(ModelError, match="has a token 3072, and the model's vocabulary ends at 3071: another model's"):
        resolve_model(str(folder), CPU)


def test_model_that_was_saved_in_4_bits_is_named_as_that(tmp_path, folder):
    config = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "small")
    shutil.copy(folder / "tokenizer.json", tmp_path / "small")
    with pytest.raises(ModelError, match=r"is stored quantized \(bitsandbytes in 4 bits\).*the 16-bit model"):
        resolve_model(str(tmp_path / "small"), CPU)
    edit(tmp_path / "small" / "config.json", lambda config: config.pop("quantization_config"))
    with pytest.raises(ModelError, match=r"is stored quantized \(.*absmax is no weight\).*the 16-bit model"):
        resolve_model(str(tmp_path / "small"), CPU)
    with pytest.raises(MergeError, match=r"small is stored quantized \(.*weight is U8\)"):
        read_base(tmp_path / "small")
    inner = {"text_config": {"quantization_config": {"quant_method": "fp8"}}}
    edit(tmp_path / "small" / "config.json", lambda config: config.update(inner))
    assert "stored quantized (fp8)" in model_fault(tmp_path / "small")
    with pytest.raises(MergeError, match=r"small is stored quantized \(fp8\)"):
        read_base(tmp_path / "small")
    edit(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    assert "stored quantized (gptq)" in model_fault(folder)


def test_json_files_that_nobody_reads_hold_what_they_like(folder):
    (folder / "modules.json").write_text('[{"idx": 0, "type": "sentence_transformers.models.Transformer"}]')
    (folder / "notes.json").write_text("not even JSON")
    assert resolve_model(str(folder), CPU).path == str(folder)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match="generation_config.json holds list"):
        resolve_model(str(folder), CPU)


def test_stale_index_and_other_weights_beside_one_whole_file_are_passed_over(folder):
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    (folder / "consolidated.safetensors").write_bytes(b"whatever")
    assert resolve_model(str(folder), CPU).path == str(folder)


def adapter_of(folder, base=BUNDLED_MODEL, **settings):
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    model.save_pretrained(folder)
    return folder


PARTS = {
    "a regular expression for three layers": {"target_modules": r".*layers\.[345]\..*(q|v)_proj"},
    "one layer": {"target_modules": r".*layers\.3\..*q_proj"},
    "all but one matrix": {"target_modules": "all-linear", "exclude_modules": ["model.layers.5.mlp.down_proj"]},
    "layers_to_transform": {"layers_to_transform": [0, 4]},
    "a saved head": {"modules_to_save": ["lm_head", "norm"]},
    "rows of tokens": {"trainable_token_indices": [1, 2]},
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "DoRA": {"use_dora": True},
    "ranks of its own": {"rank_pattern": {"q_proj": 2}},
}


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
def test_adapter_on_a_part_of_the_model_is_taken(settings, tmp_path):
    adapter = adapter_of(tmp_path / "adapter", **settings)
    assert resolve_model("auto", CPU, adapter=adapter).bundled


def test_adapter_without_matrices_is_refused(tmp_path):
    adapter = adapter_of(tmp_path / "adapter")
    for tensors in ({}, {"base_model.model.lm_head.weight": torch.ones(3072, 256)}):
        save_file(tensors, adapter / "adapter_model.safetensors")
        assert adapter_fault(adapter, BUNDLED_MODEL) == "adapter_model.safetensors holds no LoRA matrices"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda key: key.replace("layers.3", "layers.7"), "is for a part that the base does not have"),
        (
            lambda key: key.replace("layers.3.self_attn", "layers.3.self_attm"),
            "is for a part that the base does not have",
        ),
        (
            lambda key: key.replace("layers.3.self_attn.q_proj.lora_A", "layers.3.self_attn.q_proj.lora_C"),
            "has no matrix A",
        ),
        (lambda key: f"module.{key}", "does not begin with base_model.model"),
    ],
)
def test_adapter_with_a_name_that_peft_would_pass_over_is_refused(change, words, tmp_path):
    adapter = adapter_of(tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({change(key): tensor for key, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match=words):
        resolve_model("auto", CPU, adapter=adapter)
    assert words in adapter_fault(adapter, BUNDLED_MODEL)
