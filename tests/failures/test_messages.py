"""Messages as people paste them get the right answer, in other wordings too; messages that lie near them get theirs, or none."""

import re
import tomllib
from pathlib import Path

import pytest

from helpers.failures import FAILURES, all_in, failure, last_error, recognise

MESSAGES = tomllib.loads((Path(__file__).parent / "messages.toml").read_text(encoding="utf-8"))
SAID = [(name, message) for name, messages in MESSAGES["said"].items() for message in messages]
NEAR = MESSAGES["near"]
HUB = "https://huggingface.co/x/y/resolve/main/model.safetensors"


@pytest.mark.parametrize(("name", "said"), SAID)
def test_a_message_that_people_paste_gets_the_right_answer(name, said):
    known = recognise(said)
    assert (known and known.failure.name) == name
    assert not re.search(r"\{[a-z]\w*\}", str(known)), "a name was left unfilled"


@pytest.mark.parametrize("said", NEAR)
def test_a_message_that_only_lies_near_gets_none(said):
    assert recognise(said) is None


TRL = 'Traceback (most recent call last):\n  File "/x/site-packages/trl/a.py", line 1, in x\n'
AROUND = {
    "torchrun": lambda line: f"[rank0]: {line}",
    "torchrun, other ranks": lambda line: f"[rank13]:{line}",
    "mpirun": lambda line: f"[1,0]<stderr>:{line}",
    "elastic": lambda line: f"E0422 05:07:49.013000 204 torch/distributed/elastic/multiprocessing/api.py:732] {line}",
    "both": lambda line: f"2026-11-26 10:00:00,123 - ERROR - [rank3]: {line}",
    "ray": lambda line: f"(main_task pid=55440) {line}",
    "colours": lambda line: f"\x1b[0;31m{line.replace(':', chr(27) + '[0m:', 1)}\x1b[0m",
    "rich": lambda line: f"│ {line}    │",
    "a quotation": lambda line: f"> {line}",
    "Windows": lambda line: f"{line}\r",
    "Kaggle's log": lambda line: f"34.5s\t12\t{line}",
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("not-defined", "NameError: name 'trainer' is not defined"),
        ("no-file", "FileNotFoundError: [Errno 2] No such file or directory: 'answers.json'"),
        ("out-of-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("no-kernel", "jupyter_client.kernelspec.NoSuchKernel"),
        ("data-columns", TRL + "KeyError: 'text'"),
    ],
)
def test_what_launchers_and_places_put_before_a_line_changes_no_answer(name, said, around):
    log = "\n".join(map(AROUND[around], said.split("\n")))
    assert recognise(f"step 3\n{log}\n").failure.name == name


DISK, OOM = (
    "OSError: [Errno 28] No space left on device",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
)
MINE = "ValueError: mine"
HANDLING = (
    "\n\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
)
CAUSE = (
    "\n\nThe above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n"
)
CHILD = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\ntrain.py FAILED\n"


@pytest.mark.parametrize(
    ("log", "name"),
    [
        (f"{DISK}\n[rank0]: {OOM}", "out-of-memory"),
        (f"{OOM}\n{DISK}", "disk-full"),
        (f"{DISK}{HANDLING}{OOM}", "out-of-memory"),
        (f"{DISK}{HANDLING}{MINE}", "disk-full"),
        (f"{OOM}{CAUSE}{MINE}{HANDLING}RuntimeError: mine too", "out-of-memory"),
        (f"{DISK}\n[rank0]: {OOM}\n[rank1]: Traceback (most recent call last):\n{CHILD}", "out-of-memory"),
        (f"{OOM}\nException ignored in: <function x.__del__>\nTypeError: mine", "out-of-memory"),
        (f"{DISK}\nTraceback (most recent call last):\n{MINE}", None),
        (f"{DISK}\nall is well again\n{MINE}{HANDLING}RuntimeError: mine too", None),
    ],
)
def test_the_last_error_of_a_log_is_explained_or_what_led_to_it(log, name):
    known = recognise(log)
    assert (known and known.failure.name) == name


def test_earlier_errors_of_a_log_are_mentioned_where_the_last_is_unknown():
    log = f"{DISK}\nTraceback (most recent call last):\n{MINE}"
    assert [known.failure.name for known in all_in(log)] == ["disk-full"]
    assert last_error(log) == MINE


def test_each_traceback_has_its_own_modules():
    own = TRL.replace("trl", "pandas") + "KeyError: 'text'\n"
    assert recognise(TRL + "ValueError: mine\n" + own) is None
    assert recognise(own + TRL + "KeyError: 'text'\n").failure.name == "data-columns"


CUSPARSE = "libcusparse.so.11: cannot open shared object file"
NONE = "'NoneType' object has no attribute 'cquantize_blockwise_fp16_fp4'"
WEIGHTS = "OSError: x/y does not appear to have a file named pytorch_model.bin, model.safetensors."


@pytest.mark.parametrize(
    ("log", "name"),
    [
        (f"HTTPError: 503 Server Error: Service Unavailable for url: {HUB}{HANDLING}{WEIGHTS}", "hub-down"),
        (f"Retrying: 503 Service Unavailable for {HUB}\n{WEIGHTS}", "hub-down"),
        (f"{DISK}\n{WEIGHTS}", "disk-full"),
        (WEIGHTS, "no-weights"),
        (f"Could not load bitsandbytes native library: {CUSPARSE}\nAttributeError: {NONE}", "libcudart"),
    ],
)
def test_a_message_that_is_untrue_gives_way_to_its_cause_where_the_log_shows_it(log, name):
    assert recognise(log).failure.name == name


def test_a_cause_is_found_in_a_raised_error_too():
    error = OSError(WEIGHTS.removeprefix("OSError: "))
    error.__cause__ = RuntimeError(f"503 Server Error: Service Unavailable for url: {HUB}")
    assert recognise(error).failure.name == "hub-down"


def test_the_answer_names_the_class_and_the_numbers_of_the_message():
    said = {name: str(recognise(text)) for name, text in reversed(SAID)}
    assert "model.resize_token_embeddings(151666)" in re.sub(r"\s+", " ", said["vocabulary-resized"])
    assert "TrainingArguments(eval_strategy=...)" in said["renamed"]
    assert " Trainer(processing_class=...)" in str(
        recognise("TypeError: Trainer.__init__() got an unexpected keyword argument 'tokenizer'")
    )


def test_threads_are_addresses_shown_whole_and_causes_are_failures():
    for it in FAILURES:
        assert re.fullmatch(r"(https://github\.com/[\w.-]+/[\w.-]+/issues/\d+)?", it.link), it.name
        assert all(failure(name) for name in it.causes)
    linked = [name for name, _ in SAID if failure(name).link]
    assert len(set(linked)) >= 50
    known = recognise(next(said for name, said in SAID if name == "no-write"))
    assert f"\nThread    {known.failure.link}" in str(known)
