"""How processes end: plain scripts of every kind, and tensors that outlive what they came from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_cuda
import interpreters
import pytest
import training_scripts
import under_test
from training_scripts import ENDS, SCRIPTS

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "tracing/python"


# What the scripts import: beforehand, so that each begins at once.
MODULES = ("torch", "torch._dynamo", "torch.optim", "torch.profiler", "torch.utils.checkpoint", "torch.utils.data")


@pytest.fixture(scope="module")
def runner():
    """runner(script, folder): the exit code, what was said, and the leaks that were found (None: nobody looked), of a script
    in a process of its own (interpreters.py)."""
    judged = under_test.chosen() == "ours" and PACKAGE.exists()
    paths = os.pathsep.join(filter(None, [str(PACKAGE) if judged else "", os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, **({"PYTHONPATH": paths} if paths else {})}

    def run(script, folder):
        path, verdict = folder / "script.py", folder / "verdict.json"
        path.write_text(training_scripts.PRELUDE + script)
        done = interpreters.run(path, environment, MODULES, verdict if judged else None)
        return done.returncode, done.stdout + done.stderr, json.loads(verdict.read_text()) if verdict.exists() else None

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends_as_its_author_expects_and_is_not_blamed_for_a_leak(name, runner, tmp_path):
    code, said, leaks = runner(SCRIPTS[name], tmp_path)
    # The profiler of PyTorch says what it does not find on a machine without a GPU.
    said = [line for line in said.splitlines() if "init.cpp" not in line]
    assert (code, said) == (ENDS.get(name, 0), [])
    # os._exit runs nothing that could ask; PyTorch's own allocator has no ledger to ask.
    unjudged = under_test.chosen() != "ours" or not PACKAGE.exists() or "os._exit(3)" in SCRIPTS[name]
    assert leaks == (None if unjudged else [])


def test_there_are_fifty_kinds_of_scripts():
    assert len(SCRIPTS) >= 50


PRELUDE = """
import atexit, gc, os, sys, threading, weakref
import torch
def tensor(size):
    return torch.empty(size, dtype=torch.uint8, device="cuda")
"""


def test_tensors_of_module_globals_die_with_the_interpreter(own_process):
    own_process(PRELUDE + """
class Keeper:
    everything = [tensor(1000), tensor(3 << 20)]
sys.modules["kept"] = Keeper
held = tensor(12 << 20)
""")


def test_a_tensor_can_be_freed_by_an_exit_handler_and_by_a_finalizer(own_process):
    own_process(PRELUDE + """
held = [tensor(3 << 20)]
atexit.register(held.clear)
class Owner:
    pass
owner = Owner()
owner.data = tensor(1000)
weakref.finalize(owner, lambda t: t.fill_(0), tensor(1000))
""")


def test_a_thread_frees_at_the_end_what_another_allocated(own_process):
    own_process(PRELUDE + """
held = [tensor(1000 * i + 1) for i in range(100)]
def drop():
    while held:
        held.pop()
threads = [threading.Thread(target=drop) for _ in range(4)]
for thread in threads:
    thread.start()
""")


def test_a_tensor_in_a_thread_local_dies_with_its_thread(own_process):
    own_process(PRELUDE + """
local = threading.local()
def work():
    local.data = tensor(3 << 20)
for _ in range(5):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
del thread
gc.collect()
assert torch.cuda.memory_allocated() == 0, torch.cuda.memory_allocated()
""")


def test_pools_and_graphs_that_are_alive_at_the_end_are_no_trouble(own_process):
    own_process(PRELUDE + """
pool = torch.cuda.MemPool()
with torch.cuda.use_mem_pool(pool):
    inside = tensor(5 << 20)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    clone = inside.clone()
graph.replay()
entered = torch.cuda.use_mem_pool(torch.cuda.MemPool())
entered.__enter__()
late = tensor(5 << 20)
""")


def test_a_block_that_waits_at_the_end_is_no_trouble(own_process):
    own_process(PRELUDE + """
stream = torch.cuda.Stream()
held = tensor(5 << 20)
held.record_stream(stream)
with torch.cuda.stream(stream):
    torch.cuda._sleep(1000)
del held
""")


def test_the_end_by_a_signal_is_the_signals(own_process, tmp_path):
    done = subprocess.run([sys.executable, "-c", PRELUDE + "held = tensor(5 << 20)\nos.kill(os.getpid(), 15)"], capture_output=True,
                          text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (-15, "")


def test_a_forked_child_may_drop_its_parents_tensors_and_exit(own_process):
    own_process(PRELUDE + """
held = [tensor(3 << 20), tensor(1000)]
child = os.fork()
if child == 0:
    held.clear()
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert torch.cuda.memory_allocated() == (3 << 20) + 1024
there = torch.randint(0, 256, (5000,), dtype=torch.uint8)
assert torch.equal(there.cuda().clone().cpu(), there)
""")


def test_a_forked_child_that_asks_for_cuda_memory_is_told_why_not(own_process):
    own_process(PRELUDE + """
held = tensor(3 << 20)
child = os.fork()
if child == 0:
    try:
        tensor(1000)
    except RuntimeError as error:
        os._exit(0 if "forked" in str(error) else 1)
    os._exit(2)
assert os.waitpid(child, 0)[1] == 0
""")


def test_a_child_forked_before_cuda_was_used_uses_it_by_itself(own_process):
    if not fake_cuda.is_on():
        pytest.skip("a real driver is initialised by asking for the device count")
    own_process(PRELUDE + """
child = os.fork()
held = tensor(3 << 20)
assert torch.cuda.memory_allocated() == 3 << 20
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""")
