"""The arrows of the layout: who may include whom, and what every file and folder must have."""

import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = [ROOT / f for f in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
           if f.endswith((".h", ".cc", ".cu", ".c"))]


def headers_of(layer):
    return {p.name for p in (ROOT / layer / "include/gpuledger").glob("*.h")}


def includes(path):
    return re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())


def files_of(layer):
    return [p for p in SOURCES if p.is_relative_to(ROOT / layer)]


def test_the_allocator_includes_neither_quant_nor_tracing():
    forbidden = headers_of("quant") | headers_of("tracing")
    for path in files_of("allocator"):
        used = {i.removeprefix("gpuledger/") for i in includes(path) if i.startswith("gpuledger/")}
        assert not used & forbidden, f"{path} includes {used & forbidden}"


def test_quant_and_tracing_do_not_know_each_other():
    for path in files_of("quant"):
        assert not {i.removeprefix("gpuledger/") for i in includes(path)} & headers_of("tracing"), path


def test_libtorch_is_seen_by_the_torch_folder_alone():
    seen = {p for p in SOURCES if any(re.match(r"(ATen|c10|torch)/", i) for i in includes(p))}
    allowed = ("allocator/torch", "tests/torch", "tests/consumer", "examples", "bench")
    assert seen and all(str(p.relative_to(ROOT)).startswith(allowed) for p in seen), seen


def test_cuda_is_seen_by_no_layer_that_builds_without_it():
    for path in SOURCES:
        if any(re.match(r"cuda(_runtime)?\.h|cuda_", i) for i in includes(path)):
            assert str(path.relative_to(ROOT)).startswith(("allocator/cuda", "quant/cuda", "tests/gpu", "tests/fake_cuda",
                                                               "tests/cuda/cuda_driver_api_test.cc", "tests/resource")), path


def test_cccl_is_seen_by_the_resource_alone():
    seen = {p for p in SOURCES if any(i.startswith("cuda/") for i in includes(p))}
    allowed = ("allocator/resource", "tests/resource", "tests/consumer")
    assert seen and all(str(p.relative_to(ROOT)).startswith(allowed) for p in seen), seen


def test_private_headers_stay_in_their_folder():
    for path in SOURCES:
        for included in includes(path):
            assert ".." not in included, f"{path} reaches into another folder: {included}"


def test_no_file_is_over_500_lines():
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 500, path


def test_every_variable_that_is_read_is_known_to_the_options():
    # What FromEnvironment does not know it refuses, so that a variable of the tests would end a program under test.
    known = set(re.findall(r'"(GPULEDGER_[A-Z_]+)"', (ROOT / "allocator/options.cc").read_text()))
    tracked = subprocess.check_output(["git", "ls-files", "*.cc", "*.h", "*.cu", "*.py", "*.sh"], cwd=ROOT, text=True).split()
    for path in map(pathlib.Path, tracked):
        text = (ROOT / path).read_text()
        read = set(re.findall(r'\b(?!setenv|unsetenv)\w+[(\[]"(GPULEDGER_[A-Z_]+)"', text)) if path.suffix != ".sh" else set(
            re.findall(r"\$\{?(GPULEDGER_[A-Z_]+)", text))
        assert read <= known, f"{path} reads {read - known}, which allocator/options.cc does not know"


def test_every_folder_with_sources_has_a_readme():
    for folder in ("allocator", "allocator/cuda", "allocator/torch", "allocator/resource", "quant", "tracing", "tracing/cli", "tracing/python", "examples", "tests", "tests/fake_cuda", "tests/torch_cuda", "bench"):
        assert (ROOT / folder / "README.md").exists(), folder
