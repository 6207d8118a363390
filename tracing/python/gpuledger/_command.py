"""The ``gpuledger`` command of an installed package: hands over to the program that came with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    binary = Path(__file__).resolve().parent / "bin" / "gpuledger"
    if not binary.exists():
        sys.exit(f"gpuledger: {binary} is not there: in a checkout, the command is build/release/bin/gpuledger")
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])  # doctor asks python3
    os.execv(binary, ["gpuledger", *sys.argv[1:]])
