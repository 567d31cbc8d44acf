"""Whole lessons on a GPU, under T4 rules: every lesson on the bundled model, and lesson 03 on a real 7B shape.

    CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu

Needs a CUDA GPU and some 20 GB of free disk; without a GPU it is skipped. With COURSE_GPU_OUT=FOLDER the records are kept.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import COURSE_ROOT
from helpers.models import BUNDLED_MODEL, PRESETS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
T4_BYTES = 14.56 * 2**30


def run(*words, folder: Path, rules: bool = True) -> dict:
    """Run lessons by the course's own command; returns the records of those that recorded, by lesson."""
    surroundings = os.environ | {"COURSE_RUNS": str(folder.parent), "COURSE_T4_RULES": "1" if rules else "0"}
    surroundings |= {"PYTHONPATH": f"{COURSE_ROOT}:{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "helpers", "run", *words, "--name", folder.name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings)
    kept = os.environ.get("COURSE_GPU_OUT")
    if kept:
        for file in [*folder.glob("*.json"), *folder.glob("*.failed.ipynb")]:
            shutil.copy(file, Path(kept) / f"{folder.name}-{file.name}")
    assert done.returncode == 0, done.stderr[-3000:]
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory):
    """A folder with Mistral-7B's shape in random float16 weights, and the bundled tokenizer."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    folder = tmp_path_factory.mktemp("models") / "mistral-shape"
    shape = {k: v for k, v in PRESETS["mistral-7b"].shape.items() if k != "model_type"}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = MistralForCausalLM(MistralConfig(**shape, bos_token_id=1, eos_token_id=2))
    torch.set_default_dtype(torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return folder


def test_every_lesson_runs_under_t4_rules(tmp_path):
    records = run("-p", "model_id", "bundled", folder=tmp_path / "t4-rules")
    assert len(records) >= 6
    for record in records.values():
        assert "under T4 rules: computes in float16" in record["run"]["machine"]
        assert all(v["holds"] for v in record["verdicts"])
    assert records["03_t4_training"]["exact_match_after"] >= 0.95


def test_lesson_03_trains_in_bfloat16_where_the_gpu_has_it(tmp_path):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16 units")
    for graphs in ("auto", "true"):
        words = ["-p", "model_id", "bundled", "-p", "cuda_graphs", graphs]
        record = run("3", *words, folder=tmp_path / f"bfloat16-{graphs}", rules=False)["03_t4_training"]
        assert "computes in bfloat16" in record["run"]["machine"]
        assert record["cuda_graphs"] is (graphs == "true"), "they need padding, and rows go without it"
        assert record["exact_match_after"] >= 0.95


def test_lesson_03_trains_a_7b_shape_within_a_t4(tmp_path, seven_billion):
    words = ["-p", "model_id", str(seven_billion), "-p", "dataset_id", "bundled", "-p", "max_steps", "8"]
    words += ["-p", "learning_rate", "1e-3", "-p", "eval_rows", "16"]
    record = run("3", *words, folder=tmp_path / "mistral-shape")["03_t4_training"]
    assert record["peak_bytes"] < T4_BYTES
    assert record["heldout_loss_after"] < record["heldout_loss_before"]
    assert record["trainable_parameters"] == 41_943_040  # rank 16 on all seven projections
    assert record["training_peak_bytes"] == pytest.approx(record["predicted_peak_bytes"], rel=0.05)
    assert {"load", "prepare", "evaluate", "forward", "backward", "step"} <= set(record["peak_bytes_by_phase"])


def test_lesson_03_records_a_7b_shape_as_cuda_graphs_where_memory_allows(tmp_path, seven_billion):
    if torch.cuda.get_device_capability() < (8, 0) or torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs bfloat16 units and memory for all activations")
    words = ["-p", "model_id", str(seven_billion), "-p", "dataset_id", "bundled", "-p", "max_steps", "8"]
    words += ["-p", "learning_rate", "1e-3", "-p", "eval_rows", "16", "-p", "max_length", "128"]
    words += ["-p", "cuda_graphs", "true"]
    record = run("3", *words, folder=tmp_path / "graphs", rules=False)["03_t4_training"]
    assert record["cuda_graphs"]
    assert record["heldout_loss_after"] < record["heldout_loss_before"]
    assert record["training_peak_bytes"] == pytest.approx(record["predicted_peak_bytes"], rel=0.05)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_lesson_07_trains_a_7b_shape_with_a_chat_template_within_a_t4(tmp_path, seven_billion):
    from transformers import AutoTokenizer

    folder = tmp_path / "chat-shape"
    folder.mkdir()
    for file in seven_billion.iterdir():
        (folder / file.name).symlink_to(file)
    tokenizer = AutoTokenizer.from_pretrained(seven_billion)
    tokenizer.chat_template = CHATML
    (folder / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(folder)
    words = [
        "-p",
        "model_id",
        str(folder),
        "-p",
        "max_steps",
        "6",
        "-p",
        "learning_rate",
        "1e-3",
        "-p",
        "eval_rows",
        "12",
    ]
    record = run("7", *words, "-p", "max_new_tokens", "16", folder=tmp_path / "chat-shape-run")["07_your_own_data"]
    assert "under T4 rules: computes in float16" in record["run"]["machine"]
    assert record["rows_learned"] == 3840  # the workshop's messages
    assert record["heldout_loss_after"] < record["heldout_loss_before"]


def test_a_real_out_of_memory_is_explained_and_leaves_the_gpu_as_it_was():
    from helpers.memory import GPUS, RunSpec
    from helpers.training.out_of_memory import OutOfMemory, explained

    def train():
        held = [torch.empty(2**28, device="cuda")]
        return held + [torch.empty(2**45, device="cuda")]

    before = torch.cuda.memory_allocated()
    guard = explained(PRESETS["qwen2.5-7b"].shape, RunSpec(checkpoint_every=0), "t4", GPUS["t4"].total_bytes)
    with pytest.raises(OutOfMemory, match="GiB was asked for") as caught, guard:
        train()
    assert "checkpointing=True" in str(caught.value)
    assert torch.cuda.memory_allocated() == before


def test_paged_optimizers_page_large_tensors_only():
    import bitsandbytes as bnb

    tensors = [torch.nn.Parameter(torch.ones(n, device="cuda")) for n in (99_999, 100_000)]
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer = bnb.optim.PagedAdamW8bit(tensors)
    optimizer.step()
    pages = [getattr(optimizer.state[tensor]["state1"], "is_paged", False) for tensor in tensors]
    assert pages == [False, True]
