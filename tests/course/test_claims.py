"""The ledger of claims and the decision page: every status follows from evidence that is there, and both pages are up to date."""

import ast
import builtins
import copy
import dataclasses
import json
import re
import statistics
import sys

import pytest

from helpers import COURSE_ROOT
from helpers.evaluation import interval_of_mean
from helpers.records import measured_arms

sys.path.insert(0, str(COURSE_ROOT / "site"))
import evidence  # noqa: E402
import ledger  # noqa: E402

CLAIMS = {claim["name"]: claim for claim in evidence.load("claims.toml")["claim"]}
DECISIONS = {line["name"]: line for line in evidence.load("decisions.toml")["decision"]}
TEXTS = evidence.load("paragraphs.toml")


@pytest.fixture
def forgetful():
    """Nothing that was read or computed is remembered, before the test and after it."""

    def forget():
        for remembered in (evidence._computed, evidence._tests, evidence._cells):
            remembered.cache_clear()

    forget()
    yield
    forget()


# --- as it stands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_the_status_of_a_claim_follows_from_its_evidence(name):
    faults = ledger.faults_of_claim(CLAIMS[name])
    assert not faults, "; ".join(faults)


@pytest.mark.parametrize("name", DECISIONS)
def test_each_choice_of_a_decision_has_evidence_that_speaks_for_it(name):
    faults = ledger.faults_of_decision(DECISIONS[name])
    assert not faults, "; ".join(faults)


def test_every_paragraph_of_both_texts_is_mapped_and_every_claim_is_made_somewhere():
    faults = ledger.faults_of_mapping(list(CLAIMS.values()), TEXTS)
    assert not faults, "; ".join(faults)


def stale(stored: str, made: str) -> list[str]:
    """The names of the entries that differ between a page as stored and as made from what there is now."""
    parts = [
        {re.match(r"[\w.-]+", part)[0]: part for part in re.split(r'<a id="', page)[1:]} for page in (stored, made)
    ]
    names = [name for name in {**parts[0], **parts[1]} if parts[0].get(name) != parts[1].get(name)]
    return names or ([] if stored == made else ["what stands above the entries"])


@pytest.mark.parametrize("page", ledger.PAGES)
def test_a_page_says_what_the_evidence_says_today(page):
    names = stale((evidence.SITE / page).read_text(encoding="utf-8"), ledger.PAGES[page]())
    assert not names, f"{page} is not up to date for {', '.join(names)}: run `python site/ledger.py`"


@pytest.mark.parametrize("page", ledger.PAGES)
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", (evidence.SITE / page).read_text(encoding="utf-8"))  # code has brackets of its own
    targets = re.findall(r"\]\((?!https:)([^)#\s]*)#?([^)\s]*)\)", text)
    assert len(targets) > 10
    for file, anchor in targets:
        target = evidence.SITE / (file or page)
        assert target.exists(), f"{page} links to {file}"
        if anchor and file != "glossary.md":  # tests/course/test_glossary.py looks at these
            assert f'<a id="{anchor}">' in target.read_text(encoding="utf-8"), f"{page} links to {file}#{anchor}"


def test_each_status_and_each_kind_of_evidence_is_used():
    assert {claim["status"] for claim in CLAIMS.values()} == set(ledger.STATUSES.values())
    used = {
        kind for claim in CLAIMS.values() for e in claim.get("evidence", []) for kind in evidence.KINDS if kind in e
    }
    assert used == set(evidence.KINDS)


# --- planted faults ---------------------------------------------------------------------------------------------------


def changed(name: str, place: int = 0, **parts) -> dict:
    """A copy of a claim, with parts of one of its pieces of evidence changed."""
    claim = copy.deepcopy(CLAIMS[name])
    claim["evidence"][place] |= parts
    return claim


def only(faults: list[str], name: str) -> str:
    """The one fault that was found; it begins with the name of the claim."""
    (fault,) = faults
    assert fault.startswith(f"{name}: ")
    return fault


def first(name: str, kind: str) -> int:
    return next(i for i, piece in enumerate(CLAIMS[name]["evidence"]) if kind in piece)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_other_status_is_refused(name):
    for status in set(ledger.STATUSES.values()) - {CLAIMS[name]["status"]}:
        faults = ledger.faults_of_claim(CLAIMS[name] | {"status": status})
        assert any(fault.startswith(f"{name}: the status is {status!r}") for fault in faults)


def test_a_status_that_there_is_not_is_refused():
    assert "no status 'true'" in ledger.faults_of_claim(CLAIMS["footprint-3.89"] | {"status": "true"})[-1]


@pytest.mark.parametrize(("file", "name"), [("test_nothing.py", "test_it"), ("course/test_texts.py", "test_that_went")])
def test_a_removed_test_is_noticed(file, name):
    claim = changed("pad-is-eos", first("pad-is-eos", "test"), test=f"tests/{file}::{name}")
    assert "there is no" in only(ledger.faults_of_claim(claim), "pad-is-eos")


def changed_by_hand(monkeypatch, file, old, new):
    """COURSE_ROOT / file as it is, with `old` replaced, for whoever reads it in this test."""
    path = COURSE_ROOT / file
    text, read = path.read_text(encoding="utf-8"), type(path).read_text
    assert old in text
    monkeypatch.setattr(
        type(path), "read_text", lambda self, *a, **k: text.replace(old, new) if self == path else read(self, *a, **k)
    )


LESSONS, ROWS = "lessons", "measurements"
# A claim -> the file that it rests on, what is changed there, and what is said then.
CHANGES = {
    "pad-is-eos": ("tests/course/test_texts.py", "def test_trl_pads", "def tried_trl_pads", "there is no test"),
    "trainable-0.2235-percent": (
        "tests/course/test_texts.py",
        "def test_peft",
        "@mark.skip\ndef test_peft",
        "is skipped",
    ),
    "nf4-optimal": (f"{LESSONS}/01_quantization_basics.py", "NF4 neither", "NF4 either", "no verdict"),
    "watch-gpu-memory": (
        f"{LESSONS}/02_memory_math.py",
        'tags=["smi"]',
        'tags=["driver"]',
        "no cell with the tag 'smi'",
    ),
    "mistral-in-4-bits": (f"{ROWS}/h200_earlier_rows.jsonl", "4130416640", "3620000000", "'holds' follows"),
    "adapters-in-float16": (f"{ROWS}/h200_failures.json", '"unscale-fp16"', '"unscaled"', "0 rows"),
    "slow-by-mixed-types": (f"{ROWS}/h200_failures.json", "10.158", "1.062", "'false today' follows"),
    "quantization-error-tiny": (
        "notebooks/01_quantization_basics.ipynb",
        "NF4             9.2%",
        "NF4             0.2%",
        "'holds' follows",
    ),
    "libcudart-path": (f"{ROWS}/h200_failures.json", "LD_LIBRARY_PATH", "PATH", "'false today' follows"),
    "prepare-is-required": (
        f"{ROWS}/h200_earlier_rows.jsonl",
        '"error": null',
        '"error": "x"',
        "'holds with a limit' follows",
    ),
    "buffer-20-percent": (f"{ROWS}/h200_earlier_rows.jsonl", "8205 MiB", "7900 MiB", "'holds' follows"),
    "nf4-better-than-fp4": (f"{ROWS}/smollm2_quality.json", "21.929", "15.0", "'holds with a limit' follows"),
    "loss-imperceptible": (f"{LESSONS}/08_quality.py", "8 bits is equivalent", "8 bits is worse than", "no verdict"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_in_the_files_turns_its_claim_red(monkeypatch, forgetful, name):
    file, old, new, said = CHANGES[name]
    changed_by_hand(monkeypatch, file, old, new)
    assert said in only(ledger.faults_of_claim(CLAIMS[name]), name)


def test_a_changed_row_that_leaves_the_status_makes_the_page_stale(monkeypatch, forgetful):
    stored = (evidence.SITE / "claims.md").read_text(encoding="utf-8")
    changed_by_hand(
        monkeypatch, "measurements/h200_failures.json", "Attempting to unscale FP16 gradients.", "Attempting."
    )
    assert stale(stored, ledger.claims_page()) == ["adapters-in-float16"]


@pytest.mark.parametrize(
    ("name", "parts", "said"),
    [
        ("trainable-8388608", {"bound": 6_815_744}, "'holds' follows"),
        ("footprint-3.89", {"bound": "4.54"}, "'holds with a limit' follows"),
        ("base-3.9gb", {"bound": "3.7"}, "'false today' follows"),
        ("quantization-error-tiny", {"computed": "float(shown('01', 'x', 'NF4')[0])"}, "cells of 01_quantization"),
        ("double-saves-3.2gb", {"bound": "4.2"}, "'false today' follows"),
        ("t4-16gb", {"op": "is"}, "op is 'is'"),
        ("t4-16gb", {"computed": "GPUS['t5'].total_bytes"}, "cannot be computed"),
        ("t4-16gb", {"says": ""}, "says in words"),
        ("t4-16gb", {"row": {"file": "h200_speed.jsonl", "value": "run"}}, "of one kind"),
        ("65b-48gb", {"citation": {"link": "arxiv", "date": "today"}}, "needs a link"),
        ("65b-48gb", {"citation": {"link": "https://arxiv.org", "date": "today"}}, "no date"),
        ("65b-48gb", {"shows": "perhaps"}, "for or against"),
        ("nf4-optimal", {"cell": {"lesson": "01"}}, "by its verdict or by its tag"),
    ],
)
def test_a_changed_figure_or_a_broken_piece_of_evidence_is_noticed(name, parts, said):
    assert said in only(ledger.faults_of_claim(changed(name, **parts)), name)


def test_nothing_is_called_false_by_citation_alone():
    claim = CLAIMS["nf4-optimal"] | {"evidence": [e for e in CLAIMS["nf4-optimal"]["evidence"] if "citation" in e]}
    assert "of this course's own" in only(ledger.faults_of_claim(claim), "nf4-optimal")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("42"), "text a, paragraph 42: nothing says what it claims"),
        (lambda a: a.update({"42": []}), "text a, paragraph 42: nothing says what it claims"),
        (lambda a: a.update({"77": "heading"}), "text a has no paragraph 77"),
        (lambda a: a.update({"76": ["other-ways"]}), "other-ways: text a, paragraph 76 names this claim, and there is none"),
        (lambda a: a.update({"76": "heading"}), "other-methods: no paragraph makes this claim"),
    ],
)  # fmt: skip
def test_a_hole_in_the_mapping_is_noticed(change, said):
    texts = copy.deepcopy(TEXTS)
    change(texts["a"])
    assert said in ledger.faults_of_mapping(list(CLAIMS.values()), texts)


def test_two_claims_of_one_name_are_noticed():
    twice = [*CLAIMS.values(), CLAIMS["t4-16gb"]]
    assert ledger.faults_of_mapping(twice, TEXTS) == ["t4-16gb: there are two claims of this name"]


@pytest.mark.parametrize(
    ("name", "parts", "said"),
    [
        ("t4-7b", {"learning_rate": "cannot tell yet"}, "has evidence all the same"),
        ("t4-24b", {"learning_rate": "1e-4"}, "learning_rate = '1e-4' has no evidence"),
        ("two-t4-32b", {"time": "a day"}, "time = 'a day' has no evidence"),
        ("small-chat", {"layers": "all linear"}, "layers = 'all linear' has no evidence"),
    ],
)
def test_a_choice_without_evidence_is_noticed(name, parts, said):
    assert said in only(ledger.faults_of_decision(DECISIONS[name] | parts), name)


@pytest.mark.parametrize(
    ("name", "place", "parts", "said"),
    [
        ("cpu-form", 3, {"bound": 8}, "evidence speaks against rank"),
        ("t4-14b", 0, {"of": ["method", "bits"]}, "rank = '16' has no evidence"),
        ("t4-14b", 0, {"of": ["method", "rank", "layers", "bits", "colour"]}, "there is no choice 'colour'"),
        ("t4-24b", 0, {"computed": "GPUS['t4'].context_bytes + measured('24B, 1,024 tokens', 'peak_reserved')"},
         "speaks against"),
        ("small-facts", 0, {"computed": "apart('form', 'full', 'nf4')"}, "speaks against method"),
        ("24gb-32b", 0, {"computed": "fits(run('32B', 'l4', batch_size=4, seq_len=1024, **BFLOAT16), 'l4')"}, "speaks against"),
    ],
)  # fmt: skip
def test_evidence_that_speaks_against_a_choice_is_noticed(name, place, parts, said):
    line = copy.deepcopy(DECISIONS[name])
    line["evidence"][place] |= parts
    faults = ledger.faults_of_decision(line)
    assert any(said in fault for fault in faults)
    assert all(fault.startswith(f"{name}: ") for fault in faults)


# --- differences that were measured, with their intervals ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "within"),
    [
        (0.1, 5.0, "for", "against", "note"),
        (-5.0, -0.1, "against", "for", "note"),
        (-1.0, 1.9, "note", "note", "for"),
        (-1.0, 7.0, "note", "note", "note"),
        (0.0, 1.0, "note", "note", "for"),
        (2.1, 7.0, "for", "against", "against"),
        (-7.0, -2.1, "against", "for", "against"),
    ],
)
def test_an_interval_speaks_for_or_against_only_as_a_whole(low, high, above, below, within):
    value = evidence.Apart((low + high) / 2, low, high)
    assert [evidence.side_of(value, *said) for said in ((">", 0), ("<", 0), ("within", 2))] == [above, below, within]
    with pytest.raises(evidence.NoEvidence, match="op is '=='; there are: >, <, within"):
        evidence.side_of(value, "==", 0)


def as_other(task, arm, other):
    """False rows: an arm answers what another one does."""

    def plant(rows):
        of_other = {r["seed"]: r["hits"] for r in rows if (r["phase"], r["task"], r["arm"]) == ("runs", task, other)}
        for row in rows:
            if (row["phase"], row["task"], row["arm"]) == ("runs", task, arm):
                row["hits"] = of_other[row["seed"]]

    return plant


def as_far_as(task, where, times):
    """False rows: after training QLoRA lies so many times as far from LoRA as before it."""

    def plant(rows):
        for row in rows:
            if (row["phase"], row["task"], row["arm"]) == ("runs", task, "nf4"):
                row[f"{where}_distance_after"] = times * row[f"{where}_distance_before"]

    return plant


@pytest.fixture
def planted(monkeypatch, forgetful):
    """A function that puts false rows in place of lesson 08's, for this test."""

    def plant(change):
        arms = measured_arms()
        rows = copy.deepcopy(arms.rows)
        change(rows)
        monkeypatch.setattr(evidence, "measured_arms", lambda: dataclasses.replace(arms, rows=rows))

    return plant


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("lora-a-little-better", as_other("messages", "lora", "nf4"), "'false today' follows"),
        ("lora-a-little-better", as_other("facts", "lora", "nf4"), "'holds' follows"),
        ("nf4-recommended", as_other("facts", "fp4", "full"), "'holds with a limit' follows"),
    ],
)
def test_false_rows_of_lesson_08_turn_a_claim_red(planted, name, change, said):
    planted(change)
    assert said in only(ledger.faults_of_claim(CLAIMS[name]), name)


@pytest.mark.parametrize(
    ("name", "computed", "side", "change", "then"),
    [
        ("quality-of-16-bits", "apart('form', 'nf4', 'full')", "for", as_other("form", "nf4", "full"), "note"),
        ("quality-of-16-bits", "apart('facts', 'nf4', 'full')", "against", as_other("facts", "nf4", "full"), "note"),
        ("quality-of-16-bits", "apart('messages', 'nf4', 'full')", "against", as_other("messages", "full", "fp4"), "note"),
        ("quality-of-16-bits", "apart('form', 'nf4', 'lora')", "note", as_other("form", "nf4", "attention"), "for"),
        ("quality-of-16-bits", "apart('facts', 'nf4', 'lora')", "for", as_other("facts", "nf4", "attention"), "against"),
        ("quality-of-16-bits", "apart('messages', 'nf4', 'lora')", "against", as_other("messages", "nf4", "full"), "for"),
        ("adapter-repairs", "farther('form', 'answers')", "for", as_far_as("form", "answers", 1.1), "against"),
        ("adapter-repairs", "farther('messages', 'answers')", "for", as_far_as("messages", "answers", 2), "against"),
        ("adapter-repairs", "farther('facts', 'answers')", "against", as_far_as("facts", "answers", 0.9), "for"),
        ("adapter-repairs", "min(farther(task, 'text')", "against", as_far_as("messages", "text", 0.9), "for"),
    ],
)  # fmt: skip
def test_each_measured_piece_changes_its_side_with_the_rows_and_its_page_is_stale(
    planted, name, computed, side, change, then
):
    (piece,) = [e for e in CLAIMS[name]["evidence"] if e.get("computed", "").startswith(computed)]
    assert evidence.weigh(piece)[0] == side
    evidence._computed.cache_clear()
    planted(change)
    assert evidence.weigh(piece)[0] == then
    assert ledger.in_words(piece) not in (evidence.SITE / "claims.md").read_text(encoding="utf-8")


def test_what_is_said_of_the_measured_arms_is_their_design():
    text, arms = evidence.load("claims.toml")["computed"], measured_arms()
    number = {8: "eight", 5: "five"}
    for task in arms.design["tasks"].values():
        assert f"{task['steps']} steps, {number[len(task['seeds'])]} seeds" in text
    assert f"{arms.design['tasks']['form']['learn']} rows, 40 steps" in text
    assert {len(rates) for task in arms.design["tasks"].values() for rates in task["rates"].values()} == {4}
    assert (arms.design["arms"]["lora"]["rank"], arms.design["arms"]["attention"]["rank"]) == (16, 43)
    assert str(evidence.Apart(-21.34, -28.8, -14.16)) == "-21.3 points (-28.8 to -14.2)"


def test_intervals_and_spreads_are_those_of_the_rows():
    arms = measured_arms()
    mean, low, high = interval_of_mean(*arms.apart("messages", "nf4", "full"))
    assert evidence.apart("messages", "nf4", "full") == pytest.approx((100 * mean, 100 * low, 100 * high))
    rows = [r for r in arms.rows if (r["phase"], r["task"], r["arm"]) == ("runs", "form", "int8")]
    assert evidence.spread("form", "int8") == pytest.approx(100 * statistics.stdev(r["score"] for r in rows))
    ratio = sum(r["text_distance_after"] for r in rows) / sum(r["text_distance_before"] for r in rows)
    assert evidence.farther("form", "text", "int8") == pytest.approx(ratio)


# --- what a line says ---------------------------------------------------------------------------------------------------


def test_a_computed_line_leads_to_the_rows_that_it_reads_and_to_no_shape_of_the_same_name():
    piece = {
        "computed": "measured('24B', 'peak_reserved') - measured('14B', 'peak_reserved')",
        "says": "{found}",
        "note": True,
    }
    assert "rows [`14B`](claims.md#row-14b), [`24B`](claims.md#row-24b))" in ledger.in_words(piece)
    piece["computed"] = "run('14B', 'l4').peak_allocated"
    assert "row" not in ledger.in_words(piece)
    assert len({*map(ledger._anchor, evidence.named_rows())}) == len(evidence.named_rows())


def test_every_name_in_a_computed_line_is_explained_on_the_page():
    pieces = [
        e for entry in (*CLAIMS.values(), *DECISIONS.values()) for e in entry.get("evidence", []) if "computed" in e
    ]
    used = {
        node.id
        for e in pieces
        for node in ast.walk(ast.parse(e["computed"], mode="eval"))
        if isinstance(node, ast.Name)
    }
    ours = (used & evidence.NAMES.keys()) - {*dir(builtins), "numpy"}
    assert len(ours) > 15
    assert ours <= set(re.findall(r"`(\w+)", evidence.load("claims.toml")["computed"]))


# --- how figures are judged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "printed", "near", "exact"),
    [
        (4.01, "3.89", True, False),
        (3.894, "3.89", True, True),
        (4.13, "3.6", False, False),
        (0.80, "1", True, True),
        (0.27, "1", False, False),
        (0.0545, "0.06", True, False),
        (27.3, "33", False, False),
    ],
)
def test_a_printed_number_is_right_in_its_digits_and_one_with_a_tilde_is_near(value, printed, near, exact):
    assert evidence.about(value, printed) is near
    assert evidence.rounds_to(value, printed) is exact


def test_a_row_is_found_by_what_it_says_and_must_be_the_only_one(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "COURSE_ROOT", tmp_path)
    (tmp_path / "measurements").mkdir()
    rows = [
        {"a": 1, "spec": {"rank": rank, "target_modules": ["q"] * rank}, "measured": {"b": rank}} for rank in (4, 8, 8)
    ]
    (tmp_path / "measurements" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert evidence.measured("rows.jsonl", "b", rank=4) == 4
    assert evidence.measured("rows.jsonl", "b", target_modules=4) == 4
    for where in ({"rank": 8}, {"rank": 16}, {"colour": 1}):
        with pytest.raises(evidence.NoEvidence, match="rows of rows.jsonl"):
            evidence.measured("rows.jsonl", "b", **where)
    with pytest.raises(evidence.NoEvidence, match="has no c"):
        evidence.measured("rows.jsonl", "c", rank=4)
