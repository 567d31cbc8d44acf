"""What cannot be carried is refused in one line before anything is written; a file is whole or absent, whatever happens."""

import functools
import json
import os
import shutil
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from helpers.__main__ import main
from helpers.export import ExportError, export_gguf, exporter
from tests.export import makers
from tests.export.refusing import edit, refused

export = functools.partial(export_gguf, progress=False)


def cut_otherwise(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(makers.Regex(r"\p{N}{1,2}|\p{L}+"), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )


def normalize_otherwise(backend):
    backend.normalizer = normalizers.Lowercase()


def with_space(backend):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def add_two(backend):
    a, b = "<|begin_of_text|>", "<|eot_id|>"
    special = [(a, backend.token_to_id(a)), (b, backend.token_to_id(b))]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{a} {b} $A", pair=f"{a} $A $B", special_tokens=special
    )


def strips(backend):
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            cut_otherwise,
            r"cuts a text in a way that is not known here \(gpt-2, smollm, .*other tokens without a word.*1,2",
        ),
        (normalize_otherwise, "cuts a text in a way that is not known here.*Lowercase"),
        (with_space, "cuts a text in a way that is not known here.*add_prefix_space"),
        (add_two, "makes .* of 'a': llama.cpp adds bos in front"),
        (strips, "the token '<mask>' has lstrip set"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_follow_is_refused(model, change, words):
    tokenizer = makers.of_llama3()
    change(tokenizer.backend_tokenizer)
    tokenizer.backend_tokenizer.save(str(model / "tokenizer.json"))
    refused(model, words)


def test_gpt_2s_cut_with_whole_words_first_is_refused(model):
    tokenizer = makers.of_smollm()
    edit_model = json.loads(tokenizer.backend_tokenizer.to_str())
    edit_model["model"]["ignore_merges"] = True
    (model / "tokenizer.json").write_text(json.dumps(edit_model))
    refused(model, "cuts a text in a way that is not known here")


def part_merges(merges: list) -> None:
    """Put the first merge of a token that has two of them last."""
    wholes = ["".join(pair) for pair in merges]
    merges.append(merges.pop(next(i for i, whole in enumerate(wholes) if wholes.count(whole) > 1)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["model"]["merges"].pop(), "no merge for every two tokens that make"),
        (lambda t: part_merges(t["model"]["merges"]), "do not stand together"),
        (lambda t: t["model"]["vocab"].update({"a\0": len(t["model"]["vocab"])}), "a token with a zero byte"),
        (lambda t: t["model"]["vocab"].pop("<0x0A>"), "no token for the byte <0x0A>"),
        (lambda t: t.update(normalizer={"type": "NFKC"}), "cuts a text in a way that is not known here.*NFKC"),
        (lambda t: t["model"].update(fuse_unk=False), "cuts a text in a way that is not known here"),
        (lambda t: t["added_tokens"][1].update(normalized=True), "'<s>' is looked for in normalized text"),
        (lambda t: t["model"].update(dropout=0.1), "only plain BPE"),
    ],
)
def test_sentencepiece_that_scores_cannot_say_is_refused(change, words, tmp_path):
    folder = makers.make_model(tmp_path / "model", "llama", makers.legacy_pieces())
    edit(folder / "tokenizer.json", change)
    refused(folder, words)


def test_a_tokenizer_that_is_absent_broken_or_without_an_end_is_one_line(model):
    whole = (model / "tokenizer.json").read_text()
    edit(model / "tokenizer_config.json", lambda c: c.update(eos_token=None))
    refused(model, "names no eos_token: answers would never end")
    (model / "tokenizer.json").write_text(whole[: len(whole) // 2])
    refused(model, "has no usable tokenizer")
    (model / "tokenizer.json").unlink()
    refused(model, "tokenizer")


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    refused(
        makers.make_model(tmp_path / "model", "llama", makers.of_llama3(), 1200),
        "has a token 1504, and .* ends at 1199",
    )


def test_a_broken_template_is_one_line(model):
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }")
    refused(model, "the chat template cannot be used")
    (model / "chat_template.jinja").write_text("{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}")
    refused(model, "the chat template makes an empty text of a user's message")
    edit(model / "tokenizer.json", lambda t: t.update(post_processor=None))  # also where no text begins with bos
    refused(model, "the chat template makes an empty text of a user's message")
    (model / "chat_template.jinja").write_text("{% if messages[1] %}{{ raise_exception('one') }}{% endif %}Q")
    refused(model, "^the chat template cannot be used")


def test_files_that_do_not_hold_what_config_says_are_refused(model):
    file = model / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, file)
    refused(model, r"lm_head.weight is absent in the files and \(1600, 64\) by config.json")
    save_file(tensors | {"model.layers.0.self_attn.q_norm.weight": torch.ones(32)}, file)
    refused(model, r"q_norm.weight is \(32,\) in the files and absent by config.json")
    save_file(tensors | {"model.norm.weight": torch.ones(63)}, file)
    refused(model, r"model.norm.weight is \(63,\) in the files and \(64,\)")
    save_file(tensors | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, file)
    refused(model, "stored quantized .model.norm.weight is I8.")
    for broken in (whole[:-1], whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 64):
        file.write_bytes(broken)
        refused(model, "model.safetensors is broken")
    file.unlink()
    refused(model, "model.safetensors is not there")


@pytest.mark.parametrize(
    ("value", "type", "words"),
    [
        (float("nan"), "q8_0", "holds NaN or infinity"),
        (float("inf"), "bf16", "holds NaN or infinity"),
        (70_000.0, "f16", "holds 70000, too large for f16: choose bf16 or f32"),
        (-70_000.0, "q4_1", "holds 70000, too large for q4_1: choose bf16 or f32"),
        (-70_000.0, "q5_1", "holds 70000, too large for q5_1"),
        (1_100_000.0, "q5_1", None),
        (2_100_000.0, "q5_1", "holds 2.1e.06, too large for q5_1"),
        (500_000.0, "q4_0", None),
        (600_000.0, "q4_0", "holds 600000, too large for q4_0"),
        (-1_200_000.0, "q5_0", "holds 1.2e.06, too large for q5_0"),
        (8_000_000.0, "q8_0", None),
        (1e7, "q8_0", "holds 1e.07, too large for q8_0"),
        (3.4e38, "q8_0", "holds 3.4e.38, too large for q8_0: choose f32"),
        (3.4e38, "bf16", "holds 3.4e.38, too large for bf16: choose f32"),
        (3.3e38, "bf16", None),
        (1e300, "f32", "holds NaN or infinity in float32"),
    ],
)
def test_weights_that_a_format_cannot_hold_leave_nothing(model, value, type, words):
    tensors = load_file(model / "model.safetensors")
    if value == 1e300:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].double()
    tensors["lm_head.weight"][-1, -1] = value
    save_file(tensors, model / "model.safetensors")
    if words is None:
        out = model.parent / "out.gguf"
        export(model, out, type)
        tensors = gguf.GGUFReader(out).tensors
        assert all(np.isfinite(gguf.dequantize(t.data, t.tensor_type)).all() for t in tensors)
        return
    refused(model, f"output.weight {words}", type=type)


def test_an_adapter_a_quantized_model_and_one_with_code_are_refused(model, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "adapter", "is an adapter: merge it first, python -m helpers merge BASE")
    (model / "adapter_config.json").write_text("{}")
    refused(model, "holds a whole model and an adapter, which transformers would apply.*: merge them first")
    (model / "adapter_config.json").unlink()
    edit(model / "config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Model"}))
    refused(model, "asks to run code that comes with the model")
    edit(model / "config.json", lambda c: c.pop("auto_map") and c.update(quantization_config={"quant_method": "gptq"}))
    refused(model, "stored quantized .gptq.")
    (model / "config.json").write_text("[]")
    refused(model, "config.json")
    refused(tmp_path / "nowhere", "no folder")


def test_what_is_there_is_kept_unless_told_otherwise(model, tmp_path):
    out, beside = tmp_path / "out.gguf", tmp_path / "out.Modelfile"
    refused(model, "ends in .gguf", tmp_path / "out.bin")
    refused(model, "type = 'q4_k_m': one of f32", type="q4_k_m")
    export(model, out, "f16")
    refused(model, "out.gguf is there already")
    first = out.read_bytes()
    export(model, out, "q8_0", overwrite=True)
    assert out.read_bytes() != first
    out.unlink()
    refused(model, "out.Modelfile is there already")
    out.write_bytes(b"a diary")
    refused(model, "is no GGUF file, and is not overwritten", overwrite=True)
    assert beside.is_file()


def test_a_link_is_not_replaced_by_a_file(model, tmp_path):
    export(model, tmp_path / "real.gguf")
    (tmp_path / "out.gguf").symlink_to("real.gguf")
    refused(model, "out.gguf is a link", overwrite=True)
    (tmp_path / "out.gguf").unlink()
    (tmp_path / "out.gguf").symlink_to("nowhere")
    refused(model, "out.gguf is a link")
    (tmp_path / "out.gguf").unlink()
    (tmp_path / "out.Modelfile").symlink_to("real.Modelfile")
    refused(model, "out.Modelfile is a link", overwrite=True)
    (tmp_path / "out.Modelfile").unlink()
    (tmp_path / "out.Modelfile").mkdir()
    refused(model, "out.Modelfile is no file", overwrite=True)
    refused(model, "has a sign in it that a Modelfile cannot hold", tmp_path / "a\nb.gguf")


@pytest.mark.parametrize("name", ["out.gguf", "out.Modelfile"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_appeared_while_it_wrote_is_kept(model, tmp_path, monkeypatch, name, kind):
    def appears(*arguments):
        write_weights(*arguments)
        (tmp_path / name).write_text("a diary") if kind == "file" else (tmp_path / name).symlink_to("nowhere")

    write_weights = exporter.write_weights
    monkeypatch.setattr(exporter, "write_weights", appears)
    with pytest.raises(ExportError, match=f"{name} is "):
        export(model, tmp_path / "out.gguf")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", name]
    assert kind == "link" or (tmp_path / name).read_text() == "a diary"


def test_of_two_exports_to_one_name_one_is_refused(model, tmp_path, monkeypatch):
    """Whether the other one writes still, or has ended since this one looked."""
    out = tmp_path / "out.gguf"

    def other(*arguments):
        monkeypatch.setattr(exporter, "plan_weights", plan_weights)
        export(model, out, "f16")
        return plan_weights(*arguments)

    plan_weights, write_weights = exporter.plan_weights, exporter.write_weights
    monkeypatch.setattr(exporter, "plan_weights", other)
    with pytest.raises(ExportError, match="out.gguf is there already"):
        export(model, out, "q8_0")
    assert {t.tensor_type.name for t in gguf.GGUFReader(out).tensors} == {"F32", "F16"}

    def meanwhile(*arguments):
        with pytest.raises(ExportError, match="is being written by another process now"):
            export(model, out, "f16", overwrite=True)
        write_weights(*arguments)

    monkeypatch.setattr(exporter, "write_weights", meanwhile)
    export(model, out, "q8_0", overwrite=True)
    assert {t.tensor_type.name for t in gguf.GGUFReader(out).tensors} == {"F32", "Q8_0"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "generation_config.json is no readable JSON"),
        ("[]", "generation_config.json holds list, not an object"),
        ('{"eos_token_id": 99999}', "eos_token_id = 99999 in generation_config.json: 99999 is no token of the model"),
        ('{"eos_token_id": -1}', "-1 is no token of the model"),
        ('{"eos_token_id": true}', "True is no token of the model"),
        ('{"eos_token_id": "2"}', "'2' is no token of the model"),
        ('{"eos_token_id": [2, [1]]}', r"\[1\] is no token of the model"),
        ('{"eos_token_id": [2, 1600]}', "1600 is no token of the model"),
    ],
)
def test_ends_of_answers_that_are_no_tokens_are_one_line(model, text, words):
    (model / "generation_config.json").write_text(text)
    refused(model, words)


@pytest.mark.parametrize("where", [[1], None, "x", {"model.norm.weight": 1}, {}, 5])
def test_an_index_that_names_no_files_is_one_line(model, where):
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    refused(model, r"does not say which file each tensor is in \(weight_map\)")


def test_a_name_comes_from_the_folder_also_where_it_is_called_a_dot(model, tmp_path, monkeypatch):
    monkeypatch.chdir(model)
    export(".", tmp_path / "out.gguf")
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.name"].contents() == "model"


def test_a_disk_that_is_too_small_is_known_before_writing(model, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
    refused(model, "needs 0.00 GB and its disk has 0.00 GB free")


def test_without_gguf_the_command_says_what_to_install(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["export", str(model), str(model.parent / "out.gguf")]) == 2
    assert capsys.readouterr().err == "python -m helpers export: the package gguf is not installed: pip install gguf\n"


def test_the_command_writes_file_and_modelfile_and_says_where_answers_end(model, capsys):
    out = model.parent / "out.gguf"
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [1501, 1504]}))
    (model / "chat_template.jinja").write_text(makers.HEADERS)
    assert main(["export", str(model), str(out), "--type", "q8_0"]) == 0
    assert "answers end at <|end_of_text|> <|eot_id|>" in capsys.readouterr().out
    words = (model.parent / "out.Modelfile").read_text()
    assert words.startswith('FROM ./out.gguf\nTEMPLATE """{{ if .System }}<|start_header_id|>system<|end_header_id|>\n')
    assert words.endswith('"""\nPARAMETER stop "<|end_of_text|>"\nPARAMETER stop "<|eot_id|>"\n')
    held = {name: field.contents() for name, field in gguf.GGUFReader(out).fields.items()}
    assert held["tokenizer.ggml.eos_token_id"] == 1501
    assert held["tokenizer.ggml.eot_token_id"] == 1504
    assert held["tokenizer.chat_template"] == makers.HEADERS
    assert held["tokenizer.ggml.add_bos_token"]
    assert out.stat().st_mode & 0o777 == 0o644


def test_a_template_that_no_pieces_make_is_said(model, tmp_path):
    (model / "chat_template.jinja").write_text("{{ messages | length }}" + makers.HEADERS)
    done = export(model, tmp_path / "out.gguf")
    assert "the chat template has no equal in Ollama's language" in " ".join(done["notes"])
    assert "TEMPLATE" not in (tmp_path / "out.Modelfile").read_text(), "Ollama looks at the file's own"


def test_what_was_left_by_another_export_that_lives_is_left_alone(model, tmp_path):
    young = tmp_path / ".other.gguf.abcd1234.part"
    young.write_bytes(b"half")
    export(model, tmp_path / "out.gguf")
    assert young.exists()
    assert os.listdir(tmp_path)
