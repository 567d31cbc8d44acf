"""Slides: few, from the run, with the instructor's words as notes, in one file that asks nothing of a network."""

import re
from pathlib import Path

import nbformat
import pytest

from helpers import course
from helpers.workshop import slides
from helpers.workshop.kit_pages import asked
from helpers.workshop.learner_notebooks import filled
from helpers.workshop.slides import AT_MOST, as_html, figures, paragraph, section_slides, slides_of
from tests.browser.lab import CHROMIUM

LESSONS = course.lessons()
OF_A_LESSON = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


def prose(text, *tags):
    return nbformat.v4.new_markdown_cell(text, metadata={"tags": list(tags)})


def drawn(source="show(figure)", alt="it rises", *tags):
    out = nbformat.v4.new_output("display_data", {"image/png": "aGk=\n"}, metadata={"image/png": {"alt": alt}})
    return nbformat.v4.new_code_cell(source, outputs=[out], metadata={"tags": list(tags)})


@OF_A_LESSON
def test_a_lesson_has_some_slides_and_at_most_eighteen(lesson):
    made = slides_of(lesson)
    assert 6 <= len(made) <= AT_MOST == 18
    assert made[0][0].startswith(f"# {course.title(lesson)}")
    assert len({text for text, _ in made}) == len(made)
    assert not re.search(r"\{\{|\$|<details>", "".join(re.sub(r'src="[^"]*"', "", text) for text, _ in made))


@OF_A_LESSON
def test_the_figures_are_those_of_the_run_with_their_alternative_texts(lesson):
    of_the_run = {figure for cell in filled(lesson).cells for figure in figures(cell)}
    shown = [figure for text, _ in slides_of(lesson) for figure in re.findall(r"<img [^>]*>", text)]
    assert shown
    assert set(shown) <= of_the_run
    assert all(re.search(r'alt="[^"]{15,}"', figure) for figure in shown)


@OF_A_LESSON
def test_the_notes_are_the_instructor_s_and_name_what_a_wrong_answer_tells(lesson):
    made, file = slides_of(lesson), lesson.with_suffix(".instructor.md").read_text(encoding="utf-8")
    assert made[0][1]
    assert made[0][1] in file
    assert made[-1][1] in file
    for question in asked().get(lesson.stem[:2], []):
        ((text, notes),) = [slide for slide in made if slide[0].startswith(f"## {question['ask']}")]
        assert question["right"] not in notes
        assert question["why"] in notes
        assert all(wrong["belief"] in notes for wrong in question["wrong"])
        assert notes.count("right.") >= 1


def test_a_cell_that_is_marked_is_a_slide_and_goes_before_figure_and_text():
    cells = [
        prose("## 3 Blocks\n\nwords"),
        drawn(),
        prose("## 3 Blocks\n\nmarked", "slide"),
        drawn("x = 1", "it falls", "slide"),
    ]
    assert section_slides("3 Blocks", cells[:1]) == [("## Blocks\n\nwords", "text")]
    ((figure, kind),) = section_slides("3 Blocks", cells[:2])
    assert (kind, figure) == ("figure", '## Blocks\n\n<img src="data:image/png;base64,aGk=" alt="it rises">')
    (first, second) = section_slides("3 Blocks", cells)
    assert first == ("## Blocks\n\nmarked", "tagged")
    assert second[0].startswith("## Blocks\n\n```python\nx = 1\n```\n\n<img ")


@pytest.mark.parametrize(
    "text",
    ["| a | b |", "- one", "> box", "$$x$$", "so $x$ it is", "These are they:", "The next cell asks.", "x" * 999],
)
def test_what_does_not_stand_alone_on_a_slide_is_passed_over(text):
    assert paragraph([prose(f"# t\n\n{text}\n\nplain words")]) == "plain words"
    assert paragraph([prose(text)]) == ""
    assert paragraph([prose(f"# t\n\n{text}\n\nplain words")], opening=True) == ""


def test_no_solution_and_no_link_comes_onto_a_slide():
    folded = "<details><summary>Solution</summary>\n\na = 1\n</details>\n\nsee [there](03_x.ipynb), too"
    assert paragraph([prose(folded)]) == "see there, too"


def test_a_lesson_with_too_many_sections_loses_slides_of_mere_text_first(monkeypatch):
    cells = [
        cell
        for n in range(30)
        for cell in (prose(f"## {n} Part\n\nwords {n}"), *([drawn(alt=f"a{n}")] if n == 29 else []))
    ]
    made = nbformat.v4.new_notebook(cells=[prose("# 00 Start\n\nwords"), *cells])
    monkeypatch.setattr(slides, "filled", lambda lesson: made)
    found = slides_of(LESSONS[0])
    assert len(found) == AT_MOST
    assert any("<img" in text for text, _ in found)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    (found,) = slides.write_slides(LESSONS[:1], tmp_path_factory.mktemp("slides"))
    return found


def test_the_file_asks_nothing_of_a_network(file):
    text = re.sub(r"<script>.*?</script>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert (
        re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)[^"]*"|@import|url\((?!data:)[^)]*\)', text)
        == []
    )
    assert "Permission is hereby granted, free of charge" in file.read_text(encoding="utf-8")


def test_what_html_would_read_is_text():
    page = as_html([("## a\n\n<ol><li>1 &lt; 2</li></ol>", "- note")], 'A "name" <b>')
    assert page.count('<aside class="notes">') == 1
    assert "<b>" not in page.partition("<title>")[2].partition("</title>")[0]


def test_in_a_browser_every_slide_shows_and_fits_and_nothing_is_fetched(file):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip("no chromium on this machine")
    fetched, errors = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        page.on("request", lambda request: fetched.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{file}")
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        count = page.evaluate("Reveal.getTotalSlides()")
        boxes = []
        for number in range(count):
            page.evaluate(f"Reveal.slide({number})")
            boxes.append(
                page.evaluate(
                    "(() => { const b = Reveal.getCurrentSlide().getBoundingClientRect(); return [b.height, b.top]; })()"
                )
            )
        browser.close()
    assert errors == []
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    assert count == len(slides_of(LESSONS[0]))
    assert all(50 < height <= 700 and top > -5 for height, top in boxes), boxes
