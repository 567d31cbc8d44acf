"""What keeps the house: make's targets, workflows, forms, pins, markers and canary say of each other what is so."""

import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

import conftest
from helpers import COURSE_ROOT
from helpers.packages.lists import pinned_versions
from tests import upstream

GITHUB = COURSE_ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [file for file in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if file.name != "config.yml"]
PYTHONS = ("3.11", "3.12", "3.13")


def text_of(name: str) -> str:
    return (COURSE_ROOT / name).read_text(encoding="utf-8")


def parsed(file) -> dict:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


PROJECT = tomllib.loads(text_of("pyproject.toml"))


def names(paths) -> list[str]:
    return [path.stem for path in paths]


# --- make --------------------------------------------------------------------------------------------------------


def targets(makefile: str) -> list[str]:
    """The targets that somebody may type; a file that make makes has a dot in its name."""
    return re.findall(r"^([a-z]+):", makefile, re.MULTILINE)


def faults_of_makefile(makefile: str) -> list[str]:
    """What `make help`, .PHONY and the rules do not say alike."""
    told = re.findall(r"^([a-z]+):.*## \S", makefile, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    faults = [f"make help leaves out {name}" for name in targets(makefile) if name not in told]
    faults += [f".PHONY has {name} on one side only" for name in set(phony) ^ set(targets(makefile))]
    return faults + ([] if targets(makefile)[0] == "help" else ["make alone is not make help"])


def test_make_help_lists_every_target_once_and_is_what_make_alone_does():
    assert faults_of_makefile(text_of("Makefile")) == []
    said = [
        subprocess.run(["make", *words], capture_output=True, text=True, cwd=COURSE_ROOT) for words in ([], ["help"])
    ]
    assert said[0].stdout == said[1].stdout
    assert re.findall(r"^make (\w+) +\S", said[0].stdout, re.MULTILINE) == targets(text_of("Makefile"))


def test_a_target_without_words_is_noticed():
    assert faults_of_makefile("help: ## list\nnew:\n\techo\n.PHONY: help\n") == [
        "make help leaves out new",
        ".PHONY has new on one side only",
    ]


def test_the_same_pythons_are_named_everywhere():
    smallest, largest = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    assert [f"3.{minor}" for minor in range(int(smallest), int(largest))] == list(PYTHONS)
    assert f"(3, {smallest}) <= sys.version_info < (3, {largest})" in text_of("Makefile")
    assert "Python {}, {} or {}".format(*PYTHONS) in text_of("README.md")
    assert parsed(GITHUB / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == list(PYTHONS)
    assert f"--python-version {PYTHONS[0]}" in text_of("Makefile"), "make lock begins with the oldest"


# --- workflows ---------------------------------------------------------------------------------------------------


TO_PUBLISH = {
    "pages": "write",
    "id-token": "write",
}  # GitHub's pages: for the one job that runs nothing but deploy-pages


def may_publish(job: dict) -> bool:
    """Whether a job that has rights of its own has no more than it needs to publish what another job has built."""
    uses = [step.get("uses", "").partition("@")[0] for step in job["steps"]]
    return job["permissions"] == TO_PUBLISH and uses == ["actions/deploy-pages"]


def faults_of_workflow(workflow: dict) -> list[str]:
    """Rights beyond reading, actions that are not pinned, steps that call no target of make; jobs without an end."""
    faults = [] if workflow.get("permissions") == {"contents": "read"} else ["permissions are not contents: read alone"]
    called = []
    for name, job in workflow["jobs"].items():
        faults += [f"{name} has permissions of its own"] if "permissions" in job and not may_publish(job) else []
        faults += [] if "timeout-minutes" in job else [f"{name} has no timeout"]
        for step in job["steps"]:
            uses = step.get("uses", "actions/none@v0.0.0")
            if not re.fullmatch(r"actions/[\w-]+@([0-9a-f]{40}|v\d+\.\d+\.\d+)", uses):
                faults.append(f"{uses} is not pinned to a commit or a release")
            if uses.startswith("actions/checkout@") and step["with"].get("persist-credentials") is not False:
                faults.append("the checkout leaves its token behind")
            called += re.findall(r"^make ([a-z]+)", step.get("run", ""), re.MULTILINE)
    faults += [f"make {name} does not exist" for name in called if name not in targets(text_of("Makefile"))]
    return faults + ([] if called else ["no target of make is called"])


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_calls_make_with_pinned_actions_and_may_only_read(file):
    assert faults_of_workflow(parsed(file)) == []


def test_workflows_that_may_write_or_are_not_pinned_are_noticed():
    step = {"uses": "actions/checkout@v4", "with": {}, "run": "make everything"}
    job = {"permissions": {"contents": "write"}, "steps": [step]}
    assert faults_of_workflow({"permissions": "write-all", "jobs": {"job": job}}) == [
        "permissions are not contents: read alone",
        "job has permissions of its own",
        "job has no timeout",
        "actions/checkout@v4 is not pinned to a commit or a release",
        "the checkout leaves its token behind",
        "make everything does not exist",
    ]


@pytest.mark.parametrize(
    "job",
    [
        {"permissions": {"contents": "write"}, "steps": [{"uses": "actions/deploy-pages@v4.0.5"}]},
        {"permissions": TO_PUBLISH | {"contents": "write"}, "steps": [{"uses": "actions/deploy-pages@v4.0.5"}]},
        {"permissions": TO_PUBLISH, "steps": [{"run": "make site"}, {"uses": "actions/deploy-pages@v4.0.5"}]},
    ],
)
def test_a_job_that_publishes_may_do_nothing_else(job):
    assert not may_publish(job)
    faults = faults_of_workflow({"permissions": {"contents": "read"}, "jobs": {"job": job | {"timeout-minutes": 1}}})
    assert "job has permissions of its own" in faults


def test_there_is_a_workflow_for_each_habit_and_contributing_says_that_none_has_run():
    assert names(WORKFLOWS) == ["canary", "check", "links", "pages", "test"]
    scheduled = {file.stem for file in WORKFLOWS if "schedule" in parsed(file)[True]}  # YAML reads a bare `on` as true
    assert scheduled == {"canary", "links"}
    assert "have never run" in text_of("CONTRIBUTING.md")


# --- forms, citation, pre-commit -----------------------------------------------------------------------------------


def faults_of_form(form: dict) -> list[str]:
    """What an issue form lacks: GitHub's fields, ids that are told apart, and the doctor."""
    faults = [f"no {key}" for key in ("name", "description", "body") if not form.get(key)]
    parts = [part for part in form.get("body", []) if part["type"] != "markdown"]
    faults += [f"{p['type']}?" for p in parts if p["type"] not in ("input", "textarea", "dropdown", "checkboxes")]
    ids = [part.get("id") for part in parts]
    faults += ["two parts have one id, or none"] if len(set(ids)) < len(ids) or None in ids else []
    faults += [f"{part.get('id')} has no label" for part in parts if not part["attributes"].get("label")]
    doctor = [part for part in parts if part.get("id") == "doctor"]
    asked = doctor and "`python -m helpers doctor`" in doctor[0]["attributes"]["description"]
    return faults + ([] if asked else ["the doctor is not asked for"])


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_a_form_is_whole_and_asks_for_the_doctor(file):
    assert faults_of_form(parsed(file)) == []


def test_a_form_without_the_doctor_is_noticed():
    part = {"type": "text", "attributes": {}}
    assert faults_of_form({"name": "a", "body": [part]}) == [
        "no description",
        "text?",
        "two parts have one id, or none",
        "None has no label",
        "the doctor is not asked for",
    ]


def test_whoever_reports_what_does_not_run_must_give_the_doctor_and_says_where():
    required = {
        part["id"]: part.get("validations", {}).get("required")
        for part in parsed(GITHUB / "ISSUE_TEMPLATE" / "broken.yml")["body"]
        if "id" in part
    }
    assert required == dict.fromkeys(["where", "cell", "said", "doctor"], True)


def test_the_citation_is_of_the_version_and_the_licence_that_pyproject_has():
    citation = parsed(COURSE_ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert f"## {citation['version']}\n" in text_of("CHANGELOG.md")


def test_pre_commit_has_the_ruff_that_make_check_has():
    (repository,) = parsed(COURSE_ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["rev"] == "v" + pinned_versions()["ruff"]
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


# --- pins ----------------------------------------------------------------------------------------------------------

LOCKED = [line for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]


def faults_of_lock(lines: list[str]) -> list[str]:
    """Lines that are no pin, or that pin what torch brings along; requirements and extras that no line pins."""
    faults = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^;@/]+)?", line)]
    faults += [line for line in lines if re.match(r"nvidia-(?!ml-py)|cuda-|triton|setuptools", line)]
    pinned = {line.partition("==")[0]: line.split("==")[1].split()[0] for line in lines if "==" in line}
    for wanted in map(Requirement, upstream.wanted()):
        name = wanted.name.lower().replace("_", "-")
        if name not in pinned or not wanted.specifier.contains(pinned[name]):
            faults.append(f"{wanted} is not met: run make lock")
    return faults


def _holds_on_linux(line: str, python: str = PYTHONS[0]) -> bool:
    marker = line.partition(";")[2].strip()
    return not marker or Marker(marker).evaluate({"python_version": python, "python_full_version": f"{python}.99"})


def test_the_lock_pins_every_requirement_and_names_no_registry():
    assert faults_of_lock(LOCKED) == []
    header = "# This file was autogenerated by uv via the following command:\n#    make lock\n"
    assert text_of("constraints.txt").startswith(header)
    assert "//" not in text_of("constraints.txt")


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.org/simple",
        "trl @ https://example.org/trl.whl",
        "nvidia-cublas==1.0",
        "trl>=1.16",
        "peft==0.1",
    ],
)
def test_a_line_that_does_not_belong_into_the_lock_is_noticed(line):
    assert faults_of_lock([*LOCKED, line]) != []


def test_the_course_reads_the_lock_as_pip_does():
    for python in PYTHONS:
        held = [line.partition(";")[0].strip() for line in LOCKED if _holds_on_linux(line, python)]
        assert pinned_versions(python) == dict(pin.split("==") for pin in held), python


def test_a_version_that_readme_or_contributing_types_is_the_pinned_one():
    """Where a line has a date, it says what was measured or seen then, and stays."""
    pinned, typed = pinned_versions(), 0
    for name in ("README.md", "CONTRIBUTING.md"):
        for line in text_of(name).splitlines():
            if re.search(r"\b20\d\d-\d\d", line):
                continue
            for library, number in re.findall(
                rf"\b({'|'.join(pinned)})(?:==| )(\d+\.\d[\d.]*\d|\d+\.\d)\b", line, re.IGNORECASE
            ):
                typed += 1
                assert f"{pinned[library.lower()]}.".startswith(f"{number}."), f"{name}: {line}"
    assert typed, "the command that installs torch names its version"


# --- markers, canary -----------------------------------------------------------------------------------------------

# What starts a lesson, a notebook, a browser or an index's client, or loads the bundled model's weights.
HEAVY = "|".join(
    [
        r"run_lesson\(",
        r"execute_notebook",
        r"NotebookClient\(",
        r"page_after_running\(",
        r"ModelForCausalLM\.from_pretrained\(",
    ]
    + [rf'"-m", "{module}"' for module in ("papermill", "jupyterlab")]
)


@pytest.mark.parametrize("name", conftest.FAST)
def test_a_fast_test_runs_no_lesson_and_loads_no_model(name):
    (file,) = (COURSE_ROOT / "tests").rglob(f"{name}.py")
    text = file.read_text(encoding="utf-8")
    if name == "test_habits":
        text = text.partition("HEAVY = ")[0]
    assert not re.search(HEAVY, text), f"take {name} out of FAST in conftest.py"


def test_every_marker_is_registered_and_a_misspelt_one_stops_the_run():
    options = PROJECT["tool"]["pytest"]["ini_options"]
    registered = {line.partition(":")[0] for line in options["markers"]}
    given = set(re.findall(r'add_marker\("(\w+)"\)|get_closest_marker\("(\w+)"\)', text_of("conftest.py")))
    assert (
        registered
        == {name for pair in given for name in pair if name}
        == {"fast", "browser", "gpu", "long", "chat", "upstream"}
    )
    assert "--strict-markers" in options["addopts"]


def test_a_workaround_that_can_go_is_a_failure():
    assert conftest.what_can_go(True, "drop it", canary=False) == []
    with pytest.raises(pytest.fail.Exception, match="drop it"):
        conftest.what_can_go(False, "drop it", canary=False)


def test_a_workaround_that_can_go_is_news_for_the_canary(tmp_path):
    lines = ["def test_it(still_needed):", "    still_needed(False, 'drop it')", "    still_needed(True, 'keep it')"]
    (tmp_path / "test_new.py").write_text("\n".join(lines))
    words = ["-c", str(COURSE_ROOT / "pyproject.toml"), "-p", "conftest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    canary = os.environ | {"PYTHONPATH": str(COURSE_ROOT), "COURSE_CANARY": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True, env=canary)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"^can go: (.*) \(", done.stdout, re.MULTILINE) == ["drop it"]


def test_two_processes_share_files_never_tests_and_the_news_of_both_is_told(tmp_path):
    body = [
        "import os, time, pytest",
        "@pytest.mark.parametrize('n', range(4))",
        "def test_it(n, still_needed):",
        "    time.sleep(0.2)",
        "    still_needed(False, f'{__file__[-4]} in {os.environ[\"PYTEST_XDIST_WORKER\"]}')",
    ]
    for name in "abc":
        (tmp_path / f"test_{name}.py").write_text("\n".join(body))
    words = ["-c", str(COURSE_ROOT / "pyproject.toml"), "-p", "conftest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    split = re.search(r"(-n 2 .*) \$\(ARGS\)", text_of("Makefile"))[1].split()
    canary = os.environ | {"PYTHONPATH": str(COURSE_ROOT), "COURSE_CANARY": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", *split, *words], capture_output=True, text=True, env=canary)
    assert done.returncode == 0, done.stdout
    told = re.findall(r"^can go: (\w) in (gw\d) \(", done.stdout, re.MULTILINE)
    assert len(told) == 12
    assert len(set(told)) == 3  # each file in one process
    assert {process for _, process in told} == {"gw0", "gw1"}


def asked_for(tests: dict[str, str]) -> tuple[set[str], list[str]]:
    """(the names that still_needed(fault, "...: drop NAME") has, and where an assert says "drop" in its place)."""
    named, faults = set(), []
    for file, text in tests.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assert) and node.msg is not None and ": drop " in ast.unparse(node.msg):
                faults.append(f"{file}: {ast.unparse(node.msg)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "still_needed":
                named |= {name.rpartition(".")[2] for name in re.findall(r": drop ([\w.]+)", node.args[1].value)}
    return named, faults


def test_for_each_workaround_a_test_asks_whether_it_is_still_needed():
    files = [file for file in (COURSE_ROOT / "tests").rglob("test_*.py") if file.stem != "test_habits"]
    named, faults = asked_for({file.name: file.read_text(encoding="utf-8") for file in files})
    (source,) = COURSE_ROOT.glob("helpers/**/workarounds.py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    cures = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    assert faults == []
    assert cures - named == {"liger_layers"}  # no cure: it switches on what is optional
    assert "REFUSED_WHEN_OLDER" in named  # the cure that is made by installing


def test_a_workaround_asked_for_by_a_plain_assert_is_noticed():
    assert asked_for({"a": 'assert x, "TRL does it now: drop a_cure"'}) == (
        set(),
        ["a: 'TRL does it now: drop a_cure'"],
    )


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("trl>=1.16,<1.17", "trl>=1.16"),
        ("torch<3,>=2.6", "torch>=2.6"),
        ("dask[array]==2024.8", "dask[array]"),
        ("liger-kernel>=0.8.5,<1; platform_system == 'Linux'", "liger-kernel>=0.8.5; platform_system == 'Linux'"),
        ("jinja2", "jinja2"),
    ],
)
def test_the_canary_keeps_lower_bounds_and_markers_alone(line, left):
    assert upstream.without_upper_bound(line) == left


def test_the_canary_installs_all_that_is_required_and_nothing_holds_it_back():
    lines = [Requirement(line) for line in upstream.unbounded()]
    assert {"transformers", "pytest", "distributed", "liger-kernel", "hypothesis"} <= {line.name for line in lines}
    assert all(bound.operator == ">=" for line in lines for bound in line.specifier)
    canary = text_of("Makefile").partition("\ncanary:")[2].partition("\n\n")[0]
    assert "constraints" not in canary
    assert "COURSE_CANARY=1" in canary
