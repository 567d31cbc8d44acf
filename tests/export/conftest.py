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
