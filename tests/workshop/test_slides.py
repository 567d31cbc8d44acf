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


def tabled(html, *tags):
    out = nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": "t"})
    return nbformat.v4.new_code_cell("table(rows)", outputs=[out], metadata={"tags": list(tags)})


def table_of(rows: int, columns: int = 2, cell: str = "x") -> str:
    row = f"<tr>{f'<td>{cell}</td>' * columns}</tr>\n"
    return f"<table>\n<thead>\n<tr>{'<th>h</th>' * columns}</tr>\n</thead>\n<tbody>\n{row * rows}</tbody>\n</table>"


def test_a_small_table_is_a_slide_below_the_words_or_after_the_figure():
    words = prose("## 3 Blocks\n\nwords")
    assert section_slides("3 Blocks", [words, tabled(table_of(3))]) == [
        (f"## Blocks\n\nwords\n\n{table_of(3)}", "table")
    ]
    ((figure, first), (table, second)) = section_slides("3 Blocks", [words, drawn(), tabled(table_of(3))])
    assert (first, second) == ("figure", "table too")
    assert "<img" in figure
    assert table == f"## Blocks\n\n{table_of(3)}"
    long = prose(f"## 3 Blocks\n\n{'Many words. ' * 40}")
    assert section_slides("3 Blocks", [long, tabled(table_of(3))]) == [(f"## Blocks\n\n{table_of(3)}", "table")]


@pytest.mark.parametrize("table", [table_of(10), table_of(2, 9), table_of(4, 2, "word " * 20), table_of(2, 2, "$x$")])
def test_a_table_that_is_too_large_for_a_slide_is_none(table):
    assert section_slides("3 Blocks", [prose("## 3 Blocks\n\nwords"), tabled(table)]) == [
        ("## Blocks\n\nwords", "text")
    ]


def test_a_list_comes_along_with_the_first_sentence_of_each_item():
    listed = "- **Keep** it. It is small.\n- [Merge](a.md), then\n  measure. Always.\n- **Do. Then** say so."
    short = "- **Keep** it.\n- Merge, then measure.\n- **Do.**"
    (slide,) = section_slides("4 Ways", [prose(f"## 4 Ways\n\nThere are three.\n\n{listed}")])
    assert slide == (f"## Ways\n\nThere are three.\n\n{short}", "text")
    assert section_slides("Which one?", [prose(f"### Which one?\n\n{listed}")]) == [
        (f"## Which one?\n\n{short}", "text")
    ]
    assert section_slides("Which one?", [prose("### Which one?\n\nmere words")]) == []
    assert section_slides("Which one?", [prose("### Which one?\n\na\n\nb\n\n- late")]) == []


def test_asides_and_lines_that_are_not_shown_are_left_out():
    said = "One thing (a small one) is so. (Another is not.) The last three lines say why. The last line of an error counts."
    assert paragraph([prose(said)]) == "One thing (a small one) is so. The last line of an error counts."
    assert paragraph([prose("(All of it is an aside.)\n\nplain words")]) == "plain words"


def test_empty_cells_of_a_table_are_words_and_a_cell_of_the_notebook_is_not_shown():
    assert paragraph([prose("You kept its empty cells.")]) == "You kept its empty cells."
    assert paragraph([prose("The next cell trains.\n\nplain words")]) == "plain words"


def test_every_slide_says_something_and_none_is_of_the_exercises():
    for lesson in LESSONS:
        texts = [text for text, _ in slides_of(lesson)]
        assert [text for text in texts if not text.partition("\n")[2].strip()] == [], lesson.stem
        assert [text for text in texts if text.startswith("## Exercises")] == [], lesson.stem


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


def test_tables_beside_figures_go_before_mere_text_and_that_before_other_tables(monkeypatch):
    def part(n):
        kind = n % 3
        return (
            prose(f"## {n} Part\n\nwords {n}"),
            *([drawn(alt=f"a{n}")] * (kind == 0)),
            *([tabled(table_of(n % 7 + 1))] * (kind < 2)),
        )

    cells = [cell for n in range(30) for cell in part(n)]
    monkeypatch.setattr(
        slides, "filled", lambda lesson: nbformat.v4.new_notebook(cells=[prose("# 00 Start\n\nwords"), *cells])
    )
    middle = [text for text, _ in slides_of(LESSONS[0]) if text.startswith("## Part")]
    assert sum("<img" in text for text in middle) >= 6
    assert [text for text in middle if "<table" in text and "words" not in text] == [], "beside a figure"
    assert [text for text in middle if "<" not in text] == [], "mere text"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return slides.write_slides(LESSONS, tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def file(files):
    return files[0]


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


@pytest.mark.parametrize("size", [(1100, 700), (390, 780)], ids=["wide", "narrow"])
def test_in_a_browser_every_slide_shows_and_fits_and_nothing_is_fetched(files, size):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip("no chromium on this machine")
    fetched, errors, boxes, counts = [], [], {}, []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for file in files:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.on("request", lambda request: fetched.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"file://{file}")
            page.wait_for_function("window.Reveal && Reveal.isReady()")
            counts.append(page.evaluate("Reveal.getTotalSlides()"))
            for number in range(counts[-1]):
                page.evaluate(f"Reveal.slide({number})")
                boxes[file.stem, number] = page.evaluate(BOX)
            page.close()
        browser.close()
    assert errors == []
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    assert counts == [len(slides_of(lesson)) for lesson in LESSONS]
    assert {
        where: box for where, box in boxes.items() if not (20 < box[0] <= size[1] and box[1] > -5 and box[2] <= 1)
    } == {}


# The height of the slide that is shown, its top, and by how many pixels a table in it is wider than the slide.
BOX = """(() => {
  const slide = Reveal.getCurrentSlide(), box = slide.getBoundingClientRect();
  const wider = [...slide.querySelectorAll("table")].map(table => table.scrollWidth - slide.clientWidth);
  return [box.height, box.top, Math.max(0, ...wider)];
})()"""
