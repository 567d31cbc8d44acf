"""Lesson 03's panel in JupyterLab, in a real browser: it moves while a run goes on, and a picture stands there at the end."""

import re

import pytest

from helpers import COURSE_ROOT
from tests.browser.lab import page_after_running

CELL = """import sys, time
sys.path.insert(0, {root!r})
from types import SimpleNamespace
from helpers.machine import MemoryMonitor
from helpers.widgets import training_panel

with MemoryMonitor() as monitor:
    panel, state = training_panel(monitor), SimpleNamespace(global_step=0, max_steps=40)
    panel.on_train_begin(None, state, None)
    for state.global_step in range(1, 41):
        time.sleep(0.2)
        monitor.tokens += 100
        panel.on_log(None, state, None, logs={{"loss": 8 / state.global_step}})
        panel.on_step_end(None, state, None)
    panel.on_train_end(None, state, None)"""


def test_the_panel_moves_in_jupyterlab_and_ends_with_the_last_numbers(tmp_path):
    expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
    with page_after_running(CELL.format(root=str(COURSE_ROOT)), tmp_path) as page:
        line = page.locator(".widget-html")
        expect(line.first).to_contain_text("tokens a second", timeout=120_000)
        early = line.first.inner_text()
        step = int(re.search(r"step (\d+) of 40", early)[1])
        assert step < 40
        assert re.search(r"loss \d+\.\d{3}, [\d,]+ tokens a second, [\d,.]+ MB resident, \d+ s left", early)
        page.screenshot(path=tmp_path / "early.png")
        page.wait_for_function(
            f"() => !document.querySelector('.widget-html').innerText.includes('step {step} ')", timeout=20_000
        )
        expect(page.locator(".widget-html").first).to_contain_text("step 40 of 40, loss 0.200", timeout=60_000)
        expect(page.locator(".widget-html").first).to_contain_text("s in all")
        page.screenshot(path=tmp_path / "late.png")
