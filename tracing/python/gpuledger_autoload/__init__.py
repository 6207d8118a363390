"""What ``import torch`` runs of gpuledger (entry point ``torch.backends``): nothing, unless ``GPULEDGER_TORCH`` asks for it.

A package of its own, so that nothing else of gpuledger's is imported then. No exception leaves it: PyTorch would not import.
"""

from __future__ import annotations

import os
import sys


def on_import_torch() -> None:
    """Switches on the way into CUDA memory that ``GPULEDGER_TORCH`` names."""
    if os.environ.get("GPULEDGER_TORCH", "") in ("", "off"):
        return
    try:
        from gpuledger._ways import install_from_environment

        install_from_environment()
    except Exception as error:
        try:
            print(f"gpuledger: CUDA memory is not recorded: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        except Exception:  # stderr is closed
            pass
