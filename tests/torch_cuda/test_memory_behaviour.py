"""How PyTorch's own CUDA memory management behaves, one block after the other: what gpuledger's allocator has to do alike.

Runs on a GPU and on the fake CUDA (README.md says how they differ). Kernels do nothing on the fake, so data is compared
only where it came by copies: from the host, between tensors of one type, to the host.
"""

import threading

import pytest
import torch
from cuda_memory import MIB, numbers, segment_of, segments, tensor

# Statistics


def test_one_byte_is_charged_as_512(grown):
    t = tensor(1)
    assert grown.allocated == 512
    del t


def test_requested_bytes_are_counted_apart_from_rounded_ones(grown):
    t = tensor(1000)
    assert (grown["requested_bytes.all.current"], grown.allocated) == (1000, 1024)
    del t


def test_a_dead_tensor_is_credited_at_once(grown):
    t = tensor(5 * MIB)
    assert grown.allocated == 5 * MIB
    del t
    assert grown.allocated == 0


def test_a_view_costs_nothing_and_keeps_its_base_alive(grown):
    t = tensor(4 * MIB)
    view = t[1024:2048]
    del t
    assert grown.allocated == 4 * MIB
    del view
    assert grown.allocated == 0


def test_a_storage_resized_to_nothing_gives_its_memory_back_while_the_tensor_lives(grown):
    t = tensor(4 * MIB)
    t.untyped_storage().resize_(0)
    assert grown.allocated == 0
    assert t.numel() == 4 * MIB


def test_small_tensors_share_a_segment_of_two_mebibytes(grown):
    held = [tensor(1000) for _ in range(100)]
    assert (grown.reserved, len({segment_of(t)["address"] for t in held})) == (2 * MIB, 1)
    del held


def test_tensors_between_one_and_ten_mebibytes_share_a_segment(grown, geometry):
    held = [tensor(3 * MIB) for _ in range(6)]
    assert len({segment_of(t)["address"] for t in held}) == 1
    assert grown.reserved == geometry.reserved(*[3 * MIB] * 6)
    del held


def test_no_more_is_reserved_for_a_large_tensor_than_its_size_rounded_up(grown, geometry):
    held = tensor(11 * MIB + 1)
    assert grown.reserved == geometry.reserved(11 * MIB + 1)
    del held


def test_small_and_large_pools_are_counted_apart(grown):
    held = [tensor(1 * MIB), tensor(2 * MIB)]
    assert grown["allocated_bytes.small_pool.current"] == 1 * MIB
    assert grown["allocated_bytes.large_pool.current"] == 2 * MIB
    del held


def test_the_unused_part_of_a_split_segment_is_counted_unless_it_can_be_given_back(grown, geometry):
    held = tensor(5 * MIB)
    unused = 0 if geometry.one_range else grown.reserved - 5 * MIB
    assert grown["inactive_split_bytes.large_pool.current"] == unused
    del held


def test_allocations_are_counted_over_all_time(grown):
    for _ in range(7):
        tensor(2048)
    assert grown["allocation.all.allocated"] == grown["allocation.all.freed"] == 7
    assert grown["allocation.all.current"] == 0


def test_accumulated_statistics_can_be_reset():
    tensor(2048)
    torch.cuda.reset_accumulated_memory_stats()
    stats = torch.cuda.memory_stats()
    assert (stats["allocation.all.allocated"], stats["allocated_bytes.all.freed"]) == (0, 0)


def test_the_peak_is_exact_and_stays(grown):
    before = torch.cuda.memory_allocated()
    held = [tensor(8 * MIB), tensor(16 * MIB)]
    del held
    small = tensor(512)
    assert torch.cuda.max_memory_allocated() == before + 24 * MIB
    assert torch.cuda.max_memory_reserved() >= 24 * MIB
    del small


def test_a_reset_peak_starts_at_what_is_allocated_now():
    tensor(8 * MIB)
    held = tensor(1 * MIB)
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()
    del held


def test_the_nested_statistics_agree_with_the_flat_ones():
    flat, nested = torch.cuda.memory_stats(), torch.cuda.memory_stats_as_nested_dict()
    assert nested["allocated_bytes"]["all"]["current"] == flat["allocated_bytes.all.current"]


def test_the_summary_is_a_table_with_the_allocated_memory():
    held = tensor(8 * MIB)
    text = torch.cuda.memory_summary()
    assert "PyTorch CUDA memory summary" in text and "Allocated memory" in text and "8192 KiB" in text
    assert "Allocated memory" in torch.cuda.memory_summary(abbreviated=True)
    del held


def test_eight_threads_leave_the_figures_as_they_were(grown):
    def work():
        for i in range(200):
            held = [tensor(512 << (i % 8)) for _ in range(8)]
            del held

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert grown.allocated == 0
    assert grown["allocation.all.allocated"] == grown["allocation.all.freed"] == 8 * 200 * 8


# The cache


def test_a_freed_block_is_used_again_for_the_same_size(grown, geometry):
    t = tensor(12 * MIB)
    address, reserved = t.data_ptr(), grown.reserved
    del t
    assert grown.reserved == reserved == geometry.reserved(12 * MIB)
    t = tensor(12 * MIB)
    assert (t.data_ptr(), grown.reserved) == (address, reserved)


def test_free_neighbours_merge(grown, geometry):
    first, second, third = tensor(4 * MIB), tensor(4 * MIB), tensor(4 * MIB)
    address = first.data_ptr()
    del first, second
    both = tensor(8 * MIB)
    assert both.data_ptr() == address
    assert grown.reserved == geometry.reserved(*[4 * MIB] * 3)
    del both, third


def test_a_block_that_fits_is_taken_before_more_is_reserved(grown):
    large, kept, small = tensor(40 * MIB), tensor(12 * MIB), tensor(20 * MIB)
    reserved = grown.reserved
    del large, small
    held = [tensor(30 * MIB), tensor(16 * MIB)]
    assert grown.reserved == reserved
    del held, kept


@pytest.mark.only_under("native", why="free neighbours of one range are one block, however they were allocated")
def test_the_best_fitting_block_is_taken():
    large, small = tensor(40 * MIB), tensor(12 * MIB)
    address = small.data_ptr()
    del large, small
    assert tensor(11 * MIB).data_ptr() == address


def test_empty_cache_gives_unused_segments_back(grown, geometry):
    kept, freed = tensor(12 * MIB), tensor(30 * MIB)
    del freed
    assert grown.reserved == geometry.reserved(12 * MIB, 30 * MIB)
    torch.cuda.empty_cache()
    assert grown.reserved == geometry.reserved(12 * MIB)
    del kept


def test_empty_cache_keeps_what_is_partly_used(grown, geometry):
    kept, freed = tensor(2 * MIB), tensor(2 * MIB)
    data = numbers()
    kept[:1024].copy_(data)
    del freed
    torch.cuda.empty_cache()
    assert grown.reserved == geometry.reserved(2 * MIB)
    assert torch.equal(kept[:1024].clone().cpu(), data)
    del kept


def test_the_caching_allocator_hands_out_bare_addresses(grown):
    address = torch.cuda.caching_allocator_alloc(3000)
    assert grown.allocated == 3072
    torch.cuda.caching_allocator_delete(address)
    assert grown.allocated == 0


def test_data_survives_the_way_to_the_device_and_back():
    data = numbers(3 * MIB + 17)
    there = data.cuda()
    assert torch.equal(there.clone().cpu(), data)


# The device


def test_a_segment_is_missing_from_the_devices_free_memory():
    free, total = torch.cuda.mem_get_info()
    held = tensor(256 * MIB)
    missing = free - torch.cuda.mem_get_info()[0]
    assert 256 * MIB <= missing < 288 * MIB
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] >= free - 32 * MIB
    assert 0 < free <= total


def test_the_total_is_the_one_of_the_device_properties():
    total = torch.cuda.mem_get_info()[1]
    assert torch.cuda.get_device_properties(0).total_memory == pytest.approx(total, rel=0.01)


# Out of memory


def test_too_much_is_refused_with_the_size_and_the_device_in_the_message():
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        tensor(1 << 50)
    message = str(caught.value)
    assert message.startswith("CUDA out of memory. Tried to allocate 1048576.00 GiB. GPU 0 has a total capacity of")
    assert "is allocated by PyTorch" in message and "is reserved by PyTorch but unallocated" in message


def test_a_refused_allocation_is_counted_and_leaves_everything_as_it_was(grown):
    data = numbers()
    held = data.cuda()
    before = grown.allocated
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50)
    assert (grown["num_ooms"], grown.allocated) == (1, before)
    assert torch.equal(held.clone().cpu(), data)


def test_observers_are_told_of_a_refused_allocation():
    seen = []
    torch._C._cuda_attach_out_of_memory_observer(lambda *arguments: seen.append(arguments))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50)
    device, wanted, total, free = seen[-1]
    assert (device, wanted) == (0, 1 << 50)
    assert 0 < free <= total


def test_a_memory_fraction_caps_what_is_reserved(limit, grown):
    limit(65 * MIB)
    held = tensor(40 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="allowed"):
        tensor(40 * MIB)
    assert grown.allocated == 40 * MIB
    del held


def test_a_memory_fraction_can_be_read_back():
    torch.cuda.set_per_process_memory_fraction(0.25)
    assert torch.cuda.get_per_process_memory_fraction() == 0.25
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_memory_fraction_beyond_one_is_refused():
    with pytest.raises(ValueError):
        torch.cuda.set_per_process_memory_fraction(1.5)


def test_cached_memory_is_given_up_before_an_allocation_fails(limit, grown, geometry):
    limit(65 * MIB)
    tensor(48 * MIB)
    assert grown.reserved == geometry.reserved(48 * MIB)
    held = tensor(60 * MIB)
    assert (grown.reserved, grown["num_ooms"]) == (60 * MIB, 0)
    # In one range the cached part is used where it is, and the rest beside it.
    assert grown["num_alloc_retries"] == (0 if geometry.one_range else 1)
    del held


# Streams and events


def test_a_stream_does_not_take_blocks_that_another_stream_freed(grown, geometry):
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        t = tensor(12 * MIB)
        address = t.data_ptr()
        del t
    with torch.cuda.stream(second):
        t = tensor(12 * MIB)
        assert t.data_ptr() != address
    with torch.cuda.stream(first):
        assert tensor(12 * MIB).data_ptr() == address
    assert grown.reserved == 2 * geometry.reserved(12 * MIB)


def test_a_segment_belongs_to_the_stream_that_it_was_made_for():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        t = tensor(12 * MIB)
    assert segment_of(t)["stream"] == stream.cuda_stream


def test_a_block_recorded_on_a_busy_stream_waits_for_it(busy, grown):
    stream = torch.cuda.Stream()
    t = tensor(12 * MIB)
    address = t.data_ptr()
    with busy(stream):
        t.record_stream(stream)
        del t
        other = tensor(12 * MIB)
        assert other.data_ptr() != address
        # Credited to its owner, but not free yet.
        assert (grown.allocated, grown["active_bytes.all.current"]) == (12 * MIB, 24 * MIB)
    torch.cuda.synchronize()
    again = tensor(12 * MIB)
    assert again.data_ptr() == address
    assert grown["active_bytes.all.current"] == 24 * MIB
    del again, other


def test_the_snapshot_shows_a_block_that_waits(busy):
    stream = torch.cuda.Stream()
    t = tensor(12 * MIB)
    address = t.data_ptr()
    with busy(stream):
        t.record_stream(stream)
        del t
        states = {b["address"]: b["state"] for s in segments() for b in s["blocks"]}
    assert states[address] == "active_pending_free"


def test_a_block_recorded_on_its_own_stream_does_not_wait():
    t = tensor(12 * MIB)
    address = t.data_ptr()
    t.record_stream(torch.cuda.current_stream())
    del t
    assert tensor(12 * MIB).data_ptr() == address


def test_an_event_is_over_when_its_stream_is():
    stream = torch.cuda.Stream()
    event = torch.cuda.Event()
    with torch.cuda.stream(stream):
        there = numbers().cuda()
        event.record()
    event.synchronize()
    assert event.query()
    torch.cuda.current_stream().wait_event(event)
    del there


def test_events_measure_the_time_between_them():
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    held = numbers(MIB).cuda()
    end.record()
    end.synchronize()
    assert 0 <= start.elapsed_time(end) < 60_000
    del held


def test_streams_have_priorities():
    assert torch.cuda.Stream(priority=-1).priority == -1
    assert torch.cuda.Stream().priority == 0


# Pinned memory


def test_pinned_memory_is_known_as_such_and_costs_the_device_nothing(grown):
    data = numbers()
    pinned = data.pin_memory()
    assert pinned.is_pinned() and not data.is_pinned()
    assert torch.equal(pinned, data)
    assert grown.allocated == 0


def test_pinned_memory_is_cached():
    pinned = torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True)
    address = pinned.data_ptr()
    del pinned
    assert torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True).data_ptr() == address


def test_pinned_memory_has_statistics():
    numbers(1).pin_memory()  # there are none before the first one
    before = torch.cuda.host_memory_stats()
    pinned = torch.empty(32 * MIB, dtype=torch.uint8, pin_memory=True)
    after = torch.cuda.host_memory_stats()
    assert after["allocated_bytes.current"] - before["allocated_bytes.current"] == 32 * MIB
    assert after["num_host_alloc"] - before["num_host_alloc"] == 1
    del pinned


def test_copies_that_do_not_block_carry_the_data():
    data = numbers(2 * MIB).pin_memory()
    back = torch.empty(2 * MIB, dtype=torch.uint8, pin_memory=True)
    there = data.to("cuda", non_blocking=True)
    back.copy_(there, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(back, data)


def test_memory_of_the_program_can_be_pinned_in_place():
    data = numbers(1 << 16)
    runtime = torch.cuda.cudart()
    assert int(runtime.cudaHostRegister(data.data_ptr(), data.numel(), 0)) == 0
    assert data.is_pinned()
    assert int(runtime.cudaHostUnregister(data.data_ptr())) == 0
    assert not data.is_pinned()


def test_blocks_that_another_stream_is_done_with_are_free_at_the_next_request(grown):
    """Also where the cache serves that request."""
    stream = torch.cuda.Stream()
    held = [tensor(MIB) for _ in range(50)]
    cached = [tensor(MIB) for _ in range(3)]
    for t in held:
        t.record_stream(stream)
    addresses = {t.data_ptr() for t in held}
    del t
    held.clear()
    cached.clear()
    torch.cuda.synchronize()
    later = [tensor(MIB) for _ in range(3)]
    assert grown["active_bytes.all.current"] == 3 * MIB
    later += [tensor(MIB) for _ in range(47)]
    assert len({t.data_ptr() for t in later} & addresses) >= 40
