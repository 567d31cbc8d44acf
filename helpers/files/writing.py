"""Write a file or a folder so that it is there whole or not at all, also when the process is killed."""

import contextlib
import glob
import os
import shutil
import tempfile
import time
from pathlib import Path


def write_whole(file: Path, text: str | bytes) -> None:
    """Write a file so that it is there whole or not at all; text in UTF-8."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    os.replace(part, file)


@contextlib.contextmanager
def replace_folder(folder: Path, keep_old_as: Path | None = None):
    """Yield an empty folder beside `folder`. On success it replaces `folder`; on error it is deleted.

    What it holds is on the disk, not only in the system's memory, before the old folder goes; or, with `keep_old_as`,
    gets that name.
    """
    finish_replacing(folder.parent, glob.escape(folder.name))
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield new
        for file in filter(Path.is_file, new.rglob("*")):
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        new.chmod(0o755)
        if os.path.lexists(folder):
            os.replace(folder, keep_old_as or new.with_suffix(".old"))
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        finish_replacing(folder.parent, glob.escape(folder.name))


def finish_replacing(parent: Path, name: str = "*", at_once: bool = False) -> None:
    """Tidy up in `parent` after a replace_folder that was killed: nothing whole is lost, and halves do not pile up.

    Only what replace_folder names so is touched, .NAME.RANDOM.old and .part, for the folder `name` or, in a folder of
    the course's own, for all: a merge may write into somebody's home. A half folder goes a day after it was last
    written to, since a younger one may belong to a run that is still alive; or `at_once`, where the caller knows better.
    """
    random = "[a-z0-9_]" * 8  # as tempfile.mkdtemp makes it
    for old in filter(Path.is_dir, parent.glob(f".{name}.{random}.old")):
        folder = parent / old.name[1:-4].rpartition(".")[0]
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:  # killed between the two renames
            os.replace(old, folder)
    for part in (*parent.glob(f".{name}.{random}.part"), *parent.glob(f".{name}.json.[0-9]*.part")):  # see write_whole
        if at_once or time.time() - part.stat().st_mtime > 86_400:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
