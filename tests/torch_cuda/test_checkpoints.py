"""Checkpoints of a private pool: what PyTorch's graph trees (torch.compile with CUDA graphs) need of an allocator.

A checkpoint is the pool's blocks at one moment. Setting it makes the pool look like that again, whatever was allocated or
freed in it since: outputs of an earlier replay are live once more, at the same addresses, until somebody frees them.
"""

import functools
import gc
import threading

import pytest
import torch
from cuda_memory import MIB, Grown, segments, tensor

LARGE = 20 * MIB


def pool_segments(pool):
    return [segment for segment in segments() if segment["segment_pool_id"] == pool]


def live(pool):
    return {block["address"] for segment in pool_segments(pool) for block in segment["blocks"] if block["state"] == "active_allocated"}


def picture(pool):
    """What a checkpoint has to bring back."""
    return [(s["address"], s["total_size"], s["allocated_size"], s["active_size"], s["segment_type"],
             [(b["address"], b["size"], b["state"]) for b in s["blocks"]]) for s in pool_segments(pool)]


@functools.cache
def stream_of_captures():
    return torch.cuda.Stream()


def captured(function, pool=None):
    """The graph of what function does, and what it returned. One warm-up, as PyTorch does it."""
    stream = stream_of_captures()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, pool=pool):
        outputs = function()
    return graph, outputs


def take(pool):
    return torch._C._cuda_getCheckpointState(0, pool)


def put(state, stale=(), owners=()):
    torch._C._cuda_setCheckpointPoolState(
        0, state, [t.untyped_storage()._cdata for t in stale], [t.untyped_storage()._cdata for t in owners])


def filled(*sizes):
    return [tensor(size).fill_(1) for size in sizes]


SHAPES = {
    "three of two sizes": lambda: filled(8 * MIB, MIB, MIB),
    "one in the middle": lambda: filled(*[512] * 11)[5],
    "two that are apart": lambda: [t for i, t in enumerate(filled(*[512] * 11)) if i in (5, 8)],
    "two side by side": lambda: [t for i, t in enumerate(filled(*[512] * 11)) if i in (5, 6)],
    "holes in large ones": lambda: filled(LARGE, 2 * MIB, LARGE, 6 * MIB, LARGE)[::2],
    "nothing": lambda: filled(4096, LARGE) and None,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_that_is_set_at_once_changes_nothing(shape):
    graph, outputs = captured(SHAPES[shape])
    before = picture(graph.pool())
    put(take(graph.pool()))
    assert picture(graph.pool()) == before
    del outputs, graph


def test_what_a_later_graph_allocated_is_gone_after_the_checkpoint():
    first, kept = captured(lambda: filled(512))
    before, state = picture(first.pool()), take(first.pool())
    second, later = captured(lambda: filled(512), pool=first.pool())
    assert len(live(first.pool())) == 2
    put(state, stale=later)
    del later
    assert [shape for shape in picture(first.pool()) if shape in before] == before
    assert live(first.pool()) == {kept[0].data_ptr()}
    del second


def test_tensors_that_died_live_again_after_the_checkpoint_until_they_are_freed():
    graph, outputs = captured(lambda: filled(512, 5 * MIB))
    state, addresses = take(graph.pool()), [t.data_ptr() for t in outputs]
    del outputs
    assert live(graph.pool()) == set()
    grown = Grown()
    put(state)
    assert live(graph.pool()) == set(addresses)
    assert grown.allocated >= 512 + 5 * MIB
    torch._C._cuda_cudaCachingAllocator_raw_delete(addresses[0])
    assert live(graph.pool()) == {addresses[1]}
    torch._C._cuda_cudaCachingAllocator_raw_delete(addresses[1])
    assert live(graph.pool()) == set()
    assert grown.allocated == 0


def rebuilt(like):
    """A tensor on the same address that frees nothing when it dies, as a graph tree makes its outputs."""
    storage = torch._C._construct_storage_from_data_pointer(like.data_ptr(), like.device, like.untyped_storage().nbytes())
    return torch.empty(0, dtype=like.dtype, device="cuda").set_(storage, 0, like.shape, like.stride())


def test_storages_that_are_handed_in_free_their_blocks_again():
    graph, outputs = captured(lambda: filled(2 * MIB, 2 * MIB, LARGE))
    state, last = take(graph.pool()), outputs[2].data_ptr()
    copies = [rebuilt(t) for t in outputs]
    del outputs
    assert live(graph.pool()) == set()
    put(state, owners=copies[:2])
    assert len(live(graph.pool())) == 3
    copies[0] = None
    assert len(live(graph.pool())) == 2
    copies[1] = None
    assert live(graph.pool()) == {last}
    copies[2] = None  # was not handed in
    assert live(graph.pool()) == {last}
    torch._C._cuda_cudaCachingAllocator_raw_delete(last)
    assert live(graph.pool()) == set()


def test_after_a_checkpoint_the_pool_serves_allocations_as_before():
    graph, outputs = captured(lambda: filled(512, LARGE))
    state = take(graph.pool())
    reserved = torch.cuda.memory_reserved()
    for _ in range(5):
        put(state)
        again, more = captured(lambda: filled(LARGE), pool=graph.pool())
        assert more[0].data_ptr() not in {t.data_ptr() for t in outputs}
        put(state, stale=more)
        del again, more
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved + 2 * LARGE
    assert live(graph.pool()) == {t.data_ptr() for t in outputs}


def test_a_checkpoint_of_one_pool_leaves_all_others_alone():
    graph, outputs = captured(lambda: filled(LARGE))
    state = take(graph.pool())
    other, others = captured(lambda: filled(LARGE, 512))
    outside = tensor(5 * MIB)
    before, default = picture(other.pool()), torch.cuda.memory_stats()["allocation.all.current"]
    put(state)
    assert picture(other.pool()) == before
    assert torch.cuda.memory_stats()["allocation.all.current"] == default
    del outside, others, outputs


def test_the_live_allocations_of_a_pool_can_be_checked():
    pool = torch.cuda.graph_pool_handle()
    graph, outputs = captured(lambda: filled(512, 5 * MIB), pool=pool)

    def check(addresses):
        return torch._C._cuda_checkPoolLiveAllocations(0, pool, addresses)

    expected = {t.data_ptr() for t in outputs}
    assert check(expected)
    assert not check(expected | {0})
    assert not check(set())
    del outputs
    assert check(set())
    del graph


class PoolOfAGraph:
    """Allocations of this thread go to the pool, as a graph tree does for what it runs without a graph."""

    def __init__(self, pool):
        self.pool = pool
        self.stream = torch.cuda.stream(torch.cuda.Stream())

    def __enter__(self):
        torch.cuda.synchronize()
        self.stream.__enter__()
        torch._C._cuda_beginAllocateCurrentThreadToPool(0, self.pool)

    def __exit__(self, *exception):
        torch._C._cuda_endAllocateToPool(0, self.pool)
        torch._C._cuda_releasePool(0, self.pool)
        self.stream.__exit__(*exception)


def test_one_thread_allocates_in_the_pool_of_a_graph_and_another_does_not():
    pool = torch.cuda.graph_pool_handle()
    graph, outputs = captured(lambda: filled(512), pool=pool)
    del outputs
    inside, outside, steps = [], [], threading.Barrier(2, timeout=60)

    def in_the_pool():
        with PoolOfAGraph(pool):
            steps.wait()
            inside.extend(tensor(LARGE) for _ in range(3))
            steps.wait()
        outside.append(tensor(LARGE))

    def beside_it():
        steps.wait()
        outside.extend(tensor(LARGE) for _ in range(2))
        steps.wait()

    threads = [threading.Thread(target=work) for work in (in_the_pool, beside_it)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live(pool) == {t.data_ptr() for t in inside}
    assert not live(pool) & {t.data_ptr() for t in outside}
    inside.clear()
    del graph
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert pool_segments(pool) == []


def test_a_stream_allocates_in_a_pool_in_every_thread():
    pool, stream, found = torch.cuda.MemPool(), torch.cuda.Stream(), []
    with torch.cuda.stream(stream):
        torch._C._cuda_beginAllocateCurrentStreamToPool(0, pool.id)
        mine, other = tensor(5 * MIB), []

        def work():
            other.append(tensor(5 * MIB))
            with torch.cuda.stream(stream):
                found.append(tensor(5 * MIB))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        torch._C._cuda_endAllocateToPool(0, pool.id)
        torch._C._cuda_releasePool(0, pool.id)
        after = tensor(5 * MIB)
    assert live(pool.id) == {mine.data_ptr(), found[0].data_ptr()}
    assert after.data_ptr() not in live(pool.id)
    del other


def test_a_compiled_function_replays_graphs_that_share_one_pool():
    torch._dynamo.reset()
    from torch._inductor import config

    with config.patch({"triton.fast_path_cudagraph_asserts": True, "triton.slow_path_cudagraph_asserts": True}):
        function = torch.compile(lambda x: (x.clone(), x.repeat(2)), backend="cudagraphs")
        source = tensor(5 * MIB)
        addresses, reserved = set(), []
        for _ in range(6):
            torch.compiler.cudagraph_mark_step_begin()
            outputs = function(source)
            addresses.add(outputs[0].data_ptr())
            del outputs
            reserved.append(torch.cuda.memory_reserved())
    assert len(set(reserved[3:])) == 1
    torch._dynamo.reset()
    from torch._inductor import cudagraph_trees

    cudagraph_trees.reset_cudagraph_trees()
    gc.collect()
