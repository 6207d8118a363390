"""Fifty kinds of plain scripts, as people write them: none leaks, and each ends as its author would expect.

Each is a program of its own after PRELUDE, and prints nothing. `ends` is the exit code if it is not 0. Where kernels do
nothing (the fake CUDA) no script branches on what the device computed. Models that are alive at the end of a script are
no leak: that is how most scripts end.
"""

from __future__ import annotations

PRELUDE = """
import atexit, contextlib, copy, functools, gc, io, os, sys, threading, weakref
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

torch.backends.cudnn.enabled = False  # not on the fake CUDA
WIDTH = 256

def make_model(layers=3):
    return nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(layers)]).cuda()

def batches(count=4):
    for _ in range(count):
        yield torch.randn(32, WIDTH).cuda(), torch.randint(0, WIDTH, (32,)).cuda()

def step(model, optimizer, x, y):
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

class Items(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return torch.full((WIDTH,), float(i)), i
"""

SCRIPTS: dict[str, str] = {}
ENDS: dict[str, int] = {}  # exit codes other than 0


def script(name: str, text: str, ends: int = 0) -> None:
    SCRIPTS[name] = text
    if ends:
        ENDS[name] = ends


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

# Models

script("a transformer that generates with a cache", """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
    def forward(self, x, cache):
        q, k, v = self.qkv(x).chunk(3, -1)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 16, -1)
        return x + self.out(weights @ v), (k, v)
blocks = nn.ModuleList(Block() for _ in range(2)).cuda()
with torch.inference_mode():
    x, caches = torch.randn(1, 8, WIDTH).cuda(), [None, None]
    for _ in range(10):
        for i, block in enumerate(blocks):
            x, caches[i] = block(x, caches[i])
        x = x[:, -1:]
""")

script("a recurrent network", """
model = nn.LSTM(WIDTH, 64, num_layers=2, batch_first=True).cuda()
state = None
for x, y in batches():
    output, state = model(x.view(4, 8, WIDTH), state)
    output.sum().backward()
    state = tuple(part.detach() for part in state)
""")

script("an embedding with sparse gradients", """
table = nn.Embedding(1000, WIDTH, sparse=False).cuda()
optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    table(torch.arange(10).cuda()).sum().backward()
    optimizer.step()
""")

script("two models that train against each other", """
maker, judge = make_model(2), make_model(2)
one, two = torch.optim.Adam(maker.parameters()), torch.optim.Adam(judge.parameters())
for x, y in batches():
    fake = maker(x)
    two.zero_grad()
    (judge(fake.detach()).mean() - judge(x).mean()).backward()
    two.step()
    one.zero_grad()
    (-judge(fake).mean()).backward()
    one.step()
""")

# Saving

script("a checkpoint that is saved and loaded again", """
model = make_model()
optimizer = torch.optim.AdamW(model.parameters())
for x, y in batches(2):
    step(model, optimizer, x, y)
file = io.BytesIO()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
file.seek(0)
state = torch.load(file, map_location="cuda")
model.load_state_dict(state["model"])
optimizer.load_state_dict(state["optimizer"])
for x, y in batches(2):
    step(model, optimizer, x, y)
""")

script("weights that are assigned out of a checkpoint", """
saved = {name: value.cpu() for name, value in make_model().state_dict().items()}
with torch.device("meta"):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)])
model.load_state_dict({name: value.cuda() for name, value in saved.items()}, assign=True)
for x, y in batches(2):
    model(x)
""")

# Errors and ends

script("errors that are caught and forgotten", """
model = make_model()
for x, y in batches():
    try:
        model(x[:, :5])
    except RuntimeError:
        pass
    model(x)
""")

script("a batch that is halved until it fits", """
total = torch.cuda.mem_get_info()[1]
torch.cuda.set_per_process_memory_fraction((64 << 20) / total)
size = 1 << 30
while True:
    try:
        x = torch.empty(size, dtype=torch.uint8, device="cuda")
        break
    except torch.cuda.OutOfMemoryError:
        size //= 2
""")

script("an exit in the middle", """
model = make_model()
optimizer = torch.optim.AdamW(model.parameters())
for x, y in batches():
    step(model, optimizer, x, y)
    sys.exit(7)
""", ends=7)

script("an exit without goodbye", """
model = make_model()
for x, y in batches():
    model(x)
sys.stdout.flush()
os._exit(3)
""", ends=3)

script("an exit handler that still uses the device", """
model = make_model()
def goodbye():
    with torch.no_grad():
        model(torch.randn(4, WIDTH).cuda()).cpu()
    torch.cuda.empty_cache()
atexit.register(goodbye)
model(torch.randn(4, WIDTH).cuda())
""")

script("objects that free and allocate as they die", """
class Holder:
    def __init__(self):
        self.data = torch.empty(1 << 20, device="cuda")
    def __del__(self):
        if torch is not None and not sys.is_finalizing():
            self.data = self.data.clone()
holders = [Holder() for _ in range(3)]
holders[0].other = holders[1]
holders[1].other = holders[0]
del holders[:2]
gc.collect()
""")

script("a cycle that nobody collected", """
class Node:
    pass
for x, y in batches():
    node = Node()
    node.self, node.data = node, x
""")

script("a cache of a function with tensors in it", """
@functools.lru_cache(maxsize=None)
def mask(size):
    return torch.empty(size, size, device="cuda")
class Table:
    shared = torch.empty(1000, device="cuda")
for size in (10, 20, 10, 30):
    mask(size)
""")

# Threads and processes

script("threads that each train a model", """
def work():
    model = make_model(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.cuda.stream(torch.cuda.Stream()):
        for x, y in batches(3):
            step(model, optimizer, x, y)
        torch.cuda.current_stream().synchronize()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
""")

script("a daemon that is cut off at the end", """
ready = threading.Event()
def work():
    held = [torch.empty(1000, device="cuda") for _ in range(10)]
    ready.set()
    threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
ready.wait()
""")

script("a producer and a consumer", """
import queue
line = queue.Queue(maxsize=2)
def produce():
    for i in range(10):
        line.put(torch.randn(32, WIDTH).cuda())
    line.put(None)
thread = threading.Thread(target=produce)
thread.start()
model = make_model()
while (x := line.get()) is not None:
    model(x)
thread.join()
""")

script("a forked child that leaves the device alone", """
model = make_model()
child = os.fork()
if child == 0:
    torch.randn(100).sum()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
model(torch.randn(4, WIDTH).cuda())
""")

# Streams, pools, exports

script("work on several streams", """
streams = [torch.cuda.Stream() for _ in range(3)]
x = torch.randn(32, WIDTH).cuda()
for stream in streams * 3:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x.clone()
        x.record_stream(stream)
    torch.cuda.current_stream().wait_stream(stream)
    y.record_stream(torch.cuda.current_stream())
    x = y
""")

script("a pool of one's own", """
pool = torch.cuda.MemPool()
with torch.cuda.use_mem_pool(pool):
    model = make_model()
for x, y in batches():
    model(x)
""")

script("exports to others", """
x = torch.randn(32, WIDTH).cuda()
capsule = torch.utils.dlpack.to_dlpack(x)
again = torch.utils.dlpack.from_dlpack(capsule)
del x
array = again.cpu().numpy()
del again
address = torch.cuda.caching_allocator_alloc(5000)
torch.cuda.caching_allocator_delete(address)
""")

script("views and changes in place", """
base = torch.zeros(64, WIDTH, device="cuda")
rows = [base[i] for i in range(64)]
del base
rows[0].add_(1)
rows = [row.view(16, 16).t() for row in rows]
del rows[:63]
""")

# Watching

script("a profiler that watches memory", """
import warnings
warnings.simplefilter("ignore")
model = make_model()
with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    for x, y in batches(2):
        nn.functional.cross_entropy(model(x), y).backward()
profile.key_averages().table()
""")

script("a history that is on until the end", """
torch.cuda.memory._record_memory_history(stacks="python")
model = make_model()
for x, y in batches(2):
    nn.functional.cross_entropy(model(x), y).backward()
torch.cuda.memory._snapshot()
""")

script("figures that are logged at every step", """
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in batches():
    torch.cuda.reset_peak_memory_stats()
    step(model, optimizer, x, y)
    torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.memory_summary()
    torch.cuda.empty_cache()
""")

script("an anomaly that is looked for", """
model = make_model(2)
with torch.autograd.set_detect_anomaly(True, check_nan=False):
    for x, y in batches(2):
        nn.functional.cross_entropy(model(x), y).backward()
""")
