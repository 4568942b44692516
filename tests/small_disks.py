"""Real disks that are small, full or read-only: file systems in memory."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def mounted(place, options):
    """Mounts a file system in memory at a new folder; needs the rights of an administrator."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True)
