"""Attacks: bad values, bad words, damaged files, code and pickles that must not run. Each ends in one line, and is counted."""

import collections
import contextlib
import http.server
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import zipfile

import pytest

from helpers import COURSE_ROOT, CourseError
from helpers.commands._job import FILE_RULES
from helpers.data import instructions as data
from helpers.evaluation import scores
from helpers.files import reading as files
from helpers.files import writing
from helpers.machine import Machine
from helpers.models import resolving as models
from helpers.quick import four_bits
from helpers.quick import short_training as quick

CPU = Machine("cpu", "test", 0, 2**34, 2, None)
SHIPPED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def say(capsys):
    """Print past pytest's capturing: the counts are part of the result."""

    def show(text):
        with capsys.disabled():
            print(f"\n    {text}", end=" ", flush=True)

    return show


def one_line(error) -> str:
    """The text of an error that a reader gets: one line, of readable length."""
    text = str(error)
    assert text.isprintable(), text
    assert 10 < len(text) < 600, text
    return text


# --- values and words -------------------------------------------------------------------------------------------


def attack(what: str, count: int, folder) -> dict:
    """Run tests/commands/attacks.py in a Python of its own, in an empty folder; returns its tally."""
    surroundings = os.environ | {"HF_HUB_OFFLINE": "1", "COURSE_RUNS": str(folder / "runs"), "COLUMNS": "200"}
    command = [sys.executable, str(COURSE_ROOT / "tests" / "commands" / "attacks.py"), what, str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=surroundings, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tally = json.loads(done.stdout.splitlines()[-1])
    assert tally["wrong"] == []
    assert tally["heavy"] == {}, "something heavy was imported before the value was refused"
    assert not tally["planted"], "a shell ran a value"
    return tally


def test_generated_bad_values_for_every_parameter_get_one_line_before_anything_heavy(tmp_path, say):
    tally = attack("values", 400, tmp_path)
    refused = sum(tally["refused"].values())
    assert refused == tally["tried"] >= 400
    say(f"{refused} bad values for {len(tally['refused']) - 1} parameters: all refused in one line")


def test_generated_bad_words_for_every_command_get_one_line_before_anything_heavy(tmp_path, say):
    tally = attack("words", 200, tmp_path)
    refused = sum(tally["refused"].values())
    assert refused >= 1000
    assert refused + tally["accepted"] == tally["tried"]
    say(f"{refused} bad command lines refused in one line, {tally['accepted']} turned out to be good")


def test_generated_bad_files_of_settings_get_one_line_before_anything_heavy_and_nothing_is_written(tmp_path, say):
    tally = attack("files", 300, tmp_path)
    refused = sum(tally["refused"].values())
    assert refused == tally["tried"] >= 700
    assert len(tally["refused"]) == len(FILE_RULES) + 2, "every key, keys that there are not, and what is no TOML"
    say(f"{refused} bad files of settings refused in one line, half of them in a dry run")


# --- models -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """A function that makes a fresh local copy of the bundled model."""

    def make():
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in SHIPPED:
            shutil.copy(models.BUNDLED_MODEL / name, folder)
        return folder

    return make


def flip(file, chance: random.Random, begin: int = 0, end: int | None = None) -> None:
    """Turn one bit of a file."""
    content = bytearray(file.read_bytes())
    bit = chance.randrange(8 * begin, 8 * (end or len(content)))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def what_becomes_of(folder) -> str:
    """Use a local model as a lesson does: "refused" in one line, or "loaded", or the exception itself."""
    try:
        model = models.resolve_model(str(folder), CPU)
        models.rehearse(model)
    except CourseError as error:
        one_line(error)
        return "refused"
    loaded, tokenizer = four_bits.load_4bit(model, CPU)
    scores.answer(loaded, tokenizer, ["What is the capital of France?\nAnswer:\n"], 2)
    return "loaded"


def test_a_truncated_or_empty_file_of_a_model_is_refused_at_whatever_byte_it_ends(copy, say):
    chance, refused = random.Random(0), 0
    for name in SHIPPED:
        size = (models.BUNDLED_MODEL / name).stat().st_size
        for keep in {0, 1, 7, 8, 9, size // 2, size - 2, *(chance.randrange(size - 1) for _ in range(12))}:
            folder = copy()
            os.truncate(folder / name, keep)
            assert what_becomes_of(folder) == "refused", (name, keep)
            refused += 1
    say(f"{refused} truncated files of a model: all refused")


def test_a_missing_file_of_a_model_is_named(copy):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        folder = copy()
        (folder / name).unlink()
        with pytest.raises(models.ModelError, match=r"config\.json|safetensors|tokenizer"):
            models.resolve_model(str(folder), CPU)


def test_swapped_files_of_a_model_are_refused(copy, say):
    pairs = [(a, b) for i, a in enumerate(SHIPPED) for b in SHIPPED[i + 1 :]]
    for a, b in pairs:
        folder = copy()
        (folder / a).rename(folder / "aside")
        (folder / b).rename(folder / a)
        (folder / "aside").rename(folder / b)
        assert what_becomes_of(folder) == "refused", (a, b)
    say(f"{len(pairs)} pairs of swapped files: all refused")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 512}, "config.json asks for"),
        ({"num_hidden_layers": 7}, "model.layers.6"),
        ({"num_hidden_layers": 5}, "one layer more"),
        ({"vocab_size": 3000}, "config.json asks for"),
        ({"num_key_value_heads": 8}, "k_proj"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"hidden_size": -256}, "hidden_size = -256"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000"),
        ({"model_type": None}, "no model_type"),
        ({"model_type": "no-such-model"}, "cannot be loaded"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"hidden_act": "no-such-function"}, "cannot be loaded"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "the course never does that"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused_with_the_reason(copy, changes, words):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(models.ModelError) as error:
        models.rehearse(models.resolve_model(str(folder), CPU))
    assert words in one_line(error.value)


def test_the_tokenizer_of_another_model_is_refused(copy):
    folder = copy()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["from another model"] = 50_000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(models.ModelError, match="has a token 50000, and the model's vocabulary ends at 3071"):
        models.resolve_model(str(folder), CPU)


def test_an_adapters_weights_in_a_models_place_are_refused(copy, adapter):
    folder = copy()
    shutil.copy(adapter / "adapter_model.safetensors", folder / "model.safetensors")
    with pytest.raises(models.ModelError, match="its weights are an adapter's"):
        models.resolve_model(str(folder), CPU)


def test_a_turned_bit_in_a_local_model_is_refused_or_leaves_a_model_that_loads(copy, say):
    """Headers are checked to the byte. Inside the weights a bit cannot be seen without a sum to compare with."""
    chance, seen = random.Random(0), collections.defaultdict(collections.Counter)
    with open(models.BUNDLED_MODEL / "model.safetensors", "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    plan = [("config.json", 0, None, 24), ("tokenizer.json", 0, None, 24), ("tokenizer_config.json", 0, None, 20)]
    plan += [
        ("generation_config.json", 0, None, 12),
        ("model.safetensors", 0, header, 60),
        ("model.safetensors", header, None, 4),
    ]
    for name, begin, end, times in plan:
        for _ in range(times):
            folder = copy()
            flip(folder / name, chance, begin, end)
            seen["weights" if begin else "header" if end else name][what_becomes_of(folder)] += 1
    assert set(seen["header"]) == {"refused"}
    assert set(seen["weights"]) == {"loaded"}
    assert sum(counts["refused"] for counts in seen.values()) > 60
    say(
        "turned bits: "
        + "; ".join(f"{what} " + ", ".join(f"{n} {o}" for o, n in c.items()) for what, c in seen.items())
    )


def test_in_the_files_of_the_course_every_turned_bit_is_found(tmp_path, monkeypatch, say):
    shutil.copytree(files.ASSETS / "base_model", tmp_path / "base_model")
    shutil.copytree(files.ASSETS / "instructions", tmp_path / "instructions")
    shutil.copy(files.ASSETS / "SHA256SUMS", tmp_path)
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    monkeypatch.setattr(models, "BUNDLED_MODEL", tmp_path / "base_model")
    monkeypatch.setattr(data, "BUNDLED_INSTRUCTIONS", tmp_path / "instructions")
    assert models.bundled().bundled
    assert len(data.load_instructions("bundled")[0]["heldout"]) > 100
    chance, found = random.Random(0), 0
    listed = [line.split(maxsplit=1)[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()]
    for name in listed:
        good = (tmp_path / name).read_bytes()
        for _ in range(6):
            flip(tmp_path / name, chance)
            use = (lambda: data.load_instructions("bundled")) if name.startswith("instructions") else models.bundled
            with pytest.raises((models.ModelError, data.DataError), match="is damaged, or was changed: fetch") as error:
                use()
            one_line(error.value)
            found += 1
        (tmp_path / name).write_bytes(good)
    say(f"{found} turned bits in {len(listed)} files of the course: all found")


def test_every_file_that_the_course_loads_has_its_sum():
    listed = {line.split(maxsplit=1)[1] for line in (files.ASSETS / "SHA256SUMS").read_text().splitlines()}
    there = {f"base_model/{name}" for name in SHIPPED} | {f"instructions/{s}.jsonl" for s in ("train", "heldout")}
    assert listed == there
    assert files.changed_asset(models.BUNDLED_MODEL) is None
    assert files.changed_asset(data.BUNDLED_INSTRUCTIONS) is None


# --- adapters ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An untrained adapter of the bundled model, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters") / "good"
    base = AutoModelForCausalLM.from_pretrained(models.BUNDLED_MODEL, dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])).save_pretrained(folder)
    return folder


def refused_adapter(folder) -> str:
    """What a lesson says of the adapter in `folder`; the whole way through begin's own functions."""
    with pytest.raises(models.ModelError) as error:
        models.resolve_model("auto", CPU, adapter=folder)
    return one_line(error.value)


def test_a_good_adapter_leads_to_its_base(adapter):
    assert models.resolve_model("auto", CPU, adapter=adapter).bundled


def test_a_damaged_adapter_is_refused_by_name(adapter, tmp_path, say):
    chance, tried = random.Random(0), 0
    folder = tmp_path / "damaged"
    header = 8 + int.from_bytes((adapter / "adapter_model.safetensors").read_bytes()[:8], "little")

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(adapter, folder)

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        size = (adapter / name).stat().st_size
        for keep in {0, 1, 8, size // 2, size - 2, *(chance.randrange(size - 1) for _ in range(10))}:
            fresh()
            os.truncate(folder / name, keep)
            refused_adapter(folder)
            tried += 1
    for _ in range(40):
        fresh()
        flip(folder / "adapter_model.safetensors", chance, 0, header)
        try:
            refused_adapter(folder)
            tried += 1
        except pytest.fail.Exception:  # in the free text of __metadata__, or padding
            text = (folder / "adapter_model.safetensors").read_bytes()[8:header]
            assert json.loads(text).get("__metadata__") != {"format": "pt"}
    fresh()
    (folder / "adapter_config.json").rename(folder / "aside")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_config.json")
    (folder / "aside").rename(folder / "adapter_model.safetensors")
    assert "run lesson 03 again" in refused_adapter(folder)
    say(f"{tried + 1} damaged adapters: all refused")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 8}, "and adapter_config.json says 8"),
        ({"r": "four"}, "says r = 'four'"),
        ({"lora_alpha": None}, "lora_alpha = None"),
        ({"peft_type": "IA3"}, "the lessons use LORA"),
        ({"base_model_name_or_path": None}, "no readable adapter_config"),
        ({"base_model_name_or_path": "./nowhere"}, "no folder './nowhere'"),
    ],
)
def test_an_adapter_whose_settings_do_not_fit_is_refused(adapter, tmp_path, changes, words):
    shutil.copytree(adapter, tmp_path / "odd")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "odd" / "adapter_config.json").write_text(json.dumps(settings | changes))
    assert words in refused_adapter(tmp_path / "odd")


# --- data -------------------------------------------------------------------------------------------------------


def test_damaged_data_are_refused_or_still_instructions(tmp_path, say):
    chance, seen = random.Random(0), collections.Counter()
    good = (data.BUNDLED_INSTRUCTIONS / "heldout.jsonl").read_bytes()[:20_000]
    file = tmp_path / "rows.jsonl"
    for attempt in range(120):
        content = bytearray(good)
        if attempt % 2:
            for _ in range(chance.randrange(1, 9)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        else:
            del content[chance.randrange(len(content)) :]
        file.write_bytes(content)
        try:
            data.look_at(str(file))
            rows, *_ = data.load_instructions(str(file))
            assert all(isinstance(row["output"], str) for row in rows["train"])
            seen["still instructions"] += 1
        except data.DataError as error:
            one_line(error)
            seen["refused"] += 1
    assert seen["refused"] > 60
    say(f"120 damaged data files: {dict(seen)}")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "x", "input": ["a"], "output": "x"}, {"instruction": {}, "output": "x"}, [], "text", None, 7,
    ],
)  # fmt: skip
def test_rows_that_are_no_text_are_refused_with_their_number(tmp_path, row):
    good = {"instruction": "say", "output": "it"}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in [good] * 12 + [row]))
    with pytest.raises(data.DataError, match="line 13"):
        data.look_at(str(file))


def test_a_weights_file_a_device_and_deep_nesting_are_no_data(tmp_path):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    for file in (models.BUNDLED_MODEL / "model.safetensors", "/dev/zero", tmp_path, tmp_path / "deep.jsonl"):
        with pytest.raises(data.DataError) as error:
            data.look_at(str(file))
        one_line(error.value)


# --- what must never run ----------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def evil_zip(file, mark) -> None:
    """A file as torch.save writes one, whose pickle leaves a mark when it is loaded."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(mark), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def test_the_evil_pickle_really_is_evil(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark"))).close()
    assert (tmp_path / "mark").exists()


def test_no_pickle_beside_good_weights_is_loaded(copy, adapter, tmp_path):
    mark, folder = tmp_path / "mark", copy()
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "tokenizer.pkl",
        "model.pth",
    ):
        evil_zip(folder / name, mark)
    assert what_becomes_of(folder) == "loaded"
    shutil.copytree(adapter, tmp_path / "beside")
    evil_zip(tmp_path / "beside" / "adapter_model.bin", mark)
    assert models.resolve_model("auto", CPU, adapter=tmp_path / "beside").bundled
    assert not mark.exists()


def test_a_model_or_an_adapter_of_pickles_alone_is_refused(copy, adapter, tmp_path):
    mark, folder = tmp_path / "mark", copy()
    (folder / "model.safetensors").unlink()
    evil_zip(folder / "pytorch_model.bin", mark)
    assert what_becomes_of(folder) == "refused"
    shutil.copytree(adapter, tmp_path / "pickled")
    (tmp_path / "pickled" / "adapter_model.safetensors").unlink()
    evil_zip(tmp_path / "pickled" / "adapter_model.bin", mark)
    refused_adapter(tmp_path / "pickled")
    assert not mark.exists()


def test_an_evil_checkpoint_runs_nothing_when_training_resumes(tmp_path, monkeypatch):
    rows = data.load_instructions("bundled")[0]["train"].select(range(8))
    train = {"steps": 2, "batch_size": 2, "save_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(quick.shutil, "rmtree", lambda *args, **kwargs: None)  # as if killed before it tidied up
        quick.train_adapter(models.bundled(), CPU, rows, tmp_path / "adapter", **train)
    checkpoints, evil = sorted((tmp_path / "adapter-checkpoints").glob("checkpoint-*")), 0
    assert checkpoints
    for checkpoint in checkpoints:
        for file in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]:
            evil_zip(file, tmp_path / "mark")
            evil += 1
    assert evil >= 2
    with contextlib.suppress(Exception):  # refused or passed over: either will do
        quick.train_adapter(models.bundled(), CPU, rows, tmp_path / "adapter", **train | {"steps": 3})
    assert not (tmp_path / "mark").exists()


def test_code_that_comes_with_a_model_never_runs(copy, tmp_path):
    mark = tmp_path / "mark"
    for name in ("config.json", "tokenizer_config.json"):
        folder = copy()
        about = json.loads((folder / name).read_text())
        about["auto_map"] = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        }
        (folder / name).write_text(json.dumps(about))
        (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
        with pytest.raises(models.ModelError, match="asks to run code that comes with the model"):
            models.resolve_model(str(folder), CPU)
    assert not mark.exists()


# --- the hub ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub():
    """A small hub: what it answers depends on the model's name. Yields (address, what was asked)."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            say, config = {}, {"model_type": "llama"}
            if "gated" in self.path:
                say = {"X-Error-Code": "GatedRepo", "status": 403}
            elif "missing" in self.path:
                say = {"X-Error-Code": "RepoNotFound", "status": 401}
            elif "broken" in self.path:
                say = {"status": 500}
            elif "pickled" in self.path and "safetensors" in self.path:
                say = {"X-Error-Code": "EntryNotFound", "status": 404}
            body = json.dumps(config | ({"auto_map": {}} if "code" in self.path else {})).encode()
            body = b"{cut" if "cut" in self.path else body
            self.send_response(say.pop("status", 200))
            about = {"ETag": f'"{len(body)}"', "X-Repo-Commit": "a" * 40, "Content-Length": str(len(body))}
            for name, value in (about | say).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


RESOLVE = """
import sys
from helpers.models import resolving as models
for name in sys.argv[1:]:
    try:
        print(models.resolve_model(name, None))
    except models.ModelError as error:
        print(error)
"""


def test_what_the_hub_may_answer_gets_one_line_each_and_quickly(tmp_path):
    expected = {
        "o/gated": "is gated", "o/missing": "the hub has no model", "o/broken": "cannot be fetched",
        "o/code": "asks to run code", "o/cut": "cannot be fetched", "o/pickled": "no *.safetensors",
    }  # fmt: skip
    with hub() as (address, _):
        surroundings = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        run = [sys.executable, "-c", RESOLVE, *expected, "o/fine"]
        done = subprocess.run(run, capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected) + 1, done.stdout + done.stderr
    for words, line in zip(expected.values(), lines, strict=False):
        assert words in line
    assert lines[-1].startswith("o/fine (licence")


def test_without_a_network_a_model_of_the_hub_is_given_up_at_once_and_quietly(tmp_path):
    surroundings = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    run = [sys.executable, "-c", RESOLVE, "Qwen/Qwen2.5-0.5B"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings, timeout=15)
    assert (
        done.stdout.strip()
        == 'Qwen/Qwen2.5-0.5B is not on this disk and the hub cannot be reached: use model_id="bundled"'
    )
    assert done.stderr == ""


# --- writing, cut at every stage --------------------------------------------------------------------------------

CUT = """
import os, sys
from pathlib import Path
from helpers.files import replace_folder, write_whole
where, stage, seen = Path(sys.argv[1]), int(sys.argv[2]), 0

def watch(event, details):
    global seen
    if event in ("open", "shutil.rmtree") or event.startswith("os."):
        if any(str(where) in str(d) for d in details):
            seen += 1
            if seen == stage:
                os._exit(9)  # as kill -9 would: nothing is tidied up

sys.addaudithook(watch)
with replace_folder(where / "adapter") as new:
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
        with open(new / name, "w") as file:
            file.write("new")
            file.flush()
            file.write(" and whole")
write_whole(where / "record.json", '"new and whole"')
"""


def test_a_folder_cut_at_every_stage_of_its_writing_is_old_or_new_and_never_lost(tmp_path, say):
    names, stage, outcomes = (
        ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"),
        0,
        collections.Counter(),
    )
    while True:
        stage += 1
        where = tmp_path / str(stage)
        (where / "adapter").mkdir(parents=True)
        for name in names:
            (where / "adapter" / name).write_text("old and whole")
        (where / "record.json").write_text('"old and whole"')
        done = subprocess.run([sys.executable, "-c", CUT, str(where), str(stage)], cwd=COURSE_ROOT)
        writing.finish_replacing(where)  # what the next run's begin does first
        assert (where / "adapter").is_dir(), f"lost at stage {stage}"
        texts = {(where / "adapter" / name).read_text() for name in names}
        assert texts in ({"old and whole"}, {"new and whole"}), f"mixed at stage {stage}: {texts}"
        assert json.loads((where / "record.json").read_text()) in ("old and whole", "new and whole")
        outcomes[texts.pop().split()[0]] += 1
        assert not list(where.glob("*.old"))
        if done.returncode == 0:
            break
        assert done.returncode == 9
    assert stage > 10
    assert outcomes["new"] > 1
    say(f"cut at {stage - 1} stages: " + ", ".join(f"{n} times {what}" for what, n in outcomes.items()))


def test_what_killed_runs_left_goes_after_a_day_and_what_others_made_stays(tmp_path):
    old, young = tmp_path / ".adapter.abcd1234.part", tmp_path / ".merged.abcd1234.part"
    mine = tmp_path / ".bashrc.d.old"
    for folder in (old, young, mine):
        folder.mkdir()
    os.utime(old, (0, 0))
    writing.finish_replacing(tmp_path)
    assert not old.exists()
    assert young.exists()
    assert mine.exists()
