"""Where an answer ends in llama.cpp and in transformers, and the notes on what of choosing tokens a file does not carry."""

import json

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from helpers.export import export_gguf
from tests.export import makers
from tests.export.llama import Llama


def made(tmp_path, *names: str, template: str | None = None, eos: str = "<|end_of_text|>", special: bool = True):
    """A model whose tokenizer has more tokens."""
    tokenizer = makers.of_llama3(eos_token=eos) if eos == "<|end_of_text|>" else makers.of_llama3()
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    return folder, tokenizer


def why_it_ends(folder, number: int) -> tuple[str, str]:
    """(why llama.cpp ends the answer of a model that says one token alone: "eos" or "limit", all notes)."""
    tensors = load_file(folder / "model.safetensors")
    for key in tensors:
        if key.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            tensors[key].zero_()
    tensors["model.embed_tokens.weight"][:], tensors["model.norm.weight"][:] = 0.1, 1
    tensors["lm_head.weight"][number] = 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    out = folder.parent / "out.gguf"
    notes = export_gguf(folder, out, overwrite=True, progress=False)["notes"]
    return Llama(out).answer([5, 6, 7], 3)[1], " ".join(notes)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("<|im_end|>", True),
        ("<|end|>", True),
        ("[EOS]", True),
        ("<eos>", True),
        ("</s>", True),
        ("<|fim_pad|>", True),
        ("<|repo_name|>", True),
        ("<|file_sep|>", True),
        ("[PAD]", True),
        ("<|fim_prefix|>", False),
        ("<foo>", False),
    ],
)
def test_a_token_at_which_llama_cpp_alone_ends_is_said(name, ends, special, tmp_path):
    folder, tokenizer = made(tmp_path, name, special=special)
    why, notes = why_it_ends(folder, tokenizer.convert_tokens_to_ids(name))
    assert why == ("eos" if ends else "limit")
    assert (f"llama.cpp ends an answer at <|eot_id|> {name} too" in notes) is ends


@pytest.mark.parametrize(
    ("beside", "end"),
    [(("<|return|>", "<|call|>"), "<|end|>"), (("<|calls|>", "<|flush|>"), "<|end|>"), (("<|tool_response>",), "</s>")],
)
def test_an_end_that_llama_cpp_does_not_take_beside_others_is_said(beside, end, tmp_path):
    folder, tokenizer = made(tmp_path, *beside, end, eos=end)
    why, notes = why_it_ends(folder, tokenizer.eos_token_id)
    assert why == "limit"
    assert f"llama.cpp does not end an answer at {end}, because other tokens of its vocabulary forbid it" in notes


@pytest.mark.parametrize("beside", [("<|return|>",), ("<|call|>",), ()])
def test_an_end_without_all_of_those_is_taken(beside, tmp_path):
    folder, tokenizer = made(tmp_path, *beside, "<|end|>", eos="<|end|>")
    why, notes = why_it_ends(folder, tokenizer.eos_token_id)
    assert why == "eos"
    assert "does not end" not in notes


def test_what_parts_the_files_of_code_is_said_of_a_chat_only_if_its_template_writes_it(tmp_path):
    for template, said in ((makers.HEADERS, False), (makers.HEADERS + "{# <|file_sep|> #}", True)):
        folder, _ = made(tmp_path / str(said), "<|fim_pad|>", "<|file_sep|>", template=template)
        notes = " ".join(export_gguf(folder, folder.parent / "out.gguf", progress=False)["notes"])
        assert ("<|file_sep|> too" in notes) is said
        assert "<|fim_pad|>" not in notes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"do_sample": True, "temperature": 0.3, "top_p": 0.8, "repetition_penalty": 1.5, "suppress_tokens": [5]},
         "repetition_penalty, suppress_tokens, temperature, top_p"),
        ({"temperature": 0.3, "repetition_penalty": 1.05}, "repetition_penalty"),
        ({"do_sample": True, "temperature": 1.0, "top_k": 50, "suppress_tokens": None}, None),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, None),
        ({"max_length": 4096, "transformers_version": "4.40.0", "bos_token_id": 1, "use_cache": True}, None),
    ],
)  # fmt: skip
def test_what_a_file_does_not_carry_of_choosing_tokens_is_said(model, given, said):
    (model / "generation_config.json").write_text(json.dumps(given))
    notes = [
        note
        for note in export_gguf(model, model.parent / "out.gguf", "f16", progress=False)["notes"]
        if "Ollama" in note
    ]
    assert notes == ([f"give llama.cpp and Ollama {said} of generation_config.json yourself"] if said else [])


@pytest.mark.parametrize("template", [None, makers.HEADERS])
def test_a_model_without_a_chat_template_is_said(template, tmp_path):
    folder, _ = made(tmp_path, template=template)
    notes = export_gguf(folder, tmp_path / "out.gguf", "f16", progress=False)["notes"]
    assert any("there is no chat template: llama.cpp writes chats as ChatML" in note for note in notes) is (
        template is None
    )


QWEN = ("<|object_ref_start|>", "<|vision_pad|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
        "<|repo_name|>", "<|file_sep|>")  # fmt: skip
QWEN_CHATS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}" + makers.CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}"
    )
)  # fmt: skip


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_start|>"])
def test_what_pads_a_batch_is_no_end_that_a_model_writes(pad, tmp_path):
    tokenizer = makers.of_qwen2(chat_template=QWEN_CHATS, pad_token=pad)
    folder = makers.make_model(tmp_path / "model", "qwen2", tokenizer)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    notes = " ".join(export_gguf(folder, tmp_path / "out.gguf", "q8_0", progress=False)["notes"])
    assert ("<|endoftext|> too" in notes) is (pad != "<|endoftext|>")


def test_a_qwen_has_three_notes_at_most(tmp_path):
    tokenizer = makers.of_qwen2(chat_template=QWEN_CHATS)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in QWEN])
    folder = makers.make_model(tmp_path / "model", "qwen2", tokenizer)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    given = {
        "do_sample": True,
        "eos_token_id": ends,
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
    }
    (folder / "generation_config.json").write_text(json.dumps(given))
    notes = export_gguf(folder, tmp_path / "out.gguf", "q8_0", progress=False)["notes"]
    assert len(notes) == 3, notes
    assert [any(word in note for note in notes) for word in ("NFC", "Modelfile's template", "yourself")] == [True] * 3
