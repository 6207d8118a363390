"""A report of a long trace: how long `gpuledger report` takes, and how much memory; trace_writer makes the trace.

A part of collect.py; by itself it prints the table. The target: 100 million events in 60 seconds and in 1 GiB.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile

from measured_run import run_json

EVENTS = 100_000_000
THREADS = (1, 4)


def measure(gpuledger, scratch, repetitions, events=EVENTS):
    """A row for each number of recorded threads. Seconds are processor time: the report is one thread."""
    rows = []
    writer = pathlib.Path(gpuledger).parent / "trace_writer"
    for threads in THREADS:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            trace = pathlib.Path(folder) / "long.trace"
            subprocess.run([writer, trace, str(events), str(threads)], check=True)
            command = [gpuledger, "report", trace, "--json"]
            runs = [run_json(command) for _ in range(repetitions)]
            blocks = run_json([*command, "--blocks"])
            entries = runs[0]["result"]["entries"]
            rows.append({
                "threads": threads, "entries": entries, "trace_bytes": trace.stat().st_blocks * 512,
                "seconds": statistics.median(run["seconds"] for run in runs), "resident_bytes": max(run["resident_bytes"] for run in runs),
                "blocks_seconds": blocks["seconds"], "blocks_resident_bytes": blocks["resident_bytes"],
            })
        row = rows[-1]
        print(f"  {entries:,} events of {threads} threads: {row['seconds']:.1f} s, {row['resident_bytes'] / 2**20:.0f} MiB", flush=True)
    return rows


def markdown(rows):
    lines = [
        "## Report of a long trace",
        "",
        "Processor time (one thread) and the most that was resident; `--blocks` reads the trace twice. Target: 100 million in 60 s, in 1 GiB.",
        "",
        "| events | threads recorded | bytes an event | s | MiB | s, `--blocks` | MiB, `--blocks` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['entries']:,} | {row['threads']} | {row['trace_bytes'] / row['entries']:.2f} | {row['seconds']:.1f} "
            f"| {row['resident_bytes'] / 2**20:.0f} | {row['blocks_seconds']:.1f} | {row['blocks_resident_bytes'] / 2**20:.0f} |")
    return lines


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--gpuledger", required=True, help="the gpuledger command; trace_writer lies beside it")
    arguments.add_argument("--scratch", default=tempfile.gettempdir())
    arguments.add_argument("--repetitions", type=int, default=1)
    arguments.add_argument("--events", type=int, default=EVENTS)
    options = arguments.parse_args()
    print("\n".join(markdown(measure(options.gpuledger, options.scratch, options.repetitions, options.events))))
