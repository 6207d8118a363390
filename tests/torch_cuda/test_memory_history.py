"""How PyTorch's own CUDA memory management behaves, as its snapshot and its history show it: what gpuledger's allocator has to do alike.

Runs on a GPU and on the fake CUDA (README.md says how they differ). Kernels do nothing on the fake, so data is compared
only where it came by copies: from the host, between tensors of one type, to the host.
"""

import pickle

import cuda_memory
import pytest
import torch
from cuda_memory import MIB, segment_of, segments, tensor


def test_the_blocks_of_the_snapshot_tile_their_segments():
    held = [tensor(1000), tensor(3 * MIB), tensor(12 * MIB)]
    del held[0]
    for segment in segments():
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address
            address += block["size"]
        assert address == segment["address"] + segment["total_size"]
    assert sum(s["total_size"] for s in segments()) == torch.cuda.memory_reserved()
    assert sum(s["allocated_size"] for s in segments()) == torch.cuda.memory_allocated()


def test_a_block_of_the_snapshot_has_its_requested_size_and_its_state():
    t = tensor(1000)
    block = next(b for b in segment_of(t)["blocks"] if b["address"] == t.data_ptr())
    assert (block["size"], block["requested_size"], block["state"]) == (1024, 1000, "active_allocated")


@pytest.fixture
def history():
    """Switches history on, with what is given, and off again."""
    yield lambda **options: torch.cuda.memory._record_memory_history(stacks="python", **options)
    torch.cuda.memory._record_memory_history(enabled=None)


def traces():
    return torch.cuda.memory._snapshot()["device_traces"][0]


def test_the_history_has_each_allocation_and_its_free_with_its_stack(history):
    history()
    t = tensor(5 * MIB)
    address = t.data_ptr()
    del t
    mine = [e for e in traces() if e["addr"] == address and not e["action"].startswith("segment")]
    assert [(e["action"], e["size"]) for e in mine] == [
        ("alloc", 5 * MIB), ("free_requested", 5 * MIB), ("free_completed", 5 * MIB)]
    frames = [(f["filename"], f["name"]) for f in mine[0]["frames"]]
    assert frames[0] == (cuda_memory.__file__, "tensor")
    assert frames[1] == (__file__, "test_the_history_has_each_allocation_and_its_free_with_its_stack")


def test_the_history_has_the_segments(history, geometry):
    history()
    tensor(12 * MIB)
    torch.cuda.empty_cache()
    taken, returned = ("segment_map", "segment_unmap") if geometry.one_range else ("segment_alloc", "segment_free")
    mine = {action: sum(e["size"] for e in traces() if e["action"] == action) for action in (taken, returned)}
    assert mine == {taken: geometry.reserved(12 * MIB), returned: geometry.reserved(12 * MIB)}
    actions = [e["action"] for e in traces() if e["action"].startswith("segment")]
    assert set(actions) == {taken, returned} and actions == sorted(actions)  # the taken ones come first


def test_the_history_has_a_refused_allocation_with_what_was_free(history):
    history()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50)
    refused = [e for e in traces() if e["action"] == "oom"]
    assert [e["size"] for e in refused] == [1 << 50]
    assert 0 < refused[0]["device_free"] <= torch.cuda.mem_get_info()[1]


def test_the_history_keeps_the_latest_entries_up_to_its_limit(history):
    history(max_entries=10)
    for size in range(1, 101):
        tensor(size)
    kept = traces()
    assert len(kept) == 10
    assert [e["size"] for e in kept if e["action"] == "alloc"][-2:] == [99, 100]


def test_without_history_nothing_is_recorded(history):
    history(clear_history=True)
    torch.cuda.memory._record_memory_history(enabled=None)
    tensor(4096)
    assert [e for e in traces() if e["action"] == "alloc"] == []


def test_metadata_of_the_thread_is_on_its_entries(history):
    history()
    torch.cuda.memory._set_memory_metadata("layer 7")
    tensor(7 * 512)
    torch.cuda.memory._set_memory_metadata("")
    tensor(9 * 512)
    found = {e["size"]: e["user_metadata"] for e in traces() if e["action"] == "alloc"}
    assert (found[7 * 512], found[9 * 512]) == ("layer 7", "")


def test_a_dumped_snapshot_is_a_pickle_of_plain_data(history, tmp_path):
    history()
    held = tensor(12 * MIB)
    torch.cuda.memory._dump_snapshot(str(tmp_path / "snapshot.pickle"))
    snapshot = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    assert {"segments", "device_traces"} <= set(snapshot)
    assert held.data_ptr() in [block["address"] for s in snapshot["segments"] for block in s["blocks"]]
    del held
