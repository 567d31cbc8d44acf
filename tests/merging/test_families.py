"""A merge equals PEFT's bit for bit over many families of models, tied and not, with rows of every kind of length."""

import itertools

import pytest
from peft import PeftModel
from transformers import BitsAndBytesConfig

from helpers.merging import MergeError, merge_adapter
from tests.merging.tiny import FAMILIES, as_in_4_bits, different, load_tiny, make_tiny, train_tiny

# A width that is a multiple of 64, and one that is not: bitsandbytes' CPU kernel errs there (see as_in_4_bits).
BASES = {f"{width} {'tied' if tied else 'untied'}": (width, tied) for width in (64, 48) for tied in (False, True)}
# Each kind of adapter meets both widths and both kinds of head in each family; saved modules meet all four together.
CASES = [("plain", "64 untied"), ("plain", "48 tied"), ("patterns", "64 tied"), ("patterns", "48 untied")]
CASES += list(itertools.product(["saved"], BASES))


def settings_for(kind, what):
    _, _, target, *embeddings = FAMILIES[kind]
    patterns = {"rank_pattern": {target[0]: 2}, "alpha_pattern": {f".*1.*{target[-1]}": 5, f"^.*{target[0]}": 7}}
    extra = {"plain": {}, "saved": {"modules_to_save": embeddings}, "patterns": patterns}[what]
    return {"target_modules": target} | extra


@pytest.mark.parametrize(("what", "which"), CASES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_merge_equals_peft_in_every_family(kind, what, which, tmp_path):
    width, tied = BASES[which]
    base = make_tiny(tmp_path / "base", kind, width, tied)
    expected = train_tiny(base, tmp_path / "adapter", **settings_for(kind, what))
    merge_adapter(base, tmp_path / "adapter", tmp_path / "out", progress=False)
    assert different(tmp_path / "out", expected) == []
    assert {name for name in different(base, expected) if "norm" not in name}


@pytest.mark.parametrize(("what", "which"), [("plain", "64 untied"), ("saved", "48 tied")])
@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "falcon"])
def test_merge_into_what_4_bits_compute_with_equals_a_gpu_in_every_family(kind, what, which, tmp_path):
    width, tied = BASES[which]
    base = make_tiny(tmp_path / "base", kind, width, tied)
    train_tiny(base, tmp_path / "adapter", **settings_for(kind, what))
    merge_adapter(base, tmp_path / "adapter", tmp_path / "out", "dequantized", progress=False)
    head = FAMILIES[kind][-1]
    linear = {name for name, module in load_tiny(base).named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    expected = PeftModel.from_pretrained(as_in_4_bits(base, linear - {head}), tmp_path / "adapter").merge_and_unload()
    assert different(tmp_path / "out", expected) == []
    merge_adapter(base, tmp_path / "adapter", tmp_path / "original", progress=False)
    assert different(tmp_path / "original", expected)


def test_family_that_4_bits_leave_as_it_is_is_refused(tmp_path):
    base = make_tiny(tmp_path / "base", "falcon")
    model = type(load_tiny(base)).from_pretrained(
        base, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu"
    )
    assert not [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    train_tiny(base, tmp_path / "adapter", **settings_for("falcon", "plain"))
    with pytest.raises(MergeError, match="quantizes no layer of a FalconForCausalLM"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "out", "dequantized", progress=False)
