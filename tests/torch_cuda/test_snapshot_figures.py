"""The snapshot and the statistics are two views of one state: each figure of one follows from the other, at any moment."""

import random
from collections import Counter

import pytest
import torch
import under_test
from cuda_memory import MIB, tensor


def figures_of(snapshot):
    """What the segments say: device -> the figures of memory_stats that follow from them."""
    found = {}
    for segment in snapshot:
        figures = found.setdefault(segment["device"], Counter())
        pools = ("all", f"{segment['segment_type']}_pool") if under_test.geometry().segments_by_size else ("all",)
        whole = len(segment["blocks"]) == 1
        for pool in pools:
            figures[f"reserved_bytes.{pool}.current"] += segment["total_size"]
            figures[f"allocated_bytes.{pool}.current"] += segment["allocated_size"]
            figures[f"active_bytes.{pool}.current"] += segment["active_size"]
            figures[f"requested_bytes.{pool}.current"] += segment["requested_size"]
            if not segment["is_expandable"]:
                figures[f"segment.{pool}.current"] += 1
            for block in segment["blocks"]:
                figures[f"allocation.{pool}.current"] += block["state"] == "active_allocated"
                figures[f"active.{pool}.current"] += block["state"].startswith("active_")
                if block["state"] == "inactive" and not whole and not segment["is_expandable"]:
                    figures[f"inactive_split.{pool}.current"] += 1
                    figures[f"inactive_split_bytes.{pool}.current"] += block["size"]
    return found


def check():
    snapshot = torch.cuda.memory_snapshot()
    for segment in snapshot:
        end = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == end
            end += block["size"]
        assert end == segment["address"] + segment["total_size"]
        states = Counter()
        for block in segment["blocks"]:
            states[block["state"]] += block["size"]
        assert segment["allocated_size"] == states["active_allocated"]
        assert segment["active_size"] == states["active_allocated"] + states["active_pending_free"]
        active = [block for block in segment["blocks"] if block["state"] != "inactive"]
        assert segment["requested_size"] == sum(block["requested_size"] for block in active)
        assert all(block["requested_size"] <= block["size"] for block in active)
    for device, figures in figures_of(snapshot).items():
        stats = torch.cuda.memory_stats(device)
        differing = {name: (figures[name], stats[name]) for name in figures if figures[name] != stats[name]}
        assert not differing, differing


@pytest.mark.parametrize("largest", [2000, MIB, 30 * MIB])
def test_they_agree_while_tensors_come_and_go(largest):
    dice, held = random.Random(largest), []
    for i in range(400):
        if held and dice.random() < 0.45:
            held.pop(dice.randrange(len(held)))
        else:
            held.append(tensor(dice.randrange(1, largest)))
        if i % 20 == 0:
            check()
        if i % 150 == 0:
            torch.cuda.empty_cache()
            check()
    held.clear()
    torch.cuda.empty_cache()
    check()


def test_they_agree_across_streams_and_pools():
    stream, pool, held = torch.cuda.Stream(), torch.cuda.MemPool(), []
    for i in range(40):
        with torch.cuda.stream(stream if i % 2 else torch.cuda.current_stream()):
            held.append(tensor(1 + 70_000 * i))
        with torch.cuda.use_mem_pool(pool):
            held.append(tensor(1 + 50_000 * i))
        if i % 3 == 0:
            held.pop(i % len(held))
        check()


def test_they_agree_while_blocks_wait(busy):
    stream = torch.cuda.Stream()
    first, second = tensor(12 * MIB), tensor(3000)
    with busy(stream):
        first.record_stream(stream)
        second.record_stream(stream)
        del first
        check()
        del second
        check()
    torch.cuda.synchronize()
    tensor(1)
    check()


def test_they_agree_while_a_graph_holds_memory():
    source, graph = tensor(5 * MIB), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = source.clone()
        source[:5000].clone()
    check()
    del kept
    check()
    graph.reset()
    torch.cuda.empty_cache()
    check()


@pytest.mark.two_devices
def test_they_agree_on_each_device():
    held = [tensor(3 * MIB, "cuda:0"), tensor(5 * MIB, "cuda:1"), tensor(7000, "cuda:1")]
    assert {segment["device"] for segment in torch.cuda.memory_snapshot()} == {0, 1}
    check()
    del held


def test_a_snapshot_of_one_pool_has_its_segments_and_no_others():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        inside = tensor(5 * MIB)
    outside = tensor(5 * MIB)
    assert {segment["segment_pool_id"] for segment in torch.cuda.memory_snapshot(pool.id)} == {pool.id}
    every = {segment["segment_pool_id"] for segment in torch.cuda.memory_snapshot()}
    assert {pool.id, (0, 0)} <= every
    del inside, outside


def test_the_addresses_of_a_segment_are_those_of_its_tensors():
    held = [tensor(size) for size in (700, 3 * MIB, 11 * MIB)]
    blocks = {block["address"]: block for segment in torch.cuda.memory_snapshot() for block in segment["blocks"]}
    for t in held:
        block = blocks[t.data_ptr()]
        assert (block["state"], block["requested_size"]) == ("active_allocated", t.numel())


def test_segments_do_not_overlap():
    held = [tensor(1 + 300_000 * i) for i in range(60)]
    places = sorted((segment["address"], segment["total_size"]) for segment in torch.cuda.memory_snapshot())
    for (address, size), (following, _) in zip(places, places[1:]):
        assert address + size <= following
    del held
