"""Where gpuledger is, for the tests that run it under PyTorch: a build of this checkout, or what the environment names."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tracing" / "python"
BINARY = Path(os.environ.get("GPULEDGER_BINARY", ROOT / "build/release/bin/gpuledger"))
LIBRARY = Path(os.environ.get("GPULEDGER_TORCH_CUDA_LIBRARY", ROOT / "build/release/lib/libgpuledger_torch_cuda.so"))
