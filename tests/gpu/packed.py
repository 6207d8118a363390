"""What the programs of a packed folder (pack.sh) run in, and how their results are written."""

import datetime
import json
import os
import re
import subprocess
import time


class Machine:
    """Runs programs from the packed folder, and keeps the log. `fake_options` are FAKE_CUDA_ variables, if it is the fake."""

    def __init__(self, folder, out, fake, fake_options):
        self.folder, self.fake = folder, fake
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("FAKE_CUDA_")}
        # A run path of the programs does not reach what their libraries need.
        found = [str(folder / "lib"), *([str(folder / "fake")] if fake else []), os.environ.get("LD_LIBRARY_PATH", "")]
        self.environment["LD_LIBRARY_PATH"] = ":".join(filter(None, found))
        # Where no CUDA runtime is found, ours does: it runs on any driver.
        self.environment["GPULEDGER_TEST_CUDART"] = str(folder / "fake" / "libcudart.so.13")
        if fake:
            self.environment.update(fake_options)
        self.log = open(out / "log.txt", "w", encoding="utf-8")

    def run(self, command, seconds, **more):
        """(exit code, output); the code is None if the time was up. With `stdout`, a file, only stderr is the output."""
        self.log.write(f"\n$ {' '.join(map(str, command))}\n")
        begin = time.monotonic()
        try:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            if "stdout" in more:
                streams = {"stdout": more["stdout"], "stderr": subprocess.PIPE}
            done = subprocess.run(command, **streams, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=seconds,
                                  env={**self.environment, **more.get("env", {})}, cwd=more.get("cwd"))
            code, output = done.returncode, done.stderr if "stdout" in more else done.stdout
        except subprocess.TimeoutExpired as late:
            code, output = None, (late.stdout or late.stderr or b"").decode(errors="replace")
        self.log.write(f"{output}\n[exit code {code}, {time.monotonic() - begin:.1f} s]\n")
        self.log.flush()
        return code, output

    def program(self, name):
        return str(self.folder / "bin" / name)

    def describe(self):
        """The lines that every results file has about the machine, but for the device's name."""
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        code, smi = (None, "") if self.fake else self.run(query, 30)
        commit = self.folder / "commit"
        return {"nvidia-smi": smi.strip().replace("\n", "; ") if code == 0 else "none",
                "commit": commit.read_text().strip() if commit.exists() else "unknown",
                "date": datetime.date.today().isoformat()}


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]) + "\n"


def write_results(machine, out, results, text, suffix=""):
    """OUT/<date>-<gpu><suffix>.json and .md; returns the path without its ending. results["machine"] has date and device."""
    name = re.search(r"\b([A-Z]+\d+\w*)\b", results["machine"]["device"])
    gpu = name.group(1).lower() if name and not machine.fake else "fake"
    stem = out / f"{results['machine']['date']}-{gpu}{suffix}"
    (out / f"{stem.name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / f"{stem.name}.md").write_text(text)
    print("\n" + text)
    return stem
