"""Fifty kinds of plain scripts, as people write them: none leaks, and each ends as its author would expect.

Each is a program of its own after PRELUDE, and prints nothing. `ends` is the exit code if it is not 0. Where kernels do
nothing (the fake CUDA) no script branches on what the device computed. Models that are alive at the end of a script are
no leak: that is how most scripts end.
"""

from script_table import ENDS, PRELUDE, SCRIPTS, script

__all__ = ["ENDS", "PRELUDE", "SCRIPTS"]

# Optimizers and loops

script("plain SGD at module level", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for x, y in batches():
    step(model, optimizer, x, y)
""")

script("AdamW in a function", """
def main():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    for x, y in batches():
        step(model, optimizer, x, y)
main()
""")

script("an optimizer that computes its loss itself", """
model = make_model(1)
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
for x, y in batches(2):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
""")

script("gradients that are accumulated and clipped", """
model = make_model()
optimizer = torch.optim.AdamW(model.parameters())
for i, (x, y) in enumerate(batches(8)):
    (nn.functional.cross_entropy(model(x), y) / 4).backward()
    if i % 4 == 3:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
""")

script("an average of the weights beside the model", """
model = make_model()
average = copy.deepcopy(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in batches():
    step(model, optimizer, x, y)
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), model.parameters()):
            slow.lerp_(fast, 0.1)
""")

script("a scheduler of the learning rate", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8)
for x, y in batches():
    step(model, optimizer, x, y)
    scheduler.step()
""")

script("an optimizer that runs inside the backward pass", """
model = make_model()
optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
def hook(parameter):
    optimizers[parameter].step()
    optimizers[parameter].zero_grad()
for parameter in model.parameters():
    parameter.register_post_accumulate_grad_hook(hook)
for x, y in batches():
    nn.functional.cross_entropy(model(x), y).backward()
""")

script("parameters that are frozen and thawed", """
model = make_model()
for parameter in model[0].parameters():
    parameter.requires_grad_(False)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
for x, y in batches(2):
    step(model, optimizer, x, y)
for parameter in model[0].parameters():
    parameter.requires_grad_(True)
optimizer.add_param_group({"params": list(model[0].parameters())})
for x, y in batches(2):
    step(model, optimizer, x, y)
""")

script("losses that are kept for a log", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
log = []
for x, y in batches():
    log.append(step(model, optimizer, x, y).detach())
torch.stack(log).mean().item()
""")

script("a second derivative", """
model = make_model(1)
for x, y in batches(2):
    x.requires_grad_(True)
    first, = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (first.square().sum()).backward()
""")

# Data

script("a data loader in the process itself", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(Items(), batch_size=16):
    step(model, optimizer, x.cuda(), y.cuda())
""")

script("a data loader with forked workers", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    for x, y in DataLoader(Items(), batch_size=16, num_workers=2, multiprocessing_context="fork"):
        step(model, optimizer, x.cuda(), y.cuda())
""")

script("a data loader that pins memory in a thread", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(Items(), batch_size=16, num_workers=1, pin_memory=True, multiprocessing_context="fork"):
    step(model, optimizer, x.cuda(non_blocking=True), y.cuda(non_blocking=True))
""")

script("workers that are alive at the end", """
loader = DataLoader(Items(), batch_size=16, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
model = make_model()
for x, y in loader:
    model(x.cuda())
""")

script("a loader that is left in the middle", """
model = make_model()
for x, y in DataLoader(Items(), batch_size=4, num_workers=1, prefetch_factor=4, multiprocessing_context="fork"):
    model(x.cuda())
    break
""")

script("a prefetcher on a stream of its own", """
model, side = make_model(), torch.cuda.Stream()
def prefetched():
    coming = None
    for _ in range(6):
        with torch.cuda.stream(side):
            following = torch.randn(32, WIDTH).pin_memory().cuda(non_blocking=True)
        if coming is not None:
            torch.cuda.current_stream().wait_stream(side)
            coming.record_stream(torch.cuda.current_stream())
            yield coming
        coming = following
for x in prefetched():
    model(x)
""")

script("a dataset that is on the device", """
data = TensorDataset(torch.randn(64, WIDTH).cuda(), torch.randint(0, WIDTH, (64,)).cuda())
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(data, batch_size=16):
    step(model, optimizer, x, y)
""")

# Precision

script("autocast with a scaler of gradients", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
for x, y in batches():
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""")

script("autocast to bfloat16", """
model = make_model()
optimizer = torch.optim.AdamW(model.parameters())
for x, y in batches():
    with torch.autocast("cuda", dtype=torch.bfloat16):
        step(model, optimizer, x, y)
""")

script("a model in half precision with master weights", """
model = make_model().half()
masters = [p.detach().float().requires_grad_() for p in model.parameters()]
optimizer = torch.optim.AdamW(masters)
for x, y in batches():
    nn.functional.cross_entropy(model(x.half()).float(), y).backward()
    for master, parameter in zip(masters, model.parameters()):
        master.grad = parameter.grad.float()
        parameter.grad = None
    optimizer.step()
    with torch.no_grad():
        for master, parameter in zip(masters, model.parameters()):
            parameter.copy_(master)
""")

# Memory against computation

script("checkpoints that do not re-enter", """
from torch.utils.checkpoint import checkpoint
model = make_model(6)
for x, y in batches():
    x = checkpoint(model[:3], x, use_reentrant=False)
    nn.functional.cross_entropy(checkpoint(model[3:], x, use_reentrant=False), y).backward()
    model.zero_grad()
""")

script("checkpoints that re-enter", """
from torch.utils.checkpoint import checkpoint_sequential
model = make_model(6)
for x, y in batches():
    x.requires_grad_(True)
    nn.functional.cross_entropy(checkpoint_sequential(model, 2, x, use_reentrant=True), y).backward()
    model.zero_grad()
""")

script("activations that wait on the host", """
model = make_model()
for x, y in batches():
    with torch.autograd.graph.save_on_cpu(pin_memory=True):
        loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    model.zero_grad()
""")

script("saved tensors that are packed by hooks", """
model = make_model()
def pack(tensor):
    return tensor.device, tensor.half() if tensor.is_floating_point() else tensor
def unpack(packed):
    return packed[1].float() if packed[1].is_floating_point() else packed[1]
for x, y in batches():
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = model(x).sum()
    loss.backward()
    model.zero_grad()
""")

script("a model that moves to the host and back", """
model = make_model()
for x, y in batches(2):
    model.cpu()
    torch.cuda.empty_cache()
    model.cuda()
    model(x)
""")

# Compilation and graphs

script("compiled with the eager backend", """
model = torch.compile(make_model(), backend="eager")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in batches():
    step(model, optimizer, x, y)
""")

script("compiled ahead, with a graph break", """
model = make_model()
def forward(x):
    x = model[0](x)
    torch._dynamo.graph_break()
    return model[1:](x)
compiled = torch.compile(forward, backend="aot_eager")
for x, y in batches():
    nn.functional.cross_entropy(compiled(x), y).backward()
    model.zero_grad()
""")

script("compiled into CUDA graphs", """
import warnings
warnings.simplefilter("ignore")
model = make_model().requires_grad_(False)
compiled = torch.compile(model, backend="cudagraphs")
for x, y in batches(6):
    torch.compiler.cudagraph_mark_step_begin()
    compiled(x)
""")

script("a step that is captured and replayed", """
model = make_model()
optimizer = torch.optim.AdamW(model.parameters(), capturable=True, foreach=True)
x, y = next(batches())
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    for _ in range(3):
        step(model, optimizer, x, y)
torch.cuda.current_stream().wait_stream(side)
graph = torch.cuda.CUDAGraph()
optimizer.zero_grad(set_to_none=True)
with torch.cuda.graph(graph):
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
for new, _ in batches():
    x.copy_(new)
    graph.replay()
""")

script("callables that were made into graphs", """
import warnings
warnings.simplefilter("ignore")  # of the accumulation of gradients on another stream
model = make_model(2)
x, y = next(batches())
model = torch.cuda.make_graphed_callables(model, (torch.randn_like(x),))
for x, y in batches():
    nn.functional.cross_entropy(model(x), y).backward()
""")

script("a script function and a traced one", """
model = make_model(2)
x, y = next(batches())
traced = torch.jit.trace(model, x, check_trace=False)
@torch.jit.script
def norm(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum() + 1.0).sqrt()
for x, y in batches():
    norm(traced(x)).sum().backward()
""")

# Hooks and functions

script("forward hooks that keep activations for a while", """
model, kept = make_model(), {}
handles = [layer.register_forward_hook(lambda module, inputs, output, i=i: kept.__setitem__(i, output)) for i, layer in enumerate(model)]
for x, y in batches():
    model(x)
    kept.clear()
for handle in handles:
    handle.remove()
""")

script("backward hooks that look at gradients", """
model, sums = make_model(), []
for layer in model:
    layer.register_full_backward_hook(lambda module, inputs, outputs: sums.append(outputs[0].abs().sum().detach()))
for parameter in model.parameters():
    parameter.register_hook(lambda gradient: gradient * 0.5)
for x, y in batches():
    x.requires_grad_(True)
    nn.functional.cross_entropy(model(x), y).backward()
""")

script("an autograd function of one's own", """
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.kept = x.detach().clone()
        return x * x
    @staticmethod
    def backward(ctx, gradient):
        x, = ctx.saved_tensors
        return gradient * 2 * x
model = make_model()
for x, y in batches():
    Square.apply(model(x)).sum().backward()
    model.zero_grad()
""")

script("functional transformations", """
from torch.func import functional_call, grad, vmap
model = make_model(2)
parameters = {name: p.detach() for name, p in model.named_parameters()}
def loss(parameters, x):
    return functional_call(model, parameters, (x,)).sum()
for x, y in batches(2):
    grad(loss)(parameters, x)
    vmap(lambda row: row * 2)(x)
""")

script("a parametrized layer", """
from torch.nn.utils import parametrizations
layer = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH).cuda())
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
for x, y in batches():
    step(layer, optimizer, x, y)
""")

import program_scripts  # noqa: E402, F401  # the other half of the table
