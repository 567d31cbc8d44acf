"""The processes of a training: they end with the command that started them, and tell it what stopped the first of them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from helpers import CourseError, one_line
from helpers.files import write_whole

LEASH = "COURSE_LEASH"  # the variable that names a pipe which ends when the command does
MOST = 300  # characters of a message
LOG_HEAD = "The log of python -m helpers train\n"  # tells it from a train.log of somebody else
STOPPED = "training stopped: "  # begins what nobody foresaw


@contextlib.contextmanager
def leash():
    """What to add to the environment of processes that call `end_on_leash`: none of them outlives this context.

    Nor this process, however it ends: the system closes its end of the pipe. Signals would not do. torch's launcher starts
    its processes in sessions of their own; were it or this command killed, they would train on, unseen, on GPUs and in a
    folder that the next run wants. On Windows, which has no such pipes, nothing is added.
    """
    if not hasattr(os, "mkfifo"):
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        pipe = os.path.join(folder, "leash")
        os.mkfifo(pipe)
        held = os.open(pipe, os.O_RDWR)  # to write alone would wait for a reader
        try:
            yield {LEASH: pipe}
        finally:
            os.close(held)


def end_on_leash() -> None:
    """Have this process end when the one that holds its leash does, or at once where that has ended already."""
    if LEASH in os.environ:
        threading.Thread(target=_end_after, args=(os.environ[LEASH],), daemon=True).start()


def _end_after(pipe: str) -> None:
    with contextlib.suppress(OSError):  # it is gone, and who held it
        end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(end, True)
        os.read(end, 1)  # nobody writes: it waits as long as somebody could
    os._exit(1)


class Heard:
    """A stream to write to until nobody reads it any more: a training does not end because what shows its words has."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(BrokenPipeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def told(words: Path, work) -> int:
    """Do the work of one process, `work()`; an exit code. What stops it is kept in the folder `words`, all of it in the log."""
    try:
        with contextlib.redirect_stdout(Heard(sys.stdout)):
            work()
    except CourseError as error:
        said = str(error)
    except (Exception, KeyboardInterrupt) as error:  # whatever the libraries raise, or somebody sends
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        said = STOPPED + ": ".join(filter(None, (type(error).__name__, one_line(first[:MOST]))))
    else:
        return 0
    write_whole(words / os.environ.get("RANK", "0"), said)
    return 1


def what_stopped(code: int, words: Path, log: Path) -> str:
    """What ended a run with an exit code that is not 0, in one line.

    A process that was killed could not say so, and the others then only miss it; torch's launcher notes it in the log, and
    also which processes it ended itself. Else it is what the first process that stopped said, or, where none said anything, the
    last line of the log that has words.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    ended = set(re.findall(r"Sending process (\d+) closing signal", text))
    signals = [
        name for name, pid in re.findall(r"Signal \d+ \((SIG\w+)\) received by PID (\d+)", text) if pid not in ended
    ]
    signals += [signal.Signals(int(number)).name for number in re.findall(r"Process \d+ got signal: (\d+)", text)]
    by = signal.Signals(-code).name if code < 0 else next(iter(signals), None)
    if by:
        why = ", as the system does when memory runs out" if by == "SIGKILL" else ""
        return f"{STOPPED}a process of it was killed ({by}{why}); the same command goes on from the last checkpoint"
    said = sorted(words.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    lines = text.removeprefix(LOG_HEAD).splitlines()
    last = next((line.strip() for line in reversed(lines) if re.search(r"\w", line)), "nothing was said")
    first = said[0].read_text(encoding="utf-8") if said else f"{STOPPED}{last[:MOST]}"
    return f"{first}; {log} has all of it" if first.startswith(STOPPED) else first


@contextlib.contextmanager
def ending_in_order():
    """Inside, SIGTERM and SIGHUP end this process as leaving the context does: what it has made for a while is deleted.

    Who ignores one of them, as nohup has it, goes on ignoring it.
    """

    def end(number, frame):
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    changed = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, old in changed.items():
            signal.signal(number, old)


def wait(child: subprocess.Popen) -> int:
    """A child's exit code; if this process is interrupted, the child is told to end first, and its processes end with it."""
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
