"""What the site is made of, without building it: links that are led, glossary words, checks that notice, numbers, colours."""

import itertools
import re
import sys

import numpy
import pytest
from docutils import nodes

from helpers import COURSE_ROOT, CourseError
from helpers.course import NOTEBOOKS, lessons, read_notebook
from helpers.failures import FAILURES
from helpers.memory import predict, shape_of
from helpers.memory.planner import SPARE
from helpers.plots import COLOURS, diagrams
from tests.scripts import script

sys.path.insert(0, str(COURSE_ROOT / "site"))
import charts  # noqa: E402
import cheat_sheet  # noqa: E402
import checks  # noqa: E402
import engines  # noqa: E402
import planned  # noqa: E402
import staging  # noqa: E402

LINKS = staging.Links(["03_t4_training"])
STORED = [lesson.stem for lesson in lessons() if (NOTEBOOKS / f"{lesson.stem}.ipynb").is_file()]


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "folder", "page", "led"),
    [
        ("../site/glossary.md#rank", "notebooks", "lessons/03_t4_training", "../glossary.md#rank"),
        (f"{LINKS.release}site/glossary.md#rank", "notebooks", "lessons/03_t4_training", "../glossary.md#rank"),
        ("../notebooks/03_t4_training.ipynb", "site", "glossary", "lessons/03_t4_training.ipynb"),
        ("03_t4_training.ipynb", "notebooks", "lessons/03_t4_training", "03_t4_training.ipynb"),
        ("../README.md", "site", "claims", "index.md"),
        ("claims.md#bf16", "site", "decide", "claims.md#bf16"),
        ("../notebooks/03_t4_training.ipynb#traps", "site", "failures", "lessons/03_t4_training.ipynb#traps"),
        ("api/memory.md", "site", "calculator", "api/memory.md"),
        ("#lean", "site", "glossary", "#lean"),
        ("https://arxiv.org/abs/2305.14314", "site", "claims", "https://arxiv.org/abs/2305.14314"),
        ("../tests/cells.py", "site", "claims", f"{LINKS.release}tests/cells.py"),
        ("../notebooks/00_start_here.ipynb", "site", "claims", f"{LINKS.release}notebooks/00_start_here.ipynb"),
    ],
)
def test_a_link_leads_to_the_site_s_own_page_or_to_the_release(target, folder, page, led):
    assert LINKS.led(target, folder, page) == led


def test_a_link_to_a_file_that_is_not_there_stops_the_build():
    with pytest.raises(CourseError, match="claims links to tests/gone.py"):
        LINKS.lead("See [it](../tests/gone.py).", "site", "claims")


def test_code_is_left_as_it_is():
    text = "A [link](claims.md), `f('x')[0](nowhere)`, and\n\n```python\nrows[0](nowhere)\n```\n"
    assert LINKS.lead(text, "site", "decide") == text


# --- lessons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", STORED)
def test_a_lesson_is_staged_with_its_outputs_and_loads_nothing(stem):
    notebook = read_notebook(NOTEBOOKS / f"{stem}.ipynb")
    staged = staging.staged_notebook(notebook, stem, staging.Links(STORED))
    assert len(staged.cells) == len(notebook.cells)
    assert not re.search(r"!\[[^\]]*\]\(https?:", staged.cells[0].source), "a badge is a picture from elsewhere"
    assert staged.cells[0].source.startswith("# ")
    figures = [cell for cell in staged.cells if any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))]
    assert all(cell.metadata["mystnb"]["image"]["alt"] for cell in figures)
    assert "hide-input" in staged.cells[1].metadata.tags
    assert "<progress" not in str(staged)


def test_a_figure_without_alternative_text_stops_the_build():
    notebook = read_notebook(NOTEBOOKS / f"{STORED[0]}.ipynb")
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("image/png", None)
    with pytest.raises(CourseError, match="no alternative text"):
        staging.staged_notebook(notebook, STORED[0], LINKS)


def test_the_code_of_the_cheat_sheet_is_the_lesson_s():
    code = cheat_sheet.steps()
    compile(code, "sheet", "exec")
    assert all(f"# Step {n}:" in code for n in (1, 2, 3, 4, 6, 7, 8))
    peaks = [size for _, size in cheat_sheet.ladder()]
    assert peaks == sorted(peaks, reverse=True)
    assert len(cheat_sheet.messages()) > 12
    assert [do for _, do in cheat_sheet.messages() if do.count("`") % 2] == [], "a piece of code was cut"
    assert cheat_sheet.first_sentence("Put it there first: `" + "f(x) " * 40 + "`. More.") == "Put it there first ..."


# --- the glossary's words ---------------------------------------------------------------------------------------------


def section(*texts) -> nodes.section:
    made = nodes.section("", nodes.title("", "About rank"))
    for text in texts:
        made += nodes.paragraph("", "", *(text if isinstance(text, list) else [nodes.Text(text)]))
    return made


def linked(made) -> list[str]:
    return [link.astext() for link in made.findall(nodes.reference) if "term" in link.get("classes", ())]


def test_the_first_place_of_each_word_is_linked_once_and_never_in_a_heading_or_in_code():
    parts = pytest.importorskip("sphinx_parts", reason="Sphinx and latex2mathml come with the extra site")
    terms = {"rank": "How thin.", "base model": "Where you start.", "batch size": "Rows.", "LoRA": "Adapters."}
    code = [nodes.literal("", "rank"), nodes.Text(" is set. The Ranks differ, rank by rank.")]
    made = section(code, "A base model and LoRA; a database modelled on lora-like rankings.")
    assert parts.link_terms(made, terms, "../glossary.html") == 3
    assert linked(made) == ["Ranks", "base model", "LoRA"]
    assert next(iter(made.findall(nodes.reference)))["refuri"] == "../glossary.html#rank"
    already = section([nodes.reference("", "rank", refuri="../glossary.html#rank"), nodes.Text(" and rank")])
    assert parts.link_terms(already, terms, "../glossary.html") == 0


def test_the_glossary_is_read_with_its_first_sentences():
    parts = pytest.importorskip("sphinx_parts", reason="Sphinx and latex2mathml come with the extra site")
    terms = parts.glossary_terms((COURSE_ROOT / "site" / "glossary.md").read_text(encoding="utf-8"))
    assert len(terms) > 50
    assert terms["absmax"] == "The largest absolute value in a block of weights."


# --- docstrings and patterns ------------------------------------------------------------------------------------------


def test_a_docstring_is_turned_into_rst_that_keeps_its_code_and_its_blocks():
    parts = pytest.importorskip("sphinx_parts", reason="Sphinx and latex2mathml come with the extra site")
    lines = ["`rank` times *two*, and x_ is", "", "    rows = [1]", "", "    more", "", "The end."]
    assert parts.as_rst(lines) == [
        r"``rank`` times \*two\*, and x\_ is", "", "::", "", "    rows = [1]", "", "    more", "", "The end.",
    ]  # fmt: skip


def test_each_engine_s_page_has_every_name_of_its_list():
    for room in engines.ENGINES:
        found = engines.engine(room)
        assert [name for name, *_ in found["names"]] == __import__(f"helpers.{room}", fromlist=["x"]).__all__
        assert found["about"]


def test_a_pattern_is_written_for_javascript():
    build = script("site/build.py", "site_build")
    assert build.in_javascript(r"(?P<saved>\d+), (?P=saved)") == r"(?<saved>\d+), \k<saved>"
    assert build.failure_patterns().count('"name"') == len(FAILURES)


# --- checks -----------------------------------------------------------------------------------------------------------

GOOD = (
    '<!doctype html><html lang="en"><title>T</title><h1 id="top">T</h1><h2>A</h2>'
    '<a href="b.html#top">b</a><img src="x.png" alt="X"></html>'
)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text(GOOD)
    return tmp_path


def test_a_good_site_has_no_faults(site):
    assert checks.faults(site) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('href="b.html#top"', 'href="c.html"', "a.html: c.html leads nowhere"),
        ('href="b.html#top"', 'href="b.html#gone"', "a.html: b.html#gone names a place that is not on the page"),
        ('href="b.html#top"', 'href="#gone"', "a.html: #gone names a place that is not on the page"),
        ('href="b.html#top"', 'href="../../etc.html"', "a.html: ../../etc.html leads nowhere"),
        ('href="b.html#top"', f'href="{LINKS.release}gone.py"', "names a file that is not in the repository"),
        ('src="x.png"', 'src="https://e.org/x.png"', "a.html: loads https://e.org/x.png"),
        ('src="x.png"', 'src="//e.org/x.png"', "a.html: loads //e.org/x.png"),
        ("<h1", '<script src="https://cdn.org/j.js"></script><h1', "a.html: loads https://cdn.org/j.js"),
        ("<h1", '<link rel="stylesheet" href="https://f.org/f.css"><h1', "a.html: loads https://f.org/f.css"),
        ("<h1", "<style>@import url('https://f.org/f.css')</style><h1", "a.html: loads https://f.org"),
        ("<h1", '<p style="background:url(https://e.org/b.png)"></p><h1', "a.html: loads https://e.org"),
        ("<h1", '<script>fetch("https://t.org/track")</script><h1', "a.html: loads https://t.org"),
        ('alt="X"', 'alt=""', "a.html: the image x.png has no alternative text"),
        ("h2>", "h3>", "a.html: a heading of level 3 follows one of level 1"),
        ("h1", "h2", "a.html: 0 headings of the first level"),
        ("<h2>", '<h2 id="top">', "a.html: two elements have the id top"),
        (' lang="en"', "", "a.html: no language, or no title"),
    ],
)
def test_a_planted_fault_of_a_page_is_noticed(site, old, new, fault):
    assert old in GOOD
    (site / "a.html").write_text(GOOD.replace(old, new))
    assert any(fault in line for line in checks.faults(site)), checks.faults(site)


@pytest.mark.parametrize(
    ("name", "text"),
    [("s.css", "@font-face { src: url(https://fonts.org/f.woff) }"), ("s.js", 'image.src = "https://t.org/pixel";')],
)
def test_a_style_or_a_script_that_loads_from_elsewhere_is_noticed(site, name, text):
    (site / name).write_text(text)
    assert any(line.startswith(f"{name}: loads https://") for line in checks.faults(site))


# --- the calculator's numbers -----------------------------------------------------------------------------------------


def test_the_calculator_asks_for_every_combination_once():
    wanted = planned.keys(planned.MODELS, planned.RANKS)
    assert len(wanted) == len(set(wanted))
    assert set(planned.kinds_of_gpu().values()) <= set(planned.GPUS)
    for key in (wanted[0], wanted[-1]):
        assert planned.spec_of_key(key).batch_size == key[4]


def test_a_number_that_contradicts_the_others_is_noticed():
    good = {
        "m/qlora/8/all/1/256/t4": [5, 6, 2, 3],
        "m/qlora/8/all/1/512/t4": [7, 8, 2, 5],
        "m/qlora/8/all/2/512/t4": [9],
    }
    assert planned.faults(good) == []
    for name, numbers in (("1/256", [5, 6, 2, 2]), ("1/256", [5, 4, 2, 3]), ("1/512", [4, 8, 2, 2]), ("2/512", [6])):
        assert planned.faults(good | {f"m/qlora/8/all/{name}/t4": numbers}), (name, numbers)


def most_reserved() -> int:
    """Bytes that torch may reserve of a T4: the context and a hundredth stay free."""
    return int((1 - SPARE) * planned.GPUS["t4"].total_bytes) - planned.GPUS["t4"].context_bytes


def test_the_calculator_s_verdicts_are_those_of_fits():
    total, most = planned.GPUS["t4"].total_bytes, most_reserved()
    assert planned.verdict_on([int(0.9 * total), most], "t4") == "fits"
    assert planned.verdict_on([int(0.96 * total), most], "t4") == "tight"
    assert planned.verdict_on([int(0.9 * total), most + 1], "t4") == "no"
    assert planned.verdict_on([2 * total], "t4") == "no"


def test_a_plain_script_is_asked_for_without_repeated_heads_and_without_the_tiled_loss(monkeypatch):
    asked = []
    monkeypatch.setattr(planned, "predict", lambda shape, spec, gpu: asked.append(spec) or Predicted())
    planned.plain_peaks("qwen2.5-7b", 4, 4096)
    planned.plain_peaks("qwen2.5-7b", 4, 4096, trl_loss="tiled")
    assert [(spec.repeat_kv, spec.trl_loss) for spec in asked] == [(False, "full"), (False, "tiled")]
    both = planned.spec_of_key(planned.key_on_a_t4("qwen2.5-7b", 4, 4096))
    assert (both.repeat_kv, both.trl_loss) == (True, "tiled")


class Predicted:
    peak_allocated, peak_reserved = 10**9, 2 * 10**9


def test_what_a_plain_script_lacks_costs_memory():
    both = predict(
        shape_of(planned.SHAPES["qwen2.5-7b"]), planned.spec_of_key(planned.key_on_a_t4(*planned.EXAMPLE)), "t4"
    )
    tiled, neither = planned.plain_peaks(*planned.EXAMPLE, trl_loss="tiled"), planned.plain_peaks(*planned.EXAMPLE)
    assert 2 * both.peak_allocated < tiled[0] < neither[0]


def test_the_longest_rows_are_the_last_that_fit():
    total, most = planned.GPUS["t4"].total_bytes, most_reserved()
    fits, tight = [total // 2, most], [int(0.96 * total), most]
    assert planned.longest({(1, 512): fits, (1, 1024): fits, (1, 2048): tight, (4, 512): [2 * total]}) == {
        1: 1024,
        4: 0,
    }


def test_a_table_shows_what_is_compared_with_the_gpu_beside_the_tensors():
    build = script("site/build.py", "site_build")
    context = planned.GPUS["t4"].context_bytes
    assert planned.held([10, 20], "t4") == 20 + context
    assert planned.held([10], "t4") == 0
    assert build.in_table((14_500_000_000, 16_400_000_000, "no")) == "14.5 / 16.4 no"
    assert build.in_table((14_100_000_000, 15_300_000_000, "fits")) == "14.1 / 15.3"
    assert build.in_table((22_400_000_000, 0, "no")) == "at least 22.4 no"


# --- what people type -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["OOM", "nan", "garbage", "out of memory", "gibberish", "slow", "hangs", "loss 0"])
def test_what_people_type_is_said_by_a_failure(typed):
    assert any(typed in it.words for it in FAILURES)


def test_the_decision_page_is_among_what_is_looked_up():
    text = (COURSE_ROOT / "site" / "pages" / "index.md").read_text(encoding="utf-8")
    trees = {
        re.search(r":caption: (.+)", tree)[1]: tree.split()
        for tree in re.findall(r"```{toctree}(.*?)```", text, re.DOTALL)
    }
    assert [name for name, tree in trees.items() if "decide" in tree] == ["To look things up"]


# --- measurements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", charts.CHARTS, ids=lambda make: make.__name__)
def test_each_measurement_has_a_table_and_a_plot_whose_words_say_the_finding(make):
    chart = make()
    assert chart.rows
    assert all(len(row) == len(chart.columns) for row in chart.rows)
    assert all((charts.MEASUREMENTS / name).is_file() for name in chart.sources)
    if chart.figure is not None:
        assert re.search(r"\d", chart.alt), "a number that was found"
        assert len(chart.alt) > 60
        assert charts.svg(chart.figure).count("<svg") == 1


# --- colours ----------------------------------------------------------------------------------------------------------

# Linear RGB to linear RGB, at full severity: Machado, Oliveira and Fernandes 2009, "A physiologically-based model for
# simulation of color vision deficiency", IEEE Transactions on Visualization and Computer Graphics 15(6), table 1.
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
JUST_NOTICEABLE = (
    2.3  # of CIELAB's distance: Mahy, Van Eycken and Oosterlinck 1994, Color Research and Application 19(2)
)
APART = 4 * JUST_NOTICEABLE
# What the site and the figures show beside each other. What is reserved is striped on the site and outlined in figures.
GROUPS = {
    name: colour for name, (colour, _) in diagrams.GROUPS.items() if name not in (diagrams.BESIDES, diagrams.HOST)
}
STYLE = (COURSE_ROOT / "site" / "static" / "course.css").read_text(encoding="utf-8")
PALETTES = {
    "figures": COLOURS,
    "what a run holds": diagrams.HELD,
    "the calculator": GROUPS,
    "verdicts": dict(re.findall(r"\.verdict\.(\w+) \{ border-color: (#\w{6})", STYLE)),
}


def lab(colour: str, kind: str | None) -> numpy.ndarray:
    """CIELAB (D65) of a colour, as somebody with this kind of colour blindness sees it."""
    channels = numpy.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = numpy.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    if kind:
        linear = numpy.clip(numpy.array(BLIND[kind]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = numpy.array(to_xyz) @ linear / numpy.array([0.95047, 1, 1.08883])
    x, y, z = numpy.where(xyz > 216 / 24389, numpy.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def too_close(palette: dict[str, str], kind: str | None) -> list[str]:
    """Pairs of a palette that are hard to tell apart."""
    pairs = itertools.combinations(palette.items(), 2)
    return [f"{a} and {b}" for (a, x), (b, y) in pairs if numpy.linalg.norm(lab(x, kind) - lab(y, kind)) < APART]


@pytest.mark.parametrize("kind", [None, *BLIND])
@pytest.mark.parametrize("palette", PALETTES)
def test_colours_that_stand_together_are_told_apart_with_each_kind_of_colour_blindness(palette, kind):
    assert too_close(PALETTES[palette], kind) == []


def test_a_red_and_a_green_that_some_cannot_tell_apart_are_noticed():
    planted = {"right": "#5B8C00", "wrong": "#B36B00"}
    assert too_close(planted, None) == []
    assert too_close(planted, "deuteranopia") == ["right and wrong"]
    assert too_close({"a": "#4C9BA8", "b": "#4CA08C"}, "tritanopia") == ["a and b"]
