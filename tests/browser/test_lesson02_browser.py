"""Lesson 02's calculator in JupyterLab, in a real browser: a control moves, verdict, bar and advice change."""

import re

import pytest

from helpers import COURSE_ROOT
from tests.browser.lab import page_after_running

CELL = """import sys
sys.path.insert(0, {root!r})
from helpers.widgets import calculate

calculate()"""


def test_a_control_moved_in_jupyterlab_changes_verdict_bar_and_advice(tmp_path):
    expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
    with page_after_running(CELL.format(root=str(COURSE_ROOT)), tmp_path, height=900) as page:
        line, boxes = page.locator(".widget-html b"), page.locator(".widget-html div[title]")
        line.wait_for(timeout=120_000)
        first = line.inner_text()
        assert first.startswith("Fits: ")
        assert boxes.count() >= 5, "a box for each group of the bar"
        width = _total(boxes)
        advice = page.locator(".widget-html li")
        expect(advice.first).to_contain_text("→", timeout=20_000)
        page.screenshot(path=tmp_path / "before.png")

        assert page.locator(".noUi-handle").count() == 3, "sliders for rank, rows at once and tokens per row"
        page.locator(".noUi-handle").last.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        expect(line).to_contain_text("Does not fit", timeout=20_000)
        assert _peak(line.inner_text()) > 2 * _peak(first), "4 rows of 8,192 tokens need far more than 4 of 512"
        assert _total(boxes) > width
        expect(advice.filter(has_text="rows at once 4 →")).to_have_count(1, timeout=20_000)

        page.locator(".widget-dropdown select").nth(1).select_option("h200")
        expect(line).to_contain_text("of 150.11 GB", timeout=20_000)
        assert line.inner_text().startswith("Fits: ")
        expect(page.locator(".widget-html div[style*='opacity']")).to_have_count(0, timeout=20_000)
        page.screenshot(path=tmp_path / "after.png")


def _peak(text: str) -> float:
    return float(re.search(r"tensors take (\d+\.\d+)", text)[1])


def _total(boxes) -> float:
    return sum(boxes.nth(i).bounding_box()["width"] for i in range(boxes.count()))
