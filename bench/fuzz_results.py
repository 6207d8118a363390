"""Turns the logs of fuzz.sh, which calls it, into one results file (.md, .json)."""

import argparse
import datetime
import json
import pathlib
import re
import subprocess

from collect import ROOT, machine


def figures(log):
    """What libFuzzer printed: executions, executions a second, edges and features covered, inputs kept, findings."""
    stat = {key: int(value) for key, value in re.findall(r"^stat::(\w+):\s+(\d+)", log, re.MULTILINE)}
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)
    edges, features, corpus = map(int, covered[-1]) if covered else (0, 0, 0)
    instrumented = re.search(r"INFO: Loaded \d+ modules?\s+\((\d+) inline 8-bit counters\)", log)
    return {
        "executions": stat.get("number_of_executed_units", 0),
        "executions_per_second": stat.get("average_exec_per_sec", 0),
        "peak_rss_mib": stat.get("peak_rss_mb", 0),
        "edges": edges,
        "instrumented_edges": int(instrumented[1]) if instrumented else 0,
        "features": features,
        "corpus": corpus,
        "findings": len(re.findall(r"^SUMMARY: ", log, re.MULTILINE)),
    }


def markdown(result):
    lines = [
        f"# Fuzzing, {result['date']}, {result['machine']}",
        "",
        f"Command: `{result['command']}`, commit `{result['commit']}`. {result['description']}; {result['compiler']}, "
        "AddressSanitizer and UBSan.",
        "Edges: of the code that a target links, the whole library among it; features also count how often each was "
        "taken.",
        "",
        "| target | executions | a second | edges covered | of | features | corpus | peak RSS, MiB | findings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["targets"].items():
        lines.append(
            f"| `{name}` | {row['executions']:,} | {row['executions_per_second']:,} | {row['edges']:,} "
            f"| {row['instrumented_edges']:,} | {row['features']:,} | {row['corpus']:,} | {row['peak_rss_mib']:,} "
            f"| {row['findings']} |"
        )
    return "\n".join(lines) + "\n"


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--logs", type=pathlib.Path, required=True, help="folder with a NAME.log of each target")
    arguments.add_argument("--seconds", type=int, required=True)
    arguments.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results")
    options = arguments.parse_args()

    def output(*command):
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()

    name, description = machine()
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": name,
        "description": description,
        "commit": output("git", "-C", ROOT, "describe", "--always", "--dirty") or "unknown",
        "command": f"bench/fuzz.sh --seconds {options.seconds}",
        "seconds": options.seconds,
        "compiler": output("clang++", "--version").partition("\n")[0],
        "targets": {log.stem: figures(log.read_text(errors="replace")) for log in sorted(options.logs.glob("*.log"))},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{result['date']}-{name}-fuzz"
    (options.out / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / f"{stem}.md").write_text(markdown(result))
    print(f"\n{markdown(result)}\nwritten: {options.out / stem}.md and .json")


if __name__ == "__main__":
    main()
