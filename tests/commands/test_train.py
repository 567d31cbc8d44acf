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
        ("rank = true", "rank = True is not possible"),
        ('way = "dp"\ngpus = 2', "way = 'dp' is not possible; allowed: one, ddp, split, fsdp2"),
        ('way = "ddp"', "way is 'ddp' with gpus 1"),
        ("gpus = 2", "way is 'one' with gpus 2"),
        ('way = "ddp"\ngpus = "two"', "gpus = 'two' is not possible; allowed: a whole number from 1 to 16"),
        ('way = "ddp"\ngpus = true', "gpus = True is not possible"),
        ('way = "split"\ngpus = 2\nlayers = [3, 0]', "layers = [3, 0] is not possible"),
        ('way = "split"\ngpus = 2\nlayers = "even"', "layers = 'even' is not possible"),
        ('way = "split"\ngpus = 2\nlayers = [true, 3]', "layers = [True, 3] is not possible"),
        ("gpu_gib = 0", "gpu_gib = 0 is not"),
        ("padding_free = 1", "padding_free = 1 is not"),
        ('padding_free = true\nway = "split"\ngpus = 2', "it goes with one and with ddp"),
        ('gpu_gib = "all"', "gpu_gib = 'all' is not"),
        ("output_dir = 3", "output_dir = 3 is not"),
        ('output_dir = ""', "output_dir = '' is not"),
        ("rank = ", "is no TOML"),
        ("ways = 1", "did you mean way? There are: batch_size"),
        ("RANK = 4", "did you mean rank?"),
        ("rank = 0x" + 5000 * "f", "rank = what holds a number of more than"),
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
