"""Folders whose tests need a CUDA, real or fake, run in processes of their own.

The fake has to be there before torch is imported, and must not be there for the other tests. So a session of these
folders alone (`pytest tests/torch_cuda`) switches it on; in any other session each of their files is one test, which
runs that file in a session of its own. A file about PyTorch's memory is one test for each allocator (under_test.py).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / "fake_cuda"), str(TESTS / "torch_cuda")]
import fake_cuda  # noqa: E402
import under_test  # noqa: E402

CUDA_FOLDERS = [TESTS / "fake_cuda", TESTS / "torch_cuda"]
here = pytest.StashKey[bool]()
closing_lines = pytest.StashKey[list]()


def needs_cuda(path):
    return any(path.is_relative_to(folder) for folder in CUDA_FOLDERS)


def pytest_configure(config):
    paths = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    config.stash[here] = bool(paths) and all(map(needs_cuda, paths))
    config.stash[closing_lines] = []
    if config.stash[here]:
        fake_cuda.switch_on(devices=2, cublas=True)
        under_test.switch_on()


def pytest_report_header(config):
    if config.stash[here]:
        return f"CUDA: the {'fake' if fake_cuda.is_on() else 'real'} one, allocator: {under_test.chosen()}"


def pytest_pycollect_makemodule(module_path, parent):
    if needs_cuda(module_path) and not parent.config.stash[here]:
        return FileOfItsOwn.from_parent(parent, path=module_path)


class FileOfItsOwn(pytest.File):
    def collect(self):
        if not self.path.is_relative_to(TESTS / "torch_cuda"):
            yield SessionOfItsOwn.from_parent(self, name="in_a_session_of_its_own", allocator="native")
            return
        for allocator in under_test.sessions(self.path.name):
            yield SessionOfItsOwn.from_parent(self, name=f"in_a_session_of_its_own[{allocator}]", allocator=allocator)


class SessionOfItsOwn(pytest.Item):
    def __init__(self, *, allocator, **keywords):
        super().__init__(**keywords)
        self.allocator = allocator

    def runtest(self):
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"} | {"GPULEDGER_TEST_ALLOCATOR": self.allocator}
        done = subprocess.run([sys.executable, "-m", "pytest", "--color=no", str(self.path)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, cwd=TESTS.parent, timeout=900, env=environment)
        closing = (done.stdout.splitlines() or [""])[-1].strip("= ")
        self.config.stash[closing_lines].append(f"{self.path.relative_to(TESTS.parent)}, {self.allocator}: {closing}")
        assert done.returncode == 0, f"\n{done.stdout}\n{done.stderr}"

    def repr_failure(self, excinfo, style=None):
        return str(excinfo.value)


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[closing_lines]:
        terminalreporter.section("files that ran in sessions of their own")
        for line in config.stash[closing_lines]:
            terminalreporter.line(line)
