"""What a model's folder holds, as a digest: whether the base that a run finds is the one that it began with."""

import hashlib
from pathlib import Path

from helpers.files import safetensors_header

READ = (".safetensors", ".json", ".jinja", ".model", ".txt")  # weights, settings, tokenizers and templates
WHOLE = 2**30  # bytes of weights, of all files together: up to so many, every byte is read
PIECE, APART = 4096, 2**20  # bytes read of a larger model's tensors, and from where to where


def content(folder: str) -> str:
    """A digest of what is in a model's files, by their names; when they were written and where they lie does not count.

    Up to 1 GiB of weights every byte counts. Of more, only samples: the header of each file, and of each tensor the first
    4 KiB of every MiB and its last 4 KiB. Training and merging change numbers all over a matrix, and are noticed. What may
    not be: a change of less than 1 MiB in a row that lies between two samples, as of a few tokens' rows in an embedding.
    14 GB took 2 seconds so, from a disk that took 24 to read them whole. Pickled weights and README.md do not count: no run
    reads them.
    """
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in READ and file.is_file())
    weights = [file for file in files if file.suffix == ".safetensors"]
    whole = sum(file.stat().st_size for file in weights) <= WHOLE
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        with open(file, "rb", buffering=0) as opened:
            if whole or file not in weights:
                found.update(hashlib.file_digest(opened, "sha256").digest())
                continue
            for begin, size in _samples(file):
                opened.seek(begin)
                found.update(opened.read(size))
    return found.hexdigest()[:16]


def _samples(file: Path):
    """(where it begins, its length) of each sample of a safetensors file, in bytes."""
    start, header = safetensors_header(file)
    yield 0, start
    header.pop("__metadata__", None)
    for tensor in header.values():
        first, end = tensor["data_offsets"]
        for at in (*range(first, end, APART), max(first, end - PIECE)):
            yield start + at, min(PIECE, end - at)
