"""An export that is killed or interrupted leaves whole files or none."""

import functools
import os
import signal
import subprocess
import sys

import gguf
import pytest

from helpers import COURSE_ROOT
from helpers.export import export_gguf

export = functools.partial(export_gguf, progress=False)


@pytest.mark.parametrize(
    ("where", "how", "there"),
    [
        ("helpers.export.weights.quantized", "before", False),
        ("helpers.export.exporter.write_weights", "after", True),
        ("os.replace", "before", False),
        ("os.replace", "before", True),
    ],
)
def test_a_killed_export_leaves_a_whole_file_or_none_and_the_next_sweeps_up(model, where, how, there, tmp_path):
    out = tmp_path / "here" / "out.gguf"
    out.parent.mkdir()
    if there:
        export(model, out, "f32")
    old = out.read_bytes() if there else None
    module, name = where.rsplit(".", 1)
    body = (
        "os.kill(os.getpid(), signal.SIGKILL)"
        if how == "before"
        else "done = whole(*a, **k); os.kill(os.getpid(), signal.SIGKILL)"
    )
    code = (
        f"import os, signal, sys, {module}\nfrom helpers.export import export_gguf\nwhole = {module}.{name}\n"
        f"def killed(*a, **k): {body}\n{module}.{name} = killed\n"
        f"export_gguf(sys.argv[1], sys.argv[2], 'q8_0', overwrite=True, progress=False)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model), str(out)], cwd=COURSE_ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (out.read_bytes() if out.exists() else None) == old
    export(model, out, "q8_0", overwrite=True)
    assert sorted(file.name for file in out.parent.iterdir()) == ["out.Modelfile", "out.gguf"]
    assert {t.tensor_type.name for t in gguf.GGUFReader(out).tensors} == {"F32", "Q8_0"}


def test_an_export_that_is_killed_between_its_two_files_leaves_the_model(model, tmp_path):
    code = (
        "import os, signal, sys\nfrom helpers.export import export_gguf\nwhole = os.replace\n"
        "def killed(*a): whole(*a); os.kill(os.getpid(), signal.SIGKILL)\nos.replace = killed\n"
        "export_gguf(sys.argv[1], sys.argv[2], 'q8_0', progress=False)"
    )
    out = tmp_path / "here" / "out.gguf"
    out.parent.mkdir()
    subprocess.run([sys.executable, "-c", code, str(model), str(out)], cwd=COURSE_ROOT, capture_output=True)
    assert [file.name for file in out.parent.iterdir() if not file.name.startswith(".")] == ["out.gguf"]
    assert {t.tensor_type.name for t in gguf.GGUFReader(out).tensors} == {"F32", "Q8_0"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("which", [1, 2])
def test_an_interrupt_between_the_two_files_leaves_both_or_none(model, tmp_path, monkeypatch, which, when):
    calls, whole = [], os.replace

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) != which:
            return whole(*arguments)
        if when == "after":
            whole(*arguments)
        raise KeyboardInterrupt

    out = tmp_path / "here" / "out.gguf"
    out.parent.mkdir()
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(model, out)
    monkeypatch.undo()
    left = sorted(file.name for file in out.parent.iterdir())
    expected = {(1, "before"): [], (2, "before"): ["out.gguf"]}
    assert left == expected.get((which, when), ["out.Modelfile", "out.gguf"])
    export(model, out, overwrite=(which, when) != (1, "before"))
    assert sorted(file.name for file in out.parent.iterdir()) == ["out.Modelfile", "out.gguf"]
