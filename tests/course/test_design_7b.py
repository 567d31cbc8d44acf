"""The design for a 7B model that lesson 08 names: the script takes it, and any model's folder."""

import json
import shutil
import subprocess
import sys
import tomllib

from helpers import COURSE_ROOT

FOLDER = COURSE_ROOT / "measurements"
FILE = FOLDER / "quality_design_7b.toml"
DESIGN = tomllib.loads(FILE.read_text(encoding="utf-8"))


def test_the_design_has_all_that_the_other_one_has():
    other = tomllib.loads((FOLDER / "quality_design.toml").read_text(encoding="utf-8"))
    assert {name for name in other if name != "tasks"} <= set(DESIGN)
    for task in DESIGN["tasks"].values():
        assert set(other["tasks"]["messages"]) == set(task)
        assert set(task["arms"]) == set(DESIGN["arms"])
        assert set(task["rates"]) == {"adapter"}
        assert not set(task["seeds"]) & set(task["search_seeds"])
        assert "lora" in task["arms"]  # all others are compared with it
    assert {one[end] for one in DESIGN["comparisons"] for end in ("arm", "other")} <= set(DESIGN["arms"])
    assert not [arm for arm in DESIGN["arms"].values() if arm.get("full")]


def test_the_command_of_the_lesson_runs_it_on_a_model_s_folder(tmp_path):
    lesson = (COURSE_ROOT / "lessons" / "08_quality.py").read_text(encoding="utf-8")
    shown = "python measurements/measure_arms.py --design measurements/quality_design_7b.toml run --out runs/7b --chat FOLDER"
    assert shown in lesson
    assert shown in FILE.read_text(encoding="utf-8")
    model = shutil.copytree(COURSE_ROOT / "assets" / "base_model", tmp_path / "model")
    few = FILE.read_text(encoding="utf-8").replace(
        'arms = ["lora", "nf4", "fp4", "rank-64", "attention"]', 'arms = ["lora"]'
    )
    design = tmp_path / "few.toml"
    design.write_text(few, encoding="utf-8")
    here = {"measurements/quality_design_7b.toml": design, "runs/7b": tmp_path / "out", "FOLDER": model}
    words = [str(here.get(word, word)) for word in shown.split()[1:]]
    done = subprocess.run([sys.executable, *words, "--smoke", "1"], capture_output=True, text=True, cwd=COURSE_ROOT)
    assert "4 rows, 0 runs are left, 0 failed" in done.stdout, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "quality_rows.jsonl").read_text("utf-8").splitlines()]
    assert sorted((row["task"], row["phase"], row["model"]) for row in rows) == [
        ("facts", "runs", "7b"), ("facts", "search", "7b"), ("messages", "runs", "7b"), ("messages", "search", "7b"),
    ]  # fmt: skip
