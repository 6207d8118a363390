"""gpuledger under PyTorch's CPU tensors."""

from __future__ import annotations

import pytest
import torch

import gpuledger
import gpuledger.torch


def test_a_process_that_installs_first_charges_every_tensor(fresh_python):
    out = fresh_python(
        """
        import torch, gpuledger, gpuledger.torch
        gpuledger.torch.install_cpu()
        with gpuledger.owner("model/up_proj.weight", role="source"):
            weight = torch.empty(4096, 1024)
        model = torch.nn.Linear(64, 64)
        print(gpuledger.usage("model/up_proj.weight"), gpuledger.usage(role="source"), gpuledger.usage() > 16777216)
        kept_until_exit = torch.ones(1000)
        """
    )
    assert out.split() == ["16777216", "16777216", "True"]


def test_forked_data_loader_workers_allocate_and_send_tensors_back(fresh_python):
    out = fresh_python(
        """
        import torch, gpuledger, gpuledger.torch
        gpuledger.torch.install_cpu()

        class Data(torch.utils.data.Dataset):
            def __init__(self):
                self.rows = torch.arange(6400.0).reshape(64, 100)
            def __len__(self):
                return 64
            def __getitem__(self, i):
                with gpuledger.owner("worker"):
                    row = self.rows[i] * 2
                assert gpuledger.usage("worker") >= 512
                return row

        loader = torch.utils.data.DataLoader(Data(), batch_size=8, num_workers=2, multiprocessing_context="fork")
        for epoch in range(2):
            print(int(sum(batch.sum() for batch in loader)))
        print(gpuledger.usage("worker"))
        """
    )
    assert out.split() == [str(6399 * 6400), str(6399 * 6400), "0"]


def test_a_cap_raises_out_of_memory_with_the_report(fresh_python):
    out = fresh_python(
        """
        import torch, gpuledger, gpuledger.torch
        gpuledger.torch.install_cpu()
        with gpuledger.owner("big.tensor"):
            held = torch.empty(16 << 20, dtype=torch.uint8)
        try:
            torch.empty(64 << 20, dtype=torch.uint8)
        except torch.OutOfMemoryError as error:
            print(error)
        """,
        GPULEDGER_CAP="32MiB",
    )
    assert "big.tensor" in out


def test_an_unknown_option_is_reported(fresh_python):
    out = fresh_python(
        """
        try:
            import gpuledger.torch
        except ValueError as error:
            print(error)
        """,
        GPULEDGER_KAP="32MiB",
    )
    assert "GPULEDGER_KAP" in out


@pytest.mark.usefixtures("cpu_ledger")
class TestOwners:
    def test_nested_owners_pay_as_a_path(self):
        with gpuledger.owner("model"), gpuledger.owner("layers.3", role="activation"):
            tensor = torch.empty(1000)
        assert gpuledger.usage("model/layers.3", "activation") == 4096
        del tensor
        assert gpuledger.usage("model/layers.3") == 0

    def test_a_decorated_function_pays_each_time(self):
        @gpuledger.owner("decorated")
        def make():
            return torch.empty(128)

        tensors = [make(), make()]
        assert gpuledger.usage("decorated") == 512 * len(tensors)

    def test_an_owner_ends_with_an_exception(self):
        with pytest.raises(KeyError), gpuledger.owner("failed"):
            raise KeyError
        before = gpuledger.usage("failed")
        tensor = torch.empty(100)
        assert gpuledger.usage("failed") == before == 0
        assert tensor.numel() == 100

    def test_owners_that_end_out_of_order_are_an_error(self):
        outer, inner = gpuledger.owner("outer"), gpuledger.owner("inner")
        outer.__enter__()
        inner.__enter__()
        with pytest.raises(ValueError, match="before one that began later"):
            outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        with gpuledger.owner("after"):
            tensor = torch.empty(1)
        assert gpuledger.usage("after") == 512 * tensor.numel()

    def test_an_unknown_role_is_named(self):
        with pytest.raises(ValueError, match="'weights' is not a role; roles are source, "):
            gpuledger.owner("a", "weights").__enter__()
        with pytest.raises(ValueError, match="not a role"):
            gpuledger.usage(role="weights")

    def test_resize_moves_the_charge(self):
        with gpuledger.owner("resized"):
            tensor = torch.ones(256)
            tensor.resize_(4096)
            assert gpuledger.usage("resized") == 16384
            assert tensor[:256].sum() == 256
            tensor.untyped_storage().resize_(0)
            assert gpuledger.usage("resized") == 0

    def test_zero_size_costs_nothing(self):
        with gpuledger.owner("zero"):
            tensors = [torch.empty(0), torch.empty(3, 0, 2)]
            assert gpuledger.usage("zero") == 0
            assert tensors[0].data_ptr() == 0
            tensors[0].resize_(1)
            assert gpuledger.usage("zero") == 512

    def test_alignment(self):
        tensors = [torch.empty(n, dtype=torch.uint8) for n in range(1, 2000, 13)]
        assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)

    def test_numpy_keeps_the_tensor_charged(self):
        with gpuledger.owner("numpy"):
            array = torch.ones(1000).numpy()
        assert gpuledger.usage("numpy") == 4096
        assert array.sum() == 1000
        del array
        assert gpuledger.usage("numpy") == 0

    def test_importing_the_module_attaches(self, fresh_python):
        out = fresh_python("import torch, gpuledger.torch; t = torch.ones(1000); print(gpuledger.usage())")
        assert out == "4096\n"

    def test_backward_on_other_threads_works(self):
        weight = torch.randn(64, 64, requires_grad=True)
        (torch.randn(8, 64) @ weight).relu().sum().backward()
        assert weight.grad is not None
