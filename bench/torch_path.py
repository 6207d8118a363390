"""PyTorch on a CUDA under its own allocator and under ours: `torch.empty` from Python, a training step, a generation loop.

    torch_path.py --fake build/release/fake_cuda --library build/release/lib/libgpuledger_torch_cuda.so --out torch_path.json
    torch_path.py --size 1b --library ... --out ...     on a real device
    torch_path.py --show torch_path.json                the tables of an earlier run

Each figure is the median of `--repetitions` processes, whose order is drawn at random: a busy minute meets every allocator
alike. Imported by collect.py and gpu_bench.py. The Python that runs it is the one whose PyTorch is measured.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

WORKLOADS = pathlib.Path(__file__).resolve().with_name("torch_workloads.py")
# name -> (what it is called in the tables, environment, arguments, the workloads it runs)
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
EVERY, CALLS = ("empty", "train", "generate"), ("empty",)
VARIANTS = {
    "native": ("native", {}, [], EVERY),
    "expandable": ("expandable segments", EXPANDABLE, [], EVERY),
    "history": ("native, history without stacks", {}, ["--history", "records"], CALLS),
    "history_stacks": ("native, history with Python and C++ stacks", {}, ["--history", "stacks"], EVERY),
    "ours": ("gpuledger", {}, None, EVERY),
    "ours_records": ("gpuledger, records to a trace", {"GPULEDGER_STACKS": "none"}, None, CALLS),
    "ours_stacks": ("gpuledger, records with Python and C++ stacks", {"GPULEDGER_STACKS": "all"}, None, EVERY),
}
RECORDED = ("ours_records", "ours_stacks")


def command(variant, workload, size, library):
    arguments = VARIANTS[variant][2]
    return [sys.executable, str(WORKLOADS), workload, "--size", size, *(["--install", str(library)] if arguments is None else arguments)]


def environment(base, variant, scratch):
    clean = {k: v for k, v in base.items() if k not in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "GPULEDGER_TRACE", "GPULEDGER_STACKS")}
    if variant in RECORDED:
        clean["GPULEDGER_TRACE"] = str(pathlib.Path(scratch) / "%p.trace")
    return clean | VARIANTS[variant][1]


def with_fake(base, folder):
    """The fake CUDA before any real one: it is known by its soname once it is loaded."""
    names = ("libcuda.so.1", "libcudart.so.13", "cublas/libcublasLt.so.13", "cublas/libcublas.so.13")
    return base | {"LD_PRELOAD": ":".join(str(pathlib.Path(folder).resolve() / name) for name in names), "FAKE_CUDA_CUBLAS": "1"}


def measure(size, repetitions, library, base, run=None, seconds=None, keep=None):
    """{"device", "torch", "size", "rows": workload -> variant -> figure -> [one value a repetition]}; `run(command,
    environment)` gives (exit code, output). What fails is left out, and says why under "failed". After `seconds` nothing is begun any
    more; the first repetition goes through the variants in their order. `keep(found)` is called after each process."""
    def started(arguments, variables):
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, env=variables, timeout=600)
        return done.returncode, done.stdout

    run = run or started
    found = {"size": size, "rows": {}, "failed": {}}
    end = None if seconds is None else time.monotonic() + seconds
    variants = [name for name in VARIANTS if library is not None or not name.startswith("ours")]
    with tempfile.TemporaryDirectory() as scratch:
        for repetition in range(repetitions):
            cells = [(variant, workload) for variant in variants for workload in VARIANTS[variant][3]]
            if end is None or repetition > 0:
                random.shuffle(cells)
            for variant, workload in cells:
                if end is not None and time.monotonic() > end:
                    break
                code, output = run(command(variant, workload, size, library), environment(base, variant, scratch))
                for trace in pathlib.Path(scratch).glob("*.trace"):
                    trace.unlink()
                if code != 0:
                    found["failed"][f"{variant}, {workload}"] = f"exit code {code}: {output[-300:].strip()}"
                    continue
                answer = json.loads(output.splitlines()[-1])
                found["device"], found["torch"] = answer["device"], answer["torch"]
                row = found["rows"].setdefault(workload, {}).setdefault(variant, {})
                for name, value in answer["figures"].items():
                    row.setdefault(name, []).append(value)
                if keep is not None:
                    keep(found)
    return found


def median(row, name):
    return statistics.median(row[name])


def spread(values):
    """In per cent of the median: how far the repetitions lie apart at most."""
    return 100 * (max(values) - min(values)) / statistics.median(values)


def cell(row, peer, name, digits=0):
    value = median(row, name)
    ratio = "" if row is peer else f" ({value / median(peer, name):.2f} ×)"
    return f"{value:,.{digits}f}{ratio} ± {spread(row[name]) / 2:.0f} %"


def calls_table(rows):
    native = rows["native"]
    columns = [("empty/512", "512 B"), ("empty/65536", "64 KiB"), ("empty/3145728", "3 MiB"), ("empty/65536/deep", "64 KiB, 30 frames deep"),
               ("memory_allocated", "`memory_allocated()`"), ("usage", "`usage(owner)`")]
    lines = ["### `torch.empty` and its free from Python, nanoseconds", "", "In brackets, against native. `torch.empty` on PyTorch's "
             f"device without memory takes {median(native, 'empty_meta'):,.0f} ns. `usage(owner)` is one call through ctypes.", "",
             "| | " + " | ".join(title for _, title in columns) + " |", "|---|" + "---|" * len(columns)]
    for variant, row in rows.items():
        cells = [cell(row, native if name != "usage" else row, name) if name in row else "" for name, _ in columns]
        lines.append(f"| {VARIANTS[variant][0]} | " + " | ".join(cells) + " |")
    counts = [name for name in native if name.startswith("threads/")]
    lines += ["", "### The same in several threads of one Python, thousand pairs a second", "", "All threads together, each on its own "
              "stream; they share Python's lock. In brackets, against native.", "",
              "| | " + " | ".join(f"{name.removeprefix('threads/')} threads" for name in counts) + " |", "|---|" + "---|" * len(counts)]
    for variant, row in rows.items():
        cells = [f"{median(row, name) / 1e3:,.0f}" + ("" if row is native else f" ({median(row, name) / median(native, name):.2f} ×)")
                 for name in counts]
        lines.append(f"| {VARIANTS[variant][0]} | " + " | ".join(cells) + " |")
    return lines


def steps_table(title, rows):
    native = rows["native"]
    lines = [f"### {title}", "", f"{median(native, 'parameters') / 1e6:,.1f} million parameters. In brackets, against native; peaks are of the "
             "whole run, its first steps too.", "", "| | ms | 90 % | peak reserved, MiB | peak allocated, MiB | reserved ÷ allocated |",
             "|---|---|---|---|---|---|"]
    for variant, row in rows.items():
        reserved, allocated = (median(row, name) for name in ("peak_reserved", "peak_allocated"))
        ratio = "" if row is native else f" ({reserved / median(native, 'peak_reserved'):.3f} ×)"
        lines.append(f"| {VARIANTS[variant][0]} | {cell(row, native, 'ms', 2)} | {median(row, 'ms_90_percent'):,.2f} | {reserved / 2**20:,.0f}{ratio} | "
                     f"{allocated / 2**20:,.0f} | {reserved / allocated:.4f} |")
    return lines


def markdown(found, machine):
    """The section of a results file. `machine` says what ran it."""
    lines = ["## PyTorch under its own allocator and under ours", "", f"{machine}, CUDA device \"{found['device']}\", torch {found['torch']}. "
             "Medians of processes that ran in turn; ± is half of how far they lie apart."]
    if found["device"].startswith("Fake"):
        lines[-1] += (" The device is the fake of `tests/fake_cuda`: kernels do nothing, so that all time is the host's and a step shows "
                      "the allocator larger than it is on a GPU; peaks are those of a GPU with the same shapes.")
    rows = found["rows"]
    order = {workload: {v: rows[workload][v] for v in VARIANTS if v in rows[workload]} for workload in rows}
    parts = [("empty", calls_table), ("train", lambda r: steps_table("A training step of a transformer", r)),
             ("generate", lambda r: steps_table("A token of a generation loop with a growing cache", r))]
    for workload, part in parts:
        if "native" in order.get(workload, {}):
            lines += ["", *part(order[workload])]
    lines += [line for what, why in found["failed"].items() for line in ("", f"Not measured: {what}: {why}")]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", type=pathlib.Path, help="folder of the fake CUDA; without it, the real one")
    parser.add_argument("--library", type=pathlib.Path, help="libgpuledger_torch_cuda.so; without it, PyTorch's own allocators alone")
    parser.add_argument("--size", choices=("tiny", "1b"), default="tiny")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, help="begin nothing more after so long")
    parser.add_argument("--show", type=pathlib.Path, help="only print the tables of this JSON")
    options = parser.parse_args()
    if options.show is None:
        if options.out is None:
            parser.error("--out, or --show")
        base = with_fake(dict(os.environ), options.fake) if options.fake else dict(os.environ)
        library = options.library.resolve() if options.library else None
        keep = lambda found: options.out.write_text(json.dumps(found, indent=1) + "\n")
        keep(measure(options.size, options.repetitions, library, base, seconds=options.seconds, keep=keep))
    print("\n".join(markdown(json.loads((options.show or options.out).read_text()), "This machine")))


if __name__ == "__main__":
    main()
