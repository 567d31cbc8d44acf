"""Scores: answers, held-out loss, and exact match with its interval, computed alike for base, tuned and merged models."""

import contextlib
import math
import os
from dataclasses import dataclass
from statistics import NormalDist

from helpers.data import DataError, ends_of_answers, to_chat, with_template


def answer(model, tokenizer, prompts: list, max_new_tokens: int = 16, batch_size: int = 64) -> list[str]:
    """Greedy answers to `prompts`, stripped, in order; padded on the left, stopped where answers end.

    A prompt is a text, or a list of messages (role and content) that the tokenizer's template turns into one.
    """
    import torch

    answers, side = [], tokenizer.padding_side
    if tokenizer.pad_token is None:  # Mistral's and Llama's have none; what is padded is masked
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    begun = tokenizer.bos_token or tokenizer.eos_token  # where nothing is asked, a model needs a token to go on from
    chats = any(not isinstance(prompt, str) for prompt in prompts)  # then the template says what stands in front
    texts = [prompt if isinstance(prompt, str) else rendered(tokenizer, prompt, True) for prompt in prompts]
    ends = ends_of_answers(tokenizer, model.generation_config.to_dict())
    for start in range(0, len(texts), batch_size):
        batch = [text or begun for text in texts[start : start + batch_size]]
        batch = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=not chats).to(model.device)
        with torch.no_grad():
            tokens = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
            )
        new = tokens[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    tokenizer.padding_side = side
    return answers


def rendered(tokenizer, messages: list, asked: bool) -> str:
    """Messages as the text that the template makes of them; `asked`: with an answer to come.

    Raises DataError, one line that says which row it is, for messages that the template refuses.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
    except Exception as error:  # whatever Jinja, or the template itself, raises
        roles, said = ", ".join(one["role"] for one in messages), " ".join(one["content"] for one in messages)
        raise DataError(
            f"the chat template refuses the row that begins with {said[:60]!r} ({roles[:80]}): {type(error).__name__}: "
            f'{str(error)[:150]}; leave such rows out, or set template to "alpaca" or to a file that takes them'
        ) from error


@contextlib.contextmanager
def _templated(tokenizer):
    """The tokenizer with the template of `with_template`, and afterwards as it was."""
    before = tokenizer.chat_template
    try:
        yield with_template(tokenizer)
    finally:
        tokenizer.chat_template = before


def prompt_texts(tokenizer, rows) -> list[str]:
    """What each of `rows` (instruction, input, output) asks, as text in the template that `evaluate` asks in.

    The token that the tokenizer puts in front of every text is left out: it would stand there twice.
    """
    with _templated(tokenizer):
        texts = [rendered(tokenizer, to_chat(row)["prompt"], True) for row in rows]
    begin = tokenizer.decode(tokenizer("")["input_ids"])
    return [text.removeprefix(begin) for text in texts]


def exact_match(model, tokenizer, rows, max_new_tokens: int = 16, batch_size: int = 64) -> float:
    """The share of `rows` (instruction, input, output) whose greedy answer equals the output, from 0 to 1."""
    right = _right(_answers(model, tokenizer, rows, max_new_tokens, batch_size), rows)
    return sum(right) / len(right)


def _answers(model, tokenizer, rows, max_new_tokens: int, batch_size: int) -> list[str]:
    with _templated(tokenizer):
        return answer(model, tokenizer, [to_chat(row)["prompt"] for row in rows], max_new_tokens, batch_size)


def _right(answers: list[str], rows) -> tuple[bool, ...]:
    return tuple(a == row["output"].strip() for a, row in zip(answers, rows, strict=True))


@dataclass(frozen=True)
class Evaluation:
    """What one model scored on `rows` held-out rows. `loss` in nats per completion token, `exact_match` from 0 to 1."""

    loss: float
    exact_match: float
    interval: tuple[float, float]  # 95%, of exact_match
    rows: int
    answers: tuple[str, ...] = ()  # what it answered, in the rows' order
    row_losses: tuple[tuple[float, int], ...] = ()  # of each row: nats in all, and completion tokens
    right: tuple[bool, ...] = ()  # of each row: is the answer exactly the expected one?

    def __str__(self) -> str:
        low, high = self.interval
        return f"loss {self.loss:.3f}, exact match {self.exact_match:.1%} ({low:.1%} to {high:.1%})"

    def numbers(self) -> dict:
        """The score for a record, without the answers and the rows' losses: these may be a learner's own words."""
        return {"loss": self.loss, "exact_match": self.exact_match, "interval": list(self.interval), "rows": self.rows}

    def paired_p(self, other: "Evaluation") -> float:
        """The p-value of `mcnemar` for exact match: how easily chance alone would part the two; of the same rows."""
        return mcnemar(self.right, other.right)

    def change_from(self, before: "Evaluation", draws: int = 2000) -> tuple[float, tuple[float, float]]:
        """How much the loss changed since `before`, in nats per token, and its 95% interval: each row against itself.

        The rows are drawn anew, with replacement, `draws` times, and the change is computed for each draw; the interval holds
        the middle 95% of these changes (the percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap,
        1993, chapter 13). It says how far the choice of held-out rows could be to blame, and nothing of another seed.
        ValueError if the two did not score the same rows.
        """
        import numpy

        first, then = (numpy.array(score.row_losses, dtype=float).reshape(-1, 2) for score in (before, self))
        if not first[:, 1].any() or not numpy.array_equal(first[:, 1], then[:, 1]):
            raise ValueError("the two evaluations are not of the same rows, so no row can be compared with itself")
        seen = first[:, 1] > 0  # the completion of a row may begin beyond max_length
        change, tokens = (then[:, 0] - first[:, 0])[seen], first[seen, 1]
        drawn = numpy.random.default_rng(0).integers(len(change), size=(draws, len(change)))
        low, high = numpy.quantile(change[drawn].sum(1) / tokens[drawn].sum(1), (0.025, 0.975))
        return float(change.sum() / tokens.sum()), (float(low), float(high))


def evaluate(
    model,
    tokenizer,
    rows,
    max_new_tokens: int = 16,
    batch_size: int = 64,
    max_length: int = 512,
    answers_at_once: int = 0,
) -> Evaluation:
    """Score `model` on `rows` (instruction, input, output), in eval mode; the model is left as it was found.

    Rows are asked in the tokenizer's template, and in Alpaca's where it has none that ends where the model stops.
    An answer ends after `max_new_tokens` tokens, and for the loss a row is cut at `max_length` tokens, as in training.
    `answers_at_once`: rows that are answered together, `batch_size` where it is 0. Logits of whole rows take more memory.
    DataError, one line, if nothing is left of any answer.
    """
    was_training = model.training
    model.eval()
    answers = _answers(model, tokenizer, rows, max_new_tokens, answers_at_once or batch_size)
    right = _right(answers, rows)
    share = sum(right) / len(right)
    losses = _row_losses(model, tokenizer, rows, batch_size, max_length)
    model.train(was_training)
    interval = wilson_interval(sum(right), len(rows))
    return Evaluation(_per_token(losses), share, interval, len(rows), tuple(answers), tuple(losses), right)


def completion_loss(model, tokenizer, rows, batch_size: int = 64, max_length: int = 512) -> float:
    """Mean cross-entropy over the completions' tokens and their eos, in nats a token: what SFTTrainer calls eval_loss.

    Rows longer than `max_length` tokens are cut there, as in training. DataError if nothing is left of any answer.
    """
    return _per_token(_row_losses(model, tokenizer, rows, batch_size, max_length))


def _per_token(losses: list[tuple[float, int]]) -> float:
    nats, tokens = (sum(column) for column in zip(*losses, strict=True))
    return nats / tokens


def _row_losses(model, tokenizer, rows, batch_size: int, max_length: int) -> list[tuple[float, int]]:
    """The cross-entropy of each row's completion in nats, summed over its tokens, and how many tokens these are."""
    import torch

    found, longest = [], 0
    for start in range(0, len(rows), batch_size):
        pairs = [to_chat(row) for row in rows.select(range(start, min(start + batch_size, len(rows))))]
        prompts, whole = _tokens(tokenizer, pairs)
        longest = max(longest, *map(len, whole))
        width = min(max_length, max(map(len, whole)))
        ids = torch.full((len(pairs), width), tokenizer.pad_token_id or 0)  # masked, whatever it is
        labels = torch.full_like(ids, -100)
        for i, (row, begin) in enumerate(zip(whole, prompts, strict=True)):
            row = torch.tensor(row[:width])
            ids[i, : len(row)] = row
            labels[i, begin : len(row)] = row[begin:]
        mask = torch.arange(width) < torch.tensor([min(len(row), width) for row in whole])[:, None]
        with torch.no_grad():
            logits = model(ids.to(model.device), attention_mask=mask.to(model.device)).logits
        labels = labels.to(logits.device)
        for of_row, wanted in zip(logits[:, :-1], labels[:, 1:], strict=True):  # float32 takes room: a row at a time
            answered = wanted != -100
            each = torch.nn.functional.cross_entropy(of_row[answered].float(), wanted[answered], reduction="none")
            found.append((each.sum().item(), len(each)))
    if not any(tokens for _, tokens in found):
        raise DataError(
            f"max_length = {max_length} cuts off every answer of these {len(rows):,} rows, so that there is nothing to learn: "
            f"set it higher, up to {longest:,}, the tokens of the longest"
        )
    return found


def _tokens(tokenizer, pairs: list[dict]) -> tuple[list[int], list[list[int]]]:
    """(where each answer begins, all tokens of each row), as TRL tokenizes a conversational prompt and completion."""
    with _templated(tokenizer):
        asked = [rendered(tokenizer, pair["prompt"], True) for pair in pairs]
        texts = [rendered(tokenizer, pair["prompt"] + pair["completion"], False) for pair in pairs]
    asked, whole = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (asked, texts))
    begins = [len(os.path.commonprefix([a, b])) for a, b in zip(asked, whole, strict=True)]
    return begins, whole


def wilson_interval(right: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share (Wilson 1927, JASA 22, 209-212): it holds near 0 and 1, where p +- 2 s.e. does not."""
    if not 0 <= right <= of or of < 1:
        raise ValueError(f"{right} of {of} is no share")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / of
    centre = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(first, second) -> float:
    """The p-value of McNemar's exact test, from 0 to 1. `first` and `second` say of the same rows whether each was right.

    Only rows on which the two differ count. The p-value is the chance that tosses of a coin share these rows at least as
    unevenly, to either side (McNemar 1947, Psychometrika 12, 153-157; exact, from the binomial distribution). ValueError
    if there is not one value for each row in both, or none at all.
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        raise ValueError("there is no row to compare")
    only_first = sum(bool(a) and not b for a, b in pairs)
    only_second = sum(bool(b) and not a for a, b in pairs)
    differ = only_first + only_second
    tail = sum(math.comb(differ, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**differ)
