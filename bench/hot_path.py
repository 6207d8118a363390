"""The hot path beside PyTorch's CUDA allocator: runs torch_cuda_bench where it finds PyTorch and a CUDA, and makes the tables.

    hot_path.py --program build/release/bin/torch_cuda_bench --fake build/release/fake_cuda --out hot_path.json
    hot_path.py --program ... --out ...            on a real device
    hot_path.py --show hot_path.json               the tables of an earlier run

Imported by collect.py and gpu_bench.py. The Python that runs it is the one whose PyTorch is measured.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

THREADS = (1, 2, 4, 16)
ONE_THREAD = [("512 B", "pair/{}/512"), ("64 KiB", "pair/{}/65536"), ("2 MiB", "pair/{}/2097152"),
              ("random, 1,000 live", "random/{}/live:1000"), ("random, 10,000 live", "random/{}/live:10000")]
SEVERAL = [("64 KiB, 64 live a thread", "threads_fixed", THREADS), ("random, 1,000 live a thread", "threads_random", THREADS),
           ("allocated on one, freed on another", "threads_handover", THREADS[1:])]
# Not of this run. 64 KiB, 64 live a thread, own streams, nanoseconds a free+alloc pair with 1, 4 and 16 threads.
QUOTED = [("cuda_async resource, warm", "670–1250", "11.7–13.0k", "61–75k"), ("pool", "410–680", "6.0–7.4k", "37–40k"),
          ("arena", "190–330", "1.4–2.0k", "5.1–8.2k"), ("statistics over pool", "470–545", "7k", "38–40k"),
          ("tracking over pool", "545–940", "7–10k", "38–46k"), ("tracking with stacks over pool", "2060–3200", "10–18k", "66–79k"),
          ("logging (CSV) over pool", "1550–1800", "8.5–11k", "37–48k")]
QUOTED_FROM = ("RMM 26.08 (main 5d50a37b), measured by this project in July 2026: one H200, driver 580.159, CUDA 13.0, 16 cores, "
               "1 to 4 runs each")


def site_packages():
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{sys.executable} has no torch: nothing to compare with")
    return pathlib.Path(spec.submodule_search_locations[0]).parent


def environment(base, fake=None):
    """`base` with PyTorch's libraries, and the fake CUDA before any real one where that is wanted."""
    site = site_packages()
    folders = [*([str(fake)] if fake else []), str(site / "torch/lib"), str(site / "nvidia/cu13/lib"),
               base.get("LD_LIBRARY_PATH", ""), "/usr/local/cuda/lib64"]
    made = {**base, "LD_LIBRARY_PATH": ":".join(filter(None, folders))}
    if fake:  # PyTorch's libraries have run paths of their own; what is loaded already is not searched for
        made["LD_PRELOAD"] = ":".join(str(pathlib.Path(fake) / name) for name in ("libcuda.so.1", "libcudart.so.13"))
    return made


def command(program, out, repetitions, install=None):
    """Repetitions are interleaved at random, so that a busy minute meets every allocator alike. `install`: ours under PyTorch
    instead, which takes a process of its own."""
    return [str(program), f"--benchmark_repetitions={repetitions}", "--benchmark_min_time=0.2", "--benchmark_display_aggregates_only=true",
            "--benchmark_enable_random_interleaving=true", f"--benchmark_out={out}", "--benchmark_out_format=json",
            *([f"--install={install}"] if install else [])]


def merge(path, more):
    """Adds the benchmarks of the JSON `more` to those of `path`."""
    first, second = (json.loads(pathlib.Path(p).read_text()) for p in (path, more))
    first["benchmarks"] += second["benchmarks"]
    pathlib.Path(path).write_text(json.dumps(first))


def medians(path):
    """run name -> {ns, cv, a workload's own counters}: medians, and standard deviation / mean of the time."""
    found = {}
    for entry in json.loads(pathlib.Path(path).read_text())["benchmarks"]:
        aggregate = entry.get("aggregate_name")
        if aggregate is None and entry["repetitions"] == 1:
            aggregate = "median"  # of one
        if aggregate not in ("median", "cv"):
            continue
        row = found.setdefault(entry["run_name"].removesuffix("/manual_time").removesuffix("/iterations:1"), {})
        if aggregate == "median":
            row["ns"] = entry["real_time"]
            row.update((key, entry[key]) for key in ("pairs_per_second", "ns_90_percent") if key in entry)
        else:
            row["cv"] = entry["real_time"]
    return found


def device(path):
    return json.loads(pathlib.Path(path).read_text())["context"].get("device", "unknown")


def ns(row):
    return f"{row['ns']:,.0f} ± {100 * row.get('cv', 0):.0f} %"


def ratio(ours, peer):
    return f"{ours['ns'] / peer['ns']:.2f}"


def one_thread(rows):
    lines = ["### One thread, nanoseconds a pair", "", "| sizes | gpuledger, full record | PyTorch, no record | ratio | PyTorch, "
             "history without stacks | ratio |", "|---|---|---|---|---|---|"]
    for text, pattern in ONE_THREAD:
        ours, torch, history = (rows[pattern.format(name)] for name in ("gpuledger", "torch", "torch_history"))
        lines.append(f"| {text} | {ns(ours)} | {ns(torch)} | {ratio(ours, torch)} | {ns(history)} | {ratio(ours, history)} |")
    return lines


def several_threads(rows):
    lines = ["### Several threads, each on its own stream", "", "Pairs of all threads together in a window of wall time in which all "
             "of them run; in brackets, against one thread of the same. The ratio is ours ÷ PyTorch's nanoseconds, as above. "
             "Freed on another: half of the threads allocate random sizes, each has a partner that frees, through a bounded queue.", "",
             "| workload | threads | gpuledger, M pairs/s | PyTorch, M pairs/s | ratio | PyTorch with history, M pairs/s |",
             "|---|---|---|---|---|---|"]
    for text, workload, counts in SEVERAL:
        for threads in counts:
            cells = []
            for name in ("gpuledger", "torch", "torch_history"):
                pairs = rows[f"{workload}/{name}/threads:{threads}"]["pairs_per_second"]
                alone = rows.get(f"{workload}/{name}/threads:1")
                cells.append(f"{pairs / 1e6:.2f}" + (f" ({pairs / alone['pairs_per_second']:.2f} ×)" if alone and threads > 1 else ""))
            cells.insert(2, ratio(*(rows[f"{workload}/{name}/threads:{threads}"] for name in ("gpuledger", "torch"))))
            lines.append(f"| {text} | {threads} | {' | '.join(cells)} |")
    return lines


def questions(rows):
    lines = ["### Asking while others write, nanoseconds a call", "", "`usage(owner)` beside PyTorch's `getDeviceStats`, which is what "
             "`torch.cuda.memory_allocated()` asks before Python makes a dictionary of it. Median of batches of 64 calls, and "
             "what nine of ten batches stay below.", "", "| threads writing | gpuledger | 90 % | PyTorch | 90 % |", "|---|---|---|---|---|"]
    for writers in (0, *THREADS):
        both = [rows[f"usage/{name}/writers:{writers}"] for name in ("gpuledger", "torch")]
        lines.append(f"| {writers} | " + " | ".join(f"{ns(row)} | {row['ns_90_percent']:,.0f}" for row in both) + " |")
    return lines


def through_pytorch(rows):
    """PyTorch's own calls, raw_alloc_with_stream and raw_delete, with our allocator under them."""
    if "pair/gpuledger_in_torch/512" not in rows:
        return ["Not measured: ours under PyTorch's calls (--library)."]
    lines = ["### Through PyTorch: `raw_alloc` and `raw_delete` with ours under them", "", "Nanoseconds a pair; every change is in the ledger "
             "and in PyTorch's figures, and no trace is written. A process of its own, right after the other.", "",
             "| workload | gpuledger under PyTorch | PyTorch's own | ratio | PyTorch's own, history without stacks | ratio |",
             "|---|---|---|---|---|---|"]
    cases = ONE_THREAD + [(f"{text}, {threads} threads", f"{workload}/{{}}/threads:{threads}")
                          for text, workload, counts in SEVERAL for threads in counts]
    for text, pattern in cases:
        ours, torch, history = (rows[pattern.format(name)] for name in ("gpuledger_in_torch", "torch", "torch_history"))
        lines.append(f"| {text} | {ns(ours)} | {ns(torch)} | {ratio(ours, torch)} | {ns(history)} | {ratio(ours, history)} |")
    for writers in (0, *THREADS):
        ours, torch = (rows[f"usage/{name}/writers:{writers}"] for name in ("gpuledger_in_torch", "torch"))
        lines.append(f"| `getDeviceStats`, {writers} threads writing | {ns(ours)} | {ns(torch)} | {ratio(ours, torch)} | | |")
    return lines


def quoted():
    lines = ["### RMM, quoted: another machine, not this run", "", f"Nanoseconds a pair in one thread, 64 KiB, 64 live a thread, own "
             f"streams. {QUOTED_FROM}.", "", "| resource | 1 thread | 4 threads | 16 threads |", "|---|---|---|---|"]
    return lines + ["| " + " | ".join(row) + " |" for row in QUOTED]


def markdown(rows, device_name, machine):
    """The section of a results file. `machine` says what ran it: the tables' figures are of that one machine alone."""
    lines = ["## Allocate + free on CUDA streams, beside PyTorch's own allocator", "",
             f"All but the last table: {machine}, CUDA device \"{device_name}\", one program in one run. Medians, with the standard "
             "deviation in per cent of the mean; ratios are ours ÷ PyTorch's time, less than 1 is faster. Ours runs over the CUDA "
             "upstream and writes each record in full (owner, role, site, time, thread, stream, sizes, sequence) to a buffer of its "
             "thread."]
    if device_name.startswith("Fake"):
        lines[-1] += (" The device is the fake of `tests/fake_cuda`: no driver call is on a hit of ours; PyTorch's asks the runtime "
                      "for the current device at each allocation, which costs about 25 ns there.")
    for part in (one_thread(rows), several_threads(rows), questions(rows), through_pytorch(rows), quoted()):
        lines += ["", *part]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, help="torch_cuda_bench")
    parser.add_argument("--fake", type=pathlib.Path, help="folder of the fake CUDA; without it, the real one")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of Google Benchmark")
    parser.add_argument("--library", type=pathlib.Path, help="libgpuledger_torch_cuda.so, for ours under PyTorch's calls")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--show", type=pathlib.Path, help="only print the tables of this JSON")
    options = parser.parse_args()
    if options.show is None:
        if options.program is None or options.out is None:
            parser.error("--program and --out, or --show")
        fake = options.fake.resolve() if options.fake else None
        subprocess.run(command(options.program, options.out, options.repetitions), stdin=subprocess.DEVNULL, check=True,
                       env=environment(dict(os.environ), fake))
        if options.library is not None:
            more = options.out.with_suffix(".installed.json")
            subprocess.run(command(options.program, more, options.repetitions, options.library.resolve()), stdin=subprocess.DEVNULL,
                           check=True, env=environment(dict(os.environ), fake))
            merge(options.out, more)
            more.unlink()
    path = options.show or options.out
    print("\n".join(markdown(medians(path), device(path), "this machine")))


if __name__ == "__main__":
    main()
