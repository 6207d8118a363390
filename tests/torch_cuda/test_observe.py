"""Observe: PyTorch's native allocator goes on, and the ledger says the same as its statistics, to the byte.

Each script is a process of its own, since a process has one way in.
"""

import fake_cuda
import pytest
from gpuledger_build import LIBRARY

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="gpuledger is not built")

PRELUDE = """
import gc, threading
import torch
import gpuledger
from gpuledger._ways import install, way_in

def tensor(size, device="cuda"):
    return torch.empty(size, dtype=torch.uint8, device=device)

def same():
    devices = range(torch.cuda.device_count())
    allocated = sum(torch.cuda.memory_allocated(device) for device in devices)
    assert gpuledger.usage() == allocated, (gpuledger.usage(), allocated)
    return allocated
"""
OBSERVED = PRELUDE + "assert install('observe') == 'observe'\n"


def test_every_step_of_a_training_loop_ends_with_the_same_figures(own_python):
    own_python(OBSERVED + """
model = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU()) for _ in range(4)]).cuda()
optimizer = torch.optim.AdamW(model.parameters())
model(torch.randn(256, 300).cuda()).sum().backward()  # the workspaces of cuBLAS are nobody's activations
same()
for step in range(5):
    torch.cuda.reset_peak_memory_stats(), gpuledger.reset_peak()
    batch = torch.randn(256, 300).cuda()
    with gpuledger.owner("forward", role="activation"):
        loss = model(batch).sum()
    same()
    loss.backward()
    same()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    del loss, batch
    assert same() > 0
    assert gpuledger.peak() == torch.cuda.max_memory_allocated()
assert gpuledger.usage("forward") == 0
gpuledger.adopt(model, optimizer)
assert gpuledger.usage(role="optimizer") >= 2 * sum(p.numel() * p.element_size() for p in model.parameters())
owners = ["model/0.0.weight", "model/0.0.bias"]
assert [gpuledger.usage(owner, "other") for owner in owners] == [300 * 300 * 4 // 512 * 512 + 512, 1536]
same()
del model, optimizer
gc.collect()
torch._C._cuda_clearCublasWorkspaces()
assert same() == 0
""")


@pytest.mark.parametrize("settings", ["", "expandable_segments:True", "roundup_power2_divisions:4", "max_split_size_mb:40,garbage_collection_threshold:0.5",
                                      "expandable_segments:True,roundup_power2_divisions:[64:2,>:4]"])
def test_the_bytes_of_a_block_are_those_that_pytorch_counts(own_python, settings):
    own_python(OBSERVED + """
import random
random.seed(7)
held = []
for _ in range(600):
    if held and random.random() < 0.45:
        held.pop(random.randrange(len(held)))
    else:
        # Around the bounds where a block is split, kept whole, or taken from another pool.
        size = random.choice([1, 511, 513, 1 << 20, (1 << 20) + 1, 3 << 19, 5 << 20, 10 << 20, 33 << 20, random.randrange(1, 60 << 20)])
        held.append(tensor(size))
    same()
    if random.random() < 0.02:
        torch.cuda.empty_cache()
assert gpuledger.peak() == torch.cuda.max_memory_allocated()
held.clear()
assert same() == 0
""", **({"PYTORCH_ALLOC_CONF": settings} if settings else {}))


def test_what_is_alive_already_is_taken_over_as_unattributed(own_python):
    own_python(PRELUDE + """
before = [tensor(size) for size in (1, 700, 3 << 19, 5 << 20)]
side = torch.cuda.Stream()
pending = tensor(3 << 20)
with torch.cuda.stream(side):
    torch.cuda._sleep(1000)
pending.record_stream(side)
with gpuledger.owner("mine"):
    install("observe")
    allocated = same()
    assert gpuledger.usage("unattributed") == allocated > 0
    after = tensor(2048)
assert gpuledger.usage("mine") == 2048
same()
before.clear()
del pending
torch.cuda.synchronize()
assert same() == 2048
install("observe")  # a second call changes nothing
assert same() == 2048
""")


@pytest.mark.two_devices
def test_each_device_has_a_ledger_of_its_own(own_python):
    own_python(OBSERVED + """
first, second = tensor(1 << 20, "cuda:0"), tensor(5 << 20, "cuda:1")
assert same() == 6 << 20
del second
assert same() == 1 << 20
""")


def test_threads_on_streams_of_their_own_agree_with_the_statistics(own_python):
    own_python(OBSERVED + """
import random
tensor(1)
wrong = []
kept = [[] for _ in range(6)]

def work(number):
    choose = random.Random(number)
    try:
        with torch.cuda.stream(torch.cuda.Stream()), gpuledger.owner(f"thread {number}"):
            for _ in range(400):
                kept[number].append(tensor(choose.choice([100, 4096, 2 << 20, 30 << 20])))
                if len(kept[number]) > 5:
                    kept[number].pop(choose.randrange(5))
    except BaseException as error:
        wrong.append(error)

threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong, wrong
allocated = same()
assert sum(gpuledger.usage(f"thread {number}") for number in range(6)) == allocated
freer = threading.Thread(target=kept.clear)  # memory that other threads made
freer.start(), freer.join()
gc.collect()
assert same() == 0
""")


@pytest.mark.skipif(not fake_cuda.wanted(), reason="holds work of a stream back, which the fake can")
def test_a_block_that_another_stream_uses_is_pending_until_that_is_done(own_python):
    own_python(OBSERVED + """
import ctypes
side = torch.cuda.Stream()
used = tensor(5 << 20)
used.record_stream(side)
hold = ctypes.CDLL("libcuda.so.1").fakeCudaHoldEvents
hold(1)
del used
assert same() == 0
from gpuledger._library import core, Usage
def pending():
    found = Usage()
    assert core().gpuledger_process_usage(None, -1, ctypes.byref(found)) == 0
    return found.pending
assert pending() == 5 << 20 == torch.cuda.memory_stats()["active_bytes.all.current"]
hold(0)
report = gpuledger.leaks()  # a settle waits for the device, and has PyTorch look after what is pending
assert pending() == 0 == torch.cuda.memory_stats()["active_bytes.all.current"]
assert not report and same() == 0
""")


def test_graphs_and_pools_are_in_the_ledger_too(own_python):
    own_python(OBSERVED + """
static = torch.zeros(1 << 20, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    with gpuledger.owner("captured"):
        result = static.clone()
    scratch = result.clone()
    del scratch
same()
assert gpuledger.usage("captured") == 4 << 20
graph.replay()
pool = torch.cuda.MemPool()
with torch.cuda.use_mem_pool(pool):
    pooled = tensor(3 << 20)
same()
del pooled, pool, result, graph
gc.collect()
assert same() == 4 << 20
""")


def test_a_profiler_sees_what_it_would_see_without(outcome):
    script = """
from torch.profiler import ProfilerActivity, profile
tensor(1)
with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as run:
    for size in (100, 3 << 19, 5 << 20):
        held = tensor(size)
        del held
print([(event.name, event.device_memory_usage) for event in run.events() if event.device_memory_usage])
print(torch.autograd._profiler_enabled())
"""
    watched, alone = (outcome(prelude + script) for prelude in (OBSERVED, PRELUDE))
    assert (watched.returncode, watched.stdout) == (0, alone.stdout), watched.stderr
    assert "('aten::empty', 1572864)" in alone.stdout


def test_running_out_of_memory_is_told_and_changes_nothing(own_python, tmp_path):
    out = own_python(OBSERVED + f"""
gpuledger.start_recording({str(tmp_path / "oom.trace")!r})
held = tensor(1 << 20)
try:
    tensor(1 << 45)
except torch.cuda.OutOfMemoryError:
    print("out of memory")
assert same() == 1 << 20
report = gpuledger.leaks()
print(report)
""")
    assert out.startswith("out of memory\n")


@pytest.mark.parametrize("environment", [{}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}])
def test_what_is_reserved_is_what_pytorch_reserves(own_python, environment):
    own_python(PRELUDE + """
before = [tensor(30 << 20, device) for device in DEVICES]
install("observe")

def reserved():
    # "reserved 1,048,576 B = in use ... + pending ... + cached ..."
    line, = [line for line in str(gpuledger.leaks()).splitlines() if line.lstrip().startswith("reserved ")]
    return int(line.split()[1].replace(",", "")), line

def same_reserved():
    of_pytorch = sum(torch.cuda.memory_reserved(device) for device in DEVICES)
    assert reserved()[0] == of_pytorch, (reserved(), of_pytorch)

same_reserved()
held = [tensor(size) for size in (100, 5 << 20, 64 << 20)]
same_reserved()
before.clear()
del held[2]
torch.cuda.empty_cache()
same_reserved()
assert reserved()[0] > 0
""".replace("DEVICES", "range(torch.cuda.device_count())"), **environment)


def test_a_forked_worker_goes_on_with_cpu_tensors(own_python):
    own_python(OBSERVED + """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of the threads that a driver has
held = tensor(1 << 20)
child = os.fork()
if child == 0:
    with gpuledger.owner("child"):
        pass
    allocated = gpuledger.usage()
    os._exit(0 if allocated == 1 << 20 else 1)
assert os.waitpid(child, 0)[1] == 0
assert same() == 1 << 20
""")


def test_tensors_that_outlive_the_interpreter_are_no_trouble(own_python):
    own_python(OBSERVED + """
import builtins
builtins.kept = tensor(1 << 20)
""")


def test_another_allocator_than_the_native_one_is_refused_with_a_sentence(own_python):
    own_python(PRELUDE + """
torch.cuda.init()
try:
    install("observe")
except RuntimeError as error:
    assert "native allocator" in str(error), error
else:
    raise AssertionError("installed")
assert way_in() is None
""", PYTORCH_ALLOC_CONF="backend:cudaMallocAsync")
