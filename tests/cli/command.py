"""The `gpuledger` command, for the tests beside this file."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("GPULEDGER_BINARY", ROOT / "build/release/bin/gpuledger"))
HANDLE = 2 << 20


def gpuledger(*arguments, env=None):
    command = [BINARY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})})


def answer(*arguments, code=0):
    """The JSON object on stdout of a run that ends with this exit code."""
    ran = gpuledger(*arguments, "--json")
    assert ran.returncode == code, ran.stderr
    return json.loads(ran.stdout)
