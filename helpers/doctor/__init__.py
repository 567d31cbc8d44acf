"""Is this machine ready? A check says OK, WARN or FAIL, what it saw, and what to do."""

from helpers.doctor.child import Child
from helpers.doctor.examination import INSTALLED, MACHINE, NETWORK, TORCH, examine, problems
from helpers.doctor.findings import FAIL, OK, WARN, Finding, tidy, worst
from helpers.doctor.resources import machine_in_numbers

__all__ = [
    "OK",  # nothing to do
    "WARN",  # lessons run, but not as you may expect
    "FAIL",  # a lesson will stop
    "Finding",  # one line of the doctor
    "tidy",  # a text in one line, without tokens and paths
    "worst",  # the worst status of several findings
    "examine",  # run checks in order
    "problems",  # what they find that is not OK
    "INSTALLED",  # checks of what is installed
    "MACHINE",  # checks of disk and memory
    "NETWORK",  # checks of the network and the hub
    "TORCH",  # checks that import torch
    "machine_in_numbers",  # the machine in a few numbers, for the doctor's page
    "Child",  # runs the checks that import torch in a process of its own
]
