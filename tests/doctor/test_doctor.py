"""The doctor in bad surroundings, each really made: what it must say, with what cure, and what it must never show."""

import contextlib
import dataclasses
import http.server
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import types
from importlib.metadata import version

import pytest

from helpers import COURSE_ROOT
from helpers.commands import doctor as command
from helpers.doctor import examination, graphics, installed, network_access, resources
from helpers.doctor import findings as doctor
from helpers.packages import requirements
from tests.pace import unit_seconds
from tests.upstream import source_of

PLANTED = "hf_" + "PLANTED" * 5  # no real token


def ask(check: str, **environment) -> list[tuple[str, str, str]]:
    """Run one check in a Python of its own, in other surroundings; returns (status, what, cure) a line."""
    code = (
        "import json; from helpers.doctor import examination, examine; "
        f"print(json.dumps([vars(f) for f in examine(examination.{check})]))"
    )
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT)} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings
    )
    assert done.returncode == 0, done.stderr
    return [(f["status"], f["what"], f["cure"]) for f in json.loads(done.stdout)]


def call(*words, limits=None, **environment):
    """Run `python -m helpers doctor` as a person would, in other surroundings and within resource limits."""
    surroundings = os.environ | {"PYTHONPATH": str(COURSE_ROOT), "HF_HUB_OFFLINE": "1"} | environment
    start = (lambda: [resource.setrlimit(kind, (size, size)) for kind, size in limits.items()]) if limits else None
    line = [sys.executable, "-m", "helpers", "doctor", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=COURSE_ROOT, env=surroundings, preexec_fn=start)


# --- a healthy machine ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy():
    begun = time.monotonic()
    done = call("--json", "--seconds", "120", HF_TOKEN=PLANTED)  # patient: the machine may be busy with other tests
    return done, time.monotonic() - begun


def test_on_a_good_machine_nothing_fails_and_it_takes_a_few_seconds(healthy):
    done, seconds = healthy
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert said["worst"] in ("OK", "WARN")
    assert seconds / unit_seconds() < 1500  # 15 s where a unit takes 10 ms
    checks = {c["check"] for c in said["checks"]}
    assert checks >= {
        "python",
        "packages",
        "disk",
        "host memory",
        "network",
        "hub access",
        "widgets",
        "gpu",
        "four bits",
    }
    product = next(c for c in said["checks"] if c["check"] == "four bits")
    assert re.search(r"multiplies in 4 bits on cpu: off by \d+%", product["what"])


def test_a_token_in_the_environment_is_noticed_and_never_shown(healthy):
    done, _ = healthy
    assert "a token is set (HF_TOKEN)" in done.stdout
    assert PLANTED not in done.stdout + done.stderr


def test_what_instructors_collect_names_no_host_no_user_and_no_path(healthy):
    said = healthy[0].stdout
    for private in (os.uname().nodename, str(COURSE_ROOT), os.path.expanduser("~")):
        assert private not in said


def test_every_line_that_is_not_ok_has_a_cure(healthy):
    for line in json.loads(healthy[0].stdout)["checks"]:
        assert (line["status"] == "OK") == (line["cure"] == ""), line


# --- packages ---------------------------------------------------------------------------------------------------


def fake_package(folder, name: str, version: str, code: str = ""):
    """A package of another version in `folder`, as pip's metadata and as a module."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if code:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
    return f"{folder}{os.pathsep}{COURSE_ROOT}"


@pytest.mark.parametrize(
    ("name", "version", "status", "breaks"),
    [
        ("trl", "0.12.0", "FAIL", "SFTConfig's arguments"),
        ("transformers", "4.44.0", "FAIL", "arguments were renamed"),
        ("peft", "0.10.0", "FAIL", "adapters"),
        ("bitsandbytes", "0.43.1", "FAIL", "4-bit layers"),
        ("torch", "2.1.0", "FAIL", "every lesson"),
        ("papermill", "1.0", "WARN", "run and sweep"),
    ],
)
def test_an_old_package_is_named_with_what_it_breaks(tmp_path, name, version, status, breaks):
    (line,) = ask("packages", PYTHONPATH=fake_package(tmp_path, name, version))
    assert line[0] == status
    assert line[1].startswith(f"{name} {version}, where {name}>=")
    assert breaks in line[1]
    assert line[2].startswith("pip install --upgrade torch" if name == "torch" else "python -m helpers install")


def test_a_missing_package_is_named(monkeypatch):
    rows = [(n, line, None if n == "peft" else here, n != "peft") for n, line, here, _ in requirements()]
    monkeypatch.setattr(installed, "requirements", lambda for_lessons=False: rows)
    (finding,) = examination.examine(installed.packages)
    assert (finding.status, finding.what) == ("FAIL", "peft is missing; breaks adapters, in lessons 03 to 05")


def test_what_breaks_is_said_of_every_requirement():
    assert {name for name, *_ in requirements()} == set(installed.BREAKS)


def test_a_package_upgraded_after_it_was_loaded_asks_for_a_restart(monkeypatch):
    loaded = type(sys)("trl")
    loaded.__version__ = "0.9.0"
    monkeypatch.setitem(sys.modules, "trl", loaded)
    (finding,) = examination.examine(installed.loaded_packages)
    assert finding.status == "FAIL"
    assert f"trl 0.9.0 (now {version('trl')}" in finding.what
    assert "restart the runtime" in finding.cure


def test_colabs_widgets_are_good_enough_and_older_ones_are_named(tmp_path):
    (line,) = ask("widgets", PYTHONPATH=fake_package(tmp_path, "ipywidgets", "7.7.1"))
    assert line[0] == "OK"
    (line,) = ask("packages", PYTHONPATH=fake_package(tmp_path / "old", "ipywidgets", "7.6.0"))
    assert line[1].startswith("ipywidgets 7.6.0, where ipywidgets>=7.7.1 is needed; breaks the calculators")


def test_without_what_commands_need_a_lesson_is_ready(monkeypatch):
    absent = {"papermill", "nbval"}
    rows = [(n, line, None if n in absent else here, n not in absent) for n, line, here, _ in requirements()]
    lessons = requirements(for_lessons=True)
    monkeypatch.setattr(installed, "requirements", lambda for_lessons=False: lessons if for_lessons else rows)
    (finding,) = examination.examine(installed.packages)
    assert finding.status == "OK"
    assert finding.what.endswith("without papermill, nbval, which only commands and tests need")


def test_an_old_torchao_is_a_failure_and_none_or_a_new_one_is_none(tmp_path):
    (line,) = ask("torchao", PYTHONPATH=fake_package(tmp_path, "torchao", "0.10.0"))
    assert line[0] == "FAIL"
    assert "torchao 0.10.0: beside it PEFT puts no adapter on a 16-bit layer" in line[1]
    (line,) = ask("torchao", PYTHONPATH=fake_package(tmp_path / "new", "torchao", "0.18.0"))
    assert line[:2] == ("OK", "torchao 0.18.0")


def test_files_in_the_way_are_named(tmp_path, monkeypatch):
    (tmp_path / "helpers.py").write_text("")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    (finding,) = examination.examine(installed.files_beside)
    assert finding.status == "WARN"
    assert finding.what.startswith("helpers.py, peft beside the notebook")


def test_colabs_runtime_and_pips_notes_have_their_lines(tmp_path, monkeypatch):
    assert examination.examine(installed.colab, installed.pip_notes) == []
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260819")
    monkeypatch.setattr("helpers.doctor.installed.NOTES", tmp_path / "install.txt")
    (tmp_path / "install.txt").write_text(
        "ERROR: pip's resolver\ngoogle-colab 1 requires pandas==2.2.2, but you have 3.\n"
    )
    runtime, notes = examination.examine(installed.colab, installed.pip_notes)
    assert "release-colab_20260819" in runtime.what
    assert "1 unmet wishes" in notes.what
    assert "runs/install.txt" in notes.what


def test_what_instructors_collect_describes_a_machine_without_a_gpu_too(healthy):
    about = json.loads(healthy[0].stdout)["about"]
    assert about["system"].split()[0] == platform.system()
    assert about["cores"] == os.cpu_count()
    assert about["memory_bytes"] > 1e9
    assert "CPU" in about["machine"]
    assert about["versions"]["torch"]


def test_a_kernel_of_another_python_is_noticed(tmp_path):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    about = {"argv": ["/opt/other/bin/python", "-m", "ipykernel_launcher"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(about))
    assert ask("kernel", JUPYTER_PATH=str(tmp_path), JUPYTER_PREFER_ENV_PATH="0")[0][0] == "WARN"
    assert ask("kernel", JUPYTER_PATH=str(tmp_path / "none"))[0][0] == "OK"


# --- 4 bits -----------------------------------------------------------------------------------------------------


def test_a_library_that_bitsandbytes_does_not_have_is_named():
    (line,) = ask("four_bits", BNB_CUDA_VERSION="999")
    assert line[0] == "FAIL"
    assert "BNB_CUDA_VERSION=999 names a library that bitsandbytes does not have" in line[1]
    assert line[2] == "unset BNB_CUDA_VERSION"


@pytest.mark.parametrize("scale", [0, 2, float("nan")])
def test_a_product_that_is_wrong_is_a_failure(monkeypatch, scale):
    import bitsandbytes as bnb

    right = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: scale * right(self, x))
    (finding,) = examination.examine(graphics.four_bits)
    assert finding.status == "FAIL"
    assert "is off by" in finding.what


def test_a_product_without_rounding_is_a_failure_too(monkeypatch):
    """A 4-bit layer that was never quantized multiplies exactly: that is not 4-bit."""
    import bitsandbytes as bnb

    def forward(self, x):
        return x.float() @ exact.T

    import torch

    torch.manual_seed(0)
    exact = torch.nn.Linear(256, 256, bias=False).weight.detach()
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", forward)
    assert examination.examine(graphics.four_bits)[0].status == "FAIL"


def test_a_bitsandbytes_whose_library_cannot_be_loaded_gets_its_first_line(monkeypatch):
    import bitsandbytes as bnb

    def forward(self, x):
        raise RuntimeError("\n\nCUDA SETUP ERROR: Missing dependency: libcudart.so.13\n\nTo fix this, ...")

    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", forward)
    (finding,) = examination.examine(graphics.four_bits)
    assert finding.what == "bitsandbytes cannot multiply on cpu: CUDA SETUP ERROR: Missing dependency: libcudart.so.13"
    assert "python -m bitsandbytes" in finding.cure


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import ctypes; ctypes.string_at(0)", "ended by signal 11"),
        ("import time; time.sleep(1000)", "no answer in time"),
        ("import os; os._exit(3)", "stopped: no message"),
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
    ],
    ids=["crashes", "hangs", "exits", "cannot be loaded"],
)
def test_a_torch_that_is_broken_ends_in_a_line_and_status_1(tmp_path, code, says):
    path = fake_package(tmp_path, "torch", "2.13.0", code)
    done = call("--seconds", "3", PYTHONPATH=path)  # the torch that hangs would hang for 1000
    assert done.returncode == 1
    assert says in next(line for line in done.stdout.splitlines() if line.startswith("FAIL"))
    assert "Traceback" not in done.stdout + done.stderr
    assert "OK    python" in done.stdout  # the others are still said


# --- the machine ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, options: str):
    """A real file system of its own at `folder`; skips where mounting is not allowed."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_failure_with_a_cure(tmp_path):
    with mounted(tmp_path / "tiny", "size=500k") as folder:
        (line,) = ask("disk", COURSE_RUNS=str(folder))
    assert line[:2] == ("FAIL", "nothing can be written where runs go: No space left on device")
    assert "COURSE_RUNS" in line[2]


@pytest.mark.parametrize(("size", "status"), [("100m", "FAIL"), ("1g", "WARN"), ("4g", "OK")])
def test_little_space_is_said_in_gigabytes(tmp_path, size, status):
    with mounted(tmp_path / "small", f"size={size}") as folder:
        (line,) = ask("disk", COURSE_RUNS=str(folder))
    assert line[0] == status
    assert re.fullmatch(r"[\d.]+ GB free where runs go", line[1])


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert ask("disk", COURSE_RUNS=str(tmp_path / "file"))[0][0] == "FAIL"
    with mounted(tmp_path / "fixed", "ro") as folder:
        (line,) = ask("disk", COURSE_RUNS=str(folder))
    assert line[0] == "FAIL"
    assert "nothing can be written" in line[1]


def test_a_quota_shows_itself_when_the_megabyte_is_written(tmp_path):
    done = call("--no-page", limits={resource.RLIMIT_FSIZE: 500_000}, COURSE_RUNS=str(tmp_path))
    assert "FAIL  disk             nothing can be written where runs go: File too large" in done.stdout
    assert done.returncode == 1


def test_too_small_a_disk_for_the_large_model_names_a_smaller_one(tmp_path):
    with mounted(tmp_path / "cache", "size=5g") as folder:
        (line,) = ask("downloads", HF_HOME=str(folder / "not" / "made" / "yet"), HF_HUB_CACHE="")
    assert line[0] == "WARN"
    assert "Qwen/Qwen2.5-7B takes 15.2 GB" in line[1]
    assert 'model_id="qwen2.5-' in line[2]


def test_little_address_space_is_a_failure_and_no_traceback():
    done = call("--seconds", "15", limits={resource.RLIMIT_AS: 1_200_000_000})
    assert done.returncode == 1
    assert re.search(r"FAIL  host memory +[\d.]+ GB of memory available, limited by ulimit -v", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_and_its_file_cache_does_not(monkeypatch, tmp_path, version):
    folder = tmp_path / "memory" if version == 1 else tmp_path
    folder.mkdir(exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    for name, text in zip(
        (*names, "memory.stat"), ("4000000000", "3500000000", "anon 7\ninactive_file 1500000000"), strict=True
    ):
        (folder / name).write_text(text)
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    (finding,) = examination.examine(resources.host_memory)
    assert (finding.status, finding.what) == ("WARN", "2.0 GB of memory available, limited by the container")
    if version == 2:
        (folder / "memory.max").write_text("max\n")
        assert examination.examine(resources.host_memory)[0].status == "OK"


def other_pythons():
    """(minor, path) of each Python 3 beside this one that really runs: a shim may name one and not start it."""
    for minor in (8, 10, 12, 13):
        found = sorted(COURSE_ROOT.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        for other in map(str, found or filter(None, [shutil.which(f"python3.{minor}")])):
            asked = subprocess.run(
                [other, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, text=True
            )
            if asked.stdout.strip() == str(minor):
                yield minor, other


def test_an_old_python_is_told_so():
    """With each Python on this machine, bare of packages: lines, never a traceback."""
    code = "from helpers.__main__ import main; sys.exit(main(sys.argv[1:]))"
    code = f"import sys; sys.path.insert(0, {str(COURSE_ROOT)!r}); {code}"
    tried = 0
    for minor, other in other_pythons():
        commands = (["doctor"], ["train", "two.toml"], ["kit"], []) if minor < 11 else (["doctor"],)
        for words in commands:
            done = subprocess.run([other, "-I", "-c", code, *words], capture_output=True, text=True)
            assert done.returncode == 1, done.stderr
            assert "Traceback" not in done.stdout + done.stderr
            assert ("is too old" in done.stderr) == (minor < 11)
            assert minor >= 11 or len(done.stderr.splitlines()) == 1
        tried += 1
    if not tried:
        pytest.skip("no other Python on this machine")


# --- the network ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub(status=200, seconds=0.0, takes=None):
    """A server that answers as the hub would; yields its address. `takes`: the one token that it accepts."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(seconds)
            given = self.headers.get("Authorization")
            refused = given is not None and given != f"Bearer {takes}"
            with contextlib.suppress(OSError):
                self.send_response(401 if refused else status)
                self.end_headers()
                self.wfile.write(b"{}")

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def online(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    return monkeypatch


def line_of(check):
    (finding,) = examination.examine(check)
    return finding


def test_a_hub_that_answers_is_ok(online):
    with hub() as address:
        online.setenv("HF_ENDPOINT", address)
        assert (line_of(network_access.network).status, line_of(network_access.network).what) == (
            "OK",
            "the hub answers",
        )


@pytest.mark.parametrize("status", [403, 407, 500, 503])
def test_a_proxy_or_a_broken_hub_is_a_warning_with_its_status(online, status):
    with hub(status) as address:
        online.setenv("HF_ENDPOINT", address)
        finding = line_of(network_access.network)
    assert (finding.status, finding.what) == ("WARN", f"the hub answers with status {status}")


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9", "http://nowhere.invalid", "not an address", "file:///etc/passwd", "http://[bad", "http://127.0.0.1:99999"],
)  # fmt: skip
def test_no_network_is_a_warning_in_one_line(online, address):
    online.setenv("HF_ENDPOINT", address)
    finding = line_of(network_access.network)
    assert finding.status == "WARN", finding
    assert "cannot be reached" in finding.what
    assert "bundled" in finding.cure


def test_a_hub_that_does_not_answer_is_given_up(online):
    online.setattr(network_access, "PATIENCE", 0.3)
    with hub(seconds=20) as address:
        online.setenv("HF_ENDPOINT", address)
        begun = time.monotonic()
        assert line_of(network_access.network).status == "WARN"
        assert time.monotonic() - begun < 10


def test_being_offline_on_purpose_asks_nobody(online):
    online.setenv("HF_HUB_OFFLINE", "1")
    online.setattr(network_access, "_ask", lambda *words: pytest.fail("it asked the hub"))
    online.setenv("HF_TOKEN", PLANTED)
    assert "HF_HUB_OFFLINE is set" in line_of(network_access.network).what
    assert line_of(network_access.hub_access).status == "OK"


def test_an_expired_token_is_found_wherever_it_is_kept_and_never_shown(online, tmp_path):
    with hub(takes="hf_" + "goodgood" * 4) as address:
        online.setenv("HF_ENDPOINT", address)
        assert "no token is set, and none is needed" in line_of(network_access.hub_access).what
        online.setenv("HF_TOKEN", PLANTED)
        refused = line_of(network_access.hub_access)
        online.delenv("HF_TOKEN")
        online.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
        (tmp_path / "token").write_text(PLANTED + "\n")
        stored = line_of(network_access.hub_access)
        (tmp_path / "token").write_text("hf_" + "goodgood" * 4)
        assert line_of(network_access.hub_access).status == "OK"
    for finding in (refused, stored):
        assert finding.status == "WARN"
        assert "refuses the token" in finding.what
        assert PLANTED not in str(finding)


def test_no_text_of_a_finding_can_hold_a_token_or_a_path(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-odd-token-without-prefix")
    said = doctor.tidy(f'File "/srv/someone/x/y.py" said {PLANTED} and\n an-odd-token-without-prefix ' + "z" * 500)
    assert said.startswith('File ".../y.py" said (a token) and (a token) zzz')
    assert len(said) <= 240


# --- the GPU ----------------------------------------------------------------------------------------------------

T4 = graphics.Gpu(1, ("Tesla T4",), "Tesla T4", (7, 5), 15_634_661_376, 15_500_000_000, True, "13.0")


def told(**changes):
    return graphics.traps_of(dataclasses.replace(T4, **changes))


def test_a_t4_is_told_of_bfloat16_and_flash_attention_and_nothing_is_wrong():
    lines = told()
    assert [status for status, *_ in lines] == ["OK", "OK"]
    assert "is_bf16_supported() says True, for emulation counts" in lines[0][1]
    assert "flash attention" in lines[1][1]
    assert told(capability=(9, 0)) == []


def test_of_two_gpus_a_lesson_takes_the_first_and_that_is_ok():
    status, what, cure = told(driver=("Tesla T4",) * 2, others_hidden=True)[0]
    assert (status, cure) == ("OK", "")
    assert what == "2 GPUs: a lesson uses the first, since TRL trains on one in a process"


def test_two_gpus_that_somebody_chose_are_a_failure_since_trl_refuses_them():
    status, what, cure = told(visible=2)[0]
    assert status == "FAIL"
    assert "CUDA_VISIBLE_DEVICES shows 2 GPUs" in what
    assert "unset it" in cure


def test_trl_still_refuses_several_gpus_in_one_process(still_needed):
    refused = "does not support `nn.DataParallel`" in source_of("trl", "trainer/sft_trainer.py")
    still_needed(refused, "TRL trains on several GPUs now: drop machine.choose_one_gpu")


def test_memory_that_others_hold_and_a_small_gpu_are_warnings():
    status, what, _ = told(free=5 * 2**30)[0]
    assert (status, what) == ("WARN", "9.6 of 14.6 GiB are taken already")
    assert "less than a T4 has" in told(total=8 * 2**30, free=8 * 2**30)[0][1]


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"driver": ()}, "OK", "the lessons run on the CPU"),
        ({"driver": (), "in_colab": True}, "WARN", "this Colab runtime has no GPU"),
        ({"torch_cuda": None}, "WARN", "this torch is built for CPUs"),
        ({}, "WARN", "built for CUDA 13.0, cannot use it"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_explained(monkeypatch, changes, status, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    line = graphics.unseen(dataclasses.replace(T4, visible=0, **changes))
    assert line[0] == status
    assert words in line[1]
    assert (line[2] == "") == (status == "OK")


def test_a_hidden_gpu_is_said_to_be_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides Tesla T4" in graphics.unseen(dataclasses.replace(T4, visible=0))[1]


# --- the page ---------------------------------------------------------------------------------------------------

MEASURED = {
    "what": "Qwen/Qwen2.5-0.5B's shape, 4x512 tokens, rank 16, float16",
    "predicted": {"after_load": 459_000_000, "peak_allocated": 1_610_612_736, "peak_reserved": 1_800_000_000},
    "measured": {"after_load": 459_000_000, "peak_allocated": 1_610_612_736, "peak_reserved": 1_900_000_000},
}
SAID = {
    "date": "2026-01-02 03:04 UTC",
    "about": {
        "gpu": "Tesla T4",
        "machine": "Tesla T4, 14.56 GiB: computes in float16",
        "versions": {"torch": "2.13.0"},
    },
    "checks": [{"check": "gpu", "status": "OK", "what": "Tesla T4 | fine", "cure": ""}],
    "measured": MEASURED,
}


def test_the_page_compares_prediction_with_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    (tmp_path / "default").mkdir()
    record = {
        "predicted_peak_bytes": 5.0e9,
        "training_peak_bytes": 4.9e9,
        "run": {"machine": "Tesla T4", "model": "Qwen2.5-7B"},
    }
    (tmp_path / "default" / "03_t4_training.json").write_text(json.dumps(record))
    (tmp_path / "default" / "02_memory_math.json").write_text("{cut short")
    (tmp_path / "default" / "04_inference.json").write_text("[]")
    text = command.page(SAID)
    assert text.startswith("## Predicted and measured memory on Tesla T4\n")
    assert (
        "| Qwen/Qwen2.5-0.5B's shape, 4x512 tokens, rank 16, float16: peak allocated | 1.500 | 1.500 | +0.00% |" in text
    )
    assert "peak reserved | 1.676 | 1.770 | -5.26% |" in text
    assert "| 03_t4_training, Qwen2.5-7B: peak allocated | 4.657 | 4.563 | +2.04% |" in text
    assert "| gpu | OK | Tesla T4 / fine |" in text
    assert text.count("\n") < 40  # one page


def test_the_page_says_so_where_nothing_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    assert "Nothing was measured" in command.page(SAID | {"measured": None})


def test_what_a_cpu_recorded_is_not_compared_with_a_gpus_prediction():
    record = {
        "predicted_peak_bytes": 5e9,
        "training_peak_bytes": 1e9,
        "run": {"machine": "CPU, no GPU: computes in float32"},
    }
    assert command.comparisons(None, {"03_t4_training": record}) == []
    assert command.comparisons(None, {"03_t4_training": {"training_peak_bytes": 1e9}}) == []


def test_the_page_claims_no_t4_of_ours():
    text = command.page(SAID | {"measured": None})
    assert "derived from runs on an H200" in text
    assert "A page from a real T4\nis welcome" in text


def test_the_measured_step_trains_and_compares_the_same_quantities(monkeypatch):
    """All of its code on a CPU and a toy shape, with made-up answers of torch.cuda; tests/gpu and the page use a real one."""
    import torch

    from helpers import memory
    from helpers.doctor import child_process as child
    from helpers.machine import Machine

    stands = iter((32, 132))  # before loading and after it
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: next(stands))
    for name, size in {"max_memory_allocated": 200, "max_memory_reserved": 300}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, size=size: size)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    asked = {}

    def spec(**settings):
        asked.update(settings)
        return types.SimpleNamespace(optimizer="paged_adamw_8bit")

    def predict(shape, spec, gpu):
        asked["gpu"] = gpu
        return types.SimpleNamespace(after_load=110, peak_allocated=210, peak_reserved=310)

    monkeypatch.setattr(memory, "RunSpec", spec)
    monkeypatch.setattr(memory, "predict", predict)
    toy = {"vocab_size": 3072, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    toy |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    shape = child.shape_trained() | toy
    monkeypatch.setattr(child, "shape_trained", lambda: shape)
    found = child.measured_step(Machine("cpu", "test", 0, 2**34, 2, None))
    assert found["predicted"] == {"after_load": 110, "peak_allocated": 210, "peak_reserved": 310}
    assert found["measured"] == {"after_load": 100, "peak_allocated": 200, "peak_reserved": 300}
    assert (asked["gpu"], asked["batch_size"], asked["seq_len"]) == ("t4", child.ROWS, child.LENGTH)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "4000"])
def test_an_impossible_patience_is_refused_in_one_line(seconds):
    done = call("--seconds", seconds)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "is not possible" in done.stderr
