"""What a check of the doctor says: a status, what it saw, and the cure.

FAIL: a lesson will stop. WARN: the lessons run, but not as you may expect. OK: nothing to do. No text holds a token, a
host's name or an absolute path.
"""

import os
import re
from dataclasses import dataclass

OK, WARN, FAIL = "OK", "WARN", "FAIL"
INSTALL = "python -m helpers install"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `cure` is "" where nothing is to be done."""

    check: str
    status: str
    what: str
    cure: str
    seconds: float = 0.0


def worst(findings: list[Finding]) -> str:
    """OK, WARN or FAIL: the worst status among the findings."""
    return max((f.status for f in findings), key=(OK, WARN, FAIL).index, default=OK)


def tidy(text: str) -> str:
    """One line of at most 240 characters, without tokens, and with paths cut to their last part."""
    text = re.sub(r"\b(hf|ghp|sk)[_-]\w{8,}", "(a token)", " ".join(str(text).split()))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            text = text.replace(os.environ[name].strip(), "(a token)")
    text = re.sub(r"(?<![\w.:/])(?:/[\w.+@-]+)+/([\w.+@-]+)", r".../\1", text)
    return text if len(text) <= 240 else text[:237] + "..."
