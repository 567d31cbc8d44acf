"""Lesson 06 and the table that explains errors cannot drift apart; each failure it names is met, cured and checked."""

import html
import json
import re

import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from helpers.failures import FAILURES, RENAMED, SECTIONS, failure
from helpers.packages.lists import pinned_versions
from tests.cells import stored, tagged

LESSON = course.find_lesson("06")
SOURCE = LESSON.read_text(encoding="utf-8")
RECORDED = {r["name"]: r for r in json.loads((COURSE_ROOT / "measurements" / "h200_failures.json").read_text("utf-8"))}


@pytest.fixture(scope="module")
def notebook():
    return stored("06")


def table_of(notebook, tag: str) -> list[list[str]]:
    """The rows of the HTML tables that the cell with a tag shows, as text."""
    page = "".join(o["data"].get("text/html", "") for o in tagged(notebook, tag).outputs if "data" in o)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    cells = [[html.unescape(c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]
    return [row for row in cells if any(row)]


def test_the_headings_of_the_lesson_are_the_sections_that_explanations_name():
    headings = dict(re.findall(r"^# ## (\d+) (.+)$", SOURCE, re.MULTILINE))
    assert {int(number): title for number, title in headings.items() if int(number) in SECTIONS} == SECTIONS


def test_the_lessons_table_of_failures_is_the_table_that_explains(notebook):
    outputs = tagged(notebook, "failures").outputs
    headings = [o["data"]["text/markdown"] for o in outputs if "text/markdown" in o["data"]]
    assert headings == [f"**{number} {title}**" for number, title in SECTIONS.items()]
    rows = table_of(notebook, "failures")
    shown = [row for row in rows if row[0] not in ("", "what you see")]
    in_order = [it for number in SECTIONS for it in FAILURES if it.section == number]
    assert shown == [[it.shown, it.general(it.means), it.general(it.do)] for it in in_order]


def test_each_rename_names_a_thread_or_none_at_all():
    """Release and thread, as in "TRL 0.12, trl#2162"; the two newest have neither."""
    without = [row.old for row in RENAMED if not row.since]
    assert without == ["gradient_checkpointing", "gradient_checkpointing_kwargs"]
    for row in RENAMED:
        release = r"((TRL|PEFT|transformers) \d+\.\d+, )?"
        assert re.fullmatch(rf"({release}(trl|peft|transformers|unsloth|bitsandbytes)#\d+)?", row.since), row.old


def test_the_lessons_table_of_renamed_arguments_is_the_one_that_explains(notebook):
    shown = {row[0]: row[1:] for row in table_of(notebook, "renamed")}
    for row in RENAMED:
        today, answer, since = shown[f"{row.where}: {row.old}"]
        assert (today, since) == (row.new, row.since)
        assert answer == ("works, and warns" if row.still else "refused")


# What both source texts and the facts of this course name: provoked in the lesson, or replayed from a GPU.
NAMED = (
    ["bitsandbytes-binary", "libcudart", "flash-attention", "no-gpu", "bfloat16", "scaler-bfloat16", "unscale-fp16"]
    + ["dtypes-differ", "no-gradient", "purely-quantized", "nan-loss", "out-of-memory", "host-memory", "does-not-fit"]
    + ["wrong-base", "target-modules", "pad-token", "right-padding", "merge-rounds", "renamed", "disk-full"]
    + ["gated", "unknown-model", "unknown-dataset", "no-token", "no-network", "token-out-of-range", "devices-differ"]
)


@pytest.mark.parametrize("name", NAMED)
def test_each_named_failure_is_met_in_the_lesson_and_its_cure_printed(name, notebook):
    it, tables = failure(name), [tagged(notebook, "failures"), tagged(notebook, "renamed")]
    said = re.sub(
        r"\s+",
        " ",
        " ".join(
            str(o.get("text", "")) + " ".join(map(str, o.get("data", {}).values()))
            for c in notebook.cells
            if c.cell_type == "code" and c not in tables
            for o in c.outputs
        ),
    )
    if name == "renamed":
        said = " ".join(today for _, today, *_ in table_of(notebook, "renamed"))
        assert all(row.new in said for row in RENAMED)
        return
    begin = re.sub(r"\s+", " ", it.do)[:60]
    assert begin in html.unescape(said)


def test_the_silent_failures_are_measured(notebook):
    for claim in (
        "trained on the first, most answers never end",
        "without template and newline most of what was tuned is lost",
        "a thousandth of the right rate hardly moves the loss",
        "float16 input to a float32 layer comes back as float16, without a word",
        "on another base nothing is left",
        "merged into dequantized weights, it is the one that was trained",
    ):
        texts = [str(o.get("text", "")) for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        assert any(f"{claim}" in text and "OK: " in text for text in texts), claim


def test_the_advice_against_a_full_gpu_is_in_the_order_of_the_live_advice():
    """What changes the result comes last, in the text as in what helpers.training says when a run fails."""
    from helpers.memory import RunSpec
    from helpers.models import PRESETS
    from helpers.training.out_of_memory import ladder

    rungs = [
        said for said, _ in ladder(PRESETS["mistral-7b"].shape, RunSpec(batch_size=2, checkpoint_every=0), "t4", 1)
    ]
    same = {
        "checkpointing=True": "activation_checkpointing",
        "batch_size=1": "half the rows",
        "max_length=256": "max_length",
        "target_modules=": "target_modules",
    }
    live = [advice for rung in rungs for start, advice in same.items() if rung.startswith(start)]
    advice = failure("out-of-memory").do
    assert sorted(same.values(), key=advice.index) == live


def test_beside_each_cure_stands_the_measured_pair_that_is_nearest_to_the_ladder(notebook):
    rows = {row[0]: row[1:] for row in table_of(notebook, "cures")}
    pairs = {
        "activation_checkpointing=True": "1 x 512, checkpoint_every: 0 to 1",
        "no prepare_model_for_kbit_training": "4 x 512, upcast_non_quantized: True to False",
        "half of max_length": "4 x 512, seq_len: 512 to 256",
        "half the rank": "4 x 512, rank: 16 to 8",
        "half the rows, twice the accumulation": "8 x 512, batch_size: 8 to 4",
        "double quantization": "4 x 512, double_quant: False to True",
        "repeat key and value heads (T4)": "1 x 2048, repeat_kv: False to True",
    }
    cures = [name for name in rows if len(rows[name]) == 5 and rows[name][0].endswith("GiB")]
    assert len(cures) == 9
    assert set(pairs) < set(cures)
    for cure in cures:
        _, _, on, saved, predicted = rows[cure]
        assert on.endswith(pairs.get(cure, ""))
        assert float(saved.split()[0]) == pytest.approx(float(predicted.split()[0]), abs=0.05)


def test_what_a_gpu_said_is_compared_with_no_stored_output():
    """The recording may be made anew: its numbers and its date must not fail a run of the notebook."""
    cells = re.split(r"^(# %%.*)$", SOURCE, flags=re.MULTILINE)
    replaying = [head for head, body in zip(cells[1::2], cells[2::2], strict=True) if re.search(r"= replay\(", body)]
    assert replaying
    assert all("nbval-ignore-output" in head for head in replaying)


def test_what_is_replayed_was_really_provoked_on_a_gpu_and_cured():
    replayed = re.findall(r'replay\("([\w-]+)"\)', SOURCE)
    assert len(replayed) >= 4
    for name in replayed:
        row = RECORDED[name]
        assert row["provoked"]
        assert row["cured"] in (True, None)
        assert row["capability"] is not None
        assert row["versions"]["trl"].split(".")[:2] == pinned_versions()["trl"].split(".")[:2], "record it anew"


def test_nothing_of_a_machine_is_in_the_recorded_messages():
    text = json.dumps(list(RECORDED.values()))
    assert not re.search(r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|mnt|work|workspace|content|var)/", text)
