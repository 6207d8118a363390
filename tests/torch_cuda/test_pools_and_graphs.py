"""How PyTorch's own CUDA memory management behaves, in pools and graphs: what gpuledger's allocator has to do alike.

Runs on a GPU and on the fake CUDA (README.md says how they differ). Kernels do nothing on the fake, so data is compared
only where it came by copies: from the host, between tensors of one type, to the host. A captured clone() is such a copy.
"""

import gc
import threading

import pytest
import torch
from cuda_memory import MIB, numbers, segment_of, segments, settle, tensor

# Pools


def test_a_pool_has_segments_of_its_own():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        t = tensor(12 * MIB)
    assert segment_of(t)["segment_pool_id"] == pool.id != (0, 0)
    assert [s["address"] for s in pool.snapshot()] == [segment_of(t)["address"]]


def test_two_pools_do_not_share_segments(grown):
    pools = [torch.cuda.MemPool(), torch.cuda.MemPool()]
    held = []
    for pool in pools:
        with torch.cuda.use_mem_pool(pool):
            held.append(tensor(1000))
    assert [segment_of(t)["segment_pool_id"] for t in held] == [pool.id for pool in pools]
    assert pools[0].id != pools[1].id and grown.reserved == 2 * 2 * MIB


def test_what_is_freed_in_a_pool_is_used_again_in_it_and_nowhere_else(grown, geometry):
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        t = tensor(12 * MIB)
        address = t.data_ptr()
        del t
    other = tensor(12 * MIB)
    assert other.data_ptr() != address
    with torch.cuda.use_mem_pool(pool):
        again = tensor(12 * MIB)
    assert (again.data_ptr(), grown.reserved) == (address, 2 * geometry.reserved(12 * MIB))


def test_a_tensor_outlives_its_pool():
    data = numbers()
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        t = data.cuda()
    del pool
    torch.cuda.empty_cache()
    assert torch.equal(t.clone().cpu(), data)


def test_a_dead_pool_gives_its_memory_back(grown, geometry):
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        tensor(12 * MIB)
    torch.cuda.empty_cache()
    kept = grown.reserved
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    assert (kept, grown.reserved) == (geometry.reserved(12 * MIB), 0)


def test_a_pool_counts_its_users():
    pool = torch.cuda.MemPool()
    before = pool.use_count()
    with torch.cuda.use_mem_pool(pool):
        assert pool.use_count() == before + 1
    assert pool.use_count() == before


def test_a_pool_is_for_the_thread_that_chose_it():
    pool = torch.cuda.MemPool()
    found = []
    with torch.cuda.use_mem_pool(pool):
        thread = threading.Thread(target=lambda: found.append(tensor(12 * MIB)))
        thread.start()
        thread.join()
    assert segment_of(found[0])["segment_pool_id"] == (0, 0)


def test_pools_can_be_nested():
    outer, inner = torch.cuda.MemPool(), torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(outer):
        with torch.cuda.use_mem_pool(inner):
            t = tensor(12 * MIB)
        u = tensor(12 * MIB)
    assert (segment_of(t)["segment_pool_id"], segment_of(u)["segment_pool_id"]) == (inner.id, outer.id)


# Graphs


@pytest.fixture(autouse=True, scope="module")
def first_graph():
    """As long as there are graphs, the state of their random numbers has a few bytes: held, and so in no difference."""
    graph, clone = captured_copy(tensor(1))
    yield
    del graph, clone


def captured_copy(source, pool=None):
    """A graph that clones `source`, and the clone."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        clone = source.clone()
    return graph, clone


def test_a_replayed_graph_works_on_the_data_of_the_moment():
    source = numbers(4 * MIB).cuda()
    graph, clone = captured_copy(source)
    for _ in range(3):
        data = numbers(4 * MIB)
        source.copy_(data)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(clone.cpu(), data)


def test_a_capture_allocates_in_a_pool_of_its_own(grown):
    graph, clone = captured_copy(tensor(12 * MIB))
    assert segment_of(clone)["segment_pool_id"] == graph.pool() != (0, 0)
    del clone


def test_the_memory_of_a_graph_is_kept_as_long_as_the_graph(grown, geometry):
    source = tensor(12 * MIB)
    before = grown.reserved
    graph, clone = captured_copy(source)
    del clone
    torch.cuda.empty_cache()
    assert grown.reserved == before + geometry.reserved(12 * MIB)
    graph.reset()
    torch.cuda.empty_cache()
    assert grown.reserved == before


def test_graphs_that_share_a_pool_share_its_memory(grown, geometry):
    source = tensor(12 * MIB)
    before = grown.reserved
    first, clone = captured_copy(source)
    del clone
    second, clone = captured_copy(source, pool=first.pool())
    assert first.pool() == second.pool()
    assert grown.reserved == before + geometry.reserved(12 * MIB)
    del clone


def test_a_pool_handle_can_be_made_before_the_first_graph():
    handle = torch.cuda.graph_pool_handle()
    graph, clone = captured_copy(tensor(12 * MIB), pool=handle)
    assert graph.pool() == handle == segment_of(clone)["segment_pool_id"]


def test_a_graph_can_allocate_in_a_pool_that_the_program_made():
    pool = torch.cuda.MemPool()
    graph, clone = captured_copy(tensor(12 * MIB), pool=pool.id)
    assert segment_of(clone)["segment_pool_id"] == pool.id
    del graph, clone


def test_the_replay_of_a_graph_allocates_nothing(grown):
    graph, clone = captured_copy(tensor(12 * MIB))
    before = grown["allocation.all.allocated"]
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    assert grown["allocation.all.allocated"] == before
    del clone


def test_two_graphs_replay_one_after_the_other():
    data = numbers(MIB)
    source = torch.empty_like(data, device="cuda")
    first, middle = captured_copy(source)
    second, end = captured_copy(middle, pool=first.pool())
    source.copy_(data)
    first.replay()
    second.replay()
    torch.cuda.synchronize()
    assert torch.equal(end.cpu(), data)


def test_a_stream_knows_that_it_is_captured():
    source = tensor(1024)
    graph = torch.cuda.CUDAGraph()
    assert not torch.cuda.is_current_stream_capturing()
    with torch.cuda.graph(graph):
        assert torch.cuda.is_current_stream_capturing()
        clone = source.clone()
    assert not torch.cuda.is_current_stream_capturing()
    del clone


def test_a_captured_stream_is_joined_by_those_that_wait_for_it():
    data = numbers(MIB)
    source, side = torch.empty_like(data, device="cuda"), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            clone = source.clone()
        torch.cuda.current_stream().wait_stream(side)
        end = clone.clone()
    source.copy_(data)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(end.cpu(), data)


def test_a_dead_graph_leaves_nothing_reserved(grown):
    graph, clone = captured_copy(tensor(12 * MIB))
    graph.replay()
    pool = graph.pool()
    del graph, clone
    settle()
    assert grown.reserved == 0
    assert pool not in [s["segment_pool_id"] for s in segments()]
