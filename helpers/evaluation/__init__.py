"""How good a model is: answers, exact match, the loss on held-out rows, intervals."""

from helpers.evaluation.scores import Evaluation, answer, completion_loss, evaluate, exact_match, wilson_interval

__all__ = [
    "answer",  # greedy answers to prompts, in batches
    "exact_match",  # the share of answers that are right
    "evaluate",  # loss, exact match and its interval on held-out rows
    "Evaluation",  # what evaluate found
    "completion_loss",  # the loss on the answers alone, in nats a token
    "wilson_interval",  # the 95% interval of a share
]
