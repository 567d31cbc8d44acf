"""Weights that are too small for a format: they become 0, which is said where it is more than a few of a tensor's."""

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from helpers.export import export_gguf


def exported(model, type: str, change) -> tuple[str, dict[str, np.ndarray]]:
    """(notes on small weights, the tensors in float32) of the model with its tensors changed."""
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    out = model.parent / "out.gguf"
    notes = export_gguf(model, out, type, progress=False)["notes"]
    read = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(out).tensors}
    return " ".join(note for note in notes if "too small" in note), read


def shrink(tensors) -> None:
    tensors["model.embed_tokens.weight"] *= 1e-9


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0", "q5_0", "q4_1", "q5_1"])
def test_weights_that_become_0_are_counted_and_said(model, type):
    notes, read = exported(model, type, shrink)
    assert not read["token_embd.weight"].any()
    assert (
        f"{1600 * 64:,} weights are too small for the format and become 0, most of them in token_embd.weight" in notes
    )


@pytest.mark.parametrize("type", ["f32", "bf16"])
def test_formats_with_the_exponents_of_float32_lose_none(model, type):
    notes, read = exported(model, type, shrink)
    assert notes == ""
    assert np.count_nonzero(read["token_embd.weight"]) == 1600 * 64


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0"])
def test_a_few_small_ones_and_zeros_are_not_worth_a_note(model, type):
    def change(tensors) -> None:
        tensors["model.embed_tokens.weight"][0, :32] = 1e-9
        tensors["lm_head.weight"][5:50] = 0

    assert exported(model, type, change)[0] == ""


def test_rows_are_counted_where_they_are_most(model):
    def change(tensors) -> None:
        tensors["lm_head.weight"][:50] = 1e-9
        tensors["model.embed_tokens.weight"][:20] = -1e-9

    notes, _ = exported(model, "q8_0", change)
    assert notes.startswith(
        f"{70 * 64:,} weights are too small for the format and become 0, most of them in output.weight:"
    )
