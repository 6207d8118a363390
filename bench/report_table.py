"""A report of a long trace: how long `gpuledger report` takes, and how much memory; trace_writer makes the trace.

A part of collect.py; by itself it prints the table. The target: 100 million events in 60 seconds and in 1 GiB.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

EVENTS = 100_000_000
THREADS = (1, 4)


def report(gpuledger, trace, *flags):
    """Seconds, the most that was resident, and the object that was printed."""
    command = [gpuledger, "report", trace, "--json", *flags]
    read, write = os.pipe()
    process = os.posix_spawn(command[0], [str(word) for word in command], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with os.fdopen(read) as printed:
        result = json.load(printed)
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"gpuledger report {trace}: exit code {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, result


def measure(gpuledger, scratch, repetitions, events=EVENTS):
    """A row for each number of recorded threads. Seconds are processor time: the report is one thread."""
    rows = []
    writer = pathlib.Path(gpuledger).parent / "trace_writer"
    for threads in THREADS:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            trace = pathlib.Path(folder) / "long.trace"
            subprocess.run([writer, trace, str(events), str(threads)], check=True)
            runs = [report(gpuledger, trace) for _ in range(repetitions)]
            blocks = report(gpuledger, trace, "--blocks")
            entries = runs[0][2]["entries"]
            rows.append({
                "threads": threads, "entries": entries, "trace_bytes": trace.stat().st_blocks * 512,
                "seconds": statistics.median(run[0] for run in runs), "resident_bytes": max(run[1] for run in runs),
                "blocks_seconds": blocks[0], "blocks_resident_bytes": blocks[1],
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
