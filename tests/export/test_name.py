"""The name of a model in the file comes from its folder, and does not change the model's tokens."""

import gguf
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from helpers.export import export_gguf
from tests.export import makers

PHI = ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"]


def of_phi():
    """SentencePiece's BPE with the special tokens of Phi 3."""
    tokenizer = makers.legacy_pieces()
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in (*PHI, "[MASK]")])
    tokenizer.eos_token = "<|end|>"
    return tokenizer


def exported(folder, tmp_path) -> tuple[str, str]:
    """(the name in the file, all notes)."""
    done = export_gguf(folder, tmp_path / "out.gguf", "f16", progress=False, overwrite=True)
    name = gguf.GGUFReader(tmp_path / "out.gguf").fields["general.name"].contents()
    return name, " ".join(done["notes"])


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("phi-3-mini-llamafied", "phi_3-mini-llamafied"),
        ("Phi-3-merged", "Phi_3-merged"),
        ("graphi3", "graphi_3"),
        ("PHI3-lora", "PHI_3-lora"),
        ("my-phi3-phi-3.5", "my-phi_3-phi_3.5"),
        ("a-Modern-BERT-b", "a-Modern_BERT-b"),
        ("phi-4", "phi-4"),
        ("phi_3", "phi_3"),
        ("modernbert", "modernbert"),
        ("model", "model"),
    ],
)
def test_a_name_on_which_llama_cpp_acts_is_written_otherwise_and_said(model, folder, name, tmp_path):
    written, notes = exported(model.rename(tmp_path / folder), tmp_path)
    assert written == name
    assert (f"the model is called {name} in the file" in notes) == (folder != name)


TEXTS = ["<|user|>\nhi<|end|>\n<|assistant|>\n", "<|user|>  x", "a</s> b", "a [MASK] b", "<|end|>\n\n<|end|> "]


@pytest.mark.parametrize("name", ["phi-3-mini-llamafied", "Graphi3", "modern-bert-x", "model"])
def test_tokens_do_not_depend_on_the_folders_name(name, tmp_path):
    running = pytest.importorskip("tests.export.llama").Llama
    folder = makers.make_model(tmp_path / name, "llama", of_phi())
    exported(folder, tmp_path)
    tokenizer, llama = AutoTokenizer.from_pretrained(folder), running(tmp_path / "out.gguf")
    assert [llama.ids(text) for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("name", ["phi3-lora", "Phi-3-merged"])
def test_a_file_without_the_tokens_of_phi_is_loaded_under_its_name(name, model, tmp_path):
    running = pytest.importorskip("tests.export.llama").Llama
    exported(model.rename(tmp_path / name), tmp_path)
    assert running(tmp_path / "out.gguf").ids("<|eot_id|> hello")
