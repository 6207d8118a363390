"""Holders as paths: what keeps a storage alive, by name; and the search leaves no trace of itself."""

from __future__ import annotations

import collections
import functools
import gc
import sys
import threading
import types
import weakref

import pytest
import torch

import gpuledger
import gpuledger.torch
from gpuledger._tensors import Holders, address_of

pytestmark = pytest.mark.usefixtures("cpu_ledger")


def holders(address):
    return [path.text for path in Holders([(address, 1)]).paths(address)]


class Node:
    pass


class Slotted:
    __slots__ = ("slot",)


module = types.ModuleType("gpuledger_test_module")
sys.modules[module.__name__] = module


@pytest.fixture(autouse=True)
def clean_module():
    yield
    for name in [name for name in vars(module) if not name.startswith("__")]:
        delattr(module, name)


def planted(plant):
    """The paths to a tensor whose only holder is what `plant` makes of it, an attribute of the module."""
    tensor = torch.ones(8)
    address = address_of(tensor)
    module.kept = plant(tensor)
    del tensor
    return holders(address)


def named(name):
    instance = Node()
    setattr(instance, "inner", name)
    return instance


def slotted(tensor):
    instance = Slotted()
    instance.slot = tensor
    return instance


def suspended(tensor):
    def generate(value):
        yield 0
        del value

    generator = generate(tensor)
    next(generator)
    return generator


ROOT = "gpuledger_test_module.kept"
PLANTED = {
    "module attribute": (lambda t: t, f"module attribute {ROOT}"),
    "list": (lambda t: [0, t], f"element 1 of list {ROOT}"),
    "tuple": (lambda t: (t,), f"element 0 of tuple {ROOT}"),
    "deque": (lambda t: collections.deque([0, 0, t]), f"element 2 of deque {ROOT}"),
    "set": (lambda t: {t}, f"an element of set {ROOT}"),
    "dict": (lambda t: {"w": t}, f"under key 'w' of dict {ROOT}"),
    "dict by tuple": (lambda t: {(1, "a"): t}, f"under key (1, 'a') of dict {ROOT}"),
    "dict by object": (lambda t: {Node: t}, f"under a key of type of dict {ROOT}"),
    "dict key": (lambda t: {t: 1}, f"a key of dict {ROOT}"),
    "hops": (lambda t: {"a": [{"b": (t,)}]}, f"element 0 of tuple under key 'b' of dict element 0 of list under key 'a' of dict {ROOT}"),
    "attribute": (named, f"attribute 'inner' of Node {ROOT}"),
    "slot": (slotted, f"attribute 'slot' of Slotted {ROOT}"),
    "class": (lambda t: type("Kept", (), {"shared": t}), "attribute 'shared' of class test_holder_paths.Kept"),
    "partial": (lambda t: functools.partial(print, t), f"element 0 of tuple attribute 'args' of partial {ROOT}"),
    "bound method": (lambda t: t.sum, f"held by builtins.builtin_function_or_method {ROOT}"),
    "view": (lambda t: t[2:4], f"view float32 [2]: module attribute {ROOT}"),
    "detach": (lambda t: t.detach(), f"module attribute {ROOT}"),
    "parameter": (lambda t: torch.nn.Parameter(t), f"Parameter float32 [8]: module attribute {ROOT}"),
    "storage": (lambda t: t.untyped_storage(), f"storage object: module attribute {ROOT}"),
    "numpy": (lambda t: t.numpy(), "a reference that Python does not show (a NumPy array, C++)"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_holder_is_named_by_its_path(kind):
    plant, expected = PLANTED[kind]
    assert planted(plant) == [expected]


def test_a_default_and_a_closure_are_named_with_their_function():
    def function(tensor):
        return lambda value=tensor: value

    [path] = planted(function)
    assert path.startswith("element 0 of tuple a default of test_a_default") and path.endswith(ROOT)

    def closure(tensor):
        return lambda: tensor

    [path] = planted(closure)
    assert path.startswith("variable 'tensor' of closure ") and path.endswith(ROOT) and "test_holder_paths.py" in path


def test_a_suspended_generator_is_named():
    [path] = planted(suspended)
    assert path.startswith("local 'value' of generate() in test_holder_paths.py:")
    assert path.endswith(f", a suspended generator, {ROOT}")


def test_a_running_function_and_its_caller_are_named():
    def convert(input_dict):
        value = input_dict["w"][0]
        return holders(address_of(value))

    def load():
        sources = {"w": [torch.ones(8)]}
        return convert(sources)

    value, element = load()
    assert value.startswith("local 'value' of convert() in test_holder_paths.py:")
    assert element.startswith("element 0 of list under key 'w' of dict local 'sources' of load() in test_holder_paths.py:")


def test_a_local_of_another_thread_is_named():
    ready, done = threading.Event(), threading.Event()
    address = []

    def work():
        tensor = torch.ones(8)
        address.append(address_of(tensor))
        ready.set()
        done.wait()
        del tensor

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    [path] = holders(address[0])
    done.set()
    thread.join()
    assert path.startswith("local 'tensor' of work() in test_holder_paths.py:")


def test_a_module_of_torch_names_its_parameters():
    module.kept = torch.nn.Sequential(torch.nn.Linear(4, 4))
    [path] = holders(address_of(module.kept[0].weight))
    assert path == f"Parameter float32 [4, 4]: parameter 'weight' of Linear submodule '0' of Sequential {ROOT}"
    module.kept(torch.ones(1, 4)).sum().backward()
    grad = address_of(module.kept[0].bias.grad)
    [path] = holders(grad)
    assert path.startswith("gradient of Parameter float32 [4]: parameter 'bias' of Linear")


def failing(size):
    scratch = torch.ones(size)
    raise ValueError(address_of(scratch))


def test_a_kept_exception_holds_through_its_traceback():
    try:
        failing(8)
    except ValueError as error:
        module.kept = error
    [path] = Holders([(module.kept.args[0], 1)]).paths(module.kept.args[0])
    assert path.through_traceback
    assert path.text.startswith("local 'scratch' of failing() in test_holder_paths.py:")
    assert path.text.endswith(f", held by the traceback of ValueError {ROOT}")


def test_the_last_exception_of_the_interpreter_is_named(monkeypatch):
    try:
        failing(8)
    except ValueError as error:
        monkeypatch.setattr(sys, "last_exc", error, raising=False)
        address = error.args[0]
    [path] = holders(address)
    assert path.endswith("held by the traceback of ValueError sys.last_exc")


def test_an_exception_that_is_over_holds_nothing():
    try:
        failing(8)
    except ValueError as error:
        address = error.args[0]
    assert holders(address) == []


def test_a_notebooks_output_is_named(monkeypatch):
    tensor = torch.ones(8)
    address = address_of(tensor)
    monkeypatch.setattr(sys.modules["__main__"], "Out", {5: tensor}, raising=False)
    del tensor
    assert holders(address) == ["the notebook's Out[5]"]


def test_a_cycle_is_called_one():
    gc.disable()
    try:
        node = Node()
        node.tensor, node.me = torch.ones(8), node
        address = address_of(node.tensor)
        del node
        assert holders(address) == ["attribute 'tensor' of Node, a cycle that nothing else refers to"]
    finally:
        gc.enable()
        gc.collect()


def test_what_c_plus_plus_alone_holds_is_counted():
    source = torch.ones(8)
    address = address_of(source)
    loss = torch.ones(8, requires_grad=True) * source
    del source
    found = Holders([(address, 1)])
    assert found.paths(address) == [] or "does not show" in found.paths(address)[0].text
    assert "C++" in found.hidden(address)
    assert loss is not None


def test_a_lazy_proxy_is_not_woken():
    class Lazy:
        def __getattribute__(self, name):
            raise AssertionError(f"it was asked for {name}")

    tensor = torch.ones(8)
    lazy = Lazy()
    object.__setattr__(lazy, "hidden", tensor)
    module.kept = lazy
    address = address_of(tensor)
    del tensor, lazy
    assert holders(address) == [f"attribute 'hidden' of Lazy {ROOT}"]


def test_looking_for_holders_keeps_nothing_alive_and_touches_no_shared_bytes():
    source = torch.ones(8)
    sibling = torch._lazy_clone(source)
    assert len(holders(address_of(source))) >= 1
    assert torch._C._is_cow_tensor(sibling)
    gone = weakref.ref(source)
    counted = sys.getrefcount(source)
    holders(address_of(source))
    counted_after = sys.getrefcount(source)
    assert counted_after == counted
    before = gpuledger.usage()
    other = torch.ones(8)
    holders(address_of(other))
    del other
    assert gpuledger.usage() == before
    del source
    assert gone() is None
