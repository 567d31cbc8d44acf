"""JupyterLab in headless Chromium, for the tests of widgets."""

import contextlib
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


@contextlib.contextmanager
def page_after_running(cell: str, folder: Path, height: int = 1000):
    """Yield a browser page on a notebook whose only cell, `cell`, was started; skips where a part is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip("no chromium on this machine")
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=metadata)
    nbformat.write(notebook, folder / "widget.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    command = [sys.executable, "-m", "jupyterlab", *quiet, "--ip=127.0.0.1", f"--port={port}"]
    with open(folder / "lab.log", "w") as log, playwright.sync_playwright() as driver:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api", server)
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": height})
            page.goto(f"{address}/lab/tree/widget.ipynb?reset")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=90_000)
            page.get_by_text("| Idle").first.wait_for(timeout=90_000)  # a cell run before that is lost
            page.locator(".jp-Notebook .cm-content").first.click()
            page.keyboard.press("Shift+Enter")
            yield page
            browser.close()
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
