"""Lesson 05: its functions measure what they say, its model card holds the records' numbers, nothing is uploaded."""

import ast
import json
import re
import shutil
import warnings

import bitsandbytes as bnb
import bitsandbytes.functional as F
import jupytext
import nbformat
import papermill
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from helpers import CourseError
from helpers.course import disk as course
from helpers.machine import hardware as machine
from helpers.machine import monitor
from helpers.merging import scaling
from helpers.models import model_card, presets
from helpers.models import resolving as models
from helpers.quick import four_bits
from tests.cells import tagged

LESSON = jupytext.read(course.find_lesson("05"), fmt="py:percent")
CODE = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]


def lesson_functions(**names) -> dict:
    """The functions that the lesson defines, in the given names and nothing else of it."""
    names |= {"torch": torch, "json": json, "bnb": bnb, "F": F, "load_file": load_file, "scaling": scaling}
    names |= {"PeftModel": PeftModel, "AutoModelForCausalLM": AutoModelForCausalLM, "load_4bit": four_bits.load_4bit}
    for source in CODE:
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        exec(compile(ast.Module(functions, []), "lesson 05", "exec"), names)
    return names


class Settings:
    quant_type, double_quant = "nf4", True


def random_adapter(folder, share: float):
    """An adapter of the bundled model whose update is `share` of each layer's weights."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(models.BUNDLED_MODEL, dtype=torch.float32)
    norms = {name: parameter.norm() for name, parameter in base.named_parameters()}
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, module in tuned.named_modules():
        if hasattr(module, "lora_B") and hasattr(module, "get_delta_weight"):
            module.lora_B.default.weight.data.normal_()
            wanted = share * norms[name.removeprefix("base_model.model.") + ".weight"]
            module.lora_B.default.weight.data *= wanted / module.get_delta_weight("default").norm()
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lesson():
    run = type("Run", (), {"model": models.bundled(), "machine": machine.detect()})
    names = lesson_functions(run=run, settings=Settings)
    names["base"] = names["load_base"]()
    return names


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {share: random_adapter(folder / str(share), share) for share in (0.01, 0.3)}


# The measures of section 4.


def test_updates_are_what_peft_would_add(lesson, adapters):
    model = PeftModel.from_pretrained(lesson["load_base"](), adapters[0.01])
    found = dict(lesson["updates"](adapters[0.01]))
    assert len(found) == 12
    for name, update in found.items():
        assert torch.equal(update, model.base_model.model.get_submodule(name).get_delta_weight("default"))
        assert update.norm() / lesson["weights"](lesson["base"], name).norm() == pytest.approx(0.01, rel=0.02)


def test_share_that_survives_is_all_of_a_change_that_is_the_update_none_of_none_and_half_of_half(lesson, adapters):
    survives, base = lesson["survives"], lesson["base"]
    assert survives(base, adapters[0.3]) == (0.0, pytest.approx(1.0))
    half = AutoModelForCausalLM.from_pretrained(models.BUNDLED_MODEL, dtype=torch.float32)
    for name, update in lesson["updates"](adapters[0.3]):
        half.get_submodule(name).weight.data = lesson["weights"](base, name) + update / 2
    assert survives(half, adapters[0.3]) == (pytest.approx(0.5, abs=1e-4), pytest.approx(0.5, abs=1e-4))


def test_a_4_bit_merge_erases_a_small_update_and_a_dequantized_one_keeps_any(lesson, adapters):
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for share, adapter in adapters.items():
            for way in ("into_4bit", "into_original", "into_dequantized"):
                found[way, share] = lesson["survives"](lesson[way](adapter), adapter)
    kept, error = ({key: pair[i] for key, pair in found.items()} for i in (0, 1))
    assert kept["into_4bit", 0.01] < 0.05
    assert kept["into_4bit", 0.3] > 0.9
    for share in adapters:
        assert kept["into_dequantized", share] == pytest.approx(1, abs=1e-4)
        assert kept["into_original", share] == pytest.approx(1, abs=0.1)
        assert 1000 * error["into_dequantized", share] < min(error["into_4bit", share], error["into_original", share])
    assert error["into_original", 0.01] > 5 > 1.2 > error["into_4bit", 0.01]


def test_random_matrices_give_the_known_shares_and_errors():
    """Measured before with 2048 x 2048, rank 16, NF4 with double quantization: the same to a few percent."""
    torch.manual_seed(2)
    names = lesson_functions(settings=Settings)
    names["original"] = torch.randn(2048, 1024) / 32
    names["direction"] = torch.randn(2048, 16) @ torch.randn(16, 1024)
    names["start"] = F.dequantize_4bit(*names["quantize"](names["original"]))
    known = {1: (0.02, 1.09, 9.2, 0.02), 5: (0.28, 1.03, 1.84, 0.004), 10: (0.84, 0.78, 0.92, 0.002)}
    for percent, (kept_4bit, error_4bit, error_original, error_float16) in known.items():
        kept, error = names["trial"](percent)
        assert kept["4-bit"] == pytest.approx(kept_4bit, abs=0.01)
        assert kept["original"] == pytest.approx(1, abs=0.02)
        assert error["4-bit"] == pytest.approx(error_4bit, rel=0.03)
        assert error["original"] == pytest.approx(error_original, rel=0.03)
        assert error["float16"] == pytest.approx(error_float16, rel=0.2)


@pytest.mark.parametrize("way", ["into_4bit", "into_original", "into_dequantized"])
def test_bytes_on_disk_are_what_save_pretrained_writes(way, adapters, tmp_path):
    half = type("Half", (), {"torch_dtype": torch.float16, "device_map": {"": "cpu"}, "device": "cpu"})
    run = type("Run", (), {"model": models.bundled(), "machine": half})
    names = lesson_functions(run=run, settings=Settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = names[way](adapters[0.3])
    model.save_pretrained(tmp_path / "saved")
    written = sum(file.stat().st_size for file in (tmp_path / "saved").glob("*.safetensors"))
    assert names["stored_bytes"](model) == pytest.approx(written, rel=0.02)


@pytest.mark.parametrize("exact", [True, False], ids=["by the system", "sampled"])
def test_host_peak_sees_what_was_held_for_a_moment(exact, monkeypatch):
    import time

    if not exact:
        monkeypatch.setattr(monitor, "_reset_highest", lambda: False)
    elif not monitor._reset_highest():
        pytest.skip("only Linux keeps the highest resident size")
    with monitor.HostPeak() as large:
        held = bytearray(80_000_000)
        time.sleep(0.05)
        del held
    with monitor.HostPeak() as none:
        time.sleep(0.01)
    assert 79e6 < large.bytes < 100e6
    assert none.bytes < 5e6  # the highest of before is forgotten


# The model card.

SECRET = "hf_" + "b" * 34
SCORES = {
    "base": {"loss": 8.6914, "exact_match": 0.0, "interval": [0.0, 0.0291], "rows": 128},
    "trained": {"loss": 0.01583, "exact_match": 0.984375, "interval": [0.9448, 0.9957], "rows": 128},
    "merged": {"loss": 0.01579, "exact_match": 0.9765625, "interval": [0.9334, 0.992], "rows": 128},
}


def records(folder, **changes):
    run = {"model": "Qwen/Qwen2.5-0.5B", "data": "tatsu-lab/alpaca (CC BY-NC 4.0), 46801 to learn and 5201 held out"}
    run |= {"machine": "Tesla T4, 14.56 GiB: computes in float16", "versions": {"torch": "2.13.0", "peft": "0.21.2"}}
    run["parameters"] = {"output_dir": f"/srv/someone/{SECRET}", "adapter_dir": "/srv/someone/adapter", "seed": 7}
    run["parameters"] |= {"learning_rate": "auto", "max_steps": 321, "quant_type": "nf4", "model_id": "/srv/someone"}
    found = {"measured": SCORES, "licence": "Apache-2.0", "licence_known": True, "trained_in_lesson_03": True}
    found |= {"adapter": {"r": 16, "lora_alpha": 32, "target_modules": ["v_proj", "q_proj"]}, "dtype": "float16"}
    found |= {"base_weights": "dequantized", "merged_bytes": 988_097_000, "merged_read_in_4_bits": False, "run": run}
    (folder / "05_merging.json").write_text(json.dumps(found | changes))
    (folder / "03_t4_training.json").write_text(json.dumps({"run": run}))
    return folder


def test_card_holds_the_numbers_of_the_records(tmp_path):
    card = model_card(records(tmp_path))
    for score in SCORES.values():
        low, high = score["interval"]
        assert f"| {score['loss']:.4f} | {score['exact_match']:.1%} | {low:.1%} to {high:.1%} |" in card.text
    for fact in (
        "128 held-out rows",
        "max_steps: 321",
        "seed: 7",
        "rank: 16",
        "q_proj, v_proj",
        "988.1 MB",
        "Tesla T4",
    ):
        assert fact in card.text, fact
    assert f"learning_rate: {presets.RECIPES['other']['learning_rate']}" in card.text  # what "auto" was
    assert "torch 2.13.0" in card.text


def test_head_of_the_card_is_what_the_hub_reads(tmp_path):
    model_card(records(tmp_path)).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.license, data.datasets) == ("Qwen/Qwen2.5-0.5B", "apache-2.0", "tatsu-lab/alpaca")
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"exact_match": SCORES["merged"]["exact_match"], "loss": SCORES["merged"]["loss"]}


def test_card_holds_no_path_and_no_secret(tmp_path):
    content = model_card(records(tmp_path)).content
    assert SECRET not in content
    assert not re.search(r"/(home|root|tmp|content)/", content)


def test_card_says_what_was_not_measured_or_recorded(tmp_path):
    unknown = {"licence": "your local folder", "licence_known": False, "trained_in_lesson_03": False}
    only = {"measured": {name: SCORES[name] for name in ("base", "trained")}, "merged_read_in_4_bits": True}
    card = model_card(records(tmp_path, **unknown, **only))
    assert "licence: not known here" in card.text
    assert "How it was trained was not recorded" in card.text
    assert "max_steps" not in card.text  # lesson 03's record is of another adapter
    assert "this model**" not in card.text
    assert card.data.eval_results is None
    assert card.data.license is None
    assert "read back in 4 bits" in model_card(records(tmp_path, merged_read_in_4_bits=True)).text


def test_card_without_a_record_is_one_line(tmp_path):
    with pytest.raises(CourseError, match="run lesson 05"):
        model_card(tmp_path)


# The lesson as a whole.


def test_lesson_uploads_nothing_and_asks_for_no_token():
    for source in CODE:
        assert not re.search(r"push_to_hub|upload_|create_repo|HfApi|login\(|HF_TOKEN|get_token|token=", source), source
    prose = "\n".join(cell.source for cell in LESSON.cells if cell.cell_type == "markdown")
    assert "push_to_hub" in prose
    assert "HF_TOKEN" in prose
    assert not any(name.endswith("token") for name in course.lesson_parameters(course.find_lesson("05")))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A small random model in bfloat16, in three shards, with the bundled tokenizer; and an adapter for it."""
    folder = tmp_path_factory.mktemp("other") / "model"
    own = json.loads((models.BUNDLED_MODEL / "config.json").read_text())
    tokens = {name: own[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**tokens, **shape, num_key_value_heads=2)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models.BUNDLED_MODEL / name, folder)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=4, lora_alpha=8))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    tuned.save_pretrained(folder.parent / "adapter")
    return folder


@pytest.mark.parametrize("fits", [True, False], ids=["with room", "without room for an unpacked model"])
def test_lesson_runs_with_another_model_and_other_parameters(fits, other_model, tmp_path):
    notebook = course.to_notebook(course.find_lesson("05"))
    if not fits:  # as on a GPU that holds the packed model alone
        cell = tagged(notebook, "room")
        cell.source, changed = re.subn(r"fits = .*", "fits = False", cell.source)
        assert changed == 1
    nbformat.write(notebook, tmp_path / "05.ipynb")
    values = {"model_id": str(other_model), "adapter_dir": str(other_model.parent / "adapter"), "seed": 1}
    values |= {"quant_type": "fp4", "double_quant": False}
    values |= {"eval_rows": 8, "max_new_tokens": 4} if fits else {"eval_rows": 2, "max_new_tokens": 2}
    done = papermill.execute_notebook(
        str(tmp_path / "05.ipynb"),
        str(tmp_path / "done.ipynb"),
        parameters=values | {"output_dir": str(tmp_path / "run")},
        kernel_name="python3",
        cwd=str(course.NOTEBOOKS),
        progress_bar=False,
    )
    found = json.loads((tmp_path / "run" / "05_merging.json").read_text())
    assert all(each["holds"] for each in found["verdicts"])
    assert len(found["ways"]) == (8 if fits else 4)
    assert len(found["in_4_bits_again"]) == 4
    text = "\n".join(out.get("text", "") for cell in done.cells for out in cell.get("outputs", []))
    assert ("left out: an unpacked model takes" in text) is not fits
    card = (tmp_path / "run" / "merged" / "README.md").read_text()
    assert ("read back from its files" in card) is fits
    assert str(tmp_path) not in card
    merged = AutoModelForCausalLM.from_pretrained(
        tmp_path / "run" / "merged", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    assert merged.config.hidden_size == 128
    assert [f.name for f in (tmp_path / "run").iterdir() if f.name.startswith(("tmp", "."))] == []
