"""Owners of CUDA memory, under each way in that there is: `owned_training.py`, in a session of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("way", ["allocator", "pluggable", "observe"])
def test_every_byte_has_its_owner(way):
    done = subprocess.run([sys.executable, "-m", "pytest", "--color=no", str(Path(__file__).with_name("owned_training.py"))],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=TESTS.parent, timeout=600,
                          env={**{k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}, "WAY_IN": way})
    assert done.returncode == 0, f"\n{done.stdout}\n{done.stderr}"
