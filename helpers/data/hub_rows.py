"""Rows of data sets on the hub, through `datasets`: found in the cache where the hub does not answer."""

import os
from collections.abc import Iterator
from pathlib import Path

from helpers.data.readers import DataError
from helpers.models import why_unfetched

ASKED_FOR = 10  # seconds


def from_hub(name: str, split: str = "train", revision: str | None = None):
    """A split of a data set on the hub, or in the cache if the hub does not answer; and which commit it is, in words.

    With a revision it is that one and no other, whatever the cache holds. Raises DataError, one line.
    """
    import datasets

    unanswered, was_offline, commit = None, datasets.config.HF_HUB_OFFLINE, revision
    try:
        # Asked once: of a hub that does not answer `datasets` itself asks again and again, for more than six minutes.
        commit = _about(name, revision).sha
    except Exception as error:  # whatever the hub's client raises: its classes have changed their names
        if _no_such_revision(error):
            raise DataError(_not_had(name, revision, error)) from error
        unanswered, datasets.config.HF_HUB_OFFLINE = error, True
    try:
        rows = datasets.load_dataset(name, split=split, revision=revision)
    except Exception as error:
        first = unanswered or error
        raise DataError(f'{name} cannot be fetched ({_why(first)}): use "bundled"') from first
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    found = _commit(rows)
    if revision and found != commit:  # without the hub `datasets` takes the newest in the cache, whatever was asked
        why = _not_had(name, revision, unanswered or ConnectionError())
        raise DataError(f"{why}, and the newest in the cache is the commit {found}")
    return rows, f"commit {found[:12]}" + (f" out of the cache ({_why(unanswered)})" if unanswered else "")


def _about(name: str, revision: str | None):
    """What the hub says of a data set, its commit among it; whatever the hub's client raises."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(name, revision=revision, timeout=ASKED_FOR)


def _commit(rows) -> str:
    """The commit that a data set was made from: `datasets` names the folder in its cache by it."""
    return Path(rows.cache_files[0]["filename"]).parent.name if rows.cache_files else ""


def _not_had(name: str, revision: str | None, error: Exception) -> str:
    if revision:
        return f"{name}: revision {revision!r} cannot be had ({_why(error)})"
    return f"{name}: no such file or folder here, and on the hub it cannot be had ({_why(error)})"


def _no_such_revision(error: Exception) -> bool:
    from huggingface_hub.errors import RevisionNotFoundError

    return isinstance(error, RevisionNotFoundError)


def _why(error: Exception) -> str:
    """Why a data set could not be fetched, in a few words."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if _no_such_revision(error):
        return "it has no such revision: name a branch, a tag or a commit of it"
    if isinstance(error, GatedRepoError):
        return "it is gated: accept its terms on its page, and log in"
    if isinstance(error, RepositoryNotFoundError):
        return "there is none of this name, or it is private and you are not logged in"
    if isinstance(error, HfHubHTTPError) or getattr(error, "errno", None) or "Consistency check" in str(error):
        return why_unfetched(error)
    if isinstance(error, ValueError) and str(error):  # a split or a configuration that is not there
        return str(error).splitlines()[0][:200]
    return type(error).__name__


def look_at_hub(name: str, revision: str | None = None) -> None:
    """Raise DataError, one line, for a data set, or a revision of it, that is neither in the cache nor on the hub.

    Imports nothing heavy.
    """
    if _in_cache(name, revision):
        return
    try:
        _about(name, revision)
    except Exception as error:  # whatever the hub's client raises
        raise DataError(_not_had(name, revision, error)) from error


def _in_cache(name: str, revision: str | None) -> bool:
    """Whether `datasets` has a data set in its cache, or the commit of it that `revision` names."""
    from huggingface_hub import constants

    cached = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    folders = cached.glob("*___*")  # its name in small letters and with _ between words: let neither matter
    return any(
        _bare(folder.name) == _bare(name) and any(revision in (None, commit.name) for commit in folder.glob("*/*/*"))
        for folder in folders
    )


def _bare(name: str) -> str:
    return name.replace("/", "").replace("_", "").lower()


def hub_rows(name: str, split: str = "auto", revision: str = "auto") -> tuple[Iterator[tuple[int, dict]], str]:
    """((place, row), ...) of a data set on the hub, and its format in words."""
    asked = None if revision == "auto" else revision
    look_at_hub(name, asked)  # before `datasets` is imported, which takes seconds
    split = "train" if split == "auto" else split
    rows, which = from_hub(name, split, asked)
    described = f"a data set on the hub, split {split}" + (f", revision {revision}" if asked else "")
    return _numbered(rows), f"{described}, {which}"


def _numbered(rows) -> Iterator[tuple[int, dict]]:
    number = 0
    for batch in rows.iter(batch_size=256):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))
