"""A file of settings of python -m helpers train: what a message says of its values can be written into it."""

import re
import tomllib

import pytest

from helpers.commands import _job
from helpers.lesson import ParameterError, validate


@pytest.fixture
def refused(tmp_path):
    """What is said of a file with this text, in one line."""

    def read(text: str) -> str:
        file = tmp_path / "config.toml"
        file.write_text(f'output_dir = "{tmp_path / "out"}"\n{text}', encoding="utf-8")
        with pytest.raises(_job.ConfigError) as error:
            _job.Job.read(file)
        said = str(error.value)
        assert said.isprintable()
        return said

    return read


@pytest.mark.parametrize("name", [name for name, rule in _job.FILE_RULES.items() if "true" in rule.allowed])
@pytest.mark.parametrize("wrong", ["True", "False", "TRUE"])
def test_a_true_of_python_gets_the_true_of_toml(refused, name, wrong):
    advice = refused(f'{name} = "{wrong}"').partition("allowed: ")[2]
    assert {"true", "false"} <= set(re.findall(r"\w+", advice))
    assert "True" not in advice
    for line in (
        f"{name} = {wrong}",
        f"rank = 4\n{name} = {wrong} # as in lesson 03\nseed = 1",
        f"layers = [1, {wrong}]",
    ):
        assert refused(line).endswith(f"; in TOML it is {wrong.lower()}, in small letters")


def test_three_settings_are_flags():
    flags = {name for name, rule in _job.FILE_RULES.items() if "true" in rule.allowed}
    assert flags == {"double_quant", "checkpointing", "padding_free"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("optimizer = None", "; TOML has no None: leave the line out"),
        ("rank = four", "Invalid value (at line 2, column 8)"),
        ("double_quant = true false", "column 21)"),
        ('columns = "True" x', "column 18)"),
        ("# double_quant = True\nrank = ", "(at end of document)"),
    ],
)
def test_a_line_without_a_word_of_python_gets_no_such_hint(refused, line, said):
    assert refused(line).endswith(said)


VALUES = [
    "true", "[true, false]", '"q_proj"', "''", "'C:\\runs'", '"a \\"b\\" \\u202e \\u0000"', '"größe→"', "1.5", "inf",
    "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", '{prompt = "a", completion = "b"}', '{a = {b = [1, {c = "x"}]}}',
    "[]", "{}", "-3", "1e400",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_shown_as_the_file_can_have_it(refused, value):
    name = next(name for name in ("rank", "way") if not _job.FILE_RULES[name].holds(tomllib.loads(f"x = {value}")["x"]))
    shown = re.search(f"{name} = (.*) is not possible", refused(f"{name} = {value}"))[1]
    assert tomllib.loads(f"x = {shown}") == tomllib.loads(f"x = {value}")


@pytest.mark.parametrize(
    "value", ["[" * 300 + "]" * 300, '"' + "x" * 9000 + '"', "0x" + "f" * 9000, "[0x" + "f" * 9000 + "]"]
)
def test_a_long_value_is_cut(refused, value):
    assert len(re.search("way = (.*) is not possible", refused(f"way = {value}"))[1]) == 80


@pytest.mark.parametrize("name", ["quant_type", "optimizer", "way"])
def test_the_words_that_are_allowed_stand_in_quotes_as_they_are_written(refused, name):
    allowed = refused(f'{name} = "another"').partition("one of ")[2]
    words = tomllib.loads(f"x = [{allowed}]")["x"]
    assert len(words) >= 2
    assert all(_job.FILE_RULES[name].holds(word) for word in words)


# --- names that others give ----------------------------------------------------------------------------------------

MEANT = {
    "rank": "r R lora_r ranks",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "learning_rate": "lr",
    "gradient_accumulation": "grad_accum gradient_accumulation_steps",
    "batch_size": "per_device_train_batch_size per-device-train-batch-size",
    "model_id": "model model_name_or_path",
    "dataset_id": "dataset data",
    "max_length": "seq_len max_seq_length",
    "max_steps": "steps",
    "optimizer": "optim",
    "checkpointing": "gradient_checkpointing",
    "quant_type": "bnb_4bit_quant_type",
}


@pytest.mark.parametrize(("ours", "name"), [(ours, name) for ours, names in MEANT.items() for name in names.split()])
def test_a_name_of_another_program_gets_ours_in_a_file_and_in_a_lesson(refused, ours, name):
    wanted = f"did you mean {ours}? There are"
    assert wanted in refused(f"{name} = 1")
    with pytest.raises(ParameterError, match=re.escape(wanted)):
        validate({name: 1})


@pytest.mark.parametrize("name", ["epochs", "epoch", "num_train_epochs"])
def test_passes_over_the_rows_are_no_steps_and_that_is_said(refused, name):
    wanted = "did you mean max_steps, which counts steps and not passes over the rows?"
    assert wanted in refused(f"{name} = 3")
    with pytest.raises(ParameterError, match=re.escape(wanted)):
        validate({name: 3}, known={"max_steps", "rank"})


def test_where_a_lesson_has_epochs_they_are_meant():
    with pytest.raises(ParameterError, match="did you mean epochs?"):
        validate({"num_train_epochs": 3}, known={"epochs", "max_steps"})


def test_only_what_a_lesson_has_is_suggested():
    with pytest.raises(ParameterError, match="did you mean data_file?"):
        validate({"dataset": "x.csv"}, known={"data_file", "rank"})
    with pytest.raises(ParameterError, match="^no parameter 'lr'. There are: rank$"):
        validate({"lr": 1}, known={"rank"})
