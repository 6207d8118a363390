"""PyTorch's own tools for snapshots (torch.cuda._memory_viz) on the snapshots of the allocator."""

import pickle

import pytest
import torch
from cuda_memory import MIB, tensor
from torch.cuda import _memory_viz as viz


@pytest.fixture
def recorded():
    torch.cuda.memory._record_memory_history(stacks="python", clear_history=True)
    held = [tensor(1000), tensor(3 * MIB), tensor(12 * MIB)]
    del held[1]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50)
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        held.append(tensor(5 * MIB))
    yield torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    del held, pool


def test_the_sum_of_segments_is_a_text_with_the_totals(recorded):
    text = viz.segsum(recorded)
    reserved = sum(segment["total_size"] for segment in recorded["segments"])
    assert f"segments: {len(recorded['segments'])}" in text
    assert f"total_reserved: {viz._format_size(reserved)}" in text


def test_the_trace_is_a_text_of_what_happened(recorded):
    text = viz.trace(recorded)
    assert "entries" in text and text.count("= ") >= 3 and "TOTAL MEM" in text


@pytest.mark.parametrize("kind", ["trace_plot", "segment_plot"])
def test_the_plots_are_pages_with_the_snapshot_in_them(recorded, kind):
    page = getattr(viz, kind)(recorded)
    assert page.lstrip().lower().startswith("<!doctype html>") and len(page) > 2000


def test_plots_with_segments_and_without_what_was_freed_can_be_made(recorded):
    assert viz.trace_plot(recorded, plot_segments=True)
    assert viz.trace_plot(recorded, filter_freed=True)


def test_flame_graph_lines_have_the_blocks_with_their_sizes(recorded):
    lines = viz.memory(recorded, format_flamegraph=lambda text: text)
    sizes = [int(line.rsplit(" ", 1)[1]) for line in lines.splitlines()]
    assert sum(sizes) == sum(segment["total_size"] for segment in recorded["segments"])
    assert any("tensor" in line for line in lines.splitlines())
    assert viz.segments(recorded, format_flamegraph=lambda text: text)


def test_two_snapshots_can_be_compared(recorded):
    more = tensor(64 * MIB)
    text = viz.compare(recorded["segments"], torch.cuda.memory._snapshot()["segments"], format_flamegraph=lambda text: text)
    assert isinstance(text, str)
    del more


def test_a_snapshot_is_plain_data_that_the_viewer_can_read(recorded):
    # The page unpickles in JavaScript: protocols 2 to 4, and nothing that would need a class.
    data = pickle.dumps(recorded, protocol=4)
    again = pickle.loads(data)
    kinds = set()

    def walk(value):
        kinds.add(type(value))
        for part in value.items() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            walk(part)

    walk(again)
    assert kinds <= {dict, list, tuple, str, int, float, bool, type(None)}


def test_a_dump_on_a_refused_allocation_is_possible(tmp_path):
    torch.cuda.memory._record_memory_history(stacks="python", clear_history=True)
    written = tmp_path / "refused.pickle"

    def dump(device, wanted, total, free):
        torch.cuda.memory._dump_snapshot(str(written))

    torch._C._cuda_attach_out_of_memory_observer(dump)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50)
    torch.cuda.memory._record_memory_history(enabled=None)
    found = pickle.loads(written.read_bytes())
    assert "oom" in {entry["action"] for entry in found["device_traces"][0]}
