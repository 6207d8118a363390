"""Each leak class planted from Python, and beside it what looks like it and is none."""

from __future__ import annotations

import gc

import pytest
import torch

import gpuledger
import gpuledger.torch

pytestmark = pytest.mark.usefixtures("cpu_ledger")


def of(owner, report=None):
    """The leaks of one owner."""
    if report is None:
        report = gpuledger.leaks()
    assert report.settled and sum(total.bytes for total in report.classes.values()) == report.live_bytes
    return [leak for leak in report.leaks if leak.owner == owner]


class Node:
    pass


def make(owner, role="other", count=1024, **options):
    with gpuledger.owner(owner, role, **options):
        return torch.ones(count)


def test_what_is_held_on_purpose_is_kept():
    kept = make("kept/weight")
    report = gpuledger.leaks()
    assert of("kept/weight", report) == [] and report.classes["kept"].bytes >= kept.nbytes
    assert "kept" in report.classes and report.in_use_bytes >= kept.nbytes


def test_a_cycle_is_what_the_collector_frees():
    gc.disable()
    try:
        node = Node()
        node.me, node.tensor = node, make("cycle/planted")
        del node
        alive = Node()
        alive.me, alive.tensor = alive, make("cycle/held")  # a cycle too, but one that is in use
        report = gpuledger.leaks()
    finally:
        gc.enable()
    [leak] = of("cycle/planted", report)
    assert (leak.leak_class, leak.severity, leak.bytes) == ("cycle", "warning", 4096)
    assert of("cycle/held", report) == [] and gpuledger.usage("cycle/planted") == 0
    assert alive is not None


def fail(tensor):
    local = tensor if tensor is not None else make("traceback/planted")
    raise ValueError("planted", local.shape)


def test_a_kept_exception_holds_what_its_frames_have():
    shared = make("traceback/shared")
    kept = []
    for tensor in (None, shared):
        try:
            fail(tensor)
        except ValueError as error:
            kept.append(error)
    report = gpuledger.leaks()
    [leak] = of("traceback/planted", report)
    assert (leak.leak_class, leak.severity, leak.tensor) == ("traceback-held", "error", "float32 [1024]")
    assert len(leak.holders) == 1 and leak.holders[0].startswith("local 'local' of fail() in test_leak_report.py:")
    assert "held by the traceback of ValueError" in leak.holders[0]
    assert of("traceback/shared", report) == []  # the traceback has it too, but clearing that would free nothing
    assert report and "traceback" in str(report)
    kept.clear()
    assert of("traceback/planted") == []


def test_what_outlives_a_transient_scope_has_escaped():
    with gpuledger.owner("escape", role="scratch", transient=True):
        with gpuledger.owner("gone"):
            gone = torch.ones(1024)
        with gpuledger.owner("left"):
            left = torch.ones(1024)
        with gpuledger.owner("adopted"):
            adopted = torch.nn.Linear(16, 16)
        del gone
        gpuledger.adopt(adopted, name="escape/net")
    report = gpuledger.leaks()
    [leak] = of("escape/left", report)
    assert (leak.leak_class, leak.severity) == ("scope escape", "error")
    assert any("local 'left' of test_what_outlives" in holder for holder in leak.holders)
    assert not of("escape/gone", report) and not of("escape/net/weight", report)
    assert left is not None


def test_a_source_that_outlives_its_lineage_is_superseded_with_the_holders_of_that_moment():
    weights = {}

    def convert(input_dict, name, drop):
        with gpuledger.lineage(name):
            value = input_dict[name][0]
            parameter = torch.Tensor._make_subclass(torch.nn.Parameter, value, False)
            weights[name] = make(name, "quantized", 256)
            if drop:
                del value, parameter
                input_dict[name].clear()

    def load():
        input_dict = {}
        for name, drop in (("up.weight", False), ("down.weight", True)):
            input_dict[name] = [make(name, "source")]
            convert(input_dict, name, drop)
        return input_dict

    kept = load()
    report = gpuledger.leaks()
    [leak] = of("up.weight", report)
    assert (leak.leak_class, leak.severity, leak.role, leak.bytes) == ("superseded", "error", "source", 4096)
    value, element, parameter = leak.holders
    assert value.startswith("local 'value' of convert() in test_leak_report.py:")
    assert element.startswith("element 0 of list under key 'up.weight' of dict local 'input_dict' of load() in test_leak_report.py:")
    assert parameter.startswith("Parameter float32 [1024]: local 'parameter' of convert() in test_leak_report.py:")
    assert of("down.weight", report) == []
    assert gpuledger.residual("up.weight") == 4096 and gpuledger.residual("down.weight") == 0
    kept.clear()
    assert of("up.weight") == []


def test_a_small_view_pins_its_storage():
    pinned = make("view/pinned")[:10]
    seen_whole = make("view/whole")
    both = seen_whole[:10]
    expanded = make("view/expanded", count=1).expand(4)
    report = gpuledger.leaks()
    [leak] = of("view/pinned", report)
    assert (leak.leak_class, leak.severity) == ("view-pinned", "warning")
    assert leak.holders[0].startswith("view float32 [10]: local 'pinned'")
    assert of("view/whole", report) == [] and of("view/expanded", report) == []
    assert both is not None and expanded is not None and pinned is not None


def test_a_rule_suppresses_an_owner():
    with gpuledger.owner("suppressed", transient=True):
        left = torch.ones(1024)
    report = gpuledger.leaks("owner:suppressed\n# a comment\n")
    [leak] = of("suppressed", report)
    assert leak.suppressed_by == "owner:suppressed"
    assert of("suppressed")[0].suppressed_by == ""
    with pytest.raises(ValueError):
        gpuledger.leaks("nonsense")
    assert left is not None
