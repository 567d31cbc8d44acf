"""Two GPUs: predictions beside measured rows, and what must be so of any of them."""

import dataclasses
import tomllib

import pytest

from helpers.__main__ import main
from helpers.memory import CannotPredict, DoesNotFit, RunSpec, fits, labels, plan, predict, shape_of
from helpers.memory.across import _split, least_of
from helpers.models import PRESETS
from helpers.records import read_rows
from tests.memory.cases import MEASUREMENTS, MISTRAL, forget
from tests.memory.test_parts import doubled, halved, one_missing, plant

ROWS = read_rows(MEASUREMENTS / "two_gpus_rows.jsonl")
PLANNED = {row["name"]: row for row in tomllib.loads((MEASUREMENTS / "two_gpus_plan.toml").read_text())["row"]}
SEVERAL = [row for row in ROWS if row["gpus"] > 1]
HELD_OUT = [row for row in SEVERAL if row["role"] == "holdout"]
T4_BYTES = 14.56 * 2**30
LEAN = RunSpec(rank=8, seq_len=512, repeat_kv=True, lora_dropout=0.0, optimizer="adamw_torch")


def predicted(row):
    return predict(row["config"], row["spec"], "h200", row["gpus"], row["way"], row["layers"] or None)


def errors(row, key: str = "peak_allocated") -> list[float]:
    each = predicted(row).each or (predicted(row),)
    return [getattr(one, key) / measured - 1 for one, measured in zip(each, row["measured"][key], strict=True)]


def name(row) -> str:
    return row["name"]


def test_there_are_eighteen_rows_of_three_ways_three_sizes_two_dtypes_and_two_lengths_half_of_them_held_out():
    assert len(SEVERAL) >= 18
    assert len(HELD_OUT) >= 9
    for rows in (SEVERAL, HELD_OUT):
        assert {row["way"] for row in rows} == {"ddp", "split", "fsdp2"}
        assert {row["model"] for row in rows} >= {"Mistral-7B-v0.1", "Qwen2.5-14B", "Qwen2.5-32B"}
        assert {row["spec"]["compute_dtype"] for row in rows} == {"float16", "bfloat16"}
        assert {row["spec"]["seq_len"] for row in rows} == {512, 2048}
    assert all(row["error"] is None for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_row_has_the_role_that_the_plan_gave_it_and_was_measured_as_planned(row):
    planned = PLANNED[row["name"]]
    assert row["role"] == planned["role"]
    assert (row["way"], row["spec"]["batch_size"], row["spec"]["seq_len"], row["spec"]["rank"]) == tuple(
        planned[key] for key in ("way", "batch", "length", "rank")
    )
    assert row["layers"] == planned.get("layers", [])
    assert row["config"]["num_hidden_layers"] == planned.get("model_layers", row["config"]["num_hidden_layers"])


@pytest.mark.parametrize("row", HELD_OUT, ids=name)
def test_the_peak_of_each_gpu_is_predicted_within_two_percent_where_nobody_looked(row):
    assert max(map(abs, errors(row))) <= 0.02


@pytest.mark.parametrize("row", [row for row in ROWS if row["role"] != "holdout"], ids=name)
def test_the_peak_of_each_gpu_is_predicted_within_half_a_percent_elsewhere(row):
    assert max(map(abs, errors(row))) <= 0.005


def test_a_split_and_copies_are_predicted_within_a_tenth_of_a_percent():
    assert max(abs(e) for row in SEVERAL if row["way"] != "fsdp2" for e in errors(row)) <= 0.001


def test_what_is_reserved_is_predicted_within_five_percent_but_for_divided_weights_from_gpus():
    """Loaded on the GPU, a model that is then divided leaves reserved what it took whole."""
    rows = [row for row in ROWS if row["loaded"] != "gpu" and row["name"] != "32b-fsdp2-bfloat16-all-2048"]
    assert max(abs(e) for row in rows for e in errors(row, "peak_reserved")) <= 0.05


@pytest.mark.parametrize("fault", [halved, doubled, one_missing])
def test_a_fault_in_what_is_gathered_is_noticed(fault, monkeypatch):
    plant(fault, labels.GATHERED, monkeypatch)
    forget()
    wrong = max(abs(error) for row in SEVERAL if row["way"] == "fsdp2" for error in errors(row))
    forget()
    assert wrong > 0.02


@pytest.mark.parametrize("row", SEVERAL, ids=name)
def test_the_parts_of_each_gpu_add_up_and_the_least_lies_a_little_below(row):
    found = predicted(row)
    for one in found.each:
        assert sum(one.parts.values()) == one.peak_allocated
        assert set(one.parts) <= set(labels.LABELS)
    assert found.peak_allocated == max(one.peak_allocated for one in found.each)
    shape, spec = shape_of(row["config"]), RunSpec(**row["spec"])
    layers = tuple(row["layers"]) or None
    least = least_of(shape, spec, "h200", row["gpus"], row["way"], layers)
    assert 0 <= found.peak_allocated - least < 0.03 * found.peak_allocated


@pytest.mark.parametrize("preset", ["mistral-7b", "qwen2.5-0.5b"])
def test_layers_are_divided_so_that_no_other_border_gives_a_smaller_peak(preset):
    shape = shape_of(PRESETS[preset].shape)
    found = predict(shape, LEAN, "t4", 2, "split")
    assert sum(found.layers) == shape.layers
    others = [_split(shape, LEAN, "t4", (k, shape.layers - k)) for k in range(1, shape.layers)]
    assert found.peak_allocated == min(max(one.peak_allocated for one in other) for other in others)


def test_a_tied_head_leaves_the_first_gpu_fewer_layers():
    first, second = predict(PRESETS["qwen2.5-0.5b"].shape, LEAN, "t4", 2, "split").layers
    assert first < second


def test_three_gpus_have_a_third_each():
    found = predict(MISTRAL, LEAN, "t4", 3, "split")
    assert len(found.each) == 3
    assert max(found.layers) - min(found.layers) <= 2


def test_a_split_takes_half_of_one_gpu_copies_a_little_more_and_divided_weights_lie_between():
    one = predict(MISTRAL, LEAN, "t4").peak_allocated
    split, ddp, fsdp2 = (predict(MISTRAL, LEAN, "t4", 2, way).peak_allocated for way in ("split", "ddp", "fsdp2"))
    assert split < fsdp2 < one < ddp < 1.02 * one
    assert split < 0.6 * one


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gpus": 2, "way": "one"}, "one goes with 1"),
        ({"gpus": 1, "way": "split"}, "one goes with 1"),
        ({"gpus": 2, "way": "dp"}, "way is 'dp'"),
        ({"gpus": 0}, "gpus is 0"),
        ({"gpus": 2, "way": "ddp", "layers": (16, 16)}, "only a split divides layers"),
        ({"gpus": 2, "way": "split", "layers": (16, 17)}, "the model has 32"),
        ({"gpus": 2, "way": "split", "layers": (32, 0)}, "each GPU needs at least one"),
        ({"gpus": -1}, "gpus is -1; give a whole number from 1"),
        ({"gpus": -1, "way": "split"}, "gpus is -1; give a whole number from 1"),
        ({"gpus": None}, "gpus is None"),
        ({"gpus": None, "way": "fsdp2"}, "gpus is None"),
        ({"gpus": 2.0}, "gpus is 2.0"),
        ({"gpus": "2"}, "gpus is '2'"),
        ({"gpus": True}, "gpus is True"),
        ({"gpus": 2, "way": "split", "layers": [12, 10, 10]}, "for 2 GPUs"),
        ({"gpus": 2, "way": "split", "layers": [32]}, "for 2 GPUs"),
        ({"gpus": 2, "way": "split", "layers": 5}, "layers is 5 for 2 GPUs"),
        ({"gpus": 2, "way": "split", "layers": "16"}, "layers is '16' for 2 GPUs"),
        ({"gpus": 2, "way": "split", "layers": [[16], [16]]}, "for 2 GPUs"),
        ({"gpus": 2, "way": "split", "layers": [16.0, 16.0]}, "for 2 GPUs"),
        ({"gpus": 2, "way": "split", "layers": []}, "for 2 GPUs"),
        ({"gpus": 17, "way": "split"}, "gpus is more than 16; give a whole number from 1 to 16"),
        ({"gpus": 100_000_000}, "gpus is more than 16"),
        ({"gpus": 10**5000, "way": "fsdp2"}, "gpus is more than 16"),
    ],
)
@pytest.mark.parametrize("plans", [False, True], ids=["predicted", "planned"])
def test_what_cannot_be_is_refused_in_one_line(given, said, plans):
    with pytest.raises(CannotPredict, match=said) as refused:
        plan(MISTRAL, int(T4_BYTES), LEAN, gpu="t4", **given) if plans else predict(MISTRAL, LEAN, "t4", **given)
    assert "\n" not in str(refused.value)


def test_a_split_has_no_more_gpus_than_the_model_has_layers():
    with pytest.raises(CannotPredict, match="gpus is 9; the model has 8 layers"):
        predict({**MISTRAL, "num_hidden_layers": 8}, LEAN, "t4", 9, "split")


@pytest.mark.parametrize("way", ["one", "ddp", "split", "fsdp2"])
@pytest.mark.parametrize("plans", [False, True], ids=["predicted", "planned"])
def test_without_padding_goes_what_the_training_takes(way, plans):
    spec, several = dataclasses.replace(LEAN, padding_free=True), {"gpus": 1 if way == "one" else 2, "way": way}

    def ask():
        return plan(MISTRAL, int(T4_BYTES), spec, **several) if plans else predict(MISTRAL, spec, "t4", **several)

    if way in ("one", "ddp"):
        assert ask()
    else:
        with pytest.raises(
            CannotPredict, match=f"padding_free is True with way '{way}'; it goes with one and with ddp"
        ):
            ask()


@pytest.mark.parametrize("gpu", [["t4"], {"t4": 1}, {"t4"}, None, 4, b"t4"], ids=str)
@pytest.mark.parametrize("way", ["one", "ddp"])
def test_a_gpu_that_is_no_name_is_refused_in_one_line(gpu, way):
    several = {"gpus": 1 if way == "one" else 2, "way": way}
    for ask in (lambda: predict(MISTRAL, LEAN, gpu, **several), lambda: plan(MISTRAL, 15e9, LEAN, gpu=gpu, **several)):
        with pytest.raises(CannotPredict, match="^gpu: .* is not known; known are t4"):
            ask()


@pytest.mark.parametrize("choices", [["batch_size"], ("batch_size", (1, 2)), "batch_size", 4, {1, 2}], ids=str)
def test_choices_that_are_no_dictionary_are_refused_in_one_line(choices):
    with pytest.raises(CannotPredict, match="plan: choices is .*; give a dictionary"):
        plan(MISTRAL, 15e9, LEAN, choices)


@pytest.mark.parametrize("gpus", ["100000000", "17", "0"])
@pytest.mark.parametrize("more", [[], ["--way", "fsdp2"], ["--plan"]], ids=str)
def test_the_command_answers_at_once_for_more_gpus_than_a_computer_has(gpus, more, capsys):
    assert main(["memory", "predict", "qwen2.5-0.5b", "--gpus", gpus, *more]) == 2
    said = capsys.readouterr().err
    assert "give a whole number from 1 to 16" in said
    assert said.count("\n") == 1


def test_optimizers_of_bitsandbytes_are_refused_where_every_weight_is_divided():
    with pytest.raises(CannotPredict, match="cannot take divided tensors"):
        predict(MISTRAL, dataclasses.replace(LEAN, optimizer="paged_adamw_8bit"), "t4", 2, "fsdp2")


@pytest.mark.parametrize("way", ["ddp", "split", "fsdp2"])
def test_a_plan_for_two_gpus_fits_each(way):
    found = plan(MISTRAL, int(T4_BYTES), LEAN, gpu="t4", gpus=2, way=way)
    assert len(found.prediction.each) == 2
    assert fits(found.prediction, "t4", T4_BYTES, margin=None)
    assert found.spec.optimizer == "adamw_torch" or way != "fsdp2"


def test_a_32b_model_fits_two_t4_when_it_is_split_and_neither_one_nor_copies():
    shape = next(row["config"] for row in ROWS if row["name"] == "32b-split-qkvo")
    spec = dataclasses.replace(LEAN, optimizer="paged_adamw_8bit")
    assert plan(shape, int(T4_BYTES), spec, gpu="t4", gpus=2, way="split").prediction.layers == (32, 32)
    for given in ({}, {"gpus": 2, "way": "ddp"}):
        with pytest.raises(DoesNotFit):
            plan(shape, int(T4_BYTES), spec, gpu="t4", **given)
