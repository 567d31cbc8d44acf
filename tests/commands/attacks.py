"""Bad values and bad words, generated: run by test_attacks.py in a Python of its own, which must import nothing heavy.

    python tests/commands/attacks.py values 300     bad values for the parameters of every lesson, through begin()
    python tests/commands/attacks.py words 300      bad words for every command, through main()
    python tests/commands/attacks.py files 300      bad files of settings for `train`, through main(), with and without --dry-run

Prints one JSON object: how many were tried and refused, what was not refused as it should be, and what was imported.
"""

import collections
import contextlib
import datetime
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
from helpers.commands import _job  # noqa: E402
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


FLAGS = ("double_quant", "checkpointing", "cuda_graphs", "plain", "padding_free")


def bad_value(name: str):
    """A strategy of values that the parameter `name` cannot have."""
    if name in PATHS:
        return PATHS[name]
    strategy = no_choice if name in CHOICES else no_number
    return strategy.filter(lambda v: not isinstance(v, bool)) if name in FLAGS else strategy


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
    "run": ["?", "3 -p rank ?", "3 -p ? 4", "99 --name ?"],
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


# --- files of settings ------------------------------------------------------------------------------------------

# What the file may say, and no training can go by: beside each parameter's own bad values, what TOML has and Python has not.
moment = st.one_of(st.dates(), st.times(), st.datetimes())
of_toml = st.one_of(
    moment, st.just({}), st.dictionaries(st.text(max_size=3), st.integers(), min_size=1, max_size=2),
    st.lists(moment, min_size=1),
    st.sampled_from([[[]], [{}], {"a": {"b": {"c": 1}}}, 2**63, -(2**63) - 1, 16**5000, [16**5000], {"a": 16**5000}]),
)  # fmt: skip
no_text = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
OWN_BAD = {
    "way": st.one_of(
        st.booleans(), st.integers(), st.lists(st.text(max_size=3)), no_text, st.sampled_from(["DDP", "One", "dp", ""])
    ),
    "gpus": st.one_of(
        st.booleans(), st.integers(max_value=0), st.integers(min_value=17), st.floats(), no_text, st.lists(st.integers())
    ),
    "layers": st.one_of(
        st.booleans(), st.integers(), st.floats(), no_text, st.just([]), st.lists(st.booleans(), min_size=1),
        st.lists(st.integers(max_value=0), min_size=1), st.lists(st.integers(), min_size=3), st.lists(st.floats(), min_size=1),
    ),
    "gpu_gib": st.one_of(
        st.booleans(), no_text, st.floats(max_value=0.09), st.floats(min_value=10_000), st.integers(max_value=0),
        st.lists(st.floats()), st.just(float("nan")), st.integers(min_value=10_000),
    ),
}  # fmt: skip
# Each of these at least once.
ALWAYS = (True, [], {}, datetime.date(1979, 5, 27), 16**5000, -(2**63), float("nan"), float("inf"), "x" * 9_000)
NOT_TOML = [
    b"rank = ", b"rank = 4\nrank = 4", b"rank 4", b"[rank", b"rank = 4 alpha = 8", b"rank = [1, 2", b'way = "ddp', b"= 4",
    b"rank.r = 4", b"[[layers]]", b"[rank]\nr = 4", b"{}", b"---\nrank: 4", b'{"rank": 4}', b"rank = 0x",
    b"rank = 1979-13-45",
    b"gpus = +-2", b"\xff\xfer\0a\0n\0k\0", b"rank = 4\0", b'output_dir = "C:\\runs"', b"a = " + 20_000 * b"[",
    b"a" + 20_000 * b".a" + b" = 1", b"rank = " + 9_000 * b"9", b"# only a remark", b"", 1_000_001 * b"#",
    900_000 * b"x" + b" = 1",
]  # fmt: skip
not_toml = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(min_size=1, max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
GOOD = {"model_id": "bundled", "way": "ddp", "gpus": 2}


def in_toml(value) -> str | None:
    """A value as TOML; None for what TOML cannot say."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if abs(value) < 10**4000 else hex(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        whole = value.encode("utf-8", "ignore").decode() == value
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if whole else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    inside = None
    if isinstance(value, list):
        inside = [in_toml(one) for one in value]
    elif isinstance(value, dict):
        inside = [(text := in_toml(one)) and f"{in_toml(str(name))} = {text}" for name, one in value.items()]
    if inside is None or None in inside:
        return None
    return f"[{', '.join(inside)}]" if isinstance(value, list) else f"{{{', '.join(inside)}}}"


def tree() -> dict:
    """All that lies here but the file of settings, with what is in the files."""
    found = sorted(
        place for place in Path().rglob("*") if place.name != "config.toml" and ".hypothesis" not in place.parts
    )
    return {str(place): place.read_bytes() if place.is_file() else None for place in found}


def files(examples: int) -> Tally:
    """Every key of a file of settings with values that it cannot have, wrong TOML, and keys that there are not."""
    tally = Tally()
    Path("out/adapter").mkdir(parents=True)  # of an earlier training, which must stay as it is
    Path("out/adapter/adapter_model.safetensors").write_text("kept")
    Path("out/train.json").write_text("kept")
    Path("a file").write_text("kept")
    Path("empty").mkdir()
    before = tree()

    def attack(text: bytes, kind: str, about: str) -> None:
        Path("config.toml").write_bytes(text)
        for words in (["config.toml"], ["config.toml", "--dry-run"]):
            tally.begin()
            out, err = io.StringIO(), io.StringIO()
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    status = main(["train", *words])
            except BaseException:
                tally.wrong.append(f"{about}: {traceback.format_exc()[-400:]}")
                continue
            said = err.getvalue().removesuffix("\n")
            if status != 2 or out.getvalue() or not said.startswith("python -m helpers train: "):
                tally.wrong.append(f"{about}: {status} {out.getvalue()[:200]!r} {said[:200]!r}")
            tally.one_line(said, about, kind)
            tally.end(about)
            if tree() != before:
                tally.wrong.append(f"{about}: files were written or lost")

    def with_value(name: str):
        def one(value):
            written = in_toml(value)
            if written is not None:
                good = GOOD | {"output_dir": "out" if tally.tried % 4 else "new/out"} | {name: None}
                lines = [f"{n} = {in_toml(v)}" for n, v in good.items() if v is not None]
                attack("\n".join([*lines, f"{name} = {written}"]).encode(), name, f"{name} = {written:.80}")

        return one

    for name in (*_job.PARAMETERS, *_job.OWN):
        bad = OWN_BAD[name] if name in OWN_BAD else bad_value(name)
        bad = st.one_of(bad, bad, of_toml if name != "layers" else of_toml.filter(lambda v: not isinstance(v, list)))
        for value in ALWAYS:
            if not (value is True and name in FLAGS):
                with_value(name)(value)
        generated(bad, max(3, examples // len(_job.FILE_RULES)))(with_value(name))
    for place in ("a file", "a file/below", "empty/below/" + "z" * 300, "/proc/x", "/dev/null", "/dev/null/x"):
        with_value("output_dir")(place)
    known = [word.upper() for word in _job.FILE_RULES] + [f"{word} " for word in _job.FILE_RULES]
    unknown = st.one_of(no_text, st.sampled_from(known), st.sampled_from(HOSTILE)).filter(
        lambda word: word not in _job.FILE_RULES and in_toml(word)
    )
    generated(unknown, examples // 6)(
        lambda word: attack(f"{in_toml(word)} = 1".encode(), "unknown keys", f"key {word!r:.80}")
    )
    attack(9_000 * b"x" + b" = 1", "unknown keys", "a long key")
    for text in NOT_TOML:
        attack(text, "no TOML", f"file {text!r:.80}")
    generated(not_toml, examples // 6)(lambda text: attack(text, "no TOML", f"file {text!r:.80}"))
    return tally


if __name__ == "__main__":
    limit = 2 * 10**9  # whoever reads /dev/zero to its end gets no further
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    {"values": values, "words": words, "files": files}[sys.argv[1]](int(sys.argv[2])).show()
