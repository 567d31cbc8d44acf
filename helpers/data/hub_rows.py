"""Rows of data sets on the hub, through `datasets`: found in the cache where the hub does not answer."""

import os
from collections.abc import Iterator
from pathlib import Path

from helpers.data.readers import DataError
from helpers.models import why_unfetched

ASKED_FOR = 10  # seconds


def from_hub(name: str, split: str = "train", revision: str | None = None):
    """A split of a data set on the hub, or in the cache if the hub does not answer; DataError, one line."""
    import datasets
    from huggingface_hub import HfApi

    unanswered, was_offline = None, datasets.config.HF_HUB_OFFLINE
    try:
        # Asked once: of a hub that does not answer `datasets` itself asks again and again, for more than six minutes.
        HfApi().dataset_info(name, revision=revision, timeout=ASKED_FOR)
    except Exception as error:  # whatever the hub's client raises: its classes have changed their names
        unanswered, datasets.config.HF_HUB_OFFLINE = error, True
    try:
        return datasets.load_dataset(name, split=split, revision=revision)
    except Exception as error:
        first = unanswered or error
        raise DataError(f'{name} cannot be fetched ({_why(first)}): use "bundled"') from first
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _why(error: Exception) -> str:
    """Why a data set could not be fetched, in a few words."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError) or getattr(error, "errno", None) or "Consistency check" in str(error):
        return why_unfetched(error)
    if isinstance(error, ValueError) and str(error):  # a split or a configuration that is not there
        return str(error).splitlines()[0][:200]
    return type(error).__name__


def look_at_hub(name: str) -> None:
    """Raise DataError, one line, for a data set that is neither in the cache nor on the hub; imports nothing heavy."""
    from huggingface_hub import HfApi, constants

    cached = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    if (cached / name.replace("/", "___").lower()).is_dir() or (cached / name.replace("/", "___")).is_dir():
        return
    try:
        HfApi().dataset_info(name, timeout=ASKED_FOR)
    except Exception as error:  # whatever the hub's client raises
        raise DataError(
            f"{name}: no such file or folder here, and on the hub it cannot be had ({_why(error)})"
        ) from error


def hub_rows(name: str, split: str = "auto", revision: str = "auto") -> tuple[Iterator[tuple[int, dict]], str]:
    """((place, row), ...) of a data set on the hub, and its format in words."""
    look_at_hub(name)  # before `datasets` is imported, which takes seconds
    asked = None if revision == "auto" else revision
    rows = from_hub(name, "train" if split == "auto" else split, asked)
    described = f"a data set on the hub, split {'train' if split == 'auto' else split}"
    return _numbered(rows), described + (f", revision {revision}" if asked else "")


def _numbered(rows) -> Iterator[tuple[int, dict]]:
    number = 0
    for batch in rows.iter(batch_size=256):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))
