"""The glossary: every link to it has its target, its words are in order, and each names a lesson that is there."""

import re

import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course

GLOSSARY = COURSE_ROOT / "site" / "glossary.md"
PAGES = [COURSE_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "site/claims.md", "site/decide.md")]
LINKED = [*course.lessons(), *PAGES]


def anchor(heading: str) -> str:
    """The name that GitHub gives to a heading: small letters, no signs, a hyphen for each space."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def terms(text: str) -> list[str]:
    return re.findall(r"^### (.+)$", text, re.MULTILINE)


def faults(text: str) -> list[str]:
    """What is wrong with a glossary."""
    words = terms(text)
    found = [] if words == sorted(words, key=str.lower) else ["not in order"]
    found += ["a word twice"] if len({anchor(word) for word in words}) < len(words) else []
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        lesson = re.search(r"\[Lesson\s(\d\d)\]\(\.\./notebooks/((\d\d)_\w+)\.ipynb\)", part)
        if not lesson or lesson[1] != lesson[3] or not (course.LESSONS / f"{lesson[2]}.py").is_file():
            found.append(f"{part.splitlines()[0]}: no lesson")
        if len(part.split()) > 70:
            found.append(f"{part.splitlines()[0]}: long")
    return found


def dead_links(text: str, words: list[str]) -> list[str]:
    known = {anchor(word) for word in words}
    return [name for name in re.findall(r"glossary\.md#([^)\s`]+)", text) if name not in known]


def test_the_glossary_is_in_order_and_each_word_has_its_lesson():
    assert faults(GLOSSARY.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", LINKED, ids=lambda file: file.stem)
def test_every_link_into_the_glossary_has_its_target(file):
    assert dead_links(file.read_text(encoding="utf-8"), terms(GLOSSARY.read_text(encoding="utf-8"))) == []


def test_lesson_00_links_the_words_that_it_brings():
    text = course.find_lesson("00").read_text(encoding="utf-8")
    linked = set(re.findall(r"glossary\.md#([\w-]+)", text))
    assert {"lora", "qlora", "adapter", "rank", "alpha", "base-model", "token", "nf4", "compute-dtype"} <= linked


def test_a_notebook_s_links_to_files_are_addresses_since_colab_has_no_folder_beside_it():
    repository, tag = course.address()
    for lesson in course.lessons():
        text = "\n".join(cell.source for cell in course.to_notebook(lesson).cells if cell.cell_type == "markdown")
        assert "](../" not in text
        for target in re.findall(r"\]\(\.\./([^)]+)\)", lesson.read_text(encoding="utf-8")):
            assert f"](https://github.com/{repository}/blob/{tag}/{target})" in text


def test_planted_faults_are_noticed():
    right = "### a\n\nOne. [Lesson 00](../notebooks/00_start_here.ipynb)\n"
    assert faults(right) == []
    assert faults("### b\n\nTwo.\n" + right) == ["not in order", "b: no lesson"]
    assert faults(right + right) == ["a word twice"]
    assert dead_links("[x](../site/glossary.md#x-y)", ["X z"]) == ["x-y"]
