"""The scripts that measure rows of real lengths: the rows, what is made of the steps, and processes that fail or hang."""

import json
import re
import statistics
import sys

import pytest

from helpers import COURSE_ROOT
from helpers.memory import predict
from helpers.records import read_rows
from tests.scripts import measuring_script

ml = measuring_script("measure_lengths")
quality = measuring_script("lengths_quality")
unsloth = measuring_script("compare_unsloth")


def test_lengths_are_the_distribution_and_the_same_each_time():
    found = ml.lengths()
    assert found == ml.lengths()
    assert found != sorted(found)
    assert (len(found), statistics.median(found)) == (256, 95)
    assert min(found) == 40
    assert 380 < max(found) <= 510
    padded = sum(4 * max(found[i : i + 4]) for i in range(0, 256, 4))
    assert 0.3 < 1 - sum(found) / padded < 0.42


def test_every_way_has_sixteen_rows_a_step_and_says_its_longest_batch():
    for name, way in ml.WAYS.items():
        assert way.packing or way.batch * way.accumulation == ml.PER_STEP, name
        rows, tokens = way.longest()
        assert rows * tokens == (2048 if way.packing or way.batch == 4 else way.batch * 512), name
        told = way.config()
        assert (told["max_length"] is None) == way.padding_free, name
    for name, (rows, way, *_) in (unsloth.OURS | unsloth.THEIRS).items():
        assert way.packing or way.batch * way.accumulation == (8 if rows["one_length"] else 16), name


def step(epoch, tokens, seconds, busy=None, shapes=0, rows=16):
    made = {"epoch": epoch, "tokens": tokens, "computed": 2 * tokens, "step_s": seconds, "shapes": shapes, "rows": rows}
    return made | ({"busy_s": busy} if busy else {})


def test_steps_that_warm_up_or_record_are_left_out():
    first = [step(1, 100, 9.0), step(1, 100, 9.0), step(1, 100, 1.0), step(1, 100, 2.0), step(1, 100, 0.5, shapes=1)]
    second = [step(2, 100, 1.0, busy=0.5), step(2, 300, 1.0, busy=1.5), step(2, 100, 1.0, busy=7.0, shapes=1)]
    found = ml.summary(first + second)
    assert found["tokens_per_clock_s"] == statistics.median([100, 50])
    assert found["tokens_per_busy_s"] == 400 / 2
    assert (found["clock_steps"], found["busy_steps"], found["padding"], found["rows_per_step"]) == (2, 2, 0.5, 16)
    assert ml.summary([step(1, 100, 1.0)])["tokens_per_busy_s"] is None


def test_a_pass_that_missed_a_row_is_an_error():
    rows = {"input_ids": [[1] * 100, [1] * 50]}

    class Rows(dict):
        def __len__(self):
            return 2

    whole = [step(1, 100, 1, rows=1), step(1, 50, 1, rows=1), step(2, 150, 1, rows=2)]
    assert ml.went_over_all(whole, Rows(rows))
    with pytest.raises(AssertionError, match=r"pass 2 went over \(2, 149\)"):
        ml.went_over_all([*whole[:2], step(2, 149, 1, rows=2)], Rows(rows))


def test_a_process_that_fails_or_hangs_leaves_a_row_and_the_rest_goes_on(tmp_path, capsys):
    measured = {"peak_allocated": 0, "tokens_per_busy_s": 2, "tokens_per_clock_s": 1, "padding": 0, "longest": None}
    row = json.dumps({"name": "right", "rules": "t4", "error": None, "measured": measured})
    programs = {
        "right": f"import sys; sys.stdin.readline(); open(sys.argv[1], 'w').write({row!r})",
        "crash": "raise SystemExit('no such kernel')",
        "hang": "import time; time.sleep(60)",
    }
    names = ["crash", "hang", "right"]
    jobs = [{"name": name, "rules": "t4", "result": str(tmp_path / f"{name}.json")} for name in names]
    out = tmp_path / "rows.jsonl"

    def command(job):
        return [sys.executable, "-c", programs[job["name"]], job["result"]]

    ml.in_turn(jobs, command, out, timeout=8, seconds=1000)
    rows = {row["name"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert list(rows) == names
    assert "no such kernel" in rows["crash"]["error"]
    assert "given up after 8 seconds" in rows["hang"]["error"]
    assert rows["right"]["error"] is None
    assert ml.have(out) == {("t4", "right")}
    assert len(capsys.readouterr().out.splitlines()) == 3
    ml.in_turn(jobs, command, out, timeout=8, seconds=-1)  # no time: nothing is begun
    assert len(out.read_text().splitlines()) == 3


def test_quality_is_compared_seed_by_seed():
    rows = [
        {"way": way, "seed": seed, "heldout_loss": {"task": 1 + seed + more}}
        for way, more in (("padded", 0.0), ("sorted", 0.1), ("packed", 0.0))
        for seed in range(5)
    ]
    rows[-1]["heldout_loss"]["task"] += 0.5
    lines = quality.compare(rows)
    assert "+0.1000 beside padded (95%: +0.1000 to +0.1000)" in lines[1]
    assert "+0.1000 beside padded (95%: -0.1776 to +0.3776)" in lines[2]
    assert len(lines) == 3


def test_unsloth_is_shown_both_ways_round(tmp_path, capsys):
    def row(name, busy, clock, error=None):
        return {
            "name": name,
            "rules": "t4",
            "error": error,
            "measured": {"tokens_per_busy_s": busy, "tokens_per_clock_s": clock},
        }

    rows = [row("ours, real", 300, 100), row("Unsloth, real", 100, 150), row("Unsloth, real, kept", 200, 50)]
    out = tmp_path / "rows.jsonl"
    out.write_text("\n".join(map(json.dumps, [*rows, row("Unsloth, real, packed", 900, 900, "out of memory")])))
    unsloth.show(out)
    busy, clock = capsys.readouterr().out.splitlines()
    assert "ours 300 tokens/s, Unsloth, real, kept 200: ours is 1.50 times as fast, Unsloth 0.67 times" in busy
    assert "ours 100 tokens/s, Unsloth, real 150: ours is 0.67 times as fast, Unsloth 1.50 times" in clock


def test_unsloths_folder_is_seen_by_its_processes_alone(tmp_path):
    job = {"side": "Unsloth", "scratch": "/scratch", "budget": 2048}
    found = unsloth.environment(job, str(tmp_path))
    assert found["PYTHONPATH"] == str(tmp_path)
    assert found["UNSLOTH_TOKEN_BUDGET"] == "2048"
    assert unsloth.environment(job | {"side": "ours"}, str(tmp_path)) == {"HF_HUB_OFFLINE": "1"}


# --- what was measured -----------------------------------------------------------------------------------------------


def quality_rows(model):
    rows = read_rows(COURSE_ROOT / "measurements" / "lengths_quality.jsonl")
    return [row for row in rows if row["model"] == model]


@pytest.mark.parametrize("model", ["bundled", "chat"])
def test_each_way_was_measured_with_five_seeds_on_the_same_rows(model):
    rows = quality_rows(model)
    assert sorted((row["way"], row["seed"]) for row in rows) == sorted((w, s) for w in quality.WAYS for s in range(5))
    assert {(row["rows"], row["steps"]) for row in rows if row["way"] != "packed"} == {(quality.ROWS, 60)}
    assert len({tuple(row["heldout_loss_before"].values()) for row in rows}) == 1
    assert len({row["device"] for row in rows}) == 1


def test_rows_without_padding_learn_what_padded_rows_do():
    loss = {(row["way"], row["seed"]): row["heldout_loss"]["instructions"] for row in quality_rows("bundled")}
    apart = {name: max(abs(loss[name, s] - loss["padded", s]) for s in range(5)) for name in quality.WAYS}
    assert apart["padding-free"] < 1e-6
    assert min(apart["rebalanced"], apart["sorted"], apart["packed"]) > 1e-3, "these take other rows in a step"
    for task in ("instructions", "messages"):
        loss = {(row["way"], row["seed"]): row["heldout_loss"][task] for row in quality_rows("chat")}
        assert all(abs(loss["padding-free", s] - loss["padded", s]) < 1e-3 for s in range(5)), task
        assert max(loss["padded", s] for s in range(5)) - min(loss["padded", s] for s in range(5)) > 5e-3, (
            "seeds differ more"
        )


@pytest.mark.parametrize("model", ["bundled", "chat"])
def test_the_tables_of_losses_in_the_readme_are_what_the_rows_say(model):
    readme = (COURSE_ROOT / "measurements" / "README.md").read_text(encoding="utf-8")
    for line in quality.compare(quality_rows(model)):
        task, way, mean = re.search(r"^(\w+) +(.*?) +(\d\.\d{4}) nats", line).groups()
        interval = re.search(r"95%: (.*)\)", line)
        about = f"{way} | " if model == "bundled" else f"{task}, {way} | "
        assert f"| {about}{mean} | {interval[1] + ' ' if interval else ''}|" in readme


def intervals(model) -> dict[tuple[str, str], tuple[float, float, float]]:
    """{(task, way): (mean difference from padded rows, and its 95% interval)}, in nats a token."""
    found = {}
    for line in quality.compare(quality_rows(model)):
        if "95%" in line:
            task, way = line.split()[:2]
            mean, low, high = (float(n) for n in re.findall(r"[+-]\d\.\d{4}", line))
            found[task, way] = (mean, low, high)
    return found


def test_with_the_bundled_model_no_way_can_be_told_from_padded_rows():
    assert len(intervals("bundled")) == 4
    assert all(low <= 0 <= high for _, low, high in intervals("bundled").values())


def test_with_the_chat_model_sorted_and_packed_rows_learn_worse_and_the_lesson_says_by_how_much():
    found = intervals("chat")
    worse = {pair for pair, (_, low, _) in found.items() if low > 0}
    assert worse == {(task, way) for task in ("instructions", "messages") for way in ("sorted", "packed")}
    lesson = (COURSE_ROOT / "lessons" / "09_faster_and_larger.py").read_text(encoding="utf-8")
    mean = {pair: numbers[0] for pair, numbers in found.items()}
    said = "worse by {:.2f} nats per token on instructions, and by {:.2f} on messages"
    assert said.format(mean["instructions", "sorted"], mean["messages", "sorted"]) in lesson
    said = "worse by {:.2f} on instructions, and by {:.3f} on messages"
    assert said.format(mean["instructions", "packed"], mean["messages", "packed"]) in lesson


def speed_rows():
    return read_rows(COURSE_ROOT / "measurements" / "lengths_rows.jsonl")


def test_every_way_trained_every_token_or_says_why_not():
    for row in speed_rows():
        if row["error"]:
            assert "recorded" in row["name"], "only CUDA graphs need more than a T4's memory"
            assert "out of memory" in row["error"]
        else:
            assert row["measured"]["checked"]
            assert row["measured"]["peak_allocated"] < row["memory_cap_gib"] * 2**30
            assert row["measured"]["rows_per_step"] == (16 if row["name"] != "packed" else pytest.approx(16, abs=3))


def test_padding_free_takes_less_than_half_of_the_gpu_time_of_padding():
    rates = {(row["rules"], row["name"]): row["measured"].get("tokens_per_busy_s") or 0 for row in speed_rows()}
    for rules in ("t4", "all"):
        best = max((rate, name) for (of, name), rate in rates.items() if of == rules)
        assert best[1] == "padding-free"
        assert 2.1 < best[0] / rates[rules, "padded"] < 2.4
    assert rates["t4", "padding-free, nested"] > 0.9 * rates["t4", "padding-free"], "the same kernel"


def test_rows_in_one_batch_do_not_see_each_other_on_a_gpu():
    for row in speed_rows():
        if "padding-free" in row["name"]:
            apart = row["measured"]["rows_apart"]
            assert apart["together"] < 0.01 < 1 < apart["as_one_text"]


def test_the_longest_batch_takes_what_was_predicted():
    measured = [row for row in speed_rows() if row["measured"] and row["name"] != "packed"]  # packs need a mask besides
    assert len(measured) >= 8
    for row in measured:
        limit, longest = row["measured"]["max_tokens"], row["measured"]["longest"]
        at_once = (1, limit) if limit else longest["shape"]
        found = ml.predicted(row["config"], row["spec"], *at_once, predict).peak_allocated
        assert found == pytest.approx(longest["peak_allocated"], rel=0.01), row["name"]


def test_the_table_of_speeds_in_the_readme_is_what_the_rows_say():
    readme = (COURSE_ROOT / "measurements" / "README.md").read_text(encoding="utf-8")
    for row in speed_rows():
        found = row["measured"]
        if found:
            rates = f"{found['tokens_per_busy_s']:,.0f} | {found['tokens_per_clock_s']:,.0f} | {found['padding']:.0%}"
            assert f"| {row['name']} | {row['rules']} | {rates} | {found['peak_allocated'] / 1e9:.2f} |" in readme


# --- beside Unsloth --------------------------------------------------------------------------------------------------


def unsloth_rows():
    return read_rows(COURSE_ROOT / "measurements" / "unsloth_rows.jsonl")


def test_both_sides_were_measured_in_each_setting_on_the_day_they_are_dated():
    rows = unsloth_rows()
    assert sorted((row["rules"], row["name"]) for row in rows) == sorted(
        (rules, name) for rules in ("t4", "all") for name in unsloth.OURS | unsloth.THEIRS
    )
    assert {row["date"] for row in rows} == {"2026-11-27"}
    for row in rows:
        assert row["error"] is None
        assert row["measured"]["checked"], "each pass went over every token of every row"
        assert row["measured"]["peak_allocated"] < row["memory_cap_gib"] * 2**30
        if row["name"] in unsloth.THEIRS:
            assert row["attention"] == {"xformers": True, "flash": False, "chosen": "xformers"}
            assert row["versions"]["unsloth"] == "2026.10.9"


def test_both_sides_do_the_same_work():
    first = {(row["rules"], row["name"]): row["measured"]["losses"][0] for row in unsloth_rows()}
    for rules in ("t4", "all"):
        for kind in ("one", "real"):
            same = [
                loss
                for (of, name), loss in first.items()
                if of == rules and f", {kind}" in name and "packed" not in name
            ]
            assert max(same) - min(same) < 1e-3, "the same rows, the same weights, another implementation"


def test_the_comparison_in_the_readme_is_what_the_rows_say(capsys):
    readme = (COURSE_ROOT / "measurements" / "README.md").read_text(encoding="utf-8")
    unsloth.show(COURSE_ROOT / "measurements" / "unsloth_rows.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    for line in lines:
        rules, kind, measure = re.match(r"(\w+) +(\w+) +(busy GPU time|whole steps)", line).groups()
        ours, name, theirs, ratio, other = re.search(
            r"ours ([\d,]+) tokens/s, (.*) ([\d,]+): ours is (\S+) times as fast, Unsloth (\S+) times", line
        ).groups()
        assert f"| {kind} | {rules} | {measure} | {ours} | {theirs} ({name}) | {ratio} | {other} |" in readme
