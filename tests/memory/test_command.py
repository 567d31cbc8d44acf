"""`python -m helpers memory`: predicts, plans and scores, and says what its verdict rests on."""

import json

import pytest

from helpers.__main__ import main
from helpers.memory import GPUS, RunSpec, predict
from tests.memory.cases import HELD_OUT, MEASUREMENTS, MISTRAL


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    return tmp_path


def test_command_line_predicts_plans_and_scores(folder, capsys):
    assert main(["memory", "predict", str(folder), "--gpu", "t4", "--rank", "8", "--batch-size", "4"]) == 0
    assert "fits t4" in capsys.readouterr().out
    assert main(["memory", "predict", str(folder), "--plan"]) == 0
    assert "The fastest" in capsys.readouterr().out
    assert main(["memory", "score", str(MEASUREMENTS / "h200_earlier_rows.jsonl")]) == 0
    assert "peak_allocated: mean error" in capsys.readouterr().out
    assert main(["memory", "score", str(MEASUREMENTS / "h200_memory_rows.jsonl"), "--role", "holdout"]) == 0
    said, whole = capsys.readouterr().out, [row for row in HELD_OUT if row["spec"]["quant_type"] != "int8"]
    assert "not in the means, 1 rows: int8" in said
    assert said.rstrip().endswith(f"{len(whole)} rows")
    assert main(["memory", "predict", str(folder), "--batch-size", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def verdict(folder, capsys, *words) -> str:
    main(["memory", "predict", str(folder), *words])
    return next(line for line in capsys.readouterr().out.splitlines() if "fit t4" in line or "fits t4" in line)


def test_the_verdict_counts_the_context_in(folder, capsys):
    held = (
        predict(MISTRAL, RunSpec(attention_kernels="t4", repeat_kv=True), "t4").peak_reserved + GPUS["t4"].context_bytes
    )
    line = verdict(folder, capsys)
    assert line == f"fits t4: {held / 2**30:.2f} of 14.56 GiB, the CUDA context's 0.25 included"
    assert verdict(folder, capsys, "--batch-size", "64").startswith("does not fit t4: ")


@pytest.mark.filterwarnings("ignore:model_type")
def test_the_verdict_on_an_unknown_architecture_says_so_in_its_line(folder, capsys):
    (folder / "config.json").write_text(json.dumps({**MISTRAL, "model_type": "newcomer"}))
    assert verdict(folder, capsys).endswith("if newcomer, which is not described here, is built like a Llama")


def test_a_mixture_of_experts_gets_no_verdict(folder, capsys):
    (folder / "config.json").write_text(json.dumps({**MISTRAL, "model_type": "qwen3_next", "num_experts": 512}))
    assert main(["memory", "predict", str(folder)]) == 2
    said = capsys.readouterr()
    assert "fits" not in said.out
    assert said.err.count("\n") == 1
    assert "num_experts is 512" in said.err
