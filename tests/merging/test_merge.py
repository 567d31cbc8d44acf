"""helpers.merging: equal to PEFT bit for bit, small, fast, and never half of a folder, whatever goes wrong."""

import hashlib
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from helpers import COURSE_ROOT
from helpers.__main__ import main
from helpers.merging import MergeError, arithmetic, merge_adapter
from helpers.merging import merger as merge
from helpers.merging.stored import Stored, read_base

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_base(folder, dtype=torch.float16, tied=False, shards=1, layers=2):
    """A random Llama with biases; 300 x 64 weights have more than 256 blocks of 64, so absmax has two blocks of its own."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 300, "num_hidden_layers": layers, "vocab_size": 130}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=tied)).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(folder, max_shard_size="10GB" if shards == 1 else f"{sum_bytes(model) // shards // 1000}KB")
    assert (folder / "model.safetensors.index.json").is_file() == (shards > 1)
    return folder


def sum_bytes(model):
    return sum(p.nbytes for p in model.parameters())


def make_adapter(base, folder, adapter_dtype=None, **settings):
    """A trained adapter: every parameter that trains is random, also those that begin at zero."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": LINEAR, "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
            if adapter_dtype:
                parameter.data = parameter.data.to(adapter_dtype)
    model.save_pretrained(folder)
    return folder


def by_peft(base, adapter, dtype=None, quantization=None):
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype or "auto", quantization_config=quantization, device_map="cpu"
    )
    if quantization is not None:
        model = model.dequantize()
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def assert_same(folder, expected):
    """The folder, loaded as anyone would, has every tensor of `expected`, bit for bit, and no other."""
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    have, want = loaded.state_dict(), expected.state_dict()
    assert have.keys() == want.keys()
    assert [k for k in want if have[k].dtype != want[k].dtype or not torch.equal(bits(have[k]), bits(want[k]))] == []
    assert loaded.config.tie_word_embeddings == expected.config.tie_word_embeddings


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.fixture(params=[128, arithmetic.PIECE], ids=["small pieces", "pieces"])
def piece(request, monkeypatch):
    monkeypatch.setattr(arithmetic, "PIECE", request.param)


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "^model.layers.1.*down_proj": 3},
    },
    "patterns with rslora": {"use_rslora": True, "rank_pattern": {"k_proj": 3}, "alpha_pattern": {"k_proj": 7}},
    "modules to save": {"modules_to_save": ["lm_head", "input_layernorm", "embed_tokens"]},
    "biases of adapted layers": {"bias": "lora_only", "target_modules": ["q_proj", "down_proj"]},
    "all biases": {"bias": "all", "target_modules": ["q_proj"]},
    "a bias in lora_B": {"lora_bias": True},
    "head adapted": {"target_modules": ["lm_head", "q_proj"]},
    "one layer": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_merge_equals_peft_bit_for_bit_whatever_the_adapter(base, settings, tmp_path, piece):
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    merge_adapter(base, adapter, tmp_path / "out", progress=False)
    expected = by_peft(base, adapter)
    assert_same(tmp_path / "out", expected)
    stored = load_file(base / "model.safetensors")
    assert any(not torch.equal(tensor, stored[k]) for k, tensor in expected.state_dict().items())


@pytest.mark.parametrize("rank", [1, 4, 16, 64])
@pytest.mark.parametrize("shape", [(512, 768), (513, 777), (300, 64), (64, 300), (7, 5)])
def test_product_by_rows_has_the_bits_of_the_whole_product(shape, rank):
    torch.manual_seed(rank)
    for _ in range(3):  # the first time the shape is looked at, then what was found is used
        b, a = torch.randn(shape[0], rank), torch.randn(rank, shape[1])
        parts = [part.clone() for part in arithmetic._product(b, a, 64 * shape[1])]
        assert len(parts) == -(-shape[0] // 64)
        assert torch.equal(torch.cat(parts), (b @ a).view(-1))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_merge_equals_peft_bit_for_bit_in_every_dtype(stored, shards, tied, tmp_path):
    base = make_base(tmp_path / "base", getattr(torch, stored), tied, shards)
    adapter = make_adapter(base, tmp_path / "adapter", torch.bfloat16 if tied else None)
    for dtype in (None, "float16", "bfloat16", "float32"):
        merge_adapter(base, adapter, tmp_path / "out", dtype=dtype, overwrite=True, progress=False)
        assert_same(tmp_path / "out", by_peft(base, adapter, dtype))
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == (dtype or stored)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("double_quant", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_merge_into_dequantized_weights_equals_peft_bit_for_bit(
    base, adapter, quant_type, double_quant, dtype, tmp_path
):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double_quant
    )
    expected = by_peft(base, adapter, dtype, quantization)
    for size in (128, arithmetic.PIECE):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arithmetic, "PIECE", size)
            way = {"quant_type": quant_type, "double_quant": double_quant, "overwrite": True, "progress": False}
            merge_adapter(base, adapter, tmp_path / "out", "dequantized", dtype, **way)
        assert_same(tmp_path / "out", expected)


@pytest.mark.parametrize(
    "saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["q_proj"]], ids="+".join
)
@pytest.mark.parametrize("way", ["original", "dequantized"])
def test_tied_base_with_its_own_head_or_embedding_equals_peft(way, saved, tmp_path):
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["up_proj"], modules_to_save=saved)
    merge_adapter(base, adapter, tmp_path / "out", way, progress=False)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    assert_same(tmp_path / "out", by_peft(base, adapter, None, quantization if way == "dequantized" else None))


@pytest.mark.parametrize("way", ["original", "dequantized"])
def test_bundled_model_merges_as_peft_does_and_comes_with_tokenizer_and_generation_config(way, tmp_path):
    bundled = COURSE_ROOT / "assets" / "base_model"
    adapter = make_adapter(bundled, tmp_path / "adapter", r=16, target_modules="all-linear")
    assert main(["merge", "bundled", str(adapter), str(tmp_path / "out"), "--base-weights", way]) == 0
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    assert_same(tmp_path / "out", by_peft(bundled, adapter, None, quantization if way == "dequantized" else None))
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (bundled / file).read_bytes()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_output_is_what_save_pretrained_would_name_and_nothing_else(adapter, tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    (adapter / "tokenizer_config.json").write_text('{"of": "the adapter"}')
    (base / "tokenizer_config.json").write_text('{"of": "the base"}')
    done = merge_adapter(base, adapter, tmp_path / "out", progress=False)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in base.iterdir()}
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"of": "the adapter"}
    (adapter / "tokenizer_config.json").unlink()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done["bytes"] == sum_bytes(AutoModelForCausalLM.from_pretrained(base))
    for shard in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / shard, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {key for key, where in index["weight_map"].items() if where == shard}


def edit(file, change):
    settings = json.loads(file.read_text())
    change(settings)
    file.write_text(json.dumps(settings))


def refused(base, adapter, out, words, **settings):
    """The merge stops with one line that has the words in it, and leaves nothing where it would have written."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(MergeError, match=words) as caught:
        merge_adapter(base, adapter, out, progress=False, **settings)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peft_type", "LOHA"),
        ("use_dora", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "olora"),
        ("loftq_config", {"loftq_bits": 4}),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("kasa_config", {"beta": 0.1}),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(base, adapter, name, value, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", lambda settings: settings.update({name: value}))
    refused(base, tmp_path / "adapter", tmp_path / "out", name)


@pytest.mark.parametrize(("device", "words"), [("tpu", "'tpu'"), ("cuda", "no GPU is in sight")])
def test_a_device_that_is_not_there_is_refused(base, adapter, device, words, tmp_path):
    refused(base, adapter, tmp_path / "out", words, base_weights="dequantized", device=device)


def test_lora_on_a_tied_head_is_refused_since_it_would_change_the_embedding(tmp_path):
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["lm_head"])
    refused(base, adapter, tmp_path / "out", "ties to its embedding")


def test_pickled_adapter_is_refused_with_the_reason_and_the_way_to_convert(base, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    torch.save(load_file(adapter / "adapter_model.safetensors"), tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    refused(base, tmp_path / "adapter", tmp_path / "out", "run any code.*save_pretrained")
    (tmp_path / "adapter" / "adapter_model.bin").unlink()
    refused(base, tmp_path / "adapter", tmp_path / "out", "adapter_model.safetensors is not there")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_or_infinity_in_an_adapter_is_refused(base, adapter, value, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = sorted(tensors)[-1]
    tensors[key].view(-1)[-1] = value
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    refused(base, tmp_path / "adapter", tmp_path / "out", f"{key} in adapter holds NaN or infinity")


def test_adapter_without_what_was_trained_is_refused(base, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    tensors, file = load_file(adapter / "adapter_model.safetensors"), tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({}, file)
    refused(base, tmp_path / "adapter", tmp_path / "out", "holds no LoRA matrices")
    save_file({key: torch.empty(0) for key in tensors}, file)
    refused(base, tmp_path / "adapter", tmp_path / "out", "is empty .ZeRO-3")
    save_file({key: tensor * ("lora_A" in key) for key, tensor in tensors.items()}, file)
    refused(base, tmp_path / "adapter", tmp_path / "out", "matrices B are all zero")


def test_right_base_is_not_called_another_one(base, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    tensors = {f"tower.{key}": tensor for key, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    refused(base, tmp_path / "adapter", tmp_path / "out", "has no tower.*names 'base' as its base too")


def test_stale_index_byte_order_mark_and_files_beside_the_model_are_taken(adapter, tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    for shard in base.glob("model-*.safetensors"):
        shard.unlink()
    index = (base / "model.safetensors.index.json").read_text()
    shutil.copy(make_base(tmp_path / "whole") / "model.safetensors", base)
    (base / "model.safetensors.index.json").write_text(index)
    beside = ("tekken.json", "qwen.tiktoken", "processor_config.json", "video_preprocessor_config.json")
    for name in (*beside, "sentencepiece.bpe.model"):
        (base / name).write_text("{}")
    config = base / "config.json"
    config.write_text(config.read_text(), encoding="utf-8-sig")
    merge_adapter(base, adapter, tmp_path / "out", progress=False)
    assert_same(tmp_path / "out", by_peft(tmp_path / "whole", adapter))
    assert all((tmp_path / "out" / name).is_file() for name in (*beside, "sentencepiece.bpe.model"))


def test_adapter_of_another_base_is_refused_by_name_and_by_shape(base, adapter, tmp_path):
    shallow = make_base(tmp_path / "shallow", layers=1)
    refused(shallow, adapter, tmp_path / "out", "has no model.layers.1.*trained on.*this base is 'shallow'")
    narrow = LlamaConfig.from_pretrained(base, intermediate_size=120)
    LlamaForCausalLM(narrow).save_pretrained(tmp_path / "narrow")
    refused(tmp_path / "narrow", adapter, tmp_path / "out", r"mlp.*is \(64, 120\) in the base and \(64, 300\)")
    saved = make_adapter(base, tmp_path / "saved", modules_to_save=["lm_head"])
    LlamaForCausalLM(LlamaConfig.from_pretrained(base, vocab_size=99)).save_pretrained(tmp_path / "vocabulary")
    refused(tmp_path / "vocabulary", saved, tmp_path / "out", r"lm_head.weight is \(99, 64\)")


def test_adapter_whose_file_and_config_disagree_is_refused(base, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", lambda settings: settings.update(r=8))
    refused(base, tmp_path / "adapter", tmp_path / "out", "the rank is 4 in the adapter's file and 8 in its config")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    refused(base, tmp_path / "adapter", tmp_path / "out", "only one of lora_A and lora_B")


def test_broken_base_is_refused_before_anything_is_written(adapter, tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    shards, index = sorted(base.glob("*.safetensors")), base / "model.safetensors.index.json"
    whole, listed = shards[1].read_bytes(), index.read_text()
    for broken in (whole[:-1], whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 64, whole + b"0"):
        shards[1].write_bytes(broken)
        refused(base, adapter, tmp_path / "out", f"{shards[1].name} is broken")
    shards[1].unlink()
    refused(base, adapter, tmp_path / "out", f"{shards[1].name} is not there")
    shards[1].write_bytes(whole)
    edit(index, lambda content: content["weight_map"].update({"model.norm.weight": shards[0].name}))
    refused(base, adapter, tmp_path / "out", "says that model.norm.weight is in")
    index.write_text(listed[:-20])
    refused(base, adapter, tmp_path / "out", "index.json cannot be read")
    index.write_text(listed)
    edit(base / "config.json", lambda c: c.update(quantization_config={"quant_method": "bitsandbytes"}))
    refused(base, adapter, tmp_path / "out", "stored quantized .bitsandbytes.")
    (base / "config.json").write_text("[]")
    refused(base, adapter, tmp_path / "out", "config.json cannot be read .* holds list, not an object")
    (base / "config.json").unlink()
    refused(base, adapter, tmp_path / "out", "no config.json in")


def test_impossible_settings_and_absent_folders_are_one_line(base, adapter, tmp_path, capsys):
    refused(base, adapter, tmp_path / "out", "base_weights = '4-bit'", base_weights="4-bit")
    refused(base, adapter, tmp_path / "out", "quant_type = 'int4'", quant_type="int4")
    refused(base, adapter, tmp_path / "out", "dtype = 'int8'", dtype="int8")
    refused(tmp_path / "nowhere", adapter, tmp_path / "out", "no folder")
    refused(base, tmp_path, tmp_path / "out", "no adapter_config.json in")
    assert main(["merge", str(base), str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("python -m helpers merge: no adapter_config.json in")


def hub_cache(folder, base, repository="someone/small"):
    """A hub cache as huggingface_hub lays it out: blobs named by their sums, and a snapshot of links to them."""
    home = folder / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    snapshot = home / "snapshots" / commit
    for made in (snapshot, home / "blobs", home / "refs"):
        made.mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    for file in base.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_base_on_the_hub_is_merged_from_its_cache(base, adapter, tmp_path, monkeypatch):
    hub_cache(tmp_path / "hub", base)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    merge_adapter("someone/small", adapter, tmp_path / "out", progress=False)
    assert_same(tmp_path / "out", by_peft(base, adapter))
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


def test_base_that_is_not_what_was_published_is_refused(base, adapter, tmp_path, monkeypatch):
    snapshot = hub_cache(tmp_path / "hub", base)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    blob = (snapshot / "model.safetensors").resolve()
    changed = bytearray(blob.read_bytes())
    changed[-1000] ^= 1  # one bit of one weight: sizes and header are right
    blob.write_bytes(changed)
    refused("someone/small", adapter, tmp_path / "out", "model.safetensors has not the SHA-256 that the hub published")
    bundled = COURSE_ROOT / "assets" / "base_model"
    monkeypatch.setattr("helpers.files.reading.ASSETS", tmp_path / "assets")
    monkeypatch.setattr(
        "helpers.merging.stored.BUNDLED_MODEL", shutil.copytree(bundled, tmp_path / "assets" / "base_model")
    )
    shutil.copy(COURSE_ROOT / "assets" / "SHA256SUMS", tmp_path / "assets")
    file = tmp_path / "assets" / "base_model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    fitting = make_adapter(bundled, tmp_path / "fitting", target_modules=["q_proj"])
    refused("bundled", fitting, tmp_path / "out", "bundled model: model.safetensors is damaged")


def test_base_that_the_hub_does_not_give_is_one_line(base, adapter, tmp_path, monkeypatch):
    snapshot = hub_cache(tmp_path / "hub", base)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    refused(
        "someone/other", adapter, tmp_path / "out", "'someone/other' here.*not in the hub's cache, and HF_HUB_OFFLINE"
    )
    refused("not a hub id", adapter, tmp_path / "out", "no folder 'not a hub id' here, and it is no hub id")
    (snapshot / "model.safetensors").unlink()
    refused("someone/small", adapter, tmp_path / "out", "in part and HF_HUB_OFFLINE is set")


def test_base_in_the_cache_is_merged_where_the_network_refuses(base, adapter, tmp_path):
    hub_cache(tmp_path / "hub", base)
    refusing = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "hub")}

    def merge_of(name):
        command = [sys.executable, "-m", "helpers", "merge", name, str(adapter), str(tmp_path / "out")]
        return subprocess.run(command, cwd=COURSE_ROOT, env=os.environ | refusing, capture_output=True, text=True)

    done = merge_of("someone/other")
    assert done.returncode == 2
    assert "not in the hub's cache, and the hub cannot be reached" in done.stderr.splitlines()[-1]
    assert merge_of("someone/small").returncode == 0
    assert_same(tmp_path / "out", by_peft(base, adapter))


def test_existing_output_is_kept_unless_told_otherwise(base, adapter, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused(base, adapter, out, "is there already")
    refused(base, adapter, out, "is not the folder of a model", overwrite=True)
    assert (out / "mine.txt").read_text() == "mine"
    (out / "config.json").write_text("{}")
    for name in ("mine.txt", "train.py", "rows"):
        refused(base, adapter, out, "holds mine.txt, which no merge wrote", overwrite=True)
        (out / name).mkdir() if name == "rows" else (out / name).write_text("mine")
    for name in ("mine.txt", "train.py"):
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    refused(base, adapter, out, "holds rows, which no merge wrote", overwrite=True)
    (out / "rows").rmdir()
    for _ in range(2):  # the second time over what the first one wrote
        merge_adapter(base, adapter, out, overwrite=True, progress=False)
        assert_same(out, by_peft(base, adapter))
    before = (base / "model.safetensors").read_bytes()
    for place in (base, base.parent, adapter):
        with pytest.raises(MergeError, match="holds the base or the adapter"):
            merge_adapter(base, adapter, place, overwrite=True)
    assert (base / "model.safetensors").read_bytes() == before


def test_disk_too_small_is_known_before_writing(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
    refused(base, adapter, tmp_path / "out", "and its disk has 0.00 GB free")


def test_write_that_fails_half_way_leaves_nothing(base, adapter, tmp_path):
    """A limit on the size of files stands for a disk that fills up: the system refuses the write in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        refused(base, adapter, tmp_path / "out", "was not written: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_takes_in_parts_is_finished(tmp_path, monkeypatch):
    """As it does near a limit or on a disk that is nearly full: a file that is short would be a broken model."""
    monkeypatch.setattr(merge, "BEHIND", 1000)  # and so the cache is told several times

    class InParts(io.FileIO):
        def write(self, content):
            return super().write(content[:700])

    pieces = [random.Random(n).randbytes(1900) for n in range(3)]
    with InParts(tmp_path / "file", "w") as file:
        assert [merge._write(file, torch.frombuffer(bytearray(p), dtype=torch.uint8).numpy()) for p in pieces] == [
            1900
        ] * 3
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


FULL_DISK = """
import collections, os, shutil, sys
base, adapter, disk = sys.argv[1:]
if os.system(f"mount -t tmpfs -o size=200k none {disk}"):
    sys.exit(77)
from helpers.merging import MergeError, merge_adapter
shutil.disk_usage = lambda path: collections.namedtuple("usage", "free")(10**12)  # it fills up after the check
try:
    merge_adapter(base, adapter, f"{disk}/out", progress=False)
except MergeError as error:
    print(error, os.listdir(disk))
"""


def test_disk_that_fills_up_leaves_nothing_and_says_so(base, adapter, tmp_path):
    command = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, base, adapter, tmp_path]
    if not shutil.which("unshare") or sum(file.stat().st_size for file in base.iterdir()) < 250_000:
        pytest.skip("needs unshare")
    done = subprocess.run(command, cwd=COURSE_ROOT, capture_output=True, text=True)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.stdout == f"{tmp_path}/out was not written: No space left on device []\n", done.stderr


def test_shard_that_shrinks_while_it_is_read_leaves_nothing(base, adapter, tmp_path, monkeypatch):
    def stretched(folder):
        config, stored = read_base(folder)
        last = max(stored, key=lambda key: stored[key].start)
        stored[last] = Stored(stored[last].file, stored[last].start + 2, stored[last].code, stored[last].shape)
        return config, stored

    monkeypatch.setattr(merge, "read_base", stretched)
    refused(base, adapter, tmp_path / "out", "ended while it was read")


CHILD = "import sys; from helpers.merging import merge_adapter; {before}; merge_adapter(*sys.argv[1:4], progress=False)"


def test_killed_merge_leaves_no_folder_or_a_complete_one_and_the_next_one_sweeps_up(tmp_path):
    base = make_large(tmp_path / "base", hidden=1024, intermediate=2816, layers=6)
    adapter, out = base / "adapter", tmp_path / "result" / "out"
    merge_adapter(base, adapter, tmp_path / "whole", progress=False)
    whole = {f.name: f.read_bytes() for f in (tmp_path / "whole").iterdir()}
    command = [sys.executable, "-c", CHILD.format(before="import torch; print('go', flush=True)")]
    randomly, absent, left = random.Random(0), 0, 0
    for moment in range(5):
        child = subprocess.Popen([*command, base, adapter, out], stdout=subprocess.PIPE, cwd=COURSE_ROOT)
        child.stdout.readline()
        begun = time.monotonic()
        while moment % 2 and not list(out.parent.glob(".out.*.part/*.safetensors")) and time.monotonic() - begun < 5:
            time.sleep(0.001)  # every other one is killed while it writes the weights
        time.sleep(randomly.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        left = max(left, len(list(out.parent.glob(".out.*"))))
        if out.exists():
            assert {f.name: f.read_bytes() for f in out.iterdir()} == whole
            shutil.rmtree(out)
        else:
            absent += 1
    assert absent >= 3
    assert left >= 1  # some were killed while they wrote
    merge_adapter(base, adapter, out, progress=False)
    assert [f.name for f in out.parent.iterdir()] == ["out"]
    assert {f.name: f.read_bytes() for f in out.iterdir()} == whole


KILLED_BETWEEN = """
import os, signal
from helpers.merging import arithmetic, stored
from helpers.merging import merger as merge
from helpers.lesson import session as results
swap = os.replace
def replace(a, b):
    swap(a, b)
    if str(b).endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


def test_old_model_comes_back_after_a_kill_between_the_two_renames(base, adapter, tmp_path):
    out = tmp_path / "out"
    merge_adapter(base, adapter, out, progress=False)
    (out / "README.md").write_text("mine")
    ours = tmp_path / ".out.mine.old"
    ours.mkdir()
    (ours / "file").write_text("nothing of a merge's")
    call = f"merge_adapter({str(base)!r}, {str(adapter)!r}, {str(out)!r}, overwrite=True, progress=False)"
    code = f"{KILLED_BETWEEN}\nfrom helpers.merging import merge_adapter\n{call}"
    killed = subprocess.run([sys.executable, "-c", code], cwd=COURSE_ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(MergeError, match="is there already"):  # nobody said overwrite this time
        merge_adapter(base, adapter, out, progress=False)
    assert (out / "README.md").read_text() == "mine"
    merge_adapter(base, adapter, out, overwrite=True, progress=False)
    assert not (out / "README.md").exists()
    assert sorted(f.name for f in tmp_path.iterdir() if not f.name.endswith(".part")) == [".out.mine.old", "out"]
    assert (ours / "file").is_file()


def test_old_model_comes_back_when_the_second_rename_fails(base, adapter, tmp_path, monkeypatch):
    out, swap = tmp_path / "out", os.replace
    merge_adapter(base, adapter, out, progress=False)

    def replace(a, b):
        if str(a).endswith(".part"):
            raise OSError(5, "Input/output error")
        swap(a, b)

    monkeypatch.setattr(os, "replace", replace)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    with pytest.raises(MergeError, match="was not written: Input/output error"):
        merge_adapter(base, adapter, out, overwrite=True, progress=False)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_second_merge_into_the_same_folder_is_told_and_leaves_the_first_alone(base, adapter, tmp_path):
    out, part = tmp_path / "out", tmp_path / ".out.abcd1234.part"
    command = [sys.executable, "-c", CHILD.format(before="pass")]
    part.mkdir()
    with FileLock(tmp_path / ".out.merging"):
        second = subprocess.run([*command, base, adapter, out], capture_output=True, text=True, cwd=COURSE_ROOT)
        assert "is being written by another process now" in second.stderr.splitlines()[-1]
        assert part.is_dir()
        merge_adapter(base, adapter, tmp_path / "another", progress=False)
        assert part.is_dir()
    merge_adapter(base, adapter, out, progress=False)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["another", "out"]


@pytest.mark.parametrize("moment", ["before the folder", "after the folder", "before the rename", "after the rename"])
def test_what_a_merge_leaves_is_swept_up_whenever_it_was_killed(moment, base, adapter, tmp_path):
    out = tmp_path / "result" / "out"
    where, _, what = moment.partition(" the ")
    module, name = {"folder": ("tempfile", "mkdtemp"), "rename": ("os", "replace")}[what]
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    body = f"{kill}" if where == "before" else f"whole(*a, **k); {kill}"
    before = (
        f"import os, signal, tempfile; whole = {module}.{name}\ndef killed(*a, **k): {body}\n{module}.{name} = killed"
    )
    child = subprocess.run([sys.executable, "-c", CHILD.format(before=before), base, adapter, out], cwd=COURSE_ROOT)
    assert child.returncode == -signal.SIGKILL
    assert ".out.merging" in [f.name for f in out.parent.iterdir()]
    assert out.exists() == (moment == "after the rename")
    merge_adapter(base, adapter, out, overwrite=out.exists(), progress=False)
    assert [f.name for f in out.parent.iterdir()] == ["out"]


def make_large(folder, hidden, intermediate, layers, heads=8, kv_share=4, vocabulary=32000, rank=16, layers_a_shard=8):
    """Mistral's layout in float16 with random weights (one random piece, repeated), shard by shard, and an adapter."""
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(1 << 20, generator=generator) * 0.02).half()

    def weight(*shape):
        count = math.prod(shape)
        return noise.repeat(-(-count // noise.numel()))[:count].reshape(shape).clone()

    key_value, mlp = hidden // kv_share, intermediate
    linear = {"self_attn.q_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden)}
    linear |= {"self_attn.k_proj": (key_value, hidden), "self_attn.v_proj": (key_value, hidden)}
    linear |= {"mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp)}
    shape = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": vocabulary}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads // kv_share, "tie_word_embeddings": False}
    (folder / "adapter").mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float16"} | shape
    (folder / "config.json").write_text(json.dumps(config))
    where, lora = {}, {}
    for first in range(0, layers, layers_a_shard):
        tensors = {"model.embed_tokens.weight": weight(vocabulary, hidden)} if first == 0 else {}
        for layer in range(first, min(layers, first + layers_a_shard)):
            for name, sizes in linear.items():
                key = f"model.layers.{layer}.{name}"
                tensors[f"{key}.weight"] = weight(*sizes)
                lora[f"base_model.model.{key}.lora_A.weight"] = torch.randn(rank, sizes[1], generator=generator) * 0.01
                lora[f"base_model.model.{key}.lora_B.weight"] = torch.randn(sizes[0], rank, generator=generator) * 0.01
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{name}.weight"] = weight(hidden)
        if first + layers_a_shard >= layers:
            tensors |= {"model.norm.weight": weight(hidden), "lm_head.weight": weight(vocabulary, hidden)}
        shard = f"model-{first // layers_a_shard + 1:05d}-of-{-(-layers // layers_a_shard):05d}.safetensors"
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    save_file(lora, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 32, "base_model_name_or_path": "random"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return folder


# Run as its own process. The peak is VmHWM: getrusage's ru_maxrss would count the parent's memory at the fork.
MEASURE = """
import json, os, shutil, sys, time
from pathlib import Path

def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

bare = peak()
from helpers.merging import merge_adapter
base, folder, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])

def copy(out):
    begun = time.perf_counter()
    out.mkdir()
    for file in base.glob("*.safetensors"):
        shutil.copy(file, out / file.name)
    for file in out.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())  # as the merge does
    copied.append(time.perf_counter() - begun)

def merge(out):
    merged.append(merge_adapter(base, base / "adapter", out, sys.argv[3], progress=False)["seconds"])

copied, merged = [], []
for one in range(rounds):
    for work in (copy, merge) if one % 2 == 0 else (merge, copy):  # each is first as often as second
        os.sync()  # what the one before left to be written is not this one's
        work(folder / "out")
        shutil.rmtree(folder / "out")
print(json.dumps({"above_bare_python": peak() - bare, "copied": copied, "merged": merged}))
"""


def measure(base, folder, base_weights="original", rounds=5):
    command = [sys.executable, "-c", MEASURE, str(base), str(folder), base_weights, str(rounds)]
    done = subprocess.run(command, cwd=COURSE_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    found["speed"] = min(found["copied"]) / min(found["merged"])  # the shortest: what else the machine does only adds
    print(found)
    return found


linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from Linux's /proc")


@linux
def test_merge_with_7b_sized_tensors_is_small_and_at_least_half_as_fast_as_copying(tmp_path):
    base = make_large(tmp_path / "base", hidden=4096, intermediate=14336, layers=2, heads=32)
    found = measure(base, tmp_path)
    assert found["above_bare_python"] < 1.5e9
    assert found["speed"] >= 0.5, found


@linux
def test_merge_of_a_whole_7b_model_is_small_and_at_least_half_as_fast_as_copying(tmp_path):
    if os.environ.get("COURSE_LARGE_TESTS") != "1":
        pytest.skip("writes 29 GB: set COURSE_LARGE_TESTS=1 to run it")
    if shutil.disk_usage(tmp_path).free < 31e9:
        pytest.skip("needs 31 GB free where temporary files go (TMPDIR names another place)")
    base = make_large(tmp_path / "base", hidden=4096, intermediate=14336, layers=32, heads=32)
    assert sum(file.stat().st_size for file in base.glob("*.safetensors")) > 14.4e9
    found = measure(base, tmp_path, rounds=3)
    shutil.rmtree(base)
    assert found["above_bare_python"] < 1.5e9
    assert found["speed"] >= 0.5, found


@linux
def test_merge_into_dequantized_7b_sized_tensors_is_small_too(tmp_path):
    base = make_large(tmp_path / "base", hidden=4096, intermediate=14336, layers=1, heads=32, vocabulary=1000)
    assert measure(base, tmp_path, "dequantized", rounds=1)["above_bare_python"] < 1.5e9
