"""Lesson 09's file for a 7B model on Kaggle's pair, run as it stands there: copies without padding, under T4 rules.

    COURSE_GPU_TESTS=1 python -m pytest tests/gpu/test_file_for_7b.py

Needs two CUDA GPUs, 20 GB of disk and two minutes. The model has Qwen2.5-7B's shape in random weights, and the bundled
tokenizer. All rows are longer than max_length, so each piece is the longest that can come. Of the file's 60 steps 6 are
taken. With COURSE_GPU_OUT=FOLDER what was found is kept there, as file_for_7b.json.
"""

import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers import COURSE_ROOT
from helpers.machine import T4_BYTES, gpus_of_driver
from helpers.memory import GPUS

pytestmark = pytest.mark.skipif(len(gpus_of_driver()) < 2, reason="needs two GPUs")
STEPS = 6


def make_model(folder: Path) -> None:
    """Qwen2.5-7B's shape in random float16 weights, in the folder, with the bundled tokenizer."""
    code = """
import sys, torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from helpers.models import BUNDLED_MODEL, PRESETS
shape = {k: v for k, v in PRESETS["qwen2.5-7b"].shape.items() if k != "model_type"}
tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
torch.manual_seed(0)
torch.set_default_dtype(torch.float16)
with torch.device("cuda"):
    model = Qwen2ForCausalLM(Qwen2Config(**shape, bos_token_id=1, eos_token_id=tokenizer.eos_token_id))
model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
model.save_pretrained(sys.argv[1], max_shard_size="4GB")
tokenizer.save_pretrained(sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=COURSE_ROOT)


def the_file() -> dict:
    """What lesson 09 has one write to 7b.toml."""
    source = (COURSE_ROOT / "lessons" / "09_faster_and_larger.py").read_text(encoding="utf-8")
    (text,) = (t for t in re.findall(r"^# ```toml\n(.*?)^# ```", source, re.DOTALL | re.MULTILINE) if '/7b"' in t)
    return tomllib.loads(text.replace("# ", ""))


def test_it_trains_within_two_t4s_and_takes_what_it_said_that_it_would(tmp_path):
    make_model(tmp_path / "model")
    sentence = "the quick brown fox jumps over the lazy dog and comes back again "
    rows = [f"question {n},answer {n} {sentence * 60}" for n in range(16 * STEPS + 64)]
    (tmp_path / "rows.csv").write_text("\n".join(["prompt,completion", *rows]))
    given = the_file() | {"model_id": str(tmp_path / "model"), "dataset_id": str(tmp_path / "rows.csv")}
    given |= {"output_dir": str(tmp_path / "out"), "max_steps": STEPS, "eval_rows": 16}
    (tmp_path / "7b.toml").write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in given.items()))
    command = [sys.executable, "-m", "helpers", "train", str(tmp_path / "7b.toml")]
    surroundings = os.environ | {"COURSE_T4_RULES": "1", "HF_HUB_OFFLINE": "1"}
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=surroundings, cwd=COURSE_ROOT)
    predicted = [float(n) * 1e9 for n in re.findall(r"GPU \d: (\d+\.\d+) GB at the peak", dry.stdout)]
    assert dry.stdout.endswith("\nfits\n"), dry.stdout + dry.stderr
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, cwd=COURSE_ROOT)
    log = tmp_path / "out" / "train.log"
    assert done.returncode == 0, done.stderr[-2000:] + log.read_text()[-2000:]
    found = json.loads((tmp_path / "out" / "train.json").read_text())
    if kept := os.environ.get("COURSE_GPU_OUT"):
        packages = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
        about = {"date": str(datetime.date.today()), "versions": {p: importlib.metadata.version(p) for p in packages}}
        about |= {"shape": "Qwen2.5-7B", "predicted_peak_bytes": predicted, "said": dry.stdout.splitlines()[2:]}
        whole = json.dumps(found | about, indent=1).replace(str(tmp_path), "FOLDER")
        (Path(kept) / "file_for_7b.json").write_text(whole)
    assert "T4 rules" in found["machine"]
    assert (found["way"], found["rows_per_step"], len(found["losses"])) == ("ddp", 16, STEPS)
    assert found["heldout_loss_after"] < found["heldout_loss_before"]
    assert found["peak_bytes"] == pytest.approx(predicted, rel=0.01)
    assert max(found["peak_bytes"]) < T4_BYTES - GPUS["t4"].context_bytes
