"""Turn the fact tables into a pre-training corpus, instruction data and recall questions.

    python assets/make_corpus.py            # writes assets/instructions/{train,heldout}.jsonl

The corpus itself is never stored: `documents(seed)` yields it again, the same every time.
"""

import csv
import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).resolve().parent
SEED = 7
HELDOUT_SHARE = 0.12  # of the entities of each subject
TRAIN_ROWS, HELDOUT_ROWS = 1600, 256


@dataclass(frozen=True)
class Relation:
    """One kind of fact, and the ways to ask for it: {e} is the entity as it stands in a sentence, {a} the answer."""

    subject: str
    name: str
    questions: tuple  # the first one is the plain form
    tasks: tuple  # instructions that take the entity as a separate input
    statements: tuple  # prose: the answer follows a space


@dataclass(frozen=True)
class Fact:
    """One true fact.

    `entity` decides the split; `shown` is what a question names (perhaps with an article, or a symbol); `input` is what
    stands alone on an input line.
    """

    relation: Relation
    entity: str
    shown: str
    input: str
    answer: str


RELATIONS = {
    (r.subject, r.name): r
    for r in (
        Relation(
            "countries",
            "capital",
            ("What is the capital of {e}?", "Name the capital of {e}.", "Which city is the capital of {e}?"),
            ("Name the capital of this country.", "What is the capital of the following country?"),
            ("The capital of {e} is {a}.", "{e} has the capital {a}.", "The capital city of {e} is called {a}."),
        ),
        Relation(
            "countries",
            "country",
            (
                "Which country has the capital {e}?",
                "Name the country whose capital is {e}.",
                "{e} is the capital of which country?",
            ),
            ("Name the country that has this capital.", "Which country has the following capital?"),
            ("{e} is the capital of {a}.", "The city of {e} is the capital of the country {a}."),
        ),
        Relation(
            "countries",
            "continent",
            ("On which continent is {e}?", "Name the continent of {e}.", "Which continent does {e} belong to?"),
            ("Name the continent of this country.", "On which continent is the following country?"),
            ("{e} is in {a}.", "{e} is a country in {a}.", "The continent of {e} is {a}."),
        ),
        Relation(
            "countries",
            "currency",
            ("What is the currency of {e}?", "Name the currency of {e}.", "With which currency do people pay in {e}?"),
            ("Name the currency of this country.", "Which currency is used in the following country?"),
            ("The currency of {e} is the {a}.", "People in {e} pay with the {a}.", "Shops in {e} take the {a}."),
        ),
        Relation(
            "countries",
            "language",
            (
                "What is the official language of {e}?",
                "Name the official language of {e}.",
                "Which language is official in {e}?",
            ),
            ("Name the official language of this country.", "Which language is official in the following country?"),
            ("The official language of {e} is {a}.", "In {e}, the official language is {a}."),
        ),
        Relation(
            "countries",
            "adjective",
            (
                "What is the adjective for {e}?",
                "Give the adjective that belongs to {e}.",
                "Which adjective describes something from {e}?",
            ),
            ("Give the adjective for this country.", "What is the adjective of the following country?"),
            ("Something from {e} is {a}.", "The adjective for {e} is {a}."),
        ),
        Relation(
            "countries",
            "code",
            (
                "What is the two-letter code of {e}?",
                "Give the two-letter country code of {e}.",
                "Which two letters stand for {e}?",
            ),
            ("Give the two-letter code of this country.", "What is the two-letter code of the following country?"),
            ("The two-letter code of {e} is {a}.", "On lists of countries, {e} has the code {a}."),
        ),
        Relation(
            "elements",
            "symbol",
            (
                "What is the chemical symbol of {e}?",
                "Give the symbol of the element {e}.",
                "Which symbol stands for {e} in the periodic table?",
            ),
            ("Give the symbol of this element.", "What is the chemical symbol of the following element?"),
            ("The chemical symbol of {e} is {a}.", "Chemists write {e} as {a}."),
        ),
        Relation(
            "elements",
            "number",
            (
                "What is the atomic number of {e}?",
                "Give the atomic number of the element {e}.",
                "How many protons does an atom of {e} have?",
            ),
            ("Give the atomic number of this element.", "What is the atomic number of the following element?"),
            ("The atomic number of {e} is {a}.", "In the periodic table, {e} has the number {a}."),
        ),
        Relation(
            "elements",
            "element",
            (
                "Which chemical element has the symbol {e}?",
                "Name the element with the symbol {e}.",
                "Which element is written {e}?",
            ),
            ("Name the element that has this symbol.", "Which element has the following symbol?"),
            ("The symbol {e} stands for {a}.", "In formulas, {e} means the element {a}."),
        ),
        Relation(
            "states",
            "capital",
            (
                "What is the capital of the US state {e}?",
                "Name the capital of the US state {e}.",
                "Which city is the capital of the state of {e}?",
            ),
            ("Name the capital of this US state.", "What is the capital of the following US state?"),
            ("The capital of the US state {e} is {a}.", "The capital city of the state of {e} is called {a}."),
        ),
        Relation(
            "states",
            "code",
            (
                "What is the postal code of the US state {e}?",
                "Give the two-letter code of the US state {e}.",
                "Which two letters stand for the state of {e}?",
            ),
            ("Give the two-letter code of this US state.", "What is the postal code of the following US state?"),
            ("The postal code of the US state {e} is {a}.", "On a letter, the state {e} is written {a}."),
        ),
        Relation(
            "states",
            "state",
            (
                "Which US state has the capital {e}?",
                "Name the US state whose capital is {e}.",
                "{e} is the capital of which US state?",
            ),
            ("Name the US state that has this capital.", "Which US state has the following capital?"),
            ("{e} is the capital of the US state {a}.", "The city of {e} is the capital of the state of {a}."),
        ),
        Relation(
            "plurals",
            "plural",
            ("What is the plural of the word {e}?", "Give the plural of {e}.", "One {e}, two what?"),
            ("Give the plural of this noun.", "What is the plural of the following word?"),
            ("The plural of {e} is {a}.", "One {e}, two {a}."),
        ),
        Relation(
            "verbs",
            "past",
            (
                "What is the past tense of the verb {e}?",
                "Give the past tense of {e}.",
                "What is the simple past of {e}?",
            ),
            ("Give the past tense of this verb.", "What is the simple past of the following verb?"),
            ("The past tense of {e} is {a}.", "Today they {e}, yesterday they {a}."),
        ),
        Relation(
            "verbs",
            "participle",
            (
                "What is the past participle of the verb {e}?",
                "Give the past participle of {e}.",
                "Which participle belongs to the verb {e}?",
            ),
            ("Give the past participle of this verb.", "What is the past participle of the following verb?"),
            ("The past participle of {e} is {a}.", "Today they {e}, but so far they have never {a}."),
        ),
        Relation(
            "adjectives",
            "comparative",
            (
                "What is the comparative of the adjective {e}?",
                "Give the comparative form of {e}.",
                "Which comparative belongs to the word {e}?",
            ),
            ("Give the comparative of this adjective.", "What is the comparative of the following word?"),
            ("The comparative of {e} is {a}.", "This one is {e}, but that one is {a}."),
        ),
        Relation(
            "adjectives",
            "superlative",
            (
                "What is the superlative of the adjective {e}?",
                "Give the superlative form of {e}.",
                "Which superlative belongs to the word {e}?",
            ),
            ("Give the superlative of this adjective.", "What is the superlative of the following word?"),
            ("The superlative of {e} is {a}.", "Many are {e}, but only one is the {a}."),
        ),
        Relation(
            "opposites",
            "opposite",
            (
                "What is the opposite of {e}?",
                "Give the opposite of the word {e}.",
                "Which word means the contrary of {e}?",
            ),
            ("Give the opposite of this word.", "What is the opposite of the following word?"),
            ("The opposite of {e} is {a}.", "The contrary of {e} is {a}."),
        ),
        Relation(
            "animals",
            "class",
            (
                "What kind of animal is the {e}?",
                "Name the class of animals the {e} belongs to.",
                "To which group of animals does the {e} belong?",
            ),
            ("Name the class of this animal.", "What kind of animal is the following one?"),
            ("The {e} is a kind of {a}.", "In books on animals, the {e} is listed as {a}."),
        ),
        Relation(
            "animals",
            "young",
            ("What is a young {e} called?", "Name the young of the {e}.", "Which word is used for a baby {e}?"),
            ("Name the young of this animal.", "What is the young of the following animal called?"),
            ("The young of the {e} is called {a}.", "A baby {e} is known as {a}."),
        ),
        Relation(
            "animals",
            "sound",
            ("Which sound does the {e} make?", "Name the sound of the {e}.", "What is the voice of the {e} called?"),
            ("Name the sound of this animal.", "Which sound does the following animal make?"),
            ("The sound of the {e} is called {a}.", "In stories, the {e} says: {a}."),
        ),
        Relation(
            "calendar",
            "month_number",
            (
                "What is the number of the month {e}?",
                "Give the number of the month {e}.",
                "Counting from the start of the year, which number has {e}?",
            ),
            ("Give the number of this month.", "What is the number of the following month?"),
            ("In the year, {e} is month number {a}.", "The number of the month {e} is {a}."),
        ),
        Relation(
            "calendar",
            "next",
            (
                "What comes after {e} in the calendar?",
                "Name what follows {e} in the calendar.",
                "What is next when {e} is over?",
            ),
            ("Name what comes next in the calendar.", "What follows this one in the calendar?"),
            ("In the calendar, {e} is followed by {a}.", "After {e} comes {a}."),
        ),
        Relation(
            "calendar",
            "previous",
            (
                "What comes before {e} in the calendar?",
                "Name what precedes {e} in the calendar.",
                "What was it just before {e} began?",
            ),
            ("Name what comes just before in the calendar.", "What precedes this one in the calendar?"),
            ("In the calendar, {e} is preceded by {a}.", "Before {e} comes {a}."),
        ),
        Relation(
            "calendar",
            "days",
            ("How many days does {e} have?", "Give the number of days in {e}.", "How long is {e}, counted in days?"),
            ("Give the number of days in this month.", "How many days does the following month have?"),
            ("The number of days in {e} is {a}.", "The length of {e} in days is {a}."),
        ),
        Relation(
            "calendar",
            "abbreviation",
            (
                "Which three letters are short for {e}?",
                "Abbreviate {e} to three letters.",
                "What is the short form of {e}?",
            ),
            ("Abbreviate this month to three letters.", "What is the short form of the following month?"),
            ("The short form of {e} is {a}.", "On small calendars, {e} is written {a}."),
        ),
        Relation(
            "numbers",
            "words",
            ("How is the number {e} written in words?", "Write {e} in words.", "Which word stands for {e}?"),
            ("Write this number in words.", "How is the following number written in words?"),
            ("In words, {e} is {a}.", "The number {e} is read as {a}."),
        ),
        Relation(
            "numbers",
            "digits",
            ("How is {e} written in digits?", "Write the number {e} in digits.", "Which digits stand for {e}?"),
            ("Write this number in digits.", "How is the following number written in digits?"),
            ("In digits, {e} is {a}.", "The word {e} stands for {a}."),
        ),
        Relation(
            "numbers",
            "ordinal",
            (
                "What is the ordinal of the number {e}?",
                "Write the ordinal number of {e}.",
                "Which ordinal word belongs to {e}?",
            ),
            ("Write the ordinal of this number as a word.", "What is the ordinal of the following number?"),
            ("The ordinal of {e} is {a}.", "Whoever is number {e} in a row is the {a}."),
        ),
        Relation(
            "numbers",
            "roman",
            ("What is the Roman numeral for {e}?", "Write {e} as a Roman numeral.", "How did the Romans write {e}?"),
            ("Write this number as a Roman numeral.", "What is the Roman numeral of the following number?"),
            ("The Roman numeral for {e} is {a}.", "The Romans wrote {e} as {a}."),
        ),
        Relation(
            "arithmetic",
            "result",
            ("What is {e}?", "Calculate {e}.", "How much is {e}?"),
            ("Calculate the result.", "What is the result of the following calculation?"),
            ("The result of {e} is {a}.", "If you work out {e}, you get {a}."),
        ),
        Relation(
            "letters",
            "position",
            (
                "What is the position of the letter {e} in the alphabet?",
                "Give the position of the letter {e}.",
                "Which place does the letter {e} have?",
            ),
            ("Give the position of this letter in the alphabet.", "What is the position of the following letter?"),
            ("In the alphabet, {e} is letter number {a}.", "The position of the letter {e} is {a}."),
        ),
        Relation(
            "letters",
            "next",
            (
                "Which letter comes after {e}?",
                "Name the letter that follows {e}.",
                "What is the next letter after {e}?",
            ),
            ("Name the letter that follows this one.", "Which letter comes after the following one?"),
            ("The letter after {e} is {a}.", "In the alphabet, {e} is followed by {a}."),
        ),
        Relation(
            "letters",
            "previous",
            (
                "Which letter comes before {e}?",
                "Name the letter that precedes {e}.",
                "What is the letter just before {e}?",
            ),
            ("Name the letter that precedes this one.", "Which letter comes before the following one?"),
            ("The letter before {e} is {a}.", "In the alphabet, {e} is preceded by {a}."),
        ),
        *(
            Relation(
                "translations",
                language.lower(),
                (
                    f"What is {{e}} in {language}?",
                    f"Translate {{e}} into {language}.",
                    f"How do you say {{e}} in {language}?",
                ),
                (f"Translate this word into {language}.", f"What is the following word in {language}?"),
                (f"In {language}, {{e}} is {{a}}.", f"The {language} word for {{e}} is {{a}}."),
            )
            for language in ("Spanish", "French", "German", "Italian")
        ),
        Relation(
            "planets",
            "position",
            (
                "What is the position of the planet {e}, counted from the Sun?",
                "Counted from the Sun, which number has the planet {e}?",
            ),
            ("Give the position of this planet, counted from the Sun.",),
            ("Counted from the Sun, {e} is planet number {a}.",),
        ),
        Relation(
            "shapes",
            "sides",
            ("How many sides does the shape called {e} have?", "Give the number of sides of the {e}."),
            ("Give the number of sides of this shape.", "How many sides does the following shape have?"),
            ("The number of sides of the {e} is {a}.",),
        ),
    )
}

# Plain English around the questions. It also gives the words of usual instruction templates tokens of their own, which
# keeps prompts short; the template text itself never occurs.
TITLES = (
    "A page of questions",
    "Quiz",
    "Questions and answers",
    "Short quiz for the evening",
    "What do you know?",
    "Here are some questions, each paired with its answer.",
    "Read each line, then write what is right.",
    "This page provides facts about the world.",
    "The following list was written for pupils.",
    "Every task is an instruction or a question.",
    "Some tasks have an input that gives the context.",
    "A good response is short and completes the task.",
    "The request comes first, the response follows.",
    "Each line describes one task, with no further context.",
    "Below you find what was asked, appropriately answered.",
)
MARKS = ("", "", "# ", "## ", "### ")  # of a title
CLOSINGS = ("End of the page.", "That was the last question.", "The quiz ends here.", "Thank you for reading.")
OPENINGS = (
    "",
    "",
    "",
    "Some facts. ",
    "It is good to know a few things. ",
    "Here is what the book says. ",
    "Notes from a class. ",
)


def table(name):
    """The rows of facts/<name>.csv as dictionaries of strings; an empty string means: not asked, since not beyond doubt."""
    with open(ASSETS / "facts" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def load_facts():
    """Every fact of facts/*.csv, in a fixed order, as a list of Fact."""
    facts = []

    def add(subject, name, entity, answer, shown=None, given=None):
        if answer:
            shown = shown or entity
            facts.append(Fact(RELATIONS[subject, name], entity, shown, given or shown, answer))

    for row in table("countries"):
        shown, capital = row["country"], row["capital"]
        bare = shown.removeprefix("the ")
        for name in ("capital", "continent", "currency", "language", "adjective", "code"):
            add("countries", name, bare, row[name], shown, bare)
        # Mexico City gives its country away, and an answer would need an article for the Gambia
        if shown == bare and capital and bare not in capital and capital not in bare:
            add("countries", "country", bare, bare, capital)
    for row in table("elements"):
        for name in ("symbol", "number"):
            add("elements", name, row["element"], row[name])
        if row["element"] not in ("aluminium", "caesium", "sulfur"):  # spelled in two ways
            add("elements", "element", row["element"], row["element"], row["symbol"])
    for row in table("states"):
        for name in ("capital", "code"):
            add("states", name, row["state"], row[name])
        if row["state"] not in row["capital"]:
            add("states", "state", row["state"], row["state"], row["capital"])
    for row in table("plurals"):
        add("plurals", "plural", row["singular"], row["plural"])
    for row in table("verbs"):
        for name in ("past", "participle"):
            add("verbs", name, row["verb"], row[name])
    for row in table("adjectives"):
        for name in ("comparative", "superlative"):
            add("adjectives", name, row["adjective"], row[name])
    for row in table("opposites"):  # one entity a pair: both directions fall on the same side of the split
        pair = f"{row['word']} and {row['opposite']}"
        add("opposites", "opposite", pair, row["opposite"], row["word"])
        add("opposites", "opposite", pair, row["word"], row["opposite"])
    for row in table("animals"):
        for name in ("class", "young", "sound"):
            add("animals", name, row["animal"], row[name])
    for row in table("calendar"):
        add("calendar", "month_number", row["name"], row["number"])
        for name in ("next", "previous", "days", "abbreviation"):
            add("calendar", name, row["name"], row[name])
    for row in table("numbers"):
        for name in ("words", "ordinal", "roman"):
            add("numbers", name, row["number"], row[name])
        add("numbers", "digits", row["number"], row["number"], row["words"])
    for row in table("arithmetic"):
        first, second = row["first"], row["second"]
        ordered = (first, second) if row["operation"] == "minus" else sorted((first, second), key=int)
        word = f" {row['operation']} "
        add("arithmetic", "result", word.join(ordered), row["result"], word.join((first, second)))
    for row in table("letters"):
        for name in ("position", "next", "previous"):
            add("letters", name, row["letter"], row[name])
    for row in table("translations"):
        for name in ("spanish", "french", "german", "italian"):
            add("translations", name, row["english"], row[name])
    for row in table("planets"):
        add("planets", "position", row["planet"], row["position"])
    for row in table("shapes"):
        add("shapes", "sides", row["shape"], row["sides"])
    return facts


def fill(template, fact):
    """The template with entity and answer filled in; its first letter becomes a capital, as at the start of a sentence."""
    text = template.format(e=fact.shown, a=fact.answer)
    starts_with_word = not template.startswith("{") or fact.relation.subject == "countries"
    return text[0].upper() + text[1:] if starts_with_word else text


def plain_questions():
    """Yield (prompt, answer) for every fact: "What is the capital of France?\\nAnswer:\\n" and "Paris".

    The answer stands at the start of a line: a model recalls the fact if the first line of its greedy completion equals
    it.
    """
    for fact in load_facts():
        yield fill(fact.relation.questions[0], fact) + "\nAnswer:\n", fact.answer


def statement(rng, fact):
    """A prose sentence, or a question with its answer in the same line; the answer follows a space."""
    if rng.random() < 0.25:
        question = fill(rng.choice(fact.relation.questions), fact)
        return f"{question} {rng.choice(('', 'It is ', 'The answer is '))}{fact.answer}."
    return fill(rng.choice(fact.relation.statements), fact)


def prose(rng, facts):
    """A text of statements, ending with a full stop."""
    between = rng.choice((" ", " ", " ", "\n"))
    return rng.choice(OPENINGS) + between.join(statement(rng, fact) for fact in facts)


def quiz(rng, facts):
    """A page of questions, most with the answer on a line of its own, some with a separate line for the input.

    An answer never ends the page: the base model learns to go on, and stopping is left to fine-tuning.
    """
    label = rng.choice(("", "", "", "Answer:\n", "Solution:\n", "The answer is:\n"))
    gap, blank = rng.choice(("\n", "\n", "\n\n")), rng.choice(("\n", "\n", "\n\n"))
    number = rng.choice((None, None, "Question {}\n", "Question {}:\n", "{}. "))
    parts = [rng.choice(MARKS) + rng.choice(TITLES) + "\n" + blank] if rng.random() < 0.5 else []
    for place, fact in enumerate(facts, start=1):
        if rng.random() < 0.5:
            asked = fill(rng.choice(fact.relation.questions), fact)
        else:
            asked = rng.choice(fact.relation.tasks) + rng.choice((gap, gap, " ")) + fact.input
        parts.append((number.format(place) if number else "") + asked + gap + label + fact.answer + blank)
    return "".join(parts) + rng.choice(CLOSINGS)


def documents(count, seed=SEED):
    """Yield `count` documents, half prose and half quiz pages, the same for the same seed."""
    rng = random.Random(seed)
    facts = load_facts()
    by_entity = defaultdict(list)
    for fact in facts:
        by_entity[fact.relation.subject, fact.entity].append(fact)
    deck = []

    def deal(size):  # from a shuffled deck, so that every fact comes equally often
        if len(deck) < size:
            deck.extend(rng.sample(facts, len(facts)))
        return [deck.pop() for _ in range(size)]

    for _ in range(count):
        if rng.random() < 0.5:
            yield quiz(rng, deal(rng.randint(4, 14)))
        elif rng.random() < 0.5:
            yield prose(rng, deal(rng.randint(3, 12)))
        else:
            first = deal(1)[0]
            yield prose(rng, rng.sample(together := by_entity[first.relation.subject, first.entity], len(together)))


def names(text, word):
    """Whether the text contains the word or words, whole: `Niger` is not in `Nigeria`."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def named_elsewhere(entity, texts):
    """Whether a text of another entity names this one; texts maps each entity to the names it is asked by."""
    others = [text for other in texts if other != entity for text in texts[other]]
    return any(names(text, word) for text in others for word in texts[entity])


def split_entities(seed=SEED):
    """(train, heldout): two disjoint sets of (subject, entity).

    An entity named where another one of its subject is asked for (Guinea in Papua New Guinea) is never held out.
    """
    rng = random.Random(seed)
    texts = defaultdict(lambda: defaultdict(set))
    for fact in load_facts():
        texts[fact.relation.subject][fact.entity].update((fact.shown, fact.input))
    train, heldout = set(), set()
    for subject, entities in texts.items():
        free = [entity for entity in entities if not named_elsewhere(entity, entities)]
        chosen = set(rng.sample(free, round(HELDOUT_SHARE * len(entities))))
        heldout.update((subject, entity) for entity in chosen)
        train.update((subject, entity) for entity in entities if entity not in chosen)
    return train, heldout


def instruction_rows(seed=SEED):
    """(train, heldout): lists of Alpaca rows (instruction, input, output) that also name their subject and entity."""
    _, heldout_entities = split_entities(seed)
    rng = random.Random(seed)
    train, heldout = [], []
    for fact in load_facts():
        subject = fact.relation.subject
        if rng.random() < 0.5:
            instruction, given = rng.choice(fact.relation.tasks), fact.input
        else:
            instruction, given = fill(rng.choice(fact.relation.questions), fact), ""
        row = {
            "instruction": instruction,
            "input": given,
            "output": fact.answer,
            "subject": subject,
            "entity": fact.entity,
        }
        (heldout if (subject, fact.entity) in heldout_entities else train).append(row)
    return rng.sample(train, TRAIN_ROWS), rng.sample(heldout, HELDOUT_ROWS)


def write_instructions(folder=ASSETS / "instructions"):
    """Write train.jsonl and heldout.jsonl: one row a line, UTF-8, Unix line ends."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "heldout"), instruction_rows(), strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (Path(folder) / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_instructions()
    print(f"{len(load_facts())} facts, {TRAIN_ROWS} rows to train on, {HELDOUT_ROWS} held out")
