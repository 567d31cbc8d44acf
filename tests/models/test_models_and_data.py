"""Which model and data a run gets: the bundled ones without a network, one clear line for what cannot be had."""

import json
import shutil

import pytest
import torch

from helpers import COURSE_ROOT
from helpers.data import instructions as data
from helpers.evaluation import scores
from helpers.files import writing
from helpers.lesson import session as results
from helpers.machine import Machine
from helpers.models import presets
from helpers.models import resolving as models
from helpers.quick import four_bits

CPU = Machine("cpu", "test", 0, 2**34, 2, None)
GPU = Machine("cuda", "Tesla T4", 15_634_661_376, 2**34, 2, (7, 5))
HOPPER = Machine("cuda", "NVIDIA H200", 150_000_000_000, 2**34, 2, (9, 0))


def test_the_dtype_follows_the_machine():
    assert (CPU.dtype, GPU.dtype, HOPPER.dtype) == ("float32", "float16", "bfloat16")
    assert GPU.is_t4
    assert not HOPPER.is_t4
    under_rules = Machine("cuda", "NVIDIA H200", 2**34, 2**34, 2, (9, 0), t4_rules=True)
    assert under_rules.dtype == "float16"
    assert not under_rules.native_bfloat16


def test_auto_is_the_bundled_model_on_a_cpu():
    assert models.resolve_model("auto", CPU).bundled


def test_auto_on_a_gpu_without_a_network_is_the_bundled_model_with_a_reason():
    model = models.resolve_model("auto", GPU, large=True)
    assert model.bundled
    assert "HF_HUB_OFFLINE" in model.note


def test_where_a_chat_model_is_wanted_a_gpu_without_a_network_takes_the_bundled_model_with_its_recipe():
    model = models.resolve_model("auto", GPU, chat=True)
    assert model.bundled
    assert "Qwen2.5-0.5B-Instruct is not on this disk" in model.note
    assert models.recipe_for(model) == presets.RECIPES["bundled"]


def test_where_a_chat_model_is_wanted_a_gpu_takes_one_of_its_base_s_shape(monkeypatch):
    monkeypatch.setattr(models, "_reach", lambda *words: None)
    for name in ("auto", presets.AUTO_CHAT, "Qwen/Qwen2.5-0.5B-Instruct"):
        model = models.resolve_model(name, GPU, chat=True)
        assert (model.name, model.licence) == ("Qwen/Qwen2.5-0.5B-Instruct", "Apache-2.0")
        assert model.download_bytes == presets.PRESETS["qwen2.5-0.5b"].download_bytes
        assert models.recipe_for(model) == presets.RECIPES["other"]


@pytest.mark.parametrize(
    ("model_id", "words"),
    [
        ("./nowhere", "no folder './nowhere'"),
        ("/nowhere/at/all", "no folder"),
        ("word", "no preset"),
        ("owner/name/more", "no hub id"),
        ("Qwen/Qwen2.5-0.5B", "HF_HUB_OFFLINE"),
        ("owner/--bad--", "is not a hub id"),
        ("mistral-7b", "not on this disk"),
    ],
)
def test_a_model_that_cannot_be_had_gets_one_line(model_id, words):
    with pytest.raises(models.ModelError) as error:
        models.resolve_model(model_id, CPU)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_config_or_with_pickled_weights_is_refused(tmp_path):
    with pytest.raises(models.ModelError, match=r"no config\.json"):
        models.resolve_model(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(models.ModelError, match="pickled weights are not loaded"):
        models.resolve_model(str(tmp_path), CPU)


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    shutil.copytree(models.BUNDLED_MODEL, tmp_path / "copy")
    model = models.resolve_model(str(tmp_path / "copy"), GPU)
    assert (model.name, model.bundled) == ("copy", False)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_a_preset_s_download_is_two_bytes_for_each_parameter_of_its_shape(name):
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    preset = presets.PRESETS[name]
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**preset.shape))
    model.tie_weights()
    assert 2 * sum(p.numel() for p in model.parameters()) == preset.download_bytes


def test_every_default_is_open_and_states_licence_and_size():
    for name in (presets.AUTO_LARGE, presets.AUTO_SMALL):
        preset = presets.PRESETS[name]
        assert not preset.gated
        assert preset.licence == "Apache-2.0"


def test_the_prompt_ends_where_the_answer_begins_a_line():
    for given in ("", "France"):
        prompt = data.alpaca_prompt("Name the capital.", given)
        assert prompt.endswith("### Response:\n")
        assert ("### Input:\nFrance" in prompt) == bool(given)


def test_a_file_of_json_lines_is_read_and_split(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": f"say {i}", "output": str(i)}) for i in range(20)))
    rows, name, _ = data.load_instructions(str(file))
    assert (len(rows["train"]), len(rows["heldout"]), rows["train"][0]["input"]) == (18, 2, "")
    assert str(tmp_path) not in name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "line 1"),
        ('{"instruction": "x"}', "has the columns 'instruction'"),
        ("[1, 2]", "line 1"),
        ('{"instruction": "x", "output": "y"}', "at least 2"),
        ("", "is empty"),
    ],
)
def test_a_file_that_is_no_instructions_gets_one_line(tmp_path, text, words):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(data.DataError, match=words):
        data.load_instructions(str(tmp_path / "rows.jsonl"))


def test_no_network_gives_one_line_for_alpaca_and_the_bundled_rows_for_auto():
    with pytest.raises(data.DataError, match="cannot be fetched"):
        data.load_instructions("alpaca")
    rows, name, _ = data.load_instructions("auto", GPU)
    assert "bundled" in name
    assert "cannot be fetched" in name
    assert len(rows["train"]) > 1000


def test_left_padded_answers_are_the_answers_one_at_a_time():
    model, tokenizer = four_bits.load_4bit(models.bundled(), CPU)
    questions = ["What is the capital of France?\n", "Name the capital of Japan.\n", "What is 3 times 5?\nAnswer:\n"]
    alone = [scores.answer(model, tokenizer, [q], 4)[0] for q in questions]
    assert scores.answer(model, tokenizer, questions, 4) == alone


def begin_quietly(tmp_path, **values):
    return results.begin("04_inference", model_id="bundled", output_dir=str(tmp_path), **values)


def test_an_adapter_for_another_base_is_refused_by_name(tmp_path):
    (tmp_path / "other").mkdir()
    config = {"base_model_name_or_path": "someone/else-7b"}
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "other" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(models.ModelError, match="was trained on someone/else-7b"):
        begin_quietly(tmp_path, adapter_dir=str(tmp_path / "other"))


def test_a_missing_or_pickled_adapter_gets_one_line(tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_config.json").write_text('{"base_model_name_or_path": "bundled"}')
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"pickled")
    with pytest.raises(models.ModelError, match="pickled adapters are not loaded"):
        begin_quietly(tmp_path, adapter_dir=str(tmp_path / "pickled"))
    with pytest.raises(models.ModelError, match=r"no readable adapter_config\.json"):
        models.base_of(tmp_path / "missing")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    good = tmp_path / "adapter"
    with writing.replace_folder(good) as new:
        (new / "file").write_text("first")

    def fail_half_way():
        with writing.replace_folder(good) as new:
            (new / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (good / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_false_verdict_stops_the_run_and_is_kept_for_the_report(tmp_path):
    run = begin_quietly(tmp_path)
    results.verdict("one is one", 1 == 1)
    with pytest.raises(AssertionError, match="one is two"):
        results.verdict("one is two", 1 == 2)  # noqa: PLR0133
    kept = json.loads((tmp_path / "04_inference.json").read_text())["verdicts"]
    assert [v["holds"] for v in kept] == [True, False]
    assert run.folder == tmp_path


def test_what_json_cannot_hold_is_refused_and_the_record_stays(tmp_path):
    begin_quietly(tmp_path)
    results.record(loss=0.5)
    with pytest.raises(TypeError):
        results.record(weights=torch.ones(2))
    assert json.loads((tmp_path / "04_inference.json").read_text())["loss"] == 0.5


def test_the_table_of_a_run_shows_no_absolute_path(tmp_path, capsys):
    begin_quietly(tmp_path)
    shown = capsys.readouterr().out
    assert "the bundled model" in shown
    assert str(tmp_path) not in shown
    assert str(COURSE_ROOT) not in shown
