"""Recorded traces through `gpuledger replay`, beside what PyTorch's allocator reserved when they were recorded.

A part of collect.py; by itself it prints the table. Traces: bench/traces, and those of them that are too large for the
repository from the folder that GPULEDGER_TRACES names.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess

TRACES = pathlib.Path(__file__).resolve().parent / "traces"
# Bytes that PyTorch 2.11's allocator reserved on the run that was recorded, in its two modes (traces/README.md).
PEERS = {
    "finetune": {"native": 33_007_075_328, "expandable": 26_023_559_168},
    "generate": {"native": 19_625_148_416, "expandable": 17_144_217_600},
    "moe": {"native": 13_136_560_128, "expandable": 9_479_127_040},
    "streams": {"native": 3_487_563_776, "expandable": 2_573_205_504},
}
THREADS = (1, 2)


def find(name):
    folders = [TRACES, pathlib.Path(os.environ.get("GPULEDGER_TRACES") or TRACES)]
    return next((path for folder in folders if (path := folder / f"{name}.trace.gz").exists()), None)


def replay(gpuledger, trace, *flags):
    ran = subprocess.run([gpuledger, "replay", trace, "--json", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"gpuledger replay {trace} {' '.join(flags)}: exit code {ran.returncode}\n{ran.stderr}")
    return json.loads(ran.stdout)


def measure(gpuledger, repetitions):
    """A row for each trace: the object of `replay` for each number of threads, the smallest cap, and the peers' bytes."""
    rows = []
    for name, peers in PEERS.items():
        trace = find(name)
        if trace is None:
            print(f"  {name}: left out; set GPULEDGER_TRACES to the folder that has {name}.trace.gz", flush=True)
            rows.append({"trace": name, "peers": peers})
            continue
        row = {"trace": name, "peers": peers, "threads": {}}
        for threads in THREADS:
            runs = [replay(gpuledger, trace, "--threads", str(threads)) for _ in range(repetitions)]
            result = {key: value for key, value in runs[0].items() if key != "trace"}
            result["ns_per_event"] = statistics.median(run["ns_per_event"] for run in runs)
            row["threads"][str(threads)] = result
        row["min_cap_bytes"] = replay(gpuledger, trace, "--min-cap")["min_cap_bytes"]
        rows.append(row)
        one = row["threads"]["1"]
        print(f"  {name}: {one['ratio']:.4f} of what is requested, {one['ns_per_event']:.0f} ns an event", flush=True)
    return rows


def markdown(rows):
    lines = [
        "## Recorded traces: peak reserved ÷ peak requested",
        "",
        "`gpuledger replay` on the fake upstream, with full records. PyTorch's figures are quoted: its own allocator in its two modes, "
        "on the H200 run that was recorded (`bench/traces/README.md`). Driver time is the fake's model of an H200, in per cent of the "
        "trace's time and of its second half's; the smallest cap is ÷ peak requested too; ns are those of the allocator for an "
        "allocation or a free. With 2 threads the second one does all frees.",
        "",
        "| trace | events | PyTorch native | expandable | gpuledger | 2 threads | driver time, all | second half | smallest cap | ns | "
        "ns, 2 threads |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "threads" not in row:
            lines.append(f"| {row['trace']} | not measured: the trace is not here |" + " |" * 9)
            continue
        one, two = row["threads"]["1"], row["threads"]["2"]
        requested, seconds = one["peak_requested_bytes"], one["trace_seconds"]
        cells = [
            row["trace"],
            f"{one['events']:,}",
            *(f"{row['peers'][mode] / requested:.3f}" for mode in ("native", "expandable")),
            f"{one['ratio']:.4f}",
            f"{two['ratio']:.4f}",
            f"{100 * one['upstream_seconds'] / seconds:.2f} %",
            f"{100 * one['upstream_seconds_second_half'] / (seconds / 2):.2f} %",
            f"{row['min_cap_bytes'] / requested:.4f}",
            f"{one['ns_per_event']:.0f}",
            f"{two['ns_per_event']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gpuledger", required=True, help="the gpuledger command")
    arguments.add_argument("--repetitions", type=int, default=3)
    arguments.add_argument("--out", type=pathlib.Path, help="also write the figures as JSON to this file")
    options = arguments.parse_args()
    rows = measure(options.gpuledger, options.repetitions)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")
    print("\n".join(["", *markdown(rows)]))


if __name__ == "__main__":
    main()
