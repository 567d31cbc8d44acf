"""The model that the tests of what is refused, and of the Modelfile, change and export."""

import shutil

import pytest

from tests.export import makers


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A small Llama with the tokenizer of Llama 3."""
    return makers.make_model(tmp_path_factory.mktemp("models") / "model", "llama", makers.of_llama3(), 1600)


@pytest.fixture
def model(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "model")


@pytest.fixture
def bare(tmp_path):
    """Make a small model of a kind, without a tokenizer."""
    return lambda kind: makers.make_model(tmp_path / "model", kind, vocab_size=64)


@pytest.fixture
def with_tokens(tmp_path):
    """Make a small model of a kind, with the tokenizer of Llama 3."""
    return lambda kind: makers.make_model(tmp_path / "model", kind, makers.of_llama3(), 1600)
