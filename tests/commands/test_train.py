"""python -m helpers train: what a file of settings says, what is refused in one true line, and what a dry run tells.

Trainings themselves are in tests/training/test_two_processes.py and tests/gpu/test_several.py.
"""

import os
import subprocess
import sys

import pytest

from helpers import COURSE_ROOT, CourseError
from helpers.commands import _job, train
from helpers.machine import ALL_GPUS, hardware
from helpers.training import Way

WHOLE = 'model_id = "bundled"\noutput_dir = "{out}"\nway = "ddp"\ngpus = 2\nbatch_size = 4\n'


@pytest.fixture
def config(tmp_path):
    """Writes a config file: the lines given, with an output folder unless they name one."""

    def write(text: str):
        file = tmp_path / "config.toml"
        out = "" if "output_dir" in text else f'output_dir = "{tmp_path / "out"}"\n'
        file.write_text(out + text, encoding="utf-8")
        return file

    return write


def helpers(*words, **env):
    around = os.environ | {"PYTHONPATH": str(COURSE_ROOT)} | env
    return subprocess.run([sys.executable, "-m", "helpers", *words], capture_output=True, text=True, env=around)


def test_a_file_of_settings_is_read(config, tmp_path):
    job = _job.Job.read(
        config('model_id = "bundled"\nway = "split"\ngpus = 2\nlayers = [2, 4]\ngpu_gib = 14.56\nrank = 4')
    )
    assert (job.way.name, job.way.gpus, job.way.layers) == ("split", 2, (2, 4))
    assert job.gpu_bytes == int(14.56 * 2**30)
    assert job.parameters["rank"] == 4
    assert job.parameters["learning_rate"] == "auto"
    assert job.folder == tmp_path / "out"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ranks = 4", "no parameter 'ranks'; did you mean rank?"),
        ("max_step = 4", "did you mean max_steps?"),
        ("rank = 0", "rank = 0 is not possible; allowed:"),
        ("rank = true", "rank = true is not possible"),
        ('way = "dp"\ngpus = 2', 'way = "dp" is not possible; allowed: one of "one", "ddp", "split", "fsdp2"'),
        ('way = "ddp"', "way is 'ddp' with gpus 1"),
        ("gpus = 2", "way is 'one' with gpus 2"),
        ('way = "ddp"\ngpus = "two"', 'gpus = "two" is not possible; allowed: a whole number from 1 to 16'),
        ('way = "ddp"\ngpus = true', "gpus = true is not possible"),
        ('way = "split"\ngpus = 2\nlayers = [3, 0]', "layers = [3, 0] is not possible"),
        ('way = "split"\ngpus = 2\nlayers = "even"', 'layers = "even" is not possible'),
        ('way = "split"\ngpus = 2\nlayers = [true, 3]', "layers = [true, 3] is not possible"),
        ("gpu_gib = 0", "gpu_gib = 0 is not"),
        ("padding_free = 1", "padding_free = 1 is not"),
        ('padding_free = true\nway = "split"\ngpus = 2', "it goes with one and with ddp"),
        ('gpu_gib = "all"', 'gpu_gib = "all" is not'),
        ("output_dir = 3", "output_dir = 3 is not"),
        ('output_dir = ""', 'output_dir = "" is not'),
        ("rank = ", "is no TOML"),
        ("ways = 1", "did you mean way? There are: batch_size"),
        ("RANK = 4", "did you mean rank?"),
        ("rank = 0x" + 5000 * "f", "rank = 0xffff"),
        ("x" * 9000 + " = 1", "xxx.... There are: "),
        ("a = " + 9000 * "[", "is no TOML"),
        ('way = "fsdp2"\ngpus = 2\noptimizer = "adamw_8bit"', "optimizer is 'adamw_8bit' with way 'fsdp2'"),
        ("layers = []", "layers = [] is not"),
        ("gpus = 1_000_000", "gpus = 1000000 is not possible; allowed: a whole number from 1 to 16"),
        ("[lora]\nrank = 4", "no parameter 'lora'"),
    ],
)
def test_what_a_file_cannot_say_is_refused_in_one_line_that_names_it(config, text, said):
    with pytest.raises(_job.ConfigError) as refused:
        _job.Job.read(config(text))
    assert said in str(refused.value)
    assert "config.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_without_a_folder_to_write_to_or_that_is_not_there_says_so(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("rank = 4")
    with pytest.raises(_job.ConfigError, match="output_dir is missing"):
        _job.Job.read(file)
    with pytest.raises(_job.ConfigError, match="No such file"):
        _job.Job.read(tmp_path / "none.toml")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(_job.ConfigError, match="is no TOML"):
        _job.Job.read(file)


@pytest.mark.parametrize(
    ("seen", "given", "chosen"),
    [
        (2, {}, "0,1"),
        (4, {}, "0,1"),
        (4, {"CUDA_VISIBLE_DEVICES": "3,1,2"}, "3,1"),
        (2, {"CUDA_VISIBLE_DEVICES": "0", ALL_GPUS: ""}, "0,1"),  # a lesson of this session chose the first
        (0, {}, ""),
    ],
)
def test_the_runs_processes_see_its_gpus(config, monkeypatch, seen, given, chosen):
    for name in ("CUDA_VISIBLE_DEVICES", ALL_GPUS):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hardware, "gpus_of_driver", lambda: ("a GPU",) * seen)
    around = train.around(_job.Job.read(config('way = "ddp"\ngpus = 2')))
    assert around["CUDA_VISIBLE_DEVICES"] == chosen
    assert ALL_GPUS not in around
    assert around["PYTHONPATH"].split(os.pathsep)[0] == str(COURSE_ROOT)


@pytest.mark.parametrize(("seen", "given"), [(1, {}), (2, {"CUDA_VISIBLE_DEVICES": "1"})])
def test_too_few_gpus_are_counted(config, monkeypatch, seen, given):
    for name in ("CUDA_VISIBLE_DEVICES", ALL_GPUS):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hardware, "gpus_of_driver", lambda: ("a GPU",) * seen)
    with pytest.raises(CourseError, match="gpus is 2, and 1 can be seen here"):
        train.around(_job.Job.read(config('way = "ddp"\ngpus = 2')))


def test_divided_weights_get_torchs_optimizer_unless_another_is_asked_for():
    assert Way("ddp", 2).optimizer("auto", "paged_adamw_8bit") == "paged_adamw_8bit"
    assert Way("fsdp2", 2).optimizer("auto", "paged_adamw_8bit") == "adamw_torch"
    assert Way("fsdp2", 2).optimizer("adamw_torch", "adamw_torch") == "adamw_torch"
    with pytest.raises(CourseError, match="adamw_8bit.*fsdp2"):
        Way("fsdp2", 2).optimizer("adamw_8bit", "adamw_8bit")


def test_a_dry_run_says_what_each_gpu_takes_and_trains_nothing(config, tmp_path):
    done = helpers("train", str(config('model_id = "bundled"\nway = "split"\ngpus = 2\nbatch_size = 8')), "--dry-run")
    assert done.returncode == 0, done.stderr
    first, *gpus, verdict = [line for line in done.stdout.splitlines() if "no GPU can be seen" not in line]
    assert first.startswith("the bundled model, split on 2 GPUs, ")
    assert "8 at once" in first
    assert [line.split(":")[0] for line in gpus] == ["GPU 0", "GPU 1"]
    assert all(line.endswith("; predicted") for line in gpus)
    assert verdict == "fits"
    assert not (tmp_path / "out").exists()


def test_what_stops_a_process_is_said_once_by_the_command(config, tmp_path):
    """What only a loaded tokenizer can tell."""
    template = tmp_path / "endless.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    file = config(f'model_id = "bundled"\nmax_steps = 1\ntemplate = "{template}"')
    done = helpers("train", str(file), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith(f"python -m helpers train: template = '{template}' does not end an answer with ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model_id = "no-such-folder"', "no folder 'no-such-folder' here"),
        ('model_id = "owner/none"', "owner/none"),
        ('dataset_id = "none.csv"', "no readable file 'none.csv'"),
        ('dataset_id = "alpaca"', "tatsu-lab/alpaca"),
        ('template = "none.jinja"', "template = 'none.jinja' is no readable file"),
        (
            'model_id = "bundled"\nway = "split"\ngpus = 2\nlayers = [3, 4]',
            "layers is [3, 4], 7 in all; the model has 6",
        ),
    ],
)
def test_what_is_named_and_not_there_is_refused_before_a_folder_is_made(config, tmp_path, monkeypatch, text, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    program = (
        "import sys, helpers.__main__ as h; code = h.main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(code)"
    )
    for words in ([], ["--dry-run"]):
        around = os.environ | {"PYTHONPATH": str(COURSE_ROOT)}
        command = [sys.executable, "-c", program, "train", str(config(text)), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=around, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert [place.name for place in tmp_path.iterdir()] == ["config.toml"]


def test_a_file_that_windows_wrote_is_read(config):
    file = config('model_id = "bundled"')
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert _job.Job.read(file).parameters["model_id"] == "bundled"


def test_on_a_cpu_there_are_no_more_processes_than_cores_and_a_split_is_one(config, monkeypatch):
    monkeypatch.setattr(hardware, "gpus_of_driver", lambda: ())
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # none, as CUDA reads it
    assert train.around(_job.Job.read(config('way = "ddp"\ngpus = 4')))["CUDA_VISIBLE_DEVICES"] == ""
    assert train.around(_job.Job.read(config('way = "split"\ngpus = 5')))["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(CourseError, match="gpus is 5; no GPU can be seen, and 4 processes at most"):
        train.around(_job.Job.read(config('way = "ddp"\ngpus = 5')))


# --- what other launchers left -------------------------------------------------------------------------------------

LEFT = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "ROLE_RANK": "1",
    "ROLE_WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "FORK_LAUNCHED": "1",
    "TORCHELASTIC_RUN_ID": "none", "PET_NPROC_PER_NODE": "4", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1",
    "ACCELERATE_USE_DEEPSPEED": "true", "OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "fp8",
}  # fmt: skip


@pytest.mark.parametrize(
    "way", ['way = "one"', 'way = "ddp"\ngpus = 2', 'way = "split"\ngpus = 2', 'way = "fsdp2"\ngpus = 2']
)
def test_variables_that_another_launcher_left_do_not_reach_the_processes(config, monkeypatch, way):
    monkeypatch.setattr(hardware, "gpus_of_driver", lambda: ())
    job = _job.Job.read(config(way))
    before = train.around(job)
    for name, value in LEFT.items():
        monkeypatch.setenv(name, value)
    assert train.around(job) == before
    for kept in ("RANKS", "HF_HOME", "OMP_NUM_THREADS", "MY_RANK", "PETS"):
        monkeypatch.setenv(kept, "3")
        assert train.around(job)[kept] == "3"


def test_a_training_alone_begins_where_a_launcher_left_its_variables(config, tmp_path):
    file = config('model_id = "bundled"\nmax_steps = 1\nbatch_size = 2\nrank = 4\neval_rows = 4\nmax_length = 64')
    left = {name: LEFT[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    done = helpers("train", str(file), CUDA_VISIBLE_DEVICES="", **left)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "adapter").is_dir()


STANDS_IN = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
told = {n: v for n, v in os.environ.items() if n in names or n.startswith(("ACCELERATE_", "FSDP_", "NCCL"))}
open(os.path.join(sys.argv[1], os.environ["RANK"]), "w").write(json.dumps([told, sys.argv[2:]], sort_keys=True))
"""
SETTINGS = {
    "none": None,
    "empty": "",
    "no YAML": "[",
    "one GPU": "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\ngpu_ids: '1'\nnum_processes: 1\n",
    "FSDP": "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 3\ndebug: true\n"
    "num_machines: 2\nmain_process_ip: 10.0.0.1\nmain_process_port: 29501\nfsdp_config:\n  fsdp_version: 1\n",
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """For each file of settings of the user's, what the processes are told that the real launcher starts."""
    found = {}
    for name, text in SETTINGS.items():
        home = tmp_path_factory.mktemp("home")
        (home / "accelerate").mkdir()
        (home / "said").mkdir()
        if text is not None:
            (home / "accelerate" / "default_config.yaml").write_text(text)
        (home / "stands_in.py").write_text(STANDS_IN)
        command = Way("ddp", 2).command(str(home / "stands_in.py"), str(home / "said"), "--rank", "3")
        around = os.environ | {"HF_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=around, timeout=200)
        assert done.returncode == 0, (name, done.stderr)
        found[name] = {file.name: file.read_text() for file in (home / "said").iterdir()}
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_no_file_of_the_users_changes_what_is_started(started, name):
    assert sorted(started[name]) == ["0", "1"]
    assert all('["--rank", "3"]' in said for said in started[name].values())
    assert started[name] == started["none"]
