"""Templates: how a question and its answer become one text, in training, when the model is asked, and wherever it is loaded.

A template is what transformers calls a chat template: a small Jinja program that the tokenizer carries and saves as
chat_template.jinja. A chat model brings its own. A base model gets Alpaca's, or one of the learner's choice.
"""

import json
from pathlib import Path

from helpers.data.instructions import TEMPLATES, alpaca_prompt, read_template
from helpers.data.readers import DataError

ASKED, GIVEN, ANSWER = "QzAskedQz", "QzGivenQz", "QzAnswerQz"  # words that no template has
KEPT = "chat_template.jinja"  # transformers' name for it


def to_chat(row: dict) -> dict:
    """A row as TRL's conversational prompt and completion: the user asks, the assistant answers.

    The content of what is asked is the instruction, and the input after an empty line. Both stand beside it as well, for
    Alpaca's template, which writes them under headings of their own. Of a conversation of several turns the prompt is all
    that was said before the last answer.
    """
    if row.get("messages"):
        said = json.loads(row["messages"])
        prompt = [message | {"instruction": message["content"], "input": ""} for message in said[:-1]]
        return {"prompt": prompt, "completion": said[-1:]}
    asked = {"instruction": row["instruction"], "input": row["input"] or ""}
    content = "\n\n".join(filter(None, asked.values()))
    return {
        "prompt": [{"role": "user", "content": content, **asked}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def with_template(tokenizer, template: str = "auto", adapter=None):
    """Give the tokenizer the template that a run trains and asks with; returns the tokenizer.

    "auto" is the model's own where its answers end with a token at which the model stops, as a chat model's do, and
    Alpaca's otherwise: a base model may carry its chat model's template, whose end it never learned. Or say "alpaca",
    "question" (the question, "Answer:", the answer), or name a file with a Jinja template. With `adapter` it is the one that
    was kept in that folder, and Alpaca's where none was. Raises DataError, one line, for a template that cannot be used.
    """
    if adapter is not None:
        kept = Path(adapter) / KEPT
        tokenizer.chat_template = kept.read_text(encoding="utf-8") if kept.is_file() else _written(tokenizer, "alpaca")
    elif template in TEMPLATES:
        tokenizer.chat_template = _written(tokenizer, template)
    elif template != "auto":
        tokenizer.chat_template = read_template(template)
        if _end(tokenizer) not in _stops(tokenizer):
            raise DataError(
                f"template = {template!r} does not end an answer with {tokenizer.eos_token}, at which the model stops: "
                "write {{ eos_token }} behind the answer"
            )
    elif not tokenizer.chat_template or _end(tokenizer) not in _stops(tokenizer):
        tokenizer.chat_template = _written(tokenizer, "alpaca")
    return tokenizer


def ends_of_answers(tokenizer, generation: dict | None = None) -> list[int]:
    """Ids that end an answer: the tokenizer's eos, what its template puts behind an answer, what generation_config has."""
    found = [tokenizer.eos_token_id, _end(tokenizer) if tokenizer.chat_template else None]
    more = (generation or {}).get("eos_token_id")
    found += more if isinstance(more, list) else [more]
    return list(dict.fromkeys(number for number in found if isinstance(number, int)))


def _written(tokenizer, name: str) -> str:
    """A template of the course in Jinja. It begins with bos if the tokenizer begins every text with it."""
    if name == "alpaca":
        plain, full = alpaca_prompt(ASKED), alpaca_prompt(ASKED, GIVEN)
    else:
        plain, full = f"{ASKED}\nAnswer:\n", f"{ASKED} {GIVEN}\nAnswer:\n"
    before, after = plain.split(ASKED)
    first, rest = full.split(ASKED)
    between, last = rest.split(GIVEN)
    begun = tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    return (
        ("{{ bos_token }}" if begun else "")
        + "{% for message in messages %}{% if message.role == 'user' and message.input %}"
        + f"{{{{ {first!r} + message.instruction + {between!r} + message.input + {last!r} }}}}"
        + "{% elif message.role == 'user' and message.content %}"
        + f"{{{{ {before!r} + message.content + {after!r} }}}}"
        + "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
    )


def _end(tokenizer) -> int | None:
    """The first special token that the tokenizer's template puts behind an answer; None if it puts none there."""
    chat = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception as error:  # whatever Jinja, or the template itself, raises
        raise DataError(f"the chat template cannot be used ({type(error).__name__}: {str(error)[:150]})") from error
    behind = tokenizer(text.partition(ANSWER)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.added_tokens_decoder) | {tokenizer.eos_token_id}
    return next((number for number in behind if number in special), None)


def _stops(tokenizer) -> set[int]:
    """The tokens at which the model stops: the tokenizer's eos, and what the model's generation_config names."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(tokenizer.name_or_path).eos_token_id
    except (OSError, ValueError):  # it has none, or it is not within reach
        named = None
    return {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
