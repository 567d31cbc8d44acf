"""The doctor on a GPU: 4 bits on the GPU itself, and the page's prediction beside its measurement.

CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu/test_gpu_doctor.py
"""

import json
import os
import subprocess
import sys

import pytest

from helpers import COURSE_ROOT

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def doctor(*words, **environment):
    surroundings = os.environ | {"PYTHONPATH": f"{COURSE_ROOT}:{os.environ.get('PYTHONPATH', '')}"} | environment
    command = [sys.executable, "-m", "helpers", "doctor", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("rules", ["1", "0"])
def test_the_page_predicts_what_it_measures(rules, tmp_path, capsys):
    code, said = doctor("--seconds", "90", COURSE_T4_RULES=rules, COURSE_RUNS=str(tmp_path))
    with capsys.disabled():
        print(f"\n{said['page']}\n{said['seconds']} s")
    assert code == 0
    assert "multiplies in 4 bits on cuda" in str(said["checks"])
    predicted, measured = said["measured"]["predicted"], said["measured"]["measured"]
    for key, bound in (("after_load", 0.01), ("peak_allocated", 0.01), ("peak_reserved", 0.05)):
        assert abs(predicted[key] / measured[key] - 1) < bound, key


def test_a_wrong_bitsandbytes_library_fails_on_a_gpu():
    code, said = doctor("--no-page", BNB_CUDA_VERSION="999")
    assert code == 1
    assert "unset BNB_CUDA_VERSION" in str(said["checks"])
