"""Each call to the driver fails in turn: an error or a detour, never a loss; and the same work succeeds afterwards.

../fake_cuda/test_faults.py has what the native allocator does in detail. On a GPU there are no faults to be had.
"""

import contextlib

import fake_cuda
import pytest
import torch
import under_test
from cuda_memory import MIB, numbers, settle, tensor

OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700

# What each allocator calls while it takes memory. PyTorch's expandable segments end the program, or fail from then on, when
# a call other than this one says something else than "out of memory".
TAKING = {"native": ["cuMemAlloc"], "expandable": ["cuMemAddressReserve"],
          "ours": ["cuMemCreate", "cuMemMap", "cuMemSetAccess"]}[under_test.chosen()]
# And what ours calls while it gives back or waits.
GIVING_BACK = ["cuMemUnmap", "cuMemRelease", "cuEventRecord", "cuEventQuery", "cuEventCreate", "cuCtxSynchronize"]


@pytest.fixture(autouse=True)
def only_on_the_fake(settled):
    if not fake_cuda.is_on():
        pytest.skip("faults can be asked of the fake CUDA only")
    yield
    fake_cuda.driver().fakeCudaClearFaults()


@contextlib.contextmanager
def faults(text):
    assert fake_cuda.driver().fakeCudaInjectFaults(text.encode()) != 0
    try:
        yield
    finally:
        fake_cuda.driver().fakeCudaClearFaults()


def calls(function):
    return fake_cuda.driver().fakeCudaCallCount(function.encode())


def work():
    """Small and large tensors on two streams, a block that waits, a pool, and everything given back."""
    stream, held = torch.cuda.Stream(), []
    for size in (1000, 3 * MIB, 12 * MIB, 40 * MIB):
        held.append(tensor(size))
        with torch.cuda.stream(stream):
            held.append(tensor(size))
    held[3].record_stream(torch.cuda.current_stream())
    held.pop(3)
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        held.append(tensor(5 * MIB))
    del pool
    held.clear()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def counted(function):
    work()  # whatever is made once is there
    settle()
    before = calls(function)
    work()
    settle()
    return calls(function) - before


def error_of_work(fault):
    """The kind of error that the work ends with under the fault. Not the error: that would keep the tensors of its frames."""
    with faults(fault):
        try:
            work()
        except RuntimeError as error:
            return type(error)
    return None


def check_that_nothing_is_lost(when):
    settle()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (0, 0), when
    work()
    settle()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (0, 0), when
    data = numbers(5000)
    assert torch.equal(data.cuda().clone().cpu(), data)


@pytest.mark.parametrize("code", [OUT_OF_MEMORY, ILLEGAL_ADDRESS])
@pytest.mark.parametrize("function", TAKING)
def test_a_call_that_fails_once_while_memory_is_taken(function, code):
    count = counted(function)
    assert count > 0
    for at in range(1, count + 1):
        seen = error_of_work(f"{function}:{at}={code}")
        # An error that is not about memory is not called out of memory.
        assert seen in (None, RuntimeError, torch.AcceleratorError, torch.cuda.OutOfMemoryError), seen
        assert code == OUT_OF_MEMORY or seen is not torch.cuda.OutOfMemoryError
        check_that_nothing_is_lost(f"call {at} of {count}")


@pytest.mark.only_under("ours", why="PyTorch's own loses what it was about to give back")
@pytest.mark.parametrize("function", GIVING_BACK)
def test_a_call_that_fails_once_while_memory_is_given_back(function):
    count = counted(function)
    if not count:
        pytest.skip(f"ours does not call {function}")
    for at in range(1, count + 1):
        error_of_work(f"{function}:{at}={OUT_OF_MEMORY}")
        check_that_nothing_is_lost(f"call {at} of {count}")


def test_nothing_can_be_had_for_a_while_and_then_all_works():
    with faults("cuMemAlloc:1+=2,cuMemCreate:1+=2"):
        for size in (1000, 3 * MIB, 40 * MIB):
            with pytest.raises(torch.cuda.OutOfMemoryError):
                tensor(size)
    held = [tensor(size) for size in (1000, 3 * MIB, 40 * MIB)]
    assert torch.cuda.memory_allocated() >= 43 * MIB
    del held


def test_every_third_request_fails_and_nobody_notices():
    held, refused = [], 0
    with faults("cuMemAlloc:*3=2,cuMemCreate:*3=2"):
        for i in range(600):
            try:
                held.append(tensor(i * 7919 % (30 * MIB) + 1))
            except torch.cuda.OutOfMemoryError:
                refused += 1
            if len(held) > 20:
                held.clear()
    held.clear()
    assert torch.cuda.memory_allocated() == 0
    assert refused < 60
