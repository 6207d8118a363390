"""How PyTorch's own CUDA memory management behaves, under a training loop: what gpuledger's allocator has to do alike.

Runs on a GPU and on the fake CUDA with its do-nothing cuBLAS; no value is looked at.
"""

import gc

import pytest
import torch
from cuda_memory import MIB, Grown
from torch.utils.checkpoint import checkpoint

WIDTH = 512
LAYERS = 4


def make_model(layers=LAYERS):
    blocks = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()) for _ in range(layers)]
    return torch.nn.Sequential(*blocks).cuda()


def parameter_bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def step(model, optimizer, batch):
    optimizer.zero_grad(set_to_none=True)
    model(batch).sum().backward()
    optimizer.step()


@pytest.fixture
def batch():
    return torch.randn(256, WIDTH).cuda()


@pytest.fixture(autouse=True)
def warm(settled, batch):
    """The workspace of cuBLAS is there before anything is measured, for the forward and the backward thread."""
    make_model(1)(batch).sum().backward()
    gc.collect()
    torch.cuda.empty_cache()


def test_parameters_cost_their_bytes_rounded_to_512(warm, batch):
    grown = Grown()
    model = make_model()
    assert grown.allocated == parameter_bytes(model)  # all are multiples of 512 here


def test_gradients_cost_as_much_as_parameters_until_they_are_set_to_none(warm, batch):
    model = make_model()
    grown = Grown()
    model(batch).sum().backward()
    assert grown.allocated == parameter_bytes(model)
    model.zero_grad(set_to_none=True)
    assert grown.allocated == 0


def test_adamw_costs_twice_the_parameters(warm, batch):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    grown = Grown()
    step(model, optimizer, batch)
    optimizer.zero_grad(set_to_none=True)
    states = [v for state in optimizer.state.values() for v in state.values() if v.is_cuda]
    assert grown.allocated == sum(max(512, v.numel() * v.element_size()) for v in states)
    assert grown.allocated >= 2 * parameter_bytes(model)


def test_activations_live_from_the_forward_pass_to_the_backward_pass(warm, batch):
    model = make_model()
    step(model, torch.optim.SGD(model.parameters(), lr=0.1), batch)
    grown = Grown()
    loss = model(batch).sum()
    assert grown.allocated >= LAYERS * batch.numel() * batch.element_size()
    loss.backward()
    del loss
    assert grown.allocated == 0


def test_without_gradients_only_the_result_lives_on(warm, batch):
    model = make_model()
    grown = Grown()
    with torch.no_grad():
        result = model(batch)
    assert grown.allocated == result.numel() * result.element_size()


def test_every_step_ends_with_the_same_figures(warm, batch):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    figures = []
    for _ in range(6):
        torch.cuda.reset_peak_memory_stats()
        step(model, optimizer, batch)
        figures.append((torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()))
    assert len(set(figures[2:])) == 1
    allocated, peak, reserved = figures[-1]
    assert allocated < peak <= reserved


def test_checkpoints_lower_the_peak(warm, batch):
    model = make_model(8)
    model.zero_grad(set_to_none=True)

    def peak(forward):
        model(batch).sum().backward()  # gradients exist in both measurements
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward().sum().backward()
        return torch.cuda.max_memory_allocated() - before

    def in_pieces():
        x = batch
        for i in range(0, 8, 2):
            x = checkpoint(model[i : i + 2], x, use_reentrant=False)
        return x

    assert peak(in_pieces) < peak(lambda: model(batch))


def test_a_deleted_model_leaves_nothing_behind(warm, batch):
    grown = Grown()
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        step(model, optimizer, batch)
    del model, optimizer
    gc.collect()
    assert grown.allocated == 0
    torch.cuda.empty_cache()
    assert grown.reserved == 0


def test_the_workspace_of_cublas_is_memory_of_the_allocator(warm, batch):
    grown = Grown()
    torch._C._cuda_clearCublasWorkspaces()
    assert grown.allocated <= -MIB
    grown = Grown()
    product = torch.mm(batch, batch.T)
    del product
    assert grown.allocated >= MIB
