"""`MemPool` in all its ways: as a last resort, unsplit, over an allocator of one's own, nested, and in several threads."""

import ctypes
import gc
import threading
from collections import Counter

import pytest
import torch
from cuda_memory import MIB, Grown, segment_of, segments, tensor


def put(pool, size):
    with torch.cuda.use_mem_pool(pool):
        return tensor(size)


# Identities


def test_pools_have_numbers_that_rise_and_no_pool_is_the_shared_one():
    handle, pool, other = torch.cuda.graph_pool_handle(), torch.cuda.MemPool(), torch.cuda.MemPool()
    assert handle[0] != 0 or handle[1] != 0
    assert pool.id != (0, 0) and other.id[1] > pool.id[1]


def test_threads_make_pools_of_different_numbers():
    made = []
    threads = [threading.Thread(target=lambda: made.append(torch.cuda.MemPool())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({pool.id for pool in made}) == 8


def test_a_pool_that_nobody_used_can_be_dropped_and_shown():
    pool = torch.cuda.MemPool()
    assert pool.snapshot() == []
    del pool


# Emptying the cache


def test_a_pool_keeps_its_cache_while_it_is_in_use():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        tensor(12 * MIB)
        torch.cuda.empty_cache()
        assert len(pool.snapshot()) == 1
    assert len(pool.snapshot()) == 1


def test_four_threads_empty_the_cache_inside_pools_and_lose_nothing():
    pools, problems = [torch.cuda.MemPool() for _ in range(4)], []

    def work(pool):
        try:
            with torch.cuda.use_mem_pool(pool):
                for _ in range(20):
                    tensor(16)
                    torch.cuda.empty_cache()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(pool,)) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert [len(pool.snapshot()) for pool in pools] == [1] * 4


def test_dropping_a_pool_leaves_the_cache_of_all_others(grown):
    tensor(12 * MIB)
    cached = grown.reserved
    pool = torch.cuda.MemPool()
    put(pool, 12 * MIB)
    del pool
    gc.collect()
    assert grown.reserved >= cached > 0


def test_a_dropped_pool_with_a_live_tensor_goes_when_the_tensor_does(grown):
    pool = torch.cuda.MemPool()
    kept = put(pool, 12 * MIB)
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    assert grown.allocated == 12 * MIB
    del kept
    torch.cuda.empty_cache()
    assert (grown.allocated, grown.reserved) == (0, 0)


def test_many_pools_one_after_the_other_leave_nothing(grown):
    for i in range(50):
        pool = torch.cuda.MemPool()
        kept = put(pool, 1 + i * 100_000)
        del pool
        del kept
    gc.collect()
    torch.cuda.empty_cache()
    assert (grown.allocated, grown.reserved) == (0, 0)


def test_a_thousand_pools_leave_room_for_more(own_process):
    """Neither memory nor addresses: a device's address space is large, and not endless. In a process of its own, since
    PyTorch 2.11 may crash in a snapshot of one pool whose number is over 256."""
    own_process("""
        import torch
        for _ in range(1000):
            pool = torch.cuda.MemPool()
            with torch.cuda.use_mem_pool(pool):
                held = torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
            del held, pool
        torch.cuda.empty_cache()
        assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (0, 0)
        """)


# Nesting and threads


def test_three_pools_inside_each_other_each_get_their_own():
    pools = [torch.cuda.MemPool() for _ in range(3)]
    held = []
    with torch.cuda.use_mem_pool(pools[0]):
        held.append(tensor(20 * MIB))
        with torch.cuda.use_mem_pool(pools[1]):
            held.append(tensor(20 * MIB))
            with torch.cuda.use_mem_pool(pools[2]):
                held.append(tensor(20 * MIB))
            held.append(tensor(20 * MIB))
        held.append(tensor(20 * MIB))
    sums = [sum(s["allocated_size"] for s in pool.snapshot()) for pool in pools]
    assert sums == [40 * MIB, 40 * MIB, 20 * MIB]
    del held


def test_a_pool_cannot_be_entered_again_inside_itself_and_can_afterwards():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        first = tensor(5 * MIB)
        with pytest.raises(RuntimeError, match="already"):
            torch.cuda.use_mem_pool(pool).__enter__()
    second = put(pool, 5 * MIB)
    assert {segment_of(t)["segment_pool_id"] for t in (first, second)} == {pool.id}


def test_an_exception_inside_a_pool_leaves_it():
    pool = torch.cuda.MemPool()
    with pytest.raises(ValueError), torch.cuda.use_mem_pool(pool):
        raise ValueError
    assert pool.use_count() == 1
    assert segment_of(outside := tensor(5 * MIB))["segment_pool_id"] == (0, 0)
    del outside


def test_another_thread_does_not_see_the_pool_and_its_memory_is_not_the_pools():
    pool, inside, outside = torch.cuda.MemPool(), threading.Event(), threading.Event()
    seen = Counter()

    def beside():
        inside.wait(60)
        kept = tensor(2 * MIB)
        for segment in segments():
            seen[segment["segment_pool_id"]] += segment["active_size"]
        outside.set()
        del kept

    thread = threading.Thread(target=beside)
    thread.start()
    with torch.cuda.use_mem_pool(pool):
        tensor(2 * MIB)
        inside.set()
        outside.wait(60)
    thread.join()
    assert (seen[pool.id], seen[0, 0]) == (0, 2 * MIB)


def test_a_tensor_of_a_pool_can_be_freed_by_any_thread_and_after_the_pool(grown):
    pool = torch.cuda.MemPool()
    held = [put(pool, 12 * MIB)]
    del pool
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    torch.cuda.empty_cache()
    assert (grown.allocated, grown.reserved) == (0, 0)


def test_a_pool_serves_several_streams_and_keeps_them_apart():
    pool, stream = torch.cuda.MemPool(), torch.cuda.Stream()
    first = put(pool, 12 * MIB)
    address = first.data_ptr()
    del first
    with torch.cuda.stream(stream):
        second = put(pool, 12 * MIB)
    assert second.data_ptr() != address
    assert {s["stream"] for s in pool.snapshot()} == {0, stream.cuda_stream}
    del second


@pytest.mark.two_devices
def test_a_pool_can_be_used_on_a_device_that_is_not_the_current_one():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool, device=1):
        there, here = tensor(5 * MIB, "cuda:1"), tensor(5 * MIB, "cuda:0")
        found = {s["device"]: s["segment_pool_id"] for s in torch.cuda.memory_snapshot() if s["active_size"] >= 5 * MIB}
    assert found[1] == pool.id and found[0] == (0, 0)
    del there, here


# The last resort, and unsplit


@pytest.mark.only_under("native", "ours", why="PyTorch does not fall back to pools of expandable segments")
def test_a_pool_that_may_be_used_when_memory_runs_out_is_and_another_is_not(limit):
    spared, offered = torch.cuda.MemPool(), torch.cuda.MemPool(use_on_oom=True)
    limit(80 * MIB)
    first, second = put(spared, 40 * MIB), put(offered, 40 * MIB)
    address = second.data_ptr()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(40 * MIB)
    del first, second
    third = tensor(30 * MIB)
    assert third.data_ptr() == address
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(30 * MIB)
    del third
    again = put(offered, 20 * MIB)
    assert again.data_ptr() == address


@pytest.mark.only_under("native", "ours", why="PyTorch does not fall back to pools of expandable segments")
def test_a_dropped_pool_is_no_last_resort_any_more(limit):
    limit(40 * MIB)
    for _ in range(10):
        pool = torch.cuda.MemPool(use_on_oom=True)
        put(pool, 40 * MIB)
        del pool
        gc.collect()
    last = torch.cuda.MemPool(use_on_oom=True)
    put(last, 40 * MIB)
    held = [tensor(20 * MIB), tensor(20 * MIB)]
    assert {segment_of(t)["segment_pool_id"] for t in held} == {last.id}
    held.clear()


@pytest.mark.only_under("native", why="PyTorch splits expandable segments all the same, and ours are such")
def test_a_pool_that_does_not_split_has_one_block_a_segment():
    split, whole = torch.cuda.MemPool(), torch.cuda.MemPool(no_split=True)
    held = [put(pool, 4 * MIB) for pool in (split, whole) for _ in range(2)]
    assert all(len(segment["blocks"]) == 1 for segment in whole.snapshot())
    assert len(whole.snapshot()) == 2 >= len(split.snapshot())
    del held


# Over an allocator of one's own

runtime = ctypes.CDLL("libcudart.so.13")
runtime.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
runtime.cudaFree.argtypes = [ctypes.c_void_p]


class OwnAllocator:
    """A pluggable allocator over cudaMalloc that knows what it has handed out."""

    def __init__(self):
        self.live = {}
        self.ever = 0

        def allocate(size, device, stream):
            address = ctypes.c_void_p()
            if runtime.cudaMalloc(ctypes.byref(address), size) != 0:
                return None
            self.live[address.value] = size
            self.ever += 1
            return address.value

        def free(address, size, device, stream):
            assert self.live.pop(address) == size
            assert runtime.cudaFree(address) == 0

        self.functions = (ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)(allocate),
                          ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)(free))
        self.allocator = torch._C._cuda_customAllocator(*(ctypes.cast(f, ctypes.c_void_p).value for f in self.functions))


@pytest.fixture
def own():
    return OwnAllocator()


def test_a_pool_over_an_own_allocator_takes_its_segments_from_it(own, grown):
    pool = torch.cuda.MemPool(own.allocator)
    assert not own.live
    first = put(pool, MIB)
    assert len(own.live) == 1 and grown.allocated == MIB
    base, size = next(iter(own.live.items()))
    assert base <= first.data_ptr() < base + size
    assert grown.reserved == sum(own.live.values())
    outside = tensor(MIB)
    assert not base <= outside.data_ptr() < base + size
    assert segment_of(first)["total_size"] == size and not segment_of(first)["is_expandable"]
    del first, outside


def test_an_own_allocators_segments_are_shared_and_come_back_with_the_pool(own):
    pool = torch.cuda.MemPool(own.allocator)
    held = [put(pool, MIB) for _ in range(3)]
    assert own.ever == len(pool.snapshot()) == len(own.live)
    held.clear()
    assert own.live  # cached
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    assert not own.live


def test_a_tensor_outlives_pool_and_own_allocator_and_then_the_memory_goes_back(own):
    pool = torch.cuda.MemPool(own.allocator)
    kept = put(pool, 2 * MIB)
    own.allocator = None
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    assert len(own.live) == 1
    del kept
    torch.cuda.empty_cache()
    assert not own.live


def test_an_own_allocator_is_bound_by_the_memory_fraction_too(own, limit):
    pool = torch.cuda.MemPool(own.allocator)
    limit(40 * MIB)
    held = put(pool, 30 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        put(pool, 30 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(30 * MIB)  # and what it has is missing elsewhere
    del held, pool
    gc.collect()
    torch.cuda.empty_cache()
    tensor(30 * MIB)


def test_an_own_allocators_cached_segments_stay_while_their_pool_lives(own, limit):
    """A captured graph may write there at any time."""
    pool = torch.cuda.MemPool(own.allocator)
    put(pool, 8 * MIB)
    segments_before = set(own.live)
    limit(4 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        put(pool, 100 * MIB)
    assert segments_before <= set(own.live)


def test_an_own_allocators_cached_segments_make_room_once_their_pool_is_gone(own, limit):
    pool = torch.cuda.MemPool(own.allocator)
    kept = put(pool, 30 * MIB)
    del pool
    gc.collect()
    del kept  # cached, in a pool that nobody has
    limit(10 * MIB)
    held = tensor(30 * MIB)
    assert not own.live
    del held


def test_an_own_allocators_segments_come_whole_in_the_history_too(own):
    torch.cuda.memory._record_memory_history(context=None, clear_history=True)
    try:
        pool = torch.cuda.MemPool(own.allocator)
        put(pool, 8 * MIB)
        actions = [entry["action"] for entry in torch.cuda.memory._snapshot()["device_traces"][0]]
        assert "segment_alloc" in actions and "segment_map" not in actions
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def test_an_own_allocators_segments_are_not_split_if_the_pool_says_so(own):
    pool = torch.cuda.MemPool(own.allocator, no_split=True)
    put(pool, 8 * MIB)  # cached from here on
    held = [put(pool, 4 * MIB) for _ in range(2)]
    assert len(pool.snapshot()) == 2 and all(len(segment["blocks"]) == 1 for segment in pool.snapshot())
    del held
    held = [put(pool, 4 * MIB) for _ in range(2)]
    assert own.ever == 2  # each took a whole segment again
    del held


@pytest.mark.only_under("ours", why="PyTorch keeps what is cached outside of the pool")
def test_what_is_cached_elsewhere_makes_room_for_an_own_allocator(own, limit):
    pool = torch.cuda.MemPool(own.allocator)
    limit(40 * MIB)
    tensor(30 * MIB)  # cached from here on
    put(pool, 30 * MIB)


def test_the_figures_with_an_own_allocator_come_back_to_where_they_were(own):
    grown = Grown()
    pool = torch.cuda.MemPool(own.allocator)
    held = [put(pool, size) for size in (1000, 3 * MIB, 12 * MIB)]
    stream = torch.cuda.Stream()
    held[1].record_stream(stream)
    held.clear()
    torch.cuda.synchronize()
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    assert not own.live
    assert (grown.allocated, grown.reserved, grown["active_bytes.all.current"]) == (0, 0, 0)


def test_a_graph_can_be_captured_into_a_pool_over_an_own_allocator(own):
    pool = torch.cuda.MemPool(own.allocator)
    put(pool, 12 * MIB)  # cached: cudaMalloc is forbidden while a graph is captured
    source, graph = tensor(4 * MIB), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool.id, capture_error_mode="relaxed"):
        clone = source.clone()
    assert segment_of(clone)["segment_pool_id"] == pool.id
    del clone, graph
