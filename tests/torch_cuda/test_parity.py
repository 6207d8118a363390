"""The same program under PyTorch's native allocator and under the one that is tested: every figure of `memory_stats` compared.

A figure is either the same to the byte, or geometry (how the cache is cut up and when the driver is called), for which the
equations are checked instead. Under the native allocator this compares it with itself: the programs are deterministic.
"""

import json
import re
import tempfile
from pathlib import Path

import interpreters
import pytest
import torch
import under_test

PRELUDE = """
import gc, json, random, threading, torch
MIB = 1 << 20
marks = []
def tensor(size, device="cuda"):
    return torch.empty(size, dtype=torch.uint8, device=device)
def mark(device=0):
    marks.append({"stats": torch.cuda.memory_stats(device), "summary": torch.cuda.memory_summary(device),
                  "short": torch.cuda.memory_summary(device, abbreviated=True),
                  "accelerator": torch.accelerator.memory_stats(device)})
"""

# Sizes above 1 MiB are multiples of 2 MiB: of others the native allocator hands out up to 1 MiB too much, and counts it.
PROGRAMS = {
    "one of each": """
for size in (1, 511, 512, 513, 1 << 20, 2 * MIB, 8 * MIB, 10 * MIB, 64 * MIB):
    held = tensor(size)
    mark()
del held
mark()
""",
    "small sizes at random": """
dice, held = random.Random(1), []
for i in range(3000):
    if held and dice.random() < 0.48:
        held.pop(dice.randrange(len(held)))
    else:
        held.append(tensor(dice.randrange(1, 1 << dice.randrange(9, 21))))
    if i % 500 == 0:
        mark()
held.clear()
mark()
""",
    "large sizes at random": """
dice, held = random.Random(2), []
for i in range(1000):
    if held and dice.random() < 0.48 or len(held) > 40:
        held.pop(dice.randrange(len(held)))
    else:
        held.append(tensor(2 * MIB * dice.randrange(1, 40)))
    if i % 200 == 0:
        mark()
    if i % 300 == 0:
        torch.cuda.empty_cache()
        mark()
held.clear()
torch.cuda.empty_cache()
mark()
""",
    "peaks and their resets": """
for size in (4 * MIB, 16 * MIB, 2 * MIB):
    held = [tensor(size), tensor(1000)]
    mark()
    del held
    mark()
    torch.cuda.reset_peak_memory_stats()
    mark()
torch.cuda.reset_accumulated_memory_stats()
mark()
held = tensor(6 * MIB)
mark()
torch.cuda.reset_accumulated_memory_stats()
torch.cuda.reset_peak_memory_stats()
mark()
del held
mark()
""",
    "storages that are resized": """
held = tensor(4 * MIB)
held.untyped_storage().resize_(12 * MIB)
mark()
held.untyped_storage().resize_(0)
mark()
""",
    "streams": """
streams = [torch.cuda.Stream() for _ in range(3)]
for i in range(60):
    with torch.cuda.stream(streams[i % 3]):
        held = tensor(2 * MIB * (1 + i % 5))
    held.record_stream(streams[(i + 1) % 3])
    del held
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # when what waited is looked at, whatever else is done
    if i % 20 == 0:
        mark()
mark()
""",
    "threads": """
def work(seed):
    dice, held = random.Random(seed), []
    for _ in range(500):
        if held and dice.random() < 0.5:
            held.pop(dice.randrange(len(held)))
        else:
            held.append(tensor(dice.randrange(1, 200000)))
    kept.append(held)
kept = []
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
torch.cuda.reset_peak_memory_stats()
mark()
kept.clear()
mark()
""",
    "pools": """
pools = [torch.cuda.MemPool(), torch.cuda.MemPool()]
held = []
for i in range(20):
    with torch.cuda.use_mem_pool(pools[i % 2]):
        held.append(tensor(2 * MIB * (1 + i % 7)))
        held.append(tensor(1000 * (i + 1)))
    if i % 3 == 0:
        held.pop(0)
mark()
del pools
mark()
held.clear()
torch.cuda.empty_cache()
mark()
""",
    "graphs": """
source, graphs, kept = tensor(4 * MIB), [], []
for i in range(3):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
        kept.append(source.clone())
        source[: 5000 * (i + 1)].clone()
    graphs.append(graph)
    mark()
for graph in graphs:
    graph.replay()
mark()
graphs.clear()
del graph
mark()
kept.clear()
torch.cuda.synchronize()
torch.cuda.empty_cache()
mark()
""",
    "refusals": """
held = tensor(12 * MIB)
for _ in range(3):
    try:
        tensor(1 << 50)
    except torch.cuda.OutOfMemoryError:
        mark()
""",
    "bare addresses": """
first = torch.cuda.caching_allocator_alloc(3000)
second = torch.cuda.caching_allocator_alloc(4 * MIB, stream=torch.cuda.Stream())
mark()
torch.cuda.caching_allocator_delete(first)
torch.cuda.caching_allocator_delete(second)
mark()
""",
    "a training loop": """
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(4)]).cuda()
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
batch = torch.empty(128, 512, device="cuda")
mark()
for _ in range(3):
    optimizer.zero_grad(set_to_none=True)
    model(batch).sum().backward()
    mark()
    optimizer.step()
    mark()
del model, optimizer
gc.collect()
mark()
""",
    "two devices": """
if torch.cuda.device_count() > 1:
    held = [tensor(4 * MIB, "cuda:0"), tensor(6 * MIB, "cuda:1"), tensor(1000, "cuda:1")]
    mark(0)
    mark(1)
    held.append(held[0].to("cuda:1"))
    mark(0)
    mark(1)
    held.clear()
    mark(1)
""",
}

PARTS = ("all", "small_pool", "large_pool")
METRICS = ("current", "peak", "allocated", "freed")
EXACT = ("allocation", "allocated_bytes", "active", "active_bytes", "requested_bytes")
GEOMETRY = ("segment", "reserved_bytes", "inactive_split", "inactive_split_bytes")
COUNTERS = ("num_ooms", "max_split_size")
GEOMETRY_COUNTERS = ("num_alloc_retries", "num_device_alloc", "num_device_free", "num_sync_all_streams")
OVERSIZE = ("oversize_allocations", "oversize_segments")


def run(program, allocator):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(PRELUDE + program + "\nprint(json.dumps(marks))")
        done = interpreters.run(path, under_test.environment(allocator))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=PROGRAMS)
def both(request):
    """What the native allocator and the tested one said at each mark of a program."""
    native, tested = (run(PROGRAMS[request.param], allocator) for allocator in ("native", under_test.chosen()))
    assert len(native) == len(tested)
    return list(zip(native, tested))


def test_the_same_program_has_the_same_figures(both):
    for at, (native, tested) in enumerate(both):
        keys = [f"{name}.{part}.{metric}" for name in EXACT for part in PARTS for metric in METRICS] + list(COUNTERS)
        keys += [f"{name}.{metric}" for name in OVERSIZE for metric in METRICS]
        differing = {key: (native["stats"].get(key), tested["stats"].get(key)) for key in keys
                     if native["stats"].get(key) != tested["stats"].get(key)}
        assert not differing, f"at mark {at}, native and {under_test.chosen()}: {differing}"


def test_there_are_the_same_figures_and_no_others(both):
    for native, tested in both:
        assert sorted(native["stats"]) == sorted(tested["stats"])


def test_the_figures_of_the_cache_keep_the_equations(both):
    for at, (_, tested) in enumerate(both):
        stats = tested["stats"]
        for name in EXACT + GEOMETRY:
            for part in PARTS:
                current, peak, allocated, freed = (stats[f"{name}.{part}.{metric}"] for metric in METRICS)
                assert 0 <= current <= peak, (at, name, part)
            assert all(stats[f"{name}.all.{metric}"] == stats[f"{name}.small_pool.{metric}"] + stats[f"{name}.large_pool.{metric}"]
                       for metric in METRICS if metric != "peak"), (at, name)
        for part in PARTS:
            requested, allocated, active, reserved, unused = (stats[f"{name}.{part}.current"] for name in (
                "requested_bytes", "allocated_bytes", "active_bytes", "reserved_bytes", "inactive_split_bytes"))
            assert max(requested, allocated) <= active, (at, part)
            if part == "all" or under_test.geometry().segments_by_size:
                assert active <= reserved and unused <= reserved - active, (at, part)
        assert all(stats[name] >= 0 for name in GEOMETRY_COUNTERS)


def test_what_was_allocated_less_what_was_freed_is_what_is_there():
    [mark] = run("held = [tensor(5000), tensor(4 * MIB)]\ntensor(6 * MIB)\ntorch.cuda.empty_cache()\nmark()", under_test.chosen())
    for name in EXACT + GEOMETRY:
        for part in PARTS:
            current, _, allocated, freed = (mark["stats"][f"{name}.{part}.{metric}"] for metric in METRICS)
            assert current == allocated - freed, (name, part)


def test_torch_accelerator_says_the_same(both):
    for _, tested in both:
        assert tested["accelerator"] == tested["stats"]


def rows(summary):
    """The table's rows: name -> figures, for the sums and for each pool; and the line of counters."""
    found, group = {}, ""
    for line in summary.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5:
            group = group if cells[0].startswith("from") else cells[0]
            found[group, cells[0]] = cells[1:]
    return found


def test_the_summaries_have_the_same_lines_and_figures(both):
    same = {"Allocated memory", "Active memory", "Requested memory", "Allocations", "Active allocs", "Oversize allocations"}
    for native, tested in both:
        for kind in ("summary", "short"):
            ours, theirs = rows(tested[kind]), rows(native[kind])
            assert list(ours) == list(theirs)
            for group, name in ours:
                if group in same:
                    assert ours[group, name] == theirs[group, name], (group, name)
            assert re.search(r"CUDA OOMs: (\d+)", tested[kind])[1] == re.search(r"CUDA OOMs: (\d+)", native[kind])[1]


def test_every_documented_figure_is_there():
    torch.empty(1, device="cuda")
    stats = torch.cuda.memory_stats()
    documented = re.findall(r'``"([a-z_.{},]+)"``', torch.cuda.memory_stats.__doc__)
    assert len(documented) > 15
    for pattern in documented:
        names = [""]
        for piece in re.findall(r"\{[^}]*\}|[^{}]+", pattern):
            names = [name + choice for name in names for choice in piece.strip("{}").split(",")]
        for name in names:
            if name in (*PARTS, *METRICS):
                continue  # the explanation of the parts
            # The documentation says "allocated" where the figure is called "allocation".
            name = re.sub(r"^allocated\.", "allocation.", name)
            assert name in stats, name
            assert isinstance(stats[name], int) and stats[name] >= (-1 if name == "max_split_size" else 0), name
