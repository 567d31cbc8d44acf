"""The side by side of arms: its design, the checks of its rows with faults planted, and its intervals."""

import base64
import json

import numpy
import pytest

from helpers import COURSE_ROOT
from tests.scripts import measuring_script

FOLDER = COURSE_ROOT / "measurements"


tasks, quality = measuring_script("quality_tasks"), measuring_script("quality_rows")
DESIGN, SHA = quality.read_design(), quality.design_of()
ROWS = FOLDER / "quality_rows.jsonl"


def made_up(right=None, seeds=(0, 1, 2), task="facts"):
    """Whole rows of one task by the design: every search, and every arm's runs, of made-up hits."""
    right = right or {}
    found = []
    for number, arm in enumerate(DESIGN["tasks"][task]["arms"]):
        for rate in quality.rates(DESIGN, task, arm):
            loss = abs(numpy.log(rate / quality.rates(DESIGN, task, arm)[number % 4])) + 0.5
            for seed in DESIGN["tasks"][task]["search_seeds"]:
                found.append(one_row(task, "search", arm, seed, rate, 0.5, loss))
        rate = quality.rates(DESIGN, task, arm)[number % 4]
        found += [one_row(task, "runs", arm, seed, rate, right.get(arm, 0.5), 0.5) for seed in seeds]
    return found


def one_row(task, phase, arm, seed, rate, right, loss):
    rows = tasks.rows_of_task(task, phase)
    count, settings = len(rows.score), DESIGN["tasks"][task]
    hits = numpy.random.default_rng([seed, count]).random(count) < right  # of one seed the same rows in each arm
    nats = numpy.full(count, loss, dtype="<f2")
    bits = "".join("01"[int(hit)] for hit in hits)
    before = dict.fromkeys(quality.BEFORE, 1.0) if phase == "runs" else {}
    return before | {
        "phase": phase, "task": task, "arm": arm, "seed": seed, "learning_rate": rate, "rows": count,
        "steps": settings["steps"], "batch": settings["batch"], "rows_sha256": rows.sha256, "design_sha256": SHA,
        "score": float(hits.mean()), "hits": f"{int(bits, 2):0{count // 4}x}", "loss": float(nats.astype(float).mean()),
        "tokens": count, "nats": base64.b64encode(nats.tobytes()).decode(), "trained_parameters": len(arm),
        "machine": "a machine", "versions": {"torch": "2"}, "python": "3", "date": "2026-11-26", "compute": "float32",
    }  # fmt: skip


def test_what_is_held_out_is_neither_learned_nor_used_to_choose_a_rate():
    for task, settings in DESIGN["tasks"].items():
        search, runs = (tasks.rows_of_task(task, part) for part in ("search", "runs"))
        asked = [{json.dumps(row) for row in rows} for rows in (runs.learn, runs.score, search.learn, search.score)]
        assert not asked[1] & (asked[0] | asked[2] | asked[3])
        assert len(asked[1]) == len(runs.score) >= (400 if settings["model"] == "bundled" else 240)
        assert not set(settings["seeds"]) & set(settings["search_seeds"])
    form = tasks.rows_of_task("form", "runs")
    learned, scored = ({row["group"] for row in rows} for rows in (form.learn, form.score))
    assert not learned & scored  # whole entities


def test_every_invented_fact_is_learned_in_two_ways_and_asked_in_three_others():
    rows = tasks.rows_of_task("facts", "runs")
    for of, ways in ((rows.learn, 2), (rows.score, 3)):
        facts = sorted((row["group"], row["output"]) for row in of)
        assert all(sorted(set(facts)) == facts[way::ways] for way in range(ways))
    assert {row["output"] for row in rows.learn} == {row["output"] for row in rows.score}
    assert len({row["output"] for row in rows.learn}) > 80  # there is little to guess
    corpus = tasks.text("bundled").casefold().split()
    assert not set(corpus) & {country.casefold() for country, _ in tasks.invented("runs")}


def test_the_design_has_five_comparisons_of_arms_that_differ_in_one_thing():
    assert [quality.verdict(*interval, DESIGN["margin"]) for interval in ((-0.01, 0.01), (0.03, 0.05))] == [
        "equivalent",
        "different",
    ]
    assert len(DESIGN["comparisons"]) == 5
    for one in DESIGN["comparisons"]:
        arm, other = (DESIGN["arms"][one[name]] for name in ("arm", "other"))
        if "full" not in arm and "full" not in other:
            assert sum(arm.get(name) != other.get(name) for name in ("rank", "bits", "rslora", "dora")) == 1
    shape = json.loads((COURSE_ROOT / "assets" / "base_model" / "config.json").read_text(encoding="utf-8"))
    hidden, between = shape["hidden_size"], shape["intermediate_size"]
    keys = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    attention = 4 * hidden + 2 * (hidden + keys)
    everywhere = DESIGN["arms"]["lora"]["rank"] * (attention + 3 * (hidden + between))
    assert 0.98 < DESIGN["arms"]["attention"]["rank"] * attention / everywhere <= 1


def test_rows_that_are_true_to_the_design_have_no_fault():
    assert quality.faults(made_up(), DESIGN, SHA) == []


def flip(row):
    row["hits"] = ("e" if row["hits"][0] == "f" else "f") + row["hits"][1:]


PLANTED = {
    "its hits say": (lambda row: row.update(score=row["score"] + 0.01), flip),
    "its rows say": (lambda row: row.update(loss=row["loss"] * 1.01),),
    "its rate is": (lambda row: row.update(learning_rate=2e-3),),
    "it has": (lambda row: row.update(steps=row["steps"] + 1), lambda row: row.update(batch=8)),
    "other rows": (lambda row: row.update(rows_sha256="0"),),
    "measured by design": (lambda row: row.update(design_sha256="0"),),
    "its seed is not": (lambda row: row.update(seed=99),),
    "a try of the script": (lambda row: row.update(smoke=True),),
    "2 times": (lambda row: row.update(seed=1),),
    "a hit for each row": (lambda row: row.update(hits=row["hits"] + "0"),),
    "is missing": (lambda row: row.update(versions={}), lambda row: row.pop("date")),
    "no such arm": (lambda row: row.update(arm="none"),),
    "loss_before is from": (lambda row: row.update(loss_before=1.1),),
    "trained_parameters is": (lambda row: row.update(trained_parameters=1),),
    "tokens is": (lambda row: row.update(tokens=row["tokens"] + 1),),
}


@pytest.mark.parametrize(("said", "plant"), [(said, plant) for said, many in PLANTED.items() for plant in many])
def test_a_false_row_is_noticed(said, plant):
    rows = made_up()
    plant(next(row for row in rows if (row["phase"], row["arm"], row["seed"]) == ("runs", "nf4", 0)))
    assert any(said in fault for fault in quality.faults(rows, DESIGN, SHA))


def test_a_search_that_would_have_chosen_another_rate_is_noticed():
    rows = made_up()
    searched = [row for row in rows if (row["phase"], row["arm"]) == ("search", "nf4")]
    best = min(searched, key=lambda row: row["loss"])
    best.update(one_row("facts", "search", "nf4", best["seed"], best["learning_rate"], 0.5, 9.0))
    assert any("runs facts nf4" in fault and "its rate is" in fault for fault in quality.faults(rows, DESIGN, SHA))


def test_an_arm_has_no_rate_before_its_search_is_over():
    rows = made_up()
    assert quality.chosen_rate(rows, DESIGN, "facts", "lora") == quality.rates(DESIGN, "facts", "lora")[1]
    rows.remove(next(row for row in rows if (row["phase"], row["arm"]) == ("search", "lora")))
    assert quality.chosen_rate(rows, DESIGN, "facts", "lora") is None


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-0.01, 0.01), "equivalent"),
        ((0.001, 0.01), "different, by less than the margin"),
        ((0.001, 0.03), "different"),
        ((-0.03, -0.001), "different"),
        ((-0.01, 0.03), "cannot tell"),
    ],
)
def test_what_an_interval_allows_to_say(interval, said):
    assert quality.verdict(*interval, 0.02) == said


def test_equal_arms_are_equivalent_and_a_planted_difference_turns_the_verdict():
    verdicts = {}
    for right in (0.5, 0.7):
        found = quality.compare(made_up({"nf4": right}), DESIGN)
        verdicts[right] = {one["name"]: one for one in found if one["task"] == "facts"}
    headline = "QLoRA beside full fine-tuning"
    assert verdicts[0.5][headline]["verdict"] == "equivalent"
    assert verdicts[0.7][headline]["verdict"] == "different"
    assert verdicts[0.7][headline]["low"] < 0.2 < verdicts[0.7][headline]["high"]
    assert "different" in quality.spoken(verdicts[0.7][headline])


def test_the_interval_is_that_of_drawing_seeds_and_groups_one_by_one():
    rows = made_up({"nf4": 0.6})
    found = quality.difference(rows, DESIGN, "facts", "nf4", "full")
    apart = numpy.stack([
        quality.of_runs(rows, "facts", "nf4", quality.hits_of)[seed]
        - quality.of_runs(rows, "facts", "full", quality.hits_of)[seed] for seed in (0, 1, 2)
    ])  # fmt: skip
    names = numpy.array([row["group"] for row in tasks.rows_of_task("facts", "runs").score])
    places, chance = [numpy.flatnonzero(names == name) for name in sorted(set(names))], numpy.random.default_rng(5)
    means = []
    for _ in range(3000):
        chosen = numpy.concatenate([places[i] for i in chance.integers(len(places), size=len(places))])
        means.append(apart[chance.integers(3, size=3)][:, chosen].mean())
    low, high = numpy.quantile(means, (0.025, 0.975))
    assert found["difference"] == pytest.approx(apart.mean())
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.004)


def test_hits_are_read_as_they_were_written():
    row = one_row("facts", "runs", "nf4", 3, 1e-3, 0.3, 0.5)
    assert quality.hits_of(row).mean() == row["score"]
    assert quality.hits_of({"hits": "08", "rows": 6}).tolist() == [0, 0, 0, 0, 1, 0]


@pytest.mark.skipif(not ROWS.exists(), reason="the arms have not been measured yet")
def test_the_measured_rows_are_whole_and_true_to_the_design():
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    assert quality.faults(rows, DESIGN, SHA) == []
