"""Gathers the figures of a run (allocator, replays, codec, loads) and writes one results file (.md, .json).

Called by run.sh, which says how. Every figure is a median of repetitions; every ratio is of two medians of one run.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess

os.environ["HF_HUB_OFFLINE"] = "1"

import bitsandbytes
import codec_table
import hot_path
import loads
import record_table
import replay_table
import report_table
import torch
import torch_path
import transformers

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


def markdown(result):
    rows = result["allocator"]

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
    cases = [(text, f"pair/{{}}/{size}") for size, text in SIZES.items()]
    cases += [(f"random, {live:,} live", f"random/{{}}/live:{live}") for live in (1000, 10000)]
    for text, pattern in cases:
        ours, malloc, torch_cpu = (pattern.format(name) for name in ("gpuledger", "malloc", "torch"))
        lines.append(
            f"| {text} | {ns(ours)} | {ns(malloc)} | {ratio(ours, malloc)} | {ns(torch_cpu)} | {ratio(ours, torch_cpu)} |"
        )
    lines += ["", "## `usage(owner)`, nanoseconds a call", "", "| threads writing meanwhile | gpuledger | 90 % |", "|---|---|---|"]
    for writers in (0, 1, 2, 4, 16):
        name = f"usage/gpuledger/writers:{writers}"
        lines.append(f"| {writers} | {ns(name)} | {rows[name]['ns_90_percent']:,.0f} |")
    machine = f"this machine ({result['description']})"
    lines += ["", *hot_path.markdown(result["hot_path"], result["hot_path_device"], machine)]
    lines += ["", *torch_path.markdown(result["torch_path"], f"This machine ({result['description']})")]
    lines += ["", *record_table.markdown(result["record"]["loop"], result["record"]["benchmarks"])]
    lines += ["", *report_table.markdown(result["report"])]
    lines += ["", *replay_table.markdown(result["replay"])]
    lines += ["", *codec_table.markdown(result["codec"]), "", *loads.markdown(result["loads"]), ""]
    return "\n".join(lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--allocator", type=pathlib.Path, required=True, help="JSON written by allocator_bench")
    arguments.add_argument("--record", type=pathlib.Path, required=True, help="JSON written by record_table.py")
    arguments.add_argument("--hot-path", type=pathlib.Path, required=True, help="JSON written by torch_cuda_bench")
    arguments.add_argument("--torch-path", type=pathlib.Path, required=True, help="JSON written by torch_path.py")
    arguments.add_argument("--codec", type=pathlib.Path, required=True, help="JSON written by codec_bench")
    arguments.add_argument("--gpuledger", required=True, help="the gpuledger command")
    arguments.add_argument("--scratch", required=True, help="directory for synthetic models, 10 GB")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results")
    options = arguments.parse_args()

    name, description = machine()
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
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, bitsandbytes {bitsandbytes.__version__}, "
        f"glibc {platform.libc_ver()[1]}",
        "allocator": hot_path.medians(options.allocator),
        "record": json.loads(options.record.read_text()),
        "report": report_table.measure(options.gpuledger, options.scratch, options.repetitions),
        "hot_path": hot_path.medians(options.hot_path),
        "hot_path_device": hot_path.device(options.hot_path),
        "torch_path": json.loads(options.torch_path.read_text()),
        "replay": replay_table.measure(options.gpuledger, options.repetitions),
        "codec": codec_table.measure(options.codec, options.repetitions),
        "loads": loads.measure(options.gpuledger, options.scratch, ["all-MiniLM-L6-v2", *loads.SYNTHETIC], options.repetitions),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{result['date']}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    stem.with_suffix(".md").write_text(markdown(result))
    print(f"\n{markdown(result)}\nwritten: {stem}.md and .json")


if __name__ == "__main__":
    main()
