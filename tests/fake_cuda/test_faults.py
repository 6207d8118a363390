"""What PyTorch does when CUDA calls fail: faults are injected into the fake driver, one call at a time."""

import contextlib
import gc

import fake_cuda
import pytest
import torch

MIB = 1 << 20
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700


def tensor(size):
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def stat(name):
    return torch.cuda.memory_stats().get(name, 0)


@pytest.fixture(autouse=True)
def settled():
    tensor(1)  # PyTorch is initialised before the first fault
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    yield
    fake_cuda.driver().fakeCudaClearFaults()
    gc.collect()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def faults(text):
    assert fake_cuda.driver().fakeCudaInjectFaults(text.encode()) != 0
    yield
    fake_cuda.driver().fakeCudaClearFaults()


def test_an_allocation_that_fails_once_is_tried_again_after_the_cache_was_emptied():
    cached = tensor(30 * MIB)
    del cached
    retries, ooms = stat("num_alloc_retries"), stat("num_ooms")
    with faults("cuMemAlloc:1=2"):
        held = tensor(40 * MIB)
    assert held.numel() == 40 * MIB
    assert (stat("num_alloc_retries") - retries, stat("num_ooms") - ooms) == (1, 0)
    assert torch.cuda.memory_reserved() == 40 * MIB


def test_an_allocation_that_fails_twice_is_out_of_memory():
    ooms = stat("num_ooms")
    with faults("cuMemAlloc:1+=2"), pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate 40.00 MiB"):
        tensor(40 * MIB)
    assert stat("num_ooms") - ooms == 1
    assert torch.cuda.memory_allocated() == 0


def test_out_of_memory_passes_when_the_device_has_memory_again():
    with faults("cuMemAlloc:1+=2"), pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(40 * MIB)
    data = torch.randint(0, 256, (40 * MIB,), dtype=torch.uint8)
    assert torch.equal(data.cuda().clone().cpu(), data)


def test_what_is_cached_serves_while_the_device_has_nothing():
    cached = tensor(40 * MIB)
    address = cached.data_ptr()
    del cached
    with faults("cuMemAlloc:1+=2"):
        assert tensor(40 * MIB).data_ptr() == address


def test_only_the_segment_that_fails_is_missing():
    held = []
    with faults("cuMemAlloc:3+=2"), pytest.raises(torch.cuda.OutOfMemoryError):
        for _ in range(5):
            held.append(tensor(20 * MIB))
    assert len(held) == 2
    assert torch.cuda.memory_allocated() == torch.cuda.memory_reserved() == 40 * MIB


def test_an_error_that_is_not_about_memory_is_no_out_of_memory():
    with faults(f"cuMemAlloc:1+={ILLEGAL_ADDRESS}"), pytest.raises(RuntimeError, match="illegal") as caught:
        tensor(40 * MIB)
    assert not isinstance(caught.value, torch.cuda.OutOfMemoryError)


def test_pinned_memory_that_fails_is_an_error_and_the_next_one_is_not():
    with faults("cuMemHostAlloc:1=2"), pytest.raises(RuntimeError, match="out of memory"):
        torch.empty(64 * MIB, dtype=torch.uint8, pin_memory=True)
    assert torch.empty(64 * MIB, dtype=torch.uint8, pin_memory=True).is_pinned()


def test_a_copy_that_fails_is_an_error_and_the_memory_is_given_back():
    data = torch.zeros(MIB, dtype=torch.uint8)
    with faults(f"cuMemcpyHtoDAsync:1={OUT_OF_MEMORY}"), pytest.raises(RuntimeError):
        data.cuda()
    assert torch.cuda.memory_allocated() == 0


def test_a_synchronisation_that_fails_is_an_error():
    with faults(f"cuCtxSynchronize:1={ILLEGAL_ADDRESS}"), pytest.raises(RuntimeError, match="illegal"):
        torch.cuda.synchronize()


def test_a_graph_that_cannot_be_made_is_an_error_and_keeps_nothing():
    source, graph = tensor(12 * MIB), torch.cuda.CUDAGraph()
    with faults("cuGraphInstantiateWithFlags:1=2"), pytest.raises(RuntimeError):
        with torch.cuda.graph(graph):
            clone = source.clone()
    del source, graph
    clone = None  # noqa: F841
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == 0


def test_a_thousand_allocations_get_by_with_every_third_call_failing():
    retries = stat("num_alloc_retries")
    sizes = [(i * 7919) % (30 * MIB) + 1 for i in range(1000)]
    held = []
    with faults("cuMemAlloc:*3=2"):
        for i, size in enumerate(sizes):
            held.append(tensor(size))
            if i % 3:
                held.pop(i % len(held))
            if len(held) > 20:
                held.clear()
    assert stat("num_alloc_retries") > retries
    held.clear()
    assert torch.cuda.memory_allocated() == 0


def test_an_expandable_segment_that_cannot_grow_is_out_of_memory_and_grows_later(own_process):
    own_process("""
        import torch
        held = torch.empty(40 << 20, dtype=torch.uint8, device="cuda")
        try:
            torch.empty(400 << 20, dtype=torch.uint8, device="cuda")
            raise SystemExit("it was not refused")
        except torch.cuda.OutOfMemoryError:
            assert torch.cuda.memory_reserved() == 40 << 20, torch.cuda.memory_reserved()
        del held
        held = torch.empty(60 << 20, dtype=torch.uint8, device="cuda")
        """, PYTORCH_ALLOC_CONF="expandable_segments:True", FAKE_CUDA_MEMORY="256MiB")


def test_a_handle_that_cannot_be_made_leaves_no_handle_behind(own_process):
    own_process("""
        import torch
        try:
            torch.empty(100 << 20, dtype=torch.uint8, device="cuda")
            raise SystemExit("it was not refused")
        except torch.cuda.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info()
            assert free == total, (free, total)
        """, PYTORCH_ALLOC_CONF="expandable_segments:True", FAKE_CUDA_FAULTS="cuMemCreate:4+=2")


def test_the_async_backend_passes_on_what_fails(own_process):
    own_process("""
        import torch
        held = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
        try:
            torch.empty(400 << 20, dtype=torch.uint8, device="cuda")
            raise SystemExit("it was not refused")
        except torch.cuda.OutOfMemoryError:
            pass
        held = torch.empty(40 << 20, dtype=torch.uint8, device="cuda")
        """, PYTORCH_ALLOC_CONF="backend:cudaMallocAsync", FAKE_CUDA_MEMORY="256MiB")
