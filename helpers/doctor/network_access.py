"""Checks of the network and of the hub."""

import os
import urllib.error
import urllib.request
from pathlib import Path

from helpers.doctor.findings import OK, WARN, tidy
from helpers.models import offline

PATIENCE = 4  # seconds to wait for a server


# --- the network ------------------------------------------------------------------------------------------------


def network():
    """One request to the hub. Offline is no failure: the bundled model needs no network."""
    if offline():
        return WARN, "HF_HUB_OFFLINE is set: nothing is fetched", "unset it if you want models from the hub"
    try:
        _ask("/api/models/Qwen/Qwen2.5-0.5B")
    except urllib.error.HTTPError as error:
        cure = "if a proxy answers in the hub's place, ask for an exception; the bundled model needs no network"
        return WARN, f"the hub answers with status {error.code}", cure
    except (OSError, ValueError) as error:  # no route, refused, too slow, a bad certificate, a bad address
        why = tidy(getattr(error, "reason", error))
        return (
            WARN,
            f"the hub cannot be reached ({why})",
            'check the network or the proxy; model_id="bundled" needs none',
        )
    return OK, "the hub answers", ""


def hub_access():
    """Whether a token is set and the hub takes it: an expired one makes even public downloads fail."""
    token, where = _token()
    if not token:
        return OK, "no token is set, and none is needed: only gated models ask for one", ""
    if offline():
        return OK, f"a token is set ({where}); offline it is not tried", ""
    try:
        _ask("/api/whoami-v2", token)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return (
                WARN,
                f"the hub refuses the token from {where}: public downloads fail too",
                f"remove it ({where}), or log in anew",
            )
        return WARN, f"the hub answers with status {error.code}", "try again later"
    except (OSError, ValueError) as error:
        return (
            WARN,
            f"the token from {where} could not be tried ({type(error).__name__})",
            "see the line on the network",
        )
    return OK, f"the hub takes the token from {where}", ""


def _token() -> tuple[str, str]:
    """(token, where it comes from), both empty where there is none. The token itself is never shown."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return os.environ[name].strip(), name
    file = Path(os.environ.get("HF_TOKEN_PATH") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "token")
    try:
        return file.expanduser().read_text(encoding="utf-8").strip(), "a file that hf auth login wrote"
    except (OSError, UnicodeDecodeError):
        return "", ""


def _ask(path: str, token: str = "") -> None:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not endpoint.startswith(("https://", "http://")):
        raise ValueError("HF_ENDPOINT is no web address")
    head = {"User-Agent": "qlora-course-doctor"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(urllib.request.Request(endpoint + path, headers=head), timeout=PATIENCE) as answer:
        answer.read(100)
