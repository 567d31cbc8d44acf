"""Lesson 00: its plain lines run without the course, each verdict notices its fault, and its words are in the glossary."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers import COURSE_ROOT, doctor
from helpers.course import disk as course
from helpers.lesson import session
from helpers.memory import GPUS, RunSpec, predict
from helpers.models import BUNDLED_MODEL, PRESETS
from helpers.models.presets import AUTO_CHAT, CHAT_PRESETS
from tests.cells import Finished, stored, tagged
from tests.places import place
from tests.places.hub import Hub

LESSON = course.find_lesson("00")
NOTEBOOK = course.to_notebook(LESSON)
CELLS = NOTEBOOK.cells
CODE = [one.source for one in CELLS if one.cell_type == "code"]
COPIED = [one.source for one in CELLS if "copy" in one.metadata.get("tags", [])]
DATA = COURSE_ROOT / "assets" / "instructions" / "train.jsonl"
ANSWERS = ["Minsk", "oink", "guilty"]


def cell(tag: str) -> str:
    return tagged(NOTEBOOK, tag).source


def step(number: int) -> str:
    """The cell to copy of a step; each begins with its number."""
    return next(source for source in COPIED if source.startswith(f"# Step {number}:"))


def exercise(number: int) -> str:
    """The cell that a learner fills in."""
    return next(source for source in CODE if f'check("00.{number}"' in source)


# --- the plain lines, taken out of the course ----------------------------------------------------------------------


def block_of_ones_own(word: str) -> str:
    """The one block of Python in the prose that holds a word, as the lesson says to write it at home."""
    prose = "\n".join(one.source for one in CELLS if one.cell_type == "markdown")
    blocks = re.findall(
        r"^( *)```python\n(.*?)^\1```", prose.partition("### Take it home")[2], re.DOTALL | re.MULTILINE
    )
    (found,) = [block for _, block in blocks if word in block]
    return textwrap.dedent(found)


def names_of_ones_own() -> str:
    return block_of_ones_own("base = ")


def assigned(source: str) -> set[str]:
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def script(before: str = "", cells=COPIED, **values) -> str:
    """The cells to copy as one script, with names as the lesson has them for a notebook of one's own, and these put in."""
    own = [f"{name} = {value!r}" for name, value in values.items()]
    told = "print(json.dumps({'before': before, 'after': after, 'dtype': str(dtype), 'base': base, 'prompt': rows[0]['prompt'],"
    told += " 'trained': sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad})}))"
    return "\n".join([before, names_of_ones_own(), *own, *cells, "import json", told])


# The environment of the tests has the course installed: there it is refused, as if it were not.
REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "helpers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def run_script(text: str, folder: Path, python=sys.executable, **surroundings) -> dict:
    """What a script says in its last line, run in a folder of its own with nothing of the course on its path."""
    (folder / "mine.py").write_text(text, encoding="utf-8")
    around = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COURSE_"))}
    around |= {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder / "home")} | surroundings
    packages = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place != str(COURSE_ROOT)]
    around |= {"PYTHONPATH": os.pathsep.join(filter(None, packages))}
    done = subprocess.run([str(python), "mine.py"], capture_output=True, text=True, cwd=folder, env=around, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cells_to_copy_are_some_seventy_numbered_lines_that_name_nothing_of_the_course():
    assert [source.partition(":")[0] for source in COPIED] == [f"# Step {n}" for n in range(1, len(COPIED) + 1)]
    lines = [line for source in COPIED for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert 65 <= len(lines) + len(COPIED) < 75
    assert not re.search(r"helpers|\brun\.|verdict|record\(|COURSE", "\n".join(COPIED))


def test_the_five_names_are_told_as_the_notebook_sets_them():
    own = assigned(names_of_ones_own())
    assert own == assigned(cell("names")) | {"seed"}
    assert PRESETS["qwen2.5-0.5b"].shape == CHAT_PRESETS[AUTO_CHAT].shape
    assert CHAT_PRESETS[AUTO_CHAT].hub_id in names_of_ones_own()


def test_pasted_where_the_course_is_not_they_train_the_bundled_model(tmp_path):
    values = {"base": str(BUNDLED_MODEL), "data": str(DATA), "steps": 40, "rate": 3e-3}
    said = run_script(script(REFUSE, **values), tmp_path)
    assert said["after"] == ANSWERS
    assert not set(said["before"]) & set(ANSWERS)
    assert said["trained"] == ["torch.float32"]
    assert (tmp_path / "my_adapter" / "adapter_model.safetensors").is_file()


def test_the_refusal_of_the_course_is_really_at_work(tmp_path):
    with pytest.raises(AssertionError, match="No module named 'helpers'"):
        run_script(f"{REFUSE}\nimport helpers", tmp_path)


def test_pasted_as_they_stand_they_fetch_a_chat_model_from_the_hub_and_use_its_template(tmp_path):
    hub_id = CHAT_PRESETS[AUTO_CHAT].hub_id
    with Hub(tmp_path / "hub") as hub:
        hub.folder(hub_id).mkdir(parents=True)
        for file in BUNDLED_MODEL.iterdir():
            place.link(str(file), str(hub.folder(hub_id) / file.name))
        template = "{% for m in messages %}<s>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
        (hub.folder(hub_id) / "chat_template.jinja").write_text(template)
        write_csv(tmp_path / "questions.csv")
        said = run_script(script(REFUSE, WITH_A_CSV, steps=2), tmp_path, **hub.environment)
        assert hub.asked(r"GET /storage/.*model\.safetensors")
    assert said["base"] == hub_id  # as it is told to the learner
    assert said["prompt"].endswith("?\nAnswer:\n")
    assert not said["prompt"].startswith("<s>")  # the tokenizer puts it there


WITH_A_CSV = [block_of_ones_own("load_dataset") if source.startswith("# Step 6:") else source for source in COPIED]


def write_csv(file: Path) -> None:
    """The bundled examples as somebody's spreadsheet, with a row that has no answer."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    asked = [(f"{row['instruction']} {row['input']}".strip(), row["output"]) for row in rows]
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("question", "answer"), *asked, ("Who knows?", " "), ("None of it?", "None")])


def test_a_csv_of_ones_own_trains_and_the_adapter_is_there_tomorrow(tmp_path):
    write_csv(tmp_path / "questions.csv")
    said = run_script(script(REFUSE, WITH_A_CSV, base=str(BUNDLED_MODEL), steps=40, rate=3e-3), tmp_path)
    assert said["after"] == ANSWERS
    again = [REFUSE, names_of_ones_own(), f"base = {str(BUNDLED_MODEL)!r}", step(1), step(2)]
    ask = block_of_ones_own("print(ask(")
    again += [block_of_ones_own("load_adapter"), step(3), step(4), ask, "import json"]
    said = run_script(
        "\n".join([*again, ask.replace("print(ask(", "print(json.dumps(ask(").replace("))", ")))")]), tmp_path
    )
    assert said == ANSWERS[0]


SETTINGS = """
import json
names = ("max_length", "learning_rate", "gradient_accumulation_steps", "per_device_train_batch_size", "max_steps")
found = {"r": lora_config.r, "lora_alpha": lora_config.lora_alpha, "target_modules": asked, "optim": settings.optim.value}
print(json.dumps(found | {name: getattr(settings, name) for name in names}))
"""


def run_sheet(code: str, folder: Path) -> dict:
    """What the settings of the cheat sheet's code are in the end, run for two steps where the course is not."""
    write_csv(folder / "questions.csv")
    own = f"\nbase, steps = {str(BUNDLED_MODEL)!r}, 2\n\n# Step 1:"  # no network here, and little time
    code = code.replace("\n# Step 1:", own, 1).replace(
        "trainer = SFT", "asked = lora_config.target_modules\ntrainer = SFT"
    )
    return run_script(REFUSE + code + SETTINGS, folder)


def test_the_code_on_the_cheat_sheet_runs_as_it_stands_and_its_table_names_its_settings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(COURSE_ROOT / "site"))
    import cheat_sheet

    found = run_sheet(cheat_sheet.steps(), tmp_path)
    assert (tmp_path / "my_adapter" / "adapter_model.safetensors").is_file()
    said = cheat_sheet.said(cheat_sheet.steps()) | {"max_steps": 2}
    assert {name: said[name] for name in found} == found
    shown = [code for _, code, _ in cheat_sheet.settings()]
    assert shown[:-1] == [f"{found[name]:,}" if isinstance(found[name], int) else str(found[name]) for name in (
        "r", "lora_alpha", "target_modules", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "optim",
        "learning_rate")]  # fmt: skip


def test_a_name_that_the_cheat_sheet_does_not_set_stops_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(COURSE_ROOT / "site"))
    import cheat_sheet

    with pytest.raises(AssertionError, match="name 'seed' is not defined"):
        run_sheet(cheat_sheet.steps().replace("steps, rate, seed = 60, 2e-4, 0", "steps, rate = 60, 2e-4"), tmp_path)


@pytest.mark.parametrize(
    ("answers", "taken"),
    [
        (["4", "", "9"], ["4", "9"]), (["None", "NA", ""], ["None", "NA"]),
        ([" 7 ", "  ", "007"], ["7", "007"]), (["1.50", "True", "2"], ["1.50", "True", "2"]),
    ],
)  # fmt: skip
def test_numbers_and_words_like_none_are_answers_and_empty_cells_are_not(tmp_path, monkeypatch, answers, taken):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f" Question {number}?,{answer}\n" for number, answer in enumerate(answers))
    Path("questions.csv").write_text(f"question,answer\n{rows}", encoding="utf-8-sig")
    names = {"prompt_for": "<{}>".format, "data": "questions.csv"}
    exec(block_of_ones_own("load_dataset"), names)
    assert [row["completion"] for row in names["rows"]] == taken
    assert names["rows"][0]["prompt"] == "<Question 0?>"


def test_the_rows_of_exercise_4_go_to_the_trainer_as_its_solution_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("questions.csv").write_text('question,answer\n"One, or two?",two\n', encoding="utf-8-sig")
    names = {"prompt_for": "<{}>".format, "data": "questions.csv", "check": lambda *given: None}
    exec(block_of_ones_own("csv.DictReader"), names)
    lines = LESSON.read_text(encoding="utf-8").partition("put three lines in place of step 6")[2].partition("(Excel")[0]
    exec("\n".join(re.findall(r"`([^`]+)`", lines)), names)
    assert list(names["rows"]) == [{"prompt": "<One, or two?>", "completion": "two"}]


def test_what_to_install_at_home_is_what_the_lines_import_in_the_tested_versions():
    line = block_of_ones_own("%pip")
    required = (COURSE_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    told = re.findall(r'"([^"]+)"', line)
    assert set(told) <= set(required)
    imported = set(re.findall(r"^(?:from|import) (\w+)", "\n".join(COPIED), re.MULTILINE)) - {"os", "torch"}
    assert {name.split(">")[0] for name in told} == imported | {"bitsandbytes", "accelerate"}


class Tokenizer:
    """A chat model's tokenizer, of which only what stands in front of a text matters."""

    bos_token = "<s>"

    def __init__(self, chat_template, adds):
        self.chat_template, self.adds = chat_template, adds

    def __call__(self, text):
        return {"input_ids": [1] * self.adds}

    def decode(self, ids):
        return self.bos_token * len(ids)

    def apply_chat_template(self, chat, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return self.chat_template + chat[0]["content"]


@pytest.mark.parametrize(
    ("template", "adds", "prompt"),
    [("<s>user ", True, "user Why?"), ("<s>user ", False, "<s>user Why?"), ("user ", True, "user Why?")],
    ids=["both put it in front, as Llama's", "the template alone, as SmolLM2's", "the tokenizer alone"],
)
def test_a_text_begins_with_one_mark_of_the_beginning_at_most(template, adds, prompt):
    names = {"tokenizer": Tokenizer(template, adds)}
    exec(step(3), names)
    assert names["prompt_for"]("Why?") == prompt


@pytest.mark.long
def test_pasted_into_a_fresh_environment_with_the_requirements_alone_they_train(tmp_path):
    if not place.index_answers():
        pytest.skip("no package index answers")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    place.link_distribution("torch", place.site_packages(tmp_path / "venv"), besides=set())
    files = [str(COURSE_ROOT / name) for name in ("constraints.txt", "requirements.txt")]
    place.pip(tmp_path / "venv", "-c", files[0], "-r", files[1])
    values = {"base": str(BUNDLED_MODEL), "data": str(DATA), "steps": 40, "rate": 3e-3}
    said = run_script(script(**values), tmp_path, tmp_path / "venv" / "bin" / "python")
    assert said["after"] == ANSWERS


# --- each verdict, and the fault that it notices -------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Finished(NOTEBOOK, tmp_path_factory.mktemp("run"))


def test_all_verdicts_of_the_lesson_are_tried_below():
    said = re.findall(r'verdict\(\s*"([^"]+)"', "\n".join(CODE))
    assert said == ["a fresh adapter changes no answer", "no example holds one of these words"] + [
        "no answer was right before, and all are after", "peft's layer computes what the one line computes",
        "of the three, QLoRA alone fits a T4", "no check of the doctor fails: the lessons can run here",
    ]  # fmt: skip


def test_an_adapter_that_does_not_start_at_zero_is_noticed(finished):
    load, fresh = step(2), cell("fresh")
    build = step(7).replace("r=16,", "r=16, init_lora_weights=False,")
    names = finished.run(load)
    with pytest.raises(AssertionError, match="fresh adapter"):
        exec("\n".join([step(3), step(4), build, fresh]), names)


def test_an_example_about_what_is_asked_is_noticed(finished):
    rows = [*finished["rows"], {"prompt": "Which sound does the pig make?", "completion": "oink"}]
    with pytest.raises(AssertionError, match="no example holds"):
        finished.again("judged", rows=rows)
    with pytest.raises(AssertionError, match="no example holds"):  # an answer among the completions tells as much
        finished.again("judged", rows=[*finished["rows"], {"prompt": "Name a city.", "completion": "Minsk"}])


def test_the_base_model_knew_the_answers_and_not_where_to_stop(finished):
    assert [said.split("\n")[0] for said in finished["knew"]] == ANSWERS
    assert all("\n" in said for said in finished["knew"])


def test_the_words_that_are_looked_for_are_those_of_the_questions_and_their_answers(finished):
    assert finished["right"] == ANSWERS
    assert all(word in question for word, question in zip(finished["words"], finished["questions"], strict=True))


def test_the_model_is_the_same_on_a_gpu_and_its_examples_end_with_the_token_that_the_text_names(finished):
    assert course.lesson_parameters(LESSON)["model_id"] == "bundled"
    ends = {finished["tokenizer"].decode(row["input_ids"][-1:]) for row in finished["trainer"].train_dataset}
    assert ends == {"</s>"}
    assert "here `</s>`, which means the end" in LESSON.read_text(encoding="utf-8")
    assert finished["largest_B"] == 0


def test_little_is_learned_in_the_second_half_as_the_text_says(finished):
    losses = [row["loss"] for row in finished["trainer"].state.log_history if "loss" in row]
    fell = losses[0] - losses[-1]
    assert len(losses) == 4
    assert losses[1] - losses[-1] < 0.1 * fell


@pytest.mark.parametrize("after", [["Minsk", "oink", "ponies"], ["Minsk\n", "oink", "guilty"]])
def test_an_answer_that_stayed_wrong_or_does_not_stop_is_noticed(finished, after):
    with pytest.raises(AssertionError, match="all are after"):
        finished.again("judged", after=after)


def test_an_answer_that_was_right_before_is_noticed(finished):
    with pytest.raises(AssertionError, match="all are after"):
        finished.again("judged", before=["Minsk", "ponies", "ponies"])


@pytest.mark.parametrize(("right", "wrong"), [("alpha=32", "alpha=16"), ("A, B,", "A, 0 * B,")])
def test_another_formula_than_peft_s_is_noticed(finished, right, wrong):
    source = cell("formula")
    assert right in source
    finished.run(source)
    with pytest.raises(AssertionError, match="peft's layer"):
        finished.run(source.replace(right, wrong))


def test_a_model_that_fits_a_t4_in_other_ways_is_noticed(finished):
    source = f"{cell('to-scale')}\n{cell('fits')}"
    with pytest.raises(AssertionError, match="QLoRA alone"):
        finished.run(source, seven_b=PRESETS["qwen2.5-1.5b"].shape)


def test_a_check_that_fails_is_noticed(finished, monkeypatch):
    broken = doctor.Finding("packages", doctor.FAIL, "trl is missing", "install it")
    monkeypatch.setattr(doctor, "problems", lambda: [broken])
    with pytest.raises(AssertionError, match="no check of the doctor fails"):
        finished.again("doctor")
    monkeypatch.setattr(doctor, "problems", list)
    finished.again("doctor")


def test_it_learned_and_saved_where_later_lessons_do_not_look(finished):
    assert session._current.found["train_loss"] < 1
    folder = Path(finished["adapter"])
    assert (folder / "adapter_model.safetensors").is_file()
    assert folder != finished["run"].adapter


def test_rank_4_comes_out_as_the_check_has_it(finished, capsys):
    from helpers.lesson.exercises.l00 import TRAINED_WITH_R_4

    names = finished.run(exercise(2))
    assert names["came_out"] == TRAINED_WITH_R_4
    solution = re.search(r"```python\n(guess = .*?)```", LESSON.read_text().replace("\n# ", "\n"), re.DOTALL)[1]
    exec(solution, names)
    assert capsys.readouterr().out.splitlines()[-1] == "Exercise 00.2: right."


def test_who_fits_where_is_what_the_figure_shows(finished):
    from helpers.lesson.exercises.l00 import FITTING

    fits = {
        card: next(
            way for way in ("full fine-tuning", "LoRA", "QLoRA") if finished["totals"][way] < GPUS[name].total_bytes
        )
        for card, name in {"T4": "t4", "24 GB": "l4", "80 GB": "a100-80gb"}.items()
    }
    assert {card: way.lower() for card, way in fits.items()} == FITTING
    states_in_bfloat16 = finished["totals"]["full fine-tuning"] - 4 * finished["n"]
    assert states_in_bfloat16 < GPUS["a100-80gb"].total_bytes  # as the solution of exercise 5 says


def test_the_form_that_exercise_6_repairs_spoils_every_answer(finished):
    names = finished.run(exercise(6))
    said = [names["complete"](names["their_asking"](question)).strip() for question in names["questions"]]
    assert not set(said) & set(ANSWERS)


@pytest.mark.parametrize("number", [3, 6])
def test_the_stored_notebook_does_not_give_an_exercise_away(number):
    (shown,) = [one for one in stored("00").cells if f'check("00.{number}"' in one.source and one.cell_type == "code"]
    assert "put your answer in place of the dots" in shown.outputs[-1]["text"]


def test_what_the_text_says_of_other_recipes_is_so(finished):
    config, t4 = finished["seven_b"], GPUS["t4"].total_bytes
    common = {"batch_size": 4, "load_dtype": "float16", "compute_dtype": "float16", "checkpoint_every": 0}
    common["lora_dropout"] = 0.0  # peft's default, and step 7 names none
    kept = [predict(config, RunSpec(quant_type=quant, **common), "t4") for quant in (None, "nf4")]
    assert all(17.5e9 < run.passing_bytes < 19.5e9 and run.peak_allocated > t4 for run in kept)
    full, n = finished["totals"]["full fine-tuning"], finished["n"]
    assert 4 * n / full == pytest.approx(1 / 3)  # float32 averages to bfloat16
    assert 6 * n / full == pytest.approx(1 / 2)  # to 8 bits
    assert 2 * n > 0.95 * t4  # "all but fills a T4"
    assert 0.3 < finished["frozen_nf4"] / (2 * n) < 0.4  # "to about a third"


# --- the figures, from data -----------------------------------------------------------------------------------------


def test_the_matrices_are_drawn_to_scale():
    from helpers.plots import diagrams

    (ax,) = diagrams.lora({"one": (256, 512), "two": (4096, 4096)}, 32, 64).axes
    boxes = [(p.get_width(), p.get_height(), p.get_facecolor()) for p in ax.patches]
    y, w, b, a, x = boxes[:5]
    assert w[0] / w[1] == pytest.approx(512 / 256)
    assert b[0] / b[1] == pytest.approx(32 / 256)
    assert a[1] / a[0] == pytest.approx(32 / 512)
    assert (y[1], x[1]) == pytest.approx((w[1], w[0]))
    assert boxes[7][0] == boxes[0][0] == diagrams.THIN  # a strip that would be thinner than a hairline
    assert w[2] != b[2] == a[2]


def test_bars_are_as_long_as_what_they_stand_for():
    from helpers.plots import diagrams

    held = {"frozen weights": 5e9, "trained weights": 1e9, "activations": 2e9}
    (ax,) = diagrams.to_scale({"this": held, "that": {"gradients": 3e9}}, {"card": 6e9}, "title").axes
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert max(ends) == 8
    said = {text.get_text() for text in ax.texts}
    assert said >= {"8.0 GB, 1.0 of it for the adapter", "3.0 GB", "card\n6.0", "5.0", "2.0"}
    assert [line.get_xdata()[0] for line in ax.lines] == [6]


# --- head and exercises ---------------------------------------------------------------------------------------------


def test_the_minutes_of_the_head_are_those_of_the_exercises():
    text = LESSON.read_text(encoding="utf-8")
    each = re.findall(r"^# \*\*\d\.\*\* \*[A-Z][a-z, ]+\*, (\d+) minutes, (•{1,3})\.", text, re.MULTILINE)
    assert len(each) == 6
    told = int(re.search(r"exercises at the end \| (\d+) minutes", text)[1])
    assert told == 5 * -(-sum(int(minutes) for minutes, _ in each) // 5)
