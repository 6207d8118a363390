"""Owners of CUDA memory: a training loop, threads of PyTorch, Consume, holders. Run by test_owners.py, which says by which way in.

On a GPU and on the fake CUDA alike; no value is looked at.
"""

import gc
import os
import sys
import threading
from pathlib import Path

import fake_cuda
import pytest
import torch
from cuda_memory import MIB, tensor
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import python_package  # noqa: E402, F401

import gpuledger  # noqa: E402
import gpuledger.torch  # noqa: E402
from gpuledger.torch import consume  # noqa: E402

WIDTH = 512
LAYERS = 3
BATCH = 256
WAY = os.environ["WAY_IN"]


def setup_module():
    gpuledger.torch.install(way=WAY)


def allocated(device="cuda"):
    """As PyTorch counts it, where it counts."""
    return gpuledger.balance(device).in_use if WAY == "pluggable" else torch.cuda.memory_allocated(device)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, WIDTH)
        self.down = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


PARAMETERS = LAYERS * 2 * (WIDTH * WIDTH + WIDTH) * 4  # all multiples of 512


def owned(device="cuda"):
    """Bytes in use by (owner, role); proves that they are all there is."""
    found = {(share.owner, share.role): share.in_use for share in gpuledger.balance(device).owners}
    assert sum(found.values()) == allocated(device)
    return found


def of_role(role, device="cuda"):
    return sum(size for (_, its_role), size in owned(device).items() if its_role == role)


@pytest.fixture(autouse=True)
def settled():
    yield  # in place of that of conftest.py: not every way in has peaks that could be reset
    gc.collect()
    torch.cuda.synchronize()


@pytest.fixture
def batch():
    with gpuledger.owner("data", role="other"):
        made = torch.randn(BATCH, WIDTH).cuda()
    yield made
    del made
    gc.collect()


class TestTraining:
    @pytest.mark.parametrize("kind", ["AdamW", "SGD"])
    def test_each_byte_is_owned_in_its_role_after_each_step(self, batch, kind):
        model = Net().cuda()
        options = {"AdamW": {}, "SGD": {"lr": 0.1, "momentum": 0.9}}[kind]
        optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
        moments = {"AdamW": 2, "SGD": 1}[kind]
        with gpuledger.follow(model, optimizer), gpuledger.module_scopes(model):
            for step in range(4):
                with gpuledger.owner("loop", role="activation"):
                    optimizer.zero_grad(set_to_none=True)
                    assert of_role("gradient") == 0
                    out = model(batch)
                    assert of_role("activation") >= LAYERS * 2 * batch.nbytes  # what relu gave, and the sum
                    loss = out.sum()
                    loss.backward()
                    assert of_role("gradient") == PARAMETERS
                    del out, loss
                    optimizer.step()
                found = owned()
                by_role = {role: of_role(role) for _, role in found}
                workspaces = by_role.pop("scratch")
                assert by_role == {"other": PARAMETERS + batch.nbytes, "gradient": PARAMETERS, "optimizer": moments * PARAMETERS}, step
                assert workspaces == sum(size for (owner, _), size in found.items() if owner.startswith("cublas"))
                assert not any(owner == "unattributed" for owner, _ in found)
                for name, parameter in model.named_parameters():
                    size = parameter.nbytes
                    assert [found[f"model/{name}", role] for role in ("other", "gradient", "optimizer")] == [size, size, moments * size]

    def test_the_balance_sheet_adds_up(self, batch):
        sheet = gpuledger.balance("cuda")
        free, total = torch.cuda.mem_get_info()
        assert sheet.total == total and sheet.total - sheet.free == sheet.reserved + sheet.external + sheet.unattributed
        assert sheet.unattributed >= 0
        assert sheet.reserved == sheet.in_use + sheet.pending + sheet.cached
        if WAY != "pluggable":
            assert sheet.reserved == torch.cuda.memory_reserved()
        assert sheet.in_use == allocated() == sum(share.in_use for share in sheet.owners)
        assert sheet == gpuledger.balance() == gpuledger.balance(0) == gpuledger.balance(torch.device("cuda:0"))
        assert "data [other]" in str(sheet)

    @pytest.mark.skipif(WAY == "pluggable", reason="PyTorch has no MemPool there")
    def test_memory_of_a_pool_is_on_the_sheet(self, batch):
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool), gpuledger.owner("pooled"):
            kept = tensor(3 * MIB)
        assert owned()["pooled", "other"] == kept.nbytes


class TestBackwardThreads:
    def test_pay_as_the_thread_that_called_backward(self, batch):
        x = batch.clone().requires_grad_()
        kept, threads = [], set()

        def hook(gradient):
            threads.add(threading.get_ident())
            kept.append(tensor(MIB))
            with gpuledger.owner("inner", role="cache"):
                kept.append(tensor(2 * MIB))

        x.register_hook(hook)
        with gpuledger.owner("caller", role="scratch"):
            (x * x).sum().backward()
        found = owned()
        assert threads and threading.get_ident() not in threads
        assert found["caller", "scratch"] == MIB + x.grad.nbytes
        assert found["caller/inner", "cache"] == 2 * MIB

    def test_pay_as_nobody_once_the_caller_is_in_no_scope(self, batch):
        x = batch.clone().requires_grad_()
        (x * x).sum().backward()
        assert owned()["unattributed", "other"] >= x.grad.nbytes

    def test_each_caller_has_his_own(self, batch):
        made = {}

        def call(name):
            x = batch.clone().requires_grad_()
            with gpuledger.owner(name, role="scratch"):
                for _ in range(10):
                    x.grad = None
                    (x * x).sum().backward()
            made[name] = x

        threads = [threading.Thread(target=call, args=(f"caller {i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = owned()
        assert [found[name, "scratch"] for name in made] == [batch.nbytes] * 4

    def test_gradients_of_activations_are_paid_by_the_module_of_their_operation(self, batch):
        model = Net().cuda()
        seen = []
        with gpuledger.module_scopes(model, name="net"):
            model(batch).sum().backward()  # workspaces are there, and named
            model.zero_grad(set_to_none=True)
            out = model(batch)
            model.layers[1].up.weight.register_hook(lambda gradient: seen.append(owned()))
            out.sum().backward()
        (at_hook,) = seen
        for part in ("up", "down"):  # of the weight and the bias, at least
            linear = getattr(model.layers[2], part)
            assert at_hook[f"net/layers.2.{part}", "gradient"] >= linear.weight.nbytes + linear.bias.nbytes
        assert at_hook["net/layers.1.up", "gradient"] >= model.layers[1].up.weight.nbytes
        assert not any(owner.startswith("net/layers.0") and role == "gradient" for owner, role in at_hook)  # not yet

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_a_forward_pass_that_is_run_again_there_is_paid_by_its_modules(self, batch, use_reentrant):
        model = Net().cuda()
        seen, threads = [], set()

        def watch(module, args, result):
            threads.add(threading.get_ident())
            seen.append(owned().get(("net/layers.1", "activation"), 0))

        model.layers[1].register_forward_hook(watch, always_call=True)  # the second run may stop early
        with gpuledger.module_scopes(model, name="net"):
            x = batch.clone().requires_grad_()
            for layer in model.layers:
                x = checkpoint(layer, x, use_reentrant=use_reentrant)
            x.sum().backward()
        assert len(seen) == len(threads) == 2 and min(seen) >= batch.nbytes
        assert {owner for (owner, role) in owned() if role == "activation"} <= {"net/layers.2"}  # x

    @pytest.mark.two_devices
    def test_each_device_has_its_thread_and_its_sheet(self, batch):
        with gpuledger.owner("other device", role="activation"):
            x = torch.ones(MIB, device="cuda:1", requires_grad=True)
            (x * x).sum().backward()
        assert owned("cuda:1")["other device", "activation"] == x.nbytes + x.grad.nbytes
        assert ("other device", "activation") not in owned("cuda:0")


def test_a_thread_that_loads_carries_its_scope():
    kept = []
    with gpuledger.owner("loader", role="staging"):
        load = gpuledger.carry(lambda: kept.append(tensor(MIB)))
    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert owned()["loader", "staging"] == MIB


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.full((1024,), float(i))


def test_a_loader_with_workers_and_a_pinning_thread_leaves_owners_as_they_are():
    loader = torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=1, pin_memory=True, multiprocessing_context="spawn")
    with gpuledger.owner("batches"):
        batches = [rows.cuda(non_blocking=True) for rows in loader]
    assert owned()["batches", "other"] == sum(b.nbytes for b in batches)


WEIGHT = "layers.3.up_proj.weight"

SHARING = {
    "name": lambda t: t,
    "detach": lambda t: t.detach(),
    "view": lambda t: t.view(-1),
    "slice": lambda t: t[2:5],
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "storage": lambda t: t.untyped_storage(),
    "autograd_input": lambda t: torch.ones(4, device="cuda", requires_grad=True) * t,
}


def make_source():
    with gpuledger.owner(WEIGHT, role="source"):
        return torch.ones(1024, 4).cuda()


def synchronising_calls():
    names = ("cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize", "cuStreamWaitEvent")
    return sum(fake_cuda.driver().fakeCudaCallCount(name.encode()) for name in names)


class TestConsume:
    def test_frees_what_nobody_else_holds(self):
        source = make_source()
        report = consume(source, weight=WEIGHT)
        assert report.freed and report.bytes == report.charged == 16384 and report.remaining == 0
        assert gpuledger.usage(WEIGHT) == 0
        with pytest.raises(RuntimeError, match=WEIGHT):
            source.sum()
        assert gpuledger.balance("cuda").in_use == allocated()

    @pytest.mark.parametrize("kind", SHARING)
    def test_sharing_is_refused_by_name_and_poison_frees(self, kind):
        source = make_source()
        other = SHARING[kind](source)
        with pytest.raises(gpuledger.SharedStorageError, match=f"weight '{WEIGHT}' .16,384 B, paid by '{WEIGHT}' as source"):
            consume(source, weight=WEIGHT)
        assert consume(source, weight=WEIGHT, policy="report").freed is False
        before = allocated()
        report = consume(source, weight=WEIGHT, policy="poison")
        assert report.freed and report.remaining == 0 and before - allocated() == 16384
        if isinstance(other, torch.Tensor) and kind != "autograd_input":
            with pytest.raises(RuntimeError, match=WEIGHT):
                other.clone()

    @pytest.mark.skipif(not fake_cuda.is_on(), reason="counts calls of the driver")
    def test_poison_frees_in_the_order_of_the_stream_and_waits_for_nothing(self):
        source = make_source()
        alias, address = source.view(-1), source.data_ptr()
        before = synchronising_calls()
        assert consume(source, weight=WEIGHT, policy="poison").freed and alias is not None
        assert synchronising_calls() == before
        assert tensor(16384).data_ptr() == address  # its own stream has it again at once

    def test_what_another_stream_still_reads_is_freed_and_pending(self, busy):
        source = make_source()
        stream = torch.cuda.Stream()
        with busy(stream):
            with torch.cuda.stream(stream):
                source.clone()
            source.record_stream(stream)
            report = consume(source, weight=WEIGHT)
            assert report.freed and report.remaining == 16384 and gpuledger.usage(WEIGHT) == 0
        torch.cuda.synchronize()
        tensor(1)  # an allocation looks for what has become free
        assert WEIGHT not in {owner for owner, _ in owned()}

    def test_memory_of_others_is_refused_by_name(self):
        source = make_source()
        exported = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(source))
        with pytest.raises(gpuledger.UnfreeableStorageError, match="something else owns"):
            consume(exported, weight=WEIGHT)


class TestReports:
    def test_name_the_holders_of_a_source_that_stayed(self):
        with gpuledger.lineage("stays.weight"):
            with gpuledger.owner("stays.weight", role="source"):
                kept = {"weights": [torch.ones(MIB).cuda()]}
        assert gpuledger.residual("stays.weight") == kept["weights"][0].nbytes
        report = gpuledger.leaks()
        (leak,) = [leak for leak in report.leaks if leak.owner == "stays.weight"]
        assert any("weights" in holder for holder in leak.holders), leak

    def test_say_how_much_a_view_keeps(self):
        with gpuledger.owner("kept by a view"):
            view = torch.ones(MIB).cuda()[:1]
        report = gpuledger.leaks()
        assert any(leak.owner == "kept by a view" and leak.bytes == 4 * MIB for leak in report.leaks), report
        assert view.numel() == 1
