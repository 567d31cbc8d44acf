"""What lesson 03 says about libraries and about running out of memory, each held against the library itself."""

import dataclasses
import weakref
from types import SimpleNamespace

import pytest
import torch

from helpers.course import disk as course
from helpers.machine import Machine
from helpers.memory import GPUS, QKVO, RunSpec, predict
from helpers.models import BUNDLED_MODEL, PRESETS, Model, bundled, recipe_for
from helpers.saving import CheckpointError, checkpoint_folder, require_login
from helpers.training import OutOfMemory, explain, explained
from helpers.training.out_of_memory import ladder, ran_out

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
    tight = RunSpec(rank=8, target_modules=QKVO, seq_len=64, repeat_kv=True)
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


def test_a_hub_repo_without_a_login_gets_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    require_login("none")
    with pytest.raises(CheckpointError, match="needs a login"):
        require_login("someone/adapter")


def test_coloured_tokens_say_by_more_than_colour_what_is_learned():
    from helpers.plots import tokens_in_colour

    html = tokens_in_colour(["<s>", "two\n", "lines"], [False, False, True]).data
    assert "&lt;s&gt;" in html
    assert html.count("underline") == 1
    assert html.index("underline") < html.index("lines")
    assert html.count("<br>") == 1


# --- the lesson's own cells, with a T4 pretended ---------------------------------------------------------------------


def planned_on_a_t4(model_id="Qwen/Qwen2.5-7B", **given):
    """What the lesson's cells of section 2 leave behind, for a T4 and a model that is not loaded."""

    from unittest import mock

    cells = [c.source for c in course.to_notebook(course.find_lesson("3")).cells if c.cell_type == "code"]
    begin = next(i for i, source in enumerate(cells) if "ours = on_gpu" in source)
    model = Model(model_id, model_id, "", 0)
    asked = course.lesson_parameters(course.find_lesson("3")) | given
    settings = asked | {k: v for k, v in recipe_for(model).items() if asked[k] == "auto"}
    names = asked | {
        "run": SimpleNamespace(machine=Machine("cuda", "Tesla T4", T4, 2**34, 2, (7, 5)), model=model),
        "settings": SimpleNamespace(**settings), "on_gpu": True, "verdict": lambda claim, holds: claims.append(holds),
    }  # fmt: skip
    claims = []
    with mock.patch("helpers.training.liger_layers", return_value=True):  # it would replace classes for good
        for source in cells[begin : begin + 4]:
            exec(source, names)
    assert all(claims)
    return SimpleNamespace(**names)


def test_on_a_t4_the_plan_keeps_the_rows_of_a_step_and_fits():
    left = planned_on_a_t4()
    assert left.settings.batch_size * left.settings.gradient_accumulation == 16
    assert left.chosen.prediction.peak_allocated <= 0.95 * T4
    assert (left.spec.batch_size, left.spec.attention_kernels, left.spec.repeat_kv) == (
        left.settings.batch_size,
        "t4",
        True,
    )
    assert (left.spec.load_dtype, left.gpu) == ("float16", "t4")


def test_what_a_learner_sets_is_left_alone_by_the_plan():
    left = planned_on_a_t4(batch_size=1, gradient_accumulation=3, checkpointing=True)
    assert (left.settings.batch_size, left.settings.gradient_accumulation, left.every, left.offload) == (1, 3, 1, False)
    assert planned_on_a_t4(checkpointing="offload").offload is True


def test_a_preset_with_another_recipe_is_planned_with_it():
    assert planned_on_a_t4("mistralai/Mistral-7B-v0.1").spec.target_modules == QKVO


def test_a_run_that_cannot_fit_stops_with_advice_before_anything_is_loaded():
    with pytest.raises(OutOfMemory) as caught:
        planned_on_a_t4(batch_size=64, gradient_accumulation=1, checkpointing=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "this run does not fit the GPU's 14.56 GiB with a twentieth left free."
    assert "1. checkpointing=True" in lines[3]
    assert lines[-1].endswith(", fits")


def test_a_model_without_a_prediction_keeps_its_recipe(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    left = planned_on_a_t4(str(tmp_path))
    assert left.chosen is None
    assert (left.settings.batch_size, left.settings.gradient_accumulation, left.every) == (4, 4, 1)
    assert "No plan" in capsys.readouterr().out


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
    (cell,) = [c.source for c in course.to_notebook(course.find_lesson("3")).cells if "\ngraphs = " in c.source]
    begin, end = cell.index("# While a graph is recorded"), cell.index("\n", cell.index("\ngraphs = ") + 1)
    names = {
        "chosen": SimpleNamespace(prediction=SimpleNamespace(after_load=4, peak_allocated=peak)), "budget": 16 + 2,
        "run": SimpleNamespace(machine=Machine("cuda", "a GPU", T4, 2**34, 2, capability)), "every": every,
        "settings": SimpleNamespace(cuda_graphs=asked), "on_gpu": True, "ours": True,
    }  # fmt: skip
    exec(cell[begin:end], names)
    assert names["graphs"] is graphs
