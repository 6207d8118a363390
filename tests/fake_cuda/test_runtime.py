"""The fake runtime by itself: its exports, its errors, what programs register, and what it costs."""

import ctypes
import importlib.util
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import fake_cuda
import pytest

NOT_READY, NOT_SUPPORTED, INVALID_VALUE, INVALID_DEVICE = 600, 801, 1, 101
INVALID_SYMBOL, INVALID_DEVICE_FUNCTION, MISSING_CONFIGURATION = 13, 98, 52
TO_DEVICE, FROM_DEVICE = 1, 2


def nvidias_runtime():
    spec = importlib.util.find_spec("nvidia.cu13")
    path = Path(list(spec.submodule_search_locations)[0]) / "lib/libcudart.so.13" if spec else None
    if path is None or not path.exists():
        pytest.skip("needs the wheel nvidia-cuda-runtime")
    return path


@pytest.fixture
def runtime():
    library = ctypes.CDLL(str(fake_cuda.libraries()[1]))
    library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
    library.cudaGetLastError()
    return library


def allocate(runtime, size):
    address = ctypes.c_void_p()
    assert runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)) == 0
    return address


def test_it_exports_what_nvidias_runtime_exports_under_the_same_version():
    def exports(path):
        lines = subprocess.check_output(["nm", "-D", "--defined-only", path], text=True).splitlines()
        return {line.split()[-1] for line in lines}

    assert exports(fake_cuda.libraries()[1]) == exports(nvidias_runtime())


def test_its_errors_have_the_names_of_nvidias(runtime):
    script = ("import ctypes, sys; r = ctypes.CDLL(sys.argv[1]); r.cudaGetErrorName.restype = ctypes.c_char_p; "
              "print(*[r.cudaGetErrorName(i).decode() for i in range(1000)], sep=chr(10))")
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    theirs = subprocess.check_output([sys.executable, "-c", script, str(nvidias_runtime())], env=env, text=True).splitlines()
    assert [runtime.cudaGetErrorName(i).decode() for i in range(1000)] == theirs


def test_every_error_has_a_sentence(runtime):
    assert runtime.cudaGetErrorString(2) == b"out of memory"
    assert all(runtime.cudaGetErrorString(i) for i in range(1000))


def test_the_last_error_stays_until_it_is_taken(runtime):
    assert runtime.cudaSetDevice(99) == INVALID_DEVICE
    assert runtime.cudaMalloc(None, 1) == INVALID_VALUE
    assert runtime.cudaPeekAtLastError() == INVALID_VALUE
    assert runtime.cudaGetLastError() == INVALID_VALUE
    assert runtime.cudaGetLastError() == 0


def test_the_last_error_is_the_threads_own(runtime):
    found = []
    assert runtime.cudaSetDevice(99) == INVALID_DEVICE
    thread = threading.Thread(target=lambda: found.append(runtime.cudaGetLastError()))
    thread.start()
    thread.join()
    assert (found, runtime.cudaGetLastError()) == ([0], INVALID_DEVICE)


def test_unfinished_work_is_no_error(runtime):
    event = ctypes.c_void_p()
    assert runtime.cudaEventCreate(ctypes.byref(event)) == 0
    fake_cuda.driver().fakeCudaHoldEvents(1)
    try:
        assert runtime.cudaEventRecord(event, None) == 0
        assert runtime.cudaEventQuery(event) == NOT_READY
    finally:
        fake_cuda.driver().fakeCudaHoldEvents(0)
    assert runtime.cudaEventQuery(event) == 0
    assert runtime.cudaGetLastError() == 0
    assert runtime.cudaEventDestroy(event) == 0


def test_what_it_does_not_do_is_an_error_and_no_crash(runtime):
    assert runtime.cudaCreateTextureObject(None, None, None, None) == NOT_SUPPORTED
    assert runtime.cudaGetLastError() == NOT_SUPPORTED


def test_what_the_driver_answers_by_itself_is_no_last_error(runtime):
    function, found = ctypes.c_void_p(), ctypes.c_int()
    assert runtime.cudaGetDriverEntryPointByVersion(
        b"cuMemFree", ctypes.byref(function), 13000, ctypes.c_ulonglong(0), ctypes.byref(found)) == 0
    assert found.value == 0
    free = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_ulonglong)(function.value)
    assert free(0) != 0 or runtime.cudaGetLastError() == 0
    assert runtime.cudaGetLastError() == 0


def test_a_driver_function_that_does_not_exist_is_not_found(runtime):
    function, found = ctypes.c_void_p(), ctypes.c_int()
    runtime.cudaGetDriverEntryPointByVersion(
        b"cuNoSuchFunction", ctypes.byref(function), 13000, ctypes.c_ulonglong(0), ctypes.byref(found))
    assert (found.value, function.value) == (1, None)
    runtime.cudaGetLastError()


def test_a_null_pointer_is_freed_and_nothing_is_allocated_for_no_bytes(runtime):
    address = ctypes.c_void_p(1)
    assert runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(0)) == 0
    assert address.value is None
    assert runtime.cudaFree(None) == 0


def test_memory_that_cuda_does_not_know_is_unregistered(runtime):
    class Attributes(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("device", ctypes.c_int), ("device_pointer", ctypes.c_void_p),
                    ("host_pointer", ctypes.c_void_p), ("reserved", ctypes.c_long * 8)]

    host, attributes = ctypes.create_string_buffer(16), Attributes()
    assert runtime.cudaPointerGetAttributes(ctypes.byref(attributes), host) == 0
    assert attributes.type == 0
    address = allocate(runtime, 100)
    assert runtime.cudaPointerGetAttributes(ctypes.byref(attributes), address) == 0
    assert (attributes.type, attributes.device, attributes.device_pointer) == (2, 0, address.value)
    assert runtime.cudaFree(address) == 0


def test_a_device_is_usable_again_after_its_reset(own_process):
    own_process("""
        import ctypes
        runtime, address = ctypes.CDLL("libcudart.so.13"), ctypes.c_void_p()
        assert runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(100)) == 0
        assert runtime.cudaDeviceReset() == 0
        assert runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(100)) == 0
        assert runtime.cudaFree(address) == 0
        """)


class Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


def test_launch_configurations_are_a_stack(runtime):
    def pop():
        grid, block, shared, stream = Dim3(), Dim3(), ctypes.c_size_t(), ctypes.c_void_p()
        error = runtime.__getattr__("__cudaPopCallConfiguration")(
            ctypes.byref(grid), ctypes.byref(block), ctypes.byref(shared), ctypes.byref(stream))
        return error, (grid.x, block.x, shared.value)

    push = runtime.__getattr__("__cudaPushCallConfiguration")
    assert push(Dim3(1, 1, 1), Dim3(2, 1, 1), ctypes.c_size_t(3), None) == 0
    assert push(Dim3(4, 1, 1), Dim3(5, 1, 1), ctypes.c_size_t(6), None) == 0
    assert pop() == (0, (4, 5, 6))
    assert pop() == (0, (1, 2, 3))
    assert pop()[0] == MISSING_CONFIGURATION


def test_registered_kernels_are_launched_and_others_are_not(runtime):
    register, image = runtime.__getattr__("__cudaRegisterFatBinary"), ctypes.create_string_buffer(64)
    register.restype = ctypes.c_void_p
    module = ctypes.c_void_p(register(image))
    function, stranger = ctypes.create_string_buffer(1), ctypes.create_string_buffer(1)
    runtime.__getattr__("__cudaRegisterFunction")(
        module, function, function, b"kernel", -1, None, None, None, None, None)
    runtime.__getattr__("__cudaRegisterFatBinaryEnd")(module)

    def launch(f):
        return runtime.cudaLaunchKernel(f, Dim3(1, 1, 1), Dim3(32, 1, 1), None, ctypes.c_size_t(0), None)

    assert launch(function) == 0
    assert launch(stranger) == INVALID_DEVICE_FUNCTION
    runtime.__getattr__("__cudaUnregisterFatBinary")(module)
    assert launch(function) == INVALID_DEVICE_FUNCTION


def test_device_variables_have_memory_of_their_size(runtime):
    variable, data, back = ctypes.create_string_buffer(1), ctypes.create_string_buffer(b"0123456789", 10), (ctypes.c_char * 10)()
    runtime.__getattr__("__cudaRegisterVar")(None, variable, variable, b"variable", 0, ctypes.c_size_t(10), 0, 0)
    size, zero = ctypes.c_size_t(), ctypes.c_size_t(0)
    assert runtime.cudaGetSymbolSize(ctypes.byref(size), variable) == 0
    assert size.value == 10
    assert runtime.cudaMemcpyToSymbol(variable, data, ctypes.c_size_t(10), zero, TO_DEVICE) == 0
    assert runtime.cudaMemcpyFromSymbol(back, variable, ctypes.c_size_t(10), zero, FROM_DEVICE) == 0
    assert back.raw == b"0123456789"
    assert runtime.cudaMemcpyToSymbol(variable, data, ctypes.c_size_t(10), ctypes.c_size_t(1), TO_DEVICE) == INVALID_VALUE
    assert runtime.cudaGetSymbolSize(ctypes.byref(size), data) == INVALID_SYMBOL


def test_a_program_without_a_driver_is_told_so():
    script = """
import ctypes, sys
try:
    ctypes.CDLL("libcuda.so.1")
    print("there is a driver")
except OSError:
    runtime, count = ctypes.CDLL(sys.argv[1]), ctypes.c_int(7)
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    print(runtime.cudaGetDeviceCount(ctypes.byref(count)), count.value, runtime.cudaGetErrorString(35).decode())
"""
    env = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    out = subprocess.check_output([sys.executable, "-c", script, str(fake_cuda.libraries()[1])], env=env, text=True)
    if "there is a driver" in out:
        pytest.skip(out.strip())
    assert out.startswith("35 0 no CUDA driver was found")


def test_importing_torch_takes_as_long_as_without(record_property):
    def seconds(env):
        """Of the processor, so that other work on the machine does not count."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", "import torch"], env=env, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    seconds(plain)  # reads the files
    without, with_fake = seconds(plain), seconds(dict(os.environ))
    record_property("import torch", f"{without:.2f} s without, {with_fake:.2f} s with the fake CUDA")
    assert with_fake < without + 0.5
