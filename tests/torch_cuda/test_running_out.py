"""When memory runs out: what is said, what is given up before, and that everything goes on afterwards."""

import threading

import pytest
import torch
from cuda_memory import MIB, numbers, tensor


def test_the_message_has_every_figure():
    held = tensor(64 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        tensor(1 << 50)
    message = str(caught.value)
    for part in ("Tried to allocate 1048576.00 GiB", "GPU 0 has a total capacity of", "is free",
                 "allocated by PyTorch", "reserved by PyTorch but unallocated"):
        assert part in message, part
    del held


def test_a_size_beyond_an_exabyte_is_refused_as_such():
    with pytest.raises(torch.cuda.OutOfMemoryError, match="more than 1EB"):
        tensor((1 << 60) + 1)


def test_the_error_is_a_runtime_error_and_torchs_own_out_of_memory_error():
    with pytest.raises(RuntimeError) as caught:
        tensor(1 << 50)
    assert type(caught.value) is torch.OutOfMemoryError is torch.cuda.OutOfMemoryError


def test_a_refusal_disturbs_nothing_that_follows():
    data = numbers(5000)
    held = data.cuda()
    for _ in range(20):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            tensor(1 << 50)
        assert torch.equal(held.clone().cpu(), data)


def test_the_size_of_a_refused_allocation_is_in_the_message(limit):
    limit(30 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate 40.00 MiB"):
        tensor(40 * MIB)


def test_halving_until_it_fits_ends_with_a_tensor(limit):
    limit(50 * MIB)
    size = 1 << 40
    while True:
        try:
            held = tensor(size)
            break
        except torch.cuda.OutOfMemoryError:
            size //= 2
    assert size == 32 * MIB
    del held


def test_blocks_that_wait_for_another_stream_are_waited_for_before_it_fails(limit):
    stream = torch.cuda.Stream()
    limit(65 * MIB)
    t = tensor(48 * MIB)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000)
    t.record_stream(stream)
    del t
    held = tensor(60 * MIB)
    assert torch.cuda.memory_allocated() >= 60 * MIB
    del held


def test_the_cache_of_another_stream_is_given_up_before_it_fails(limit):
    stream = torch.cuda.Stream()
    limit(65 * MIB)
    with torch.cuda.stream(stream):
        tensor(48 * MIB)
    torch.cuda.synchronize()
    held = tensor(60 * MIB)
    del held


def test_the_cache_of_small_tensors_is_given_up_before_it_fails(limit):
    limit(65 * MIB)
    held = [tensor(100_000) for _ in range(400)]
    held.clear()
    held = tensor(60 * MIB)
    del held


def test_a_fragmented_cache_is_given_up_before_it_fails(limit):
    limit(100 * MIB)
    held = [tensor(12 * MIB) for _ in range(8)]
    del held[::2]
    more = tensor(40 * MIB) if torch.cuda.memory_reserved() < 96 * MIB else None
    held.clear()
    more = tensor(90 * MIB)
    del more


def test_what_one_thread_holds_is_refused_to_another_and_free_afterwards(limit):
    limit(65 * MIB)
    held, seen = [tensor(40 * MIB)], []

    def work():
        for _ in range(2):
            try:
                tensor(40 * MIB)
                seen.append("served")
            except torch.cuda.OutOfMemoryError:
                seen.append("refused")
                held.clear()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["refused", "served"]


def test_eight_threads_run_out_at_once_and_all_recover(limit):
    limit(100 * MIB)
    served, refused = [], []

    def work():
        for _ in range(30):
            try:
                held = tensor(20 * MIB)
                served.append(1)
                del held
            except torch.cuda.OutOfMemoryError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served) + len(refused) == 240 and served
    held = tensor(90 * MIB)
    del held


def test_every_refusal_is_counted_once(grown):
    for _ in range(3):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            tensor(1 << 50)
    assert grown["num_ooms"] == 3


def test_a_refusal_inside_a_pool_is_the_pools_and_leaves_it_usable(limit):
    pool = torch.cuda.MemPool()
    limit(65 * MIB)
    with torch.cuda.use_mem_pool(pool):
        held = tensor(40 * MIB)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            tensor(40 * MIB)
        small = tensor(4 * MIB)
    del held, small


def test_a_refusal_inside_a_capture_is_out_of_memory_and_ends_the_capture():
    graph = torch.cuda.CUDAGraph()
    source = tensor(512)
    with pytest.raises(RuntimeError, match="out of memory"):
        with torch.cuda.graph(graph):
            source.clone()
            tensor(1 << 50)
    assert not torch.cuda.is_current_stream_capturing()
    data = numbers()
    assert torch.equal(data.cuda().clone().cpu(), data)


def test_an_operation_that_is_refused_keeps_none_of_its_memory(limit):
    source = tensor(30 * MIB)
    before = torch.cuda.memory_allocated()
    limit(20 * MIB)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        source.clone()
    assert torch.cuda.memory_allocated() == before


def test_a_traceback_that_is_kept_keeps_its_tensors_and_dropping_it_frees_them():
    def work():
        inside = tensor(40 * MIB)
        raise ValueError(inside.shape)

    before = torch.cuda.memory_allocated()
    try:
        work()
    except ValueError as error:
        kept = error
    assert torch.cuda.memory_allocated() == before + 40 * MIB
    del kept
    assert torch.cuda.memory_allocated() == before


def test_an_observer_that_throws_passes_its_error_on_and_all_goes_on(own_process):
    own_process("""
        import torch
        def observer(*arguments):
            raise ZeroDivisionError("the observer's own")
        torch.empty(1, device="cuda")
        torch._C._cuda_attach_out_of_memory_observer(observer)
        for _ in range(3):
            try:
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
                raise SystemExit("it was not refused")
            except ZeroDivisionError as error:
                assert "own" in str(error)
        held = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_allocated() == (64 << 20) + 512 or torch.cuda.memory_allocated() == 64 << 20
        """)


@pytest.mark.two_devices
def test_one_devices_refusal_gives_up_nothing_of_the_other():
    kept = tensor(64 * MIB, "cuda:1")
    del kept
    reserved = torch.cuda.memory_reserved(1)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 50, "cuda:0")
    assert torch.cuda.memory_reserved(1) == reserved > 0


@pytest.mark.only_under("ours", why="PyTorch moves no memory")
def test_a_refused_request_does_not_change_how_memory_is_reused_afterwards(grown):
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tensor(1 << 42)
    first, between, last = (tensor(64 * MIB) for _ in range(3))
    del first, last
    torch.cuda.synchronize()
    both = tensor(128 * MIB)  # what the two have left moves together
    assert grown.reserved <= 200 * MIB
    del between, both
