"""Owner scopes, lineages and accounts, as Python has them."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import gpuledger
import gpuledger.torch
from python_package import PACKAGE

pytestmark = pytest.mark.usefixtures("cpu_ledger")


def in_thread(function):
    raised = []

    def body():
        try:
            function()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_a_scope_may_be_entered_while_it_is_entered():
    scope = gpuledger.owner("again")
    with scope, scope:
        tensor = torch.empty(128)
    assert gpuledger.usage("again/again") == tensor.nbytes
    with scope:
        other = torch.empty(128)
    assert gpuledger.usage("again") == other.nbytes


def test_one_scope_serves_many_threads():
    scope = gpuledger.owner("shared")
    barrier = threading.Barrier(4)
    kept = []

    def body():
        with scope:
            barrier.wait()
            kept.append(torch.empty(128))
            barrier.wait()

    threads = [threading.Thread(target=body) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gpuledger.usage("shared") == 4 * 512


def test_a_scope_that_was_not_entered_cannot_be_left():
    scope = gpuledger.owner("never")
    with pytest.raises(ValueError, match="once too often"):
        scope.__exit__(None, None, None)


def test_a_name_that_is_no_text_is_turned_away():
    with pytest.raises(TypeError, match="not int"):
        gpuledger.owner(3)
    with pytest.raises(TypeError, match="not list"):
        gpuledger.owner([])
    with pytest.raises(ValueError, match="zero byte"):
        gpuledger.owner("a\0b")


def test_a_new_thread_pays_for_itself_unless_the_scope_is_carried():
    kept = []
    with gpuledger.owner("main", role="cache"), gpuledger.owner("loader"):
        in_thread(lambda: kept.append(torch.empty(128)))
        assert gpuledger.usage("main/loader") == 0
        in_thread(gpuledger.carry(lambda: kept.append(torch.empty(128))))
        assert gpuledger.usage("main/loader", "other") == 512
        scope = gpuledger.current_scope()

    def adopted():
        with scope, gpuledger.owner("shard"):
            kept.append(torch.empty(256))

    in_thread(adopted)
    assert gpuledger.usage("main/loader/shard") == 1024


def test_peak_is_the_most_that_was_in_use():
    gpuledger.reset_peak()
    with gpuledger.owner("peak"):
        tensors = [torch.empty(1024) for _ in range(3)]
    del tensors
    assert (gpuledger.usage("peak"), gpuledger.peak("peak")) == (0, 3 * 4096)
    gpuledger.reset_peak()
    assert gpuledger.peak("peak") == 0


def test_a_lineage_says_what_is_left_of_a_source():
    with pytest.raises(gpuledger.UndecidedError):
        gpuledger.residual("lineage.a.weight")
    with gpuledger.lineage("lineage.a.weight"):
        with gpuledger.owner("lineage.a.weight", role="source"):
            source = torch.empty(1024)
        with gpuledger.owner("lineage.a.weight", role="quantized"):
            quantized = torch.empty(1024, dtype=torch.uint8)
        assert gpuledger.lineage("lineage.a.weight").state == "open"
        with pytest.raises(gpuledger.UndecidedError):
            gpuledger.residual("lineage.*.weight")
    assert gpuledger.residual("lineage.*.weight") == source.nbytes
    found = gpuledger.lineage("lineage.a.weight")
    assert (found.state, found.source_bytes, found.quantized_bytes) == ("closed", 4096, quantized.nbytes)
    del source
    assert gpuledger.residual("lineage.*.weight") == 0


def test_a_conversion_that_failed_stays_open():
    with pytest.raises(KeyError), gpuledger.lineage("failed.weight"):
        raise KeyError
    assert gpuledger.lineage("failed.weight").state == "open"
    gpuledger.close_lineage("failed.weight")


def test_adopt_names_what_a_model_and_its_optimizer_have():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(8, 64)).sum().backward()
    optimizer.step()
    assert gpuledger.adopt(model, optimizer, name="net") == 4 + 4 + 3 + 4 * 3  # parameters, gradients, buffers, AdamW's
    weight = 64 * 64 * 4
    assert gpuledger.usage("net/0.weight", "other") == weight
    assert gpuledger.usage("net/0.weight", "gradient") == weight
    assert gpuledger.usage("net/0.weight", "optimizer") == 2 * weight + 512  # two moments, a count of steps
    assert gpuledger.usage("net/1.running_mean") == 512
    assert gpuledger.adopt(torch.nn.Linear(8, 8, device="meta")) == 0


def test_without_torch_the_package_keeps_accounts_too(tmp_path):
    script = """
import sys
import gpuledger
with gpuledger.owner("a"):
    gpuledger.mark("nothing is recorded")
assert gpuledger.usage() == 0 and gpuledger.trace_path() is None
gpuledger.start_recording("%p.trace")
gpuledger.mark("now it is")
report = gpuledger.leaks()
assert not report and report.settled and report.live_bytes == 0
assert "torch" not in sys.modules
print(gpuledger.trace_path())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60,
                          env={**__import__("os").environ, "PYTHONPATH": str(PACKAGE)})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / done.stdout.strip()).exists()
