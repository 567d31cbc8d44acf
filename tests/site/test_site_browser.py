"""The site as a reader has it: a site of three lessons is built once, opened from disk in headless Chromium, and used."""

import json
import random
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
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

LESSONS = ("00", "03", "06")
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


def in_gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


@pytest.mark.parametrize("name", ["index.html", "calculator.html", "cheat-sheet.html"])
def test_where_numbers_assume_what_a_plain_script_lacks_it_is_said_and_what_it_takes_without(page, site, name):
    words = " ".join(opened(page, site, name).inner_text("article").split())
    shape, spec = shape_of(SHAPES["qwen2.5-7b"]), planned.spec_of_key(planned.key_on_a_t4("qwen2.5-7b", 4, 4096))
    both = predict(shape, spec, "t4").peak_allocated
    neither = predict(shape, replace(spec, repeat_kv=False, trl_loss="full"), "t4").peak_allocated
    sentence = next(one for one in re.split(r"(?<=[a-z]\.) ", words) if "Qwen2.5-7B with 4 rows of 4,096 tokens" in one)
    assert in_gb(both) in sentence
    assert in_gb(neither) in sentence
    assert re.search(r"keys and values are repeated.*tiled", words, re.IGNORECASE)


def test_the_decision_page_says_what_its_predictions_assume(page, site):
    words = opened(page, site, "decide.html").inner_text("article")
    assert "They assume TRL's tiled loss" in words
    assert "repeat_kv_heads" in words
    assert "a plain script that has neither: 10.3 GB" in words  # the ledger computes it: tests/course/test_claims.py


def test_the_first_table_says_what_a_plain_script_trains(page, site):
    table = opened(page, site, "index.html").locator("article table").first
    cells = table.locator("tbody tr").first.locator("td").all_inner_texts()
    assert table.locator("th").all_inner_texts().count("a plain script") == 2
    rows = planned.on_a_t4(planned.planned(COURSE_ROOT / "runs" / "site" / "cache", *planned.SMALL), planned.SMALL[0])
    (row,) = rows
    assert [int(re.search(r"[\d,]+(?= tokens)", cell)[0].replace(",", "")) for cell in cells[1:]] == [
        row["longest"][1], row["plain"][1], row["longest"][4], row["plain"][4],
    ]  # fmt: skip
    assert row["plain"][4] < row["longest"][4]


# --- failures ---------------------------------------------------------------------------------------------------------


def answered(page) -> None:
    """Wait until the search has answered the last words: it begins when nobody has typed for a moment."""
    page.locator("#found:not([aria-busy])").wait_for(state="attached")


def shown(page) -> list[str]:
    """The failures that the page shows for what was typed."""
    answered(page)
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
    box.fill("qqqq zzzz \u4e16\u754c")
    assert len(shown(page)) == len(FAILURES), "nothing is near"
    assert status.inner_text().startswith("None of the ")


def found_first(page, typed: str) -> list[str]:
    """What the page lists for words that somebody types, the likeliest first."""
    page.get_by_label("Paste your message").fill(typed)
    answered(page)
    return page.locator("#found a").all_inner_texts()


@pytest.mark.parametrize(
    ("typed", "first", "meant"),
    [
        ("OOM", "out-of-memory", {"out-of-memory", "host-memory"}),
        ("out of memory", "out-of-memory", {"out-of-memory"}),
        ("nan", "nan-loss", {"nan-loss"}),
        ("my loss is 0", "all-masked", {"nan-loss", "all-masked"}),
        ("loss 0", "all-masked", {"nan-loss", "all-masked"}),
        ("garbage", "never-stops", {"never-stops", "wrong-template", "right-padding", "wrong-base", "merge-rounds"}),
        (
            "gibberish",
            "never-stops",
            {"never-stops", "wrong-template", "right-padding", "wrong-base", "adapter-keys-missing"},
        ),
        ("training is slow", "slow-dtype", {"slow-dtype", "no-gpu"}),
        ("it hangs", "processes-wait", {"processes-wait", "no-network", "pip-no-network"}),
    ],
)
def test_what_people_type_finds_what_they_mean(page, site, typed, first, meant):
    found = found_first(opened(page, site, "failures.html"), typed)
    assert found[0] == first
    assert meant <= set(found)
    assert set(shown(page)) == set(found)


def test_a_short_word_is_not_found_within_another(page, site):
    opened(page, site, "failures.html")
    assert "RAM" not in found_first(page, "oom"), "room is no oom"
    assert set(found_first(page, "oom")) == {it.name for it in FAILURES if "OOM" in it.words}


def test_where_nothing_matches_the_nearest_five_are_shown(page, site):
    found = found_first(opened(page, site, "failures.html"), "unskale fp61 gradiens")
    assert len(found) == 5
    assert "unscale-fp16" in found
    assert set(shown(page)) == set(found)
    assert (
        page.get_by_role("status").inner_text().startswith(f"None of the {len(FAILURES)} failures matches. The nearest")
    )


@pytest.mark.parametrize("keys", ["Enter", "Control+Enter"])
def test_enter_goes_to_the_first_and_the_address_is_a_search_that_can_be_sent(page, site, chromium, keys):
    box = opened(page, site, "failures.html").get_by_label("Paste your message")
    box.fill("garbage")
    box.press(keys)
    first = page.locator("#found a").first.inner_text()
    assert page.url == f"{site.as_uri()}/failures.html?q=garbage#{first}"
    assert page.evaluate("document.activeElement.closest('section').id") == first
    assert 0 <= page.locator(f"#{first} h3").evaluate("it => it.getBoundingClientRect().top") < WIDE["height"]
    other = chromium.new_page()
    other.goto(page.url)
    assert other.get_by_label("Paste your message").input_value() == "garbage"
    assert set(shown(other)) == set(shown(page)) < {it.name for it in FAILURES}
    other.close()
    page.get_by_role("button", name="Show all").click()
    answered(page)
    assert page.url == f"{site.as_uri()}/failures.html"


def test_shift_and_enter_begin_a_line_and_a_long_message_stays_out_of_the_address(page, site):
    box = opened(page, site, "failures.html").get_by_label("Paste your message")
    box.fill("garbage")
    box.press("Shift+Enter")
    assert box.input_value() == "garbage\n"
    box.fill("Traceback (most recent call last)\n" * 20 + "RuntimeError: CUDA out of memory. Tried to allocate 20 MiB")
    assert shown(page) == ["out-of-memory"]
    assert "?" not in page.url


def test_a_failure_leads_to_the_section_of_lesson_06_that_treats_it(page, site):
    opened(page, site, "failures.html")
    links = page.locator("section section section a", has_text="lesson 06, section")
    targets = links.evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert len(targets) == sum(bool(it.lesson) for it in FAILURES)
    assert all(re.fullmatch(r"lessons/06_troubleshooting\.html#[\w-]+", target) for target in targets)
    page.locator("#never-stops a", has_text="lesson 06").click()
    page.wait_for_url("**/06_troubleshooting.html#*")  # until the page is loaded
    heading = page.evaluate(
        "document.getElementById(location.hash.slice(1)).closest('section').querySelector('h3').innerText"
    )
    assert heading.startswith("Run C")


def test_a_link_to_a_section_that_is_gone_fails_the_build(site, tmp_path):
    shutil.copytree(site, tmp_path / "html")
    file = tmp_path / "html" / "lessons" / "06_troubleshooting.html"
    file.write_text(file.read_text().replace('id="run-c"', 'id="run-x"'))
    assert any(
        "failures.html: lessons/06_troubleshooting.html#run-c" in fault for fault in checks.faults(tmp_path / "html")
    )


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
    assert page.evaluate("document.activeElement.id") == "said"


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


def test_what_does_not_fit_says_the_whole_that_is_compared_and_its_parts(page, site):
    """Found among all settings: tensors that fit alone, and do not with what is held beside them."""
    opened(page, site, "calculator.html")
    setting = page.evaluate(
        "() => { for (const [key, n] of Object.entries(CALCULATOR.runs))"
        " for (const [gpu, [total, context, kind]] of Object.entries(CALCULATOR.gpus))"
        " if (key.endsWith('/' + kind) && n.length > 1 && n[0] <= total && n[1] + context > total) return [key, gpu]; }"
    )
    key, gpu = setting
    verdict, parts = set_to(page, tuple(key.split("/")), gpu)
    numbers = [float(number) for number in re.findall(r"\d+\.\d\d", verdict)]
    assert verdict.startswith("Does not fit: it takes ")
    assert numbers[0] > numbers[1], "what is compared is more than what it is compared with"
    assert numbers[0] == pytest.approx(sum(numbers[2:]), abs=0.02)
    assert numbers[0] == pytest.approx(sum(map(float, parts.values())), abs=0.05)


@pytest.mark.parametrize("width", [320, 390, 1400])
def test_the_bar_of_a_hopeless_run_stays_in_its_frame_and_shows_the_limit(page, site, width):
    page.set_viewport_size({"width": width, "height": 800})
    opened(page, site, "calculator.html#method=full&batch=8&length=4096&gpu=t4")
    assert page.locator("#verdict").inner_text().startswith("Does not fit: its tensors take at least")
    bar, limit = page.locator("#bar").bounding_box(), page.locator("#bar .limit").bounding_box()
    boxes = page.locator("#bar > div").evaluate_all(
        "all => all.map(it => it.getBoundingClientRect()).map(it => [it.left, it.right])"
    )
    assert len(boxes) == 2, "what it takes, and the limit"
    assert boxes[0][1] > limit["x"], "it goes beyond the limit"
    assert all(bar["x"] <= left <= right <= bar["x"] + bar["width"] for left, right in boxes)
    assert page.locator("#parts tbody tr").inner_text().startswith("tensors, at least")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("address", ["?model=nonsense&rank=16", "#model=nonsense&rank=16", "#rank=16&model=nonsense"])
def test_an_address_that_asks_for_what_there_is_not_is_told_so(page, site, address):
    opened(page, site, f"calculator.html{address}")
    line = page.locator("#unknown")
    assert (
        line.inner_text()
        == "The address asks for model=nonsense, which the calculator does not have. It shows the settings below instead."
    )
    assert line.get_attribute("role") == "status"
    page.goto("about:blank")
    opened(page, site, "calculator.html?rank=16#batch=8")
    assert line.is_hidden()
    assert page.locator("#set-batch").input_value() == "8"


def test_on_a_narrow_screen_a_change_is_seen_without_scrolling(page, site):
    page.set_viewport_size(NARROW)
    opened(page, site, "calculator.html")
    for name in ("model", "gpu"):  # the first control, and the last
        page.locator(f"#set-{name}").scroll_into_view_if_needed()
        page.evaluate("name => document.getElementById('set-' + name).scrollIntoView({block: 'center'})", name)
        box, control = page.locator("#verdict").bounding_box(), page.locator(f"#set-{name}").bounding_box()
        top = page.locator(".mobile-header").bounding_box()
        assert top["y"] + top["height"] <= box["y"] + 1, "the head of the page does not cover it"
        assert box["y"] + box["height"] <= control["y"], "it does not cover the control"
    page.locator("#set-gpu").select_option("h200")
    assert page.locator("#verdict").inner_text().startswith("Fits")
    assert 0 <= page.locator("#verdict").bounding_box()["y"] < NARROW["height"]


# --- the ledger of claims ---------------------------------------------------------------------------------------------

STATUSES = ("holds", "holds with a limit", "false today", "not checkable here")


def claims_shown(page) -> tuple[list[str], int]:
    """The status of each row that is shown, and how many claims are shown below the table."""
    rows = page.locator("#all-claims tbody tr:visible").evaluate_all("rows => rows.map(row => row.cells[1].innerText)")
    names = page.locator("#all-claims tbody a").evaluate_all("links => links.map(link => link.hash.slice(1))")
    return rows, page.evaluate(
        "names => names.filter(name => document.getElementById(name).closest('p').checkVisibility()).length", names
    )


def test_the_ledger_shows_claims_of_one_status_with_the_keyboard_alone(page, site):
    claims = tomllib.loads((COURSE_ROOT / "site" / "claims.toml").read_text(encoding="utf-8"))["claim"]
    count = {status: sum(claim["status"] == status for claim in claims) for status in STATUSES}
    opened(page, site, "claims.html")
    assert claims_shown(page) == ([claim["status"] for claim in claims], len(claims))
    group = page.get_by_role("group", name="Show the claims whose status is")
    group.get_by_role("radio", name=f"all ({len(claims)})").focus()
    for status in STATUSES:
        page.keyboard.press("ArrowDown")
        assert group.get_by_role("radio", name=f"{status} ({count[status]})", exact=True).is_checked()
        assert claims_shown(page) == ([status] * count[status], count[status])
        assert page.get_by_role("status").inner_text().startswith(f"{count[status]} of {len(claims)} claims")
    hidden = next(claim["name"] for claim in claims if claim["status"] == "holds")
    page.evaluate("name => { location.hash = name; }", hidden)
    page.locator(f"#all-claims tbody a[href='#{hidden}']").wait_for()
    assert len(claims_shown(page)[0]) == len(claims), "a link to a hidden claim shows all"


def test_without_javascript_the_ledger_is_a_plain_table(chromium, site):
    context = chromium.new_context(java_script_enabled=False)
    page = opened(context.new_page(), site, "claims.html")
    assert page.locator("#all-claims form").count() == 0
    rows = page.locator("#all-claims tbody tr")
    assert rows.count() == (COURSE_ROOT / "site" / "claims.toml").read_text(encoding="utf-8").count("[[claim]]")
    assert rows.last.is_visible()
    context.close()


@pytest.mark.parametrize(
    ("name", "state"), [("claims.html", "false today"), ("failures.html", "garbage"), ("calculator.html", "full")]
)
def test_axe_finds_nothing_serious_once_a_page_is_used(chromium, site, name, state):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    for scheme, view in (("light", NARROW), ("dark", WIDE)):
        context = chromium.new_context(viewport=view, color_scheme=scheme)
        page = opened(context.new_page(), site, name)
        if name == "claims.html":
            page.get_by_role("radio", name=re.compile(state)).check()
        elif name == "failures.html":
            found_first(page, state)
        else:
            page.locator("#set-method").select_option(state)
        serious = [f for f in axe.run(page).response["violations"] if f["impact"] in ("serious", "critical")]
        assert [(fault["id"], fault["nodes"][0]["html"][:120]) for fault in serious] == []
        context.close()


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
