"""Short words for what the tests of PyTorch's memory do again and again."""

import gc

import torch

MIB = 1 << 20

# What importing PyTorch leaves behind lives on; without it a collection takes a millisecond instead of 200.
gc.collect()
gc.freeze()


def tensor(size, device="cuda"):
    return torch.empty(size, dtype=torch.uint8, device=device)


def numbers(count=1024):
    """Different bytes at every call, on the host."""
    return torch.randint(0, 256, (count,), dtype=torch.uint8)


def segments(pool=None):
    found = torch.cuda.memory_snapshot() if pool is None else pool.snapshot()
    return [s for s in found if s["device"] == torch.cuda.current_device()]


def segment_of(t):
    return next(s for s in segments() if s["address"] <= t.data_ptr() < s["address"] + s["total_size"])


def settle():
    """Everything that is finished is given back, and the peaks are what is there now."""
    gc.collect()
    for device in range(torch.cuda.device_count()):
        torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)


class Grown:
    """How far the figures of a device have moved since this was made: by name, and the two that matter most."""

    def __init__(self, device=0):
        self.device = device
        self.first = torch.cuda.memory_stats(device)

    def __getitem__(self, key):
        return torch.cuda.memory_stats(self.device).get(key, 0) - self.first.get(key, 0)

    @property
    def allocated(self):
        return self["allocated_bytes.all.current"]

    @property
    def reserved(self):
        return self["reserved_bytes.all.current"]
