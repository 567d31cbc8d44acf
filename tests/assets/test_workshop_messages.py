"""The messages of lesson 07: made again byte for byte, labelled by the rules, and nothing of the held-out half is learned."""

import csv
import itertools
import re
import string
import sys
from collections import Counter
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "assets"
sys.path.insert(0, str(ASSETS))

import make_messages as mm  # noqa: E402

FILES = ("messages", "heldout", "by_hand")


def rows_of(name):
    with open(ASSETS / "messages" / f"{name}.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


ROWS = {name: rows_of(name) for name in FILES}
EVERY = [pytest.param(row, id=f"{name}-{i}") for name in FILES for i, row in enumerate(ROWS[name])]


def words(text):
    return set(re.findall(r"[^\W_]+", text.casefold()))


def test_the_files_come_out_again_byte_for_byte(tmp_path):
    mm.write(tmp_path)
    for name in ("messages", "heldout"):
        assert (tmp_path / f"{name}.csv").read_bytes() == (ASSETS / "messages" / f"{name}.csv").read_bytes()
    assert mm.messages("train", seed=mm.SEED + 1)[0].row != mm.messages("train")[0].row


def test_they_are_as_a_spreadsheet_exports_them():
    for name in FILES:
        raw = (ASSETS / "messages" / f"{name}.csv").read_bytes()
        assert raw.startswith(b"\xef\xbb\xbfReceived,Channel,Message,Name,Request,Place,Day,Time\r\n")
    assert {name: len(rows) for name, rows in ROWS.items()} == {"messages": 3840, "heldout": 240, "by_hand": 60}
    assert any("\n" in row["Message"] for row in ROWS["messages"])


@pytest.mark.parametrize("name", FILES)
def test_every_label_is_one_that_the_rules_allow(name):
    for row in ROWS[name]:
        assert row["Request"] in mm.REQUESTS, row
        assert row["Day"] in ("", *mm.DAYS), row
        assert re.fullmatch(r"|(0[89]|1[0-9]):[0-5]\d", row["Time"]), row
        assert row["Message"].strip()


@pytest.mark.parametrize("name", FILES)
def test_names_and_places_stand_in_their_message_as_they_are_noted(name):
    for row in ROWS[name]:
        for field in ("Name", "Place"):
            assert row[field].casefold() in row["Message"].casefold(), row


def test_no_message_stands_twice():
    texts = [row["Message"].casefold() for name in FILES for row in ROWS[name]]
    assert len(texts) == len(set(texts))


# --- nothing of the held-out half is learned ---------------------------------------------------------------------


def listed(parts):
    """All texts of a nested list of parts."""
    if isinstance(parts, str):
        return {parts} - {""}
    inside = parts.values() if isinstance(parts, dict) else parts
    return set(itertools.chain.from_iterable(map(listed, inside)))


@pytest.mark.parametrize(
    "parts",
    [
        "WANTED",
        "WHERE",
        "WHEN",
        "SLOT",
        "GREETING",
        "BY_NAME",
        "SIGNED",
        "FOR_ANOTHER",
        "REMARK",
        "CLOSING",
        "RELATIVES",
    ],
)
def test_no_part_of_a_message_stands_in_both_halves(parts):
    halves = getattr(mm, parts)
    learned, held = (listed(halves[half]) for half in ("train", "heldout"))
    assert held
    plain = {re.sub(r"\W+", " ", text).casefold().strip() for text in learned}
    assert not plain & {re.sub(r"\W+", " ", text).casefold().strip() for text in held}


def test_what_was_added_later_shares_no_four_words_in_a_row_with_a_held_out_part():
    def runs_of_four(text):
        said = re.findall(r"[\w']+", re.sub(r"\{\w+\}", " ", text).casefold())
        return {tuple(said[i : i + 4]) for i in range(len(said) - 3)}

    tables = ("WANTED", "BY_NAME", "SIGNED", "FOR_ANOTHER", "REMARK", "GREETING", "CLOSING")
    held = set().union(*(runs_of_four(text) for name in tables for text in listed(getattr(mm, name)["heldout"])))
    added = set().union(*(listed(mm.ADDED[name]) for name in tables))
    assert len(added) > 300
    assert [text for text in added if runs_of_four(text) & held] == []


def test_settings_are_chosen_on_messages_of_other_sentences_names_and_towns_than_those_that_are_learned():
    of = {half: mm.messages(half) for half in ("learn", "choose")}
    shared = set.intersection(*(set().union(*(message.parts for message in of[half])) for half in of))
    assert shared <= listed(mm.WHEN["train"]) | listed(mm.SLOT["train"])
    for names in ("FIRST_NAMES", "SURNAMES", "TOWNS"):
        assert not set(getattr(mm, names)["learn"]) & set(getattr(mm, names)["choose"])
        assert not set(getattr(mm, names)["choose"]) & set(getattr(mm, names)["heldout"])


def test_what_the_script_took_is_from_its_own_half():
    of = {half: set().union(*(m.parts for m in mm.messages(half))) for half in ("train", "heldout")}
    assert len(of["train"]) > 100
    assert len(of["heldout"]) > 50
    assert not of["train"] & of["heldout"]


def test_no_name_and_no_town_of_a_held_out_message_stands_in_a_training_message():
    learned = set().union(*(words(row["Message"]) for row in ROWS["messages"]))
    of_towns = words("New San Cape La Da")  # parts of names of two words
    for row in ROWS["heldout"]:
        for field in ("Name", "Place"):
            assert not (words(row[field]) - of_towns) & learned, row


def skeleton(row):
    """A message without what is filled in: names, towns, days, times, numbers, capitals, punctuation."""
    text = row["Message"].casefold()
    for field in ("Name", "Place"):
        text = text.replace(row[field].casefold(), " ") if row[field] else text
    known = [
        *mm.DAYS,
        *itertools.chain(*mm.SHORT_DAYS.values()),
        *itertools.chain(*mm.MISSPELT_DAYS.values()),
        *mm.HOURS,
    ]
    gone = {word.casefold() for word in known} | {
        "am",
        "pm",
        "h",
        "o",
        "clock",
        "half",
        "past",
        "quarter",
        "noon",
        "midday",
    }
    return [word for word in re.findall(r"[a-z']+", text) if word not in gone]


def runs(words_of_one, length=7):
    return {tuple(words_of_one[i : i + length]) for i in range(len(words_of_one) - length + 1)}


def test_no_seven_words_in_a_row_are_shared_once_names_days_and_times_are_taken_out():
    """Asked of the files alone, and not of the script that wrote them."""
    learned = set().union(*(runs(skeleton(row)) for row in ROWS["messages"]))
    shared = Counter(run for row in ROWS["heldout"] for run in runs(skeleton(row)) if run in learned)
    assert not shared, shared.most_common(5)


def test_a_copied_message_would_be_noticed():
    row = max(ROWS["messages"], key=lambda row: len(row["Message"]))
    learned = set().union(*(runs(skeleton(row)) for row in ROWS["messages"]))
    copied = row | {"Message": row["Message"].replace(row["Name"] or "zzz", "Xiomara"), "Name": "Xiomara"}
    assert runs(skeleton(copied)) & learned


# --- what is hard is there ----------------------------------------------------------------------------------------


def days_in(text):
    return {day for day in mm.DAYS if day.casefold() in text.casefold()}


@pytest.mark.parametrize("name", FILES)
def test_the_messages_have_the_difficulties_that_the_page_names(name):
    rows = ROWS[name]
    share = {
        "two days": sum(len(days_in(row["Message"])) > 1 for row in rows),
        "no name": sum(not row["Name"] for row in rows),
        "no time": sum(not row["Time"] for row in rows),
        "no capital": sum(row["Message"].islower() for row in rows),
        "time in words": sum(bool(row["Time"]) and not set(row["Message"]) & set(string.digits) for row in rows),
        "polite": sum(bool(re.search("please|thank|kind|sorry|pls|thx", row["Message"].casefold())) for row in rows),
    }
    assert all(count >= 0.02 * len(rows) for count in share.values()), share
    assert Counter(row["Request"] for row in rows).most_common()[-1][1] >= 0.1 * len(rows)


def test_the_times_are_those_at_which_a_workshop_is_open_and_bare_hours_are_read_so():
    writer = mm.Writer("train")
    for _ in range(2000):
        written, noted = writer.clock()
        assert "08:00" <= noted <= "18:45"
        if written.isdecimal():
            hour = int(written)
            assert noted == f"{hour if hour >= 8 else hour + 12:02}:00"
