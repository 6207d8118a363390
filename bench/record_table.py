"""Recording beside heaptrack and memray: the same loop of allocations and frees, in one run; and trace_bench's figures.

The peers follow malloc, ours follows a CachingAllocator: each is compared with its own loop unrecorded. An event is an
allocation or a free.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

PAIRS = 300_000


def run(command: list[str], scratch: str, **environment: str) -> float:
    """The last number on stdout: nanoseconds a pair."""
    result = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env={**os.environ, **environment})
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr[-500:]}")
    return float([line for line in result.stdout.splitlines() if line.replace(".", "").isdigit()][-1])


def measure(binaries: pathlib.Path, repetitions: int) -> dict:
    loop, library = str(binaries / "bin/record_loop"), str(binaries / "lib/librecord_loop.so")
    script = f"import ctypes; f = ctypes.CDLL({library!r}).record_loop_malloc; f.restype = ctypes.c_double; print(round(f({PAIRS}), 1))"
    cases = {
        "malloc": ([loop, "malloc", str(PAIRS)], {}),
        "gpuledger": ([loop, "gpuledger", str(PAIRS * 10)], {"GPULEDGER_STACKS": "none"}),
        "gpuledger recorded": ([loop, "gpuledger", str(PAIRS * 10)], {"GPULEDGER_TRACE": "ours.%p.trace", "GPULEDGER_STACKS": "none"}),
        "gpuledger recorded with native stacks": (
            [loop, "gpuledger", str(PAIRS * 10)], {"GPULEDGER_TRACE": "ours.%p.trace", "GPULEDGER_STACKS": "native"}),
    }
    if shutil.which("heaptrack"):
        cases["heaptrack"] = (["heaptrack", "-o", "heaptrack", loop, "malloc", str(PAIRS)], {})
    try:
        import memray  # noqa: F401

        code = ["-m", "memray", "run", "--force", "-o", "memray.bin", "-c", script]
        cases["memray"] = ([sys.executable, *code], {})
        cases["memray --native"] = ([sys.executable, *code[:3], "--native", *code[3:]], {})
    except ImportError:
        pass
    rows: dict[str, dict] = {}
    for name, (command, environment) in cases.items():
        times = []
        for _ in range(repetitions):
            with tempfile.TemporaryDirectory(prefix="gpuledger-record-") as scratch:
                try:
                    times.append(run(command, scratch, **environment))
                except RuntimeError as error:
                    print(f"record_table.py: {name} is left out: {error}", file=sys.stderr)
                    break
        if times:
            rows[name] = {"ns_per_pair": statistics.median(times)}
    return rows


def markdown(rows: dict, benchmarks: list[dict]) -> list[str]:
    lines = [
        "## Recording",
        "",
        f"An allocation and its free, ten calls deep, {PAIRS:,} times ({PAIRS * 10:,} with gpuledger). Cost: what recording adds, an event.",
        "",
        "| | ns a pair | cost, ns an event |",
        "|---|---|---|",
    ]
    for name, row in rows.items():
        base = rows["gpuledger" if name.startswith("gpuledger") else "malloc"]["ns_per_pair"]
        cost = "" if name in ("malloc", "gpuledger") else f"{(row['ns_per_pair'] - base) / 2:,.0f}"
        lines.append(f"| {name} | {row['ns_per_pair']:,.0f} | {cost} |")
    lines += ["", "| in the hot thread | ns an entry |", "|---|---|"]
    for row in benchmarks:
        if row["name"].startswith("BM_Write"):
            lines.append(f"| {row['threads']} thread{'s' if row['threads'] > 1 else ''} | {row['ns_per_entry']:.0f} |")
    lines += ["", "| trace, in its own time | bytes an event |", "|---|---|"]
    lines += [f"| {row['name'].split('/')[1]} | {row['bytes_per_event']:.2f} |" for row in benchmarks if "bytes_per_event" in row]
    lines += ["", "| a site | ns |", "|---|---|"]
    lines += [f"| native stack, {row['name'].split(':')[1]} frames and the loop's own | {row['real_time']:.0f} |" for row in benchmarks if "TakeSite" in row["name"]]
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--build", type=pathlib.Path, required=True)
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--out", type=pathlib.Path, required=True, help="JSON")
    options = arguments.parse_args()
    build = options.build.resolve()
    rows = measure(build, options.repetitions)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run(
            [str(build / "bin/trace_bench"), "--benchmark_min_time=0.3", f"--benchmark_out={file.name}", "--benchmark_out_format=json"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        benchmarks = [b for b in json.load(open(file.name))["benchmarks"] if "error_occurred" not in b]
    options.out.write_text(json.dumps({"loop": rows, "benchmarks": benchmarks}, indent=1))
    print("\n".join(markdown(rows, benchmarks)))


if __name__ == "__main__":
    main()
