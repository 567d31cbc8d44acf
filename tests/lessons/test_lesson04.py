"""Lesson 04: the cache has the predicted bytes, the early check notices each fault, and no claim holds by chance alone."""

import ast
import copy
import json
import re
import textwrap
import types

import pytest

from helpers.commands.run import run_lesson
from helpers.course import disk as course
from helpers.data import alpaca_prompt, load_instructions
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


def test_pasted_where_the_course_is_not_they_load_talk_and_check(tmp_path):
    """The bundled model with an adapter of two steps, under the names that the lesson tells to write."""
    from helpers.machine import detect
    from helpers.models import resolve_model
    from helpers.quick import train_adapter

    rows = load_instructions("bundled")[0]["train"].select(range(8))
    train_adapter(resolve_model("bundled", detect()), detect(), rows, tmp_path / "my_adapter", steps=2, rank=4)
    prose = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    (names,) = re.findall(r"^```python\n(base_name.*?)^```", prose, re.DOTALL | re.MULTILINE)
    own = f'base_name, place, dtype = {str(BUNDLED_MODEL)!r}, {{"": "cpu"}}, "float32"'
    asked = """
    import json
    talk = [{"role": "user", "content": "Name the sound of the pigeon."}]
    print(json.dumps({"said": reply_to(talk, 4), "faults": [
        row_faults(tokenizer, [(as_text(talk), "coo")], 96), stop_faults(model, tokenizer),
        answer_faults(model, tokenizer, [as_text(talk)])]}))
    """
    said = run_script("\n".join([REFUSE, names, own, *COPIED, textwrap.dedent(asked)]), tmp_path)
    assert said["said"]
    assert said["faults"] == [[], [], []]


@pytest.fixture(scope="module")
def checks():
    """The three checks that stand before a training, by name."""
    names = {"torch": torch}
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
    assert LESSON.read_text(encoding="utf-8").count("max_new_tokens=settings.max_new_tokens") >= 3


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


def test_exercise_4_takes_padding_on_the_left_as_well(bundled_model, capsys):
    check("04.4", (next_token_logits("left", -1), *bundled_model))
    assert capsys.readouterr().out == "Exercise 04.4: right.\n"


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (next_token_logits(position=-1), "behind the padding"),
        (next_token_logits(position=0), "first token"),
        (next_token_logits(finish=lambda logits: logits.softmax(-1)), "probabilities"),
        (next_token_logits(finish=lambda logits: logits[0]), "one row of logits for each prompt"),
        (next_token_logits(finish=lambda logits: logits.flip(0)), "each prompt alone"),
        (lambda model, tokenizer, prompts: prompts, "returns list"),
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
    assert record["chat_template"] == "kept with the adapter"
    assert "the tuned model ends its answer by itself" not in record["held"]
    assert "switched off, the model is its base, bit for bit; switched on, it is not" in record["held"]
    assert "every real cache has the predicted size, to the byte" in record["held"]
