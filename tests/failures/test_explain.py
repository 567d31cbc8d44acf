"""helpers.failures: real mistakes typed into a real kernel get an answer, and nothing that it is given makes it fail."""

import contextlib
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import COURSE_ROOT, CourseError
from helpers.course import disk as course
from helpers.failures import FAILURES, PARTS, RENAMED, failure, recognising
from tests.pace import paces, unit_seconds

RECORDED = json.loads((COURSE_ROOT / "measurements" / "h200_failures.json").read_text(encoding="utf-8"))
MODEL = str(COURSE_ROOT / "assets" / "base_model")


# ------------------------------------------------------------------------------------------------- the table


def test_names_are_unique_and_every_failure_has_a_part_of_the_page():
    names = [it.name for it in FAILURES]
    assert len(set(names)) == len(names)
    assert {it.part for it in FAILURES} == set(PARTS)


@pytest.mark.parametrize("it", FAILURES, ids=lambda it: it.name)
def test_each_failure_recognises_its_own_example_and_fills_in_every_name(it):
    if it.shown.startswith("(no message)"):
        return  # nothing to recognise: the lesson teaches it
    for example in it.shown.split("; "):
        known = recognising.recognise(example)
        assert known is not None, example
        assert known.failure.name == it.name, example
        assert not re.search(r"\{[a-z]\w*\}", str(known)), "a name was left unfilled"
        assert it.where in re.sub(r"\s+", " ", str(known))


def test_a_failure_without_patterns_says_that_it_has_no_message():
    silent = [it for it in FAILURES if not it.patterns]
    assert silent
    assert all(it.shown.startswith("(no message)") for it in silent)


@pytest.mark.parametrize("row", [r for r in RECORDED if r["provoked"] and r["type"]], ids=lambda r: r["name"])
def test_each_message_that_a_gpu_really_gave_is_recognised(row):
    assert recognising.recognise(f"{row['type']}: {row['message']}").failure.name == row["name"]
    assert row["cured"] in (True, None)


@pytest.mark.parametrize(
    "text",
    ["", "Traceback", "ValueError: x", "ZeroDivisionError: division by zero", "KeyError: 'a'", "all 41 tests passed"]
    + ["TypeError: can only concatenate str", "{'loss': 1.25, 'grad_norm': 0.5}", "the name of a nan is grandmother"]
    + ["{'loss': '0.5', 'grad_norm': 'nan'}"],  # the scaler found an overflow and skips the step: no failure
)
def test_what_is_not_known_gets_no_answer(text):
    assert recognising.explanation(text) == ""


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '0.001'}", "nan-loss"),  # transformers 5: numbers as text
        ("{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 0.001}", "nan-loss"),
        (
            "RepositoryNotFoundError: 404 Client Error. Repository Not Found for url: https://huggingface.co/x/y. "
            "If you are trying to access a private or gated repo, make sure you are authenticated.",
            "unknown-model",
        ),
        ("GatedRepoError: 401 Client Error. Cannot access gated repo for url https://huggingface.co/x/y.", "gated"),
    ],
)
def test_what_libraries_print_is_told_apart(said, name):
    assert recognising.recognise(said).failure.name == name


def test_the_last_error_of_a_log_counts_and_the_others_are_mentioned():
    log = "OSError: [Errno 28] No space left on device\nretrying\nValueError: Attempting to unscale FP16 gradients.\n"
    assert [known.failure.name for known in recognising.all_in(log)] == ["unscale-fp16", "disk-full"]
    assert recognising.recognise(log).failure.name == "unscale-fp16"


def test_where_an_error_was_raised_counts_in_a_printed_traceback():
    """KeyError: 'text' is about rows only where the traceback leads through a library that reads rows."""
    said = "Traceback (most recent call last):\n  File \"{}\", line 3, in x\nKeyError: 'text'\n"
    assert (
        recognising.recognise(said.format("lib/site-packages/trl/trainer/sft_trainer.py")).failure.name
        == "data-columns"
    )
    assert recognising.recognise(said.format("lib/site-packages/pandas/core/frame.py")) is None
    assert recognising.recognise("KeyError: 'text'").failure.name == "data-columns"  # nobody knows where


def test_no_pattern_can_be_told_of_by_raised_in_alone():
    assert all(it.patterns for it in FAILURES if it.raised_in)


def test_a_chained_error_is_known_by_its_cause():
    error = RuntimeError("the checkpoint could not be written")
    error.__cause__ = OSError(28, "No space left on device")
    assert recognising.recognise(error).failure.name == "disk-full"


# ------------------------------------------------------------------------------- renamed arguments, really tried


@contextlib.contextmanager
def listening():
    heard, handler, log = [], logging.Handler(), logging.getLogger("transformers")
    handler.emit = lambda entry: heard.append(entry.getMessage())
    log.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield heard
        finally:
            log.removeHandler(handler)
            heard += [str(w.message) for w in caught]


def call(where: str, name: str, tmp_path):
    """Pass the argument to the installed library, or take the name from it."""
    import importlib

    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    values = {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
        "attn_implementation": "sdpa",
        "dtype": torch.float32,
        "torch_dtype": torch.float32,
        "token": False,
        "eval_strategy": "no",
        "warmup_steps": 0.03,
        "max_length": 64,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }
    value = values.get(name, True)
    if where == "SFTTrainer":
        if name in inspect.signature(SFTTrainer).parameters:
            return
        SFTTrainer(model=None, **{name: value})
    elif where == "SFTConfig":
        mine = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
        SFTConfig(**mine | {name: value})
    elif where == "from_pretrained":
        AutoModelForCausalLM.from_pretrained(MODEL, **{name: value})
    else:
        getattr(importlib.import_module(where), name)


@pytest.mark.parametrize("row", RENAMED, ids=lambda r: f"{r.where}-{r.old}")
def test_the_installed_libraries_refuse_or_deprecate_each_old_name(row, tmp_path):
    with listening() as heard:
        if row.still:
            logging.Logger.warning_once.cache_clear()  # transformers says it once a process
            call(row.where, row.old, tmp_path)
        else:
            with pytest.raises((TypeError, AttributeError)) as caught:
                call(row.where, row.old, tmp_path)
            heard.append(f"{caught.type.__name__}: {caught.value}")
    found = list(filter(None, map(recognising.recognise, heard)))
    assert {known.failure.name for known in found} == {"renamed"}
    assert any(row.new in known.do for known in found)


@pytest.mark.parametrize("row", RENAMED, ids=lambda r: f"{r.where}-{r.old}")
def test_the_installed_libraries_take_each_new_name_without_a_warning(row, tmp_path):
    new = re.match(r"(\w+)\((\w+)=", row.new)
    with listening() as heard:
        if new:
            call(new[1], new[2], tmp_path)
        elif "." in row.new:
            call(*row.new.rsplit(".", 1), tmp_path)
        else:
            assert row.new == "columns prompt and completion"  # lesson 03 trains with them
    assert [line for line in heard if "deprecated" in line and (new is None or new[2] in line)] == []


# --------------------------------------------------------------------------------------- mistakes in a real kernel

SET_UP = f"""
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import SFTConfig, SFTTrainer
path = {MODEL!r}
tokenizer = AutoTokenizer.from_pretrained(path)
def tiny(width=64):
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=3072, hidden_size=width, intermediate_size=64,
                                                        num_hidden_layers=1, num_attention_heads=2))
model, lora = tiny(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
get_peft_model(tiny(), lora).save_pretrained("adapter")
from datasets import Dataset, DatasetDict, load_dataset
rows = Dataset.from_list([{{"instruction": "Name a colour", "input": "", "output": "blue"}}] * 4)
good = dict(output_dir="out", use_cpu=True, bf16=False, report_to="none")
ids, params = torch.ones(1, 4, dtype=int), list(model.parameters())
frozen = PeftModel.from_pretrained(tiny(), "adapter")
def trainer_of(rows):
    return SFTTrainer(model=tiny(), args=SFTConfig(**good), train_dataset=rows, peft_config=lora,
                      processing_class=AutoTokenizer.from_pretrained(path))
text_rows = Dataset.from_list([{{"text": "blue"}}] * 4)
load = AutoModelForCausalLM.from_pretrained
def two_adapters():
    SFTTrainer(model=get_peft_model(tiny(), lora), peft_config=lora, args=SFTConfig(**good), train_dataset=text_rows,
               processing_class=tokenizer)
"""
OOM = next(row["message"] for row in RECORDED if row["name"] == "out-of-memory")
# What a learner types, the error that comes, the failure it is, and words that the answer must hold.
MISTAKES = {
    "a cell above was not run": ("trainer.train()", "NameError", "not-defined", "trainer is made by a cell above"),
    "a package is not installed": (
        "import sklearn_extra",
        "ModuleNotFoundError",
        "module-missing",
        "%pip install sklearn_extra",
    ),
    "an old argument of the trainer": (
        "SFTTrainer(model=model, tokenizer=tokenizer)",
        "TypeError",
        "renamed",
        "processing_class",
    ),
    "an old argument of the config": ("SFTConfig(**good, max_seq_length=512)", "TypeError", "renamed", "max_length"),
    "4 bits as older texts ask for them": (
        "load(path, load_in_4bit=True)",
        "TypeError",
        "renamed",
        "BitsAndBytesConfig",
    ),
    "bfloat16 on a CPU": ('SFTConfig(output_dir="out", bf16=True)', "ValueError", "bfloat16", "use_cpu=True"),
    "an adapter on another base": (
        'PeftModel.from_pretrained(tiny(32), "adapter")',
        "RuntimeError",
        "wrong-base",
        "base_model_name_or_path",
    ),
    "no padding token": (
        'tokenizer.pad_token = None; tokenizer(["a", "b c d"], padding=True)',
        "ValueError",
        "pad-token",
        "pad_token",
    ),
    "a model that is not on the hub": ('load("nobody/nothing")', "OSError", "no-network", "HF_HUB_OFFLINE"),
    "a folder that is not there": ('load("./nowhere")', "OSError", "unknown-model", "owner/name"),
    "projections by another name": (
        'get_peft_model(model, LoraConfig(target_modules=["query"]))',
        "NoMatchingPeftModuleError",
        "target-modules",
        "all-linear",
    ),
    "the GPU is full": (
        f"raise torch.OutOfMemoryError({OOM!r})",
        "OutOfMemoryError",
        "out-of-memory",
        "activation_checkpointing",
    ),
    "a GPU that is not there": ('torch.zeros(1).to("cuda")', "(AssertionError|RuntimeError)", "no-gpu", "T4 GPU"),
    "text in place of tokens": ('model("What is it?")', "TypeError", "not-a-tensor", "return_tensors"),
    "another model's tokenizer": (
        "model(input_ids=torch.tensor([[9999]]))",
        "IndexError",
        "token-out-of-range",
        "same path",
    ),
    "a frozen adapter": (
        "frozen(input_ids=ids, labels=ids).loss.backward()",
        "RuntimeError",
        "no-gradient",
        "is_trainable=True",
    ),
    "rows that were not prepared": ("trainer_of(rows)", "KeyError", "data-columns", "rows.map(lambda row"),
    "a chat template that is not there": (
        'tokenizer.apply_chat_template([{"role": "user", "content": "x"}])',
        "ValueError",
        "no-chat-template",
        "-Instruct",
    ),
    "nothing to resume from": (
        "trainer_of(text_rows).train(resume_from_checkpoint=True)",
        "ValueError",
        "no-checkpoint",
        "save_steps",
    ),
    "a name that went": (
        "from trl import DataCollatorForCompletionOnlyLM",
        "ImportError",
        "renamed",
        "prompt and completion",
    ),
    "a name that never was": ("from trl import SFTTrainr", "ImportError", "cannot-import", "SFTTrainr"),
    "an argument that never was": ("LoraConfig(rank=8)", "TypeError", "unknown-argument", "rank"),
    "text to generate from": ('model.generate("What is it?")', "AttributeError", "not-a-tensor", "return_tensors"),
    "no tensors asked for": ('tokenizer("a")["input_ids"].to("cpu")', "AttributeError", "not-a-tensor", "return_tensors"),
    "stars forgotten": ('model.generate(tokenizer("a", return_tensors="pt"))', "AttributeError", "batch-as-it-is", "**inputs"),
    "scores decoded": ("tokenizer.decode(model(input_ids=ids))", "KeyError", "not-token-ids", "generate(**inputs"),
    "no labels": ("model(input_ids=ids).loss.backward()", "AttributeError", "no-loss", "labels=inputs"),
    "an adapter's method on the base": ("model.merge_and_unload()", "AttributeError", "no-peft", "trainer.model"),
    "all parts of the data": ('trainer_of(DatasetDict({"train": text_rows}))', "TypeError", "whole-dataset", 'rows["train"]'),
    "a part that is not there": ('DatasetDict({"train": rows})["validation"]', "KeyError", "data-split", "validation"),
    "a file that is not there": ('load_dataset("json", data_files="my.jsonl")', "FileNotFoundError", "no-file", "my.jsonl"),
    "a class imported as a module": ("import peft.LoraConfig", "ModuleNotFoundError", "import-path", "from peft import"),
    "a number format that torch has not": ('load(path, dtype="bf16")', "AttributeError", "dtype-name", "torch.bfloat16"),
    "an optimizer's name": ('SFTConfig(**good, optim="adamw8bit")', "ValueError", "invalid-choice", "paged_adamw_8bit"),
    "a number in quotation marks": ('torch.optim.AdamW(params, lr="2e-4")', "TypeError", "number-as-text", "float(value)"),
    "an adapter on an adapter": ("two_adapters()", "ValueError", "adapter-twice", "is_trainable=True"),
}  # fmt: skip
COURSE_ERRORS = {
    "an impossible parameter": (
        'begin("03_t4_training", rank=0)',
        "ParameterError",
        "rank = 0 is not possible; allowed",
    ),
    "a model of no kind": ('begin("03_t4_training", model_id="./nowhere")', "ModelError", "no folder './nowhere' here"),
}
QUIET = {
    "an error of the learner's own": "raise ValueError('mine')",
    "no error": "1 + 1",
    "an interrupt": "raise KeyboardInterrupt",
    "a dictionary of the learner's own": "{}['text']",
    "another one": "{}['validation']",
    "and one more": "{}['input_ids']",
    "a comparison of the learner's own": "1.5 <= '2'",
    "a conversion of the learner's own": "range('x'), range([])",
    "a bare error of the learner's own": "raise AttributeError",
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """Every mistake typed into one running notebook, the bootstrap cell first: its name to the cell's outputs."""
    from nbclient import NotebookClient

    sources = {"bootstrap": course.bootstrap_source(), "set up": SET_UP, "begin": "from helpers.lesson import begin"}
    sources |= {name: row[0] for name, row in (MISTAKES | COURSE_ERRORS).items()} | QUIET
    sources |= {
        "off": "import helpers.failures; helpers.failures.switch_off()",
        "said nothing": "trainer.train()",
    }
    sources |= {
        "on, twice": "helpers.failures.switch_on(); helpers.failures.switch_on()",
        "said once": "trainer.train()",
    }
    cells = [nbformat.v4.new_code_cell(source) for source in sources.values()]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": course.KERNELSPEC})
    folder = tmp_path_factory.mktemp("typed")
    client = NotebookClient(notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(COURSE_ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
    return {name: cell.outputs for name, cell in zip(sources, notebook.cells, strict=True)}


def error_of(outputs):
    return next((out for out in outputs if out.output_type == "error"), None)


def said_after_the_error(outputs) -> str:
    places = [i for i, out in enumerate(outputs) if out.output_type == "error"]
    return (
        "".join(out.get("text", "") for out in outputs[places[0] + 1 :] if out.get("name") == "stdout")
        if places
        else ""
    )


def test_the_notebook_was_set_up_without_an_error(typed):
    assert [name for name in ("bootstrap", "set up", "begin", "off", "on, twice") if error_of(typed[name])] == []
    assert typed["bootstrap"] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_keeps_its_traceback_and_gets_an_answer_under_it(name, typed):
    _, kind, which, words = MISTAKES[name]
    error, said = error_of(typed[name]), said_after_the_error(typed[name])
    assert re.fullmatch(kind, error.ename)
    assert "Traceback" in "".join(error.traceback)
    it = failure(which)
    assert said.count("It means") == said.count("Do this") == said.count("More") == 1
    flat = re.sub(r"\s+", " ", said)
    assert f"More {it.where}" in flat
    assert words in flat


@pytest.mark.parametrize("name", COURSE_ERRORS)
def test_an_error_of_the_course_stays_one_line(name, typed):
    _, kind, words = COURSE_ERRORS[name]
    error, said = error_of(typed[name]), said_after_the_error(typed[name])
    assert error.ename == kind
    assert len(error.traceback) == 1
    assert words in error.traceback[0]
    assert said.count("\n") <= 1, "at most a pointer to the lesson"


@pytest.mark.parametrize("name", QUIET)
def test_nothing_is_said_about_what_is_not_known(name, typed):
    assert [out for out in typed[name] if out.get("name") == "stdout"] == []


def test_the_hook_changes_nothing_of_the_traceback_and_speaks_once(typed):
    def plain(outputs):
        text = "".join(error_of(outputs).traceback)
        return re.sub(r"\x1b\[[\d;]*m|In\s*\[\d+\]|line \d+|Cell", "", text)

    assert said_after_the_error(typed["said nothing"]) == ""
    assert said_after_the_error(typed["said once"]).count("It means") == 1
    assert plain(typed["said nothing"]) == plain(typed["said once"])


# ------------------------------------------------------------------------------------------------ it never fails


@given(
    st.one_of(st.text(), st.binary().map(lambda b: b.decode("latin-1")), st.from_regex(r"(\w{1,9}Error: .{0,80}\n)*"))
)
@settings(max_examples=100, deadline=None)
def test_any_text_is_looked_at_without_an_error(text):
    assert isinstance(recognising.explanation(text), str)
    assert isinstance(recognising.all_in(text), list)


@given(
    st.text(max_size=60),
    st.sampled_from([it for it in FAILURES if "(no message)" not in it.shown]),
    st.text(max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_a_known_message_is_found_in_any_surroundings(before, it, after):
    example = it.shown.split("; ")[0]
    assert recognising.explanation(f"{before}\n{example}\n{after}") != ""


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Endless(Exception):
    def __str__(self):
        return "x" * 10_000_000


def in_a_circle():
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    return a


@pytest.mark.parametrize(
    "error",
    [Unprintable(), Endless(), in_a_circle(), KeyError(), SystemExit(3), CourseError(""), ValueError("\udcff")],
    ids=lambda e: type(e).__name__,
)
def test_any_error_is_looked_at_without_an_error(error, capsys):
    assert recognising.explanation(error) == ""
    recognising.explain_cell(SimpleNamespace(error_in_exec=error, error_before_exec=None))
    assert capsys.readouterr().out == ""


def test_a_known_error_of_the_course_gets_a_pointer_of_one_line_and_no_more(capsys):
    error = CourseError("the course could not be fetched")
    recognising.explain_cell(SimpleNamespace(error_in_exec=error, error_before_exec=None))
    assert capsys.readouterr().out == "More about it: lesson 06, section 6\n"


@pytest.mark.parametrize("result", [None, 3, object(), SimpleNamespace(error_in_exec="text", error_before_exec=None)])
def test_whatever_ipython_hands_over_nothing_is_raised(result, capsys):
    recognising.explain_cell(result)
    assert capsys.readouterr().out == ""


def test_a_closed_output_is_no_error(monkeypatch):
    def closed(*_, **__):
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr("builtins.print", closed)
    recognising.explain_cell(
        SimpleNamespace(error_in_exec=NameError("name 'trainer' is not defined"), error_before_exec=None)
    )


@pytest.mark.parametrize(
    "text",
    ["x" * 600_000, "Error: " * 100_000, "ModelError: " * 50_000, "a.b" * 300_000, "\n" * 600_000]
    + [
        "Target modules " * 50_000,
        "size mismatch for " + "a" * 600_000,
        "lib" + "cu" * 300_000,
        "loss" + " " * 600_000,
    ],
    ids=range(9),
)
def test_a_huge_log_is_looked_at_in_a_bounded_time(text):
    assert (
        paces(lambda: (recognising.explanation(text), recognising.all_in(text)), 1) < 1000
    )  # 10 s where a unit takes 10 ms


def test_outside_of_a_notebook_nothing_is_switched_on_and_nothing_heavy_imported():
    code = (
        "import sys, helpers.failures as e; print(e.switch_on(), [m for m in ('torch', 'IPython') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=COURSE_ROOT)
    assert (out.stdout, out.stderr) == ("None []\n", "")


def test_the_bootstrap_cell_switches_it_on(monkeypatch):
    calls = []
    monkeypatch.setattr("helpers.failures.switch_on", lambda: calls.append("on"))
    exec(course.bootstrap_source(), {"__name__": "__main__"})
    assert calls == ["on"]


# --------------------------------------------------------------------------------------------------- the command


def command(*words, given=b""):
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "helpers", "explain", *map(str, words)],
        input=given,
        capture_output=True,
        env=surroundings,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_pasted_log_is_explained_and_the_status_is_0():
    status, out, err = command(
        given=b"step 3\nTraceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    )
    assert (status, err) == (0, "")
    assert "activation_checkpointing=True" in out
    assert "lesson 06, section 9" in out


@pytest.mark.parametrize("given", [b"", b"all went well\n", b"\xff\xfe\x00" * 500, "\u202e\U0001f6a8".encode() * 100])
def test_what_the_command_does_not_know_gets_status_1_and_says_how_to_report_it(given):
    status, out, err = command(given=given)
    assert (status, err) == (1, "")
    assert "no error in it that the course knows" in out
    assert "open an issue" in out


def test_an_unknown_error_is_named_with_what_to_include_when_asking():
    log = b"OSError: [Errno 28] No space left on device\nTraceback (most recent call last):\nValueError: mine\n"
    status, out, err = command(given=log)
    assert (status, err) == (1, "")
    assert out.startswith("Its last error is unknown to the course:\n  ValueError: mine\n")
    for needed in ("the whole message", "the cell", "python -m helpers doctor", "tokens"):
        assert needed in out
    assert "Also in this log: [Errno 28] No space left on device" in out


def test_a_log_of_thirty_megabytes_is_read_to_its_end(tmp_path):
    log = tmp_path / "log.txt"
    with log.open("wb") as stream:
        for _ in range(30):
            stream.write(b"a line of a long training run, loss 1.25\n" * 25_000)
        stream.write(b"OSError: [Errno 28] No space left on device\n")
    begun = time.perf_counter()
    status, out, _ = command(log)
    assert (time.perf_counter() - begun) / unit_seconds() < 4000  # 40 s where a unit takes 10 ms
    assert status == 0
    assert "The disk is full" in out


def test_a_notebook_that_failed_is_read_by_its_errors(tmp_path):
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [
        nbformat.v4.new_output(
            "error", ename="ValueError", evalue="Attempting to unscale FP16 gradients.", traceback=["..."]
        )
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "failed.ipynb")
    status, out, _ = command(tmp_path / "failed.ipynb")
    assert status == 0
    assert "adapters_to_float32" in out


def test_a_notebook_that_is_none_is_read_as_text(tmp_path):
    (tmp_path / "broken.ipynb").write_text("KeyError: 'text'\n{")
    assert command(tmp_path / "broken.ipynb")[0] == 0


@pytest.mark.parametrize("name", ["nowhere.txt", "."])
def test_a_file_that_cannot_be_read_gets_one_line_and_status_2(name, tmp_path):
    status, out, err = command(tmp_path / name)
    assert (status, out) == (2, "")
    assert err.startswith("python -m helpers explain: ")
    assert err.count("\n") == 1
