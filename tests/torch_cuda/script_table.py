"""The table of scripts that test_ends.py runs: what they share, and how one is added."""

from __future__ import annotations

PRELUDE = """
import atexit, contextlib, copy, functools, gc, io, os, sys, threading, weakref
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

torch.backends.cudnn.enabled = False  # not on the fake CUDA
WIDTH = 256

def make_model(layers=3):
    return nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(layers)]).cuda()

def batches(count=4):
    for _ in range(count):
        yield torch.randn(32, WIDTH).cuda(), torch.randint(0, WIDTH, (32,)).cuda()

def step(model, optimizer, x, y):
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

class Items(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return torch.full((WIDTH,), float(i)), i
"""

SCRIPTS: dict[str, str] = {}
ENDS: dict[str, int] = {}  # exit codes other than 0


def script(name: str, text: str, ends: int = 0) -> None:
    SCRIPTS[name] = text
    if ends:
        ENDS[name] = ends
