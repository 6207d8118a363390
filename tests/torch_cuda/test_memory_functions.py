"""Each function of torch.cuda.memory and torch.accelerator.memory: that it is there, what it takes and what it gives."""

import gc
import inspect
import warnings

import pytest
import torch
import under_test
from cuda_memory import MIB, tensor

READERS = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")


@pytest.mark.parametrize("name", READERS)
def test_a_figure_can_be_asked_for_by_every_way_of_naming_a_device(name):
    held = tensor(5 * MIB)
    ask = getattr(torch.cuda, name)
    device = torch.cuda.current_device()
    answers = {ask(way) for way in (None, device, "cuda", f"cuda:{device}", torch.device("cuda", device))}
    assert len(answers) == 1 and answers.pop() >= 5 * MIB
    assert getattr(torch.accelerator, name)() == ask()
    del held


def test_the_older_names_warn_and_work():
    held = tensor(5 * MIB)
    with pytest.warns(FutureWarning):
        assert torch.cuda.memory_cached() == torch.cuda.memory_reserved()
    with pytest.warns(FutureWarning):
        assert torch.cuda.max_memory_cached() == torch.cuda.max_memory_reserved()
    for name in ("reset_max_memory_allocated", "reset_max_memory_cached"):
        with pytest.warns(FutureWarning):
            getattr(torch.cuda, name)()
        assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()
    del held


def test_every_public_function_of_the_module_can_be_called():
    """So that none is left out here: those that need arguments have tests of their own."""
    elsewhere = {"caching_allocator_alloc", "caching_allocator_delete", "set_per_process_memory_fraction", "change_current_allocator",
                 "use_mem_pool", "list_gpu_processes"}
    tensor(1)
    torch.empty(1, pin_memory=True)
    for name in torch.cuda.memory.__all__:
        function = getattr(torch.cuda.memory, name)
        if inspect.isclass(function) or name in elsewhere:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            function()


def test_every_function_of_the_accelerator_module_can_be_called():
    held = tensor(5 * MIB)
    for name in torch.accelerator.memory.__all__:
        getattr(torch.accelerator.memory, name)()
    assert torch.accelerator.memory_allocated() == torch.cuda.memory_allocated() >= 5 * MIB
    free, total = torch.accelerator.get_memory_info()
    assert (free, total) == torch.cuda.mem_get_info()
    del held


def test_peaks_are_reset_through_the_accelerator_module():
    tensor(64 * MIB)
    torch.accelerator.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()
    torch.accelerator.reset_accumulated_memory_stats()
    assert torch.cuda.memory_stats()["allocated_bytes.all.allocated"] == 0


def test_the_accelerator_module_empties_the_cache():
    tensor(64 * MIB)
    before = torch.cuda.memory_reserved()
    torch.accelerator.empty_cache()
    assert torch.cuda.memory_reserved() <= before - 64 * MIB


def test_a_small_tensor_counts_as_active_and_as_freed_when_it_dies():
    torch.cuda.reset_accumulated_memory_stats()
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    t = torch.empty(256, device="cuda")
    stats = torch.cuda.memory_stats()
    assert (stats["active_bytes.all.current"] - before, stats["active_bytes.all.freed"]) == (1024, 0)
    del t
    stats = torch.cuda.memory_stats()
    assert (stats["active_bytes.all.current"], stats["active_bytes.all.freed"]) == (before, 1024)


def test_the_backend_has_a_name():
    # Programs ask whether it is cudaMallocAsync: what is not has snapshots and history.
    assert torch.cuda.get_allocator_backend() == ("gpuledger" if under_test.chosen() == "ours" else "native")


def test_fractions_of_the_wrong_type_or_size_are_refused():
    with pytest.raises(TypeError):
        torch.cuda.set_per_process_memory_fraction(1)
    for fraction in (-0.1, 2.0):
        with pytest.raises(ValueError):
            torch.cuda.set_per_process_memory_fraction(fraction)


def test_half_of_the_memory_is_refused_when_less_than_half_is_allowed():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.5)
    try:
        held = tensor(int(total * 0.499) - torch.cuda.memory_reserved())
        del held
        torch.cuda.empty_cache()
        with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"):
            tensor(int(total * 0.51))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.two_devices
def test_a_fraction_is_one_devices_own():
    torch.cuda.set_per_process_memory_fraction(0.5, 1)
    try:
        assert (torch.cuda.get_per_process_memory_fraction(0), torch.cuda.get_per_process_memory_fraction(1)) == (1.0, 0.5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 1)


# Bare addresses


def test_bare_memory_can_be_asked_for_by_device_and_stream():
    stream = torch.cuda.Stream()
    before = torch.cuda.memory_allocated()
    addresses = [torch.cuda.caching_allocator_alloc(size, device=0, stream=stream) for size in (1, 5000, 12 * MIB)]
    assert len(set(addresses)) == 3 and all(address % 512 == 0 for address in addresses)
    assert torch.cuda.memory_allocated() == before + 512 + 5120 + 12 * MIB
    blocks = {b["address"]: s["stream"] for s in torch.cuda.memory_snapshot() for b in s["blocks"]}
    assert {blocks[address] for address in addresses} == {stream.cuda_stream}
    for address in addresses:
        torch.cuda.caching_allocator_delete(address)
    assert torch.cuda.memory_allocated() == before


def test_a_stream_can_be_named_by_its_number():
    stream = torch.cuda.Stream()
    address = torch.cuda.caching_allocator_alloc(1000, stream=stream.cuda_stream)
    torch.cuda.caching_allocator_delete(address)
    with pytest.raises(TypeError):
        torch.cuda.caching_allocator_alloc(1000, stream="a stream")


def test_without_the_cache_nothing_is_counted_and_data_still_arrives():
    data = torch.randint(0, 256, (5000,), dtype=torch.uint8)
    before = torch.cuda.memory_stats()["requested_bytes.all.allocated"]
    try:
        torch.cuda.caching_allocator_enable(False)
        address = torch.cuda.caching_allocator_alloc(MIB)
        torch.cuda.caching_allocator_delete(address)
        there = data.cuda()
        assert torch.equal(there.clone().cpu(), data)
        del there
        assert torch.cuda.memory_stats()["requested_bytes.all.allocated"] == before
    finally:
        torch.cuda.caching_allocator_enable(True)
    address = torch.cuda.caching_allocator_alloc(MIB)
    assert torch.cuda.memory_stats()["requested_bytes.all.allocated"] == before + MIB
    torch.cuda.caching_allocator_delete(address)


def test_an_empty_tensor_costs_nothing_and_has_no_address():
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    t = tensor(0)
    assert (t.data_ptr(), torch.cuda.memory_stats()["allocation.all.allocated"]) == (0, before)


# Beside the allocator


def test_the_profiler_counts_what_an_operation_allocates():
    source = tensor(5 * MIB)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        held = source.clone()
        del held
        tensor(3 * MIB)
    sizes = {e.key: e.self_device_memory_usage for e in profile.key_averages()}
    assert sizes["aten::empty"] + sizes.get("aten::empty_like", 0) + sizes.get("aten::empty_strided", 0) == 8 * MIB
    assert sizes["[memory]"] == -8 * MIB


def test_the_memory_timeline_of_the_profiler_can_be_drawn():
    model = torch.nn.Linear(64, 64).cuda()
    with torch.profiler.profile(profile_memory=True, record_shapes=True, with_stack=True,
                                activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(torch.empty(8, 64, device="cuda")).sum().backward()
    timeline = profile._memory_profile().timeline
    assert any(key.device.type == "cuda" for _, _, (key, _), _ in timeline if hasattr(key, "device"))


def test_an_allocation_that_the_profiler_sees_comes_with_the_totals():
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        held = tensor(5 * MIB)
        more = held.clone()
        del held, more
    found = []
    for event in flatten(profile.profiler.kineto_results.experimental_event_tree()):
        kind, fields = event.typed
        if str(kind).endswith("Allocation") and str(fields.device).startswith("cuda"):
            found.append((fields.alloc_size, fields.total_allocated, fields.total_reserved))
    sizes, allocated, reserved = zip(*found)
    assert sizes[:2] == (5 * MIB, 5 * MIB) and set(sizes[2:]) <= {-5 * MIB}
    assert allocated[1] - allocated[0] == 5 * MIB
    assert all(a <= r for a, r in zip(allocated, reserved))


def flatten(nodes):
    for node in nodes:
        yield node
        yield from flatten(node.children)


def test_callbacks_of_a_cycle_watcher_find_no_garbage_behind_a_figure():
    gc.collect()
    before = torch.cuda.memory_allocated()
    held = tensor(5 * MIB)
    cycle = [held]
    cycle.append(cycle)
    del held, cycle
    assert torch.cuda.memory_allocated() == before + 5 * MIB
    gc.collect()
    assert torch.cuda.memory_allocated() == before
