"""An export that is refused: in one line, and without a trace."""

import json

import pytest

from helpers.export import ExportError, export_gguf


def edit(file, change) -> None:
    """Change what a JSON file holds."""
    settings = json.loads(file.read_text())
    change(settings)
    file.write_text(json.dumps(settings))


def refused(model, words, out=None, **settings) -> None:
    """The export stops with one line that has the words in it, and leaves nothing where it would have written."""
    out = out or model.parent / "out.gguf"
    before = {file: file.lstat().st_mtime_ns for file in out.parent.iterdir()}
    with pytest.raises(ExportError, match=words) as caught:
        export_gguf(model, out, progress=False, **settings)
    assert "\n" not in str(caught.value)
    assert {file: file.lstat().st_mtime_ns for file in out.parent.iterdir()} == before
