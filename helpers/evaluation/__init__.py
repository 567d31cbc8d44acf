"""How good a model is: answers, exact match, fields of JSON answers, the loss on held-out rows, intervals."""

from helpers.evaluation.fields import FieldScores, fields_right, json_object, score_fields
from helpers.evaluation.scores import Evaluation, answer, completion_loss, evaluate, exact_match, wilson_interval

__all__ = [
    "answer",  # greedy answers to prompts, in batches
    "exact_match",  # the share of answers that are right
    "evaluate",  # loss, exact match and its interval on held-out rows
    "Evaluation",  # what evaluate found
    "completion_loss",  # the loss on the answers alone, in nats a token
    "score_fields",  # answers that are JSON objects: valid, each field, every field
    "FieldScores",  # what score_fields found
    "fields_right",  # which fields of one answer are right
    "json_object",  # the object that an answer is, or None
    "wilson_interval",  # the 95% interval of a share
]
