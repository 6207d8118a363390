"""Runs PyTorch on gpuledger's allocator on a GPU, out of what tests/gpu.sh has packed: the tests, then the measurements.

    torch_on_device.py --dir PACK --out OUT [--fake] [--part tests|figures] [--seconds 500]

Writes OUT/<date>-<gpu>-torch.md and .json (of the tests alone: -torch-tests), and OUT/log.txt. A part of its own, since it needs no more than PyTorch and
pytest there, and the time that both take together is limited.
"""

import argparse
import json
import pathlib
import re
import sys
import time

from packed import Machine, table, write_results

# The files whose tests are about the allocator, the most telling first: what the time does not suffice for is left out.
FILES = ("test_memory_behaviour", "test_pools_and_graphs", "test_checkpoints", "test_training_memory", "test_memory_history",
         "test_pool_settings", "test_running_out", "test_history_modes", "test_snapshot_figures", "test_memory_functions",
         "test_two_devices", "test_parity", "test_ipc", "test_observe")


def run_file(machine, name, allocator, seconds):
    folder = machine.folder / "python"
    environment = {"GPULEDGER_TEST_CUDA": "fake" if machine.fake else "real", "GPULEDGER_FAKE_CUDA": str(machine.folder / "fake"),
                   "GPULEDGER_TEST_ALLOCATOR": allocator, "GPULEDGER_LIBRARY": str(machine.folder / "lib/libgpuledger.so.0"),
                   "GPULEDGER_TORCH_LIBRARY": str(machine.folder / "lib/libgpuledger_torch.so.0"),
                   "GPULEDGER_TORCH_CUDA_LIBRARY": str(machine.folder / "lib/libgpuledger_torch_cuda.so.0")}
    print(f"{name} ...", flush=True)
    begin = time.monotonic()
    code, output = machine.run([sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", f"tests/torch_cuda/{name}.py"],
                               seconds, cwd=folder, env=environment)
    closing = (output.strip().splitlines() or [""])[-1].strip("= ") if code is not None else f"not done after {seconds:.0f} s"
    return {"file": name, "closing": closing, "good": code == 0, "seconds": round(time.monotonic() - begin, 1),
            "failed": re.findall(r"^FAILED ([^\n]*)", output, re.MULTILINE)}


def measure(machine, repetitions, seconds, out):
    """bench/torch_path.py, with a model of 1 billion parameters on a GPU."""
    path = out / "torch_path.json"
    size = "tiny" if machine.fake else "1b"
    fake = ["--fake", str(machine.folder / "fake")] if machine.fake else []
    code, output = machine.run([sys.executable, "-B", str(machine.folder / "bench/torch_path.py"), *fake, "--size", size, "--repetitions", str(repetitions),
                                "--library", str(machine.folder / "lib/libgpuledger_torch_cuda.so.0"), "--out", str(path),
                                "--seconds", str(seconds - 60)], seconds)
    if code != 0:
        return {"failed": f"exit code {code}: {output[-500:]}" if code is not None else f"not done after {seconds:.0f} s"}
    return json.loads(path.read_text()) | {"text": output}


def markdown(results):
    text = f"# PyTorch on gpuledger's allocator: {results['machine']['device']}\n\n"
    text += table(("", ""), list(results["machine"].items())) + "\n"
    if results["tests"]:
        text += "## Tests (`tests/torch_cuda`), allocator: ours\n\n"
        text += table(("file", "", "s"), [(r["file"], r["closing"], r["seconds"]) for r in results["tests"]])
        text += "".join(f"\n- failed: {name}" for r in results["tests"] for name in r["failed"]) + "\n\n"
    if figures := results["figures"]:
        text += (figures.get("text") or f"Not measured: {figures['failed']}") + "\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--seconds", type=float, default=500, help="for tests and measurements together")
    parser.add_argument("--part", choices=("tests", "figures", "all"), default="all", help="where one time limit does not suffice for both")
    parser.add_argument("--repetitions", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.seconds
    machine = Machine(arguments.dir.resolve(), arguments.out, arguments.fake, {"FAKE_CUDA_MEMORY": "80GiB", "FAKE_CUDA_DEVICES": "2", "FAKE_CUDA_CUBLAS": "1"})
    code, device = machine.run([sys.executable, "-c", "import torch; print(torch.cuda.get_device_name(0), 'torch', torch.__version__)"], 120)
    device = device.strip().splitlines()[-1] if code == 0 else "unknown"
    results = {"machine": {"device": device, **machine.describe()}, "tests": [], "figures": {}}
    suffix = {"all": "-torch", "tests": "-torch-tests", "figures": "-torch"}[arguments.part]
    if arguments.part != "tests":
        results["figures"] = measure(machine, arguments.repetitions, end - time.monotonic(), arguments.out)
        stem = write_results(machine, arguments.out, results, markdown(results), suffix)
    for name in FILES if arguments.part != "figures" else ():
        left = end - time.monotonic()
        if left > 20:
            results["tests"].append(run_file(machine, name, "ours", min(left, 150)))
            stem = write_results(machine, arguments.out, results, markdown(results), suffix)  # what is known so far outlives the machine
    failed = sum(not r["good"] for r in results["tests"]) + bool(results["figures"].get("failed"))
    print(f"{failed} failure(s); {stem}.md" if failed else f"all that ran has passed; {stem}.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
