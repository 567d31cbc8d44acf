"""What a learner made is safe: verdicts that are untrue, her Drive, an adapter of another run, a disk that is full."""

import errno
import json
import os
import sys
import types
from pathlib import Path

import pytest

from helpers import CourseError
from helpers.files import adapter_fault, folders
from helpers.lesson import session as results
from helpers.saving import adapters as checkpoints

WORDS = "NOT SO in this run: one is two"


@pytest.fixture
def begun(tmp_path, monkeypatch):
    run = results.Run("03_t4_training", tmp_path, {"max_steps": 2, "seed": 0, "output_dir": str(tmp_path)})
    monkeypatch.setattr(results, "_current", run)
    return run


# --- verdicts ---------------------------------------------------------------------------------------------------


def test_with_course_strict_an_untrue_verdict_raises(begun, monkeypatch):
    monkeypatch.setenv("COURSE_STRICT", "1")
    with pytest.raises(AssertionError, match="not so in this run: one is two"):
        results.verdict("one is two", False)


@pytest.mark.parametrize("strict", [None, "0"])
def test_a_learner_sees_it_in_red_with_a_word_and_what_to_look_at_and_goes_on(begun, monkeypatch, strict):
    monkeypatch.delenv("COURSE_STRICT")
    if strict is not None:
        monkeypatch.setenv("COURSE_STRICT", strict)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    results.verdict("one is two", False)
    results.verdict("a < b", False, look_at="Look at <a>.")
    results.verdict("one is one", True)
    assert shown[0]["text/plain"].startswith(WORDS)
    assert "max_steps = 2" in shown[0]["text/plain"]  # what this run changes, and not what it leaves alone
    assert "seed" not in shown[0]["text/plain"]
    assert "#d93025" in shown[0]["text/html"]
    assert results.NOT_SO in shown[0]["text/html"]
    assert "a &lt; b" in shown[1]["text/html"]
    assert "Look at &lt;a&gt;." in shown[1]["text/html"]
    kept = json.loads((begun.folder / "03_t4_training.json").read_text())["verdicts"]
    assert [verdict["holds"] for verdict in kept] == [False, False, True]


# --- Drive ------------------------------------------------------------------------------------------------------


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A stand-in for google.colab, whose Drive is a folder; returns the mounts that were asked for."""
    mounts = []
    drive = types.ModuleType("google.colab.drive")

    def mount(point):
        mounts.append(point)
        if os.environ.get("DRIVE_REFUSED"):
            raise ValueError("mount failed: invalid oauth code")
        (Path(point) / "MyDrive").mkdir(parents=True)

    drive.mount = mount
    package = types.ModuleType("google.colab")
    package.drive = drive
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    monkeypatch.setenv("COURSE_DRIVE", str(tmp_path / "drive"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "machine"))
    return mounts


def test_output_dir_drive_mounts_once_and_writes_there(colab, tmp_path):
    folder = folders.output_folder("drive")
    assert folder == tmp_path / "drive" / "MyDrive" / "qlora-course" / "default"
    assert folders.output_folder("drive") == folder
    assert colab == [str(tmp_path / "drive")]
    run = results.Run("05_merging", folder, {})
    assert run.adapter.is_relative_to(tmp_path / "drive")
    assert run.bulky == tmp_path / "machine" / "default"  # a merged model of 14.5 GB does not go to Drive
    words = folders.whereabouts(folder, "drive")
    assert words == "MyDrive/qlora-course/default: your Google Drive, which outlives this machine"


def test_elsewhere_in_colab_it_is_said_what_is_lost(colab):
    folder = folders.output_folder("auto")
    assert 'Colab deletes it with this machine; output_dir="drive" keeps it' in folders.whereabouts(folder, "auto")
    run = results.Run("05_merging", folder, {})
    assert run.bulky == run.folder


def test_a_refused_mount_is_one_line(colab, monkeypatch):
    monkeypatch.setenv("DRIVE_REFUSED", "1")
    with pytest.raises(
        folders.OutputError, match=r'^output_dir = "drive": Google Drive was not mounted \(ValueError: mount'
    ):
        folders.output_folder("drive")


def test_drive_outside_of_colab_is_one_line():
    with pytest.raises(folders.OutputError, match='^output_dir = "drive" is for Colab, and this is not Colab'):
        folders.output_folder("drive")


def test_kaggles_folder_is_named_with_what_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    words = folders.whereabouts(Path("/kaggle/working/runs/default"), "auto")
    assert "in /kaggle/working: Kaggle keeps /kaggle/working with Save Version" in words
    assert "outside of /kaggle/working" in folders.whereabouts(tmp_path, "auto")


# --- adapters ---------------------------------------------------------------------------------------------------

RUN = {"model": "m", "data": "mine.csv", "rank": 4}


def save(folder, made_by="lesson 03", size=4, **changes):
    """An adapter of one layer, saved as lesson 03 does."""
    import torch
    from safetensors.torch import save_file

    with checkpoints.adapter_folder(folder, made_by=made_by, **(RUN | changes)) as new:
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        tensors = {key.format("A"): torch.ones(size, 8), key.format("B"): torch.ones(8, size)}
        save_file(tensors, new / "adapter_model.safetensors")
        config = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "m"}'
        (new / "adapter_config.json").write_text(config)


def test_the_same_run_again_replaces_its_adapter(tmp_path, capsys):
    save(tmp_path / "adapter")
    save(tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    about = checkpoints.about_adapter(tmp_path / "adapter")
    assert (about["made_by"], about["data"]) == ("lesson 03", "mine.csv")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("made_by", ["lesson 03", "train"])
@pytest.mark.parametrize("change", [{"data": "other.csv"}, {"rank": 8}, {"model": "n"}])
def test_the_adapter_of_another_run_is_kept(tmp_path, capsys, change, made_by):
    save(tmp_path / "adapter", made_by)
    before = (tmp_path / "adapter" / "course.json").read_bytes()
    save(tmp_path / "adapter", made_by, **change)
    save(tmp_path / "adapter", made_by, data="a third")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "adapter-1", "adapter-2"]
    assert (tmp_path / "adapter-1" / "course.json").read_bytes() == before
    assert "The adapter of an earlier run is kept: adapter-1" in capsys.readouterr().out


def test_an_adapter_of_the_first_release_is_kept_and_one_made_in_seconds_is_not(tmp_path):
    save(tmp_path / "adapter")
    (tmp_path / "adapter" / "course.json").unlink()  # the first release wrote none
    save(tmp_path / "adapter")
    save(tmp_path / "quick", made_by="lesson 04, in a short training,")
    save(tmp_path / "quick", rank=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "adapter-1", "quick"]


def a_folder_of_hers(folder):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "thesis.txt").write_text("hers")


def a_pickled_adapter(folder):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.bin").write_text("hers")


def a_file_of_hers(folder):
    (folder / "adapter").write_text("hers")


def a_link_of_hers(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "thesis.txt").write_text("hers")
    (folder / "adapter").symlink_to(folder / "elsewhere", target_is_directory=True)


def a_file_beside_the_adapters(folder):
    save(folder / "adapter")
    (folder / "adapter" / "notes.txt").write_text("hers")


def a_card_written_anew(folder):
    save(folder / "adapter", made_by="lesson 04, in a short training,")
    (folder / "adapter" / "adapter_config.json").write_text("hers")


HERS = [
    a_folder_of_hers,
    a_pickled_adapter,
    a_file_of_hers,
    a_link_of_hers,
    a_file_beside_the_adapters,
    a_card_written_anew,
]


@pytest.mark.parametrize("put", HERS)
@pytest.mark.parametrize("made_by", ["lesson 03", "lesson 04, in a short training,"])
def test_what_the_course_did_not_write_is_kept(tmp_path, capsys, put, made_by):
    (tmp_path / "adapter-1").symlink_to(tmp_path / "nowhere")  # that name is taken, though nothing is there
    put(tmp_path)
    save(tmp_path / "adapter", made_by)
    kept = tmp_path / "adapter-2"
    held = [kept] if kept.is_file() else [file for file in kept.iterdir() if file.is_file()]
    assert "hers" in [file.read_text(errors="replace") for file in held]
    assert capsys.readouterr().out.endswith("is kept: adapter-2\n")
    assert adapter_fault(tmp_path / "adapter") is None
    save(tmp_path / "adapter", made_by)
    assert not (tmp_path / "adapter-3").exists()


def test_an_empty_folder_is_nobodys(tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    save(tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert capsys.readouterr().out == ""


def test_what_is_not_whole_does_not_take_the_place_of_what_is(tmp_path):
    save(tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(checkpoints.CheckpointError, match="^the adapter was not saved whole: .*rank 5"):
        save(tmp_path / "adapter", size=5, data="other.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before


def fail_with_a_full_disk(*words):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("moment", ["while it is written", "when it is put on the disk"])
def test_a_full_disk_is_one_line_and_harms_nothing(tmp_path, monkeypatch, moment):
    save(tmp_path / "adapter")
    before = (tmp_path / "adapter" / "course.json").read_bytes()
    where = (Path, "write_text") if moment == "while it is written" else (os, "fsync")
    monkeypatch.setattr(*where, fail_with_a_full_disk)
    with pytest.raises(checkpoints.CheckpointError, match=r"could not be saved \(No space left on device\): make room"):
        save(tmp_path / "adapter", data="other.csv")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "course.json").read_bytes() == before


def test_an_error_of_the_course_itself_stays_as_it_is(tmp_path):
    def fail():
        with checkpoints.adapter_folder(tmp_path / "adapter", made_by="lesson 03", **RUN):
            raise folders.OutputError("said before")

    with pytest.raises(CourseError, match="^said before$"):
        fail()
