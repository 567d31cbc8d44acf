"""Lesson 03 as a learner on a T4 runs it, every parameter "auto": a 7B shape and Alpaca, fetched from the hub's double.

    COURSE_GPU_TESTS=1 python -m pytest tests/gpu/test_hub_default.py

Needs a CUDA GPU, some 35 GB of disk and ten minutes. The weights are random and the rows are the bundled ones under
Alpaca's columns: this shows the plumbing and the memory, and nothing of a 7B model's numerics.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import COURSE_ROOT
from helpers.doctor.child_process import make_model
from helpers.models import AUTO_LARGE, PRESETS
from tests.places.hub import Hub, git_hash, sha256

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
T4_BYTES = 14.56 * 2**30


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What the double serves: the default model's shape in random weights, and rows with Alpaca's columns."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("hub")
    preset = PRESETS[AUTO_LARGE]
    make_model(preset.shape, folder / "models" / preset.hub_id, "cuda", "bfloat16", max_shard_size="4GB")
    torch.cuda.empty_cache()
    lines = (COURSE_ROOT / "assets" / "instructions" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{name: row[name] for name in ("instruction", "input", "output")} for row in map(json.loads, lines)]
    data = folder / "datasets" / "tatsu-lab" / "alpaca" / "data"
    data.mkdir(parents=True)
    Dataset.from_list([row | {"text": ""} for row in rows]).to_parquet(str(data / "train-00000-of-00001.parquet"))
    # The double names files by their hashes; 15 GB of them are hashed now, for the course waits five seconds for an answer.
    files = [file for file in folder.rglob("*") if file.is_file()]
    with ThreadPoolExecutor() as several:
        list(several.map(git_hash, files))
        list(several.map(sha256, files))
    return folder


def test_lesson_03_runs_whole_with_every_parameter_auto(root, tmp_path):
    folder, cache = tmp_path / "hub-default", tmp_path / "cache"
    with Hub(root) as hub:
        around = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
        around |= hub.environment | {"HF_HOME": str(cache), "COURSE_T4_RULES": "1", "COURSE_RUNS": str(tmp_path)}
        # Random weights have nothing to teach: verdicts about what was learned are counted, and do not end the run.
        around |= {"COURSE_STRICT": "0", "PYTHONPATH": f"{COURSE_ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-m", "helpers", "run", "03", "--name", folder.name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=COURSE_ROOT, env=around)
    kept = os.environ.get("COURSE_GPU_OUT")
    if kept:
        (Path(kept) / "hub-default.log").write_text(done.stdout + done.stderr[-5000:])
        for file in [*folder.glob("*.json"), *folder.glob("*.failed.ipynb")]:
            shutil.copy(file, Path(kept) / f"{folder.name}-{file.name}")
    shutil.rmtree(cache, ignore_errors=True)
    assert "failed in" not in done.stderr, done.stderr[-3000:]
    record = json.loads((folder / "03_t4_training.json").read_text())
    assert record["run"]["model"] == PRESETS[AUTO_LARGE].hub_id
    assert record["run"]["data"].startswith("tatsu-lab/alpaca (CC BY-NC 4.0), 1440 to learn and 160 held out")
    assert "under T4 rules: computes in float16" in record["run"]["machine"]
    assert record["peak_bytes"] < T4_BYTES
    assert record["training_peak_bytes"] == pytest.approx(record["predicted_peak_bytes"], rel=0.05)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert hub.asked(r"GET .*model-0000\d-of-0000\d\.safetensors")
