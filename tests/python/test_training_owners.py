"""Owners without work, on the CPU: follow, module scopes, the balance sheet; payers on threads of PyTorch."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gpuledger
import gpuledger.torch
from gpuledger import _follow

pytestmark = pytest.mark.usefixtures("cpu_ledger")

WIDTH = 64
WEIGHT = WIDTH * WIDTH * 4
BIAS = 512  # 256 bytes, rounded


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, WIDTH)
        self.down = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)).neg())


class Net(torch.nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.layers = torch.nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def clean():
    gc.collect()
    yield
    gc.collect()


@pytest.fixture
def transfers(monkeypatch):
    """The owners that tensors are given, in order."""
    given = []
    make_giver = _follow.giver

    def watched(role):
        give = make_giver(role)
        return lambda tensor, owner: (given.append(owner), give(tensor, owner))

    monkeypatch.setattr(_follow, "giver", watched)
    return given


@pytest.fixture
def name(request):
    """An owner of this test alone."""
    return f"net of {request.node.name}"


def owned(name):
    """Bytes in use by (owner, role) of the owners below `name`."""
    found = {}
    for share in gpuledger.balance("cpu").owners:
        if share.owner == name or share.owner.startswith(f"{name}/"):
            found[share.owner.removeprefix(name).removeprefix("/"), share.role] = share.in_use
    return found


def of_role(name, role):
    return sum(size for (_, its_role), size in owned(name).items() if its_role == role)


class TestFollow:
    def test_gradients_and_state_have_their_names_after_each_step(self, name):
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        parameters = 4 * (WEIGHT + BIAS)
        with gpuledger.follow(model, optimizer, name=name):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                assert of_role(name, "gradient") == 0
                model(torch.ones(8, WIDTH)).sum().backward()
                assert of_role(name, "gradient") == parameters
                optimizer.step()
                assert of_role(name, "other") == parameters
                assert of_role(name, "optimizer") == 2 * parameters + 8 * 512  # and a count of steps each
        assert gpuledger.usage(f"{name}/layers.0.up.weight", "gradient") == WEIGHT

    def test_state_that_is_loaded_gets_its_name(self, name):
        def trained():
            model = Net(1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            model(torch.ones(8, WIDTH)).sum().backward()
            optimizer.step()
            return model, optimizer

        state = trained()[1].state_dict()
        model = Net(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        gpuledger.follow(model, optimizer, name=name)
        optimizer.load_state_dict(state)
        assert of_role(name, "optimizer") == 2 * (WEIGHT + BIAS)

    def test_a_sparse_gradient_is_named_by_its_parts(self, name):
        model = torch.nn.Embedding(100, WIDTH, sparse=True)
        gpuledger.follow(model, name=name)
        model(torch.tensor([1, 2, 3])).sum().backward()
        assert model.weight.grad.is_sparse
        assert of_role(name, "gradient") >= 3 * WIDTH * 4

    def test_parameters_that_were_moved_keep_their_names(self, name):
        model = Net(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gpuledger.follow(model, optimizer, name=name)
        model.double()
        model(torch.ones(8, WIDTH, dtype=torch.double)).sum().backward()
        optimizer.step()
        assert gpuledger.usage(f"{name}/layers.0.up.weight", "other") == 2 * WEIGHT

    def test_a_followed_model_can_be_copied_and_saved(self, name):
        model = Net(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        gpuledger.follow(model, optimizer, name=name)
        model(torch.ones(8, WIDTH)).sum().backward()
        optimizer.step()
        gradients = of_role(name, "gradient")
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        pickle.dumps(optimizer), copy.deepcopy(optimizer)
        for other in copies:
            other.zero_grad()
            other(torch.ones(8, WIDTH)).sum().backward()
        assert of_role(name, "gradient") == gradients

    def test_a_parameter_that_the_optimizer_does_not_have_dies_with_its_model(self, name):
        model = torch.nn.ModuleDict({"base": torch.nn.Linear(WIDTH, WIDTH).requires_grad_(False), "adapter": torch.nn.Linear(WIDTH, WIDTH)})
        optimizer = torch.optim.SGD(model["adapter"].parameters(), lr=0.1)
        gpuledger.follow(model, optimizer, name=name)
        gone = weakref.ref(model["base"].weight)
        del model["base"]
        gc.collect()
        assert gone() is None
        assert gpuledger.usage(f"{name}/base.weight") == 0
        model["adapter"](torch.ones(8, WIDTH)).sum().backward()
        optimizer.step()
        assert gpuledger.usage(f"{name}/adapter.weight", "other") == WEIGHT

    def test_a_block_that_parameters_share_keeps_its_first_name(self, name, transfers):
        model = torch.nn.Module()
        model.register_parameter("a", torch.nn.Parameter(torch.ones(2 * WIDTH)[:WIDTH]))
        model.register_parameter("b", torch.nn.Parameter(torch.ones(0)))
        model.b.data = model.a.data.as_strided((WIDTH,), (1,), WIDTH)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gpuledger.follow(model, optimizer, name=name):
            transfers.clear()
            for _ in range(3):
                optimizer.step()
        assert gpuledger.usage(f"{name}/a", "other") == 512 and gpuledger.usage(f"{name}/b") == 0
        assert set(transfers) <= {f"{name}/a".encode()}

    def test_a_block_that_gradients_share_keeps_its_first_name(self, name, transfers):
        model = torch.nn.Module()
        bucket = torch.zeros(2 * WIDTH)
        for i, part in enumerate("ab"):
            model.register_parameter(part, torch.nn.Parameter(torch.ones(WIDTH)))
            getattr(model, part).grad = bucket[i * WIDTH : (i + 1) * WIDTH]
        with gpuledger.follow(model, name=name):
            for step in range(3):
                (model.a * model.b).sum().backward()
                if step == 0:
                    transfers.clear()
        assert model.b.grad.untyped_storage().data_ptr() == bucket.data_ptr()
        assert len(set(transfers)) == 1

    def test_a_gradient_in_place_of_another_that_is_gone_has_its_own_name(self, name):
        model = Net(1)
        with gpuledger.follow(model, name=name):
            for first, second in (("up", "down"), ("down", "up"), ("up", "down")):
                for part in (first, second):
                    model.zero_grad()
                    layer = getattr(model.layers[0], part)
                    layer(torch.ones(8, WIDTH)).sum().backward()
                    assert of_role(name, "gradient") == gpuledger.usage(f"{name}/layers.0.{part}.weight", "gradient") + BIAS == WEIGHT + BIAS

    def test_lazy_modules_are_followed_once_they_have_bytes(self, name):
        model = torch.nn.Sequential(torch.nn.LazyLinear(WIDTH), torch.nn.LazyBatchNorm1d())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert gpuledger.adopt(model, optimizer, name=name) == 1  # the count of batches
        gpuledger.follow(model, optimizer, name=name)
        optimizer.step()
        model(torch.ones(8, WIDTH)).sum().backward()
        assert gpuledger.usage(f"{name}/0.weight", "gradient") == WEIGHT
        optimizer.step()
        assert gpuledger.usage(f"{name}/0.weight", "other") == WEIGHT

    def test_nothing_is_named_after_remove(self, name):
        model = Net(1)
        following = gpuledger.follow(model, name=name)
        following.remove()
        model(torch.ones(8, WIDTH)).sum().backward()
        assert of_role(name, "gradient") == 0

    def test_the_handle_keeps_neither_model_nor_optimizer_alive(self, name):
        model = Net(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        following = gpuledger.follow(model, optimizer, name=name)
        gone = weakref.ref(model), weakref.ref(optimizer), weakref.ref(model.layers[0].up.weight)
        del model, optimizer
        gc.collect()
        assert [ref() for ref in gone] == [None, None, None]
        assert owned(name) == {}
        following.remove()


class TestDataParallel:
    def test_wrappers_are_in_no_name(self, name):
        inner = Net(1)
        inner.module = torch.nn.Linear(WIDTH, WIDTH)  # this name is the model's own
        model = torch.nn.DataParallel(inner)
        assert gpuledger.adopt(model, name=name) == 6
        with gpuledger.follow(model, name=name), gpuledger.module_scopes(model, name=name):
            out = model(torch.ones(8, WIDTH))
            out.sum().backward()
        assert gpuledger.usage(f"{name}/module.weight", "other") == WEIGHT
        assert gpuledger.usage(f"{name}/layers.0.up.weight", "gradient") == WEIGHT
        assert gpuledger.usage(f"{name}/layers.0.down", "activation") == out.nbytes

    def test_gradients_that_are_views_of_ddps_buckets_have_one_name(self, name):
        distributed = torch.distributed
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        try:
            model = torch.nn.parallel.DistributedDataParallel(Net(1), gradient_as_bucket_view=True)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with gpuledger.follow(model, optimizer, name=name):
                for _ in range(3):
                    optimizer.zero_grad(set_to_none=False)
                    model(torch.ones(8, WIDTH)).sum().backward()
                    optimizer.step()
            assert gpuledger.usage(f"{name}/layers.0.up.weight", "other") == WEIGHT
            gradients = {owner for (owner, role) in owned(name) if role == "gradient"}
            storages = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
            assert len(gradients) == len(storages) < 4
        finally:
            distributed.destroy_process_group()


class TestModuleScopes:
    def test_nothing_stays_after_remove(self, name):
        model = Net(1)
        filters, finalizers = list(warnings.filters), len(weakref.finalize._registry)
        for _ in range(3):
            gpuledger.module_scopes(model, name=name).remove()
        assert len(weakref.finalize._registry) == finalizers
        assert len(warnings.filters) <= len(filters) + 1

    def test_the_filters_of_the_program_stay_before_ours(self, name):
        gpuledger.module_scopes(torch.nn.Identity(), name=name).remove()
        warnings.filterwarnings("error", message="of the program")
        first = warnings.filters[0]
        gpuledger.module_scopes(torch.nn.Identity(), name=name).remove()
        assert warnings.filters[0] == first

    def test_activations_are_paid_by_the_module_that_makes_them(self, name):
        model = Net()
        with gpuledger.module_scopes(model, name=name):
            result = model(torch.ones(8, WIDTH))
        each = 8 * WIDTH * 4
        # Of each block: what up gave (relu saves its own result), relu's result, the product.
        assert owned(name) == {
            ("layers.0", "activation"): 2 * each,
            ("layers.0.down", "activation"): each,
            ("layers.1", "activation"): 2 * each,
            ("layers.1.down", "activation"): each,
        }
        del result
        assert owned(name) == {}

    def test_a_backward_pass_pays_by_the_module_of_its_operations(self, name):
        model = Net()
        seen = []
        with gpuledger.module_scopes(model, name=name):
            out = model(torch.ones(8, WIDTH))
            handle = model.layers[0].up.weight.register_hook(lambda grad: seen.append(owned(name)))
            out.sum().backward()
            handle.remove()
        gradients = {owner: size for (owner, role), size in owned(name).items() if role == "gradient"}
        assert gradients == {f"layers.{i}.{part}": WEIGHT + BIAS for i in range(2) for part in ("up", "down")}
        assert seen and sum(size for (_, role), size in seen[0].items() if role == "gradient") > 2 * WEIGHT

    def test_a_recomputed_forward_pass_is_paid_alike(self, name):
        model = Net()
        with gpuledger.module_scopes(model, name=name):
            x = torch.ones(8, WIDTH, requires_grad=True)
            for layer in model.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            x.sum().backward()
            out = model(torch.ones(8, WIDTH))
        assert gpuledger.usage(f"{name}/layers.1.down", "activation") == out.nbytes * 2  # x, out

    def test_an_exception_ends_the_scopes_it_leaves(self, name):
        class Failing(torch.nn.Module):
            def forward(self, x):
                raise self.error

        for error in (RuntimeError("no"), KeyboardInterrupt()):
            model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Sequential(Failing()))
            model[1][0].error = error
            with gpuledger.module_scopes(model, name=name):
                with pytest.raises(type(error)):
                    model(torch.ones(8, WIDTH))
                torch.nn.Identity()(1)
                model[0](torch.ones(8, WIDTH))  # a call of a module ends what KeyboardInterrupt left
                with gpuledger.owner(f"{name} afterwards"):
                    kept = torch.ones(128)
            assert gpuledger.usage(f"{name} afterwards") == kept.nbytes

    def test_paths_do_not_nest_in_the_scope_around_but_its_end_is_theirs(self, name):
        model = torch.nn.Linear(WIDTH, WIDTH)
        with gpuledger.module_scopes(model, name=name), gpuledger.owner("around"), torch.no_grad():
            out = model(torch.ones(8, WIDTH))
        assert owned(name) == {("", "activation"): out.nbytes}

    def test_scopes_inside_a_forward_pass_nest_in_its_module(self, name):
        class Cached(torch.nn.Module):
            def forward(self, x):
                with gpuledger.owner("keys", role="cache"):
                    self.keys = x.clone()
                return x

        model = torch.nn.Sequential(Cached())
        with gpuledger.module_scopes(model, name=name):
            model(torch.ones(8, WIDTH))
        assert owned(name) == {("0/keys", "cache"): 8 * WIDTH * 4}

    def test_a_module_may_call_itself(self, name):
        class Tree(torch.nn.Module):
            def forward(self, depth):
                kept = [torch.ones(128)]
                if depth:
                    kept += self(depth - 1)
                return kept + [torch.ones(128)]

        model = Tree()
        with gpuledger.module_scopes(model, name=name):
            kept = model(4)
        assert owned(name) == {("", "activation"): len(kept) * 512}

    def test_modules_are_called_by_many_threads(self, name):
        model = Net()
        kept = []

        def forward_and_backward():
            for _ in range(20):
                out = model(torch.ones(8, WIDTH, requires_grad=True))
                out.sum().backward()
            kept.append(out)

        with gpuledger.module_scopes(model, name=name):
            threads = [threading.Thread(target=forward_and_backward) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        model.zero_grad()
        assert of_role(name, "activation") == sum(out.nbytes for out in kept)

    @pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
    def test_copies_pickles_and_scripts_have_nothing_of_it(self, name):
        model = Net(1)
        with gpuledger.module_scopes(model, name=name):
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            buffer = io.BytesIO()
            torch.save(model, buffer)
            assert b"gpuledger" not in buffer.getvalue()
            scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()))
            traced = torch.jit.trace(model, torch.ones(8, WIDTH))
            for other in (*copies, scripted, traced):
                other(torch.ones(8, WIDTH))
        assert owned(name) == {}

    def test_the_handle_keeps_no_module_alive(self, name):
        model = Net(1)
        scopes = gpuledger.module_scopes(model, name=name)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
        scopes.remove()

    def test_wrappers_leave_no_trace_in_paths(self, name):
        model = torch.compile(Net(1), backend="eager")
        assert gpuledger.adopt(model, name=name) == 4
        assert gpuledger.usage(f"{name}/layers.0.up.weight") == WEIGHT

    @pytest.mark.filterwarnings("error")
    def test_a_compiled_module_pays_as_one(self, name):
        model = torch.compile(Net(1), backend="eager", fullgraph=True)
        with gpuledger.module_scopes(model, name=name), torch.no_grad():
            out = model(torch.ones(8, WIDTH))
        assert owned(name) == {("", "activation"): out.nbytes}


class TestTrainingLoop:
    def test_owners_sum_to_what_is_in_use_after_each_step(self, name):
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters())
        batch = torch.ones(8, WIDTH)
        parameters = 4 * (WEIGHT + BIAS)
        with gpuledger.follow(model, optimizer, name=name), gpuledger.module_scopes(model, name=name):
            for _ in range(4):
                optimizer.zero_grad()
                out = model(batch)
                loss = out.sum()
                assert of_role(name, "activation") > 0
                loss.backward()
                optimizer.step()
                sheet = gpuledger.balance("cpu")
                assert sum(o.in_use for o in sheet.owners) == sheet.in_use == gpuledger.usage()
                assert sheet.reserved == sheet.in_use + sheet.pending + sheet.cached
                assert of_role(name, "other") == of_role(name, "gradient") == parameters
                assert of_role(name, "activation") == out.nbytes
        assert of_role(name, "optimizer") == 2 * parameters + 8 * 512


class TestBalance:
    def test_prints_as_a_table(self):
        with gpuledger.owner("table", role="cache"):
            kept = torch.ones(1000)
        sheet = gpuledger.balance()
        assert sheet.device == "cpu" and sheet.total - sheet.free == sheet.reserved + sheet.external + sheet.unattributed
        text = str(sheet)
        assert "driver: total - free" in text and f"table [cache] " in text and f"{sheet.reserved:,} B" in text
        assert sheet.by_role["cache"] >= kept.nbytes

    def test_a_device_without_a_ledger_is_named(self):
        with pytest.raises(LookupError, match="cuda:3 has no ledger in this process; devices that have: cpu"):
            gpuledger.balance(3)


class TestThreads:
    def test_a_loop_that_pins_or_loads_in_a_thread_carries_its_scope(self):
        kept = []
        with gpuledger.owner("loader", role="staging"):
            load = gpuledger.carry(lambda: kept.append(torch.ones(128)))
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        assert gpuledger.usage("loader", "staging") == 512

    def test_forked_workers_of_a_data_loader_are_in_the_scope_that_started_them(self):
        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, i):
                with gpuledger.owner("worker"):
                    row = torch.ones(128)
                return torch.tensor([gpuledger.usage("main/worker") // row.nbytes])

        with gpuledger.owner("main"):
            found = [int(row) for row in torch.utils.data.DataLoader(Data(), num_workers=2)]
        assert all(count >= 1 for count in found)

    def test_a_scope_that_begins_under_the_profiler_does_not_disturb_it(self, fresh_python):
        fresh_python(
            """
            import threading, torch, gpuledger, gpuledger.torch

            def work():
                with torch.autograd.profiler.profile(use_kineto=False) as profile:
                    with gpuledger.owner("profiled"):
                        torch.ones(3).sum()
                assert profile.key_averages()
                with gpuledger.owner("again"):
                    torch.ones(3).sum()

            work()
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            """,
            KINETO_LOG_LEVEL="99",  # it says that there is no GPU
        )
