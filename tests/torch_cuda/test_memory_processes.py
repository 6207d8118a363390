"""How PyTorch's own CUDA memory management behaves, with other settings and backends, and between processes.

Not in the process of the tests, since a setting holds from the first allocation on. Runs on a GPU and on the fake CUDA
(README.md says how they differ).
"""

import pytest

PRELUDE = """
import torch
MIB = 1 << 20
def tensor(size):
    return torch.empty(size, dtype=torch.uint8, device="cuda")
def numbers(count=1024):
    return torch.randint(0, 256, (count,), dtype=torch.uint8)
"""

EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
OTHER = {"PYTORCH_ALLOC_CONF": "roundup_power2_divisions:4,max_split_size_mb:40"}
ASYNC = {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}

# A pluggable allocator in Python: the two functions of the C interface, over cudaMalloc and cudaFree.
PLUGIN = """
import ctypes
runtime = ctypes.CDLL("libcudart.so.13")
runtime.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
runtime.cudaFree.argtypes = [ctypes.c_void_p]
live, log = {}, []

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
def allocate(size, device, stream):
    address = ctypes.c_void_p()
    assert runtime.cudaMalloc(ctypes.byref(address), size) == 0
    live[address.value] = size
    log.append(("allocate", size, device))
    return address.value

@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
def free(address, size, device, stream):
    assert live.pop(address) == size
    log.append(("free", size, device))
    assert runtime.cudaFree(address) == 0

allocator = torch._C._cuda_customAllocator(
    ctypes.cast(allocate, ctypes.c_void_p).value, ctypes.cast(free, ctypes.c_void_p).value)
"""


# Expandable segments


def test_an_expandable_segment_grows_instead_of_a_second_one(process_with):
    process_with(**EXPANDABLE)(PRELUDE + """
held = tensor(40 * MIB)
del held
held = tensor(60 * MIB)
assert torch.cuda.memory_reserved() == 60 * MIB, torch.cuda.memory_reserved()
segment, = torch.cuda.memory_snapshot()
assert segment["is_expandable"] and segment["total_size"] == 60 * MIB
""")


def test_an_expandable_segment_is_unmapped_where_it_is_free(process_with):
    process_with(**EXPANDABLE)(PRELUDE + """
first, second = tensor(40 * MIB), tensor(20 * MIB)
data = numbers()
second[:1024].copy_(data)
del first
torch.cuda.empty_cache()
assert torch.cuda.memory_reserved() == 20 * MIB, torch.cuda.memory_reserved()
assert torch.equal(second[:1024].clone().cpu(), data)
del second
torch.cuda.empty_cache()
assert torch.cuda.memory_reserved() == 0
""")


def test_an_expandable_segment_keeps_data_while_it_grows(process_with):
    process_with(**EXPANDABLE)(PRELUDE + """
data = numbers(30 * MIB)
first = data.cuda()
rest = [tensor(30 * MIB) for _ in range(4)]
assert torch.equal(first.clone().cpu(), data)
assert len({s["address"] for s in torch.cuda.memory_snapshot()}) == 1
""")


def test_the_history_has_the_mapping_of_expandable_segments(process_with):
    process_with(**EXPANDABLE)(PRELUDE + """
torch.cuda.memory._record_memory_history(stacks="python", context=None)
tensor(40 * MIB)
torch.cuda.empty_cache()
actions = {e["action"] for e in torch.cuda.memory._snapshot()["device_traces"][0]}
torch.cuda.memory._record_memory_history(enabled=None)
assert {"segment_map", "segment_unmap"} <= actions and "segment_alloc" not in actions, actions
""")


def test_an_expandable_segment_refuses_more_than_the_device_has(process_with):
    process_with(**EXPANDABLE)(PRELUDE + """
held = tensor(40 * MIB)
try:
    tensor(torch.cuda.mem_get_info()[1] + 1)
    raise SystemExit("it was not refused")
except torch.cuda.OutOfMemoryError as error:
    assert "Tried to allocate" in str(error)
assert torch.cuda.memory_allocated() == 40 * MIB
""")


def test_graphs_capture_into_expandable_segments(process_with):
    process_with(**EXPANDABLE)(PRELUDE + """
source, graph = numbers(4 * MIB).cuda(), torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    clone = source.clone()
data = numbers(4 * MIB)
source.copy_(data)
graph.replay()
torch.cuda.synchronize()
assert torch.equal(clone.cpu(), data)
""")


# Other settings of the native allocator


def test_sizes_can_be_rounded_to_parts_of_a_power_of_two(process_with):
    process_with(**OTHER)(PRELUDE + """
held = tensor(5 * MIB + 1)
assert torch.cuda.memory_allocated() == 6 * MIB
""")


@pytest.mark.only_under("native", "expandable", why="max_split_size_mb is answered with one line: memory of free blocks moves")
def test_large_blocks_can_be_kept_whole(process_with):
    process_with(**OTHER)(PRELUDE + """
large = tensor(100 * MIB)
address = large.data_ptr()
del large
small = tensor(12 * MIB)
assert not address <= small.data_ptr() < address + 100 * MIB
""")


def test_the_cache_can_be_switched_off(own_process):
    own_process(PRELUDE + """
held = tensor(12 * MIB)
assert torch.cuda.memory_reserved() == 0
data = numbers()
assert torch.equal(data.cuda().clone().cpu(), data)
""", PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def test_a_setting_that_does_not_exist_is_refused(own_process):
    # When PyTorch's allocator is first used, or ours is put in its place.
    out = own_process("""
try:
    import torch
    torch.empty(1, device="cuda")
    print("accepted")
except Exception as error:
    print(error, error.__cause__)
""", PYTORCH_ALLOC_CONF="no_such_setting:1")
    assert "no_such_setting" in out


# cudaMallocAsync


@pytest.mark.only_under("native", "expandable", why="cudaMallocAsync is an allocator too: one of the two is installed")
def test_the_async_backend_counts_what_it_hands_out(process_with):
    process_with(**ASYNC)(PRELUDE + """
assert torch.cuda.get_allocator_backend() == "cudaMallocAsync"
torch.cuda.reset_peak_memory_stats()
held = tensor(12 * MIB)
assert torch.cuda.memory_allocated() == 12 * MIB
assert torch.cuda.memory_reserved() >= 12 * MIB
del held
torch.cuda.synchronize()
assert torch.cuda.memory_allocated() == 0
assert torch.cuda.max_memory_allocated() == 12 * MIB
""")


@pytest.mark.only_under("native", "expandable", why="cudaMallocAsync is an allocator too: one of the two is installed")
def test_the_async_backend_gives_its_cache_back(process_with):
    process_with(**ASYNC)(PRELUDE + """
tensor(256 * MIB)
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert torch.cuda.memory_reserved() < 64 * MIB
""")


@pytest.mark.only_under("native", "expandable", why="cudaMallocAsync is an allocator too: one of the two is installed")
def test_the_async_backend_carries_data_across_streams(process_with):
    process_with(**ASYNC)(PRELUDE + """
data, stream = numbers(MIB), torch.cuda.Stream()
there = data.cuda()
stream.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(stream):
    clone = there.clone()
    there.record_stream(stream)
del there
torch.cuda.current_stream().wait_stream(stream)
assert torch.equal(clone.cpu(), data)
""")


@pytest.mark.only_under("native", "expandable", why="cudaMallocAsync is an allocator too: one of the two is installed")
def test_the_async_backend_refuses_too_much(process_with):
    process_with(**ASYNC)(PRELUDE + """
try:
    tensor(1 << 46)
    raise SystemExit("it was not refused")
except torch.cuda.OutOfMemoryError as error:
    assert "Tried to allocate" in str(error) or "out of memory" in str(error), error
held = tensor(MIB)
""")


@pytest.mark.only_under("native", "expandable", why="cudaMallocAsync is an allocator too: one of the two is installed")
def test_the_async_backend_has_no_snapshot(process_with):
    process_with(**ASYNC)(PRELUDE + """
tensor(1)
try:
    torch.cuda.memory_snapshot()
    raise SystemExit("there is one")
except RuntimeError as error:
    assert "cudaMallocAsync" in str(error)
""")


# Pluggable allocators


def test_a_pluggable_allocator_serves_every_tensor(own_process):
    own_process(PRELUDE + PLUGIN + """
torch._C._cuda_changeCurrentAllocator(allocator)
data = numbers(5000)
there = data.cuda()
assert there.data_ptr() in live and live[there.data_ptr()] == 5000
assert torch.equal(there.clone().cpu(), data)
del there
assert not live
assert log == [("allocate", 5000, 0), ("allocate", 5000, 0), ("free", 5000, 0), ("free", 5000, 0)], log
""")


def test_a_pluggable_allocator_has_no_statistics(own_process):
    out = own_process(PRELUDE + PLUGIN + """
torch._C._cuda_changeCurrentAllocator(allocator)
held = tensor(1)
try:
    torch.cuda.memory_allocated()
except RuntimeError as error:
    print(error)
del held
""")
    assert "does not yet support getDeviceStats" in out


def test_an_allocator_in_use_cannot_be_changed(own_process):
    out = own_process(PRELUDE + PLUGIN + """
held = tensor(1)
try:
    torch._C._cuda_changeCurrentAllocator(allocator)
except RuntimeError as error:
    print(error)
""")
    assert "Can't swap an already initialized allocator" in out


def test_a_pool_can_have_an_allocator_of_its_own(own_process):
    own_process(PRELUDE + PLUGIN + """
pool = torch.cuda.MemPool(allocator)
outside = tensor(12 * MIB)
with torch.cuda.use_mem_pool(pool):
    inside = tensor(12 * MIB)
assert list(live) == [inside.data_ptr()] and live[inside.data_ptr()] == 12 * MIB
assert torch.cuda.memory_allocated() == 24 * MIB
del inside, pool
torch.cuda.empty_cache()
assert not live
""")


# Between processes

IPC = """
import torch
import torch.multiprocessing as multiprocessing

def numbers(count, seed):
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

def child(questions, answers):
    there = questions.get()
    answers.put((there.clone().cpu().tolist() == numbers(5000, 1).tolist(), torch.cuda.memory_allocated()))
    there.copy_(numbers(5000, 2))
    torch.cuda.synchronize()
    del there
    answers.put("written")
    questions.get()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    questions, answers = context.Queue(), context.Queue()
    process = context.Process(target=child, args=(questions, answers))
    process.start()
    there = numbers(5000, 1).cuda()
    questions.put(there)
    print(*answers.get(timeout=120))
    assert answers.get(timeout=120) == "written"
    print(torch.equal(there.clone().cpu(), numbers(5000, 2)))
    questions.put(None)
    process.join(timeout=120)
    print(process.exitcode)
    torch.cuda.ipc_collect()
    del there
    torch.cuda.empty_cache()
    print(torch.cuda.memory_allocated())
"""


def test_two_processes_share_a_tensor(own_process):
    received, counted_there, sent_back, exit_code, left = own_process(IPC).split()
    assert (received, sent_back, exit_code) == ("True", "True", "0")
    # Foreign memory is not the receiver's: what it counts are the 5120 bytes of its clone at most.
    assert int(counted_there) <= 5120
    assert int(left) == 0


def test_a_flush_counts_on_every_device_also_before_it_is_used(own_process):
    own_process("""
        import torch
        torch.cuda.init()
        flushes = lambda device: torch.cuda.memory_stats(device).get("num_sync_all_streams", 0)
        torch.cuda.empty_cache()
        assert [flushes(device) for device in range(torch.cuda.device_count())] == [1] * torch.cuda.device_count()
        held = torch.empty(1, device="cuda")
        torch.cuda.empty_cache()
        assert flushes(0) == 2
        torch.cuda.reset_accumulated_memory_stats()
        assert flushes(0) == 0
        """)
