"""Byte-level tokenizers that lack a byte: refused where they write unk_token for it, which llama.cpp does not."""

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from helpers.export import export_gguf
from tests.export.refusing import edit, refused

SIGNS = bytes_to_unicode()


def lacking(folder, *missing: int, unknown: str | None) -> None:
    """Give a tokenizer an unk_token, and take bytes from its alphabet: they get the names of tokens that no text has."""

    def change(described: dict) -> None:
        described["model"]["unk_token"] = unknown
        for byte in missing:
            described["model"]["vocab"][f"[byte {byte}]"] = described["model"]["vocab"].pop(SIGNS[byte])
        described["model"]["merges"] = [
            pair for pair in described["model"]["merges"] if not any(SIGNS[byte] in "".join(pair) for byte in missing)
        ]

    edit(folder / "tokenizer.json", change)


@pytest.mark.parametrize("byte", [0x00, 0x5A, 0x80, 0xC3, 0xF0, 0xF4])
def test_a_byte_for_which_unk_token_stands_is_refused(model, byte):
    lacking(model, byte, unknown="<|eot_id|>")
    refused(model, f"unk_token = '<.eot_id.>' stands for the byte 0x{byte:02X}, which has no token")


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [((), "<|eot_id|>"), ((0xC0, 0xC1, 0xF5, 0xFF), "<|eot_id|>"), ((), None), ((0x5A, 0xC3), None)],
)
def test_a_byte_that_nothing_stands_for_or_no_text_has_is_left_out_by_both(model, missing, unknown):
    running = pytest.importorskip("tests.export.llama").Llama
    lacking(model, *missing, unknown=unknown)
    export_gguf(model, model.parent / "out.gguf", "f16", progress=False)
    tokenizer, llama = AutoTokenizer.from_pretrained(model), running(model.parent / "out.gguf")
    texts = ["Hello hello é", "9! Ż 👋🏿", "Zoo hello é", "ZZé"]
    assert [llama.ids(text) for text in texts] == [tokenizer(text)["input_ids"] for text in texts]
