"""What a T4 needs of optional kernels, checked without one: Liger compiles for sm_75, and the lesson falls back from it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.machine import detect
from helpers.models import BUNDLED_MODEL
from helpers.training.workarounds import liger_layers

T4 = replace(detect(), device="cuda", name="Tesla T4", capability=(7, 5))


@pytest.fixture(scope="module")
def on_a_turing():
    """What compile_for_turing.py found in a process of its own."""
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel")
    line = [sys.executable, "tests/training/compile_for_turing.py"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_ligers_kernels_compile_for_a_t4(on_a_turing):
    targets = on_a_turing["targets"]
    assert set(targets.values()) == {"sm_75"}
    assert {"_rms_norm_forward_kernel", "_rms_norm_backward_kernel", "_triton_rope"} <= set(targets)
    assert {"_swiglu_forward_kernel", "_swiglu_backward_kernel"} <= set(targets)


def test_on_a_cpu_nothing_is_patched():
    assert liger_layers(str(BUNDLED_MODEL), replace(T4, device="cpu")) is False


def test_without_liger_the_lesson_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    assert liger_layers(str(BUNDLED_MODEL), T4) is False


def test_with_liger_the_architecture_is_patched_before_loading(on_a_turing):
    assert (on_a_turing["patched"], on_a_turing["norm"]) == (True, "LigerRMSNorm")


def test_an_architecture_that_liger_does_not_know_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    assert liger_layers(str(tmp_path), T4) is False
