"""Puts the fake CUDA where PyTorch looks for a real one; on a machine with a GPU, leaves that one in its place.

PyTorch's libraries carry a run path of their own, which comes before LD_LIBRARY_PATH. But a library that is loaded
already is not searched for, and is known by its soname: so `switch_on` loads ours before `import torch`, and has
LD_PRELOAD do the same in processes that this one starts.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("libcuda.so.1", "libcudart.so.13")
CUBLAS = ("cublas/libcublasLt.so.13", "cublas/libcublas.so.13")

_driver: ctypes.CDLL | None = None


def has_gpu() -> bool:
    """Whether the kernel has an NVIDIA device. Asks no CUDA library: one that is loaded here could not be replaced."""
    return any(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*")) or Path("/dev/dxg").exists()


def wanted() -> bool:
    """GPULEDGER_TEST_CUDA=fake or real decides; without it, a GPU is used where there is one."""
    choice = os.environ.get("GPULEDGER_TEST_CUDA", "")
    if choice not in ("", "fake", "real"):
        raise RuntimeError(f"GPULEDGER_TEST_CUDA={choice}: it is fake or real")
    return choice == "fake" or (choice == "" and not has_gpu())


def libraries() -> list[Path]:
    """Our libraries in the order of loading. FAKE_CUDA_CUBLAS=1 adds the do-nothing cuBLAS."""
    folder = os.environ.get("GPULEDGER_FAKE_CUDA") or ROOT / "build/release/fake_cuda"
    names = LIBRARIES + (CUBLAS if os.environ.get("FAKE_CUDA_CUBLAS") == "1" else ())
    paths = [Path(folder).resolve() / name for name in names]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise RuntimeError(f"{', '.join(missing)}: not built (cmake --build --preset release)")
    return paths


def switch_on(devices: int = 1, cublas: bool = False) -> bool:
    """Loads the fake for this process and its children, if it is wanted; True if it is in place.

    FAKE_CUDA_DEVICES and FAKE_CUDA_CUBLAS in the environment come before the arguments.
    """
    global _driver
    if _driver is not None or not wanted():
        return _driver is not None
    os.environ.setdefault("FAKE_CUDA_DEVICES", str(devices))
    os.environ.setdefault("FAKE_CUDA_CUBLAS", str(int(cublas)))
    if "torch" in sys.modules:
        raise RuntimeError("the fake CUDA has to be switched on before torch is imported")
    paths = libraries()
    loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]
    _driver = loaded[0]
    others = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if path and path not in map(str, paths)]
    os.environ["LD_PRELOAD"] = ":".join([*map(str, paths), *others])
    return True


def is_on() -> bool:
    return _driver is not None


def driver() -> ctypes.CDLL:
    """The fake's own controls (fake_cuda.h), for tests that need a property of the fake."""
    if _driver is None:
        raise RuntimeError("the fake CUDA is not switched on")
    _driver.fakeCudaHoldEvents.argtypes = [ctypes.c_int]
    _driver.fakeCudaHoldEvents.restype = None
    _driver.fakeCudaCallCount.argtypes = [ctypes.c_char_p]
    _driver.fakeCudaCallCount.restype = ctypes.c_ulonglong
    _driver.fakeCudaInjectFaults.argtypes = [ctypes.c_char_p]
    _driver.fakeCudaClearFaults.restype = None
    return _driver
