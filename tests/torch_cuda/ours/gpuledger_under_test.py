"""Puts gpuledger's allocator under PyTorch's CUDA tensors, in the process of the tests and in all that it starts.

PyTorch calls `install` at the end of `import torch`, since this folder is on PYTHONPATH with an entry point of the group
"torch.backends" (../under_test.py puts it there). Only the library is used, nothing of the Python package.
"""

import ctypes
import os


def install():
    library = ctypes.CDLL(os.environ["GPULEDGER_TORCH_CUDA_LIBRARY"])
    if library.gpuledger_torch_cuda_install() != 0:
        library.gpuledger_last_error.restype = ctypes.c_char_p
        raise RuntimeError(library.gpuledger_last_error().decode())
