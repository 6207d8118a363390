"""These tests are about the fake itself: on a machine with a GPU they are skipped unless GPULEDGER_TEST_CUDA=fake."""

import os
import subprocess
import sys
import textwrap

import fake_cuda
import pytest


def pytest_runtest_setup(item):
    # An item that is no function runs the file in a session of its own (../conftest.py).
    if isinstance(item, pytest.Function) and not fake_cuda.is_on():
        pytest.skip("needs the fake CUDA")


@pytest.fixture
def own_process():
    """Runs a script in a new interpreter, which has to end well and say nothing on stderr; returns what it printed."""

    def run(script: str, **environment: str) -> str:
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300,
                              stdin=subprocess.DEVNULL, env={**os.environ, **environment})
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run
