"""Fixtures: the package from the checkout, and processes of their own for what needs a fresh PyTorch. For conftest.py."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tracing" / "python"
BINARY = Path(os.environ.get("GPULEDGER_BINARY", ROOT / "build/release/bin/gpuledger"))
sys.path.insert(0, str(PACKAGE))


@pytest.fixture
def fresh_python():
    """Runs a script in a new interpreter that has gpuledger; the script must exit with 0 and say nothing on stderr."""

    def run(script: str, **environment: str) -> str:
        paths = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def cpu_ledger():
    """gpuledger's allocator under the CPU tensors of one test."""
    import gpuledger.torch

    gpuledger.torch.install_cpu()
    yield
    gpuledger.torch.uninstall_cpu()
