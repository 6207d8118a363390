"""How PyTorch's own CUDA memory management behaves, on two devices: what gpuledger's allocator has to do alike.

Runs on a GPU and on the fake CUDA (README.md says how they differ). Kernels do nothing on the fake, so data is compared
only where it came by copies: from the host, between tensors of one type, to the host.
"""

import pytest
import torch
from cuda_memory import MIB, Grown, numbers, tensor

pytestmark = pytest.mark.two_devices


def test_each_device_has_its_own_figures():
    first, second = Grown(0), Grown(1)
    t = torch.empty(12 * MIB, dtype=torch.uint8, device="cuda:1")
    assert (first.allocated, second.allocated) == (0, 12 * MIB)
    assert torch.cuda.memory_allocated("cuda:1") == t.numel()


def test_a_device_block_chooses_where_memory_comes_from_and_ends():
    with torch.cuda.device(1):
        assert tensor(1).device.index == torch.cuda.current_device() == 1
    assert tensor(1).device.index == torch.cuda.current_device() == 0


def test_data_goes_from_one_device_to_the_other():
    data = numbers(MIB + 3)
    assert torch.equal(data.to("cuda:0").to("cuda:1").clone().to("cuda:0").cpu(), data)


def test_a_refused_allocation_names_its_device():
    with pytest.raises(torch.cuda.OutOfMemoryError, match="GPU 1 has a total capacity"):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda:1")


def test_a_block_waits_for_the_work_of_another_devices_stream_that_used_it(busy):
    visitor = torch.cuda.Stream("cuda:1")
    visited, other = tensor(MIB, "cuda:0"), tensor(MIB, "cuda:0")
    address = visited.data_ptr()
    with busy(visitor):
        visited.record_stream(visitor)
        del visited
        later = tensor(MIB, "cuda:0")
        assert later.data_ptr() != address
        assert torch.cuda.memory_stats(0)["active_bytes.all.current"] >= 3 * MIB > torch.cuda.memory_allocated(0)
    torch.cuda.synchronize("cuda:1")
    torch.cuda.synchronize("cuda:0")
    held = [tensor(MIB, "cuda:0") for _ in range(2)]
    assert address in [t.data_ptr() for t in held]
    del other


def test_a_tensor_that_another_devices_stream_used_leaves_nothing_behind():
    grown, visitor = Grown(0), torch.cuda.Stream("cuda:1")
    for _ in range(50):
        t = tensor(MIB, "cuda:0")
        t.record_stream(visitor)
        t.record_stream(torch.cuda.current_stream())
        t.record_stream(torch.cuda.default_stream("cuda:1"))
        del t
    torch.cuda.synchronize("cuda:1")
    torch.cuda.synchronize("cuda:0")
    torch.cuda.empty_cache()
    assert (grown.allocated, grown.reserved, grown["active_bytes.all.current"]) == (0, 0, 0)
