"""The checks that need torch, in a process of their own: a broken library may hang or end it."""

import json
import subprocess
import sys
import threading
import time

from helpers import COURSE_ROOT
from helpers.doctor.child_process import MARK
from helpers.doctor.findings import FAIL, INSTALL, WARN, Finding, tidy


class Child:
    """A Python that runs the checks of TORCH, and on a GPU the measured step; its lines are read as they come."""

    def __init__(self, measure: bool):
        self.measure, self.measured = measure, None
        self.about: dict = {}
        self.found: list[Finding] = []
        self.last_words: list[str] = []
        self.now, self.done = "import torch", threading.Event()
        code = f"import sys; sys.path.insert(0, {str(COURSE_ROOT)!r}); from helpers.doctor import child_process; "
        code += f"child_process.main({measure!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        self.threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith(MARK):
                said = json.loads(line.removeprefix(MARK))
                self.now = said.get("now", self.now)
                self.about |= said.get("about", {})
                self.measured = said.get("measured", self.measured)
                self.found += [Finding(**finding) for finding in said.get("findings", [])]
        self.process.wait()
        self.done.set()

    def _listen(self):
        for line in self.process.stderr:
            self.last_words = ([*self.last_words, line.strip()] if line.strip() else self.last_words)[-3:]

    def findings(self, deadline: float):
        """Yield what the child found; a child that hangs or dies gives a FAIL that names what it was doing."""
        sent = 0
        while True:
            over = self.done.wait(0.05)
            while sent < len(self.found):
                yield self.found[sent]
                sent += 1
            if over or time.monotonic() > deadline:
                break
        if over and self.process.returncode == 0:
            return
        measuring = self.now == "measured step"
        status = WARN if measuring else FAIL
        if over:
            self.threads[1].join(1)
            how = f"ended by signal {-self.process.returncode}" if self.process.returncode < 0 else "stopped"
            what = f"{how}: {self.last_words[-1] if self.last_words else 'no message'}"
            cure = "python -c 'import torch, bitsandbytes' shows the whole message; " + INSTALL
        else:
            what, cure = "no answer in time", "run it again with --seconds 60; if it repeats, restart the machine"
        yield Finding(self.now, status, tidy(what), cure)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
