"""Tensors that are shared with other processes, both ways. A process each; on the fake, one sees the other's memory by handle."""

import textwrap

import pytest

# The parent writes and the child reads, then the child makes tensors of its own and the parent reads; each says what it found.
PROGRAM = """
import gc, sys
import torch
import torch.multiprocessing as multiprocessing
MIB = 1 << 20

def numbers(count, seed):
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

def same(there, count, seed):
    return torch.equal(there.clone().cpu(), numbers(count, seed))

def child(questions, answers):
{child}

def main():
    context = multiprocessing.get_context("spawn")
    questions, answers = context.Queue(), context.Queue()
    processes = [context.Process(target=child, args=(questions, answers)) for _ in range({children})]
    for process in processes:
        process.start()
{parent}
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0, process.exitcode
    torch.cuda.ipc_collect()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == 0, torch.cuda.memory_allocated()
    assert torch.cuda.memory_reserved() == 0, torch.cuda.memory_reserved()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def share(own_process):
    def run(parent, child, children=1):
        own_process(PROGRAM.format(parent=textwrap.indent(textwrap.dedent(parent), "    "),
                                   child=textwrap.indent(textwrap.dedent(child), "    "), children=children))

    return run


def test_a_large_tensor_arrives_whole(share):
    share("""
        there = numbers(45 * MIB, 1).cuda()
        questions.put(there)
        assert answers.get(timeout=120)
        questions.put(None)
        del there
        """, """
        there = questions.get()
        answers.put(same(there, 45 * MIB, 1))
        del there
        questions.get()
        """)


def test_tensors_of_one_segment_arrive_each_at_its_place(share):
    share("""
        held = [numbers(1000 + i, i).cuda() for i in range(20)]
        for there in held:
            questions.put(there)
        assert all(answers.get(timeout=120) for _ in held)
        questions.put(None)
        held.clear()
        del there
        """, """
        for i in range(20):
            there = questions.get()
            answers.put(same(there, 1000 + i, i))
            del there
        questions.get()
        """)


def test_a_view_arrives_as_the_part_it_is(share):
    share("""
        there = numbers(5 * MIB, 1).cuda()
        questions.put(there[MIB : 2 * MIB])
        assert answers.get(timeout=120)
        questions.put(None)
        del there
        """, """
        there = questions.get()
        answers.put(torch.equal(there.clone().cpu(), numbers(5 * MIB, 1)[MIB : 2 * MIB]))
        del there
        questions.get()
        """)


def test_the_child_shares_tensors_of_its_own(share):
    share("""
        for i in range(3):
            there = answers.get(timeout=120)
            assert same(there, 3 * MIB + i, i)
            there.copy_(numbers(3 * MIB + i, 10 + i))
            torch.cuda.synchronize()
            del there
            questions.put(i)
        assert answers.get(timeout=120)
        """, """
        for i in range(3):
            mine = numbers(3 * MIB + i, i).cuda()
            answers.put(mine)
            assert questions.get() == i
            assert same(mine, 3 * MIB + i, 10 + i)
            del mine
        torch.cuda.ipc_collect()
        answers.put(torch.cuda.memory_allocated() == 0)
        """)


def test_two_children_read_one_tensor(share):
    share("""
        there = numbers(5 * MIB, 1).cuda()
        for _ in range(2):
            questions.put(there)
        assert all(answers.get(timeout=120) for _ in range(2))
        for _ in range(2):
            questions.put(None)
        del there
        """, """
        while (there := questions.get()) is not None:
            answers.put(same(there, 5 * MIB, 1))
            del there
        """, children=2)


def test_what_is_shared_is_kept_while_the_other_process_holds_it(share):
    share("""
        there = numbers(12 * MIB, 1).cuda()
        questions.put(there)
        assert answers.get(timeout=120) == "received"
        del there
        gc.collect()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() == 12 * MIB, torch.cuda.memory_allocated()
        others = [numbers(12 * MIB, 2).cuda() for _ in range(3)]
        questions.put("look again")
        assert answers.get(timeout=120)
        questions.put(None)
        del others
        """, """
        there = questions.get()
        answers.put("received")
        assert questions.get() == "look again"
        answers.put(same(there, 12 * MIB, 1))
        del there
        questions.get()
        """)


def test_received_memory_is_not_the_receivers(share):
    share("""
        there = numbers(12 * MIB, 1).cuda()
        questions.put(there)
        assert answers.get(timeout=120) == 0
        questions.put(None)
        del there
        """, """
        there = questions.get()
        answers.put(torch.cuda.memory_allocated())
        del there
        questions.get()
        """)


def test_a_parameter_can_be_shared(share):
    share("""
        layer = torch.nn.Linear(64, 64).cuda()
        layer.share_memory()
        questions.put(layer.weight)
        assert answers.get(timeout=120) == [64, 64]
        questions.put(None)
        del layer
        """, """
        weight = questions.get()
        answers.put(list(weight.shape))
        del weight
        questions.get()
        """)


def test_an_event_can_be_shared(share):
    share("""
        event = torch.cuda.Event(interprocess=True)
        event.record()
        questions.put(event.ipc_handle())
        assert answers.get(timeout=120)
        """, """
        handle = questions.get()
        event = torch.cuda.Event.from_ipc_handle(torch.device("cuda", 0), handle)
        torch.cuda.current_stream().wait_event(event)
        event.synchronize()
        answers.put(event.query())
        """)
