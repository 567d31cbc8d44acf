"""How good a model is, and how fast: answers, exact match, fields of JSON answers, loss, intervals, seconds per token."""

from helpers.evaluation.fields import FieldScores, fields_right, score_fields
from helpers.evaluation.intervals import interval_of_mean
from helpers.evaluation.scores import (
    Evaluation,
    answer,
    completion_loss,
    evaluate,
    exact_match,
    mcnemar,
    prompt_texts,
    rendered,
    wilson_interval,
)
from helpers.evaluation.speed import decode_times

__all__ = [
    "answer",  # greedy answers to prompts, in batches
    "prompt_texts",  # what rows ask, as text
    "rendered",  # messages as their template writes them
    "exact_match",  # the share of answers that are right
    "evaluate",  # loss, exact match and its interval on held-out rows
    "Evaluation",  # what evaluate found
    "completion_loss",  # the loss on the answers alone, in nats a token
    "score_fields",  # answers that are JSON objects: valid, each field, every field
    "FieldScores",  # what score_fields found
    "fields_right",  # which fields of one answer are right
    "wilson_interval",  # the 95% interval of a share
    "mcnemar",  # do two models differ on the same rows? the p-value of the exact test
    "interval_of_mean",  # of several runs on the same rows: over seeds and groups of rows
    "decode_times",  # seconds to the first token, and of each later one
]
