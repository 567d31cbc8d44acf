"""Bad parameters get one line with name, value and what is allowed, before anything heavy is loaded."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import COURSE_ROOT
from helpers.commands.run import parse_value
from helpers.files import output_folder
from helpers.files.folders import OutputError
from helpers.lesson import RULES, ParameterError, validate

BAD = [
    ("rank", 0), ("rank", -1), ("rank", 1.5), ("rank", "eight"), ("rank", True), ("rank", None), ("rank", 10**9),
    ("max_steps", 0), ("max_steps", "ten"), ("batch_size", -4), ("learning_rate", 0), ("learning_rate", float("nan")),
    ("learning_rate", float("inf")), ("quant_type", "int3"), ("double_quant", 1), ("double_quant", "yes"),
    ("target_modules", "q_proj,nonsense"), ("target_modules", ""), ("optimizer", "adam"), ("seed", -1),
    ("seed", 2**32), ("model_id", ""), ("model_id", "  "), ("model_id", "a\0b"), ("block_size", 65), ("block_size", 64.0),
    ("lora_dropout", 1), ("max_length", 3), ("output_dir", ""), ("output_dir", 7),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_impossible_value_gets_one_line_with_name_value_and_what_is_allowed(name, value):
    with pytest.raises(ParameterError) as error:
        validate({name: value})
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{name} = {value!r}")
    assert "allowed:" in line


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ParameterError, match="'rnak'; did you mean rank?"):
        validate({"rnak": 4})


def test_an_enormous_value_is_not_printed_whole():
    with pytest.raises(ParameterError) as error:
        validate({"model_id": "x" * 10_000})
    assert len(str(error.value)) < 300


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(RULES)),
    st.one_of(
        st.none(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=4), st.lists(st.integers())
    ),
)
def test_any_value_is_either_kept_or_refused_in_one_line(name, value):
    try:
        validate({name: value})
    except ParameterError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert name in str(error)  # noqa: PT017


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("here already")
    with pytest.raises(OutputError, match="cannot be written"):
        output_folder(str(file / "run"))
    assert file.read_text() == "here already"


def test_runs_that_cannot_be_written_are_named_with_the_variable_that_moves_them(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("here already")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"^runs/mine cannot be written \(.*\): set COURSE_RUNS to another folder$"):
        output_folder("auto", run="mine")


def test_begin_refuses_a_bad_value_before_anything_heavy_is_imported():
    code = (
        "import sys\nfrom helpers.lesson import begin\n"
        "try:\n    begin('03_t4_training', rank='eight')\n"
        "except Exception as error:\n    print(error, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=COURSE_ROOT
    ).stdout
    assert "rank = 'eight' is not possible" in out
    assert out.strip().endswith("[]")


@pytest.mark.parametrize(
    ("text", "value"), [("4", 4), ("1e-3", 1e-3), ("true", True), ("False", False), ("nf4", "nf4"), ("04", 4)]
)
def test_values_on_the_command_line_are_read_as_what_they_look_like(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)
