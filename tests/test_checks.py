"""Each exercise: the solution printed in the lesson is right, and typical mistakes get a hint that is theirs."""

import re

import pytest

from helpers import checks, course

# For each exercise at least two mistakes that people make, with a word that the hint must hold.
MISTAKES = {
    "00.1": [(14, "bytes"), (28e9, "float32"), (7e9 * 16, "bits")],
    "00.2": [(3.5, "bytes"), (28e9, "bits"), (7e9, "two 4-bit codes")],
    "00.3": [(True, "function"), (lambda c: c >= (7, 0), "T4"), (lambda c: c == (8, 0), "later")],
    "02.1": [(4096 * 14336 / 2, "constant"), (4096 * 14336 * (0.5 + 1 / 16), "without double"), (1, "half a byte")],
    "02.2": [(6_815_744 * 12, "missing"), (6_815_744 * 4, "values alone"), (0, "four float32")],
    "02.3": [(32 * 4 * 512 * 4096, "two"), (4 * 512 * 4096 * 2, "one layer"), (32 * 512 * 4096 * 2, "one row")],
    "02.4": [(128_256 * 4096 * 2, "one of the two"), (2 * 128_256 * 4096 * 4, "how much is it more")],
    "02.5": [("rank", "fraction"), ("optimizer", "small"), ("luck", "one of")],
    "03.1": [(8_388_608, "1024"), (6_815_744 // 32, "one layer"), (1, "add up")],
    "03.2": [(4, "one forward pass"), (8, "multiply"), (64, "times")],
    "03.3": [("bfloat16", "emulates"), ("float32", "tensor cores"), ("int8", "one of")],
    "04.1": [(65536, "two"), (524288, "8 key-value"), (4096, "one layer")],
    "04.2": [(0, "right"), (5, "how many"), (12, "padded")],
    "04.3": [("pad", "masked"), ("bos", "begins"), ("a comma", "over")],
    "05.1": [(0.5, "other way"), (32, "divided"), (16, "rank")],
    "05.2": [(7_241_732_096, "two"), (4 * 7_241_732_096, "float32"), (3_620_866_048, "16 bits")],
    "05.3": [("4-bit", "rounded away"), ("original", "rounded version"), ("none", "one of")],
}


def solutions() -> dict[str, str]:
    """The code of each folded solution, by exercise."""
    found = {}
    for lesson in course.lessons():
        for cell in course.to_notebook(lesson).cells:
            for block in re.findall(r"<details>.*?```python\n(.*?)```", cell.source, re.DOTALL):
                name = re.search(r'check\("(\d\d\.\d+)"', block)
                assert name, f"{lesson.stem}: a solution that checks nothing:\n{block}"
                found[name[1]] = block
    return found


SOLUTIONS = solutions()
# Lesson 01 has a test file of its own: its solutions need the functions that the lesson defines.
ALONE = [name for name in SOLUTIONS if not name.startswith("01")]


@pytest.mark.parametrize("name", ALONE)
def test_the_printed_solution_is_right(name, capsys):
    exec(SOLUTIONS[name], {"check": checks.check})
    assert capsys.readouterr().out == f"Exercise {name}: right.\n"


@pytest.mark.parametrize(("name", "answer", "word"), [(n, a, w) for n, rows in MISTAKES.items() for a, w in rows])
def test_a_typical_mistake_gets_its_own_hint(name, answer, word, capsys):
    checks.check(name, answer)
    said = capsys.readouterr().out
    assert said.startswith(f"Exercise {name}: not yet:")
    assert word in said


def test_every_exercise_has_at_least_two_mistakes_tried():
    assert {name for name in ALONE if len(MISTAKES.get(name, [])) < 2} == set()


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
    "answer", [None, "", [], {}, object(), float("nan"), lambda: 1 / 0], ids=lambda a: type(a).__name__
)
def test_no_answer_of_any_kind_raises_or_passes(name, answer, capsys):
    checks.check(name, answer)
    said = capsys.readouterr().out
    assert said.startswith(f"Exercise {name}: not yet:")
    assert said.count("\n") == 1


def test_an_answer_not_given_yet_waits(capsys):
    checks.check("00.1", ...)
    assert "dots" in capsys.readouterr().out
