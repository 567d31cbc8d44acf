"""Lesson 04: the cache has the predicted bytes, the early check notices each fault, and no claim holds by chance alone."""

import ast
import copy
import json
import math
import random
import re
import textwrap
import types

import pytest

from helpers.commands.run import run_lesson
from helpers.course import disk as course
from helpers.data import alpaca_prompt, load_instructions, to_chat, with_template
from helpers.evaluation import evaluate, mcnemar, prompt_texts, wilson_interval
from helpers.lesson import check
from helpers.memory import CannotPredict, kv_cache_bytes, shape_of
from helpers.models import BUNDLED_MODEL, PRESETS
from tests.cells import lesson_cell, solutions, stored
from tests.lessons.test_lesson00 import REFUSE, run_script

torch = pytest.importorskip("torch")
LESSON = course.find_lesson("04")


# The KV cache.

TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "max_position_embeddings": 64}  # fmt: skip
ARCHITECTURES = {
    "llama": {},
    "llama, as many key-value heads": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 8},
    "mistral, no window": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"sliding_window": 8, "head_dim": 8},
    "gemma2": {"sliding_window": 8},
}


@pytest.mark.parametrize("tokens", [5, 8, 20])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_real_cache_has_the_predicted_bytes(name, tokens):
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = name.split(",")[0]
    config = AutoConfig.for_model(kind, **{**TINY, **ARCHITECTURES[name]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        out = model(torch.ones(2, tokens - 2, dtype=torch.long), use_cache=True)
        for _ in range(2):  # decoding grows it as prefill does
            out = model(torch.ones(2, 1, dtype=torch.long), cache=out.cache, use_cache=True)
    held = [t for layer in out.cache.layers for t in (layer.keys, layer.values)]
    assert sum(t.numel() * t.element_size() for t in held) == kv_cache_bytes(config, tokens, 2, "float32")


def test_the_cache_of_the_presets_grows_with_rows_and_tokens_but_not_past_a_window():
    for preset in PRESETS.values():
        shape = shape_of(preset.shape)
        one = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
        assert kv_cache_bytes(preset.shape, 1) == one
        assert kv_cache_bytes(preset.shape, 100, 8) == 800 * one
        assert kv_cache_bytes(preset.shape, 100, dtype="float32") == 2 * kv_cache_bytes(preset.shape, 100)
        kept = 4095 if shape.window else 20_000
        assert kv_cache_bytes(preset.shape, 20_000) == kept * one
    assert kv_cache_bytes("llama-3.1-8b", 1) == 131_072  # exercise 1's answer


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 10, "batch": -1}, "batch is -1"),
        ({"tokens": 2.5}, "tokens is 2.5"),
        ({"tokens": 10, "dtype": "int8"}, "allowed: float32"),
    ],
)
def test_an_impossible_cache_gets_one_line(arguments, word):
    with pytest.raises(CannotPredict, match=word) as raised:
        kv_cache_bytes(PRESETS["qwen2.5-7b"].shape, **arguments)
    assert "\n" not in str(raised.value)


def test_a_window_on_some_layers_only_is_refused_where_it_is_not_described():
    with pytest.raises(CannotPredict, match="use_sliding_window"):
        kv_cache_bytes(PRESETS["qwen2.5-7b"].shape | {"use_sliding_window": True, "sliding_window": 4096}, 10)


# The cells to copy, as they stand in the lesson.

CELLS = course.to_notebook(LESSON).cells
COPIED = [cell.source for cell in CELLS if "copy" in cell.metadata.get("tags", [])]
PROSE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")


def test_pasted_where_the_course_is_not_they_load_talk_and_check(tmp_path):
    """The bundled model with an adapter of two steps, under the names that the lesson tells to write."""
    from helpers.machine import detect
    from helpers.models import resolve_model
    from helpers.quick import train_adapter

    rows = load_instructions("bundled")[0]["train"].select(range(8))
    train_adapter(resolve_model("bundled", detect()), detect(), rows, tmp_path / "my_adapter", steps=2, rank=4)
    assert (tmp_path / "my_adapter" / "chat_template.jinja").is_file(), "the template of the training lies beside it"
    (names,) = re.findall(r"^```python\n(base_name.*?)^```", PROSE, re.DOTALL | re.MULTILINE)
    own = f'base_name, place, dtype = {str(BUNDLED_MODEL)!r}, {{"": "cpu"}}, "float32"'
    asked = """
    import json
    talk = [{"role": "user", "content": "Name the sound of the pigeon."}]
    many = answer_batch([as_text(talk)] * 2, 4)
    print(json.dumps({"said": reply_to(talk, 4), "many": many, "faults": [
        row_faults(tokenizer, [(as_text(talk), "coo")], 96), stop_faults(model, tokenizer),
        answer_faults(model, tokenizer, [as_text(talk)])]}))
    """
    said = run_script("\n".join([REFUSE, names, own, *COPIED, textwrap.dedent(asked)]), tmp_path)
    assert said["said"]
    assert said["many"] == [said["said"]] * 2
    assert said["faults"] == [[], [], []]


@pytest.fixture(scope="module")
def checks():
    """The three checks that stand before a training, by name."""
    names = {}
    for cell in CELLS:
        if "early-check" in cell.metadata.get("tags", []):
            exec(cell.source, names)
    return types.SimpleNamespace(**names)


@pytest.fixture(scope="module")
def bundled_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def pairs():
    rows = load_instructions("bundled")[0]["train"].select(range(3))
    return [(alpaca_prompt(row["instruction"], row["input"]), row["output"]) for row in rows]


def all_faults(checks, model, tokenizer, pairs):
    return (
        checks.row_faults(tokenizer, pairs, 512)
        + checks.stop_faults(model, tokenizer)
        + checks.answer_faults(model, tokenizer, [prompt for prompt, _ in pairs])
    )


def test_the_cells_to_copy_are_numbered_and_name_nothing_of_the_course():
    assert [source.partition(":")[0] for source in COPIED] == [f"# Step {n}" for n in range(1, len(COPIED) + 1)]
    assert not re.search(r"helpers|\brun\.|settings|verdict|record\(|COURSE", "\n".join(COPIED))


def test_the_checks_find_nothing_wrong_with_the_bundled_model(checks, bundled_model, pairs):
    assert all_faults(checks, *bundled_model, pairs) == []


def test_a_tokenizer_without_a_padding_token_is_no_fault(checks, bundled_model, pairs):
    """Llama's and Mistral's have none, and TRL takes eos in its place."""
    model, tokenizer = copy.deepcopy(bundled_model)
    tokenizer.pad_token = None
    assert all_faults(checks, model, tokenizer, pairs) == []


def test_a_model_that_may_stop_at_several_tokens_is_no_fault(checks, bundled_model, pairs):
    model, tokenizer = copy.deepcopy(bundled_model)
    model.generation_config.eos_token_id = [0, tokenizer.eos_token_id]
    assert all_faults(checks, model, tokenizer, pairs) == []


def no_eos(model, tokenizer, pairs):
    tokenizer.eos_token = None


def another_eos(model, tokenizer, pairs):
    tokenizer.eos_token = "<pad>"


def more_tokens_than_embeddings(model, tokenizer, pairs):
    tokenizer.add_tokens(["<new>"])


def a_space_after_the_template(model, tokenizer, pairs):
    pairs[:] = [(prompt + " ", completion) for prompt, completion in pairs]


def the_first_token_twice(model, tokenizer, pairs):
    pairs[:] = [("<s>" + prompt, completion) for prompt, completion in pairs]


def a_row_too_long(model, tokenizer, pairs):
    pairs[0] = (pairs[0][0] * 20, pairs[0][1])


def a_weight_that_is_not_a_number(model, tokenizer, pairs):
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")


def a_model_that_only_ends(model, tokenizer, pairs):
    model.generation_config.forced_eos_token_id = None
    model.generation_config.suppress_tokens = [i for i in range(model.config.vocab_size) if i != tokenizer.eos_token_id]


FAULTS = [
    (no_eos, "no end-of-sequence token"),
    (another_eos, "stops at token 2, training ends answers with 0"),
    (more_tokens_than_embeddings, "more tokens than"),
    (a_space_after_the_template, "merge into other tokens"),
    (the_first_token_twice, "the first one twice"),
    (a_row_too_long, "training cuts at 512"),
    (a_weight_that_is_not_a_number, "not finite"),
    (a_model_that_only_ends, "no text at all"),
]


@pytest.mark.parametrize(("plant", "word"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_the_checks_notice(plant, word, checks, bundled_model, pairs):
    model, tokenizer, pairs = copy.deepcopy((*bundled_model, pairs))
    plant(model, tokenizer, pairs)
    found = all_faults(checks, model, tokenizer, pairs)
    assert any(word in line for line in found)
    assert all(word in line or plant is a_weight_that_is_not_a_number for line in found), "and nothing else"


# A conversation as text.

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"}]


def as_text_of(tokenizer):
    names = {"tokenizer": tokenizer}
    exec(next(source for source in COPIED if source.startswith("# Step 2:")), names)
    return names["as_text"], names["has_own"]


def test_a_tokenizer_without_a_template_gets_the_form_of_the_training(bundled_model):
    as_text, has_own = as_text_of(copy.deepcopy(bundled_model[1]))
    assert not has_own
    assert as_text(TALK[:1]) == alpaca_prompt("One?")
    assert as_text(TALK) == alpaca_prompt("One?") + "1</s>" + alpaca_prompt("Two?")


ROWS = {
    "a question": {"instruction": "One?", "input": "", "output": "1"},
    "a question with an input": {"instruction": "Two?", "input": "a month", "output": "2"},
    "an input of two lines": {"instruction": "Three?", "input": "a\n\nb", "output": "3"},
    "a plain text": {"instruction": "", "input": "", "output": "4"},
}
CHATS = {name: to_chat(row)["prompt"] for name, row in ROWS.items()} | {
    "two turns": to_chat(ROWS["a question with an input"])["prompt"] + [{"role": "assistant", "content": "2"}, TALK[0]],
    "a system message": [{"role": "system", "content": "Be short."}, TALK[0]],
}


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_the_form_for_an_adapter_without_a_template_is_that_of_the_training(chat, bundled_model):
    tokenizer = copy.deepcopy(bundled_model[1])
    as_text, _ = as_text_of(tokenizer)
    trained = as_text_of(with_template(copy.deepcopy(bundled_model[1])))[0]
    assert as_text(chat) == trained(chat)
    assert as_text(chat, answer_next=False) == trained(chat, answer_next=False)


def test_both_forms_leave_out_a_system_message_as_the_lesson_says(bundled_model):
    assert "They leave out a system message without a word" in PROSE
    for tokenizer in (copy.deepcopy(bundled_model[1]), with_template(copy.deepcopy(bundled_model[1]))):
        as_text, _ = as_text_of(tokenizer)
        assert as_text(CHATS["a system message"]) == as_text(CHATS["a system message"][1:]) == alpaca_prompt("One?")


@pytest.mark.parametrize("template", [None, TEMPLATE, "the course's"])
def test_the_tokenizer_keeps_its_template_so_that_scores_are_asked_in_it(template, bundled_model):
    tokenizer = copy.deepcopy(bundled_model[1])
    tokenizer.chat_template = with_template(tokenizer).chat_template if template == "the course's" else template
    before, texts = tokenizer.chat_template, prompt_texts(tokenizer, list(ROWS.values()))
    as_text, _ = as_text_of(tokenizer)
    assert [as_text(to_chat(row)["prompt"]) for row in ROWS.values()] == texts
    assert tokenizer.chat_template == before
    assert prompt_texts(tokenizer, list(ROWS.values())) == texts


def test_the_messages_of_the_conversation_are_those_of_the_training(bundled_model, capsys):
    tokenizer = with_template(copy.deepcopy(bundled_model[1]))
    asked = load_instructions("bundled")[0]["heldout"].select(range(3))
    seen = []
    names = {"to_chat": to_chat, "tokenizer": tokenizer, "asked": asked, "as_text": as_text_of(tokenizer)[0]}
    names["reply_to"] = lambda messages: seen.append(names["as_text"](messages)) or "coo"
    (talks,) = [
        cell.source for cell in CELLS if cell.cell_type == "code" and "in the conversation so far" in cell.source
    ]
    exec(talks, names)
    assert any(row["input"] for row in asked)
    assert [text.rpartition("</s>")[2] for text in seen] == prompt_texts(tokenizer, asked)


def test_the_words_that_open_the_next_answer_are_not_counted(bundled_model):
    tokenizer = copy.deepcopy(bundled_model[1])
    tokenizer.chat_template = TEMPLATE
    as_text, _ = as_text_of(tokenizer)
    assert as_text(TALK[:2], answer_next=False) == "[user]One?</s>[assistant]1</s>"
    assert as_text(TALK[:2]).endswith("1</s>[assistant]")


@pytest.mark.parametrize("begins", ["", "<s>"])
def test_a_conversation_in_which_nothing_is_asked_is_answered(begins, bundled_model):
    """A tokenizer that begins no text with a token, as Qwen's, would hand over no token at all."""
    given = []

    def tokenizer(text, return_tensors):
        given.append(text)
        return types.SimpleNamespace(to=lambda device: {"input_ids": torch.zeros(1, 2)})

    tokenizer.pad_token_id, tokenizer.eos_token, tokenizer.decode = 0, "</s>", lambda ids, **how: ""
    model = types.SimpleNamespace(device="cpu", generate=lambda **given: torch.zeros(1, 3))
    names = {"torch": torch, "tokenizer": tokenizer, "model": model, "TextStreamer": lambda *given, **how: None}
    names["as_text"] = lambda messages: begins
    exec(next(source for source in COPIED if source.startswith("# Step 3:")), names)
    names["reply_to"]([])
    assert given == [begins or "</s>"]


def test_a_template_of_its_own_is_used_and_what_begins_every_text_stands_there_once(bundled_model):
    tokenizer = copy.deepcopy(bundled_model[1])
    tokenizer.chat_template = TEMPLATE
    as_text, has_own = as_text_of(tokenizer)
    assert has_own
    assert as_text(TALK) == "[user]One?</s>[assistant]1</s>[user]Two?</s>[assistant]"
    ids = tokenizer(as_text(TALK))["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 == ids[0]


# Scores.


def test_scores_follow_the_settings_of_the_run():
    from contextlib import nullcontext

    asked, names = [], {"tokenizer": None, "model": types.SimpleNamespace(disable_adapter=nullcontext)}
    names["run"] = types.SimpleNamespace(
        rows={"heldout": load_instructions("bundled")[0]["heldout"]}, model=types.SimpleNamespace(bundled=False)
    )
    names["settings"] = types.SimpleNamespace(max_length=77, max_new_tokens=5, eval_rows=3)
    names["evaluate"] = lambda model, tokenizer, rows, **how: asked.append((len(rows), how))
    exec(lesson_cell("04", "score").source, names)
    assert asked == [(3, {"max_length": 77, "max_new_tokens": 5, "batch_size": 8})] * 2
    assert LESSON.read_text(encoding="utf-8").count("longest = prompts[:16], settings.max_new_tokens") == 1


def test_the_paired_test_of_the_lesson_is_the_one_of_the_course(statistics):
    generator = random.Random(0)
    for rows in (4, 11, 40):
        first, second = ([generator.random() < share for _ in range(rows)] for share in (0.9, 0.6))
        n, ones, twos, only_first, only_second, overlap, p = statistics.compared(first, second)
        assert (n, ones, twos) == (rows, sum(first), sum(second))
        assert p == pytest.approx(mcnemar(first, second))
        assert only_first - only_second == ones - twos
        spans = wilson_interval(ones, rows), wilson_interval(twos, rows)
        assert overlap is (max(low for low, _ in spans) <= min(high for _, high in spans))
    assert [n for n in range(3, 9) if statistics.mcnemar(n, 0) < 0.05] == [6, 7, 8]  # as the lesson says


def test_the_shown_notebook_has_two_invented_pairs_of_which_the_test_parts_one():
    (text,) = [
        str(out["data"]["text/plain"])
        for cell in stored("04").cells
        for out in cell.get("outputs", [])
        if cell.source.startswith("def compared")
    ]
    same, other = (line.split() for line in text.splitlines() if line.startswith("invented"))
    assert same[-2:-1] == other[-2:-1] == ["True"]
    assert float(same[-1]) < 0.05 < float(other[-1])


# What the prose says of the numbers that the notebook shows.


def output(words: str) -> str:
    """What the one code cell with these words printed and showed as text in the stored notebook."""
    (cell,) = [cell for cell in stored("04").cells if cell.cell_type == "code" and words in cell.source]
    return "\n".join(str(out.get("text", "") or out["data"]["text/plain"]) for out in cell.outputs)


def line(text: str, begins: str) -> list[str]:
    (found,) = [one for one in text.splitlines() if one.startswith(begins)]
    return found.removeprefix(begins).split()


@pytest.fixture(scope="module")
def statistics():
    """The functions of section 7 and of "Why Wilson's interval?", and what they import."""
    names = {}
    for cell in CELLS:
        if re.search("^def (wilson|usual_interval|holds_the_truth|mcnemar|compared)", cell.source, re.MULTILINE):
            kept = [n for n in ast.parse(cell.source).body if isinstance(n, (ast.FunctionDef, ast.ImportFrom))]
            exec(compile(ast.Module(kept, []), "lesson 04", "exec"), names)
    return types.SimpleNamespace(**names)


@pytest.fixture(scope="module")
def base_and_rows():
    """The base in 4 bits, as the notebook loads it, the tokenizer with the template of lesson 03, and the rows to score."""
    from helpers.machine import detect
    from helpers.models import resolve_model
    from helpers.quick import load_4bit

    base, tokenizer = load_4bit(resolve_model("bundled", detect()), detect())
    return base.eval(), with_template(tokenizer), load_instructions("bundled")[0]["heldout"]


def test_the_stored_scores_are_those_in_the_form_of_the_training(base_and_rows):
    base, tokenizer, heldout = base_and_rows
    loss, share = line(output("held-out loss"), "base")[:2]
    score = evaluate(base, tokenizer, heldout.select(range(128)), max_length=96)
    assert float(loss) == pytest.approx(score.loss, abs=0.1), "another form changes it by more"
    assert share == f"{score.exact_match:.1%}"
    assert score.loss > math.log(3072), "worse than a blind guess"


def test_behind_an_answer_the_base_is_nearly_sure_of_a_newline(base_and_rows):
    base, tokenizer, heldout = base_and_rows
    rows, newline = heldout.select(range(32)), tokenizer.convert_tokens_to_ids("Ċ")
    ends, before = [], []
    for text, row in zip(prompt_texts(tokenizer, rows), rows, strict=True):
        with torch.no_grad():
            behind = base(tokenizer(text + row["output"], return_tensors="pt")["input_ids"]).logits[0, -1].softmax(-1)
            headed = base(tokenizer(text[:-1], return_tensors="pt")["input_ids"]).logits[0, -1].softmax(-1)
        ends.append((behind[newline].item(), behind[tokenizer.eos_token_id].item()))
        before.append(headed[newline].item())
    sure = sorted(chance for chance, _ in ends)
    assert sure[len(sure) // 2] > 0.9
    assert sum(-math.log(chance) for _, chance in ends) / len(ends) > math.log(3072)
    assert min(before) > 0.9, "and where the last newline of the prompt is missing it begins a new line, too"


def test_the_base_knows_the_answers_in_the_form_of_a_quiz_page():
    said = output("stop_strings")
    assert "right on a quiz page: 32 of 32" in said
    assert "right in the form of the training: 0 of 32" in said
    assert (
        "Asked in that form it answers 32 of these 32 questions, and in the form above\n# none".replace("# ", "")
        in PROSE
    )


def test_the_forms_cost_what_the_prose_says():
    table = output("def compared")
    right = {
        name: line(table, f"as in training, {name}") for name in re.findall("^as in training, (.*?)  ", table, re.M)
    }
    assert len(right) == 6
    none = {name for name, numbers in right.items() if numbers[2] == "0"}
    assert none == {"no newline at the end", "two newlines at the end", "ChatML, a chat format"}
    assert 0 < int(right["a space at the end"][2]) < 16, "most of them"
    assert right["no header"][2] == right["no header"][1], "nothing"
    differ = {name for name, numbers in right.items() if float(numbers[-1]) < 0.05 / 6}
    assert differ == none | {"a space at the end"}
    assert "four forms differ" in PROSE
    assert right["the question alone"][-1] == "0.016"
    assert f"0.05 / 6 = {0.05 / 6:.3f}" in PROSE
    for form in ("no newline at the end", "two newlines at the end"):
        *_, of_base, of_tuned, answered = line(output("rows.append((name, last_tokens"), form)
        assert (of_base, of_tuned, answered) == ("Ċ", "</s>", "''"), "as the prose says"
    chat = line(output("rows.append((name, last_tokens"), "ChatML, a chat format")
    assert "Ċ What What 'What is" in " ".join(chat), "on as the base, with another quiz question"


def test_the_intervals_hold_the_truth_as_often_as_the_prose_says(statistics):
    holds, usual, wilson = statistics.holds_the_truth, statistics.usual_interval, statistics.wilson
    few = [holds(wilson, 32, truth) for truth in (0.99, 0.995)]
    assert "holds 99% in {:.1%} of the cases and 99.5% in only {:.1%}".format(*few) in PROSE
    many = holds(usual, 512, 0.999), holds(wilson, 512, 0.999)
    assert "99.9% the usual formula holds it in {:.0%} of the cases and Wilson's in {:.0%}".format(*many) in PROSE
    assert abs(holds(usual, 512) - holds(wilson, 512)) < 0.02, "for 98% the two hardly differ"


def test_the_exact_test_is_as_cautious_as_the_prose_says(statistics):
    def below(n):  # how often equally good models come out below 0.05, where they differ in n rows
        return sum(math.comb(n, k) for k in range(n + 1) if statistics.mcnemar(k, n - k) < 0.05) / 2**n

    assert max(map(below, range(1, 200))) < 0.05, "at most one of twenty"
    assert f"where six rows differ, it is {below(6):.1%} of the pairs, and where eight differ, {below(8):.1%}" in PROSE


def test_in_the_batch_of_sixteen_the_third_prompt_is_padded(base_and_rows):
    _, tokenizer, heldout = base_and_rows
    lengths = [len(tokenizer(text)["input_ids"]) for text in prompt_texts(tokenizer, heldout.select(range(16)))]
    assert lengths[2] == max(lengths[:4])
    assert lengths[2] < max(lengths)


def test_forty_tokens_come_in_forty_one_pieces():
    assert output("between =").startswith("41 pieces")


# Serving.


def test_the_request_to_a_server_is_valid_and_asks_in_the_form_of_the_training():
    (body,) = re.findall(r"curl .*-d '(\{.*?\})'$", PROSE, re.DOTALL | re.MULTILINE)
    asked = json.loads(body)
    assert asked == {"model": "mine", "temperature": 0, "max_tokens": 64, "prompt": asked["prompt"]}
    assert asked["prompt"] == alpaca_prompt("Name the sound of the pigeon.")
    assert "--lora-modules mine=" in PROSE


def test_an_adapter_s_share_of_the_4_bit_layers_falls_with_the_width():
    shown = output("adapter of rank 16, of the 4-bit layers")
    shares = {shape_of(PRESETS[name].shape).hidden: float(line(shown, name)[1].rstrip("%")) for name in
              ("qwen2.5-0.5b", "qwen2.5-7b", "mistral-7b", "llama-3.1-8b")}  # fmt: skip
    assert [shares[width] for width in sorted(shares)] == sorted(shares.values(), reverse=True)


# Timings and the drawing.


def test_each_size_gets_the_shortest_of_its_times(monkeypatch):
    from helpers.evaluation import decode_times, speed

    taken = iter([(3.0, [0.5, 0.2]), (9.0, [1.0, 1.0]), (2.0, [0.4, 0.3]), (8.0, [0.9, 2.0])])
    monkeypatch.setattr(speed, "_once", lambda model, ids, new: next(taken))
    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=9), device="cpu")
    assert decode_times(model, [(1, 4), (2, 4)], turns=2) == {(1, 4): (2.0, 0.2), (2, 4): (8.0, 0.9)}


def test_times_are_those_of_one_prefill_and_of_each_step_after_it(bundled_model):
    from helpers.evaluation import decode_times

    calls, model = [], bundled_model[0]
    hook = model.register_forward_pre_hook(
        lambda module, words, given: calls.append(tuple(words[0].shape)), with_kwargs=True
    )
    times = decode_times(model, [(2, 8)], turns=1, new_tokens=3)
    hook.remove()
    assert calls == [(2, 8), (2, 1), (2, 1)]
    assert all(seconds > 0 for seconds in times[2, 8])


def test_the_drawing_feeds_the_prompt_once_and_then_one_token_a_step():
    from helpers.plots import diagrams

    figure = diagrams.prefill_and_decode(["The", " capital"], [" Li", "ma", "\n"], "a title")
    colours = [patch.get_facecolor()[:3] for patch in figure.axes[0].patches]
    from matplotlib.colors import to_rgb

    fed, kept, weights = (
        sum(colour == to_rgb(one) for colour in colours) for one in (diagrams.PASSING, diagrams.PALE, diagrams.FROZEN)
    )
    assert (fed, kept, weights) == (2 + 1 + 1, 0 + 2 + 3, 3)
    assert [t.get_text() for t in figure.axes[0].texts if t.get_text().startswith("→")] == ["→ Li", "→ ma", "→ ↵"]
    under_kept = [span.get_xdata()[1] for span in figure.axes[0].lines[::2]]
    assert under_kept == pytest.approx([2 - 0.05, 3 - 0.05]), "what is kept is read in every step but the first"
    assert [t.get_text() for t in figure.axes[0].texts].count("cache, read by attention") == 1


def test_the_printed_gain_of_sixteen_rows_is_the_one_in_the_table():
    shown = output("times = decode_times")
    (printed,) = re.findall(r"16 rows make ([0-9.]+) times", shown)
    rows = [one.split() for one in shown.splitlines() if re.match(r" *\d+ +\d+ ", one)]
    assert rows[0][0] == "1"
    assert rows[0][3:] == ["1.0", "1.0"], "the unit"
    assert [row[-1] for row in rows if row[0] == "16"] == [printed]


def test_the_figure_of_temperatures_has_the_greedy_answers_as_a_line():
    from helpers.plots import curves

    (ax,) = curves({"drawn": ((1, 2), (90, 40))}, "a title", "temperature", "right", line=95, line_label="greedy").axes
    drawn, greedy = ax.lines
    assert list(drawn.get_ydata()) == [90, 40]
    assert list(greedy.get_ydata()) == [95, 95]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["drawn", "greedy"]


# Exercise 4, which needs a running model.


def next_token_logits(side="right", position=None, finish=lambda logits: logits):
    def function(model, tokenizer, prompts):
        tokenizer.padding_side = side
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**batch).logits
        last = batch["attention_mask"].sum(dim=1) - 1 if position is None else torch.full((len(prompts),), position)
        return finish(logits[torch.arange(len(prompts)), last])

    return function


def test_the_printed_solution_of_exercise_4_is_right(bundled_model, capsys):
    model, tokenizer = bundled_model
    exec(solutions()["04.4"], {"check": check, "torch": torch, "model": model, "tokenizer": tokenizer})
    assert capsys.readouterr().out == "Exercise 04.4: right.\n"


def by_the_saved_side(model, tokenizer, prompts):
    """The mistake that the exercise is about: whatever side the tokenizer pads on, the last place is read."""
    return model(**tokenizer(prompts, padding=True, return_tensors="pt")).logits[:, -1]


def one_by_one(model, tokenizer, prompts):
    return torch.cat([by_the_saved_side(model, tokenizer, [prompt]) for prompt in prompts])


def by_the_ids_alone(model, tokenizer, prompts):
    """A right way without a mask: no token looks at what stands behind it."""
    ids = tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]
    last = (ids != tokenizer.pad_token_id).cumsum(dim=1).argmax(dim=1)
    return torch.stack([row[place] for row, place in zip(model(ids).logits, last, strict=True)])


def by_the_lengths(model, tokenizer, prompts):
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    logits = model(**tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt")).logits
    return torch.stack([row[length - 1] for row, length in zip(logits, lengths, strict=True)])


@pytest.mark.parametrize("function", [by_the_ids_alone, by_the_lengths])
def test_exercise_4_takes_other_ways_to_find_the_last_token(function, bundled_model, capsys):
    check("04.4", (function, *bundled_model))
    assert capsys.readouterr().out == "Exercise 04.4: right.\n"


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (next_token_logits(position=-1), "behind the padding"),
        (by_the_saved_side, "behind the padding"),
        (next_token_logits("left", -1), "padded on the left"),
        (one_by_one, "called 3 times"),
        (next_token_logits(position=0), "first token"),
        (next_token_logits(finish=lambda logits: logits.softmax(-1)), "probabilities"),
        (next_token_logits(finish=lambda logits: logits[0]), "one row of logits for each prompt"),
        (next_token_logits(finish=lambda logits: logits.flip(0)), "each prompt alone"),
        (lambda model, tokenizer, prompts: prompts, "returns list"),
        (lambda model, tokenizer, prompts: torch.zeros(3, 3072), "called 0 times"),
        (lambda model, tokenizer: 0, "could not be checked"),
    ],
)
def test_exercise_4_names_the_mistake(function, word, bundled_model, capsys):
    model, tokenizer = bundled_model
    tokenizer.padding_side = "left"
    check("04.4", (function, model, tokenizer))
    line = capsys.readouterr().out
    assert line.startswith("Exercise 04.4: not yet:")
    assert word in line
    assert tokenizer.padding_side == "left", "a check leaves the tokenizer as it was"


@pytest.mark.parametrize("answer", [None, "", 3, {}, (1, 2, 3), lambda: 1], ids=lambda a: type(a).__name__)
def test_exercise_4_takes_no_answer_of_another_kind(answer, capsys):
    check("04.4", answer)
    assert "hand over three things" in capsys.readouterr().out


# What the lesson claims.


def claims() -> list[str]:
    """The claims of the lesson's verdicts that are plain text."""
    found = []
    for node in ast.walk(ast.parse(LESSON.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "verdict":
            found += [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
    return found


def test_no_claim_is_skipped_in_the_notebook_that_is_shown():
    """Claims that need a trained adapter or a CPU stand behind conditions; in the notebook all of these hold."""
    printed = "\n".join(out.get("text", "") for cell in stored("04").cells for out in cell.get("outputs", []))
    assert 10 <= len(claims()) <= 15, "the lesson states few things, and each could have come out otherwise"
    assert [claim for claim in claims() if f"OK: {claim}\n" not in printed] == []


def verdicts(folder) -> dict:
    record = json.loads((folder / f"{LESSON.stem}.json").read_text())
    return record | {"held": {v["claim"] for v in record["verdicts"] if v["holds"]}}


def test_the_lesson_holds_in_fp4_on_few_rows_and_trains_the_adapter_it_lacks(tmp_path):
    values = {"model_id": "bundled", "quant_type": "fp4", "double_quant": False, "eval_rows": 32, "seed": 1}
    result = run_lesson(LESSON, tmp_path, values)
    assert result["error"] is None
    record = verdicts(tmp_path)
    assert record["adapter_made_now"]
    assert record["rows"] == 32
    assert record["exact_match_tuned"] > record["exact_match_base"]
    assert record["heldout_loss_tuned"] < record["heldout_loss_base"]
    assert set(claims()) <= record["held"]


@pytest.fixture(scope="module")
def another_model(tmp_path_factory):
    """A folder with a model that knows nothing: Qwen2's architecture, random weights, the bundled tokenizer, a chat template."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "random-qwen2"
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    tokenizer.chat_template = TEMPLATE
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**TINY | ends | {"vocab_size": 3072, "hidden_size": 64, "head_dim": 16}))
    model.generation_config.update(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_lesson_holds_for_a_chat_model_a_weak_adapter_and_two_rows_of_ones_own(tmp_path, another_model):
    """It answers nothing right, so nothing is claimed of answers; it chats in its own template, and claims about bytes hold."""
    from helpers.machine import hardware as machine
    from helpers.models import resolve_model
    from helpers.quick import train_adapter

    here, rows = machine.detect(), load_instructions("bundled")[0]["train"]
    weak, own, run = tmp_path / "weak", tmp_path / "own.csv", tmp_path / "run"
    train_adapter(resolve_model(str(another_model), here), here, rows.select(range(8)), weak, steps=2, rank=4)
    (weak / "chat_template.jinja").write_text(TEMPLATE.replace("[user]", "[you]"))
    lines = [f"{row['instruction']};{row['output']}" for row in rows.select(range(12))]
    own.write_text("\n".join(["Frage;Antwort", *lines]))
    run.mkdir()
    values = {"model_id": str(another_model), "adapter_dir": str(weak), "dataset_id": str(own), "max_new_tokens": 4}
    values |= {"columns": "prompt=Frage,completion=Antwort", "max_length": 64}
    assert run_lesson(LESSON, run, values)["error"] is None
    record = verdicts(run)
    assert not record["adapter_made_now"]
    assert record["rows"] == 2
    assert record["chat_template"] == "the tokenizer's"
    assert "the tuned model ends its answer by itself" not in record["held"]
    assert "switched off, the model is its base, bit for bit; switched on, it is not" in record["held"]
    assert "every real cache has the predicted size, to the byte" in record["held"]
