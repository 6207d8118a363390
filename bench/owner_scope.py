"""What an owner scope costs in Python: entered and left, by name and as a decorator, beside an empty context manager.

    PYTHONPATH=tracing/python python bench/owner_scope.py
"""

import timeit

import gpuledger

ROUNDS, CALLS = 15, 100_000


class Empty:
    __slots__ = ("name", "role")

    def __init__(self, name, role):
        self.name, self.role = name, role

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        pass


def nothing():
    pass


def empty():
    with Empty("model/layers.3", "source"):
        pass


def scope():
    with gpuledger.owner("model/layers.3", "source"):
        pass


def nested():
    with gpuledger.owner("model"), gpuledger.owner("layers.3", "source"):
        pass


decorated = gpuledger.owner("model/layers.3")(nothing)

for name, function in {"a call": nothing, "an empty context manager": empty, "owner()": scope, "two, nested": nested, "decorated": decorated}.items():
    print(f"{name:<26}{min(timeit.repeat(function, number=CALLS, repeat=ROUNDS)) / CALLS * 1e9:7.0f} ns")
