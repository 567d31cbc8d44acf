"""Exercises: an answer is checked at once, and a wrong one gets a hint that names the mistake.

An exercise is a function of the answer that returns None when it is right and a hint when it is not; those of
lesson NN are in helpers/lesson/exercises/lNN.py. Lessons call `check("02.1", answer)`; `...` means not answered yet.
tests/lesson/test_checks.py feeds each one right and wrong answers.
"""

import contextlib
import importlib
import math
from collections.abc import Callable

EXERCISES: dict[str, Callable] = {}


def exercise(name: str, takes: str = ""):
    """Register a function of an answer as the exercise `name`, lesson and number.

    `takes`: where the answer must be a function, of what; another answer gets that as its hint.
    """

    def add(function):
        def of_function(answer, *found):
            return function(answer, *found) if callable(answer) else f"a function of {takes} is asked for"

        EXERCISES[name] = of_function if takes else function
        return function

    return add


def find(name: str) -> Callable:
    """The exercise's function; the checks of lesson NN are in helpers/lesson/exercises/lNN.py. KeyError if there is none."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(f"helpers.lesson.exercises.l{name[:2]}")
    return EXERCISES[name]


def check(name: str, answer=..., *found) -> None:
    """Check an answer and print one line: right, a hint, or that it waits. Never raises for a wrong answer.

    `found`: what came out in this run, for exercises that compare a guess with it.
    """
    if answer is ...:
        print(f"Exercise {name}: put your answer in place of the dots and run the cell again.")
        return
    try:
        hint = find(name)(answer, *found)
    except Exception as error:  # an answer of another kind than the exercise expects, or a function that fails
        hint = f"your answer could not be checked: {type(error).__name__}: {error}"
    print(f"Exercise {name}: " + ("right." if hint is None else f"not yet: {hint}"))


def near(answer, right: float, tolerance: float = 0.01) -> bool:
    """Whether a number is within a relative `tolerance` of the right one."""
    return isinstance(answer, int | float) and math.isclose(answer, right, rel_tol=tolerance)
