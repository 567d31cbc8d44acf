"""Checks of the exercises of lesson 07."""

import json

from helpers.lesson.checks import exercise

DOTS = "put your answer in place of the dots"


@exercise("07.1", takes="a row of the file")
def to_row(answer):
    first = answer({"Question ": " Is the pool open? ", "Topic": "hours", "Until": ""})
    if first is ...:
        return DOTS
    if not isinstance(first, dict) or set(first) != {"prompt", "completion"}:
        return 'a dictionary with the two columns "prompt" and "completion" is asked for'
    asked, said = first["prompt"], first["completion"]
    if isinstance(asked, str) or isinstance(said, str):
        return "for a chat template both columns are lists of messages, and each message says its role"
    if [turn.get("role") for turn in asked] != ["user"] or [turn.get("role") for turn in said] != ["assistant"]:
        return 'the question is the turn of "user" and the answer that of "assistant"'
    if asked[0]["content"] != "Is the pool open?":
        return "take the spaces away from both ends of the question: people and spreadsheets leave them"
    if not isinstance(said[0]["content"], str):
        return "the content of a message is text: json.dumps makes it from a dictionary"
    return _object(said[0]["content"]) or _accents(answer)


def _object(text: str):
    try:
        found = json.loads(text)
    except ValueError:
        return "the answer is no JSON; str() of a dictionary has other quotation marks, and None for null"
    if found == {"topic": "hours", "until": ""}:
        return "an empty cell should be null: an empty text would say that something stands there"
    if isinstance(found, dict) and set(found) != {"topic", "until"}:
        return 'the keys are "topic" and "until", in every row, also where a cell is empty'
    return (
        None if found == {"topic": "hours", "until": None} else 'the object should be {"topic": "hours", "until": null}'
    )


def _accents(answer):
    second = answer({"Question ": "How much is it?", "Topic": "café", "Until": "NA"})["completion"][0]["content"]
    if "\\u00e9" in second:
        return "the é became an escape of six characters, which costs tokens: ensure_ascii=False leaves it as it is"
    if json.loads(second)["until"] != "NA":
        return "NA is a text that somebody typed: nothing but an empty cell is null"
    return None


@exercise("07.2", takes="the training messages and the held-out ones")
def leaks(answer):
    learned = ["Cancel Friday, please.", "Are you open?", "Move me to Monday", "Book me at 9", "Ask for Jürgen"]
    learned += ["Move me from Monday to Friday"]
    held = ["cancel friday please", "Do you sell lamps?", "ARE YOU  OPEN", "Move me to Tuesday"]
    held += ["Book me at 10", "Ask for Jörgen", "Move me from Friday to Monday"]
    found = answer(list(learned), list(held))
    if found is ...:
        return DOTS
    if isinstance(found, str) or not hasattr(found, "__iter__"):
        return "a list of held-out messages is asked for"
    found = set(found)
    if found <= set(learned) and found:
        return "those are the training messages; name the held-out ones, since they must go"
    if not found:
        return "none is equal letter by letter; compare without capitals, punctuation and extra spaces"
    if "ARE YOU  OPEN" not in found:
        return "two spaces in a row make no other message: split() and join them"
    if "cancel friday please" not in found:
        return "punctuation makes no other message: leave out what is neither a letter nor a digit"
    if "Move me to Tuesday" in found:
        return "another day is another message: a word differs"
    if "Book me at 10" in found:
        return "another hour is another message: keep the digits"
    if "Ask for Jörgen" in found:
        return "ü and ö are letters, and a-z leaves them out: isalnum() or \\w keeps them"
    if "Move me from Friday to Monday" in found:
        return "the same words in another order are another message: keep the order"
    if found != {held[0], held[2]}:
        return "two of the seven held-out messages stand in the training rows too"
    return None if not list(answer([], list(held))) else "with nothing learned nothing leaks"


@exercise("07.3")
def wrong_labels(answer):
    if isinstance(answer, str | dict) or not hasattr(answer, "__iter__"):
        return "give the numbers of the rows, such as {1, 4}"
    given = set(answer)
    if not given or not given <= {1, 2, 3, 4, 5, 6}:
        return "give numbers from 1 to 6"
    of_right = {
        1: "row 1 is right: when an appointment is moved, the new day counts",
        4: 'row 4 is right: "tomorrow" names no weekday',
        6: "row 6 is right: the name is that of the daughter, whom the appointment is for",
    }
    for number in sorted(given & set(of_right)):
        return of_right[number]
    of_wrong = {
        2: "one is missing: by the rule of the opening hours, what is 4 o'clock?",
        3: "one is missing: which town counts, where somebody lives or where the workshop is?",
        5: "one is missing: somebody who asks for a free appointment wants one",
    }
    missing = sorted(set(of_wrong) - given)
    return of_wrong[missing[0]] if missing else None


@exercise("07.4", takes="an answer and the row that was wanted")
def score(answer):
    wanted = {"day": "Friday", "time": None}
    full, half = (
        answer('{"time": null, "day": "Friday"}', dict(wanted)),
        answer('{"day":"Friday","time":"09:00"}', dict(wanted)),
    )
    if full is ...:
        return DOTS
    if full != 1:
        return "an answer with other spaces or another order of its keys is right too: compare objects, and not texts"
    if half in (0, False):
        return "one of two fields is right: the score of that answer is 0.5"
    if half != 0.5:
        return "the share of the wanted fields that are right is asked for: 0.5 where one of two is"
    try:
        broken = [answer(text, dict(wanted)) for text in ("Friday", '{"day": "Friday"', "[1]", "null")]
    except Exception as error:
        return f"an answer that is no JSON object must score 0, and it raises {type(error).__name__}"
    if broken != [0, 0, 0, 0]:
        return "an answer that is no JSON object scores 0"
    if answer('{"day": "Friday"}', dict(wanted)) != 0.5:
        return "a missing field is not null: get() answers None for both, so ask whether the key is there"
    return None


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


@exercise("07.5")
def template(answer):
    import jinja2.sandbox

    if not isinstance(answer, str) or not answer.strip():
        return "a template is a text"
    if "<end>" in answer:
        return 'the end is another text for each tokenizer: write {{ eos_token }} and not "<end>"'
    try:
        made = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(answer)
        whole = made.render(messages=TURNS, eos_token="<end>", add_generation_prompt=False)
        asked = made.render(messages=TURNS[:1], eos_token="<end>", add_generation_prompt=True)
    except jinja2.TemplateError as error:
        return f"Jinja cannot read it: {error}"
    if "Hi" not in whole or "Yes" not in whole:
        return "a message is missing from the text: each one's content must stand there"
    if not whole.startswith(asked):
        return "what is asked at use must be the beginning of what is learned, or the model is asked in a form that it never saw"
    learned = whole.removeprefix(asked)
    if "<end>" not in learned:
        return "the answer is learned without its end: {{ eos_token }} must follow the assistant's content"
    if not learned.startswith("Yes<end>"):
        return "the end stands in the wrong place: it follows the assistant's content at once"
    return None


LENGTHS = [60 + (i % 97) * (7 * i % 89) // 70 for i in range(970)] + [190 + 3 * (i % 20) for i in range(29)] + [3800]


@exercise("07.6")
def max_length(answer):
    if not isinstance(answer, dict) or set(answer) != {"max_length", "cut"}:
        return 'a dictionary with "max_length" and "cut" is asked for'
    limit, cut = answer["max_length"], answer["cut"]
    if isinstance(limit, bool) or not isinstance(limit, int) or not isinstance(cut, int | float):
        return "max_length is a whole number of tokens, and cut a share from 0 to 1"
    share = sum(n > limit for n in LENGTHS) / len(LENGTHS)
    if limit >= 3800:
        return "one row of 3,800 tokens would decide how much memory its batch takes: look at that row, it may be a mistake"
    if limit > 512:
        return "no row needs that many but the one that no reasonable length would save: choose less"
    if share > 0.01:
        return f"{share:.1%} of the rows lose their end there, and with it the eos: choose more"
    if abs(cut - 100 * share) < 1e-9:
        return "cut is a share from 0 to 1, and that is in per cent"
    return (
        None if abs(cut - share) <= 0.0005 else "that length is fine; cut is the share of rows that are longer than it"
    )


@exercise("07.7")
def own_rows(answer):
    if not isinstance(answer, list | tuple) or not all(isinstance(row, dict) for row in answer) or not answer:
        return 'a list of rows is asked for, each {"message": ..., "answer": {...}}'
    if not all(set(row) == {"message", "answer"} and isinstance(row["answer"], dict) for row in answer):
        return 'each row has a "message" and an "answer", and the answer is a dictionary of fields'
    if len(answer) < 20:
        return f"{len(answer)} rows, and twenty are asked for"
    if len({frozenset(row["answer"]) for row in answer}) > 1 or not answer[0]["answer"]:
        return "every answer has the same fields; where a message does not tell, the field is there and is None"
    texts = {
        " ".join("".join(c if c.isalnum() else " " for c in str(row["message"]).casefold()).split()) for row in answer
    }
    if len(texts) < len(answer):
        return "two messages are the same but for capitals, spaces or punctuation: the same row twice teaches nothing"
    several = len(answer[0]["answer"]) > 1  # one field may be an answer in sentences, and each question has one
    if several and not any(value is None for row in answer for value in row["answer"].values()):
        return "no field is ever None: a model that never sees a missing value makes one up"
    constant = [field for field in answer[0]["answer"] if len({json.dumps(row["answer"][field]) for row in answer}) < 2]
    if constant:
        return f"{constant[0]!r} is the same in every row: a model can only learn to say that"
    begins = {" ".join(text.split()[:2]) for text in texts}
    return (
        None if len(begins) >= len(answer) / 2 else "more than half begin with the same two words: real people do not"
    )
