"""Files of a class that does not exist: twelve learners whose files are whole, and more than thirty that are not."""

import datetime
import json

from helpers import course
from helpers.workshop.class_files import LARGEST_FILE, recorded_at_the_end

TODAY = datetime.date.today().isoformat()
VERSIONS = {"torch": "2.13.0", "transformers": "5.24.0", "trl": "1.16.0", "peft": "0.21.2"}
CHECKS = ("python", "packages", "disk", "network", "gpu")


def check(name: str, status: str = "OK", what: str = "as it should be", cure: str = "", **more) -> dict:
    return {"check": name, "status": status, "what": what, "cure": cure, "seconds": 0.1} | more


def doctor(*changed: dict, python: str = "3.12.1", versions: dict = VERSIONS, **more) -> dict:
    """A doctor's file, with some of its lines changed."""
    lines = {name: check(name) for name in CHECKS} | {line["check"]: line for line in changed}
    worst = max((line["status"] for line in lines.values()), key=("OK", "WARN", "FAIL").index)
    about = {"system": "Linux 6.18", "processor": "x86_64", "python": python, "cores": 2, "versions": versions}
    return {"worst": worst, "date": f"{TODAY} 09:00 UTC", "checks": list(lines.values()), "about": about} | more


def record(
    stem: str, held: int = 5, of: int = 5, data: str = "the bundled instructions, 1600 to learn", **found
) -> dict:
    """A record of a lesson that was finished."""
    run = {
        "lesson": stem,
        "machine": "CPU, no GPU",
        "python": "3.12.1",
        "date": TODAY,
        "versions": VERSIONS,
        "data": data,
    }
    run["source_sha256"] = course.source_hash(course.find_lesson(stem))
    verdicts = [{"claim": f"claim {n}", "holds": n < held} for n in range(of)]
    return dict.fromkeys(recorded_at_the_end(stem), "a secret row") | {"verdicts": verdicts, "run": run} | found


def training(before: float, after: float, loss_before: float, loss_after: float, **more) -> dict:
    scores = {"exact_match_before": before, "exact_match_after": after}
    losses = {"heldout_loss_before": loss_before, "heldout_loss_after": loss_after}
    return record("03_t4_training", **scores, **losses, **more)


OUT_OF_DISK = check("disk", "FAIL", "0.12 GB free where runs go", "free some, or set COURSE_RUNS to another disk")
OFFLINE = check("network", "WARN", "the hub cannot be reached (timed out)", "check the network or the proxy")
OLD_PYTHON = check("python", "FAIL", "Python 3.9.7 is too old", "install Python 3.11, 3.12 or 3.13")

# file: object. Each of these is whole; twelve learners by name, and one whose file has no name in it.
WHOLE = {
    "ana.json": doctor(),
    "ana_00_start_here.json": record("00_start_here"),
    "ana_03_t4_training.json": training(0.0, 0.992, 9.05, 0.014),
    "Ben/doctor.json": doctor(OFFLINE),
    "Ben/runs/default/00_start_here.json": record("00_start_here", held=4),
    "Ben/runs/default/03_t4_training (1).json": training(0.0, 0.97, 9.05, 0.021),
    "cem.json": doctor(OUT_OF_DISK, OFFLINE),
    "dora.json": {
        "class_file": 1,
        "doctor": doctor(),
        "lessons": {
            "00_start_here": record("00_start_here"),
            "01_quantization_basics": record("01_quantization_basics"),
            "03_t4_training": training(0.0, 0.5, 9.05, 1.4),
        },
    },
    "eva.json": doctor(OLD_PYTHON, OFFLINE, python="3.9.7"),
    "frank.json": doctor(OUT_OF_DISK, versions=VERSIONS | {"trl": "0.9.6"}),
    "Gül Öztürk.json": doctor(),
    "Gül Öztürk_02_memory_math.json": record("02_memory_math"),
    "hal_03_t4_training.json": training(0.02, 0.31, 3.1, 2.2, data="mine.csv, 90 to learn and 10 held out"),
    "ines.json": doctor(),
    "ines_03_t4_training.json": training(0.0, 0.0, 9.05, 9.4),
    "jo.json": doctor(versions=VERSIONS | {"torch": "2.11.0"}),
    "jo_00_start_here.json": {k: v for k, v in record("00_start_here").items() if k != "doctor"},  # begun
    "doctor (2).json": doctor(),
    "lea.json": doctor(
        check("gpu", what="Tesla T4, 14.56 GiB"), about={"colab": "r", "gpu": "Tesla T4", "python": "3.13.0"}
    ),
}
NAMES = {
    "ana",
    "Ben",
    "cem",
    "dora",
    "eva",
    "frank",
    "Gül Öztürk",
    "hal",
    "ines",
    "jo",
    "lea",
    "unnamed: doctor (2).json",
}


def without(said: dict, *names: str) -> dict:
    return {key: value for key, value in said.items() if key not in names}


def text(said) -> bytes:
    return json.dumps(said).encode()


def of_run(**changed) -> dict:
    said = record("00_start_here")
    return said | {"run": {k: v for k, v in (said["run"] | changed).items() if v is not None}}


TOMORROW = (datetime.date.today() + datetime.timedelta(days=9)).isoformat()
STEM = "_00_start_here.json"
# file: (bytes, words that the fault must have). Broken, cut off, of another kind, or forged.
BROKEN = {
    "b01.json": (b"", "empty"),
    "b02.json": (b" \n\t", "empty"),
    "b03.json": (text(doctor())[:200], "cut off"),
    "b04.json": (b"\x00\x01\x02" * 50, "cut off"),
    "b05.json": (b"\xff\xfe" + b"\xd8" * 31, "cut off"),
    "b06.json": (b"[" * 100_000, "cut off"),
    "b07.json": (b'{"a":' * 100_000, "cut off"),
    "b08.json": (b'{"run": ' + b"9" * 5_000 + b"}", "cut off"),
    "b09.json": (b" " * (LARGEST_FILE + 1), "MB"),
    "b10.json": (b"[1, 2, 3]", "list"),
    "b11.json": (b"null", "cut off|NoneType"),
    "b12.json": (b"OK    python           Python 3.12.1\nFAIL  disk   full", "doctor --json"),
    "b13.txt": (b"OK    python           Python 3.12.1", "no .json"),
    "b14.zip": (b"PK\x03\x04", "unpack"),
    "b15.ipynb": (b"{}", "no .json"),
    "b16.json": (b"{}", "neither"),
    "b17.json": (text({"name": "qlora-course", "version": "0.2.0"}), "neither"),
    "f01.json": (text(doctor(worst="OK") | {"checks": doctor(OUT_OF_DISK)["checks"]}), "worst line says FAIL"),
    "f02.json": (text(doctor(checks=[])), "no checks"),
    "f03.json": (text(doctor(checks="all fine")), "no checks"),
    "f04.json": (text(doctor() | {"checks": doctor()["checks"][:2]}), "did not come to: disk, network"),
    "f05.json": (text(doctor() | {"checks": [check("python", "GREAT")]}), "lines is none"),
    "f06.json": (text(doctor() | {"checks": [*doctor()["checks"], "OK"]}), "lines is none"),
    "f07.json": (text(doctor() | {"checks": [*doctor()["checks"], check("disk", what=7)]}), "lines is none"),
    "f08.json": (text(doctor(date=TOMORROW)), "yet to come"),
    "f09.json": (text(doctor(date="yesterday")), "no date"),
    "f10.json": (text(without(doctor(), "date")), "no date"),
    "r01" + STEM: (text(training(0.0, 1.7, 9.0, 0.1)), "exact_match_after .*1.7"),
    "r02" + STEM: (text(training(0.0, 1.0, 9.0, -0.1)), "heldout_loss_after .*-0.1"),
    "r03" + STEM: (text(training(0.0, 1.0, 9.0, float("nan"))), "heldout_loss_after .*nan"),
    "r04" + STEM: (text(training(0.0, 1.0, float("inf"), 0.1)), "heldout_loss_before .*inf"),
    "r05" + STEM: (text(training(0.0, "100%", 9.0, 0.1)), "exact_match_after .*100%"),
    "r06" + STEM: (text(training(0.0, True, 9.0, 0.1)), "exact_match_after .*True"),
    "r07" + STEM: (text(of_run(machine=None, versions=None)), "lacks .*machine, versions"),
    "r08" + STEM: (text(record("00_start_here") | {"run": "yes"}), "run holds str"),
    "r09" + STEM: (text(record("00_start_here") | {"verdicts": [{"claim": "all", "holds": "yes"}]}), "verdicts"),
    "r10" + STEM: (text(record("00_start_here") | {"verdicts": 12}), "verdicts"),
    "r11" + STEM: (text(of_run(date=TOMORROW)), "yet to come"),
    "r12.json": (text(of_run(lesson="../../etc/passwd")), "none of this course"),
    "r13.json": (text(of_run(lesson=None)), "which lesson"),
    "r14.json": (text(of_run(lesson=["00_start_here"])), "none of this course"),
    "c01.json": (text({"class_file": 1, "lessons": []}), "lessons holds list"),
    "c02.json": (text({"class_file": 1, "lessons": {"00_start_here": 5}}), "00_start_here holds int"),
    "c03.json": (text({"class_file": 1, "doctor": "fine"}), "doctor holds str"),
    "<script>alert(1)</script>.json": (b"{", "cut off"),
}  # fmt: skip
# A path would be no single file; a slash cannot stand in a name.
BROKEN = {name.replace("</", "<"): said for name, said in BROKEN.items()}


def write_class(folder, *, broken: bool = True) -> None:
    """Write all of it into a folder."""
    for name, said in WHOLE.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text(said))
    for name, (data, _) in BROKEN.items() if broken else ():
        (folder / name).write_bytes(data)
