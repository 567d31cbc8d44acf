"""A template that refuses a row: which row it is, and what to do, stand in one line, in training as in evaluation."""

import json
import shutil

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import machine
from helpers.__main__ import main
from helpers.commands import _job
from helpers.commands._training import Training
from helpers.data import DataError, look_at, read_template, to_chat, with_template
from helpers.evaluation import completion_loss, evaluate, prompt_texts, rendered
from helpers.models import BUNDLED_MODEL

# Single questions alone, as some chat models have it.
SINGLE = (
    "{% if messages | length > 2 %}{{ raise_exception('one question alone') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
)
NO_LONG = SINGLE.replace("messages | length > 2", "(messages[0].content + '') | length > 40")
BROKEN = SINGLE.replace("raise_exception('one question alone')", "messages.none.at_all")


def talk(number: int, turns: int = 2) -> dict:
    said = [("user", f"q{number}"), ("assistant", "a")] * (turns - 1) + [("user", f"more {number}"), ("assistant", "b")]
    messages = json.dumps([{"role": role, "content": text} for role, text in said])
    return {"instruction": f"more {number}", "input": "", "output": "b", "messages": messages}


PLAIN = [{"instruction": f"What is {n}?", "input": "", "output": f"It is {n}.", "messages": ""} for n in range(4)]
LONG = {"instruction": "tree " * 20, "input": "", "output": "yes", "messages": ""}
WANTED = (
    r"template refuses the row that begins with '{}.* \({}\): {}.*leave such rows out, or set template to \"alpaca\""
)
REFUSED = {
    "two turns": (SINGLE, talk(7), WANTED.format("q7 a more 7", "user, assistant, user", "TemplateError: one question alone")),
    "long": (NO_LONG, LONG, WANTED.format("tree tree", "user", "TemplateError: one question alone")),
    "broken": (BROKEN, talk(7), WANTED.format("q7 a more 7", "user, assistant, user", "UndefinedError: ")),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL).eval()


def tokenizer_of(template: str):
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    tokenizer.chat_template = template
    return with_template(tokenizer)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize(
    "score",
    [
        lambda model, tokenizer, rows: completion_loss(model, tokenizer, rows),
        lambda model, tokenizer, rows: evaluate(model, tokenizer, rows, max_new_tokens=1),
        lambda model, tokenizer, rows: prompt_texts(tokenizer, rows),
    ],
    ids=["loss", "evaluation", "prompts"],
)
def test_what_evaluation_cannot_write_is_named(model, case, place, score):
    template, row, wanted = REFUSED[case]
    rows = Dataset.from_list([*PLAIN[:place], row, *PLAIN[place:]])
    with pytest.raises(DataError, match=wanted) as error:
        score(model, tokenizer_of(template), rows)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_training_names_the_row_before_the_first_step(tmp_path, case, part):
    template, row, wanted = REFUSED[case]
    base = shutil.copytree(BUNDLED_MODEL, tmp_path / "base")
    (base / "chat_template.jinja").write_text(template)
    config = tmp_path / "config.toml"
    config.write_text(
        f'model_id = "{base}"\ndataset_id = "bundled"\noutput_dir = "{tmp_path / "out"}"\nmax_steps = 1\nmax_length = 512\n'
    )
    running = Training(_job.Job.read(config), machine.detect(), [])
    running.rows["train"] = running.rows["heldout"] = Dataset.from_list(PLAIN)
    running.rows[part] = Dataset.from_list([*PLAIN, row])
    with pytest.raises(DataError, match=wanted):
        running.run()


def test_a_look_names_the_row(tmp_path, capsys):
    base = shutil.copytree(BUNDLED_MODEL, tmp_path / "base")
    (base / "chat_template.jinja").write_text(SINGLE)
    (tmp_path / "mine.jsonl").write_text(json.dumps({"messages": json.loads(talk(7)["messages"])}))
    assert main(["data", "look", str(tmp_path / "mine.jsonl"), "--tokens", str(base)]) == 2
    assert (
        "refuses the row that begins with 'q7 a more 7 b' (user, assistant, user, assistant)" in capsys.readouterr().err
    )


@pytest.mark.parametrize("template", ["alpaca", "question"])
@pytest.mark.parametrize("row", [talk(7), talk(7, turns=4), LONG], ids=["two turns", "four turns", "long"])
def test_the_cure_takes_them(template, row):
    tokenizer = with_template(AutoTokenizer.from_pretrained(BUNDLED_MODEL), template)
    chat = to_chat(row)
    assert rendered(tokenizer, chat["prompt"] + chat["completion"], False)


# --- a template that begins with a byte order mark -------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "with a mark"])
def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path, mark, ends):
    file, plain = tmp_path / "mine.jinja", tmp_path / "plain.jinja"
    text = "{% for m in messages %}\n{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    file.write_bytes(mark + text.replace("\n", ends).encode())
    plain.write_bytes(text.encode())
    assert read_template(str(file)) == read_template(str(plain)) == text
    look_at("bundled", template=str(file))
    tokenizer = with_template(AutoTokenizer.from_pretrained(BUNDLED_MODEL), str(file))
    assert tokenizer.chat_template == text
    assert not rendered(tokenizer, to_chat(PLAIN[0])["prompt"], True).startswith("\ufeff")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_bytes().startswith(b"{%")
