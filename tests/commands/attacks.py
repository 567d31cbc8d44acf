"""Bad values and bad words, generated: run by test_attacks.py in a Python of its own, which must import nothing heavy.

    python tests/commands/attacks.py values 300     bad values for the parameters of every lesson, through begin()
    python tests/commands/attacks.py words 300      bad words for every command, through main()

Prints one JSON object: how many were tried and refused, what was not refused as it should be, and what was imported.
"""

import collections
import contextlib
import io
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers import CourseError  # noqa: E402
from helpers.__main__ import FOLDER, main  # noqa: E402
from helpers.course import disk as course
from helpers.lesson import RULES  # noqa: E402
from helpers.lesson import session as results

HEAVY = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "matplotlib")

HOSTILE = [
    "../../../etc/passwd", "/etc/shadow", "/dev/zero", "/dev/null/x", "/proc/self/environ", "C:\\Windows\\System32",
    "\\\\host\\share", "; touch PLANTED", "$(touch PLANTED)", "`touch PLANTED`", "| touch PLANTED", "a && touch PLANTED",
    "'; DROP TABLE runs; --", "{{7*7}}", "%s%s%n", "${HOME}", "$HF_TOKEN", "<script>alert(1)</script>", "--help=1", "-",
    "\x1b[31mred", "two\nlines", "carriage\rreturn", "nul\0byte", "\u202eright-to-left", "\ud800", "\U0001f4a9", "ﷺ" * 80,
    "x" * 300, "y/" * 400, "~nobody-of-this-name", "file:///etc/passwd", "https://example.org/x", "owner/--bad--", "a/b/c",
    "None", "null", "nan", "inf", "-inf", "1e999", "0x10", "1_000", "٣", "½", "True;import os", "__import__('os')",
]  # fmt: skip


class Odd:
    """A value whose every method fails: what an object from somewhere else may do."""

    def __eq__(self, other):
        raise RuntimeError("no comparing")

    __hash__ = None

    def __repr__(self):
        return "Odd(\n)"


# No parameter takes any of these.
of_no_use = st.one_of(
    st.none(), st.binary(max_size=6), st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=2), st.integers()),
    st.tuples(), st.complex_numbers(), st.builds(Odd), st.builds(object), st.sets(st.integers(), max_size=2),
    st.sampled_from(["", " ", "\n\t", "\0", "a\0b", float, print]),
)  # fmt: skip
# No parameter that is a number takes any of these.
no_number = st.one_of(
    of_no_use, st.booleans(), st.integers(max_value=-1), st.integers(min_value=2**32), st.floats(max_value=-1e-9),
    st.floats(min_value=2.0**32), st.sampled_from([float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), 1e308]),
    st.text(max_size=12).filter(lambda text: text != "auto"), st.sampled_from(HOSTILE),
)  # fmt: skip
no_choice = st.one_of(no_number, st.integers(0, 31))  # nor does any that is one of a few
no_path = st.one_of(
    of_no_use, st.booleans(), st.integers(), st.floats(), st.sampled_from(HOSTILE),
    st.text(min_size=1, max_size=30).map(lambda text: f"no-such-folder/{text}/{text}"),
)  # fmt: skip
unwritable = st.sampled_from(
    ["/dev/null/x", "/proc/x", "/sys/x", "\0", "", " ", "/etc/passwd/x", "z" * 300, "q" * 5000]
)
PATHS = {
    "model_id": no_path,
    "dataset_id": no_path,
    "adapter_dir": no_path,
    "output_dir": st.one_of(of_no_use, unwritable),
}
CHOICES = {
    "optimizer",
    "plain",
    "report_to",
    "quant_type",
    "double_quant",
    "checkpointing",
    "cuda_graphs",
    "target_modules",
    "block_size",
}


def bad_value(name: str):
    """A strategy of values that the parameter `name` cannot have."""
    if name in PATHS:
        return PATHS[name]
    strategy = no_choice if name in CHOICES else no_number
    flags = ("double_quant", "checkpointing", "cuda_graphs", "plain")
    return strategy.filter(lambda v: not isinstance(v, bool)) if name in flags else strategy


ARGUMENTS = ("lesson", "large_model", "with_data")  # of begin itself


class Tally:
    def __init__(self):
        self.tried, self.refused, self.wrong, self.accepted = 0, collections.Counter(), [], 0
        self.heavy, self.loaded = {}, set()

    def begin(self) -> None:
        self.tried += 1
        self.loaded = set(sys.modules)  # what a word that was good loaded before is not held against the next

    def end(self, about: str) -> None:
        for module in set(HEAVY) & set(sys.modules) - self.loaded:
            self.heavy.setdefault(module, about)

    def one_line(self, text: str, about: str, kind: str) -> None:
        lines = [line for line in text.split("\n") if line]
        if len(lines) == 1 and len(text) < 1500 and "Traceback" not in text and text.isprintable():
            self.refused[kind] += 1
        else:
            self.wrong.append(f"{about}: {text[:200]!r}")

    def show(self) -> None:
        said = {"tried": self.tried, "refused": self.refused, "accepted": self.accepted, "heavy": self.heavy}
        print(json.dumps(said | {"wrong": self.wrong[:20], "planted": os.path.exists("PLANTED")}))


def generated(strategy, examples: int, seed_by=None):
    """Run a function on generated values: the same ones every time, none kept on disk."""
    quiet = settings(max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                     suppress_health_check=list(HealthCheck))  # fmt: skip

    def run(function):
        def one(value):
            function(value)

        quiet(given(strategy)(one))()

    return run


def attack_begin(tally: Tally, stem: str, given: dict, about: str) -> None:
    """begin() with one bad value must raise a CourseError of one line."""
    tally.begin()
    try:
        results.begin(stem, **given)
        tally.wrong.append(f"{stem} took {about}")
    except CourseError as error:
        tally.one_line(str(error), about, about.split(" = ")[0])
    except Exception:
        tally.wrong.append(f"{stem} {about}: {traceback.format_exc()[-300:]}")
    tally.end(about)


def values(examples: int) -> Tally:
    """Every parameter of every lesson with values that it cannot have; then names that no lesson has."""
    tally, lessons = Tally(), {p.stem: course.lesson_parameters(p) for p in course.lessons()}
    for stem, name in [(stem, name) for stem, has in lessons.items() for name in has]:
        attack_one(tally, stem, name, lessons[stem], examples // sum(map(len, lessons.values())))
    name = st.one_of(st.text(), st.sampled_from(HOSTILE)).filter(lambda n: n not in RULES and n not in ARGUMENTS)
    generated(name, examples // 6)(
        lambda n: attack_begin(tally, "03_t4_training", {n: 1}, f"unknown names = {n!r:.80}")
    )
    return tally


def attack_one(tally: Tally, stem: str, name: str, defaults: dict, examples: int) -> None:
    def attack(value):
        attack_begin(tally, stem, defaults | {name: value}, f"{name} = {value!r:.80}")

    attack(Odd())  # at least once each, whatever is drawn
    attack(None)
    generated(bad_value(name), max(3, examples))(attack)


# --- words of commands ------------------------------------------------------------------------------------------

word = st.one_of(
    st.sampled_from([*HOSTILE, "auto", "bundled"]), st.text(max_size=10), st.integers().map(str), st.floats().map(str)
)
lesson = st.one_of(st.sampled_from(["0", "3", "05"]), word)
name = st.one_of(st.sampled_from(sorted(RULES)), word)


def flat(*parts):
    return st.tuples(*parts).map(
        lambda lists: [w for part in lists for w in (part if isinstance(part, list | tuple) else [part])]
    )


def option(*flags):
    return st.one_of(
        st.just([]), st.tuples(st.sampled_from(flags), word).map(list), st.tuples(st.sampled_from(flags)).map(list)
    )


MEMORY_OPTIONS = [
    "--gpu",
    "--rank",
    "--batch-size",
    "--seq-len",
    "--quant-type",
    "--target-modules",
    "--optimizer",
    "--role",
]
pairs = st.lists(st.tuples(st.just("-p"), name, word), max_size=2).map(
    lambda found: [w for pair in found for w in pair]
)
grid = st.lists(st.one_of(word, st.tuples(name, word).map("=".join)), max_size=2)
predicted = st.one_of(st.just("mistral-7b"), word)
COMMANDS = {
    "run": flat(st.lists(lesson, max_size=2), pairs, option("--name", "-p", "--times=1")),
    "sweep": flat(lesson, grid, option("--name", "--engine", "--scheduler")),
    "memory": flat(st.sampled_from(["predict", "score", "guess"]), predicted, option(*MEMORY_OPTIONS), option(*MEMORY_OPTIONS)),
    "merge": flat(word, word, word, option("--base-weights", "--dtype", "--quant-type", "--no-such-option")),
    "train": flat(word, option("--dry-run", "--process", "--no-such-option")),
    "export": flat(word, word, option("--type", "--template", "--no-such-option")),
    "build": flat(lesson, st.just("--check"), option("--force=1", "--nothing")),
    "badges": flat(option("--repo", "--tag"), option("--repo", "--tag")),
    "doctor": flat(st.just("--seconds"), st.one_of(word, st.sampled_from(["-5", "0", "1e9"])), option("--json=1")),
    "install": flat(st.just("--dry-run"), word),
    "data": flat(st.just("look"), word, option("--columns", "--encoding", "--split", "--rows", "--tokens")),
    "explain": st.lists(word.filter(lambda w: w != "/dev/zero"), min_size=1, max_size=2),
}  # fmt: skip


# Where each hostile word is put at least once, in place of the question mark.
PLACES = {
    "run": ["?", "3 -p rank ?", "3 -p ? 4", "9 --name ?"],
    "sweep": ["? rank=4", "3 ?", "3 rank=?", "3 rank=0 --name ?"],
    "memory": ["predict ?", "score ?", "predict mistral-7b --rank ?", "predict mistral-7b --target-modules ?"],
    "merge": ["? ? ?", "bundled ? out", "bundled ? ?"],
    "export": ["? ?", "bundled ?", "? out.gguf"],
    "train": ["?", "? --dry-run", "no.toml --process ?"],
    "build": ["? --check"],
    "badges": ["--repo ?", "--tag ?"],
    "doctor": ["--seconds ?"],
    "install": ["--dry-run ?"],
    "data": ["?", "look ?", "look no.csv --columns ?", "look no.csv --tokens ?", "look no.csv --rows ?"],
    "explain": ["?"],
}


def harmless() -> None:
    """Words that turn out to be good must run nothing here and write nothing into the course."""
    from helpers.commands import badges, build, doctor, run, sweep
    from helpers.packages import setting_up as install

    def nothing_ran(lesson, folder, given, progress_bar=False):
        return {"lesson": lesson.stem, "seconds": 0.0, "error": None, "untrue": [], "notebook": folder / "none.ipynb"}

    run.run_lesson = nothing_ran
    sweep.run_here = lambda _, tasks: [sweep.run_point(*task) for task in tasks]
    sweep.run_on_dask = lambda address, tasks: (_ for _ in ()).throw(CourseError("no Dask in this test"))
    badges.move = badges.write_badges = build.execute = build.write = install.install_missing = lambda *words: None

    class Child:
        about, measured = {}, None

        def __init__(self, measure):
            pass

        def findings(self, deadline):
            return []

        def end(self):
            pass

    doctor.Child = Child


def words(examples: int) -> Tally:
    """Every command with words that are mostly bad; a command that nobody described here gets words that no command takes."""
    tally = Tally()
    harmless()
    present = sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))
    unknown = st.tuples(st.sampled_from(["--no-such-option", "--no-such-option=1"]), word).map(list)
    plan = {command: st.one_of(COMMANDS.get(command, unknown), unknown) for command in present}

    def attack(argv):
        tally.begin()
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(argv)
        except SystemExit as error:
            status = error.code
        except BaseException:
            tally.wrong.append(f"{argv!r:.200}: {traceback.format_exc()[-400:]}")
            return
        if status == 2:
            text = err.getvalue()
            shown = text.removesuffix("\n")
            if not shown.startswith("python -m helpers"):
                tally.wrong.append(f"{argv!r:.200}: {text[:200]!r}")
            tally.one_line(shown, f"{argv!r:.200}", argv[0] if argv[0] in present else "unknown commands")
            tally.end(f"{argv!r:.200}")
        else:
            tally.accepted += 1

    for command, places in PLACES.items():
        for place in places if command in present else []:
            for hostile in [*HOSTILE, "auto", "bundled"]:
                if (command, hostile) != ("explain", "/dev/zero"):  # it reads to the end, as it is told to
                    attack([command, *(hostile if w == "?" else w.replace("?", hostile) for w in place.split())])
    for command, strategy in plan.items():
        commanded = strategy.map(lambda rest, command=command: [command, *rest])
        generated(commanded, max(10, examples // (len(plan) + 1)))(attack)
    unknown_command = word.filter(lambda w: w not in present and w not in ("-h", "--help"))
    generated(unknown_command, examples // 10)(lambda w: attack([w or "?"]))
    return tally


if __name__ == "__main__":
    resource.setrlimit(
        resource.RLIMIT_DATA, (2 * 10**9, 2 * 10**9)
    )  # whoever reads /dev/zero to its end gets no further
    {"values": values, "words": words}[sys.argv[1]](int(sys.argv[2])).show()
