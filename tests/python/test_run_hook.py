"""`gpuledger run -- python ...`: the examples, and programs that know nothing of gpuledger."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import textwrap

import pytest

from python_package import BINARY, PACKAGE, ROOT

HOOK = PACKAGE / "gpuledger" / "_hook"
EXAMPLES = ROOT / "examples"


def run(tmp_path, *words, flags=(), **environment):
    """Runs under the recorder: what it printed, its report as JSON, and its traces."""
    command = [BINARY, "run", "--stacks", "python", "-o", tmp_path / "%p.trace", *flags, "--", sys.executable, *words]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=tmp_path,
                          env={**clean, **environment})
    traces = sorted(tmp_path.glob("*.trace"), key=lambda path: path.stat().st_mtime)
    return done, traces


def report(trace):
    return json.loads(subprocess.check_output([BINARY, "report", "--json", trace], text=True, timeout=120))


def leaks_of(trace, owner):
    return [leak for leak in report(trace)["leaks"] if leak["owner"] == owner]


def test_the_leaky_load_names_each_weight_and_its_three_holders(tmp_path):
    done, [trace] = run(tmp_path, EXAMPLES / "leaky_load.py")
    assert done.returncode == 0 and "their sources: 1,572,864 bytes" in done.stdout
    found = report(trace)
    assert found["settled"] and found["classes"]["superseded"] == {"bytes": 6 * 512 * 256 * 2, "count": 6}
    leaks = [leak for leak in found["leaks"] if leak["class"] == "superseded"]
    names = {f"model.layers.{layer}.mlp.{name}.weight" for layer in range(3) for name in ("up_proj", "down_proj")}
    assert {leak["owner"] for leak in leaks} == names
    for leak in leaks:
        assert (leak["role"], leak["bytes"], leak["tensor"]) == ("source", 512 * 256 * 2, "float16 [512, 256]")
        value, element, parameter = leak["holders"]
        assert re.fullmatch(r"local 'value' of convert\(\) in leaky_load\.py:\d+", value)
        assert re.fullmatch(rf"element 0 of list under key '{leak['owner']}' of dict local 'input_dict' of load\(\) in leaky_load\.py:\d+", element)
        assert re.fullmatch(r"Parameter float16 \[512, 256\]: local 'parameter' of convert\(\) in leaky_load\.py:\d+", parameter)
        # The text has a line for layers that are alike.
        assert all(re.sub(r"layers\.\d", "layers.{0-2}", line) in done.stderr for line in (leak["owner"], value, element, parameter))


def test_a_program_that_looks_for_torch_before_it_imports_it_is_recorded_all_the_same(tmp_path):
    script = tmp_path / "looks.py"
    script.write_text(textwrap.dedent("""
        import importlib.util
        assert importlib.util.find_spec("torch") is not None and importlib.util.find_spec("torch") is not None
        import torch
        kept = torch.zeros(1 << 20)
        """))
    done, [trace] = run(tmp_path, script)
    assert done.returncode == 0 and report(trace)["settled"], done.stderr
    assert report(trace)["peak_bytes"] >= 4 << 20


def test_an_interrupt_from_the_terminal_reaches_the_program_once(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(textwrap.dedent("""
        import signal, time
        came = []
        signal.signal(signal.SIGINT, lambda *_: came.append(time.monotonic()))
        print("ready", flush=True)
        while not came or time.monotonic() - came[0] < 0.5:
            time.sleep(0.01)
        print("came", len(came), flush=True)
        """))
    child, terminal = pty.fork()
    if child == 0:
        os.execv(BINARY, [str(BINARY), "run", "-o", str(tmp_path / "%p.trace"), "--", sys.executable, str(script)])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1000)
    os.write(terminal, b"\x03")  # what Ctrl-C writes
    while b"came" not in said or not said.split(b"came")[1].strip():
        said += os.read(terminal, 1000)
    assert said.split(b"came")[1].split()[0] == b"1", said
    os.close(terminal)
    os.waitpid(child, 0)


def test_the_fixed_load_is_clean(tmp_path):
    done, [trace] = run(tmp_path, EXAMPLES / "fixed_load.py", flags=["--check"])
    assert done.returncode == 0, done.stderr
    assert "their sources: 0 bytes" in done.stdout and report(trace)["leaks"] == []


def test_the_growing_cache_is_growth(tmp_path):
    done, [trace] = run(tmp_path, EXAMPLES / "growing_cache.py", flags=["--check"])
    assert done.returncode == 23
    found = report(trace)
    assert [group["owner"] for group in found["growth"]] == ["attention/cache"]
    assert found["classes"]["kept"]["bytes"] == found["live_bytes"]


def test_the_held_exception_is_traceback_held(tmp_path):
    done, [trace] = run(tmp_path, EXAMPLES / "held_exception.py", flags=["--check"])
    assert done.returncode == 23
    [leak] = leaks_of(trace, "decoder/activations")
    assert (leak["class"], leak["bytes"], leak["count"]) == ("traceback-held", 3 * 65536 * 4, 1)
    [holder] = leak["holders"]
    assert re.fullmatch(r"local 'activations' of decode\(\) in held_exception\.py:\d+, held by the traceback of ValueError "
                        r"element 0 of list __main__\.failures", holder)


def test_the_cycle_is_a_cycle(tmp_path):
    done, [trace] = run(tmp_path, EXAMPLES / "cycle.py")
    [leak] = leaks_of(trace, "layer/buffer")
    assert (leak["class"], leak["severity"], leak["bytes"], leak["count"]) == ("cycle", "warning", 12 * 65536 * 4, 12)
    assert done.returncode == 0


def test_a_program_that_knows_nothing_of_gpuledger_is_recorded(tmp_path):
    done, [trace] = run(tmp_path, "-c", "import torch; kept = torch.ones(1000)")
    assert (done.returncode, done.stdout) == (0, "")
    found = report(trace)
    assert found["settled"] and found["live_bytes"] >= 4096 and found["leaks"] == []


def test_a_failing_program_keeps_its_code_and_its_locals_are_named(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import torch\ndef work():\n    scratch = torch.ones(1000)\n    raise SystemError('planted')\nwork()\n")
    done, [trace] = run(tmp_path, script)
    assert done.returncode == 1 and "SystemError: planted" in done.stderr
    [leak] = [leak for leak in report(trace)["leaks"] if leak["class"] == "traceback-held"]
    assert leak["holders"][0].startswith("local 'scratch' of work() in fails.py:4, held by the traceback")


def test_without_torch_the_hook_does_nothing(tmp_path):
    done, traces = run(tmp_path, "-c", "import sys; print('ctypes' in sys.modules, 'gpuledger' in sys.modules)")
    assert (done.returncode, done.stdout) == (0, "False False\n")
    assert traces == [] and "nothing was recorded" in done.stderr


def test_the_users_own_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('the own one', __name__, __file__)\n")
    done, _ = run(tmp_path, "-c", "import sys, sitecustomize; print(any('_hook' in p for p in sys.path))", PYTHONPATH=str(tmp_path))
    assert done.stdout == f"the own one sitecustomize {tmp_path}/sitecustomize.py\nFalse\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_are_settled_too(tmp_path, method):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(f"""
        import multiprocessing
        import torch

        kept = []

        def work(count):
            kept.append(torch.ones(count))

        if __name__ == "__main__":
            torch.set_num_threads(1)
            parent = torch.ones(1000)
            worker = multiprocessing.get_context("{method}").Process(target=work, args=(100_000,))
            worker.start()
            worker.join()
            print(worker.exitcode)
        """))
    done, traces = run(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    reports = [report(trace) for trace in traces]
    assert all(found["settled"] for found in reports)
    assert any(found["in_use_bytes"] >= 400_000 for found in reports)


def test_a_hook_that_cannot_attach_says_so_and_lets_the_program_run(tmp_path):
    done, _ = run(tmp_path, "-c", "import torch; print(torch.ones(2).sum().item())", GPULEDGER_TORCH_LIBRARY="/nonexistent.so")
    assert (done.returncode, done.stdout) == (0, "2.0\n")
    assert "gpuledger: CPU tensors are not charged: " in done.stderr


def test_the_modules_that_are_watched_keep_their_loaders():
    code = "import torch, multiprocessing.util as u; print(type(torch.__loader__).__name__, type(u.__spec__.loader).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(HOOK), "GPULEDGER_ATTACH": "torch-cpu"})
    assert (done.stdout, done.stderr) == ("SourceFileLoader SourceFileLoader\n", "")
