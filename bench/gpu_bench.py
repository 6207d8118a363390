"""Runs what bench/gpu.sh has packed, and writes what came of it: OUT/<date>-<gpu>-bench.md and .json, and OUT/log.txt."""

import argparse
import json
import os
import pathlib
import platform
import sys
import tempfile

import hot_path
from packed import Machine, table, write_results

REPETITIONS = 5


def run_hot_path(machine):
    print("hot path beside PyTorch's allocator ...", flush=True)
    try:
        environment = hot_path.environment(machine.environment, machine.folder / "fake" if machine.fake else None)
    except SystemExit as missing:
        return {"failed": str(missing)}
    with tempfile.TemporaryDirectory() as scratch:
        out, more = (pathlib.Path(scratch) / name for name in ("hot_path.json", "installed.json"))
        for path, library in ((out, None), (more, machine.folder / "lib/libgpuledger_torch_cuda.so.0")):
            code, output = machine.run(hot_path.command(machine.program("torch_cuda_bench"), path, REPETITIONS, library), 300, env=environment)
            if code != 0:
                return {"failed": f"exit code {code}: {output[-2000:]}"}
        hot_path.merge(out, more)
        return {"device": hot_path.device(out), "rows": hot_path.medians(out)}


def run_replays(machine):
    """trace -> upstream -> the object that `gpuledger replay --json` prints, or {"failed": why}."""
    program = machine.program("gpuledger")
    traces = sorted((machine.folder / "traces").glob("*.trace.gz"))
    if not traces or "--upstream" not in machine.run([program, "replay", "--help"], 30)[1]:
        return {}
    replays = {}
    for trace in traces:
        row = replays[trace.name.removesuffix(".trace.gz")] = {}
        # The memory of the fake CUDA is this machine's, which need not have as much as the trace had.
        for upstream in ("fake",) if machine.fake else ("cuda", "fake"):
            print(f"replay {trace.name}, {upstream} ...", flush=True)
            with tempfile.TemporaryFile("w+") as out:
                code, output = machine.run([program, "replay", trace, "--upstream", upstream, "--json"], 240, stdout=out)
                out.seek(0)
                row[upstream] = json.loads(out.read()) if code == 0 else {"failed": f"exit code {code}: {output[-500:].strip()}"}
    return replays


def replays_text(replays):
    if not replays:
        return "Not run: the packed folder has no traces, or its gpuledger no `replay`.\n"
    rows, why = [], ""
    for trace, upstreams in replays.items():
        for upstream, result in upstreams.items():
            if "failed" in result:
                why += f"\n{trace} on {upstream}: {result['failed']}\n"
                continue
            share = [100 * result[key] / (result["trace_seconds"] * part)
                     for key, part in (("upstream_seconds", 1), ("upstream_seconds_second_half", 0.5))]
            rows.append((trace, upstream, f"{result['events']:,}", f"{result['peak_requested_bytes']:,}",
                         f"{result['peak_reserved_bytes']:,}", f"{result['ratio']:.4f}", f"{result['upstream_seconds']:.3f}",
                         f"{share[0]:.2f}", f"{share[1]:.2f}", f"{result['ns_per_event']:,.0f}"))
    return table(("trace", "upstream", "events", "peak requested", "peak reserved", "ratio", "s in the upstream",
                  "% of the trace's time", "% of its second half", "ns an event"), rows) + why


def markdown(results):
    machine, hot = results["machine"], results["hot_path"]
    text = f"# Benchmarks on a GPU: {machine['device']}\n\n"
    text += "`bench/gpu.sh --pack DIR` where it was built, `bench/gpu.sh --run DIR --out OUT` here.\n\n"
    text += table(("", ""), list(machine.items())) + "\n"
    if "rows" in hot:
        host = f"this machine ({machine['processor']}, {machine['cores']} cores)"
        text += "\n".join(hot_path.markdown(hot["rows"], hot["device"], host)) + "\n"
    else:
        text += f"The hot path was not measured: {hot['failed']}\n"
    text += ("\n## Replayed traces\n\nupstream `cuda`: memory and streams of the device above, its calls timed; `fake`: no memory, "
             "its calls as the fake upstream models them. The second half's share is of half of the trace's time.\n\n")
    return text + replays_text(results["replays"])


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def torch_version():
    return next((line.partition("'")[2].partition("'")[0] for line in
                 (hot_path.site_packages() / "torch/version.py").read_text().splitlines() if line.startswith("__version__")), "unknown")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--fake", action="store_true")
    arguments = parser.parse_args()
    machine = Machine(arguments.dir.resolve(), arguments.out, arguments.fake, {})
    load = os.getloadavg()[0]
    hot = run_hot_path(machine)
    failed = "failed" in hot
    results = {"machine": {"device": hot.get("device", "unknown"), "processor": processor(), "cores": len(os.sched_getaffinity(0)),
                           "load average at the start": round(load, 1), "PyTorch": "none" if failed else torch_version(),
                           "repetitions": REPETITIONS, **machine.describe()},
               "hot_path": hot, "replays": run_replays(machine)}
    stem = write_results(machine, arguments.out, results, markdown(results), "-bench")
    failed = failed or any("failed" in result for row in results["replays"].values() for result in row.values())
    print(f"{'something did not run' if failed else 'all has run'}; {stem}.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
