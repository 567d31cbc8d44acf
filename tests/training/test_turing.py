"""What a T4 needs of optional kernels, checked without one: Liger compiles for sm_75, and the lesson falls back from it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.machine import detect
from helpers.models import BUNDLED_MODEL
from helpers.training import liger_layers

T4 = replace(detect(), device="cuda", name="Tesla T4", capability=(7, 5))


def python(*words):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_ligers_kernels_compile_for_a_t4():
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel")
    targets = json.loads(python("tests/training/compile_for_turing.py").splitlines()[-1])
    assert set(targets.values()) == {"sm_75"}
    assert {"_rms_norm_forward_kernel", "_rms_norm_backward_kernel", "_triton_rope"} <= set(targets)
    assert {"_swiglu_forward_kernel", "_swiglu_backward_kernel"} <= set(targets)


def test_on_a_cpu_nothing_is_patched():
    assert liger_layers(str(BUNDLED_MODEL), replace(T4, device="cpu")) is False


def test_without_liger_the_lesson_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    assert liger_layers(str(BUNDLED_MODEL), T4) is False


def test_with_liger_the_architecture_is_patched_before_loading():
    pytest.importorskip("liger_kernel")
    said = python(
        "-c",
        "from tests.training.test_turing import *; from transformers.models.llama import modeling_llama as m;"
        "print(liger_layers(str(BUNDLED_MODEL), T4), m.LlamaRMSNorm.__name__)",
    )
    assert said.split()[-2:] == ["True", "LigerRMSNorm"]


def test_an_architecture_that_liger_does_not_know_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    assert liger_layers(str(tmp_path), T4) is False
