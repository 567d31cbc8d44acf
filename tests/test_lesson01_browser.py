"""Lesson 01's explorer in JupyterLab, in a real browser: a slider moves, the number changes, the picture is redrawn."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason="no chromium on this machine")
ROOT = Path(__file__).resolve().parent.parent

CELL = """import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from test_lesson01 import definitions
from helpers.explorer import explore

lesson = definitions()
sets = {{"NF4": lesson["nf4_levels"](), "FP4": lesson["fp4_levels"](), "int4": torch.arange(-7, 8) / 7}}
explore(lesson["quantize_blockwise"], lesson["dequantize_blockwise"], sets)"""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves one notebook with the lesson's functions and the explorer."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(CELL.format(root=str(ROOT), tests=str(ROOT / "tests")))],
        metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    )
    nbformat.write(notebook, tmp_path / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]
    command = [sys.executable, "-m", "jupyterlab", *quiet, "--ip=127.0.0.1", f"--port={port}"]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api", server)
            yield f"{address}/lab/tree/explorer.ipynb?reset"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for(address: str, server, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            pytest.fail(f"JupyterLab ended with status {server.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer within {seconds} s")


def test_a_slider_moved_in_jupyterlab_changes_number_and_picture(lab, tmp_path):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        page.goto(lab)
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=90_000)
        page.get_by_text("| Idle").first.wait_for(timeout=90_000)  # a cell run before that is lost
        page.locator(".jp-Notebook .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        line, picture = page.locator(".widget-html b"), page.locator(".jupyter-widgets.widget-image")
        line.wait_for(timeout=120_000)
        first, drawn = line.inner_text(), picture.get_attribute("src")
        assert "NF4, blocks of 64" in first
        page.screenshot(path=tmp_path / "before.png")

        handles = page.locator(".noUi-handle")
        assert handles.count() == 2, "one slider for the block size, one for the outlier"
        handles.first.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        playwright.expect(line).to_contain_text("blocks of 2048", timeout=20_000)
        second = line.inner_text()
        assert _percent(second) > 2 * _percent(first), "with an outlier, large blocks are far worse"
        playwright.expect(picture).not_to_have_attribute("src", drawn, timeout=20_000)

        page.locator(".widget-dropdown select").select_option("FP4")
        playwright.expect(line).to_contain_text("FP4, blocks of 2048", timeout=20_000)
        assert picture.evaluate("image => image.naturalWidth") > 400
        page.screenshot(path=tmp_path / "after.png")
        browser.close()
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()


def _percent(text: str) -> float:
    return float(re.search(r"relative error ([\d.]+)%", text)[1])
