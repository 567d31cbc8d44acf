"""Install what is missing from requirements.txt, without touching torch, numpy or what is already right."""

from pathlib import Path

from helpers.packages import download, install_missing


def add_arguments(parser):
    parser.add_argument("--dry-run", action="store_true", help="say what would be installed")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="install from this folder, without a network")
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="fill a folder for a machine without a network")
    parser.add_argument(
        "--python", default="3.12", metavar="X.Y", help="with --download: that machine's Python (Kaggle: 3.12)"
    )


def main(arguments) -> None:
    if arguments.download:
        download(arguments.download, arguments.python)
    else:
        install_missing(dry_run=arguments.dry_run, wheels=arguments.wheels, for_lessons=arguments.wheels is not None)
