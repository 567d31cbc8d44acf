"""A stand-in for google.colab.drive: what is mounted is a folder of this machine, with MyDrive in it."""

import os


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    if os.environ.get("DRIVE_REFUSED"):  # what happens when somebody closes the dialogue
        raise ValueError("mount failed: invalid oauth code")
    os.makedirs(os.path.join(mountpoint, "MyDrive"), exist_ok=True)
    print(f"Mounted at {mountpoint}")
