"""Lesson 04: the cache has the predicted bytes, the early check notices each fault, and no claim holds by chance alone."""

import ast
import contextlib
import copy
import json
import types

import pytest

from helpers.commands.run import run_lesson
from helpers.course import disk as course
from helpers.data import alpaca_prompt, load_instructions
from helpers.lesson import check
from helpers.memory import CannotPredict, kv_cache_bytes, shape_of
from helpers.models import BUNDLED_MODEL, PRESETS, bundled
from tests.cells import lesson_cell, solutions, stored

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


# The early check, as it stands in the lesson.


@pytest.fixture(scope="module")
def early_check():
    names = {}
    exec(lesson_cell("04", "early-check").source, names)
    return names["early_check"]


@pytest.fixture(scope="module")
def bundled_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def pairs():
    rows = load_instructions("bundled")[0]["train"].select(range(3))
    return [(alpaca_prompt(row["instruction"], row["input"]), row["output"]) for row in rows]


def test_the_early_check_needs_nothing_of_the_course():
    assert "helpers" not in lesson_cell("04", "early-check").source


def test_the_early_check_finds_nothing_wrong_with_the_bundled_model(early_check, bundled_model, pairs):
    assert early_check(*bundled_model, pairs) == []


def no_eos(model, tokenizer, pairs):
    tokenizer.eos_token = None


def another_eos(model, tokenizer, pairs):
    tokenizer.eos_token = "<pad>"


def no_pad(model, tokenizer, pairs):
    tokenizer.pad_token = None


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
    (no_pad, "no padding token"),
    (more_tokens_than_embeddings, "more tokens than"),
    (a_space_after_the_template, "merge into other tokens"),
    (the_first_token_twice, "the first one twice"),
    (a_row_too_long, "training cuts at 512"),
    (a_weight_that_is_not_a_number, "not finite"),
    (a_model_that_only_ends, "no text at all"),
]


@pytest.mark.parametrize(("plant", "word"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_the_early_check_notices(plant, word, early_check, bundled_model, pairs):
    model, tokenizer, pairs = copy.deepcopy((*bundled_model, pairs))
    plant(model, tokenizer, pairs)
    assert any(word in line for line in early_check(model, tokenizer, pairs))


# The unquantized model is loaded only where it fits.


@pytest.mark.parametrize(("free", "loaded"), [(10**6, False), (10**12, True)])
def test_an_unquantized_model_is_loaded_only_where_it_fits(free, loaded, monkeypatch):
    calls = []

    class Loader:
        @staticmethod
        def from_pretrained(path, **options):
            calls.append(options)
            return types.SimpleNamespace(eval=lambda: None)

    config = json.loads((BUNDLED_MODEL / "config.json").read_text())
    machine = types.SimpleNamespace(device="cpu", dtype="float32", torch_dtype=torch.float32, device_map={"": "cpu"})
    model = types.SimpleNamespace(config=config, disable_adapter=contextlib.nullcontext)
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(available=free))
    names = {"torch": torch, "shape_of": shape_of, "AutoModelForCausalLM": Loader, "model": model}
    names |= {
        "run": types.SimpleNamespace(machine=machine, model=bundled()),
        "best_times": lambda *a, **k: {(1, 256): (1.0, 1.0)},
    }
    exec(lesson_cell("04", "unquantized").source, names)
    assert names["fits"] is loaded
    assert len(calls) == len(names["speeds"]) - 2 == int(loaded)


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
    assert len(claims()) >= 30
    assert [claim for claim in claims() if f"OK: {claim}\n" not in printed] == []


def verdicts(folder) -> dict:
    record = json.loads((folder / f"{LESSON.stem}.json").read_text())
    return record | {"held": {v["claim"] for v in record["verdicts"] if v["holds"]}}


def test_the_lesson_holds_in_fp4_on_few_rows_and_trains_the_adapter_it_lacks(tmp_path):
    values = {"model_id": "bundled", "quant_type": "fp4", "double_quant": False, "eval_rows": 8, "seed": 1}
    result = run_lesson(LESSON, tmp_path, values)
    assert result["error"] is None
    record = verdicts(tmp_path)
    assert record["adapter_made_now"]
    assert record["rows"] == 8
    assert record["exact_match_tuned"] > record["exact_match_base"]
    assert record["heldout_loss_tuned"] < record["heldout_loss_base"]
    assert set(claims()) <= record["held"]


@pytest.fixture(scope="module")
def another_model(tmp_path_factory):
    """A folder with a model that knows nothing: Qwen2's architecture, random weights, the bundled tokenizer."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "random-qwen2"
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**TINY | ends | {"vocab_size": 3072, "hidden_size": 64, "head_dim": 16}))
    model.generation_config.update(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_lesson_holds_for_another_model_a_weak_adapter_and_two_rows_of_ones_own(tmp_path, another_model):
    """It answers nothing right, so no claim about answers may be made; all claims about bytes and switching hold."""
    from helpers.machine import hardware as machine
    from helpers.models import resolve_model
    from helpers.quick import train_adapter

    here, rows = machine.detect(), load_instructions("bundled")[0]["train"]
    weak, own, run = tmp_path / "weak", tmp_path / "own.jsonl", tmp_path / "run"
    train_adapter(resolve_model(str(another_model), here), here, rows.select(range(8)), weak, steps=2, rank=4)
    lines = [json.dumps({key: row[key] for key in ("instruction", "output")}) for row in rows.select(range(12))]
    own.write_text("\n".join(lines))
    run.mkdir()
    values = {"model_id": str(another_model), "adapter_dir": str(weak), "dataset_id": str(own), "max_new_tokens": 4}
    assert run_lesson(LESSON, run, values)["error"] is None
    record = verdicts(run)
    assert not record["adapter_made_now"]
    assert record["rows"] == 2
    assert "the tuned model ends its answer by itself" not in record["held"]
    assert "with the adapter off, the logits are the base's, bit for bit" in record["held"]
    assert "4 x 104 tokens: predicted to the byte" in record["held"]
