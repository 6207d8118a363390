"""Recording of history, in every mode: whose stacks are kept, which actions, for how long; and who else is told."""

import json
import threading
import time

import pytest
import torch
from cuda_memory import MIB, segment_of, tensor

record = torch.cuda.memory._record_memory_history


@pytest.fixture(autouse=True)
def ends_without_history():
    record(enabled=None, clear_history=True)
    yield
    record(enabled=None)
    torch.cuda.memory._set_memory_metadata("")


def snapshot():
    return torch.cuda.memory._snapshot()


def traces(device=0):
    return snapshot()["device_traces"][device]


def actions(device=0):
    return [entry["action"] for entry in traces(device)]


def allocated_here():
    return tensor(5 * MIB)


def freed_here(held):
    held.pop()


def names(entry):
    return [frame["name"] for frame in entry.get("frames", [])]


# Whose stacks


@pytest.mark.parametrize(("context", "at_alloc", "at_free", "in_state"), [
    (None, False, False, False), ("state", False, False, True), ("alloc", True, False, True), ("all", True, True, True)])
def test_stacks_are_kept_where_the_context_says(context, at_alloc, at_free, in_state):
    record("all", context=context, stacks="python")
    held = [allocated_here()]
    kept = next(b for b in segment_of(held[0])["blocks"] if b["address"] == held[0].data_ptr())
    assert ("allocated_here" in names(kept)) == in_state
    freed_here(held)
    entries = {entry["action"]: entry for entry in traces() if not entry["action"].startswith("segment")}
    assert ("allocated_here" in names(entries["alloc"])) == at_alloc
    assert ("freed_here" in names(entries["free_completed"])) == at_free
    # A free that has no stack of its own has that of the allocation.
    for action in ("free_requested", "free_completed"):
        assert ("allocated_here" in names(entries[action])) == (at_alloc and not at_free)


def mapped_here():
    return tensor(12 * MIB)


@pytest.mark.only_under("native", "ours", why="in an expandable segment of PyTorch's it is lost with the first split")
def test_a_segment_has_the_stack_that_mapped_it():
    record("all", context="state", stacks="python")
    torch.cuda.empty_cache()
    held = mapped_here()
    assert "mapped_here" in names(segment_of(held))


def test_state_keeps_stacks_of_what_lives_and_no_history():
    record("state", stacks="python")
    held = allocated_here()
    block = next(b for b in segment_of(held)["blocks"] if b["address"] == held.data_ptr())
    assert "allocated_here" in names(block)
    assert "alloc" not in actions()


def test_stacks_of_all_kinds_have_frames_of_cpp_and_of_python():
    record("all", stacks="all")
    held = allocated_here()
    entry = next(entry for entry in traces() if entry["action"] == "alloc")
    assert "allocated_here" in names(entry)
    assert any("::" in name for name in names(entry))
    del held


def test_stacks_of_python_have_no_frames_of_cpp():
    record("all", stacks="python")
    held = allocated_here()
    entry = next(entry for entry in traces() if entry["action"] == "alloc")
    assert names(entry) and not any("::" in name for name in names(entry))
    del held


def test_a_script_function_is_a_frame():
    @torch.jit.script
    def made_by_script():
        return torch.rand(311, 411, device="cuda")

    record("state", stacks="python")
    held = made_by_script()
    block = next(b for b in segment_of(held)["blocks"] if b["requested_size"] == 311 * 411 * 4)
    assert block["frames"][0]["name"] == "made_by_script"
    del held


def test_an_allocation_of_the_backward_pass_is_in_the_history():
    leaf = torch.empty(256, 256, device="cuda", requires_grad=True)
    result = (leaf * 2).sum()
    record("all", stacks="python")
    result.backward()
    assert actions().count("alloc") >= 1


def test_segments_given_back_have_the_stack_of_who_emptied_the_cache():
    for context, told in (("alloc", False), ("all", True)):
        torch.cuda.empty_cache()
        record("all", context=context, stacks="python", clear_history=True)
        tensor(12 * MIB)
        torch.cuda.empty_cache()
        assert ("empty_cache" in json.dumps(traces())) == told


def test_with_the_context_switched_off_no_stack_is_taken_and_then_again():
    record("all", stacks="python")
    first = allocated_here()
    record("all", context=None)
    second = tensor(7 * MIB)
    record("all", stacks="python")
    third = allocated_here()
    found = {(entry["addr"], bool(names(entry))) for entry in traces() if entry["action"] == "alloc"}
    assert {(first.data_ptr(), True), (second.data_ptr(), False), (third.data_ptr(), True)} <= found


# Which entries


def test_an_entry_has_every_field():
    record("all", stacks="python")
    held = tensor(5 * MIB)
    entry = next(entry for entry in traces() if entry["action"] == "alloc")
    assert {"action", "addr", "size", "stream", "time_us", "compile_context", "user_metadata", "frames"} <= set(entry)
    assert (entry["addr"], entry["size"], entry["compile_context"]) == (held.data_ptr(), 5 * MIB, "N/A")
    frame = entry["frames"][0]
    assert isinstance(frame["filename"], str) and isinstance(frame["line"], int) and isinstance(frame["name"], str)


def test_the_size_of_an_entry_is_what_was_asked_for():
    record("all", context=None)
    tensor(1000)
    assert [e["size"] for e in traces() if e["action"] in ("alloc", "free_requested", "free_completed")] in ([1000] * 3, [1024] * 3)


def test_entries_are_in_the_order_of_time():
    record("all", context=None)
    for size in range(1, 50):
        tensor(size)
    times = [entry["time_us"] for entry in traces()]
    assert times == sorted(times)
    assert all(abs(at / 1e6 - time.time()) < 600 for at in times)  # microseconds since 1970


def test_the_stream_of_an_entry_is_the_tensors():
    stream = torch.cuda.Stream()
    record("all", context=None)
    with torch.cuda.stream(stream):
        tensor(5 * MIB)
    assert {e["stream"] for e in traces() if e["action"] == "alloc"} == {stream.cuda_stream}


def test_a_free_that_waits_is_requested_at_once_and_completed_later(busy):
    stream = torch.cuda.Stream()
    t = tensor(12 * MIB)
    address = t.data_ptr()
    record("all", context=None)
    with busy(stream):
        t.record_stream(stream)
        del t
        assert [e["action"] for e in traces() if e["addr"] == address] == ["free_requested"]
    torch.cuda.synchronize()
    tensor(512)
    assert [e["action"] for e in traces() if e.get("addr") == address][:2] == ["free_requested", "free_completed"]


@pytest.mark.parametrize("skipped", [["free_requested"], ["free_requested", "free_completed"], ["alloc"], ["segment_alloc", "segment_free"]])
def test_actions_that_are_to_be_skipped_are(skipped):
    torch.cuda.empty_cache()
    record("all", context=None, skip_actions=skipped)
    tensor(12 * MIB)
    torch.cuda.empty_cache()
    found = set(actions())
    assert not found & set(skipped)
    assert {"alloc", "free_requested", "free_completed"} - set(skipped) <= found


def test_a_snapshot_without_traces_has_the_segments_all_the_same():
    record("all", context=None)
    held = tensor(5 * MIB)
    whole = torch._C._cuda_memorySnapshot((0, 0, True))
    short = torch._C._cuda_memorySnapshot((0, 0, False))
    assert whole["device_traces"][0] and not any(short["device_traces"])
    assert [s["address"] for s in whole["segments"]] == [s["address"] for s in short["segments"]]
    assert torch.cuda.memory_snapshot(include_traces=False)
    del held


def test_the_snapshot_has_its_four_parts_and_the_settings():
    tensor(1)
    found = snapshot()
    assert {"segments", "device_traces", "allocator_settings", "external_annotations"} <= set(found)
    assert len(found["device_traces"]) == torch.cuda.device_count()
    assert {"PYTORCH_CUDA_ALLOC_CONF", "max_split_size", "garbage_collection_threshold", "expandable_segments",
            "roundup_power2_divisions"} <= set(found["allocator_settings"])


def test_a_segment_has_every_field():
    held = tensor(5 * MIB)
    segment = segment_of(held)
    assert {"device", "address", "total_size", "allocated_size", "active_size", "requested_size", "stream", "segment_type",
            "segment_pool_id", "is_expandable", "frames", "blocks"} <= set(segment)
    assert segment["segment_type"] == "large" and segment_of(small := tensor(5))["segment_type"] == "small"
    assert {"address", "size", "requested_size", "state", "frames"} <= set(segment["blocks"][0])
    del small


# How many, and how long


def test_a_full_history_forgets_its_oldest_entries_and_keeps_the_order():
    record("all", context=None, max_entries=7)
    for size in range(1, 60):
        tensor(size * 512)
    kept = traces()
    assert len(kept) == 7
    assert [e["time_us"] for e in kept] == sorted(e["time_us"] for e in kept)
    assert kept[-1]["size"] == 59 * 512


def test_history_goes_on_where_it_was_switched_off():
    record("all", context=None)
    tensor(512)
    before = len(traces())
    record(enabled=None)
    tensor(1024)
    record("all", context=None)
    tensor(1536)
    sizes = [e["size"] for e in traces() if e["action"] == "alloc"]
    assert before and 1024 not in sizes and 1536 in sizes


def test_clearing_forgets_what_was_recorded():
    record("all", context=None)
    tensor(512)
    record("all", context=None, clear_history=True)
    tensor(1024)
    assert [e["size"] for e in traces() if e["action"] == "alloc"] == [1024]


def test_history_says_whether_it_is_on():
    assert not torch._C._cuda_isHistoryEnabled()
    record("all", context=None)
    assert torch._C._cuda_isHistoryEnabled()
    record(enabled=None)
    assert not torch._C._cuda_isHistoryEnabled()


def test_the_older_way_of_switching_on_works_still():
    record(True, record_context=True, trace_alloc_max_entries=100, trace_alloc_record_context=True)
    held = allocated_here()
    assert "allocated_here" in json.dumps(traces())
    record(False)
    del held


@pytest.mark.two_devices
def test_each_device_has_its_own_history():
    record("all", context=None)
    tensor(3 * MIB, "cuda:1")
    tensor(5 * MIB, "cuda:0")
    assert {e["size"] for e in traces(0) if e["action"] == "alloc"} == {5 * MIB}
    assert {e["size"] for e in traces(1) if e["action"] == "alloc"} == {3 * MIB}


# Metadata, annotations, compiled regions


def test_metadata_can_be_read_back_and_is_the_threads_own():
    torch.cuda.memory._set_memory_metadata("mine")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.cuda.memory._get_memory_metadata()))
    thread.start()
    thread.join()
    assert (torch.cuda.memory._get_memory_metadata(), seen) == ("mine", [""])


def test_metadata_is_on_every_entry_of_its_time():
    torch.cuda.empty_cache()
    torch.cuda.memory._set_memory_metadata("all of it")
    record("all", context=None)
    tensor(12 * MIB)
    torch.cuda.empty_cache()
    assert {entry["user_metadata"] for entry in traces()} == {"all of it"}


def test_annotations_of_the_profiler_are_in_the_snapshot():
    record("all", context=None, global_record_annotations=True)
    with torch.autograd.profiler.record_function("a step of mine"):
        tensor(512)
    found = [(a["name"], a["stage"]) for a in snapshot()["external_annotations"]]
    record(enabled=None)
    assert ("a step of mine", "START") in found and ("a step of mine", "END") in found


def test_a_compiled_region_is_named_in_its_entries():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x.clone(), backend="eager")
    source = tensor(5 * MIB)
    compiled(source)
    record("all", stacks="python", compile_context=True)
    kept = compiled(source)
    found = {entry["addr"]: entry["compile_context"] for entry in traces() if entry["action"] == "alloc"}
    outside = tensor(3 * MIB)
    assert found[kept.data_ptr()].startswith("Torch-Compiled Region")
    assert {e["addr"]: e["compile_context"] for e in traces() if e["action"] == "alloc"}[outside.data_ptr()] == "N/A"


# Observers


def test_every_observer_is_told_and_may_ask_for_figures():
    seen = []
    torch._C._cuda_attach_out_of_memory_observer(lambda *arguments: seen.append(torch.cuda.memory_allocated()))
    torch._C._cuda_attach_out_of_memory_observer(lambda *arguments: seen.append(len(torch.cuda.memory_snapshot())))
    held = tensor(5 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50)
    assert seen[0] >= 5 * MIB and seen[1] >= 1
    seen.clear()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50)
    assert len(seen) == 2
    del held


def test_an_allocation_that_works_tells_no_observer():
    seen = []
    torch._C._cuda_attach_out_of_memory_observer(lambda *arguments: seen.append(arguments))
    tensor(5 * MIB)
    assert not seen
