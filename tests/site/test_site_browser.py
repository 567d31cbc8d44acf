"""The site as a reader has it: a site of two lessons is built once, opened from disk in headless Chromium, and used."""

import json
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from helpers import COURSE_ROOT
from helpers.failures import FAILURES, recognise
from helpers.memory import predict, shape_of
from helpers.widgets.calculator import verdict_on
from tests.browser.lab import CHROMIUM

sys.path.insert(0, str(COURSE_ROOT / "site"))
import checks  # noqa: E402
import planned  # noqa: E402
from evidence import SHAPES  # noqa: E402

LESSONS = ("00", "03")
# A page of each kind.
KINDS = (
    "index.html", "lessons/03_t4_training.html", "glossary.html", "failures.html", "claims.html", "decide.html",
    "measurements.html", "how-measured.html", "calculator.html", "cheat-sheet.html", "api/memory.html", "search.html",
)  # fmt: skip
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages."""
    for name in ("sphinx", "myst_nb", "furo", "latex2mathml"):
        pytest.importorskip(name, reason="what builds the site comes with the extra site")
    out = tmp_path_factory.mktemp("site")
    build(out)
    return out / "html"


def build(out: Path):
    words = ["--lessons", *LESSONS, "--small", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "site/build.py", *words], cwd=COURSE_ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A wide, light page that has seen no error and asked nobody for anything when the test ends."""
    context = chromium.new_context(viewport=WIDE)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
    yield page
    context.close()
    assert wrong == []


def opened(page, site: Path, name: str):
    page.goto(f"{site.as_uri()}/{name}")
    return page


# --- all pages --------------------------------------------------------------------------------------------------------


def test_the_built_site_has_no_dead_link_loads_nothing_and_has_its_headings_in_order(site):
    assert checks.faults(site) == []
    assert all((site / name).is_file() for name in KINDS)


def test_a_dead_link_in_a_page_fails_the_build(site, tmp_path):
    shutil.copytree(site, tmp_path / "html")
    file = tmp_path / "html" / "claims.html"
    file.write_text(file.read_text().replace('href="glossary.html#lean"', 'href="glossary.html#leen"'))
    assert checks.faults(tmp_path / "html") == ["claims.html: glossary.html#leen names a place that is not on the page"]


def test_a_lesson_shows_its_outputs_its_figures_with_words_and_links_to_the_glossary(site):
    text = (site / "lessons" / "00_start_here.html").read_text()
    assert "0.00 MB" in text or " MB  README.md" in text, "what a cell printed"
    assert len(re.findall(r'<img alt="[^"]{30,}"', text)) >= 2
    assert text.count('class="reference internal" href="../glossary.html#') > 10
    assert text.count('<a class="term reference internal"') > 5
    assert "<math" in text
    assert "MathJax" not in text


@pytest.mark.parametrize("name", KINDS)
def test_axe_finds_nothing_serious_on_any_kind_of_page_in_light_and_in_dark(chromium, site, name):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    found = []
    for scheme, view in (("light", WIDE), ("dark", NARROW)):
        context = chromium.new_context(viewport=view, color_scheme=scheme)
        page = opened(context.new_page(), site, name)
        for fault in axe.run(page).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                found += [f"{scheme}: {fault['id']}: {node['html'][:120]}" for node in fault["nodes"][:3]]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth + 1"):
            found.append(f"{scheme}: the page is wider than its window of {view['width']}")
        context.close()
    assert found == []


def test_axe_notices_a_button_without_a_name_and_grey_on_grey(chromium, site):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page = opened(chromium.new_page(), site, "index.html")
    planted = '<button></button><p style="color:#bbb;background:#ccc">Some words</p>'
    page.evaluate("text => document.querySelector('article').insertAdjacentHTML('beforeend', text)", planted)
    ids = {fault["id"] for fault in axe.run(page).response["violations"]}
    page.close()
    assert {"button-name", "color-contrast"} <= ids


@pytest.mark.parametrize("width", [320, 390, 700, 1000, 1080, 1150, 1300, 1400, 1553, 1920])
def test_no_page_is_wider_than_its_window_and_nothing_hangs_out_of_it(page, site, width):
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("lessons/03_t4_training.html", "decide.html", "calculator.html"):
        opened(page, site, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        box = page.locator("article").bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name


# --- a reader who has never seen the course ---------------------------------------------------------------------------


def test_the_first_page_answers_three_questions(page, site):
    opened(page, site, "index.html")
    assert page.locator("h2").all_inner_texts()[:3] == [
        "What can a T4 train?",
        "What does this error mean?",
        "Where do I begin?",
    ]
    table = page.locator("section:has(> h2:text('What can a T4 train?')) table")
    assert table.locator("tbody tr").count() >= 1
    assert "tokens" in table.inner_text()
    page.get_by_label("Paste the message").fill(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    page.get_by_role("button", name="Explain it").click()
    page.wait_for_url("**/failures.html?**")
    assert shown(page) == ["out-of-memory"]
    opened(page, site, "index.html")
    page.locator("article").get_by_role("link", name=re.compile("lesson 03", re.IGNORECASE)).first.click()
    assert page.locator("h1").inner_text().startswith("03 ")


def test_the_search_works_from_disk(page, site):
    opened(page, site, "search.html?q=checkpointing")
    page.locator("#search-results li").first.wait_for(timeout=20_000)
    links = page.locator("#search-results a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert any("glossary.html" in link for link in links)


# --- failures ---------------------------------------------------------------------------------------------------------


def shown(page) -> list[str]:
    """The failures that the page shows now."""
    page.wait_for_timeout(400)  # it waits until nobody has typed for a moment
    return page.evaluate(
        "window.FAILURES.map(it => it.name).filter(name => document.getElementById(name).checkVisibility())"
    )


def test_each_failure_s_name_leads_to_its_own_heading(page, site):
    opened(page, site, "failures.html")
    headings = page.evaluate(
        "window.FAILURES.map(({ name }) => document.getElementById(name).querySelector(':scope > h3').firstChild.textContent)"
    )
    assert headings == [it.name for it in FAILURES]


def test_javascript_reads_the_patterns_as_python_does(page, site):
    rows = tomllib.loads((COURSE_ROOT / "tests" / "failures" / "messages.toml").read_text(encoding="utf-8"))
    texts = [it.shown for it in FAILURES] + rows["near"] + [text for said in rows["said"].values() for text in said]
    opened(page, site, "failures.html")
    matched = page.evaluate(
        "texts => { const all = window.FAILURES.map(it => [it.name, it.patterns.map(one => new RegExp(one, 'm'))]);"
        " return texts.map(text => all.filter(([, ones]) => ones.some(one => one.test(text))).map(([name]) => name)); }",
        texts,
    )
    expected = [[it.name for it in FAILURES if any(p.search(text) for p in it.patterns)] for text in texts]
    assert len(texts) > 200
    assert matched == expected


def test_a_pasted_message_shows_its_failure_and_words_show_what_has_them(page, site):
    opened(page, site, "failures.html")
    box, status = page.get_by_label("Paste your message"), page.get_by_role("status")
    assert len(shown(page)) == len(FAILURES)
    text = (
        'Traceback (most recent call last):\n  File "x.py"\nRuntimeError: CUDA out of memory. Tried to allocate 20 MiB'
    )
    box.fill(text)
    assert recognise(text).failure.name in shown(page)
    assert status.inner_text().startswith("By your message, 1 of ")
    box.fill("pad_token tokenizer")
    words = shown(page)
    assert 0 < len(words) < len(FAILURES)
    assert "By your words" in status.inner_text()
    box.fill("qqqq zzzz xxxx")
    assert len(shown(page)) == len(FAILURES)
    assert status.inner_text().startswith("None of the ")


def test_the_search_for_failures_works_with_the_keyboard_alone(page, site):
    opened(page, site, "failures.html")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "said":
            break
    page.keyboard.type("Attempting to unscale FP16 gradients")
    assert shown(page) == ["unscale-fp16"]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert len(shown(page)) == len(FAILURES)
    page.wait_for_timeout(100)
    assert page.evaluate("document.activeElement.id") == "said"


def shown_claims(page) -> list[str]:
    heads = page.locator("article section > p:has(> strong + em)").all()
    return [one.locator("em").first.text_content().rstrip(".").lower() for one in heads if one.is_visible()]


def test_the_ledger_shows_the_claims_of_one_status_with_the_keyboard_alone(page, site):
    claims = tomllib.loads((COURSE_ROOT / "site" / "claims.toml").read_text(encoding="utf-8"))["claim"]
    count = Counter(claim["status"] for claim in claims)
    opened(page, site, "claims.html")
    assert len(shown_claims(page)) == len(claims)
    choice = page.get_by_label("Show the claims that")
    choice.focus()
    for status in ("holds", "holds with a limit", "false today", "not checkable here"):
        page.keyboard.press("ArrowDown")
        assert shown_claims(page) == [status] * count[status]
        assert f"{count[status]} of {len(claims)} claims are shown." in page.get_by_role("status").all_text_contents()
        topics = [topic for topic in page.locator("article section > section").all() if topic.is_visible()]
        of_topics = [topic.locator("> p:has(> strong + em)").all() for topic in topics]
        assert all(any(claim.is_visible() for claim in claims) for claims in of_topics if claims)
    assert page.url.endswith("?status=not%20checkable%20here")
    opened(page, site, "claims.html?status=false%20today")
    assert shown_claims(page) == ["false today"] * count["false today"]
    hidden = next(claim["name"] for claim in claims if claim["status"] == "holds")
    page.evaluate(f"location.hash = '{hidden}'")
    page.wait_for_function(f"document.getElementById('{hidden}').checkVisibility()")
    assert len(shown_claims(page)) == len(claims), "a link to a claim shows it, whatever was chosen"


def test_without_javascript_all_failures_and_the_tables_stand_there(chromium, site):
    context = chromium.new_context(java_script_enabled=False)
    page = opened(context.new_page(), site, "failures.html")
    assert page.locator("#find").is_hidden()
    assert all(page.locator(f"section#{it.name}").is_visible() for it in FAILURES)
    opened(page, site, "calculator.html")
    assert page.locator("#calculator").is_hidden()
    assert page.get_by_text("The controls need JavaScript").is_visible()
    assert page.locator("table.docutils").first.is_visible()
    context.close()


# --- the calculator ---------------------------------------------------------------------------------------------------


def set_to(page, key: tuple, gpu: str) -> tuple[str, dict[str, str]]:
    """Put the controls to a setting; the verdict and the table of parts, as they are shown."""
    model, method, rank, layers, batch, length, _ = key
    values = {"method": method, "model": model, "batch": batch, "length": length, "gpu": gpu}
    values |= {} if method == "full" else {"rank": rank, "layers": layers}
    for name, value in values.items():
        page.locator(f"#set-{name}").select_option(str(value))
    rows = page.locator("#parts tbody tr").all_inner_texts()
    return page.locator("#verdict").inner_text(), dict(re.split(r"\s*\t\s*", row) for row in rows)


def wrong_numbers(page, points) -> list[str]:
    """Settings for which the page does not show what `predict` says, in the words of lesson 02's calculator."""
    from helpers.plots import diagrams

    found = []
    for key, gpu in points:
        verdict, parts = set_to(page, key, gpu)
        prediction = predict(shape_of(SHAPES[key[0]]), planned.spec_of_key(key), gpu)
        if verdict.startswith("Does not fit: its tensors take at least"):
            least = float(re.search(r"at least (\d+\.\d\d) GB", verdict)[1]) * 1e9
            right = planned.GPUS[gpu].total_bytes < least <= prediction.peak_allocated + 5e6
        else:
            groups = diagrams.grouped(prediction.parts)
            besides = prediction.held_bytes(gpu) - prediction.peak_allocated
            expected = {name: f"{size / 1e9:.2f}" for name, size in (groups | {diagrams.BESIDES: besides}).items()}
            right = verdict == verdict_on(prediction, gpu) and parts == expected
        found += [] if right else [f"{key} on {gpu}: {verdict}"]
    return found


def some_points(number: int) -> list[tuple]:
    """Settings drawn at random, each with a GPU of its kind; other ones each day."""
    import datetime

    chance = random.Random(datetime.date.today().toordinal())
    kinds = planned.kinds_of_gpu()
    chosen = chance.sample(planned.keys(*planned.SMALL), number)
    return [(key, chance.choice([gpu for gpu, kind in kinds.items() if kind == key[-1]])) for key in chosen]


def test_the_calculator_shows_what_predict_says_at_random_settings(page, site):
    opened(page, site, "calculator.html")
    assert wrong_numbers(page, some_points(40)) == []


def test_a_wrong_number_in_the_calculator_is_noticed(page, site, tmp_path):
    shutil.copytree(site, tmp_path / "html")
    key = ("qwen2.5-7b", "qlora", 16, "all", 4, 512, "t4")
    file = tmp_path / "html" / "_static" / "calculator-numbers.js"
    text = file.read_text()
    numbers = json.loads(text.partition(" = ")[2].rstrip(";\n"))["runs"]
    right = numbers[planned.joined(key)]
    was = f'"{planned.joined(key)}":{json.dumps(right, separators=(",", ":"))}'
    wrong = [right[0] + 10_000_000, *right[1:]]  # ten megabytes: the last digit that is shown
    assert was in text
    file.write_text(text.replace(was, f'"{planned.joined(key)}":{json.dumps(wrong, separators=(",", ":"))}'))
    opened(page, tmp_path / "html", "calculator.html")
    assert len(wrong_numbers(page, [(key, "t4")])) == 1
    assert planned.faults(numbers | {planned.joined(key): wrong}), "the build notices it as well"


def test_the_calculator_works_with_the_keyboard_and_its_settings_are_a_link(page, site):
    opened(page, site, "calculator.html#length=4096&batch=8&gpu=t4")
    assert page.locator("#set-length").input_value() == "4096"
    before = page.locator("#verdict").inner_text()
    assert before.startswith("Does not fit")
    page.locator("#set-gpu").focus()
    page.keyboard.press("End")
    assert page.locator("#verdict").inner_text().startswith("Fits")
    assert page.locator("#verdict").get_attribute("role") == "status", "a screen reader says it"
    page.locator("#set-method").select_option("full")
    assert page.locator("#set-rank").is_disabled()
    assert page.locator("#link-to-this a").get_attribute("href").startswith("#model=qwen2.5-7b&method=full")


@pytest.mark.parametrize("name", ["failures.html", "cheat-sheet.html"])
def test_code_among_words_can_be_pasted(page, site, name):
    """Quotes that a typesetter has turned are a SyntaxError in Python."""
    opened(page, site, name)
    assert not set("\u201c\u201d\u2018\u2019") & set(page.inner_text("article"))


# --- on paper ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_the_cheat_sheet_is_two_printed_pages(page, site, tmp_path, paper):
    opened(page, site, "cheat-sheet.html")
    # The test's site has one model in its calculator; print as many rows as all of them make.
    page.evaluate(
        "n => { const body = document.querySelector('#qlora-on-two-pages > section table tbody');"
        " while (body.rows.length < n) body.append(body.rows[0].cloneNode(true)); }",
        len(planned.MODELS),
    )
    pdf = page.pdf(format=paper)
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) == 2
