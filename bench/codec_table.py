"""The 4-bit codec beside bitsandbytes' CPU backend; a part of collect.py. Names are those of codec_bench.cc."""

import json
import os

import codec_peer

ELEMENTS = 4096 * 4096
PEER_BLOCKS = {"64", "4096"}  # the peer takes seconds for each


def ours(path):
    """(operation, type, element, block) -> {threads: median GB/s}."""
    found = {}
    for entry in json.loads(path.read_text())["benchmarks"]:
        if entry.get("aggregate_name") != "median":
            continue
        operation, quant, element, block, threads = entry["run_name"].removesuffix("/real_time").split("/")
        row = found.setdefault((operation, quant, element, block), {})
        row[threads.removeprefix("threads:")] = entry["bytes_per_second"] / 1e9
    return found


def measure(path, repetitions):
    """A row for each operation and format; the peer runs on as many threads as there are cores."""
    speeds, rows = ours(path), []
    for quant, element, block in sorted({key[1:] for key in speeds}):
        peer = {}
        if block in PEER_BLOCKS:
            both = codec_peer.gigabytes_per_second(quant, element, int(block), ELEMENTS, repetitions, threads=os.cpu_count())
            peer = dict(zip(("Quantize", "Dequantize"), both))
            print(f"  bitsandbytes {quant} {element} {block}: {both[0]:.3f}, {both[1]:.3f} GB/s", flush=True)
        for operation in ("Quantize", "Dequantize"):
            rows.append(
                {
                    "operation": operation,
                    "type": quant,
                    "element": element,
                    "block": int(block),
                    "gpuledger": speeds[operation, quant, element, block],
                    "bitsandbytes": peer.get(operation),
                }
            )
    return rows


def markdown(rows):
    lines = [
        "## The 4-bit codec, GB/s of the 16- or 32-bit side",
        "",
        f"{ELEMENTS:,} elements in memory; medians. bitsandbytes' CPU backend has all cores; the ratio is ours on one core ÷ it, "
        "more is faster.",
        "",
        "| operation | type | element | block | gpuledger, 1 thread | 2 threads | bitsandbytes | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (r["operation"] == "Dequantize", r["type"] != "nf4", r["element"], r["block"])):
        peer = r["bitsandbytes"]
        one, two = r["gpuledger"]["1"], r["gpuledger"].get("2")
        cells = [f"{one:.2f}", f"{two:.2f}" if two else ""]
        cells += [f"{peer:.3f}", f"{one / peer:.0f}"] if peer else ["", ""]
        lines.append(f"| {r['operation'].lower()} | {r['type']} | {r['element']} | {r['block']} | {' | '.join(cells)} |")
    return lines
