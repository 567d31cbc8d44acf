"""Adapters that people reported trouble with: merged as PEFT merges them, or refused with the reason that is true."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from helpers import COURSE_ROOT
from helpers.__main__ import main
from helpers.merging import MergeError, merge_adapter
from tests.merging.tiny import adapted, as_in_4_bits, different, load_tiny, make_tiny, save_tiny, train_tiny

QV = ["q_proj", "v_proj"]


def merged(base, adapter, out, *how, **settings):
    merge_adapter(base, adapter, out, *how, progress=False, **settings)
    return out


def rename(adapter, new, change):
    """A copy of an adapter whose keys are changed."""
    shutil.copytree(adapter, new)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({change(key): tensor for key, tensor in tensors.items()}, new / "adapter_model.safetensors")
    return new


def configure(adapter, **settings):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refused(base, adapter, out, words, *how):
    with pytest.raises(MergeError, match=words) as caught:
        merge_adapter(base, adapter, out, *how, progress=False)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def same_answers(one, two):
    tokens = torch.arange(96).view(4, 24)
    with torch.no_grad():
        return torch.allclose(one.eval()(tokens).logits, two.eval()(tokens).logits, atol=1e-4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("models") / "tied", "llama", tied=True)


# A3, A4: the vocabulary


@pytest.mark.parametrize("size", [100, 80], ids=["grown", "shrunk"])
@pytest.mark.parametrize("kind", ["llama", "tied"])
@pytest.mark.parametrize("saved", [None, ["embed_tokens", "lm_head"]], ids=["not trained", "trained"])
def test_resized_vocabulary_is_taken_into_the_old_base_and_the_resized_one(kind, size, saved, request, tmp_path):
    base = request.getfixturevalue(kind)
    model = load_tiny(base)
    model.resize_token_embeddings(size)
    model.save_pretrained(tmp_path / "resized")
    model = adapted(model, target_modules=QV, modules_to_save=saved)
    model.save_pretrained(tmp_path / "adapter")
    assert (
        "lm_head.original_module" in str(load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys())
    ) == bool(saved)
    expected = model.merge_and_unload()
    for place in (base, tmp_path / "resized"):
        out = merged(place, tmp_path / "adapter", tmp_path / f"out {place.name}")
        assert different(out, expected) == []
        assert load_tiny(out).config.vocab_size == size


def test_resized_embedding_without_its_head_is_refused_with_what_to_do(llama, tmp_path):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV, modules_to_save=["embed_tokens"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "embed_tokens" in key)
    tensors[key] = torch.ones(100, 64)
    save_file(tensors, file)
    refused(llama, tmp_path / "adapter", tmp_path / "out", r"stays at 96 rows.*resize_token_embeddings\(100\)")


def test_embeddings_saved_beside_the_adapter_are_taken(llama, tied, tmp_path):
    for base in (llama, tied):
        model = adapted(load_tiny(base), target_modules=QV)
        model.save_pretrained(tmp_path / base.name, save_embedding_layers=True)
        expected = model.merge_and_unload()
        assert different(merged(base, tmp_path / base.name, tmp_path / f"out {base.name}"), expected) == []


# A6, A7: file and model with different names

TEXT = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "vocab_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}


@pytest.fixture(scope="module", params=["gemma3", "qwen2_vl"])
def multimodal(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param == "gemma3":
        config = Gemma3Config(text_config=TEXT, vision_config=VISION | {"patch_size": 14}, mm_tokens_per_image=4)
        return save_tiny(folder, Gemma3ForConditionalGeneration, config)
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=text, vision_config=vision)
    return save_tiny(folder, Qwen2VLForConditionalGeneration, config)


def test_base_whose_files_name_the_layers_otherwise_merges_as_peft_does(multimodal, tmp_path):
    keys = load_file(multimodal / "model.safetensors").keys()
    expected = train_tiny(multimodal, tmp_path / "adapter", target_modules=r".*language_model.*(q|v)_proj")
    names = [
        key.removeprefix("base_model.model.") for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    ]
    assert not {name.replace(".lora_A", "") for name in names} & set(keys)
    assert different(merged(multimodal, tmp_path / "adapter", tmp_path / "out"), expected) == []
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == keys


MULTIMODAL = {"embedding": ["embed_tokens"], "head": ["lm_head"], "both": ["embed_tokens", "lm_head"]}


@pytest.mark.parametrize("saved", MULTIMODAL.values(), ids=MULTIMODAL)
def test_saved_modules_of_a_base_with_other_names_equal_peft(saved, multimodal, tmp_path):
    target = r".*language_model.*q_proj"
    expected = train_tiny(multimodal, tmp_path / "adapter", target_modules=target, modules_to_save=saved)
    assert different(merged(multimodal, tmp_path / "adapter", tmp_path / "out"), expected) == []


def test_resized_vocabulary_of_a_base_with_other_names_is_taken(multimodal, tmp_path):
    model = load_tiny(multimodal)
    model.resize_token_embeddings(100)
    model = adapted(model, target_modules=r".*language_model.*q_proj")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    expected = model.merge_and_unload()
    assert different(merged(multimodal, tmp_path / "adapter", tmp_path / "out"), expected) == []


@pytest.mark.parametrize("names", ["now", "before 4.52"])
def test_dequantized_base_with_other_names_is_the_one_that_4_bits_compute_with(multimodal, names, tmp_path):
    train_tiny(multimodal, tmp_path / "adapter", target_modules=r".*language_model.*(q|v)_proj")
    adapter = tmp_path / "adapter"
    if names != "now":  # as the file has them: language_model.model.layers, or model.layers
        old = "language_model.model" if "gemma3" in multimodal.name else "model"
        adapter = rename(adapter, tmp_path / "old", lambda key: key.replace("model.language_model", old))
    out = merged(multimodal, adapter, tmp_path / "out", "dequantized")
    head = {name for name, module in load_tiny(multimodal).named_modules() if name.endswith("lm_head")}
    linear = {n for n, m in load_tiny(multimodal).named_modules() if type(m) is torch.nn.Linear} - head
    model = as_in_4_bits(multimodal, linear)
    expected = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    assert different(out, expected) == []
    original = merged(multimodal, adapter, tmp_path / "original")
    assert different(original, expected)


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_base_whose_files_lack_the_first_part_of_each_name_is_merged(kind, tmp_path):
    base = make_tiny(tmp_path / "base", kind, tied=True)
    file = base / "model.safetensors"
    tensors = load_file(file)
    save_file({key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}, file, {"format": "pt"})
    target = {"gpt2": ["c_attn", "c_proj"], "bloom": ["query_key_value"]}[kind]
    saved = {"gpt2": "wte", "bloom": "word_embeddings"}[kind]
    for name, extra in {"plain": {}, "saved": {"modules_to_save": [saved]}}.items():
        expected = train_tiny(base, tmp_path / name, target_modules=target, **extra)
        assert different(merged(base, tmp_path / name, tmp_path / f"out {name}"), expected) == []


# A10


def test_architecture_that_transformers_does_not_know_is_one_line_where_it_is_asked(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {
        "model_type": "llama9",
        "architectures": ["Llama9ForCausalLM"],
    }
    (base / "config.json").write_text(json.dumps(config))
    expected = train_tiny(llama, tmp_path / "adapter", target_modules=["k_proj", "up_proj"])
    refused(base, tmp_path / "adapter", tmp_path / "out", "does not know Llama9ForCausalLM", "dequantized")
    merged(base, tmp_path / "adapter", tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text((llama / "config.json").read_text())
    assert different(tmp_path / "out", expected) == []


def test_config_that_no_model_can_be_built_from_is_one_line(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    train_tiny(llama, tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_act": "no such"}))
    refused(base, tmp_path / "adapter", tmp_path / "out", "cannot build the model of base", "dequantized")


# A11


PREFIXES = {
    "an adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "another name": lambda key: key.replace(".weight", ".my-adapter.weight"),
    "torch.compile": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "torch.compile of the layers": lambda key: key.replace(".self_attn.", "._orig_mod.self_attn."),
    "DDP": lambda key: f"module.{key}",
    "DDP within": lambda key: key.replace("base_model.model.", "base_model.model.module."),
    "FSDP": lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "activation checkpointing": lambda key: key.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "twice": lambda key: f"base_model.model.{key}",
    "all at once": lambda key: f"module.base_model.model._orig_mod.{key}".replace(".weight", ".default.weight"),
    "none": lambda key: key.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("change", PREFIXES.values(), ids=PREFIXES)
def test_names_that_wrappers_left_in_the_keys_are_passed_over(change, llama, tmp_path):
    expected = train_tiny(llama, tmp_path / "adapter", target_modules=QV)
    adapter = rename(tmp_path / "adapter", tmp_path / "renamed", change)
    assert different(merged(llama, adapter, tmp_path / "out"), expected) == []


def test_name_that_fits_nothing_is_shown_beside_the_one_that_it_should_be(llama, tmp_path):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV)
    adapter = rename(tmp_path / "adapter", tmp_path / "renamed", lambda key: f"tower.{key}")
    words = r"no tower\.base_model\.model\.(model.layers.0\S+) \(it has \1\), .* names 'llama' as its base too"
    refused(llama, adapter, tmp_path / "out", words)


def test_state_of_a_whole_peft_model_is_an_adapter_too(tied, tmp_path):
    """As some trainers save it: the adapter's name in each key, what was trained beside what it was, and all the base."""
    model = adapted(load_tiny(tied), target_modules=QV, modules_to_save=["lm_head", "input_layernorm"])
    model.save_pretrained(tmp_path / "adapter")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert any(".modules_to_save.default." in key for key in state)
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    expected = model.merge_and_unload()
    assert different(merged(tied, tmp_path / "adapter", tmp_path / "out"), expected) == []


@pytest.mark.parametrize("second", ["module.", "base_model.model.", "model."])
def test_one_module_under_two_names_is_refused(second, llama, tmp_path):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    again = {
        key.replace("base_model.model.", f"base_model.model.{second}"): own.clone() for key, own in tensors.items()
    }
    save_file(tensors | again, file)
    refused(llama, tmp_path / "adapter", tmp_path / "out", "under two names")


def test_two_adapters_in_one_file_are_refused(llama, tmp_path):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    both = {
        key.replace(".weight", f".{name}.weight"): own.clone()
        for key, own in tensors.items()
        for name in ("one", "two")
    }
    save_file(both, file)
    refused(llama, tmp_path / "adapter", tmp_path / "out", r"2 adapters \(one, two\)")


# A12


def test_classifier_adapter_is_merged_into_a_classifier_and_explained_elsewhere(llama, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(llama, num_labels=3, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_pretrained(llama, config=config)
    model.save_pretrained(tmp_path / "classifier")
    model = adapted(model, task_type="SEQ_CLS", target_modules=QV)
    model.save_pretrained(tmp_path / "adapter")
    refused(
        llama,
        tmp_path / "adapter",
        tmp_path / "out",
        "score.weight is the head of a classifier .*a LlamaForCausalLM, which has none",
    )
    expected = model.merge_and_unload().state_dict()
    have = load_tiny(merged(tmp_path / "classifier", tmp_path / "adapter", tmp_path / "out")).state_dict()
    assert have.keys() == expected.keys()
    assert all(have[key].equal(expected[key]) for key in have)


# A14, A15, A16, A17


def test_square_weight_of_a_conv1d_is_one_whatever_the_adapters_config_says(tmp_path):
    base = make_tiny(tmp_path / "base", "gpt2")
    expected = train_tiny(base, tmp_path / "adapter", target_modules=["attn.c_proj"])
    configure(tmp_path / "adapter", fan_in_fan_out=False)
    assert different(merged(base, tmp_path / "adapter", tmp_path / "out"), expected) == []


PLAIN = """
import sys
from helpers.merging import merge_adapter
merge_adapter(*sys.argv[1:], progress=False)
assert "transformers" not in sys.modules and "peft" not in sys.modules
"""


def test_plain_merge_asks_no_model(llama, tmp_path):
    """Building one takes seconds and hundreds of megabytes, which LoRA on linear layers need not cost."""
    expected = train_tiny(llama, tmp_path / "adapter", target_modules=["q_proj", "k_proj", "down_proj"], bias="all")
    command = [sys.executable, "-c", PLAIN, str(llama), str(tmp_path / "adapter"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=COURSE_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert different(tmp_path / "out", expected) == []


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_trained_rows_of_tokens_equal_peft(kind, request, tmp_path):
    base = request.getfixturevalue(kind)
    expected = train_tiny(base, tmp_path / "adapter", target_modules=QV, trainable_token_indices=[1, 95])
    assert different(merged(base, tmp_path / "adapter", tmp_path / "out"), expected) == []


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_rows_that_differ_in_embedding_and_head_give_what_the_unmerged_adapter_gives(kind, request, tmp_path):
    """PEFT's own merge of a tied pair would write the rows of both into one tensor."""
    base = request.getfixturevalue(kind)
    named = {"embed_tokens": [3], "lm_head": [5]}
    model = adapted(load_tiny(base, torch.float32), target_modules=QV, trainable_token_indices=named)
    model.save_pretrained(tmp_path / "adapter")
    out = merged(base, tmp_path / "adapter", tmp_path / "out", dtype="float32")
    assert same_answers(load_tiny(out), model)


def test_trained_rows_of_a_vocabulary_that_grew_equal_peft(tied, tmp_path):
    model = load_tiny(tied)
    model.resize_token_embeddings(100)
    model = adapted(model, target_modules=QV, trainable_token_indices=[96, 99])
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload()
    assert different(merged(tied, tmp_path / "adapter", tmp_path / "out"), expected) == []


@pytest.mark.parametrize("saved", [{"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_tie_that_peft_was_told_to_keep_is_kept(saved, tied, tmp_path):
    expected = train_tiny(tied, tmp_path / "adapter", target_modules=QV, ensure_weight_tying=True, **saved)
    out = merged(tied, tmp_path / "adapter", tmp_path / "out")
    assert different(out, expected) == []
    assert load_tiny(out).config.tie_word_embeddings


@pytest.mark.parametrize(
    "targets", [["gate_proj", "up_proj"], ["down_proj"], ["gate", "gate_proj", "down_proj", "up_proj"]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_experts_that_peft_stacks_equal_peft(targets, dtype, tmp_path):
    base = make_tiny(tmp_path / "base", "qwen3_moe", dtype=dtype)
    expected = train_tiny(base, tmp_path / "adapter", target_modules=["q_proj", *targets])
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_parameters"]
    out = merged(base, tmp_path / "adapter", tmp_path / "out")
    assert different(out, expected) == []
    assert any("experts" in name for name in different(out, load_tiny(base)))


def test_foreign_settings_are_passed_over_unless_a_newer_peft_wrote_them(llama, tmp_path):
    expected = train_tiny(llama, tmp_path / "adapter", target_modules=QV)
    foreign = {"enable_lora": [True], "lora_dtype": "bfloat16", "unsloth_fixed": True,
               "runtime_config": {"ephemeral_gpu_offload": False}, "fan_in_fan_out": True}  # fmt: skip
    configure(tmp_path / "adapter", **foreign)
    assert different(merged(llama, tmp_path / "adapter", tmp_path / "out"), expected) == []
    configure(tmp_path / "adapter", peft_version="0.21.3.dev0@1234567", something_of_next_year=True)
    refused(llama, tmp_path / "adapter", tmp_path / "out2", "is not known here, and PEFT 0.21.3.dev0@1234567 wrote it")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dora_equals_peft(kind, dtype, tmp_path):
    base = make_tiny(tmp_path / "base", kind, width=48, dtype=dtype)
    target = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[kind]
    expected = train_tiny(base, tmp_path / "adapter", target_modules=target, use_dora=True)
    assert different(merged(base, tmp_path / "adapter", tmp_path / "out"), expected) == []
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "magnitude" not in k}, file)
    refused(base, tmp_path / "adapter", tmp_path / "out2", "no lora_magnitude_vector .* use_dora")


@pytest.mark.parametrize("dora", [False, True], ids=["plain", "DoRA"])
def test_lora_on_an_embedding_equals_peft_unless_it_is_tied(dora, llama, tied, tmp_path):
    expected = train_tiny(llama, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"], use_dora=dora)
    assert different(merged(llama, tmp_path / "adapter", tmp_path / "out"), expected) == []
    train_tiny(tied, tmp_path / "tied", target_modules=["embed_tokens", "q_proj"], use_dora=dora)
    refused(
        tied,
        tmp_path / "tied",
        tmp_path / "out tied",
        "embed_tokens.weight is adapted, which this base ties to its head",
    )


def test_lora_on_a_tied_embedding_with_its_head_gives_what_the_unmerged_adapter_gives(tied, tmp_path):
    """PEFT 0.21.2 would add the update twice to the tensor that both share."""
    model = load_tiny(tied, torch.float32)
    model = adapted(model, target_modules=["embed_tokens"], ensure_weight_tying=True)
    model.save_pretrained(tmp_path / "adapter")
    assert same_answers(load_tiny(merged(tied, tmp_path / "adapter", tmp_path / "out", dtype="float32")), model)


# A20: what was right and stays so

RIGHT = {
    "ranks and alphas by patterns": {"rank_pattern": {"^model.layers.1.*q_proj": 2}, "alpha_pattern": {"v_.*": 3},
                                     "use_rslora": True},
    "an alpha that is no whole number": {"lora_alpha": 7.5},
    "all but one": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "a regular expression": {"target_modules": r".*\.1\..*(q|up)_proj"},
    "biases that are not there": {"bias": "lora_only"},
    "the untied head": {"target_modules": ["lm_head", "q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
}  # fmt: skip


@pytest.mark.parametrize("settings", RIGHT.values(), ids=RIGHT)
def test_usual_settings_equal_peft(settings, llama, tmp_path):
    expected = train_tiny(llama, tmp_path / "an adapter", **{"target_modules": QV} | settings)
    assert different(merged(llama, tmp_path / "an adapter", tmp_path / "a merged model"), expected) == []


def test_converted_pissa_and_an_adapter_of_a_name_equal_peft(llama, tmp_path):
    model = load_tiny(llama, torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=QV, init_lora_weights="pissa"), adapter_name="mine")
    model.peft_config["mine"].init_lora_weights = True
    model.save_pretrained(tmp_path / "first")
    begun = shutil.move(tmp_path / "first" / "mine", tmp_path / "begun")
    model.peft_config["mine"].init_lora_weights = "pissa"
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * parameter.requires_grad * ("lora_" in name)
    model.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(begun))
    adapter = tmp_path / "adapter" / "mine"
    expected = PeftModel.from_pretrained(load_tiny(llama), adapter).merge_and_unload()
    assert different(merged(llama, adapter, tmp_path / "out"), expected) == []


def test_adapter_that_lacks_what_its_config_names_is_refused(llama, tmp_path):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV, modules_to_save=["lm_head"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: own for key, own in load_file(file).items() if "lm_head" not in key}, file)
    refused(llama, tmp_path / "adapter", tmp_path / "out", "modules_to_save names lm_head, .* has none of it")
    configure(tmp_path / "adapter", modules_to_save=None, trainable_token_indices=[1])
    refused(llama, tmp_path / "adapter", tmp_path / "out", "trainable_token_indices names rows")


ODD = {"r": [None, "16", True, 0, float("nan")], "lora_alpha": [None, "x"], "rank_pattern": [{"(": 3}, {"q_proj": -1}, [3]],
       "modules_to_save": ["lm_head"]}  # fmt: skip


def test_settings_that_are_none_are_one_line_each(llama, tmp_path):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for name, values in ODD.items():
        for value in values:
            configure(tmp_path / "adapter", **config | {name: value})
            refused(llama, tmp_path / "adapter", tmp_path / "out", "in adapter|modules_to_save names")


def test_base_whose_config_says_nonsense_is_one_line(llama, tmp_path):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV, modules_to_save=["lm_head"])
    for number, odd in enumerate(({"model_type": ["llama"]}, {"architectures": "Llama"}, {"architectures": ["Nope"]})):
        base = shutil.copytree(llama, tmp_path / str(number))
        config = json.loads((base / "config.json").read_text()) | odd
        (base / "config.json").write_text(json.dumps(config))
        refused(base, tmp_path / "adapter", tmp_path / "out", "does not know")


def test_adapter_of_the_bare_model_goes_into_the_whole_one_and_back(llama, tmp_path):
    inner = AutoModel.from_pretrained(llama)
    inner.save_pretrained(tmp_path / "inner")
    model = adapted(inner, target_modules=["q_proj", "up_proj"], task_type="FEATURE_EXTRACTION")
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    for base, prefix in ((llama, "model."), (tmp_path / "inner", "")):
        have = load_tiny(merged(base, tmp_path / "adapter", tmp_path / f"out {base.name}")).state_dict()
        assert all(have[prefix + name].equal(tensor) for name, tensor in expected.items())


def test_command_says_what_is_wrong_in_one_line(llama, tmp_path, capsys):
    train_tiny(llama, tmp_path / "adapter", target_modules=QV)
    save_file({}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert main(["merge", str(llama), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    assert "holds no LoRA matrices" in capsys.readouterr().err
