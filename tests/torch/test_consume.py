"""consume: who shares a weight's storage, counted; and what an alias does after its bytes are gone."""

from __future__ import annotations

import gc
import copy
import io
import pickle

import numpy
import pytest
import torch

import gpuledger
import gpuledger.torch
from gpuledger.torch import consume

pytestmark = pytest.mark.usefixtures("cpu_ledger")
WEIGHT = "layers.3.up_proj.weight"


def make_source() -> torch.Tensor:
    with gpuledger.owner(WEIGHT, role="source"):
        return torch.ones(8, 4)


@pytest.mark.parametrize("policy", ["refuse", "poison", "report"])
def test_frees_what_nobody_else_holds(policy):
    source = make_source()
    report = consume(source, weight=WEIGHT, policy=policy)
    assert report.freed and report.bytes == 128 and report.charged == 512 and report.remaining == 0
    assert sum(report.holders.values()) == 0
    assert gpuledger.usage(WEIGHT) == 0
    with pytest.raises(RuntimeError, match=WEIGHT):
        source.sum()


def test_an_entry_of_a_container_is_the_callers_own():
    weights = {"up": make_source()}
    report = consume(weights["up"], weight=WEIGHT)
    assert report.freed


def saved_input(tensor):
    return torch.ones(8, 4, requires_grad=True) * tensor


# What shares, and the holders it adds by kind.
SHARING = {
    "name": (lambda t: t, {"python_references": 1}),
    "list": (lambda t: [t, t, t], {"python_references": 3}),
    "detach": (lambda t: t.detach(), {"aliases": 1}),
    "data": (lambda t: t.data, {"aliases": 1}),
    "view": (lambda t: t.view(32), {"aliases": 1, "tensor_handles": 1}),
    "slice": (lambda t: t[2:5], {"aliases": 1, "tensor_handles": 1}),
    "transpose": (lambda t: t.T, {"aliases": 1, "tensor_handles": 1}),
    "parameter": (lambda t: torch.nn.Parameter(t), {"aliases": 1}),
    "make_subclass": (lambda t: torch.Tensor._make_subclass(torch.nn.Parameter, t), {"aliases": 1}),
    "autograd_input": (saved_input, {"tensor_handles": 1}),
    "storage": (lambda t: t.untyped_storage(), {"python_storages": 1}),
    "typed_storage": (lambda t: t.storage(), {"python_storages": 1}),
    "closure": (lambda t: lambda: t, {"python_references": 1}),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", SHARING)
class TestSharing:
    def test_is_refused_with_count_owner_and_kind(self, kind):
        share, expected = SHARING[kind]
        source = make_source()
        other = share(source)
        with pytest.raises(gpuledger.SharedStorageError) as caught:
            consume(source, weight=WEIGHT)
        assert {k: v for k, v in caught.value.holders.items() if v} == expected
        assert caught.value.weight == WEIGHT
        message = str(caught.value)
        assert f"weight '{WEIGHT}' (128 B, paid by '{WEIGHT}' as source)" in message
        assert f" {sum(expected.values())} more reference" in message
        assert source.sum() == 32 and other is not None
        assert gpuledger.usage(WEIGHT) >= 512

    def test_is_poisoned(self, kind):
        share, expected = SHARING[kind]
        gc.collect()  # what earlier tests left in cycles is not freed while bytes are counted
        source = make_source()
        other = share(source)
        before = gpuledger.usage(WEIGHT)
        report = consume(source, weight=WEIGHT, policy="poison")
        assert report.freed and sum(report.holders.values()) == sum(expected.values())
        assert before - gpuledger.usage(WEIGHT) == 512 and other is not None
        with pytest.raises(RuntimeError, match=f"weight '{WEIGHT}' was consumed"):
            source + 1

    def test_is_reported_and_left(self, kind):
        share, expected = SHARING[kind]
        source = make_source()
        other = share(source)
        report = consume(source, weight=WEIGHT, policy="report")
        assert not report.freed and sum(report.holders.values()) == sum(expected.values())
        assert report.remaining >= 512
        assert source.sum() == 32 and other is not None


def test_a_dropped_holder_no_longer_counts():
    source = make_source()
    views = [source[i] for i in range(3)]
    storage = source.untyped_storage()
    with pytest.raises(gpuledger.SharedStorageError):
        consume(source, weight=WEIGHT)
    del views, storage
    assert consume(source, weight=WEIGHT).freed


def test_looking_for_holders_keeps_nothing_alive():
    source = make_source()
    bystander = make_source()
    views = [source[0]]
    with pytest.raises(gpuledger.SharedStorageError):
        consume(source, weight=WEIGHT)
    del views
    before = gpuledger.usage(WEIGHT)
    del bystander
    assert before - gpuledger.usage(WEIGHT) == 512


def test_an_output_saved_by_autograd_is_counted():
    output = torch.zeros(8, 4, requires_grad=True).exp()
    with pytest.raises(gpuledger.SharedStorageError) as caught:
        consume(output, weight=WEIGHT)
    assert caught.value.holders["aliases"] == 1


def test_backward_through_a_poisoned_input_names_the_weight():
    source = make_source()
    loss = (torch.ones(8, 4, requires_grad=True) * source).sum()
    consume(source, weight=WEIGHT, policy="poison")
    with pytest.raises(RuntimeError, match=WEIGHT):
        loss.backward()


def test_the_message_names_the_holders_that_python_can_see():
    def convert(input_dict):
        value = input_dict["up_proj"]
        parameter = torch.nn.Parameter(value)
        with pytest.raises(gpuledger.SharedStorageError) as caught:
            consume(value, weight=WEIGHT)
        assert parameter is not None
        return str(caught.value)

    message = convert({"up_proj": make_source()})
    assert "2 more references (1 other tensor on its storage, 1 Python reference to the tensor)" in message
    assert "local 'value' of convert()" in message
    assert "under key 'up_proj' of dict local 'input_dict' of convert()" in message
    assert "Parameter float32 [8, 4]: local 'parameter' of convert()" in message


def test_a_suspended_generator_is_named():
    def convert(tensor):
        value = tensor
        yield value.sum()

    source = make_source()
    generator = convert(source)
    next(generator)
    with pytest.raises(gpuledger.SharedStorageError, match=r"local 'value' of convert\(\) in \S+, a suspended generator"):
        consume(source, weight=WEIGHT)


READINGS = {
    "print": lambda t: print(t),
    "repr": repr,
    "format": lambda t: f"{t[0, 0]:.2f}",
    "index by tensor": lambda t: t[torch.tensor([0, 1])],
    "index by mask": lambda t: t[torch.ones(8, 4) > 0],
    "index by list": lambda t: t[[0, 1]],
    "assign": lambda t: t.__setitem__(0, 3.0),
    "basic index, then read": lambda t: float(t[0, 0]),
    "view, then read": lambda t: t.view(32).sum(),
    "iterate": lambda t: [float(x) for x in t[0]],
    "bool": lambda t: bool(t[0, 0]),
    "item": lambda t: t[0, 0].item(),
    "tolist": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "numpy.asarray": lambda t: numpy.asarray(t),
    "numpy.array": lambda t: numpy.array(t, copy=None),
    "dlpack": lambda t: t.__dlpack__(),
    "clone": lambda t: t.clone(),
    "copy from": lambda t: torch.empty(8, 4).copy_(t),
    "copy into": lambda t: t.copy_(torch.ones(8, 4)),
    "convert": lambda t: t.to(torch.float64),
    "contiguous": lambda t: t.T.contiguous(),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda t: torch.save(t, io.BytesIO()),
    "share_memory": lambda t: t.share_memory_(),
    "add": lambda t: t + 1,
    "add in place": lambda t: t.add_(1),
    "multiply": lambda t: t * t,
    "out": lambda t: torch.mul(torch.ones(8, 4), 2, out=t),
    "matmul": lambda t: t @ torch.ones(4, 4),
    "linear": lambda t: torch.nn.functional.linear(torch.ones(1, 4), t),
    "sum": lambda t: t.sum(),
    "equal": lambda t: torch.equal(t, torch.ones(8, 4)),
    "allclose": lambda t: torch.allclose(t, torch.ones(8, 4)),
    "cat": lambda t: torch.cat([t, t]),
    "fill": lambda t: t.fill_(0),
    "zero": lambda t: t.zero_(),
    "random": lambda t: t.uniform_(),
    "resize": lambda t: t.resize_(1000),
    "data_ptr": lambda t: t.data_ptr(),
    "storage data_ptr": lambda t: t.untyped_storage().data_ptr(),
    "storage index": lambda t: t.untyped_storage()[0],
    "storage resize": lambda t: t.untyped_storage().resize_(0),
    "storage clone": lambda t: t.untyped_storage().clone(),
}


@pytest.mark.parametrize("alias", ["detach", "parameter", "itself"])
@pytest.mark.parametrize("reading", READINGS)
def test_reading_a_poisoned_alias_names_the_weight(reading, alias):
    source = make_source()
    target = {
        "detach": lambda: source.detach(),
        "parameter": lambda: torch.nn.Parameter(source, requires_grad=False),
        "itself": lambda: source,
    }[alias]()
    consume(source, weight=WEIGHT, policy="poison")
    with pytest.raises(RuntimeError, match=f"weight '{WEIGHT}' was consumed"):
        READINGS[reading](target)


def test_a_basic_index_or_view_of_a_poisoned_alias_is_only_another_view():
    source = make_source()
    alias = source.detach()
    consume(source, weight=WEIGHT, policy="poison")
    assert alias[0].shape == (4,) and alias.view(32).numel() == 32 and alias.nbytes == 128


class TestBytesThatAreNotOurs:
    def refuse(self, tensor, why):
        for policy in ("refuse", "poison"):
            with pytest.raises(gpuledger.UnfreeableStorageError, match=why) as caught:
                consume(tensor, weight=WEIGHT, policy=policy)
            assert WEIGHT in str(caught.value)
        report = consume(tensor, weight=WEIGHT, policy="report")
        assert not report.freed and not report.freeable
        tensor.sum()

    def test_a_numpy_export_is_refused(self):
        tensor = make_source()
        array = tensor.numpy()
        self.refuse(tensor, "NumPy")
        assert array.sum() == 32

    def test_a_numpy_import_is_refused(self):
        self.refuse(torch.from_numpy(numpy.ones(4, dtype=numpy.float32)), "blob")

    def test_a_buffer_is_refused(self):
        self.refuse(torch.frombuffer(bytearray(16), dtype=torch.float32), "blob")

    def test_a_mapped_file_is_refused(self, tmp_path):
        file = tmp_path / "mapped"
        file.write_bytes(bytes(16))
        self.refuse(torch.from_file(str(file), size=4, dtype=torch.float32), "mapped file")

    def test_a_mapped_checkpoint_is_refused(self, tmp_path):
        from safetensors.torch import load_file, save_file

        save_file({"w": torch.ones(1000)}, tmp_path / "w.safetensors")
        self.refuse(load_file(tmp_path / "w.safetensors")["w"], "mapped file|blob|exported")

    def test_a_mapped_torch_file_is_refused(self, tmp_path):
        torch.save(torch.ones(1000), tmp_path / "w.pt")
        self.refuse(torch.load(tmp_path / "w.pt", mmap=True), "mapped file|blob|exported")

    def test_shared_memory_is_refused(self):
        self.refuse(torch.ones(10).share_memory_(), "shared memory")


def test_a_consumed_weight_cannot_be_consumed_again():
    source = make_source()
    consume(source, weight=WEIGHT)
    with pytest.raises(ValueError, match="consumed before"):
        consume(source, weight=WEIGHT)


def test_what_is_no_tensor_or_has_no_storage_is_turned_away():
    with pytest.raises(TypeError, match="not list"):
        consume([1.0], weight=WEIGHT)
    with pytest.raises(ValueError, match="policy is 'drop'"):
        consume(make_source(), weight=WEIGHT, policy="drop")
    with pytest.raises(ValueError, match="no storage"):
        consume(torch.ones(2, 2).to_sparse(), weight=WEIGHT)
    with pytest.raises(ValueError, match="meta"):
        consume(torch.empty(3, device="meta"), weight=WEIGHT)


def test_a_tensor_from_before_the_install_is_consumed_too():
    gpuledger.torch.uninstall_cpu()
    source = torch.ones(100)
    gpuledger.torch.install_cpu()
    report = consume(source, weight=WEIGHT)
    assert report.freed and report.charged == 0
