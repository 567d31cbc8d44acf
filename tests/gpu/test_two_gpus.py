"""Two GPUs in sight and nobody has chosen, as on Kaggle: every lesson passes on the first, under T4 rules.

    COURSE_GPU_TESTS=1 python -m pytest tests/gpu/test_two_gpus.py

Needs two CUDA GPUs and CUDA_VISIBLE_DEVICES unset. With COURSE_GPU_OUT=FOLDER the records are kept for measurements/.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from helpers.machine import gpus_of_driver

pytestmark = pytest.mark.skipif(
    len(gpus_of_driver()) < 2 or "CUDA_VISIBLE_DEVICES" in os.environ,
    reason="needs two GPUs, and nobody's choice of one",
)
SURROUNDINGS = {"COURSE_T4_RULES": "1", "HF_HUB_OFFLINE": "1"}


def surroundings(**more) -> dict[str, str]:
    path = {"PYTHONPATH": f"{COURSE_ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return os.environ | SURROUNDINGS | path | more


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two-gpus"
    command = [sys.executable, "-m", "helpers", "run", "--name", folder.name, "-p", "model_id", "bundled"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings(COURSE_RUNS=str(folder.parent))
    )
    kept = os.environ.get("COURSE_GPU_OUT")
    if kept:
        for file in [*folder.glob("*.json"), *folder.glob("*.failed.ipynb")]:
            shutil.copy(file, Path(kept) / f"{folder.name}-{file.name}")
        (Path(kept) / "two-gpus.log").write_text(done.stdout + done.stderr[-5000:])
    return done, {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_every_lesson_passes(records):
    done, found = records
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert set(found) == {lesson.stem for lesson in course.lessons()}


@pytest.mark.parametrize("lesson", [lesson.stem for lesson in course.lessons()])
def test_all_its_verdicts_hold_on_one_of_two_gpus(records, lesson):
    record = records[1][lesson]
    assert "under T4 rules: computes in float16" in record["run"]["machine"]
    assert record["run"]["gpus"] >= 2
    assert [v["claim"] for v in record["verdicts"] if not v["holds"]] == []


def test_a_process_sees_the_first_and_keeps_what_was_there_before():
    code = "from helpers.machine import ALL_GPUS, detect; m = detect(); import os, torch; "
    code += "print(torch.cuda.device_count(), os.environ['CUDA_VISIBLE_DEVICES'], repr(os.environ[ALL_GPUS]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings())
    assert done.stdout.split() == ["1", "0", "''"], done.stderr[-2000:]


@pytest.mark.parametrize("chosen", ["1", "0,1"])
def test_what_somebody_set_is_respected(chosen):
    code = "from helpers.machine import detect; detect(); import os, torch; print(torch.cuda.device_count())"
    env = surroundings(CUDA_VISIBLE_DEVICES=chosen)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert int(done.stdout) == len(chosen.split(",")), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("touch", "works"), [("torch.cuda.is_available()", True), ("torch.ones(1, device='cuda')", False)]
)
def test_a_session_that_used_both_before_is_asked_to_restart_and_one_that_only_looked_is_not(touch, works):
    code = f"import torch; {touch}; from helpers.machine import detect; detect(); print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings())
    if works:
        assert done.stdout.strip() == "1", done.stderr[-2000:]
    else:
        assert "MachineError: 2 GPUs are here, and this session has used them already" in done.stderr


def test_the_doctor_says_ok_with_a_note():
    command = [sys.executable, "-m", "helpers", "doctor", "--json", "--seconds", "120"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings())
    said = json.loads(done.stdout)
    (note,) = [check for check in said["checks"] if "a lesson uses the first" in check["what"]]
    assert note["status"] == "OK"
    assert said["measured"], said["checks"]
