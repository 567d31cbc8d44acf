"""What lesson 03 says about libraries and about running out of memory, each held against the library itself."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import weakref
from importlib import import_module
from types import SimpleNamespace
from unittest import mock

import papermill
import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from helpers import COURSE_ROOT, lesson, training
from helpers.course import disk as course
from helpers.lesson import session
from helpers.lesson.reports import FOLDERS, prepare_reports
from helpers.machine import Machine, detect
from helpers.memory import GPUS, RunSpec, predict
from helpers.models import BUNDLED_MODEL, PRESETS, Model, bundled, recipe_for
from helpers.quick import forget_side_runs, killed_side_run, side_run
from helpers.records import measured_runs
from helpers.saving import CheckpointError, checkpoint_folder, require_login
from helpers.training import Cures, plan_training
from helpers.training.cures import CURES, NEEDED
from helpers.training.out_of_memory import OutOfMemory, explain, explained, ladder, ran_out
from helpers.training.planning import goes_padding_free
from tests.cells import lesson_cell

QWEN, T4 = PRESETS["qwen2.5-7b"].shape, GPUS["t4"].total_bytes
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB")


# --- out of memory ---------------------------------------------------------------------------------------------------


def raised(error, spec, budget=T4, config=QWEN):
    with pytest.raises(OutOfMemory) as caught, explained(config, spec, "t4", budget, 2):
        raise error
    return str(caught.value).splitlines()


def test_out_of_memory_says_what_was_asked_for_what_was_predicted_and_what_to_change():
    spec = RunSpec(batch_size=16, seq_len=4096, checkpoint_every=0, repeat_kv=True)
    lines = raised(CUDA, spec)
    assert "2.00 GiB was asked for" in lines[0]
    assert f"{predict(QWEN, spec, 't4').peak_allocated / 2**30:.2f} GiB" in lines[1]
    settings = [line for line in lines if line[0].isdigit()]
    assert settings[0].startswith("1. checkpointing=True: ")
    assert settings[1].startswith("2. batch_size=8, gradient_accumulation=4: "), "rows in a step stay as they are"
    assert settings[-1].endswith(", fits")
    assert sum(line.endswith(", fits") for line in settings) == 1, "it ends with the first that fits"


def test_each_change_of_the_ladder_has_the_peak_that_predict_gives_and_saves_something():
    spec = RunSpec(batch_size=4, seq_len=1024, checkpoint_every=0, optimizer="adamw_torch", repeat_kv=True)
    peaks = [predict(QWEN, spec, "t4").peak_allocated, *(size for _, size in ladder(QWEN, spec, "t4"))]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)
    down = dataclasses.replace(spec, checkpoint_every=1, batch_size=2)
    assert (
        dict(ladder(QWEN, spec, "t4"))["batch_size=2, gradient_accumulation=2"]
        == predict(QWEN, down, "t4").peak_allocated
    )


def test_what_changes_the_result_comes_last():
    names = [name for name, _ in ladder(QWEN, RunSpec(batch_size=2, seq_len=2048, checkpoint_every=0, rank=64), "t4")]
    last = [i for i, name in enumerate(names) if name.startswith(("max_length", "target_modules", "rank"))]
    assert last == list(range(len(names) - len(last), len(names)))


def test_a_run_that_was_predicted_to_fit_sends_you_to_look_at_the_gpu():
    assert any("restart the kernel" in line for line in raised(CUDA, RunSpec(repeat_kv=True)))


def test_a_model_too_large_at_any_setting_is_told_so():
    tight = RunSpec(rank=8, target_modules=RunSpec.QKVO, seq_len=64, repeat_kv=True)
    assert raised(CUDA, tight, budget=3 * 2**30)[-1].endswith("a smaller model_id")


def test_an_unknown_architecture_gets_advice_without_numbers():
    lines = raised(CUDA, RunSpec(), config={"model_type": "mixtral"})
    assert "No prediction" in lines[1]
    assert "batch_size=1" in lines[1]


def test_the_notebook_shows_the_advice_alone_and_what_was_held_is_let_go():
    held = []

    def train():
        large = torch.ones(3)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(OutOfMemory) as caught, explained(QWEN, RunSpec(), "t4", T4):
        train()
    assert caught.value._render_traceback_() == [f"OutOfMemory: {caught.value}"]
    assert caught.value.__suppress_context__
    assert held[0]() is None, "a notebook keeps its last error, and it must not keep the run's tensors"


def test_an_error_inside_real_training_is_explained(tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class RunsOut(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            raise CUDA

    arguments = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=None,
        disable_tqdm=True, per_device_train_batch_size=1,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32), args=arguments,
        train_dataset=Dataset.from_dict({"text": ["one two three"] * 4}), callbacks=[RunsOut()],
        processing_class=AutoTokenizer.from_pretrained(BUNDLED_MODEL),
    )  # fmt: skip
    with pytest.raises(OutOfMemory, match="asked for"), explained(QWEN, RunSpec(), "t4", T4):
        trainer.train()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (CUDA, True), (MemoryError(), True), (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape mismatch"), False), (ValueError("out of memory"), False), (KeyboardInterrupt(), False),
    ],
)  # fmt: skip
def test_only_what_is_out_of_memory_is_taken_for_it(error, is_one):
    assert ran_out(error) == is_one
    with pytest.raises(OutOfMemory if is_one else type(error)), explained(QWEN, RunSpec(), "t4", T4):
        raise error


def test_an_error_without_a_size_is_explained_too():
    assert "more was asked for" in explain(MemoryError(), QWEN, RunSpec(), "t4", T4)


# --- traps: each of these fails when upstream changes ------------------------------------------------------------------


def test_transformers_asks_version_2_of_flash_attention_for_the_package_and_not_for_the_gpu():
    """If this fails because version 2 has the check as well, lesson 03's trap 3 can say so."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX as known

    with pytest.raises(ImportError, match="FlashAttention2.*doesn't seem to be installed"):
        AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, attn_implementation="flash_attention_2")
    assert "cuda_min_major_version" not in known[2]
    assert known[3]["cuda_min_major_version"] == 8


@pytest.fixture(scope="module")
def quantized():
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    return lambda: AutoModelForCausalLM.from_pretrained(
        BUNDLED_MODEL, quantization_config=config, dtype=torch.float16, device_map={"": "cpu"}
    )


def kept_16_bit(model):
    return [p for p in model.parameters() if p.dtype in (torch.float16, torch.float32)]


def test_peft_turns_what_is_not_4_bit_to_float32_and_the_stream_with_it(quantized):
    from peft import prepare_model_for_kbit_training

    model = quantized()
    before = sum(p.nbytes for p in kept_16_bit(model))
    stream = []
    hook = lambda module, inputs, output: stream.append(output.dtype)  # noqa: E731
    model.model.embed_tokens.register_forward_hook(hook)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    assert sum(p.nbytes for p in kept_16_bit(model)) == 2 * before
    model.model.embed_tokens(torch.ones(1, 2, dtype=torch.long))
    assert stream == [torch.float32]


def test_sft_trainer_does_not_upcast_and_freezes_the_base(quantized, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", activation_checkpointing=True,
        gradient_checkpointing=None,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=quantized(), args=arguments, train_dataset=Dataset.from_dict({"text": ["one two three"] * 4}),
        processing_class=AutoTokenizer.from_pretrained(BUNDLED_MODEL),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    base = [p for name, p in trainer.model.named_parameters() if "lora_" not in name]
    assert not any(p.requires_grad for p in base)
    assert {p.dtype for p in base} == {torch.float16, torch.uint8}
    embedded = trainer.model.get_input_embeddings()(torch.ones(1, 2, dtype=torch.long))
    assert embedded.requires_grad, "checkpointed layers need an input that carries gradients"


# --- packing ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack():
    """(model, one packed row of three, as TRL's collator hands it on)."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    rows = [[1, *range(10 + k, 20 + 3 * k), 2] for k in range(3)]
    packed = pack_dataset(Dataset.from_list([{"input_ids": r, "labels": r} for r in rows]), 64)
    return (
        model,
        DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([packed[0]]),
        packed[0]["seq_lengths"],
    )


def logits(model, batch, **more):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], use_cache=False, **more).logits[0]


def test_packed_rows_do_not_see_each_other_without_flash_attention(pack):
    model, batch, lengths = pack
    together = logits(model, batch, position_ids=batch["position_ids"])
    for a, n in zip(torch.tensor([0, *lengths[:-1]]).cumsum(0), lengths, strict=True):
        alone = logits(model, {"input_ids": batch["input_ids"][:, a : a + n]})
        assert torch.allclose(together[a : a + n], alone, atol=1e-4)


def test_it_is_the_positions_that_keep_them_apart(pack):
    model, batch, lengths = pack
    ignored = logits(model, batch)
    alone = logits(model, {"input_ids": batch["input_ids"][:, lengths[0] :]})
    assert not torch.allclose(ignored[lengths[0] :][: lengths[1]], alone[: lengths[1]], atol=0.1)


def test_with_the_cache_on_packed_rows_leak_into_each_other(pack):
    model, batch, lengths = pack
    given = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    with torch.no_grad():
        leaking = model(**given, use_cache=True).logits[0]
    apart = logits(model, batch, position_ids=batch["position_ids"])
    assert torch.allclose(leaking[: lengths[0]], apart[: lengths[0]], atol=1e-4), "the first row has none before it"
    assert not torch.allclose(leaking[lengths[0] :], apart[lengths[0] :], atol=0.1)


# --- recipes and places ------------------------------------------------------------------------------------------------


def test_the_presets_carry_the_recipes_of_the_texts_they_are_known_for():
    def of(name):
        return recipe_for(Model(PRESETS[name].hub_id, name, "", 0))

    assert (of("mistral-7b")["rank"], of("mistral-7b")["target_modules"]) == (8, "q_proj,k_proj,v_proj,o_proj")
    assert (of("llama-3.1-8b")["rank"], of("llama-3.1-8b")["target_modules"]) == (16, "all-linear")
    assert of("qwen2.5-7b") == recipe_for(Model("somewhere", "a folder", "", 0))
    assert recipe_for(bundled())["learning_rate"] > of("qwen2.5-7b")["learning_rate"]


def test_every_recipe_value_keeps_its_parameters_rule():
    from helpers.lesson import validate

    for name in ("bundled", *PRESETS):
        validate(recipe_for(bundled() if name == "bundled" else Model(PRESETS[name].hub_id, name, "", 0)))


def test_another_setting_gets_another_checkpoint_folder(tmp_path):
    same = [checkpoint_folder(tmp_path, rank=8, seed=0), checkpoint_folder(tmp_path, seed=0, rank=8)]
    assert same[0] == same[1]
    assert checkpoint_folder(tmp_path, rank=8, seed=1) != same[0]
    assert same[0].parent == tmp_path


def test_a_base_that_changed_under_its_name_gets_another_checkpoint_folder(tmp_path):
    base, found = shutil.copytree(BUNDLED_MODEL, tmp_path / "mine"), []
    for eps in (1e-6, 1e-6, 1e-5):
        (base / "config.json").write_text(
            json.dumps(json.loads((base / "config.json").read_text()) | {"rms_norm_eps": eps})
        )
        model, settings = Model(str(base), "mine", "", 0), SimpleNamespace(model_id=str(base))
        found.append(session.Run("03_t4_training", tmp_path, {}, model=model, settings=settings).checkpoints)
    assert found[0] == found[1] != found[2]


def test_a_hub_repo_without_a_login_gets_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    require_login("none")
    with pytest.raises(CheckpointError, match="needs a login"):
        require_login("someone/adapter")


def test_coloured_tokens_say_by_more_than_colour_what_is_learned():
    from helpers.plots import tokens_in_colour

    html = tokens_in_colour(["<s>", "two\n", "lines"], [False, False, True], "".join).data
    assert "&lt;s&gt;" in html
    assert html.count("underline") == 1
    assert html.index("underline") < html.index("lines")
    assert html.count("<br>") == 1


# --- the plan, for a T4 that is pretended --------------------------------------------------------------------------


def planned(model_id="Qwen/Qwen2.5-7B", machine=None, plain=False, lengths=None, **given):
    """(plan, settings) of a run of lesson 03 with a model that is not loaded; a T4, unless another machine is given."""
    model = Model(model_id, model_id, "", 0)
    asked = course.lesson_parameters(course.find_lesson("3")) | given
    settings = SimpleNamespace(**asked | {k: v for k, v in recipe_for(model).items() if asked[k] == "auto"})
    machine = machine or Machine("cuda", "Tesla T4", T4, 2**34, 2, (7, 5))
    with mock.patch("helpers.training.planning.liger_layers", return_value=True):  # it would replace classes for good
        return plan_training(model, machine, settings, asked, plain, lengths), settings


def test_on_a_t4_the_plan_keeps_the_rows_of_a_step_and_fits():
    plan, _ = planned()
    assert plan.own
    assert plan.rows_at_once * plan.gradient_accumulation == 16
    assert plan.chosen.prediction.peak_allocated <= 0.95 * T4
    assert (plan.spec.attention_kernels, plan.spec.repeat_kv, plan.spec.load_dtype, plan.gpu) == (
        "t4",
        True,
        "float16",
        "t4",
    )
    assert "settings were tried" in str(plan)


def test_why_lesson_00_recomputes_and_the_plan_need_not_is_told_with_predicted_numbers():
    # Lesson 00's rows and adapters, with no layer recomputed.
    kept = RunSpec(batch_size=4, checkpoint_every=0, lora_dropout=0.0)
    cured = dataclasses.replace(kept, repeat_kv=True)
    fewer = dataclasses.replace(cured, batch_size=1, seq_len=1280)
    held = [f"{predict(QWEN, spec, 't4').passing_bytes / 1e9:.1f}" for spec in (kept, cured, fewer)]
    told = r"lesson 00's 2,048 tokens would take (\S+) GB. With this cure they take (\S+), and for 1,280 tokens (\S+):"
    assert [*re.search(told, course.find_lesson("3").read_text(encoding="utf-8")).groups()] == held
    assert predict(QWEN, fewer, "t4").peak_allocated < 0.95 * T4 < predict(QWEN, cured, "t4").peak_allocated


def test_the_readme_tells_of_the_run_that_the_lesson_shows_first():
    found = session.Run.measured_before(SimpleNamespace(lesson="03_t4_training"))
    exact, loss = (
        [found[f"{what}_{when}"] for when in ("before", "after")] for what in ("exact_match", "heldout_loss")
    )
    readme = " ".join((COURSE_ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{exact[0]:.0%} of the held-out questions exactly before training and {exact[1]:.0%} after it" in readme
    assert f"from {loss[0]:.2f} to {loss[1]:.3f} (recorded on an H200 under T4 rules, {found['date']};" in readme
    assert found["machine"].startswith("NVIDIA H200, 14.56 GiB, under T4 rules")


def test_what_a_learner_sets_is_left_alone_by_the_plan():
    plan, _ = planned(batch_size=1, gradient_accumulation=3, checkpointing=True)
    assert (plan.rows_at_once, plan.gradient_accumulation, plan.checkpoint_every, plan.offload) == (1, 3, 1, False)
    assert planned(checkpointing="offload")[0].offload is True


def test_rows_go_without_padding_in_as_few_pieces_as_fit():
    plan, settings = planned()
    assert (plan.spec.padding_free, plan.spec.batch_size, plan.rows_at_once, plan.gradient_accumulation) == (
        True,
        1,
        16,
        1,
    )
    assert plan.max_tokens == plan.spec.seq_len
    assert settings.max_length <= plan.max_tokens < 16 * settings.max_length, "a batch of full rows has to be cut"
    assert plan.full_rows == plan.max_tokens // settings.max_length
    longer = dataclasses.replace(plan.spec, seq_len=plan.max_tokens + settings.max_length // 2)
    assert predict(plan.config, longer, "t4").peak_allocated > 0.95 * T4, "one more half row would not fit"
    four = planned(batch_size=4, gradient_accumulation=4)[0]
    assert (four.rows_at_once, four.gradient_accumulation, four.max_tokens) == (4, 4, plan.max_tokens)


def test_the_plan_knows_the_longest_batch_that_can_come():
    short = [20, 90, 400, 600, *[30] * 100]  # max_length is 512
    plan, _ = planned(lengths=short)
    assert plan.max_tokens == 512 + 400 + 90 + 13 * 30
    assert "up to 1,392 of their tokens at once" in str(plan)
    small = planned(lengths=short[:1])[0]
    assert small.max_tokens == 20
    assert small.full_rows == 1


def picked(questions: list[int], needed: int, max_length: int = 10):
    """The numbers of the rows that the lesson picks of rows with these lengths of questions, each with an answer of 5 tokens."""
    names = {
        "settings": SimpleNamespace(batch_size=1, gradient_accumulation=1, max_steps=needed, max_length=max_length),
        "train_rows": Dataset.from_dict({"question": questions}),
        "tokens_and_labels": lambda row: {"labels": [-100] * row["question"] + [1] * 5},
    }
    exec(lesson_cell("03", "picked").source, names)
    return names["picked"], names["looked_at"]


def test_rows_whose_question_fills_max_length_are_passed_over_and_others_take_their_place():
    assert picked([3, 10, 9, 30, 4, 5], 3) == ([0, 2, 4], 5)
    assert picked([3, 10, 9, 30, 4, 10], 9) == ([0, 2, 4], 6), "all were looked at"
    assert picked([3, 4], 2) == ([0, 1], 2)
    with pytest.raises(ValueError, match="no answer begins within max_length = 10 tokens"):
        picked([10, 11], 2)


def test_what_cannot_go_padding_free_keeps_its_padding(tmp_path):
    config = PRESETS["mistral-7b"].shape | {"architectures": ["MistralForCausalLM"]}
    for name, more, without in (
        ("wide", {"sliding_window": 4096}, True), ("narrow", {"sliding_window": 256}, False), ("odd", {"head_dim": 100}, False),
        ("gemma", {"model_type": "gemma2"}, False), ("another", {"model_type": "olmo2"}, False),
        ("unknown", {"model_type": "mamba"}, False),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config | more))
        assert goes_padding_free(str(tmp_path / name), 512) is without, name
    for padded in (planned(str(tmp_path / "narrow"))[0], planned(cuda_graphs=True)[0], planned(plain=True)[0]):
        assert padded.max_tokens is None
        assert padded.spec.padding_free is False
        assert padded.rows_at_once == padded.spec.batch_size
    cpu = Machine("cpu", "a CPU", 0, 2**34, 2, None)
    assert planned(str(tmp_path / "narrow"), cpu)[0].max_tokens is None
    assert planned(str(tmp_path / "wide"), cpu)[0].max_tokens == 4 * 512


def test_the_rows_at_once_are_those_of_the_run_at_hand_and_not_of_the_example():
    cpu = Machine("cpu", "a CPU", 0, 2**34, 2, None)
    for given in ({}, {"plain": True}, {"batch_size": 3, "max_length": 96}, {"batch_size": 3, "max_length": 2048}):
        plan, settings = planned(machine=cpu, **given)
        assert plan.full_rows == settings.batch_size
    for given in ({"plain": True}, {"cuda_graphs": True}):
        plan, _ = planned(**given)
        assert plan.full_rows == plan.spec.batch_size


def test_a_preset_with_another_recipe_is_planned_with_it():
    assert planned("mistralai/Mistral-7B-v0.1")[0].spec.target_modules == RunSpec.QKVO


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 64, "gradient_accumulation": 1, "plain": True},
        {"batch_size": 64, "gradient_accumulation": 1, "cuda_graphs": True},
        {"max_length": 8192},  # without padding a batch can be cut between rows, and a row cannot
    ],
)
def test_a_run_that_cannot_fit_stops_with_advice_before_anything_is_loaded(asked):
    with pytest.raises(OutOfMemory) as caught:
        planned(checkpointing=False, **asked)
    lines = str(caught.value).splitlines()
    assert lines[0] == "this run does not fit the GPU's 14.56 GiB with a twentieth left free."
    assert "1. checkpointing=True" in lines[3]
    assert lines[-1].endswith(", fits")


def test_a_model_without_a_prediction_keeps_its_recipe(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    plan, settings = planned(str(tmp_path))
    assert plan.chosen is None
    assert (plan.rows_at_once, plan.gradient_accumulation, plan.checkpoint_every, plan.max_tokens) == (4, 4, 1, None)
    assert "no plan" in str(plan)
    assert plan.t4_minutes(60) is None
    assert plan.compare("upcast_non_quantized", False, True) == []


def test_without_a_gpu_the_plan_is_for_a_t4_and_the_run_keeps_its_recipe():
    plan, _ = planned(machine=Machine("cpu", "a CPU", 0, 2**34, 2, None))
    assert not plan.own
    assert plan.model_name == "Qwen/Qwen2.5-7B"
    assert (plan.gpu, plan.budget_bytes) == ("t4", T4)
    assert "the run below is a smaller one" in str(plan)
    assert "15.63 GB; the run above was a smaller one" in plan.in_words("the run above was a smaller one")


def test_the_upcast_and_the_length_of_rows_show_in_the_compared_peaks():
    plan, _ = planned()
    without, upcast = plan.compare("upcast_non_quantized", False, True)
    assert without["peak (GB)"] == pytest.approx(plan.chosen.prediction.peak_allocated / 1e9)
    assert upcast["peak (GB)"] > 1.2 * without["peak (GB)"]
    assert (without["fits"], upcast["fits"]) == ("yes", "no")


def test_the_minutes_of_a_t4_follow_the_rule_that_the_lesson_states():
    plan, _ = planned("mistralai/Mistral-7B-v0.1", batch_size=8, gradient_accumulation=1, checkpointing=True)
    runs = measured_runs("h200_speed").query("rules == 't4' and recipe == 'fewer walks'")
    step = runs.gpu_busy_seconds.median() * 989 / 60  # minutes at a teraflop: 8 rows of 512 tokens of this very shape
    assert plan.t4_minutes(10) == pytest.approx((10 * step / 65, 10 * step / 24))
    assert plan.t4_minutes(10, 256) == pytest.approx((5 * step / 65, 5 * step / 24))
    assert planned("mistralai/Mistral-7B-v0.1", plain=True, checkpointing=True)[0].t4_minutes(10) > plan.t4_minutes(10)
    plan.layer_kernels = False  # not installed: what Liger saved is not saved
    busy = measured_runs("h200_speed").query("rules == 't4'").groupby("recipe").gpu_busy_seconds.median()
    longer = busy["fused Adam"] / busy["Liger"]
    assert 1.2 < longer < 1.5
    assert plan.t4_minutes(10) == pytest.approx((10 * step * longer / 65, 10 * step * longer / 24))


def test_exercise_5_says_what_of_a_layer_grows_with_the_tokens_and_what_does_not():
    spec = RunSpec(batch_size=2, seq_len=512, checkpoint_every=1, repeat_kv=True, lora_dropout=0.0)
    parts = {name: size / 1e9 for name, size in predict(QWEN, spec, "t4").parts.items()}
    stays = parts["a dequantized weight"] + parts["cuBLAS workspaces"]
    stays += parts["blocks larger than what they hold"] + parts["16-bit copies of the adapters"]
    grows = parts["one layer's activations"] + parts["gradients of activations"]
    assert (round(stays, 2), round(grows, 2)) == (0.17, 0.28)
    text = re.sub(r"\n# ", " ", course.find_lesson("3").read_text(encoding="utf-8"))
    assert "0.28 GB that grows with the tokens and 0.17 GB that does not" in text


def test_the_two_lines_of_trap_2_are_what_the_cure_does(monkeypatch):
    from transformers.integrations import sdpa_attention

    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", None)
    text = course.find_lesson("3").read_text(encoding="utf-8")
    for line in re.findall(r"`((?:from \S+ import sdpa_attention|sdpa_attention\.use)[^`]*)`", text):
        exec(line, {"sdpa_attention": sdpa_attention})
    assert sdpa_attention.use_gqa_in_sdpa("any", "words") is False


def test_plain_plans_without_what_the_course_adds():
    plan, _ = planned(plain=True)
    assert (plan.spec.repeat_kv, plan.spec.fused_lora, plan.spec.layer_kernels) == (False, False, None)
    assert (planned()[0].spec.repeat_kv, planned()[0].spec.fused_lora) == (True, True)


def test_memory_through_one_step_peaks_where_the_prediction_says():
    plan, _ = planned()
    points = plan.step_over_time()
    assert max(size for *_, size in points) == plan.chosen.prediction.peak_allocated
    phases = [phase for phase, _ in itertools.groupby(phase for _, phase, _ in points)]
    assert phases == ["forward", "loss", "backward", "step"]
    kept = max(size for *_, size in plan.step_over_time(checkpoint_every=0))
    assert kept > max(size for *_, size in plan.step_over_time(checkpoint_every=1))


@pytest.mark.parametrize(
    ("asked", "capability", "peak", "every", "graphs"),
    [
        ("auto", (8, 9), 10, 0, True),
        ("auto", (8, 9), 13, 0, False),  # the activations of two lengths do not fit
        ("auto", (7, 5), 10, 0, False),
        (True, (7, 5), 13, 0, True),
        (True, (8, 9), 10, 3, False),  # layers are recomputed
        (False, (8, 9), 10, 0, False),
    ],
)
def test_cuda_graphs_are_recorded_where_they_help_and_fit(asked, capability, peak, every, graphs):
    plan, _ = planned()
    assert plan.record_graphs(Machine("cuda", "a GPU", T4, 2**34, 2, (8, 9)), asked) is False, "rows have no padding"
    plan.max_tokens = None
    plan.chosen = SimpleNamespace(prediction=SimpleNamespace(after_load=4, peak_allocated=peak))
    plan.budget_bytes, plan.checkpoint_every = 16 + 2, every
    machine = Machine("cuda", "a GPU", T4, 2**34, 2, capability)
    assert plan.record_graphs(machine, asked) is graphs
    plan.plain = True
    assert plan.record_graphs(machine, asked) is False


# --- the cures ---------------------------------------------------------------------------------------------------------


def test_the_table_of_cures_names_functions_that_there_are_and_gains_that_were_measured():
    cures = Cures(planned()[0], Machine("cuda", "Tesla T4", T4, 2**34, 2, (7, 5)), "a model")
    rows = {row["cure"]: row for row in cures.rows()}
    own = [
        import_module(f"helpers.training.{file}")
        for file in ("cures", "planning", "graphs", "fused_lora", "without_padding")
    ]
    assert [name for name in rows if not any(callable(getattr(file, name, None)) for file in own)] == []
    busy = measured_runs("h200_speed").query("rules == 't4'").groupby("recipe").gpu_busy_seconds.median()
    assert rows["repeat_kv_heads"]["GPU time saved"] == pytest.approx(1 - busy["repeated heads"] / busy["no dropout"])
    assert rows["liger_layers"]["GPU time saved"] == pytest.approx(1 - busy["Liger"] / busy["fused Adam"])
    assert rows["keep_4bit_layout"]["GPU time saved"] is None
    assert {name for name, row in rows.items() if row["needed"] == "yes"} == {"keep_4bit_layout", "adapters_to_float32"}


def test_plain_keeps_the_cures_without_which_nothing_runs_and_no_others(tmp_path):
    machine, done = Machine("cuda", "Tesla T4", T4, 2**34, 2, (7, 5)), []
    names = [name for name, *_ in CURES if name not in ("liger_layers", "recorded")]  # these two are tested above
    with contextlib.ExitStack() as stack:
        for name in names:
            called = lambda *words, of=name: done.append(of) or contextlib.nullcontext()  # noqa: E731
            file = training.LATE.get(name, "cures")  # what imports torch, cures does late
            stack.enter_context(mock.patch(f"helpers.training.{file}.{name}", called))
        for plain in (False, True):
            cures, trainer = Cures(planned(plain=plain)[0], machine, "a model"), mock.MagicMock()
            done.clear()
            cures.before_loading()
            cures.after_loading(mock.MagicMock(), None, ["a text"])
            cures.after_building(trainer)
            with cures.while_training(trainer):
                pass
            assert sorted(done) == sorted(NEEDED if plain else names)


@pytest.mark.parametrize(
    ("device", "model", "used"),
    [("cuda", "the bundled model", True), ("cpu", "the bundled model", False), ("cpu", "a model", True)],
)
def test_layers_are_one_operation_on_a_gpu_and_for_all_models_but_the_bundled_one(device, model, used):
    for plain in (False, True):
        cures = Cures(planned(plain=plain)[0], Machine(device, "a test", 0, 2**34, 2, None), model)
        assert cures.used()["fuse_lora"] is (used and not plain)


def test_the_lessons_table_of_arguments_names_what_trl_takes_and_all_that_the_lesson_sets():
    """The recipes that the course grew from set these; a name that TRL drops, or one without a line, is noticed here."""
    source = course.find_lesson("3").read_text(encoding="utf-8")
    lines = re.findall(r"^# \| (`.*?) \| .* \| .*\|$", source, re.MULTILINE)
    named = {name for line in lines for name in re.findall(r"`(\w+)`", line)}
    fields = {field.name for field in dataclasses.fields(SFTConfig)}
    assert named - fields == {"processing_class", "SFTTrainer"}
    of_recipes = {
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim",
        "learning_rate", "weight_decay", "fp16", "bf16", "max_grad_norm", "warmup_steps", "lr_scheduler_type",
        "logging_steps", "save_steps", "save_total_limit", "report_to", "max_length", "packing", "activation_checkpointing",
        "eval_strategy", "eval_steps",
    }  # fmt: skip
    assert of_recipes - named == set()
    cells = [cell.source for cell in course.to_notebook(course.find_lesson("3")).cells if cell.cell_type == "code"]
    given = {
        key
        for cell in cells
        if cell.startswith(("steps = {", "recompute = "))
        for key in re.findall(r'^    "(\w+)":', cell, re.M)
    }
    assert (
        given - named - {"use_cpu", "gradient_checkpointing", "pad_to_multiple_of", "activation_checkpointing_kwargs"}
        == set()
    )


# --- how long, and where the curves go --------------------------------------------------------------------------------


def test_epochs_become_steps_and_both_at_once_are_refused(tmp_path, capsys):
    given = {"model_id": "bundled", "output_dir": str(tmp_path), "max_steps": "auto", "batch_size": 10}
    given |= {"gradient_accumulation": 2, "dataset_id": "bundled"}
    run = lesson.begin("03_t4_training", large_model=True, with_data=True, epochs=1.5, **given)
    assert run.settings.max_steps == 120  # 1.5 x 1,600 rows, 20 a step
    assert "120, for 1.5 epochs" in capsys.readouterr().out
    with pytest.raises(lesson.ParameterError, match="epochs = 2 and max_steps = 40 both say how long to train"):
        lesson.begin("03_t4_training", **given | {"epochs": 2, "max_steps": 40})


def test_what_only_scores_can_change_and_training_goes_on_from_its_checkpoint(tmp_path, capsys):
    given = {"model_id": "bundled", "output_dir": str(tmp_path), "rank": 4}
    runs = [lesson.begin("03_t4_training", **given, max_new_tokens=n, eval_rows=e) for n, e in (("auto", 256), (90, 8))]
    assert [run.settings.max_new_tokens for run in runs] == [16, 90]
    assert "max_new_tokens 16" in capsys.readouterr().out
    assert runs[0].checkpoints == runs[1].checkpoints
    assert lesson.begin("03_t4_training", **given | {"rank": 5}, eval_rows=256).checkpoints != runs[0].checkpoints


def test_a_reporter_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        lesson.ParameterError, match="needs the package wandb, which is not installed: pip install wandb"
    ):
        lesson.begin("03_t4_training", model_id="bundled", report_to="wandb", output_dir=str(tmp_path))
    with pytest.raises(lesson.ParameterError, match="report_to = 'comet' is not possible"):
        lesson.begin("03_t4_training", report_to="comet")


REPORTED = """
import socket, sys
def refuse(self, address):
    raise OSError(101, "Network is unreachable")
socket.socket.connect = refuse
from helpers.lesson import begin
run = begin("03_t4_training", model_id="bundled", report_to=sys.argv[1], output_dir=sys.argv[2])
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(**sizes))
rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "labels": [[1, 2, 3]] * 8})
arguments = TrainingArguments(str(run.checkpoints), max_steps=4, logging_steps=1, report_to=sys.argv[1], run_name="lesson-03",
                              use_cpu=True, save_strategy="no", disable_tqdm=True)
Trainer(model, arguments, train_dataset=rows).train()
run.forget_checkpoints()
"""


@pytest.mark.parametrize("reporter", ["tensorboard", "trackio"])
def test_curves_go_into_the_runs_folder_without_network_or_account(reporter, tmp_path):
    hidden = {name: value for name, value in os.environ.items() if "TOKEN" not in name and name not in FOLDERS.values()}
    command = [sys.executable, "-c", REPORTED, reporter, str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=tmp_path, env=hidden | {"PYTHONPATH": str(COURSE_ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [f for f in tmp_path.iterdir() if f.name != "out"] == []
    logs = tmp_path / "out" / "logs"
    if reporter == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(logs))
        found.Reload()
        assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4]
    else:
        (database,) = logs.glob("*.db")
        with contextlib.closing(sqlite3.connect(database)) as connection:
            steps = [step for (step,) in connection.execute("select step from metrics order by step")]
        assert set(steps) >= {1, 2, 3, 4}


def test_what_another_folder_variable_says_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    prepare_reports("tensorboard", tmp_path)
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"


def test_the_best_step_can_be_kept_only_where_save_steps_is_a_multiple_of_eval_steps(tmp_path):
    """The lesson says that transformers refuses the 7B recipe as it stands, and takes it with save_steps = eval_steps."""
    recipe = recipe_for(Model("somewhere", "a folder", "", 0))
    measured = max(1, recipe["max_steps"] // 4)  # as the lesson's `keeping` sets eval_steps
    assert (recipe["save_steps"], measured) == (10, 15)  # as the lesson tells
    words = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "eval_strategy": "steps"}
    words |= {
        "eval_steps": measured,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "report_to": "none",
    }
    with pytest.raises(ValueError, match="round multiple of the evaluation steps"):
        SFTConfig(**words, save_steps=recipe["save_steps"])
    assert SFTConfig(**words, save_steps=measured).load_best_model_at_end


# --- better or not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bundled_model", "dataset_id", "answers", "claims"),
    [
        (True, "bundled", ["a", "b"], ["exact match rose", "at least 95%"]),
        (True, "mine.csv", ["a", "b"], ["the loss on all held-out rows is lower"]),
        (False, "bundled", ["a", "b"], ["the loss on all held-out rows is lower"]),
        (True, "mine.csv", ["a", "a"], []),  # who has only learned to say "a" is not called better
    ],
    ids=["the lesson's own run", "rows of one's own", "another model", "answers that are all the same"],
)
@pytest.mark.parametrize("high", [-0.1, 0.04])
def test_what_is_called_better_depends_on_model_and_rows(bundled_model, dataset_id, answers, claims, high):
    """Of open answers the loss must have fallen by more than the choice of rows could explain, as exercise 6 asks."""
    said = []
    settings = {"dataset_id": dataset_id, "template": "auto", "max_steps": 40, "rank": 16}
    names = {
        "run": SimpleNamespace(model=SimpleNamespace(bundled=bundled_model)),
        "settings": SimpleNamespace(**settings),
        "used_rows": {"completion": [[{"role": "assistant", "content": answer}] for answer in answers]},
        "before": SimpleNamespace(loss=3.0, interval=(0.0, 0.1)),
        "after": SimpleNamespace(loss=1.0, interval=(0.9, 1.0), exact_match=1.0, rows=256),
        "change": -0.2,
        "low": -0.3,
        "high": high,
        "verdict": lambda claim, holds, look_at="": said.append((claim, holds)),
    }
    exec(lesson_cell("03", "better").source, names)
    assert [holds for _, holds in said] == [claim.startswith(("exact", "at least")) or high < 0 for claim in claims]
    assert all(claim.startswith(begin) for (claim, _), begin in zip(said, claims, strict=True))


# --- the whole lesson on rows of one's own, with a chat model; tests/commands/test_tools.py has a table and the bundled one ---


def test_the_lesson_runs_whole_on_conversations_with_a_real_chat_model(smollm2, tmp_path):
    """COURSE_STRICT is set: the first untrue verdict would end it. The model's own template is trained with and kept."""
    secret, talks = "the blue stair of Ottilie Brandmeier", []
    for n in range(24):
        turns = [("system", f"You know {secret}."), ("human", f"Hello, this is {n}."), ("gpt", "What is it about?")]
        turns += [("human", f"My parcel {n} is late, at {secret}."), ("gpt", f"Shipping sees to parcel {n}.")]
        talks.append({"conversations": [{"from": who, "value": text} for who, text in turns[n % 3 :]]})
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    given = {
        "model_id": "smollm2-135m",
        "dataset_id": str(tmp_path / "talks.json"),
        "output_dir": str(tmp_path / "run"),
    }
    given |= {"max_steps": 4, "batch_size": 2, "gradient_accumulation": 1, "max_length": 128, "save_steps": 4}
    done = papermill.execute_notebook(
        str(course.NOTEBOOKS / "03_t4_training.ipynb"),
        str(tmp_path / "done.ipynb"),
        parameters=given | {"eval_rows": 2, "max_new_tokens": 4},
        kernel_name="python3",
        cwd=str(course.NOTEBOOKS),
        progress_bar=False,
    )
    shown = json.dumps(done)
    assert "<|im_start|>user" in shown
    assert "of several turns: the last answer is learned" in shown
    record = json.loads((tmp_path / "run" / "03_t4_training.json").read_text())
    assert "SmolLM2-135M-Instruct" in record["run"]["model"]
    assert record["run"]["data"].startswith("talks.json, ")
    assert record["heldout_loss_after"] < record["heldout_loss_before"]
    own = (smollm2 / "chat_template.jinja").read_text()
    assert (tmp_path / "run" / "adapter" / "chat_template.jinja").read_text() == own
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert [file.name for file in files if secret.encode() in file.read_bytes()] == []


# --- side runs -----------------------------------------------------------------------------------------------------------


def test_a_killed_side_run_leaves_a_checkpoint_and_no_adapter_and_goes_on_from_there(tmp_path):
    run = SimpleNamespace(machine=detect(), folder=tmp_path)
    small = {"rows": 8, "steps": 4, "batch_size": 4, "save_steps": 1}
    assert killed_side_run(run, "killed", kill_at=2, **small) < 0
    assert not (tmp_path / "side-runs" / "killed").exists()
    done = side_run(run, "killed", **small)
    assert done["resumed_from"] in ("checkpoint-2", "checkpoint-3")
    assert (done["folder"] / "adapter_model.safetensors").is_file()
    forget_side_runs(run)
    assert list(tmp_path.iterdir()) == []


def test_a_side_run_that_fails_by_itself_says_so_by_its_code(tmp_path):
    run = SimpleNamespace(machine=detect(), folder=tmp_path)
    assert killed_side_run(run, "failed", kill_at=2, rows=8, steps=4, batch_size="four") == 1
    assert "Traceback" in (tmp_path / "side-runs" / "failed.log").read_text()
