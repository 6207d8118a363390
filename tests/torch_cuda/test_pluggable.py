"""gpuledger as PyTorch's pluggable allocator: a script each, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = str(ROOT / "tracing/python")
LIBRARY = Path(os.environ.get("GPULEDGER_LIBRARY") or ROOT / "build/release/lib/libgpuledger.so")
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built")
PRELUDE = """
import contextlib, ctypes, gc, sys, threading
import torch
import gpuledger
from gpuledger import _usage as details, usage
from gpuledger._pluggable import install_pluggable, pluggable_installed
MIB = 1 << 20
def tensor(size, device="cuda"):
    return torch.empty(size, dtype=torch.uint8, device=device)
def numbers(count=1024):
    return torch.randint(0, 256, (count,), dtype=torch.uint8)
@contextlib.contextmanager
def busy(stream):
    fake = ctypes.CDLL(None)
    if hasattr(fake, "fakeCudaHoldEvents"):
        fake.fakeCudaHoldEvents(1)
        yield
        fake.fakeCudaHoldEvents(0)
    else:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(4_000_000_000)
        yield
        stream.synchronize()
install_pluggable()
"""


@pytest.fixture
def pluggable(own_process):
    """Runs a script after PRELUDE; nothing may be said on stderr."""
    return lambda script, **environment: own_process(PRELUDE + script, PYTHONPATH=PACKAGE, **environment)


def test_every_tensor_is_charged_to_its_owner(pluggable):
    pluggable("""
data = numbers(5000)
with gpuledger.owner("model/up", role="quantized"):
    there = data.cuda()
beside = tensor(3 * MIB)
assert torch.equal(there.clone().cpu(), data)
assert usage("model/up") == 5120
assert details("model/up", "quantized").requested == 5000
assert usage("unattributed") == 3 * MIB
assert usage() == 5120 + 3 * MIB
del there, beside
assert usage() == 0
""")


def test_empty_tensors_need_no_memory(pluggable):
    pluggable("""
empty = tensor(0)
assert empty.data_ptr() == 0 and usage() == 0
del empty
assert tensor(1).numel() == 1
""")


def test_the_cache_is_given_back_on_request(pluggable):
    pluggable("""
free = lambda: torch.cuda.mem_get_info()[0]
tensor(1)
torch.cuda.empty_cache()
before = free()
held = tensor(40 * MIB)
assert free() == before - 40 * MIB
del held
assert free() == before - 40 * MIB
torch.cuda.empty_cache()
assert free() == before
""")


def test_a_tensor_used_by_another_stream_waits_for_it(pluggable):
    pluggable("""
side = torch.cuda.Stream()
held = tensor(4 * MIB)
first = held.data_ptr()
with busy(side):
    with torch.cuda.stream(side):
        held.fill_(1)
    held.record_stream(side)
    del held
    assert details(None, None).pending == 4 * MIB
    other = tensor(4 * MIB)
    assert other.data_ptr() != first
torch.cuda.synchronize()
again = tensor(4 * MIB)
assert again.data_ptr() == first, (hex(again.data_ptr()), hex(first))
assert details(None, None).pending == 0
""")


def test_record_stream_leaves_foreign_memory_alone(pluggable):
    pluggable("""
runtime = ctypes.CDLL("libcudart.so.13")
address = ctypes.c_void_p()
assert tensor(1) is not None
assert runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(MIB)) == 0
class Foreign:
    __cuda_array_interface__ = {"shape": (MIB,), "typestr": "|u1", "data": (address.value, False), "version": 3}
there = torch.as_tensor(Foreign(), device="cuda")
there.record_stream(torch.cuda.Stream())
assert there.data_ptr() == address.value
""")


def test_graphs_have_private_pools(pluggable):
    pluggable("""
graph = torch.cuda.CUDAGraph()
tensor(1).fill_(1)
torch.cuda.synchronize()
with torch.cuda.graph(graph):
    inside = tensor(6 * MIB).fill_(1)
    scratch = tensor(6 * MIB)
    first = scratch.data_ptr()
    del scratch
    assert tensor(6 * MIB).data_ptr() == first
outside = [tensor(6 * MIB) for _ in range(4)]
assert first not in [t.data_ptr() for t in outside]
graph.replay()
del outside, inside
graph.reset()
torch.cuda.empty_cache()
free, _ = torch.cuda.mem_get_info()
held = tensor(12 * MIB)
assert torch.cuda.mem_get_info()[0] == free - 12 * MIB
""")


def test_two_graphs_can_share_a_pool(pluggable):
    pluggable("""
tensor(1).fill_(1)
torch.cuda.synchronize()
pool = torch.cuda.graph_pool_handle()
graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
seen = []
for graph in graphs:
    with torch.cuda.graph(graph, pool=pool):
        seen.append(tensor(6 * MIB).fill_(1).data_ptr())
assert seen[0] == seen[1]
graphs[0].reset()
assert tensor(6 * MIB).data_ptr() != seen[0]  # the second graph still uses it
graphs[1].reset()
torch.cuda.empty_cache()
""")


def test_a_capture_that_fails_leaves_the_pool_ended(pluggable):
    pluggable("""
tensor(1).fill_(1)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
try:
    with torch.cuda.graph(graph):
        inside = tensor(6 * MIB).fill_(1)
        raise KeyError("on purpose")
except KeyError:
    pass
del inside, graph
gc.collect()
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    tensor(6 * MIB).fill_(1)
assert usage() == 0
""")


def test_the_memory_fraction_is_a_cap(pluggable):
    pluggable("""
torch.cuda.set_per_process_memory_fraction(0.5)
total = torch.cuda.mem_get_info()[1]
held = tensor(total // 2 - 4 * MIB)
try:
    tensor(8 * MIB)
    raise SystemExit("it was not refused")
except RuntimeError as error:
    assert str(error).startswith("CUDA out of memory. Tried to allocate 8.00 MiB."), error
torch.cuda.set_per_process_memory_fraction(1.0)
assert tensor(8 * MIB).numel() == 8 * MIB
""")


def test_running_out_raises_pytorchs_error_with_the_report(pluggable):
    pluggable("""
with gpuledger.owner("model/big"):
    held = tensor(300 * MIB)
try:
    tensor(1 << 40)
    raise SystemExit("it was not refused")
except torch.cuda.OutOfMemoryError as error:
    text = str(error)
assert text.startswith("CUDA out of memory. Tried to allocate 1.00 TiB."), text
assert "model/big" in text, text
assert tensor(MIB).numel() == MIB  # and it goes on
assert usage() == 300 * MIB
""")


def test_without_the_library_for_this_pytorch_it_is_a_runtime_error(pluggable):
    pluggable("""
for size, begin in ((1 << 40, "CUDA out of memory. Tried to allocate 1.00 TiB."), (1 << 62, "")):
    try:
        tensor(size)
        raise SystemExit("it was not refused")
    except RuntimeError as error:
        assert not isinstance(error, torch.OutOfMemoryError)
        assert str(error).startswith(begin), error
""", GPULEDGER_TORCH_LIBRARY="/nowhere/libgpuledger_torch.so")


def test_threads_allocate_and_free_each_others_tensors(pluggable):
    pluggable("""
def work(n):
    with gpuledger.owner(f"thread{n}"):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(200):
                mine = tensor((i % 37 + 1) * 1000)
                with lock:
                    others.append(mine)
                    if len(others) > 20:
                        others.pop(0)
                del mine
others, lock = [], threading.Lock()
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
for t in threads: t.start()
for t in threads: t.join()
gpuledger.reset_peak()  # now all that the threads had held back is in the figures
assert sum(usage(f"thread{n}") for n in range(6)) == usage() > 0
assert details("thread3", None).charged_ever > 200 * 1000
others.clear()
gpuledger.reset_peak()
assert usage() == 0
""")


def test_autograd_frees_everything_it_saved(pluggable):
    pluggable("""
model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)]).cuda()
optimizer = torch.optim.Adam(model.parameters())
torch.cuda.synchronize()
for step in range(3):
    model(torch.rand(8, 64).cuda()).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
settled = usage()
model(torch.rand(8, 64).cuda()).square().sum().backward()
optimizer.step()
optimizer.zero_grad(set_to_none=True)
assert usage() == settled, (usage(), settled)
""")


def test_forked_workers_leave_the_parents_memory_alone(pluggable):
    pluggable("""
import os
held = [numbers(5000).cuda() for _ in range(3)]
side = torch.cuda.Stream()
held[0].record_stream(side)
child = os.fork()
if child == 0:
    held.clear()
    gc.collect()
    ok = torch.randn(10).sum().isfinite()
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 20
    def __getitem__(self, i): return torch.full((100,), float(i))
for batch in torch.utils.data.DataLoader(Numbers(), batch_size=5, num_workers=2, pin_memory=True):
    assert batch.cuda().shape == (5, 100)
assert usage() == 3 * 5120, usage()
""")


def test_pools_are_filled_by_the_thread_that_captures(pluggable):
    pluggable("""
tensor(1).fill_(1)
torch.cuda.synchronize()
graph, stop, seen = torch.cuda.CUDAGraph(), threading.Event(), []
def beside():
    with torch.cuda.stream(torch.cuda.Stream()):
        while not stop.is_set():
            seen.append(tensor(3 * MIB).data_ptr())
thread = threading.Thread(target=beside)
with torch.cuda.graph(graph, capture_error_mode="thread_local"):
    thread.start()
    inside = [tensor(3 * MIB).fill_(1) for _ in range(8)]
    while len(seen) < 100:
        pass
stop.set()
thread.join()
assert not {t.data_ptr() for t in inside} & set(seen)
graph.replay()
del inside, graph
""")


@pytest.mark.two_devices
def test_each_device_has_a_ledger_of_its_own(pluggable):
    pluggable("""
data = numbers()
first, second = data.to("cuda:0"), data.to("cuda:1")
assert torch.equal(first.to("cuda:1").cpu(), second.cpu())
assert details(None, None).count == 2
before = [torch.cuda.mem_get_info(d)[0] for d in (0, 1)]
held = tensor(40 * MIB, "cuda:1")
assert [torch.cuda.mem_get_info(d)[0] for d in (0, 1)] == [before[0], before[1] - 40 * MIB]
""")


def test_tensors_may_live_to_the_end_of_the_process(pluggable):
    pluggable("""
class Late:
    def __del__(self):
        self.held = None
kept = [tensor(1000) for _ in range(10)]
late = Late()
late.held = tensor(3 * MIB)
late.itself = late
torch.never_freed = tensor(6 * MIB)
sys.modules["torch"].kept = kept
""")


def test_it_is_installed_once_and_for_good(pluggable):
    pluggable("""
assert pluggable_installed()
install_pluggable()
tensor(1)
install_pluggable()
assert pluggable_installed()
""")


def test_after_cuda_has_started_it_is_an_error_with_a_sentence(own_process):
    own_process("""
import torch
from gpuledger._pluggable import install_pluggable, pluggable_installed
held = torch.empty(1, device="cuda")
try:
    install_pluggable()
    raise SystemExit("it was not refused")
except RuntimeError as error:
    assert "CUDA has started already" in str(error) and "before the first" in str(error), error
assert not pluggable_installed()
assert torch.cuda.memory_allocated() == 512
""", PYTHONPATH=PACKAGE)


def test_another_allocator_in_use_is_an_error_with_a_sentence(own_process):
    own_process("""
import torch
from gpuledger._pluggable import install_pluggable, _address
other = torch._C._cuda_customAllocator(_address("malloc"), _address("free"))
torch._C._cuda_changeCurrentAllocator(other)
try:
    install_pluggable()
except RuntimeError as error:
    assert "another one was installed" in str(error), error
""", PYTHONPATH=PACKAGE)


def test_a_pytorch_with_fewer_hooks_gets_those_it_has(own_process):
    own_process("""
import torch
make, change = torch._C._cuda_customAllocator, torch._C._cuda_changeCurrentAllocator
class Older:
    def __init__(self, *functions):
        self.inner = make(*functions)
        self.set_reset_fn = self.inner.set_reset_fn
torch._C._cuda_customAllocator = Older
torch._C._cuda_changeCurrentAllocator = lambda older: change(older.inner)
import gpuledger
from gpuledger._pluggable import install_pluggable
install_pluggable()
held = torch.empty(40 << 20, dtype=torch.uint8, device="cuda")
assert gpuledger.usage() == 40 << 20
del held
free = torch.cuda.mem_get_info()[0]
torch.cuda.empty_cache()
assert torch.cuda.mem_get_info()[0] == free + (40 << 20)
""", PYTHONPATH=PACKAGE)


def test_a_pytorch_without_pluggable_allocators_is_told(own_process):
    own_process("""
import torch
del torch._C._cuda_customAllocator
from gpuledger._pluggable import install_pluggable
try:
    install_pluggable()
    raise SystemExit("it was not told")
except RuntimeError as error:
    assert "has no pluggable CUDA allocators" in str(error) and torch.__version__ in str(error), error
""", PYTHONPATH=PACKAGE)


def test_a_wrong_variable_is_told_before_anything_changes(own_process):
    own_process("""
import torch
from gpuledger._pluggable import install_pluggable
try:
    install_pluggable()
    raise SystemExit("it was not told")
except ValueError as error:
    assert "GPULEDGER_CAP" in str(error), error
held = torch.empty(1, device="cuda")
assert torch.cuda.memory_allocated() == 512
""", PYTHONPATH=PACKAGE, GPULEDGER_CAP="plenty")


def test_the_cap_of_the_environment_holds(pluggable):
    pluggable("""
held = tensor(60 * MIB)
try:
    tensor(8 * MIB)
    raise SystemExit("it was not refused")
except RuntimeError as error:
    assert "Tried to allocate 8.00 MiB" in str(error), error
torch.cuda.set_per_process_memory_fraction(1.0)
try:
    tensor(8 * MIB)
    raise SystemExit("the fraction took the cap away")
except RuntimeError:
    pass
""", GPULEDGER_CAP="64MiB")


def test_a_foreign_address_is_a_sentence_and_no_crash():
    done = subprocess.run([sys.executable, "-c", PRELUDE + """
from gpuledger._library import core
free = core().gpuledger_torch_free
free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
free.restype = None
held = tensor(1000)
for address, device in ((0x123400, 0), (held.data_ptr() + 100, 0), (held.data_ptr(), 77)):
    free(address, 10, device, None)
free(None, 0, 0, None)
assert usage() == 1024
"""], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": PACKAGE})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was not handed out by gpuledger, and is left alone") == 3, done.stderr
