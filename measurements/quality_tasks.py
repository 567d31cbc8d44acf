"""The rows of measure_arms.py: three tasks, facts that were known before, and text.

A row has instruction, input and output, as the course's rows do, or `messages`; `group` says what it is about. Rows of one
group are not independent of each other, so the intervals are drawn over groups. Nothing here depends on a machine.
"""

import functools
import hashlib
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

COURSE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(COURSE), str(COURSE / "assets"), str(COURSE / "measurements")]

import make_corpus as mc  # noqa: E402

COUNTRIES, FORM_ROWS, CHOOSE_SHARE, KNOWN, TEXT_SEED = 48, 480, 0.12, 512, 1007
BEGINNINGS = (*"bdfghklmnprstvz", "br", "ch", "dr", "fl", "gr", "kl", "pr", "sh", "st", "tr")
VOWELS, ENDS = (*"aeiou", "ai", "ea", "oo"), (*"lmnrst", "nd", "rk", "sk", "lm")


@dataclass(frozen=True)
class Rows:
    """What is learned and what is scored, as lists of dictionaries."""

    learn: list[dict]
    score: list[dict]

    @functools.cached_property
    def sha256(self) -> str:
        text = json.dumps([self.learn, self.score], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def form(part: str) -> Rows:
    """The bundled instructions: the base knows the facts and not the form. Scored are entities that nothing is learned of.

    A part of the entities of the training rows is set aside, to choose learning rates by.
    """
    train, heldout = mc.split_entities()
    chance = random.Random(TEXT_SEED)
    aside = set(chance.sample(sorted(train), round(CHOOSE_SHARE * len(train))))
    listed = (COURSE / "assets" / "instructions" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    learn = [row for row in map(json.loads, listed) if (row["subject"], row["entity"]) not in aside]
    asked = aside if part == "search" else heldout
    score = [
        row
        for fact in mc.load_facts()
        if (fact.relation.subject, fact.entity) in asked
        for row in _ways_to_ask(fact, chance)
    ]
    return Rows([_row(row) for row in learn], chance.sample(score, FORM_ROWS))


def _ways_to_ask(fact, chance) -> list[dict]:
    """A fact asked as a question, and as a task with its input."""
    about = {"subject": fact.relation.subject, "entity": fact.entity, "output": fact.answer}
    question = {"instruction": mc.fill(chance.choice(fact.relation.questions), fact), "input": ""}
    return [
        _row(about | question),
        _row(about | {"instruction": chance.choice(fact.relation.tasks), "input": fact.input}),
    ]


def _row(row: dict) -> dict:
    kept = {name: row[name] for name in ("instruction", "input", "output")}
    return kept | {"group": f"{row['subject']}: {row['entity']}"}


def facts(part: str) -> Rows:
    """Invented countries, of which no text says anything: capital, currency and language of each are learned.

    Each fact is learned in one question and in one task, and is asked for in others, which the base knows from real
    countries. Learning rates are chosen on another set of invented countries.
    """
    learn, score = [], []
    for country, answers in invented(part):
        for name, answer in answers.items():
            relation = mc.RELATIONS["countries", name]
            fact = mc.Fact(relation, country, country, country, answer)
            about = {"subject": "invented", "entity": country, "output": answer}
            questions = [{"instruction": mc.fill(words, fact), "input": ""} for words in relation.questions]
            tasks = [{"instruction": words, "input": country} for words in relation.tasks]
            learn += [_row(about | asked) for asked in (questions[0], tasks[0])]
            score += [_row(about | asked) for asked in (questions[1], questions[2], tasks[1])]
    return Rows(learn, score)


def invented(part: str) -> list[tuple[str, dict[str, str]]]:
    """(country, its facts), the same each time. Countries and capitals are invented, and no name comes twice.

    Currencies and languages are real ones, so that a model of five million parameters can learn them in seconds; of these
    each is drawn as often as any other, so that there is little to guess.
    """
    taken = {word for fact in mc.load_facts() for text in (fact.answer, fact.shown) for word in text.casefold().split()}
    real = {name: sorted({row[name] for row in mc.table("countries")} - {""}) for name in ("currency", "language")}
    chance, found = random.Random(TEXT_SEED), []

    def name(syllables: int) -> str:
        while True:
            word = "".join(chance.choice(BEGINNINGS) + chance.choice(VOWELS) for _ in range(syllables))
            word += chance.choice(ENDS)
            if word not in taken:
                taken.add(word)
                return word.title()

    for _ in range(2 * COUNTRIES):
        answers = {"capital": name(1)} | {kind: chance.choice(listed) for kind, listed in real.items()}
        found.append((name(2), answers))
    return found[:COUNTRIES] if part == "runs" else found[COUNTRIES:]


def messages(part: str) -> Rows:
    """Messages into JSON, as measure_own_data.py has them: the same rows to choose by, the same held-out rows."""
    from measure_own_data import rows_of, to_row, validation

    learn, score = validation() if part == "search" else (rows_of("messages"), rows_of("heldout"))

    def chat(row: dict) -> dict:
        pair = to_row(row)
        said = pair["prompt"] + pair["completion"]
        return {
            "messages": json.dumps(said, ensure_ascii=False),
            "output": said[-1]["content"],
            "group": row["Message"],
        }

    return Rows([chat(row) for row in learn], [chat(row) for row in score])


TASKS = {"form": form, "facts": facts, "messages": messages}


@functools.cache
def rows_of_task(task: str, part: str) -> Rows:
    """`part` is "search", to choose learning rates by, or "runs"."""
    return TASKS[task](part)


@functools.cache
def known_before(model: str) -> list[tuple[str, str]]:
    """(prompt, what follows) of facts that a base can say in plain words, and that no task asks for or trains.

    For the bundled model: facts of held-out entities and of those set aside. For another one: the capitals of countries.
    """
    if model != "bundled":
        countries = [row for row in mc.table("countries") if row["capital"]]
        return [(f"The capital of {row['country']} is", f" {row['capital']}") for row in countries]
    learned = {row["group"] for row in rows_of_task("form", "runs").learn}
    pairs = [
        (prompt, answer + "\n")
        for fact, (prompt, answer) in zip(mc.load_facts(), mc.plain_questions(), strict=True)
        if f"{fact.relation.subject}: {fact.entity}" not in learned
    ]
    return random.Random(TEXT_SEED).sample(pairs, min(KNOWN, len(pairs)))


@functools.cache
def text(model: str) -> str:
    """Text that no run learns: new documents of the bundled model's corpus, or Python's own help for another model."""
    if model == "bundled":
        return "</s><s>".join(mc.documents(400, TEXT_SEED))
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
