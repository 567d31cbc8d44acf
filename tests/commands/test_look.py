"""`python -m helpers data look FILE`: all that is understood, in two seconds, without a library that takes longer."""

import json
import subprocess
import sys

import pytest

from helpers import COURSE_ROOT
from helpers.__main__ import main

ROWS = [{"question": f"say {n}", "answer": "" if n == 3 else f"word {n}", "id": n} for n in range(300)]


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "mine.jsonl")


def test_it_shows_format_columns_counts_and_rows_and_imports_nothing_heavy(own):
    code = (
        "import sys\nfrom helpers.__main__ import main\n"
        f"main(['data', 'look', {own!r}])\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=COURSE_ROOT)
    lines = done.stdout.splitlines()
    assert lines[0] == "mine.jsonl"
    for words in (
        "format:           JSON lines, UTF-8",
        "columns:          question and answer (instruction from 'question', output from 'answer')",
        "columns not used: id",
        "rows:             300 read, 299 to use, 1 left out",
        "left out:         1 with an empty answer (line 4)",
        "row 3",
    ):
        assert words in lines, words
    assert lines[-1] == "[]"


def test_it_stops_where_it_is_told_to_and_says_so(own, capsys):
    assert main(["data", "look", own, "--rows", "10"]) == 0
    assert "10 read, 9 to use, 1 left out (only the first 10 were looked at)" in capsys.readouterr().out


def test_tokens_show_lengths_template_and_what_is_learned(own, capsys):
    assert main(["data", "look", own, "--tokens", "bundled", "--max-length", "40"]) == 0
    out = capsys.readouterr().out
    assert "rows cut at max_length 40:" in out
    assert "template: Alpaca's, which base models get\n" in out
    assert "only read:  '<s>Below is an instruction" in out
    assert "learned:    'word 0" in out
    from transformers import AutoTokenizer

    from helpers.models import bundled

    tokenizer = AutoTokenizer.from_pretrained(bundled().path)
    learned = len(tokenizer("word 0" + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
    assert f", {learned} tokens" in out
    assert main(["data", "look", own, "--tokens", "bundled", "--template", "question"]) == 0
    out = capsys.readouterr().out
    assert "template: question\n" in out
    assert r"only read:  '<s>say 0\nAnswer:\n'" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere.csv"], "no readable file 'nowhere.csv'"),
        (["owner/nothing"], "on the hub it cannot be had (HF_HUB_OFFLINE is set)"),
        (["nowhere.csv", "--rows", "-1"], "whole numbers"),
        (["nowhere.csv", "--tokens", "auto"], "name a model"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(words, line, capsys):
    assert main(["data", "look", *words]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
