"""Runs what tests/gpu.sh has packed, and writes what came of it: OUT/<date>-<gpu>.md and .json, and OUT/log.txt."""

import argparse
import json
import pathlib
import re
import shutil
import sys
import tempfile
import time

from packed import Machine, table, write_results

TESTS = {  # program: (seconds that it may take, what it shows)
    "cuda_contract_test": (120, "the upstream's contract, sentence by sentence"),
    "cuda_upstream_test": (60, "devices, contexts, captures, forks"),
    "cuda_fences_test": (60, "fences, asked as seldom as possible"),
    "cuda_stream_test": (60, "streams with fills and copies on them, as `gpuledger replay` uses them"),
    "cuda_faults_test": (60, "each driver call failing in turn"),
    "cuda_allocator_test": (120, "captures, per-thread streams, destroyed streams, forks"),
    "cuda_model_test": (120, "the allocator against a naive map"),
    "cuda_peer_test": (60, "memory of one device used by another; needs two"),
    "cuda_ipc_test": (60, "memory mapped by another process"),
    "cuda_pluggable_test": (120, "the functions for PyTorch's pluggable allocator"),
    "open_cuda": (30, "an upstream that ends after main()"),
    "resource_contract_test": (180, "the cuda::mr resource's contract, in each form that it is held in"),
    "resource_deleted_stream_test": (60, "streams destroyed before the resource"),
    "nf4_on_device_test": (60, "bytes quantized on the host, dequantized by a kernel"),
    "pattern_test": (120, "a pattern in every block, checked at use and at free"),
    "remap_test": (120, "handles remapped while kernels run"),
}
# What compute-sanitizer must say: (arguments, what must be reported; None: nothing).
# Blocks in memory that was mapped cannot be announced: the tool (CUDA 13.0) answers every nvtxMemHeapRegister over it with
# "parameters is invalid", so ranges are bought whole here. What is mapped is looked at without announcement, below.
SANITIZED = [(f"{what} whole", expected) for what, expected in (("clean", None), ("freed", "Invalid __global__ write"),
                                                                ("overflow", "Invalid __global__ write"))]
FOUND = 86  # the exit code of compute-sanitizer that we ask for when it finds something


def run_test(machine, name, seconds):
    """One GoogleTest program: how many passed, what failed, what was skipped, and the figures it recorded."""
    print(f"{name} ...", flush=True)
    result = {"program": name, "passed": 0, "skipped": [], "failed": [], "figures": {}}
    with tempfile.TemporaryDirectory() as scratch:
        report = pathlib.Path(scratch) / "report.json"
        begin = time.monotonic()
        code, output = machine.run([machine.program(name), f"--gtest_output=json:{report}"], seconds)
        result["seconds"] = round(time.monotonic() - begin, 1)
        suites = json.loads(report.read_text())["testsuites"] if report.exists() else []
    known = {"name", "value_param", "type_param", "file", "line", "status", "result", "timestamp", "time", "classname",
             "failures", "skipped"}
    for suite in suites:
        for test in suite["testsuite"]:
            title = f"{suite['name']}.{test['name']}"
            if test.get("failures"):
                result["failed"].append({"test": title, "why": test["failures"][0]["failure"]})
            elif test["result"] == "SKIPPED":
                result["skipped"].append(title)
            else:
                result["passed"] += 1
            figures = {k: v for k, v in test.items() if k not in known}
            if figures:
                result["figures"][title] = figures
    if not suites and code == 0:
        result["passed"] = 1  # not a GoogleTest program
    if code != 0 and not result["failed"]:
        why = f"exit code {code}" if code is not None else f"not done after {seconds} s"
        result["failed"].append({"test": name, "why": f"{why}: {output[-500:]}"})
    return result


def run_sanitizer(machine):
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if machine.fake or not pathlib.Path(tool).exists():
        return {"not_run": "there is no kernel on the fake driver" if machine.fake else "no compute-sanitizer here"}
    options = [tool, "--tool=memcheck", "--nvtx=yes", "--report-api-errors=no", f"--error-exitcode={FOUND}"]
    rows = []
    for arguments, expected in SANITIZED:
        print(f"compute-sanitizer, {arguments} ...", flush=True)
        code, output = machine.run([*options, machine.program("sanitized"), *arguments.split()], 90)
        rows.append(judge(f"sanitized {arguments}", code, output, expected))
    print("compute-sanitizer, pattern_test ...", flush=True)
    code, output = machine.run([*options, machine.program("pattern_test"), "--gtest_filter=*NoWordOfAnyBlock*"], 120,
                               env={"GPULEDGER_GPU_OPERATIONS": "1500"})
    rows.append(judge("pattern_test, 1,500 operations, blocks not announced", code, output, None))
    return {"rows": rows}


def judge(what, code, output, expected):
    found = re.findall(r"^=+ (Invalid [^\n]*|ERROR SUMMARY: [^\n]*)", output, re.MULTILINE)
    named = re.search(r"called (\S+)", output)
    if expected is None:
        good = code == 0 and "ERROR SUMMARY: 0 errors" in output
    else:
        good = code == FOUND and expected in output
    listens = "a tool listens" in output
    return {"what": what, "expected": expected or "nothing", "found": found[:2], "named": named.group(1) if named else "",
            "heaps_seen": listens, "good": good and (listens or not what.startswith("sanitized"))}


def run_costs(machine):
    print("driver_costs ...", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "costs.json"
        code, output = machine.run([machine.program("driver_costs"), str(path)], 120)
        return json.loads(path.read_text()) if code == 0 else {"failed": output[-500:]}


def run_pytest(machine):
    tests = machine.folder / "python" / "tests" / "torch_cuda"
    if not tests.is_dir():
        return {"not_run": "not in the packed folder"}
    code, _ = machine.run([sys.executable, "-c", "import pytest, torch"], 120)
    if code != 0:
        return {"not_run": "python3 has no torch, or no pytest"}
    print("PyTorch's memory behaviour ...", flush=True)
    choice = {"GPULEDGER_TEST_CUDA": "fake" if machine.fake else "real", "GPULEDGER_FAKE_CUDA": str(machine.folder / "fake")}
    code, output = machine.run([sys.executable, "-B", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/torch_cuda"],
                               300, cwd=machine.folder / "python", env=choice)
    closing = (output.strip().splitlines() or [""])[-1].strip("= ")
    return {"closing": closing, "good": code == 0, "failed": re.findall(r"^FAILED ([^\n]*)", output, re.MULTILINE)}


def microseconds(nanoseconds):
    return f"{nanoseconds / 1000:.2f}" if nanoseconds < 10_000 else f"{nanoseconds / 1000:.1f}"


def costs_text(costs):
    if "rows" not in costs:
        return f"Not measured: {costs.get('failed', '')}\n"
    rows = [(r["call"] + (f" ({r['note']})" if r["note"] else ""), f"{r['bytes'] >> 20} MiB" if r["bytes"] else "",
             r["samples"], microseconds(r["median_ns"]), microseconds(r["p99_ns"])) for r in costs["rows"]]
    text = table(("call", "size", "samples", "median, µs", "99 %, µs"), rows)
    measured = {r["call"]: r["median_ns"] for r in costs["rows"]}
    model = [(call, microseconds(measured[call]), microseconds(ns), f"{measured[call] / ns:.2f}")
             for call, ns in costs["model_ns"].items() if call in measured]
    return (text + "\nCalls of the upstream (2 MiB handles), against the costs that the fake upstream models:\n\n" +
            table(("call", "measured, µs", "model, µs", "measured ÷ model"), model))


def markdown(results):
    machine = results["machine"]
    text = f"# First things on a GPU: {machine['device']}\n\n"
    text += "`tests/gpu.sh --pack DIR` here, `tests/gpu.sh --run DIR --out OUT` there.\n\n"
    text += table(("", ""), [(k, v) for k, v in machine.items()]) + "\n## Tests\n\n"
    text += table(("program", "shows", "passed", "failed", "skipped", "s"),
                  [(t["program"], TESTS[t["program"]][1], t["passed"], len(t["failed"]), len(t["skipped"]), t["seconds"])
                   for t in results["tests"]])
    for test in results["tests"]:
        for failure in test["failed"]:
            text += f"\n**{failure['test']} failed:**\n\n```\n{failure['why'].strip()}\n```\n"
    figures = [(title, ", ".join(f"{k.replace('_', ' ')}: {v}" for k, v in f.items()))
               for t in results["tests"] for title, f in t["figures"].items()]
    if figures:
        text += "\n" + table(("test", "figures"), figures)
    text += "\n## PyTorch's memory behaviour\n\n"
    pytest = results["pytest"]
    text += pytest.get("closing") or f"Not run: {pytest['not_run']}"
    text += "".join(f"\n- failed: {name}" for name in pytest.get("failed", [])) + "\n\n## compute-sanitizer (memcheck)\n\n"
    sanitizer = results["sanitizer"]
    if "rows" in sanitizer:
        text += table(("program", "must report", "reported", "block's owner named", "heaps seen", "verdict"),
                      [(r["what"], r["expected"], "<br>".join(r["found"]), r["named"], "yes" if r["heaps_seen"] else "no",
                        "as it should" if r["good"] else "**NOT as it should**") for r in sanitizer["rows"]])
    else:
        text += f"Not run: {sanitizer['not_run']}.\n"
    return text + "\n## What driver calls cost\n\n" + costs_text(results["costs"])


def failures(results):
    count = sum(len(t["failed"]) for t in results["tests"])
    count += sum(not r["good"] for r in results["sanitizer"].get("rows", []))
    return count + ("rows" not in results["costs"]) + (not results["pytest"].get("good", True))


def describe(machine, costs):
    version = costs.get("driver", 0)
    return {"device": costs.get("device", "unknown"), "CUDA of the driver": f"{version // 1000}.{version % 1000 // 10}",
            **machine.describe()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--fake", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.dir.resolve()
    machine = Machine(folder, arguments.out, arguments.fake, {"FAKE_CUDA_MEMORY": "8GiB", "FAKE_CUDA_DEVICES": "2"})
    costs = run_costs(machine)
    results = {"machine": describe(machine, costs),
               "tests": [run_test(machine, name, seconds) for name, (seconds, _) in TESTS.items()],
               "sanitizer": run_sanitizer(machine), "pytest": run_pytest(machine), "costs": costs}
    stem = write_results(machine, arguments.out, results, markdown(results))
    count = failures(results)
    print(f"{count} failure(s); {stem}.md" if count else f"all that ran has passed; {stem}.md")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
