"""More scripts of training_scripts.py: models, saving, errors and ends, threads and processes, streams, watching."""

from script_table import script

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
