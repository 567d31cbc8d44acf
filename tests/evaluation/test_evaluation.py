"""The harness that says better or not: its loss is the trainer's, its interval the published one."""

import ast
import itertools
import re

import pytest
import torch

from helpers.course import disk as course
from helpers.evaluation import Evaluation, completion_loss, evaluate, exact_match, mcnemar, wilson_interval
from helpers.models import BUNDLED_MODEL


@pytest.fixture(scope="module")
def bundled():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def heldout():
    from helpers.data import load_instructions

    return load_instructions("bundled")[0]["heldout"].select(range(24))


def test_the_loss_is_what_trl_reports(bundled, heldout, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from helpers.data import to_prompt_completion

    model, tokenizer = bundled
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=24,
        max_length=512,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    rows = heldout.map(to_prompt_completion, remove_columns=heldout.column_names)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    model.eval()
    theirs = trainer.evaluate()["eval_loss"]
    assert completion_loss(model, tokenizer, heldout) == pytest.approx(theirs, rel=1e-4)
    assert completion_loss(model, tokenizer, heldout, batch_size=5) == pytest.approx(theirs, rel=1e-4)


def test_the_model_is_left_in_the_mode_it_was_in(bundled, heldout):
    model, tokenizer = bundled
    model.train()
    scored = evaluate(model, tokenizer, heldout.select(range(4)))
    assert model.training
    assert scored.rows == 4
    assert scored.interval[0] <= scored.exact_match <= scored.interval[1]


def test_wilson_interval_as_published():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3
    for right, of, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(right, of) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "of"), [(3, 2), (-1, 5), (0, 0)])
def test_no_share_no_interval(right, of):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(right, of)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 3), (0, 5), (0, 6), (6, 0), (2, 7), (5, 1)])
def test_the_paired_test_counts_the_tosses_that_part_the_rows_as_unevenly(only_first, only_second):
    """Against its definition: every way in which coins can fall, counted."""
    first = [True] * only_first + [False] * only_second + [True, True, False]  # the last three say nothing
    second = [False] * only_first + [True] * only_second + [True, True, False]
    falls = list(itertools.product((1, -1), repeat=only_first + only_second))
    uneven = [fall for fall in falls if abs(sum(fall)) >= abs(only_first - only_second)]
    assert mcnemar(first, second) == pytest.approx(len(uneven) / len(falls))


def test_the_paired_test_as_a_table_of_the_binomial_distribution_has_it():
    only = [True] * 121 + [False] * 59, [False] * 121 + [True] * 59
    assert mcnemar(*only) == pytest.approx(4.4344e-6, rel=1e-4)
    assert mcnemar([1, 0], [1, 0]) == 1.0
    with pytest.raises(ValueError, match="no row"):
        mcnemar([], [])
    with pytest.raises(ValueError, match="argument 2"):
        mcnemar([True], [True, False])


def test_a_score_knows_which_rows_are_right_and_is_told_from_another_by_them():
    first = Evaluation(1.0, 1.0, (0.5, 1.0), 8, right=(True,) * 8)
    then = Evaluation(1.0, 0.25, (0.0, 0.6), 8, right=(True, True) + (False,) * 6)
    assert first.paired_p(then) == then.paired_p(first) == 2 / 2**6
    assert "right" not in first.numbers()


def test_right_are_the_rows_whose_answer_is_the_expected_one(bundled, heldout):
    model, tokenizer = bundled
    answers = evaluate(model, tokenizer, heldout.select(range(3)), max_new_tokens=4).answers
    rows = rows_of(
        ("a", "", "no such answer"), *((heldout[i]["instruction"], heldout[i]["input"], answers[i]) for i in (1, 2))
    )
    scored = evaluate(model, tokenizer, rows, max_new_tokens=4)
    assert scored.right == tuple(answer == row["output"] for answer, row in zip(scored.answers, rows, strict=True))
    assert scored.right[0] is False
    assert any(scored.right)
    assert sum(scored.right) / 3 == scored.exact_match == exact_match(model, tokenizer, rows, max_new_tokens=4)


def test_the_losses_of_the_rows_add_up_to_the_loss(bundled, heldout):
    model, tokenizer = bundled
    scored = evaluate(model, tokenizer, heldout, batch_size=7)
    nats, tokens = (sum(column) for column in zip(*scored.row_losses, strict=True))
    assert scored.loss == pytest.approx(nats / tokens) == pytest.approx(completion_loss(model, tokenizer, heldout))
    alone = completion_loss(model, tokenizer, heldout.select([3]))
    assert scored.row_losses[3][0] / scored.row_losses[3][1] == pytest.approx(alone, rel=1e-4)


def test_logits_become_float32_row_by_row_and_where_the_answer_is(bundled, heldout, monkeypatch):
    whole, taken = torch.nn.functional.cross_entropy, []
    monkeypatch.setattr("torch.nn.functional.cross_entropy", lambda *a, **k: taken.append(len(a[0])) or whole(*a, **k))
    model, tokenizer = bundled
    counted = [tokens for _, tokens in evaluate(model, tokenizer, heldout, batch_size=7).row_losses]
    assert taken == counted


def scored(losses, tokens=None):
    rows = tuple(zip(losses, tokens or [1] * len(losses), strict=True))
    return Evaluation(sum(losses) / sum(n for _, n in rows), 0.0, (0.0, 0.1), len(rows), (), rows)


def test_the_interval_of_a_change_is_that_of_a_paired_t_test_where_that_is_right():
    import numpy

    rng = numpy.random.default_rng(3)
    first = rng.normal(3, 1, 400)
    then = first - rng.normal(0.05, 0.3, 400)  # rows differ by more than the change: only pairs show it
    change, (low, high) = scored(list(then)).change_from(scored(list(first)))
    t = 1.966  # the 97.5th percentile of Student's t with 399 degrees of freedom
    paired, unpaired = (then - first).std(ddof=1) / 20, (then.var(ddof=1) + first.var(ddof=1)) ** 0.5 / 20
    assert change == pytest.approx((then - first).mean())
    assert (low, high) == pytest.approx((change - t * paired, change + t * paired), abs=0.003)
    assert high < 0 < change + t * unpaired


def test_a_change_is_per_token_and_rows_without_a_token_do_not_count():
    before, after = scored([2.0, 9.0, 0.0], [1, 3, 0]), scored([1.0, 6.0, 0.0], [1, 3, 0])
    assert after.change_from(before) == (-1.0, (-1.0, -1.0))


@pytest.mark.parametrize(
    ("before", "after"),
    [(scored([1.0]), scored([1.0, 2.0])), (scored([1.0], [2]), scored([1.0], [3])), (Evaluation(1, 0, (0, 1), 4),) * 2],
    ids=["another number of rows", "rows of another length", "no rows kept"],
)
def test_other_rows_are_not_compared(before, after):
    with pytest.raises(ValueError, match="not of the same rows"):
        after.change_from(before)


def rows_of(*triples):
    from datasets import Dataset

    return Dataset.from_list([dict(zip(("instruction", "input", "output"), row, strict=True)) for row in triples])


def test_prompts_that_leave_no_room_for_any_answer_are_one_line_with_the_length_that_would_do(bundled):
    from helpers.data import DataError

    model, tokenizer = bundled
    long = ("word " * 60, "", "yes")
    longest = len(tokenizer(alpaca(long) + "yes" + tokenizer.eos_token)["input_ids"])
    with pytest.raises(DataError, match=f"max_length = 48 cuts off every answer of these 2 rows, .* up to {longest}, "):
        evaluate(model, tokenizer, rows_of(long, long), max_new_tokens=2, max_length=48)
    scored = evaluate(model, tokenizer, rows_of(long, ("a", "", "yes")), max_new_tokens=2, max_length=48)
    assert scored.loss > 0
    assert [tokens > 0 for _, tokens in scored.row_losses] == [False, True]
    assert evaluate(model, tokenizer, rows_of(long), max_new_tokens=2, max_length=longest).loss > 0


def test_prompts_of_five_hundred_tokens_are_scored_where_max_length_leaves_room_for_their_answers(bundled):
    model, tokenizer = bundled
    rows = rows_of(*(("word " * 500, "", f"yes {n}") for n in range(4)))
    (asked, *_) = (len(tokenizer(alpaca((row["instruction"], "")))["input_ids"]) for row in rows)
    assert 512 < asked < 1000
    scored = evaluate(model, tokenizer, rows, max_new_tokens=2, max_length=1024)
    assert scored.loss > 0
    assert all(tokens > 1 for _, tokens in scored.row_losses)


@pytest.mark.parametrize("lesson", course.lessons(), ids=lambda lesson: lesson.stem)
def test_lessons_score_with_the_lengths_of_their_run(lesson):
    """Where these are parameters, every call of evaluate unpacks settings.max_length and settings.max_new_tokens."""
    source = ast.unparse(ast.parse(lesson.read_text(encoding="utf-8")))
    if not re.search(r"^max_length = ", source, re.MULTILINE):
        assert "settings.max_length" not in source  # one length for all that it compares, as lesson 08 has
        return
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    for call in calls:
        if getattr(call.func, "id", None) == "evaluate":
            (given,) = [keyword.value.id for keyword in call.keywords if keyword.arg is None]
            above = "\n".join(source.splitlines()[: call.lineno])
            made = re.findall(rf"^{given} = ({{.*}})$", above, re.MULTILINE)[-1]
            assert "'max_length': settings.max_length" in made
            assert "'max_new_tokens': settings.max_new_tokens" in made


def alpaca(row):
    from helpers.data import alpaca_prompt

    return alpaca_prompt(*row[:2])


def test_a_plain_text_is_scored_from_its_first_token_on(bundled):
    model, tokenizer = bundled
    scored = evaluate(model, tokenizer, rows_of(("", "", "The capital of Peru is Lima.")), max_new_tokens=2)
    tokens = len(tokenizer("The capital of Peru is Lima." + tokenizer.eos_token)["input_ids"])
    assert scored.row_losses[0][1] in (tokens - 1, tokens)
    assert scored.loss > 0
