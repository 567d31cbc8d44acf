"""The Hugging Face hub: whether a model can be fetched from it, and what it answered if not."""

import errno
import os
from pathlib import Path

from helpers import CourseError
from helpers.files import config_fault


class ModelError(CourseError, OSError):
    """A model that is not there: a missing folder, no network, a gated or unknown id."""


def offline() -> bool:
    """Whether HF_HUB_OFFLINE is set now, to one of the words that the hub's client takes for true when it is imported."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _reach(hub_id: str, gated: str) -> None:
    """Fetch config.json, or find it in the cache, so that a model out of reach is known before anything heavy."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    why = "HF_HUB_OFFLINE is set" if offline() else "the hub cannot be reached"
    unreached = f'{hub_id} is not on this disk and {why}: use model_id="bundled"'
    try:
        folder = _fetched_config(hub_id).parent
        refused = config_fault(folder)
        whole = _has_safetensors(hub_id)
    except HFValidationError as error:
        raise ModelError(f"{hub_id!r} is not a hub id (owner/name)") from error
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: {gated or 'accept its terms on its page, and log in'}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {hub_id}, or it is private and you are not logged in") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(unreached) from error
    except EntryNotFoundError as error:
        raise ModelError(f"{hub_id} has no config.json: it is no model that transformers can load") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"{hub_id} cannot be fetched: {why_unfetched(error)}") from error
    except Exception as error:  # no connection: the class is the HTTP library's, which has changed its name
        raise ModelError(unreached) from error
    if refused:
        raise ModelError(f"{hub_id}: {refused}")
    if not whole:
        raise ModelError(f"{hub_id} has no *.safetensors: pickled weights are not loaded here")


def why_unfetched(error: Exception) -> str:
    """What the hub answered, or what the disk did, in a few words that say what to do; of another error, its class."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not accept your token: log in with another, or log out where no login is needed"
    if status == 403:
        return f"the hub forbids it: {getattr(error, 'server_message', None) or 'your token may not read this'}"
    if status == 429:
        return "the hub asks you to wait (429): try again in some minutes"
    if status is not None:
        return f"the hub {'has a fault of its own' if status >= 500 else 'answers'} ({status}): try again later"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: make room, or set HF_HOME to a folder on a larger disk"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the hub's cache cannot be used ({error.strerror}): set HF_HOME to a folder of your own"
    if "Consistency check failed" in str(error):  # the client compares the size with the announced one
        return "it did not arrive whole: try again"
    if type(error) is ValueError:  # of read_object
        return f"{error}. Remove it from the cache with `hf cache rm`, then try again"
    return f"{type(error).__name__}: check the name and the network"


def _fetched_config(hub_id: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "config.json", local_files_only=True))
    except LocalEntryNotFoundError:
        # Asked once: without a network the download itself would try six times, for half a minute, and warn.
        get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=5)
        return Path(hf_hub_download(hub_id, "config.json", etag_timeout=5))


def _has_safetensors(hub_id: str) -> bool:
    """Whether the model has weights that are no pickles: in the cache, or on the hub."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = ("model.safetensors", "model.safetensors.index.json")
    if any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in names):
        return True
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(hub_id, name), timeout=5)
            return True
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    return False
