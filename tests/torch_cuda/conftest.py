"""What the tests of PyTorch's memory share, on a GPU and on the fake CUDA alike. Imports torch only when tests run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap

import fake_cuda
import interpreters
import pytest
import under_test
from gpuledger_build import PACKAGE


def pytest_configure(config):
    config.addinivalue_line("markers", "two_devices: skipped where there are fewer")
    config.addinivalue_line("markers", "only_under(*allocators, why): skipped under the others, for that reason")


def pytest_runtest_setup(item):
    for marker in item.iter_markers("only_under"):
        if under_test.chosen() not in marker.args:
            pytest.skip(f"only under {', '.join(marker.args)}: {marker.kwargs['why']}")
    if item.get_closest_marker("two_devices"):
        import torch

        if torch.cuda.device_count() < 2:
            pytest.skip("needs two devices")


def pytest_unconfigure(config):
    interpreters.end_all()


@pytest.fixture(autouse=True)
def settled():
    import cuda_memory

    cuda_memory.settle()
    yield
    cuda_memory.settle()


@pytest.fixture
def grown(settled):
    import cuda_memory

    return cuda_memory.Grown()


@pytest.fixture
def geometry():
    return under_test.geometry()


@pytest.fixture
def limit():
    """Lets this process have so many bytes beyond what it has reserved."""
    import torch

    def set_limit(size):
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)

    yield set_limit
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def busy():
    """`with busy(stream):` keeps the stream from finishing what is submitted to it before the block ends."""

    @contextlib.contextmanager
    def keep(stream):
        import torch

        if fake_cuda.is_on():
            fake_cuda.driver().fakeCudaHoldEvents(1)
            try:
                yield
            finally:
                fake_cuda.driver().fakeCudaHoldEvents(0)
        else:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(4_000_000_000)  # clock cycles: about two seconds
            yield
            stream.synchronize()

    return keep


@pytest.fixture
def own_process(tmp_path):
    """Runs a script as a program of its own (interpreters.py), which has to end well and say nothing on stderr but what `said`, a
    pattern, allows; returns what it printed."""

    def run(script: str, said: str = "", **environment: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script))
        done = interpreters.run(path, {**os.environ, **environment})
        assert done.returncode == 0 and re.fullmatch(said, done.stderr), done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def outcome(tmp_path):
    """Runs a script that has gpuledger, from a build of this checkout, as a program of its own; what became of it. With GPULEDGER_
    variables in an interpreter of its own too: they act at `import torch`."""

    def run(script: str, **environment: str) -> subprocess.CompletedProcess:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script))
        paths = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(PACKAGE)]))
        full = {**os.environ, "PYTHONPATH": paths, **environment}
        if not any(name.startswith("GPULEDGER_") for name in environment):
            return interpreters.run(path, full)
        return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, env=full)

    return run


@pytest.fixture
def own_python(outcome):
    """The same for a script that has to end well and say nothing on stderr; returns what it printed."""

    def run(script: str, **environment: str) -> str:
        done = outcome(script, **environment)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run


WORKER = """
import gc, json, sys, traceback, torch
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "script", "exec"), {})
        problem = None
    except BaseException:
        problem = traceback.format_exc()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    print(json.dumps(problem), flush=True)
"""


@pytest.fixture(scope="module")
def process_with():
    """process_with(NAME=value) runs scripts one after the other in an interpreter with that environment."""
    workers = {}

    def with_environment(**environment: str):
        key = tuple(sorted(environment.items()))
        if key not in workers:
            workers[key] = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            text=True, env={**os.environ, **environment})
        worker = workers[key]

        def run(script: str) -> None:
            worker.stdin.write(json.dumps(script) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
            assert answer, f"the interpreter ended with {worker.wait(timeout=60)}"
            assert (problem := json.loads(answer)) is None, problem

        return run

    yield with_environment
    for worker in workers.values():
        worker.stdin.close()
        assert worker.wait(timeout=60) == 0
        worker.stdout.close()
