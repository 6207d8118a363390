"""The keys of PYTORCH_ALLOC_CONF, in the environment and at run time: honoured, or refused by name.

In processes of their own, since a setting holds for the rest of the process; what is changed at run time, in one after the
other.
"""

import os

import pytest

# Ours says so, in one line, where a setting has no meaning for it.
NOT_FOLLOWED = r"(gpuledger: PYTORCH_ALLOC_CONF: \w+ is not followed: [^\n]+\n)*"

PRELUDE = """
import torch
MIB = 1 << 20
def tensor(size):
    return torch.empty(size, dtype=torch.uint8, device="cuda")
def stat(name):
    return torch.cuda.memory_stats().get(name, 0)
def allow(size):
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / torch.cuda.mem_get_info()[1])
def change(text):
    torch._C._accelerator_setAllocatorSettings(text)
"""


@pytest.fixture
def program(own_process):
    """program(script, "key:value") adds to what the tested allocator itself needs."""

    def run(script, settings=""):
        both = ",".join(filter(None, [os.environ.get("PYTORCH_ALLOC_CONF", ""), settings]))
        return own_process(PRELUDE + script, said=NOT_FOLLOWED, **({"PYTORCH_ALLOC_CONF": both} if both else {}))

    return run


def test_sizes_are_rounded_to_divisions_of_a_power_of_two(program):
    program("""
for size, rounded in ((5 * MIB + 1, 6 * MIB), (8 * MIB, 8 * MIB), (17 * MIB, 20 * MIB), (1000, 1024), (65 << 10, 80 << 10)):
    before = stat("allocated_bytes.all.current"), stat("requested_bytes.all.current")
    held = tensor(size)
    assert stat("allocated_bytes.all.current") - before[0] >= rounded
    assert stat("active_bytes.all.current") - before[0] == stat("allocated_bytes.all.current") - before[0]
    assert stat("requested_bytes.all.current") - before[1] == size
    del held
""", "roundup_power2_divisions:4")


def test_divisions_can_differ_by_size(program):
    program("""
def charged(size):
    before = stat("allocated_bytes.all.current")
    held = tensor(size)
    return stat("allocated_bytes.all.current") - before
assert charged(84 * MIB) == 96 * MIB, charged(84 * MIB)     # 64 MiB to 128 MiB in halves: the key names the power below
assert charged(33 * MIB) == 36 * MIB, charged(33 * MIB)     # 32 MiB to 64 MiB in eighths
""", "roundup_power2_divisions:[32:8,64:2,128:2,256:2,512:2,1024:1,>:1]")


def test_divisions_can_be_changed_at_run_time(program):
    program("""
def charged(size):
    before = stat("allocated_bytes.all.allocated")
    tensor(size)
    return stat("allocated_bytes.all.allocated") - before
assert charged(84 * MIB) == 84 * MIB
change("roundup_power2_divisions:4")
assert charged(84 * MIB) == 96 * MIB
change("roundup_power2_divisions:1")
torch.cuda.empty_cache()
assert charged(84 * MIB) == 84 * MIB
""")


@pytest.mark.parametrize("fraction", ["0.0", "0.25", "1.0"])
def test_a_memory_fraction_can_come_from_the_environment(program, fraction):
    out = program("""
tensor(0)
print(torch.cuda.get_per_process_memory_fraction())
""", f"per_process_memory_fraction:{fraction}")
    assert float(out) == float(fraction)


def test_a_memory_fraction_of_the_environment_is_kept(program):
    program("""
total = torch.cuda.mem_get_info()[1]
try:
    tensor(total // 2)
    raise SystemExit("it was not refused")
except torch.cuda.OutOfMemoryError:
    pass
held = tensor(total // 10)
""", "per_process_memory_fraction:0.25")


@pytest.mark.parametrize("setting", [
    "no_such_setting:1", "foo:1,bar:2", "garbage_collection_threshold:1.2", "max_split_size_mb:2", "release_lock_on_cudamalloc:none",
    "pinned_use_cuda_host_register:none", "pinned_num_register_threads:none", "pinned_num_register_threads:1024",
    "per_process_memory_fraction:1.5"])
def test_a_wrong_setting_is_an_error_at_run_time(process_with, setting):
    process_with()(PRELUDE + f"""
tensor(1)
try:
    change("{setting}")
    raise SystemExit("it was accepted")
except ValueError:
    pass
held = tensor(1)
""")


@pytest.mark.parametrize("setting", [
    "max_split_size_mb:64", "garbage_collection_threshold:0.6", "release_lock_on_cudamalloc:True", "expandable_segments:True",
    "expandable_segments:False", "pinned_use_cuda_host_register:True", "pinned_num_register_threads:4",
    "pinned_use_background_threads:True", "graph_capture_record_stream_reuse:True", "max_non_split_rounding_mb:100", ""])
def test_a_documented_setting_is_accepted_at_run_time(process_with, setting):
    process_with()(PRELUDE + f"""
held = [tensor(size) for size in (1000, 5 * MIB, 64 * MIB)]
change("{setting}")
del held[1]
held += [tensor(size) for size in (2000, 7 * MIB, 100 * MIB)]
assert stat("requested_bytes.all.current") == 1000 + 64 * MIB + 2000 + 7 * MIB + 100 * MIB
held.clear()
torch.cuda.empty_cache()
assert stat("allocated_bytes.all.current") == 0 and torch.cuda.memory_reserved() == 0
pinned = torch.empty(MIB, dtype=torch.uint8, pin_memory=True)
assert pinned.is_pinned()
del pinned
""")


def test_segments_of_both_kinds_live_beside_each_other_under_a_limit(program):
    program("""
allow(120 * MIB)
held = []
for expandable in (False, True, False):
    change(f"expandable_segments:{expandable},max_split_size_mb:40")
    held.append(tensor(40 * MIB))
try:
    tensor(40 * MIB)
    raise SystemExit("it was not refused")
except torch.cuda.OutOfMemoryError:
    pass
held.clear()
held = tensor(120 * MIB)
""")


def test_memory_is_collected_before_the_limit_is_reached(program):
    program("""
allow(120 * MIB)
change("garbage_collection_threshold:0.5")
first, second = tensor(40 * MIB), tensor(40 * MIB)
del first, second
held = tensor(80 * MIB)
assert torch.cuda.memory_allocated() == 80 * MIB
""")


def test_the_settings_are_in_the_snapshot(program):
    program("""
tensor(1)
settings = torch.cuda.memory._snapshot()["allocator_settings"]
assert settings["max_split_size"] == 64 * MIB, settings
assert abs(settings["garbage_collection_threshold"] - 0.6) < 1e-6, settings
assert stat("max_split_size") == 64 * MIB
""", "max_split_size_mb:64,garbage_collection_threshold:0.6")


@pytest.mark.only_under("native", "expandable", why="nothing is oversize where blocks of any size are split")
def test_oversize_allocations_are_counted(program):
    program("""
held = [tensor(100 * MIB), tensor(30 * MIB), tensor(70 * MIB)]
assert stat("oversize_allocations.current") == 2, stat("oversize_allocations.current")
del held[0]
assert (stat("oversize_allocations.current"), stat("oversize_allocations.freed")) == (1, 1)
""", "max_split_size_mb:64")


@pytest.mark.only_under("native", "expandable", why="ours says in one line that it does not follow graph_capture_record_stream_reuse")
def test_a_block_is_used_again_inside_a_capture_once_its_streams_have_joined(program):
    program("""
change("graph_capture_record_stream_reuse:True")
first, second = torch.cuda.Stream(), torch.cuda.Stream()
graph = torch.cuda.CUDAGraph(keep_graph=True)
torch.cuda.synchronize()
with torch.cuda.stream(first):
    graph.capture_begin()
    sink = torch.empty(8, device="cuda")
    data = torch.empty(8, device="cuda")
    address = data.data_ptr()
    second.wait_stream(first)
    with torch.cuda.stream(second):
        torch.add(data, 2.0, out=torch.empty_like(data))
        data.record_stream(second)
    del data
    before_the_join = torch.empty(8, device="cuda")
    first.wait_stream(second)
    sink.fill_(1.0)
    after_the_join = torch.empty(8, device="cuda")
    graph.capture_end()
assert before_the_join.data_ptr() != address
assert after_the_join.data_ptr() == address
""")


def test_without_that_setting_a_block_of_a_capture_waits_for_its_end(program):
    program("""
first, second = torch.cuda.Stream(), torch.cuda.Stream()
graph = torch.cuda.CUDAGraph()
torch.cuda.synchronize()
with torch.cuda.stream(first):
    graph.capture_begin()
    sink = torch.empty(8, device="cuda")
    data = torch.empty(8, device="cuda")
    address = data.data_ptr()
    second.wait_stream(first)
    with torch.cuda.stream(second):
        torch.add(data, 2.0, out=torch.empty_like(data))
        data.record_stream(second)
    del data
    first.wait_stream(second)
    sink.fill_(1.0)
    during = torch.empty(8, device="cuda")
    graph.capture_end()
assert during.data_ptr() != address
graph.replay()
torch.cuda.synchronize()
graph.reset()
del sink, during
torch.cuda.empty_cache()
assert torch.cuda.memory_allocated() <= 1024, torch.cuda.memory_allocated()
""")
