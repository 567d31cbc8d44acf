"""Scores of answers that are JSON objects: how many are valid, how many right in each field, and how many in all."""

import json
from dataclasses import dataclass

from helpers.evaluation.scores import wilson_interval

LENIENT = ("name", "place")  # fields whose capitals and white space are not compared


def json_object(answer: str) -> dict | None:
    """The JSON object that an answer is, as a whole; None if it is anything else, or has text around it."""
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def fields_right(answer: str, wanted: dict, lenient=LENIENT) -> dict[str, bool]:
    """For each field of `wanted` whether the answer has exactly its value.

    In the fields named by `lenient` capitals and white space may differ, since a person who writes "ahmed here" may be
    noted down as Ahmed or as ahmed. Nothing else is forgiven: 9:00 is not 09:00, and an empty text is not null. An
    answer that is no JSON object has no field right.
    """
    found = json_object(answer) or {}
    return {
        field: field in found and _plain(found[field], field in lenient) == _plain(value, field in lenient)
        for field, value in wanted.items()
    }


def _plain(value, lenient: bool):
    return " ".join(value.casefold().split()) if lenient and isinstance(value, str) else value


@dataclass(frozen=True)
class FieldScores:
    """What a list of answers scored. Shares from 0 to 1; `right` has one truth value a row: every field, and no other."""

    valid: float  # JSON objects
    fields: dict[str, float]  # of each field, the share of rows that have it right
    right: tuple[bool, ...]

    @property
    def whole(self) -> float:
        """The share of rows that are right in every field, and have no further field."""
        return sum(self.right) / len(self.right)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of `whole` (Wilson)."""
        return wilson_interval(sum(self.right), len(self.right))

    def __str__(self) -> str:
        low, high = self.interval
        each = ", ".join(f"{field} {share:.0%}" for field, share in self.fields.items())
        return f"{self.whole:.0%} right in every field ({low:.0%} to {high:.0%}); valid JSON {self.valid:.0%}; {each}"


def score_fields(answers, wanted, lenient=LENIENT) -> FieldScores:
    """Score answers against `wanted`, one dictionary of the same fields per row; ValueError if their numbers differ."""
    answers, wanted = list(answers), list(wanted)
    if len(answers) != len(wanted) or not answers:
        raise ValueError(f"{len(answers)} answers for {len(wanted)} rows: there must be one for each")
    each = [fields_right(answer, row, lenient) for answer, row in zip(answers, wanted, strict=True)]
    objects = [json_object(answer) for answer in answers]
    right = [
        all(marks.values()) and found is not None and found.keys() == row.keys()
        for marks, found, row in zip(each, objects, wanted, strict=True)
    ]
    shares = {field: sum(marks[field] for marks in each) / len(each) for field in wanted[0]}
    return FieldScores(sum(found is not None for found in objects) / len(objects), shares, tuple(right))
