"""Runs scripts as programs of their own, each in a fork of an interpreter that has imported PyTorch and has not used CUDA.

So a script starts in a tenth of a second, and ends as one does: with its globals alive, through the exit handlers and the
interpreter's end. Reads a line of JSON for each, {"script", "said"}: two paths; what the script prints goes to the second.
With "verdict", a path, the leaks that gpuledger finds at the script's end are written there: after all exit handlers of
the script's own. Answers with the exit code.
"""

import atexit
import json
import os
import sys

import torch
import torch._dynamo
import torch.optim
import torch.profiler
import torch.utils.checkpoint
import torch.utils.data


def write_verdict(path):
    import gpuledger

    found = [str(leak) for leak in gpuledger.leaks().leaks if leak.severity != "warning"]  # a cycle, say, is one
    with open(path, "w") as file:
        json.dump(found, file)


for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
said = os.open(job["said"], os.O_WRONLY | os.O_CREAT)
os.dup2(said, 1)
os.dup2(said, 2)
if job.get("verdict"):
    atexit.register(write_verdict, job["verdict"])
with open(job["script"]) as file:
    code = compile(file.read(), job["script"], "exec")
exec(code, sys.modules["__main__"].__dict__)
