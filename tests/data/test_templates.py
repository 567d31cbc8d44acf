"""Templates: training, evaluation and inference say the same words, and what is trained as the end is where generation stops."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.data import DataError, alpaca_prompt, ends_of_answers, to_chat, to_prompt_completion, with_template
from helpers.evaluation import answer, scores
from helpers.models import BUNDLED_MODEL
from tests.export import makers

OF_TRL = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
LLAMA3, QWEN25 = ((OF_TRL / f"{name}.jinja").read_text(encoding="utf-8") for name in ("llama3", "qwen2_5"))
ROWS = [
    {"instruction": "Name the capital.", "input": "France", "output": "Paris"},
    {"instruction": "What is 3 + 4?", "input": "", "output": "7"},
]
TEXTS = [{"instruction": "", "input": "", "output": "It rained.\nThen it snowed."}]


def trained_on(folder, tokenizer, rows, **settings) -> list[tuple[list, list]]:
    """(ids, labels) of each row as SFTTrainer has them."""
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(str(folder / "out"), use_cpu=True, bf16=False, report_to="none", max_length=512, **settings)
    trainer = SFTTrainer(
        str(folder / "model"), arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def learned(ids, labels) -> list[int]:
    return [label for label in labels if label != -100]


@pytest.fixture
def bundled(tmp_path):
    (tmp_path / "model").symlink_to(BUNDLED_MODEL)
    return AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.mark.parametrize("rows", [ROWS, TEXTS], ids=["with an input and without", "plain text"])
def test_in_alpacas_template_trl_gets_the_tokens_and_labels_that_it_got_from_texts(tmp_path, bundled, rows):
    before = trained_on(tmp_path, bundled, [to_prompt_completion(row) for row in rows])
    with_template(bundled)
    assert trained_on(tmp_path, bundled, [to_chat(row) for row in rows]) == before


def llama_with_two_ends(folder):
    """The first release of Llama 3 Instruct: its tokenizer's eos is another token than the one that ends an answer."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))


KNOWN = {
    "Llama 3": (
        makers.of_llama3,
        {"eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
        LLAMA3,
        "<|eot_id|>",
        None,
    ),
    "Llama 3, first release": (
        makers.of_llama3,
        {"pad_token": "<|end_of_text|>"},
        LLAMA3,
        "<|eot_id|>",
        llama_with_two_ends,
    ),
    "Qwen 2.5": (makers.of_qwen2, {}, QWEN25, "<|im_end|>", None),
    "ChatML": (makers.of_smollm, {"pad_token": "<|im_end|>"}, makers.CHATML, "<|im_end|>", None),
}


@pytest.fixture(params=KNOWN.values(), ids=KNOWN)
def chat(request, tmp_path):
    """(folder, tokenizer as it was loaded, its template, the token that ends an answer) of a chat model with random weights."""
    make, words, template, end, then = request.param
    tokenizer = make(**words)
    tokenizer.chat_template = template
    makers.make_model(tmp_path / "model", "llama", tokenizer, eos_token_id=tokenizer.eos_token_id)
    if then:
        numbers = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": numbers}))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    return SimpleNamespace(folder=tmp_path, tokenizer=loaded, template=template, end=loaded.convert_tokens_to_ids(end))


def test_a_chat_model_is_trained_in_its_own_template_and_its_end_is_learned(chat):
    tokenizer = with_template(chat.tokenizer)
    assert tokenizer.chat_template == chat.template
    for row, (ids, labels) in zip(ROWS, trained_on(chat.folder, tokenizer, list(map(to_chat, ROWS))), strict=True):
        said = tokenizer.decode(learned(ids, labels))
        assert said.startswith(row["output"] + tokenizer.decode([chat.end]))
        assert tokenizer.decode(ids).count("Name the capital.\n\nFrance") == (row is ROWS[0])
        special = [number for number in learned(ids, labels) if number in tokenizer.added_tokens_decoder]
        assert special == [chat.end], "no other token is learned as an end"


def test_the_trained_end_is_where_generation_stops_and_what_is_asked_are_the_tokens_of_training(chat, monkeypatch):
    tokenizer, asked = with_template(chat.tokenizer), []
    model = AutoModelForCausalLM.from_pretrained(chat.folder / "model").eval()

    def generate(input_ids, attention_mask, eos_token_id, **words):
        asked.append((input_ids[0][attention_mask[0].bool()].tolist(), eos_token_id))
        return torch.cat([input_ids, torch.full((len(input_ids), 1), chat.end)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    for row, (ids, labels) in zip(ROWS, trained_on(chat.folder, tokenizer, list(map(to_chat, ROWS))), strict=True):
        assert answer(model, tokenizer, [to_chat(row)["prompt"]]) == [""]
        prompt, stops = asked.pop()
        assert prompt == ids[: len(prompt)] == ids[: labels.count(-100)]
        assert chat.end in stops
        begins, whole = scores._tokens(tokenizer, [to_chat(row)])
        assert (begins, whole) == ([len(prompt)], [ids])
    assert chat.end in ends_of_answers(tokenizer)


def test_evaluation_asks_a_chat_model_in_its_own_template_and_leaves_the_tokenizer_as_it_was(chat, monkeypatch):
    model, texts = AutoModelForCausalLM.from_pretrained(chat.folder / "model").eval(), []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **w: texts.append(chat.tokenizer.decode(w["input_ids"][1])) or generate(**w)
    )
    scored = scores.evaluate(model, chat.tokenizer, Dataset.from_list(ROWS), max_new_tokens=2)
    assert scored.loss > 0
    own = chat.tokenizer.apply_chat_template(to_chat(ROWS[1])["prompt"], tokenize=False, add_generation_prompt=True)
    assert texts[0].endswith(own)
    assert chat.tokenizer.chat_template == chat.template


def test_a_base_model_that_carries_its_chat_models_template_gets_alpacas(tmp_path):
    tokenizer = makers.of_qwen2(eos_token="<|endoftext|>")  # as Qwen2.5's base models
    tokenizer.chat_template = QWEN25
    assert asked(with_template(tokenizer)) == alpaca_prompt("Name the capital.", "France")


def asked(tokenizer) -> str:
    return tokenizer.apply_chat_template(to_chat(ROWS[0])["prompt"], tokenize=False, add_generation_prompt=True)


def test_a_base_model_gets_the_template_of_choice_and_it_ends_with_eos(tmp_path, bundled):
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}[{{ m.content }}{{ ']' if m.role == 'user' else eos_token }}{% endfor %}"
    )
    for template, text in (
        ("alpaca", "<s>" + alpaca_prompt("Name the capital.", "France")),
        ("question", "<s>Name the capital. France\nAnswer:\n"),
        (str(tmp_path / "mine.jinja"), "[Name the capital.\n\nFrance]"),
    ):
        assert asked(with_template(bundled, template)) == text
        assert ends_of_answers(bundled) == [bundled.eos_token_id]
        assert asked(with_template(bundled)) == text, "what was chosen stays"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "{% for m in messages %}{{ m.content }}\n{% endfor %}",
            "does not end an answer with </s>.*write {{ eos_token }} behind",
        ),
        ("{% for m in messages %}{{ m.content }}", "the chat template cannot be used"),
        ("{{ raise_exception('no') }}", "the chat template cannot be used"),
        (None, 'is no readable file: name a file with a Jinja template, or "auto", "alpaca", "question"'),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(tmp_path, bundled, text, line):
    if text is not None:
        (tmp_path / "mine.jinja").write_text(text)
    with pytest.raises(DataError, match=line) as error:
        with_template(bundled, str(tmp_path / "mine.jinja"))
    assert str(error.value).isprintable()


def test_the_template_is_kept_with_the_adapter_and_read_from_there(tmp_path, bundled):
    with_template(bundled, "question").save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "chat_template.jinja").is_file()
    fresh = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    assert with_template(fresh, adapter=tmp_path / "adapter").chat_template == bundled.chat_template
    (tmp_path / "adapter" / "chat_template.jinja").unlink()
    assert asked(with_template(fresh, adapter=tmp_path / "adapter")) == "<s>" + alpaca_prompt(
        "Name the capital.", "France"
    )


def test_a_short_training_keeps_the_template_with_its_adapter(tmp_path):
    from helpers.machine import detect
    from helpers.quick import side_run

    found = side_run(SimpleNamespace(machine=detect(), folder=tmp_path), "one", rows=4, steps=1, batch_size=2)
    kept = AutoTokenizer.from_pretrained(found["folder"])
    assert asked(kept) == "<s>" + alpaca_prompt("Name the capital.", "France")


# --- conversations ------------------------------------------------------------------------------------------------

TALK = ["be brief", ("user", "Hello"), ("assistant", "Good day"), ("user", "Who?"), ("assistant", "Nobody")]
TURNS = [{"role": role, "content": text} for role, text in TALK[1:]]


def test_of_several_turns_the_last_answer_is_learned_and_the_others_are_turns_of_the_prompt(chat, tmp_path):
    from helpers.data import load_rows

    (tmp_path / "talk.json").write_text(json.dumps([{"messages": [{"role": "system", "content": TALK[0]}, *TURNS]}]))
    rows = load_rows(str(tmp_path / "talk.json")).rows
    tokenizer = with_template(chat.tokenizer)
    ((ids, labels),) = trained_on(chat.folder, tokenizer, list(map(to_chat, rows)))
    assert tokenizer.decode(learned(ids, labels)).startswith("Nobody" + tokenizer.decode([chat.end]))
    assert "Good day" not in tokenizer.decode(learned(ids, labels))
    first = TURNS[0] | {"content": "be brief\n\nHello"}
    assert ids == tokenizer.apply_chat_template([first, *TURNS[1:]])["input_ids"]


def test_where_a_template_has_marks_all_answers_are_learned_and_where_not_each_answer_is_a_row(chat):
    tokenizer, end = with_template(chat.tokenizer), chat.tokenizer.decode([chat.end])
    if chat.template == makers.CHATML:  # for the others TRL has a template with marks
        with pytest.raises(ValueError, match="template"):
            trained_on(chat.folder, tokenizer, [{"messages": TURNS}], assistant_only_loss=True)
    else:
        ((ids, labels),) = trained_on(chat.folder, tokenizer, [{"messages": TURNS}], assistant_only_loss=True)
        said = tokenizer.decode(learned(ids, labels))
        assert "Good day" + end in said
        assert "Nobody" + end in said
        assert "Who" not in said
    rows = [{"prompt": TURNS[:i], "completion": TURNS[i : i + 1]} for i in (1, 3)]
    said = [tokenizer.decode(learned(*row)) for row in trained_on(chat.folder, tokenizer, rows)]
    assert [text.strip() for text in said] == ["Good day" + end, "Nobody" + end]


# --- the real one -------------------------------------------------------------------------------------------------


def test_the_real_chat_model_is_asked_and_scored_in_chatml(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    own = tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    assert with_template(tokenizer).chat_template == own
    row = {"instruction": "What is the capital of France?", "input": "", "output": "The capital of France is Paris."}
    scored = scores.evaluate(model, tokenizer, Dataset.from_list([row]), max_new_tokens=24)
    assert scored.answers == (row["output"],)
    assert scored.loss < 1
    # In another template it knows as much, and does not know where to stop.
    in_alpacas = scores.evaluate(model, with_template(tokenizer, "alpaca"), Dataset.from_list([row]), max_new_tokens=24)
    assert len(in_alpacas.answers[0]) > 2 * len(row["output"])
