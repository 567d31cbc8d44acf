"""The course against the hub's double: every preset loads, each refusal is one true line, a broken download ends whole,
checkpoints go there and come back. What is asked runs in processes of its own, for the hub's client reads its
environment when it is imported.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time

import nbformat
import pyarrow
import pyarrow.parquet
import pytest

from helpers import COURSE_ROOT
from helpers.models import BUNDLED_MODEL, PRESETS
from tests.doctor.test_doctor import mounted
from tests.places.hub import Fault, Hub, Repository, card_faults
from tests.places.place import link

TOKEN, USER = "_".join(("hf", "test")), "learner"  # accepted by the double, and by nobody else
ALPACA = "tatsu-lab/alpaca"
ROWS = 400


def serve_model(hub: Hub, id: str, without: str = "") -> None:
    """The bundled model's files under another name."""
    hub.folder(id).mkdir(parents=True)
    for file in BUNDLED_MODEL.iterdir():
        if file.name != without:
            link(str(file), str(hub.folder(id) / file.name))


def serve_alpaca(hub: Hub) -> None:
    """The bundled instructions as tatsu-lab/alpaca has its own: one Parquet file with four columns."""
    lines = (COURSE_ROOT / "assets" / "instructions" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{name: json.loads(line).get(name, "") for name in ("instruction", "input", "output")} for line in lines]
    table = pyarrow.Table.from_pylist([row | {"text": f"{row['instruction']}\n{row['output']}"} for row in rows[:ROWS]])
    folder = hub.folder(ALPACA, "datasets") / "data"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")


GATED = {name: preset for name, preset in PRESETS.items() if preset.gated}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The double with all presets, Alpaca, and repositories that are named by what goes wrong with them."""
    with Hub(tmp_path_factory.mktemp("hub"), {TOKEN: USER}) as hub:
        for preset in PRESETS.values():
            serve_model(hub, preset.hub_id)
        serve_alpaca(hub)
        for name in ("late", "early", "damaged", "cut-off", "slow", "error-503", "error-500", "error-429", "no-rights"):
            serve_model(hub, f"some/{name}")
        for name in ("closed", "old-name", "silent", "garbled"):
            serve_model(hub, f"some/{name}")
        serve_model(hub, "some/no-config", without="config.json")
        (hub.folder("some/garbled") / "config.json").unlink()
        (hub.folder("some/garbled") / "config.json").write_text('{"model_type": "lla')
        hub.gate("some/closed", "somebody-else")
        hub.rename("some/old-name", "some/new-name")
        size = (BUNDLED_MODEL / "model.safetensors").stat().st_size
        rights = "Please enable access to public gated repositories in your fine-grained token settings"
        hub.faults = [
            Fault("GET /storage/.*/early/", times=2, break_after=size // 4),
            Fault("GET /storage/.*/late/", times=1, break_after=size - 100_000),  # the client keeps pieces of 10 MiB
            Fault(r"GET /storage/.*/damaged/.*\.safetensors", damaged=True),
            Fault("GET /storage/.*/cut-off/", cut_off=1000),
            Fault("HEAD /some/slow/", delay_seconds=1.5),
            Fault("/some/silent/", silent=True),
            Fault("/some/error-503/", status=503),
            Fault("GET /some/error-500/", status=500),  # the announcement arrives, the file does not
            Fault("/some/error-429/", status=429, headers={"Retry-After": "300"}),
            Fault("/some/no-rights/", status=403, says=rights),
        ]
        yield hub


def ask(code: str, *words: str, hub: Hub, home, **surroundings: str) -> subprocess.CompletedProcess:
    """Run Python code in a process that takes the double for the hub and keeps its downloads in `home`."""
    around = os.environ | hub.environment | {"HF_HOME": str(home), "COURSE_RUNS": str(home / "runs")} | surroundings
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=COURSE_ROOT, env=around, capture_output=True, text=True, timeout=300)


def answers_of(done: subprocess.CompletedProcess) -> list[dict]:
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# --- what is told -----------------------------------------------------------------------------------------------

RESOLVE = """
import json, sys, time
from helpers import CourseError
from helpers.data import load_instructions
from helpers.machine import Machine
from helpers.models import resolve_model

for name in sys.argv[1:]:
    begun = time.monotonic()
    try:
        if name == "alpaca":
            told = {"name": load_instructions("alpaca")[1]}
        else:
            told = {"name": str(resolve_model(name, Machine("cpu", "test", 0, 2**34, 2, None)))}
    except CourseError as error:
        told = {"error": str(error), "type": type(error).__name__}
    print(json.dumps(told | {"asked": name, "seconds": time.monotonic() - begun}), flush=True)
"""


def told(hub: Hub, home, *names: str, **surroundings: str) -> dict[str, dict]:
    """What resolve_model and load_instructions say to each name."""
    found = answers_of(ask(RESOLVE, *names, hub=hub, home=home, **surroundings))
    assert [it["asked"] for it in found] == list(names)
    return {it["asked"]: it for it in found}


@pytest.fixture(scope="module")
def anonymous(hub, tmp_path_factory):
    names = ("closed", "old-name", "silent", "slow", "error-503", "error-500", "error-429", "no-rights", "no-config")
    names = (*(f"some/{name}" for name in names), "some/garbled", "nobody/nothing")
    return told(hub, tmp_path_factory.mktemp("anonymous"), *names)


@pytest.fixture(scope="module")
def logged_in(hub, tmp_path_factory):
    names = ("some/closed", "nobody/nothing", "Qwen/Qwen2.5-0.5B")
    return told(hub, tmp_path_factory.mktemp("logged-in"), *names, HF_TOKEN=TOKEN)


@pytest.fixture(scope="module")
def refused(hub, tmp_path_factory):
    names = ("Qwen/Qwen2.5-0.5B", "some/closed", "alpaca")
    return told(hub, tmp_path_factory.mktemp("refused"), *names, HF_TOKEN=TOKEN + "ed")


def error_line(it: dict, type_name: str = "ModelError") -> str:
    assert it.get("type") == type_name, it
    assert it["error"].isprintable()
    assert len(it["error"]) < 300
    return it["error"]


def test_a_gated_model_says_what_to_do_first(anonymous, logged_in):
    for answers in (anonymous, logged_in):  # 401, and 403 for an account that was not let in
        said = error_line(answers["some/closed"])
        assert said == "some/closed is gated: accept its terms on its page, and log in"


def test_a_gated_preset_says_what_to_do_first_in_its_own_words(tmp_path):
    with Hub(tmp_path / "hub") as hub:
        for preset in GATED.values():
            serve_model(hub, preset.hub_id)
            hub.gate(preset.hub_id)
        answers = told(hub, tmp_path / "home", *GATED)
    for name, preset in GATED.items():
        assert error_line(answers[name]) == f"{preset.hub_id} is gated: {preset.gated}"


def test_an_unknown_model_may_be_a_private_one(anonymous, logged_in):
    for answers in (anonymous, logged_in):  # 401, and 404 with a token
        said = error_line(answers["nobody/nothing"])
        assert said.startswith("the hub has no model nobody/nothing, or it is private")


def test_a_renamed_model_is_found_under_its_old_name(anonymous):
    assert anonymous["some/old-name"]["name"].startswith("some/old-name")


def test_a_slow_hub_is_waited_for(anonymous):
    assert "name" in anonymous["some/slow"]
    assert 3 < anonymous["some/slow"]["seconds"] < 20


def test_a_hub_that_does_not_answer_for_a_model_is_given_up_in_seconds(anonymous):
    assert "the hub cannot be reached" in error_line(anonymous["some/silent"])
    assert anonymous["some/silent"]["seconds"] < 10


@pytest.mark.parametrize("name", ["error-503", "error-500"])
def test_a_fault_of_the_hub_s_own_is_not_called_the_network(anonymous, name):
    said = error_line(anonymous[f"some/{name}"])
    status = name.split("-")[1]
    assert said.endswith(f"cannot be fetched: the hub has a fault of its own ({status}): try again later")


def test_too_many_requests_are_told_to_wait(anonymous):
    assert "asks you to wait (429)" in error_line(anonymous["some/error-429"])
    assert anonymous["some/error-429"]["seconds"] < 10  # told, not waited for


def test_a_token_without_the_right_gets_the_hub_s_own_words(anonymous):
    assert "fine-grained token settings" in error_line(anonymous["some/no-rights"])


def test_a_repository_that_holds_no_model_says_so(anonymous):
    assert "has no config.json" in error_line(anonymous["some/no-config"])


def test_a_config_that_is_no_json_is_named(anonymous):
    assert "config.json is no readable JSON" in error_line(anonymous["some/garbled"])


def test_a_refused_token_is_named_even_for_what_needs_none(refused):
    for name, type_name in (
        ("Qwen/Qwen2.5-0.5B", "ModelError"),
        ("some/closed", "ModelError"),
        ("alpaca", "DataError"),
    ):
        assert "the hub does not accept your token" in error_line(refused[name], type_name)


def test_an_accepted_token_loads_what_is_open(logged_in):
    assert logged_in["Qwen/Qwen2.5-0.5B"]["name"].startswith("Qwen/Qwen2.5-0.5B (Apache-2.0")


def test_no_answer_at_all_is_one_line_for_model_and_data_in_half_a_minute(tmp_path):
    with Hub(tmp_path / "hub") as hub:
        hub.faults = [Fault("", silent=True)]
        answers = told(hub, tmp_path / "home", "qwen2.5-0.5b", "alpaca")
        assert {request.status for request in hub.log} == {0}
    assert "the hub cannot be reached" in error_line(answers["qwen2.5-0.5b"])
    assert "tatsu-lab/alpaca cannot be fetched" in error_line(answers["alpaca"], "DataError")
    assert answers["alpaca"]["seconds"] < 30  # `datasets` by itself takes more than six minutes


# --- what is loaded ---------------------------------------------------------------------------------------------

LOAD = """
import hashlib, json, sys
from pathlib import Path
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer
from helpers import CourseError
from helpers.failures import recognise
from helpers.machine import Machine
from helpers.models import resolve_model

for name in sys.argv[1:]:
    try:
        path = resolve_model(name, Machine("cpu", "test", 0, 2**34, 2, None)).path
        tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
        file = try_to_load_from_cache(path, "model.safetensors")
        told = {"sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest(), "rows": len(model.get_input_embeddings().weight)}
        told |= {"eos": tokenizer.eos_token, "mismatches": [m["path"] for m in HfApi().verify_repo_checksums(path).mismatches]}
    except Exception as error:
        known = recognise(error)
        told = {"error": str(error), "type": type(error).__name__, "known": known and known.failure.name}
    print(json.dumps(told | {"asked": name}), flush=True)
"""
WRONG = ("some/late", "some/early", "some/damaged", "some/cut-off")


@pytest.fixture(scope="module")
def loaded(hub, tmp_path_factory):
    """What became of each preset, and of each download that goes wrong."""
    done = ask(LOAD, *PRESETS, *WRONG, hub=hub, home=tmp_path_factory.mktemp("loaded"))
    return {it["asked"]: it for it in answers_of(done)}


@pytest.fixture(scope="module")
def served() -> str:
    return hashlib.sha256((BUNDLED_MODEL / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_resolves_and_loads(loaded, served, name):
    assert loaded[name].get("sha256") == served, loaded[name]
    assert loaded[name]["mismatches"] == []
    assert loaded[name]["eos"] == "</s>"


def test_a_download_that_breaks_goes_on_where_it_was(loaded, served, hub):
    assert loaded["some/late"].get("sha256") == served, loaded["some/late"]
    first, second = hub.asked("GET /storage/.*/some/late/")
    assert first.range == ""
    assert (second.range, second.status) == (f"bytes={10 * 2**20}-", 206)


def test_a_download_that_breaks_early_and_twice_begins_again_and_ends_whole(loaded, served, hub):
    assert loaded["some/early"].get("sha256") == served, loaded["some/early"]
    assert len(hub.asked("GET /storage/.*/some/early/")) == 3


def test_a_file_that_is_shorter_than_announced_is_no_model(loaded):
    assert "Consistency check failed: file should be of size 11022696" in loaded["some/cut-off"]["error"]


def test_other_bytes_of_the_announced_length_are_found_by_the_client_s_own_verification(loaded):
    assert loaded["some/damaged"]["mismatches"] == ["model.safetensors"]


def test_other_bytes_of_the_announced_length_are_loaded_and_nothing_is_said(loaded, still_needed):
    """Wished otherwise: huggingface_hub 2.4.0 compares the size of a plain download, not its hash."""
    still_needed("error" not in loaded["some/damaged"], "huggingface_hub compares hashes now: ask for an error here")


def test_the_storage_never_sees_the_token(hub, tmp_path):
    code = "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(sys.argv[1], 'model.safetensors')"
    before = len(hub.log)
    assert ask(code, "Qwen/Qwen2.5-1.5B", hub=hub, home=tmp_path, HF_TOKEN=TOKEN).returncode == 0
    asked = [(request.path.startswith("/storage/"), request.token) for request in hub.log[before:]]
    assert asked[0] == (False, True)
    assert asked[-1] == (True, False)


FULL = """
import json, os, sys
from helpers.machine import Machine
from helpers.models import resolve_model
from helpers.failures import recognise

what, disk = sys.argv[1:]
if what == "config":  # not a byte is left
    with open(f"{disk}/filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
try:
    path = resolve_model("qwen2.5-0.5b", Machine("cpu", "test", 0, 2**34, 2, None)).path
    from transformers import AutoModelForCausalLM
    AutoModelForCausalLM.from_pretrained(path)
    told = {}
except Exception as error:
    known = recognise(error)
    told = {"error": str(error), "type": type(error).__name__, "known": known and known.failure.name}
print(json.dumps(told | {"left": [name for _, _, names in os.walk(disk) for name in names if "incomplete" in name]}))
"""


def test_a_full_disk_is_said_before_anything_is_loaded(hub, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (it,) = answers_of(ask(FULL, "config", str(disk), hub=hub, home=disk))
    assert "cannot be fetched: No space left on device: make room" in error_line(it)
    assert it["known"] == "disk-full"


def test_a_disk_that_fills_up_while_the_weights_arrive_is_explained_and_nothing_half_stays(hub, tmp_path):
    with mounted(tmp_path / "disk", "size=5m") as disk:
        (it,) = answers_of(ask(FULL, "weights", str(disk), hub=hub, home=disk))
    assert it.get("type") == "OSError", it
    assert it["known"] == "disk-full"
    assert it["left"] == []


# --- data -------------------------------------------------------------------------------------------------------

INSTRUCTIONS = """
import json
from helpers.data import DataError, load_instructions

try:
    rows, name, _ = load_instructions("alpaca")
    told = {"name": name, "columns": rows["train"].column_names, "first": rows["train"][0]}
    told |= {"rows": [len(rows["train"]), len(rows["heldout"])]}
except DataError as error:
    told = {"error": str(error), "type": "DataError"}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def data_home(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def test_alpaca_comes_from_the_hub_with_its_columns_and_is_split(hub, data_home):
    (it,) = answers_of(ask(INSTRUCTIONS, hub=hub, home=data_home))
    assert it["rows"] == [ROWS * 9 // 10, ROWS // 10]
    assert it["columns"] == ["instruction", "input", "output", "text"]
    assert it["first"]["instruction"]
    assert it["name"].startswith("tatsu-lab/alpaca (CC BY-NC 4.0)")


def test_alpaca_that_was_loaded_once_is_found_without_the_hub(hub, data_home):
    if not any(data_home.iterdir()):
        pytest.skip("it was not loaded")
    begun = time.monotonic()
    (it,) = answers_of(ask(INSTRUCTIONS, hub=hub, home=data_home, HF_ENDPOINT="http://127.0.0.1:9"))
    assert it["rows"] == [ROWS * 9 // 10, ROWS // 10]
    assert time.monotonic() - begun < 30


@contextlib.contextmanager
def faulty(hub: Hub, fault: Fault):
    hub.faults.insert(0, fault)
    try:
        yield
    finally:
        hub.faults.remove(fault)


def test_rows_that_do_not_arrive_whole_are_one_line(hub, tmp_path):
    with faulty(hub, Fault("GET /storage/datasets/", cut_off=50)):
        (it,) = answers_of(ask(INSTRUCTIONS, hub=hub, home=tmp_path))
    said = 'tatsu-lab/alpaca cannot be fetched (it did not arrive whole: try again): use "bundled"'
    assert error_line(it, "DataError") == said


REVISIONS = """
import json, sys
from helpers.data import DataError, load_instructions, load_rows, look_at

for how, name, revision in json.loads(sys.argv[1]):
    try:
        if how == "look":
            look_at(name, revision=revision)
            told = {"looked": True}
        elif how == "rows":
            loaded = load_rows(name, revision=revision)
            told = {"format": loaded.understood.format, "first": loaded.rows[0]["output"]}
        else:
            told = {"name": load_instructions(name, revision=revision)[1]}
    except DataError as error:
        told = {"error": str(error), "type": "DataError"}
    print(json.dumps(told))
"""
UNKNOWN = "it has no such revision: name a branch, a tag or a commit of it"


@pytest.fixture(scope="module")
def revised(tmp_path_factory):
    """A data set of a learner's own on the hub that is loaded, changed, loaded again, and asked for when the hub is gone.

    Returns its two commits, and what was said to each (how, name, revision) while the hub was there and afterwards.
    """
    home = tmp_path_factory.mktemp("revised")
    with Hub(home / "hub") as hub:
        serve_alpaca(hub)
        file = hub.folder("Some/OwnRows", "datasets") / "data.jsonl"
        commits = []
        for word in ("old", "new"):
            lines = [json.dumps({"question": f"say {n}", "answer": f"{word} {n}"}) for n in range(20)]
            hub.write(file, "\n".join(lines).encode())
            commits.append(Repository("datasets", "Some/OwnRows", file.parent).commit())
            there = [("rows", "Some/OwnRows", commits[-1])]
            if word == "new":
                there += [(how, "Some/OwnRows", "nope") for how in ("rows", "look")]
                there += [
                    ("rows", "Some/OwnRows", "auto"),
                    ("look", "Some/OwnRows", "main"),
                    ("look", "no/thing", "auto"),
                ]
                there += [(how, "alpaca", r) for how in ("look", "course") for r in ("main", "nope")]
            found = dict(zip(there, answers_of(ask(REVISIONS, json.dumps(there), hub=hub, home=home)), strict=True))
        gone = [("rows", "Some/OwnRows", r) for r in ("auto", "main", "nope", *commits)]
        gone += [("look", "Some/OwnRows", r) for r in ("auto", "nope", *commits)]
        gone += [("course", "alpaca", r) for r in ("auto", "nope")]
        said = answers_of(ask(REVISIONS, json.dumps(gone), hub=hub, home=home, HF_ENDPOINT="http://127.0.0.1:9"))
    return commits, found, dict(zip(gone, said, strict=True))


def test_a_revision_reaches_the_hub_for_alpaca_and_for_rows_of_ones_own(revised):
    (_, new), there, _ = revised
    it = there["rows", "Some/OwnRows", new]
    assert it["first"] == "new 0"
    assert it["format"] == f"a data set on the hub, split train, revision {new}, commit {new[:12]}"
    assert there["rows", "Some/OwnRows", "auto"]["format"].endswith(f"split train, commit {new[:12]}")
    assert there["course", "alpaca", "main"]["name"].startswith("tatsu-lab/alpaca (CC BY-NC 4.0), revision main, ")
    assert there["look", "Some/OwnRows", "main"] == there["look", "alpaca", "main"] == {"looked": True}


def test_a_revision_that_is_not_there_is_one_line_although_another_is_in_the_cache(revised):
    _, there, _ = revised
    for (_, name, revision), it in there.items():
        if revision == "nope":
            said = error_line(it, "DataError")
            assert said.startswith(f"{name.replace('alpaca', ALPACA)}: revision 'nope' cannot be had ({UNKNOWN})")
    said = error_line(there["look", "no/thing", "auto"], "DataError")
    assert said.endswith("(there is none of this name, or it is private and you are not logged in)")


def test_without_the_hub_no_other_revision_than_the_one_asked_for_is_taken(revised):
    (old, new), _, gone = revised
    for commit in ("auto", new):
        it = gone["rows", "Some/OwnRows", commit]
        assert it["first"] == "new 0"
        assert f"commit {new[:12]} out of the cache (" in it["format"]
    said = error_line(gone["rows", "Some/OwnRows", old], "DataError")
    assert said.endswith(f"and the newest in the cache is the commit {new}")
    assert said.startswith(f"Some/OwnRows: revision '{old}' cannot be had (")
    for revision in ("main", "nope"):  # a name's commit cannot be looked up
        assert f"revision '{revision}' cannot be had (" in error_line(
            gone["rows", "Some/OwnRows", revision], "DataError"
        )
    assert "revision 'nope' cannot be had" in error_line(gone["course", "alpaca", "nope"], "DataError")
    assert gone["course", "alpaca", "auto"]["name"].startswith("tatsu-lab/alpaca")


def test_a_look_without_the_hub_knows_what_is_in_the_cache_whatever_its_name_looks_like(revised):
    (old, new), _, gone = revised
    for revision in ("auto", old, new):
        assert gone["look", "Some/OwnRows", revision] == {"looked": True}
    assert "revision 'nope' cannot be had (" in error_line(gone["look", "Some/OwnRows", "nope"], "DataError")


# --- checkpoints go there, and come back ------------------------------------------------------------------------

STEPS, EVERY, CUT_AFTER = 6, 2, 4
TRAIN = f"""
import os, sys
from pathlib import Path
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer
from helpers.saving import last_complete_checkpoint
from helpers.data import load_instructions, to_prompt_completion
from helpers.machine import detect
from helpers.models import resolve_model
from helpers.quick import load_4bit
from helpers.training import adapters_to_float32

model_id, hub_repo, cut_off = sys.argv[1], sys.argv[3], sys.argv[4] == "cut off"
checkpoints, machine = Path(sys.argv[2]), detect()


class Break(TrainerCallback):
    "Each push ends before the next step begins; and this machine is taken away in the middle of the run."

    def on_step_begin(self, args, state, control, **kwargs):
        if trainer.args.push_to_hub and trainer.push_in_progress is not None:
            trainer.push_in_progress.wait_until_done()
        if cut_off and state.global_step == {CUT_AFTER}:
            os._exit(9)


def prepared(folder):
    set_seed(0)
    base, tokenizer = load_4bit(resolve_model(model_id, machine), machine)
    rows = load_instructions("bundled")[0]["train"].select(range(32))
    arguments = SFTConfig(
        output_dir=str(folder), max_steps={STEPS}, per_device_train_batch_size=4, max_length=96, learning_rate=3e-3,
        lr_scheduler_type="cosine", warmup_steps=0.03, max_grad_norm=0.3, optim="adamw_torch", bf16=False, use_cpu=True,
        activation_checkpointing=False, gradient_checkpointing=None, save_strategy="steps", save_steps={EVERY},
        save_total_limit=2, push_to_hub=hub_repo != "none", hub_model_id=None if hub_repo == "none" else hub_repo,
        hub_strategy="checkpoint", hub_private_repo=True, disable_tqdm=True, report_to="none", seed=0,
    )
    trainer = SFTTrainer(
        model=base, args=arguments, train_dataset=rows.map(to_prompt_completion, remove_columns=rows.column_names),
        processing_class=tokenizer, callbacks=[Break()],
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    adapters_to_float32(trainer)
    return trainer


trainer = prepared(checkpoints)
last = last_complete_checkpoint(checkpoints)
trainer.train(resume_from_checkpoint=last and str(last))
trainer.model.save_pretrained(checkpoints / "adapter")
print("from", last and last.name)
if last:
    hub_repo = "none"
    trainer = prepared(checkpoints / "unbroken")
    trainer.train()
    trainer.model.save_pretrained(checkpoints / "unbroken" / "adapter")
"""
REPOSITORY = f"{USER}/my-run"


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """The double's folder, after a run on one machine was cut off behind its second checkpoint."""
    home = tmp_path_factory.mktemp("first-machine")
    words = (PRESETS["qwen2.5-0.5b"].hub_id, str(home / "checkpoints"), REPOSITORY, "cut off")
    done = ask(TRAIN, *words, hub=hub, home=home, HF_TOKEN=TOKEN)
    assert done.returncode == 9, done.stderr[-3000:]
    return hub.folder(REPOSITORY)


def test_a_run_pushes_its_last_checkpoint_to_a_private_repository(pushed, hub):
    names = {file.name for file in (pushed / "last-checkpoint").iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    assert json.loads((pushed / "last-checkpoint" / "trainer_state.json").read_text())["global_step"] == CUT_AFTER
    assert REPOSITORY in hub.private
    assert (pushed / "adapter_model.safetensors").is_file()


def test_who_is_not_logged_in_does_not_see_the_private_repository(pushed, hub, tmp_path):
    answers = told(hub, tmp_path, REPOSITORY)
    assert error_line(answers[REPOSITORY]).startswith(f"the hub has no model {REPOSITORY}")


def test_the_card_of_a_base_that_is_a_folder_is_one_that_the_hub_refuses(tmp_path, still_needed):
    """The trainer pushes in the background and says nothing of what is refused: then last-checkpoint never arrives."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL)
    get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    faults = card_faults((tmp_path / "README.md").read_text(encoding="utf-8"))
    still_needed(faults, "PEFT no longer names a folder: drop adapters.require_hub_base")


def test_so_checkpoints_of_such_a_base_are_refused_before_anything_is_trained(tmp_path):
    from helpers.lesson import session as results
    from helpers.saving import adapters

    with pytest.raises(adapters.CheckpointError, match="^hub_repo = 'me/mine' needs a base model from the hub"):
        results.begin("03_t4_training", model_id="bundled", hub_repo="me/mine", output_dir=str(tmp_path))


FETCH = """
import json, sys
from pathlib import Path
from huggingface_hub import snapshot_download

repository, folder = sys.argv[1:]
got = Path(snapshot_download(repository, allow_patterns="last-checkpoint/*", local_dir=folder)) / "last-checkpoint"
step = json.loads((got / "trainer_state.json").read_text())["global_step"]
got.rename(Path(folder) / f"checkpoint-{step}")
"""


def test_another_machine_goes_on_from_the_pushed_checkpoint_to_the_same_adapter(pushed, hub, tmp_path):
    folder = tmp_path / "checkpoints"
    fetched = ask(FETCH, REPOSITORY, str(folder), hub=hub, home=tmp_path / "home", HF_TOKEN=TOKEN)
    assert fetched.returncode == 0, fetched.stderr[-3000:]
    words = (PRESETS["qwen2.5-0.5b"].hub_id, str(folder), REPOSITORY, "to the end")
    done = ask(TRAIN, *words, hub=hub, home=tmp_path / "home", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"from checkpoint-{CUT_AFTER}" in done.stdout
    resumed, unbroken = (f / "adapter" / "adapter_model.safetensors" for f in (folder, folder / "unbroken"))
    assert resumed.read_bytes() == unbroken.read_bytes()
    assert json.loads((pushed / "last-checkpoint" / "trainer_state.json").read_text())["global_step"] == STEPS


CARD = """
import json, sys
from pathlib import Path
from helpers.models import model_card
from huggingface_hub import HfApi, create_repo

folder, repository = Path(sys.argv[1]), sys.argv[2]
score = {"rows": 16, "loss": 0.5, "exact_match": 0.75, "interval": [0.5, 0.9]}
(folder / "05_merging.json").write_text(json.dumps({
    "measured": {"base": score, "trained": score, "merged": score}, "trained_in_lesson_03": False,
    "licence": "Apache-2.0", "licence_known": True, "data_licence": "CC BY-NC 4.0",
    "base_weights": "original", "merged_read_in_4_bits": True,
    "run": {"model": sys.argv[3], "data": "tatsu-lab/alpaca (CC BY-NC 4.0)", "versions": {"torch": "2"}},
    "adapter": {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}, "merged_bytes": 10, "dtype": "float16",
}))
create_repo(repository, private=True)
model_card(folder).push_to_hub(repository)
HfApi().upload_folder(repo_id=repository, folder_path=sys.argv[4], ignore_patterns=["training.json"])
"""


def test_a_merged_model_and_its_card_arrive_as_they_were(hub, tmp_path, served):
    repository = f"{USER}/merged"
    words = (str(tmp_path), repository, PRESETS["qwen2.5-0.5b"].hub_id, str(BUNDLED_MODEL))
    done = ask(CARD, *words, hub=hub, home=tmp_path, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    card = (hub.folder(repository) / "README.md").read_text(encoding="utf-8")
    assert "base_model: Qwen/Qwen2.5-0.5B" in card
    assert "license: cc-by-nc-4.0" in card  # Alpaca's: the narrower of the two
    assert hashlib.sha256((hub.folder(repository) / "model.safetensors").read_bytes()).hexdigest() == served
    assert not (hub.folder(repository) / "training.json").exists()


def test_who_has_no_right_to_a_namespace_is_refused_by_the_hub(hub, tmp_path):
    code = "from huggingface_hub import create_repo; create_repo('somebody-else/model')"
    done = ask(code, hub=hub, home=tmp_path, HF_TOKEN=TOKEN)
    assert "403 Forbidden: You don't have the rights to create a model" in done.stderr
    assert not hub.folder("somebody-else/model").exists()


PUBLISH = """
import sys
from huggingface_hub import HfApi

hub = HfApi()
hub.create_repo(sys.argv[1], private=True, exist_ok=True)
hub.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""  # lesson 05's code


@pytest.mark.parametrize("there", [True, False])
def test_a_token_that_may_not_create_its_repository_goes_on_where_the_repository_is_there(hub, tmp_path, there):
    """So lesson 05 says: the repository is made on the site, and the code stays as it is."""
    repository, merged = f"{USER}/made-on-the-site-{there}", tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    if there:
        hub.folder(repository).mkdir(parents=True)
    refusal = Fault("POST /api/repos/create", status=403, says="You don't have the rights to create a model")
    hub.faults.append(refusal)
    done = ask(PUBLISH, repository, str(merged), hub=hub, home=tmp_path, HF_TOKEN=TOKEN)
    hub.faults.remove(refusal)
    assert (done.returncode == 0) is there, done.stderr[-3000:]
    assert (hub.folder(repository) / "config.json").exists() is there
    assert ("403 Forbidden" in done.stderr) is not there


def test_push_to_hub_of_a_model_sends_no_tokenizer(hub, tmp_path):
    code = "import sys; from transformers import AutoModelForCausalLM as M; "
    code += "M.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2], private=True)"
    done = ask(code, str(BUNDLED_MODEL), f"{USER}/alone", hub=hub, home=tmp_path, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    sent = {file.name for file in hub.folder(f"{USER}/alone").iterdir()}
    assert {"README.md", "config.json", "model.safetensors"} <= sent
    assert not any(name.startswith("tokenizer") for name in sent)


# --- lesson 03 whole --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lesson(hub, tmp_path_factory):
    """Lesson 03 as a learner with a network runs it, on a model and data of the hub, its checkpoints pushed there."""
    folder = tmp_path_factory.mktemp("lesson")
    given = {"model_id": "qwen2.5-0.5b", "dataset_id": "alpaca", "max_steps": 6, "eval_rows": 16, "save_steps": 3}
    given |= {"hub_repo": f"{USER}/lesson-03"}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    around = os.environ | hub.environment | {"HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN}
    around |= {"COURSE_RUNS": str(folder / "runs"), "COURSE_STRICT": "0"}
    notebook, out = COURSE_ROOT / "notebooks" / "03_t4_training.ipynb", folder / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(notebook), str(out), *words, "--no-progress-bar", "-k", "python3"]
    done = subprocess.run(command, cwd=COURSE_ROOT, env=around, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return nbformat.read(out, as_version=4)


def outputs(notebook) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_lesson_03_runs_whole_on_a_model_and_data_of_the_hub(lesson):
    assert [output.evalue for output in outputs(lesson) if output.output_type == "error"] == []
    text = json.dumps(lesson)
    assert "Qwen/Qwen2.5-0.5B (Apache-2.0" in text
    assert "tatsu-lab/alpaca (CC BY-NC 4.0), 360 to learn" in text


def test_lesson_03_leaves_its_last_checkpoint_on_the_hub(lesson, hub):
    state = hub.folder(f"{USER}/lesson-03") / "last-checkpoint" / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 6
    assert TOKEN not in json.dumps(lesson)


def test_a_pushed_checkpoint_holds_none_of_the_rows(lesson, hub):
    """Neither its optimizer's state, nor its arguments, nor its log."""
    rows = pyarrow.parquet.read_table(next((hub.folder(ALPACA, "datasets") / "data").glob("*.parquet"))).to_pylist()
    texts = {text.encode() for row in rows for text in (f"{row['instruction']} {row['input']}".strip(), row["text"])}
    files = [file for file in hub.folder(f"{USER}/lesson-03").rglob("*") if file.is_file()]
    assert [file.name for file in files if any(text in file.read_bytes() for text in texts)] == []
    assert {"trainer_state.json", "training_args.bin", "optimizer.pt"} <= {file.name for file in files}


def test_nothing_was_asked_that_the_double_does_not_know(hub, loaded, pushed, lesson):
    assert [str(request) for request in hub.log if request.status == 501] == []
