"""What a merge of a 7B shape takes on the computer's own processor: the peak of its memory, and its seconds beside a copy's.

    python measurements/measure_merge.py >> measurements/cpu_merges.jsonl
    python measurements/measure_merge.py --layers 4 --base-weights dequantized >> measurements/cpu_merges.jsonl

It writes Mistral-7B's shape in float16 with random weights and an adapter of rank 16 on all linear layers, copies the files,
and merges them, each in turn, as tests/merging/test_merge.py does. All 32 layers need 31 GB of disk, which is freed at the
end; with `--layers` fewer of them are made, and the row says how many. `above_bare_python_bytes` is the highest resident
memory of the process that merged and copied, less what Python itself took before torch was imported.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.merging.test_merge import make_large, measure  # noqa: E402 (the folder above has to be known first)

LAYERS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--base-weights", choices=("original", "dequantized"), default="original")
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    needed = 1e9 * (2 + 0.91 * asked.layers)
    with tempfile.TemporaryDirectory() as name:
        free = shutil.disk_usage(name).free
        if free < needed:
            sys.exit(f"needs {needed / 1e9:.0f} GB where temporary files go, and {free / 1e9:.0f} GB are free (TMPDIR)")
        folder = Path(name)
        base = make_large(folder / "base", 4096, 14336, asked.layers, heads=32, layers_a_shard=4)
        size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        sys.stdout = sys.stderr  # what the test prints is not the row
        found = measure(base, folder, asked.base_weights, asked.rounds)
        sys.stdout = sys.__stdout__
    print(json.dumps({
        "shape": "Mistral-7B", "layers": asked.layers, "layers_of_the_whole": LAYERS, "base_weights": asked.base_weights,
        "dtype": "float16", "rank": 16, "base_bytes": size, "above_bare_python_bytes": found["above_bare_python"],
        "merge_seconds": min(found["merged"]), "copy_seconds": min(found["copied"]), "rounds": asked.rounds,
        "date": datetime.date.today().isoformat(), "device": f"CPU, {os.cpu_count()} cores", "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "safetensors", "bitsandbytes")},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
