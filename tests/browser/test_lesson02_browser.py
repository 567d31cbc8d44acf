"""Lesson 02's calculator in JupyterLab, in a real browser: a control moves, verdict, bar and advice change."""

import re

import pytest

from helpers import COURSE_ROOT
from helpers.widgets.calculator import AT_START, bar_html, describe
from tests.browser.lab import page_after_running

CELL = """import sys
sys.path.insert(0, {root!r})
from helpers.widgets import calculate

calculate()"""


def test_a_control_moved_in_jupyterlab_changes_verdict_bar_and_advice(tmp_path):
    expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

    def shown(**moved) -> tuple:
        """Wait until the page shows the setting with these controls moved; the prediction, the verdict, the bar's width."""
        setting = AT_START | moved
        prediction, words = describe(**setting)
        expect(page.locator(".widget-html b")).to_have_text(words, timeout=20_000)
        titles = re.findall(r'title="([^"]+)"', bar_html(prediction, setting["gpu"]))
        boxes = page.locator(".widget-html div[title]")
        for i, title in enumerate(titles):
            expect(boxes.nth(i)).to_have_attribute("title", title, timeout=20_000)
        widths = boxes.evaluate_all("boxes => boxes.map(box => box.getBoundingClientRect().width)")
        assert len(widths) == len(titles) >= 5, "a box for each group of the bar"
        return prediction, words, sum(widths)

    with page_after_running(CELL.format(root=str(COURSE_ROOT)), tmp_path, height=900) as page:
        page.locator(".widget-html b").wait_for(timeout=120_000)
        first, words, width = shown()
        assert words.startswith("Fits: ")
        advice = page.locator(".widget-html li")
        expect(advice.first).to_contain_text("→", timeout=20_000)
        page.screenshot(path=tmp_path / "before.png")

        assert page.locator(".noUi-handle").count() == 3, "sliders for rank, rows at once and tokens per row"
        page.locator(".noUi-handle").last.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        longer, words, wider = shown(seq_len=8192)
        assert words.startswith("Does not fit: ")
        assert longer.peak_allocated > 2 * first.peak_allocated, "4 rows of 8,192 tokens need far more than 4 of 512"
        assert wider > width
        expect(advice.filter(has_text="rows at once 4 →")).to_have_count(1, timeout=20_000)

        page.locator(".widget-dropdown select").nth(1).select_option("h200")
        _, words, _ = shown(seq_len=8192, gpu="h200")
        assert words.startswith("Fits: ")
        assert "of 150.11 GB" in words
        expect(page.locator(".widget-html div[style*='opacity']")).to_have_count(0, timeout=20_000)
        page.screenshot(path=tmp_path / "after.png")
