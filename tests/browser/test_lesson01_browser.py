"""Lesson 01's explorer in JupyterLab, in a real browser: a slider moves, the number changes, the picture is redrawn."""

import re

import pytest

from helpers import COURSE_ROOT
from tests.browser.lab import page_after_running

CELL = """import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from tests.lessons.test_lesson01 import definitions
from helpers.widgets import explore

lesson = definitions()
sets = {{"NF4": lesson["nf4_levels"](), "FP4": lesson["fp4_levels"]().sort().values, "int4": torch.arange(-7, 8) / 7}}
explore(lesson["quantize_blockwise"], lesson["dequantize_blockwise"], sets)"""


def test_a_slider_moved_in_jupyterlab_changes_number_and_picture(tmp_path):
    expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
    with page_after_running(
        CELL.format(root=str(COURSE_ROOT), tests=str(COURSE_ROOT / "tests")), tmp_path, height=1100
    ) as page:
        line, picture = page.locator(".widget-html b"), page.locator(".jupyter-widgets.widget-image")
        line.wait_for(timeout=120_000)
        first, drawn = line.inner_text(), picture.get_attribute("src")
        assert "NF4, blocks of 4096" in first
        page.screenshot(path=tmp_path / "before.png")

        handles = page.locator(".noUi-handle")
        assert handles.count() == 2, "one slider for the block size, one for the outlier"
        handles.first.focus()
        for _ in range(6):
            page.keyboard.press("ArrowLeft")
        expect(line).to_contain_text("blocks of 64", timeout=20_000)
        second = line.inner_text()
        assert _percent(first) > 2 * _percent(second), "with an outlier, large blocks are far worse"
        expect(picture).not_to_have_attribute("src", drawn, timeout=20_000)

        page.locator(".widget-dropdown select").select_option("FP4")
        expect(line).to_contain_text("FP4, blocks of 64", timeout=20_000)
        expect(picture).to_have_js_property("complete", True, timeout=20_000)
        assert picture.evaluate("image => image.naturalWidth") > 400
        page.screenshot(path=tmp_path / "after.png")
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()


def _percent(text: str) -> float:
    return float(re.search(r"relative error ([\d.]+)%", text)[1])
