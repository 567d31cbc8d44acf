"""The failures that need a GPU, provoked again for real, each in a process of its own; and helpers.failures knows each.

    CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu/test_failures.py

Half a minute on a GPU; without one it is skipped. measurements/record_failures.py holds what provokes and cures them.
"""

import pytest

from helpers.failures import recognise
from tests.scripts import measuring_script

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

record_failures = measuring_script("record_failures")
NAMES = list(record_failures.FAILURES)


@pytest.fixture(scope="module")
def rows():
    return {row["name"]: row for row in record_failures.record(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_the_failure_comes_and_is_recognised_and_its_cure_works(name, rows):
    row = rows[name]
    assert row["provoked"], row["tail"]
    assert row["cured"] in (True, None), row.get("after_cure")  # None: its cure needs a fresh process
    if row["type"] is not None:
        assert recognise(f"{row['type']}: {row['message']}").failure.name == name


def test_float32_compute_on_float16_input_is_slower_than_float16_compute(rows):
    milliseconds = rows["slow-dtype"]["milliseconds"]
    assert milliseconds["float32"] > 1.5 * milliseconds["float16"]
