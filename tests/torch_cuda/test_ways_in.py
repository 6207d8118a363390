"""Switching the ways into CUDA memory on: from Python, with GPULEDGER_TORCH at `import torch`, and under `gpuledger run`.

Each script is a process of its own, since a process has one way in.
"""

import json
import os
import subprocess
import sys

import pytest
from gpuledger_build import BINARY, LIBRARY, PACKAGE

pytestmark = pytest.mark.skipif(not LIBRARY.exists() or not BINARY.exists(), reason="gpuledger is not built")

LINE = "gpuledger: "


@pytest.fixture
def installed_package(tmp_path):
    """A folder for PYTHONPATH that says what an installed package says: its entry point."""
    metadata = tmp_path / "site" / "gpuledger-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gpuledger\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\ngpuledger = gpuledger_autoload:on_import_torch\n")
    return str(metadata.parent)


def test_the_package_declares_the_entry_point(installed_package):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"] == {"torch.backends": {"gpuledger": "gpuledger_autoload:on_import_torch"}}
    assert "tracing/python/gpuledger_autoload" in project["tool"]["scikit-build"]["wheel"]["packages"]


# At `import torch`

LOADED = "import sys, torch; print(sorted(name for name in sys.modules if name.startswith('gpuledger')))"


@pytest.mark.parametrize("environment", [{}, {"GPULEDGER_TORCH": "off"}, {"GPULEDGER_TORCH": ""}])
def test_off_imports_nothing_but_the_entry_point(own_python, installed_package, environment):
    assert own_python(LOADED, PYTHONPATH=installed_package, **environment) == "['gpuledger_autoload']\n"


def test_a_way_is_switched_on_by_the_environment_and_cpu_tensors_stay_pytorchs(own_python, installed_package):
    assert own_python("""
        import torch
        import gpuledger
        from gpuledger._ways import way_in
        print(way_in(), torch.cuda.is_initialized())
        on_the_cpu = torch.ones(1000)
        tensor = torch.empty(1000, dtype=torch.uint8, device="cuda")
        print(gpuledger.usage(), torch.cuda.memory_allocated())
        import gpuledger.torch  # for what else is in it
        on_the_cpu = torch.ones(1000)
        print(gpuledger.usage(), gpuledger.torch.cpu_installed())
        """, PYTHONPATH=installed_package, GPULEDGER_TORCH="observe") == "observe False\n1024 1024\n1024 False\n"


@pytest.mark.parametrize("way", ["allocator", "observe", "pluggable"])
def test_threads_of_a_backward_pass_pay_as_their_caller(own_python, installed_package, way):
    assert own_python("""
        import torch
        import gpuledger
        x = torch.ones(1024, device="cuda", requires_grad=True)
        kept = []
        x.register_hook(lambda gradient: kept.append(torch.empty(1 << 20, dtype=torch.uint8, device="cuda")))
        loss = (x * x).sum()
        with gpuledger.owner("step"):
            loss.backward()
        print(gpuledger.usage("step") >= 1 << 20)
        """, PYTHONPATH=installed_package, GPULEDGER_TORCH=way) == "True\n"


@pytest.mark.parametrize("package", ["whole", "broken"])
def test_a_stderr_that_is_closed_never_breaks_import_torch(outcome, installed_package, tmp_path, package):
    if package == "broken":
        (tmp_path / "site" / "gpuledger").mkdir()
        (tmp_path / "site" / "gpuledger" / "__init__.py").write_text("raise RuntimeError('planted')\n")
    done = outcome("""
        import sys
        class Closed:
            def write(self, text):
                raise ValueError("I/O operation on closed file")
            def flush(self):
                pass
        sys.stderr = Closed()
        import torch
        print("on")
        """, PYTHONPATH=installed_package, GPULEDGER_TORCH="everything")
    assert (done.returncode, done.stdout) == (0, "on\n"), done.stderr


def test_an_unknown_way_is_one_line(outcome, installed_package):
    done = outcome("import torch; print('on')", PYTHONPATH=installed_package, GPULEDGER_TORCH="everything")
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert done.stderr == (LINE + "GPULEDGER_TORCH=everything is none of allocator, pluggable, observe and off: CUDA memory is not recorded\n")


@pytest.mark.parametrize("way", ["allocator", "pluggable", "observe"])
def test_a_library_that_is_missing_never_breaks_import_torch(outcome, installed_package, way):
    nowhere = {name: "/nowhere/lib.so" for name in ("GPULEDGER_LIBRARY", "GPULEDGER_TORCH_LIBRARY", "GPULEDGER_TORCH_CUDA_LIBRARY")}
    done = outcome("import torch; print(torch.ones(2, device='cuda').device)", PYTHONPATH=installed_package, GPULEDGER_TORCH=way, **nowhere)
    assert (done.returncode, done.stdout) == (0, "cuda:0\n")
    [line] = done.stderr.splitlines()
    assert line.startswith(LINE + "CUDA memory is not recorded: ImportError: /nowhere/lib.so")


def test_a_package_that_cannot_be_imported_never_breaks_import_torch(outcome, installed_package, tmp_path):
    broken = tmp_path / "site" / "gpuledger"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('planted\\nin two lines')\n")
    done = outcome("import torch; print('on')", PYTHONPATH=installed_package, GPULEDGER_TORCH="observe")
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert done.stderr == LINE + "CUDA memory is not recorded: RuntimeError: planted in two lines\n"


def test_an_attach_that_fails_when_cuda_starts_is_one_line_and_cuda_works(outcome, installed_package):
    done = outcome("""
        import torch
        from gpuledger._ways import way_in
        print(torch.ones(2, device="cuda").device, way_in())
        """, PYTHONPATH=installed_package, GPULEDGER_TORCH="observe", PYTORCH_ALLOC_CONF="backend:cudaMallocAsync")
    assert (done.returncode, done.stdout) == (0, "cuda:0 None\n")
    [line] = done.stderr.splitlines()
    assert line.startswith(LINE + "CUDA memory is not recorded: observe watches PyTorch's native allocator")


# From Python


def test_install_decides_about_cpu_tensors_too(own_python):
    assert own_python("""
        import torch, gpuledger, gpuledger.torch
        print(gpuledger.torch.cpu_installed(), gpuledger.torch.way_in())
        print(gpuledger.torch.install("observe"), gpuledger.torch.cpu_installed())
        print(gpuledger.torch.install("observe", cpu=True), gpuledger.torch.cpu_installed())
        on_the_cpu, on_the_gpu = torch.ones(1000), torch.empty(1000, dtype=torch.uint8, device="cuda")
        print(gpuledger.usage())
        """) == "True None\nobserve False\nobserve True\n5120\n"


def test_without_a_word_about_the_cpu_a_second_install_leaves_it_as_it_is(own_python):
    assert own_python("""
        import torch, gpuledger.torch
        gpuledger.torch.install("observe", cpu=True)
        gpuledger.torch.install("observe")
        print(gpuledger.torch.cpu_installed())
        gpuledger.torch.install("observe", cpu=False)
        print(gpuledger.torch.cpu_installed())
        gpuledger.torch.install_cpu()
        gpuledger.torch.install("observe")
        print(gpuledger.torch.cpu_installed())
        """) == "True\nFalse\nTrue\n"


def test_where_the_libtorch_part_is_missing_a_way_in_is_still_open(outcome):
    done = outcome("""
        import torch, gpuledger, gpuledger.torch
        print(gpuledger.torch.install("allocator"), gpuledger.torch.install("allocator", cpu=True))
        kept = torch.empty(1000, dtype=torch.uint8, device="cuda")
        print(gpuledger.balance("cuda").in_use)
        """, GPULEDGER_TORCH_LIBRARY="/nowhere/lib.so")
    assert (done.returncode, done.stdout) == (0, "allocator allocator\n1024\n"), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith(LINE + "CPU tensors are not charged: /nowhere/lib.so") for line in lines), lines


def test_to_ask_for_the_balance_of_cuda_does_not_start_it(own_python):
    assert own_python("""
        import torch, gpuledger, gpuledger.torch
        gpuledger.torch.install("observe")
        try:
            gpuledger.balance("cuda")
        except LookupError as error:
            print(str(error)[:20], torch.cuda.is_initialized())
        """) == "cuda:0 has no ledger False\n"


def test_observe_may_come_late_and_the_other_ways_say_what_to_do_instead(own_python):
    own_python("""
        import torch, gpuledger
        from gpuledger._ways import install, way_in
        early = torch.empty(1000, dtype=torch.uint8, device="cuda")
        for way in ("allocator", "pluggable"):
            try:
                install(way)
            except RuntimeError as error:
                assert f"GPULEDGER_TORCH={way}" in str(error) and "before" in str(error), error
            else:
                raise AssertionError(way)
            assert way_in() is None
        assert install("observe") == "observe"
        assert gpuledger.usage("unattributed") == 1024
        """)


def test_a_process_has_one_way_in(own_python):
    own_python("""
        from gpuledger._ways import install, way_in
        install("observe")
        try:
            install("allocator")
        except RuntimeError as error:
            assert "'observe'" in str(error) and "GPULEDGER_TORCH=allocator" in str(error), error
        else:
            raise AssertionError("installed")
        try:
            install("both")
        except ValueError as error:
            assert "allocator, pluggable, observe" in str(error)
        assert install("observe") == way_in() == "observe"
        """)


def test_pytorch_without_cuda_is_one_line_and_the_cpu_is_charged(outcome):
    done = outcome("""
        import torch
        torch.version.cuda = None
        import gpuledger
        from gpuledger._ways import install
        print(install("allocator", cpu=True))
        kept = torch.ones(1000)
        print(gpuledger.usage())
        """)
    assert (done.returncode, done.stdout) == (0, "None\n4096\n")
    [line] = done.stderr.splitlines()
    assert line.startswith(LINE + "PyTorch ") and line.endswith("was built without CUDA: there is no CUDA memory to record")


def test_the_allocator_way_charges_every_tensor_and_keeps_pytorchs_statistics(own_python, installed_package):
    script = """
        import torch, gpuledger
        from gpuledger._ways import install, way_in
        assert install("allocator") == way_in() == "allocator" and not torch.cuda.is_initialized()
        with gpuledger.owner("allocator"):
            tensor = torch.empty(1000, dtype=torch.uint8, device="cuda")
        assert gpuledger.usage("allocator") == torch.cuda.memory_allocated() == gpuledger.usage() == 1024
        """
    own_python(script)
    own_python(script, PYTHONPATH=installed_package, GPULEDGER_TORCH="allocator")  # which has installed it before


def test_where_the_allocator_way_is_left_out_of_the_build_it_is_pluggable(outcome):
    done = outcome("""
        import torch, gpuledger
        from gpuledger._ways import install
        print(install("allocator"), install("pluggable"), install("allocator"))
        """, GPULEDGER_TORCH_CUDA_LIBRARY="/nowhere/lib.so")
    assert (done.returncode, done.stdout) == (0, "pluggable pluggable pluggable\n"), done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(LINE + "/nowhere/lib.so cannot be read") and "pluggable" in line


def test_the_pluggable_way_charges_every_tensor(own_python):
    own_python("""
        import torch, gpuledger
        from gpuledger._ways import install, way_in
        assert install("pluggable") == way_in() == "pluggable"
        with gpuledger.owner("pluggable"):
            tensor = torch.empty(1000, dtype=torch.uint8, device="cuda")
        assert gpuledger.usage("pluggable") == 1024
        """)


def test_at_another_pytorch_version_the_allocator_way_is_pluggable_and_says_so(outcome):
    done = outcome("""
        import torch
        torch.__version__ = "9.9.0+cu130"
        import gpuledger
        from gpuledger._ways import install, way_in
        print(install("allocator"), way_in())
        tensor = torch.empty(1000, dtype=torch.uint8, device="cuda")
        print(gpuledger.usage())
        """)
    assert (done.returncode, done.stdout) == (0, "pluggable pluggable\n1024\n"), done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(LINE) and "2.11" in line and "9.9.0+cu130" in line and "pluggable" in line


def test_at_another_pytorch_version_observe_attaches_to_nothing(outcome):
    done = outcome("""
        import torch
        torch.__version__ = "9.9.0+cu130"
        from gpuledger._ways import install, way_in
        try:
            install("observe")
        except ImportError as error:
            print(error, way_in())
        """)
    assert done.stdout == "libgpuledger_torch_cuda.so was built for PyTorch 2.11, but this is 9.9.0+cu130 None\n"


# Under `gpuledger run`


@pytest.fixture
def recorded(tmp_path):
    def run(script, *flags, **environment):
        (tmp_path / "train.py").write_text(script)
        done = subprocess.run([BINARY, "run", "--stacks", "python", "-o", tmp_path / "%p.trace", *flags, "--", sys.executable, tmp_path / "train.py"],
                              capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, env={**os.environ, **environment})
        reports = [json.loads(subprocess.check_output([BINARY, "report", "--json", trace], text=True))
                   for trace in sorted(tmp_path.glob("*.trace"), key=lambda path: path.stat().st_mtime)]
        return done, reports

    return run


TRAIN = """
import torch
assert "gpuledger" in __import__("sys").modules and not torch.cuda.is_initialized()
kept = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")
weight = torch.ones(64, 64, device="cuda", requires_grad=True)
for _ in range(50):  # on a thread of PyTorch's own
    (weight * weight).sum().backward()
print(torch.cuda.get_allocator_backend())
"""


@pytest.mark.parametrize("flags, environment, backend", [
    ([], {}, "gpuledger"), (["--way", "observe"], {}, "native"), ([], {"GPULEDGER_TORCH": "observe"}, "native"),
    (["--way", "observe"], {"GPULEDGER_TORCH": "off"}, "native"), (["--way", "pluggable"], {}, "pluggable")])
def test_run_records_cuda_tensors_of_a_program_that_knows_nothing_of_it(recorded, flags, environment, backend):
    done, [report] = recorded(TRAIN, *flags, **environment)
    assert (done.returncode, done.stdout) == (0, backend + "\n"), done.stderr
    assert report["settled"] and report["in_use_bytes"] >= 3 << 20 and report["leaks"] == []


@pytest.mark.parametrize("flags, environment", [(["--way", "off"], {}), (["--attach", "torch-cpu"], {}), ([], {"GPULEDGER_TORCH": "off"})])
def test_run_leaves_cuda_alone_if_it_is_told_to(recorded, flags, environment):
    done, [report] = recorded(TRAIN + "on_the_cpu = torch.ones(1000)\n", *flags, **environment)
    assert done.returncode == 0, done.stderr
    assert 4096 <= report["peak_bytes"] < 3 << 20


@pytest.mark.parametrize("way", ["allocator", "observe"])
def test_run_reaches_child_processes_and_loader_workers(recorded, way):
    done, reports = recorded("""
import subprocess, sys
import torch

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.full((100_000,), float(index))

if __name__ == "__main__":
    weights = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")
    for batch in torch.utils.data.DataLoader(Numbers(), batch_size=4, num_workers=2):
        there = batch.cuda()
    subprocess.run([sys.executable, "-c", "import torch; kept = torch.empty(5 << 20, dtype=torch.uint8, device='cuda')"], check=True)
    print("done")
""", "--way", way)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert all(report["settled"] for report in reports)
    peaks = [report["peak_bytes"] for report in reports]
    assert any(5 << 20 <= peak < 6 << 20 for peak in peaks), peaks  # the child's
    assert len(reports) >= 4, peaks                                  # the program, two workers, the child


def test_doctor_says_which_ways_are_open():
    findings = {f["what"]: f for f in json.loads(subprocess.check_output(
        [BINARY, "doctor", "--json"], text=True, timeout=300,
        env={**os.environ, "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"], "PYTHONPATH": str(PACKAGE)}))["findings"]}
    found = findings["CUDA memory"]
    assert found["works"] and "allocator, pluggable, observe" in found["found"] and "GPULEDGER_TORCH=off" in found["found"], found
