"""Runs scripts as programs of their own, each in a fork of an interpreter that has imported PyTorch and has not used CUDA.

So a script starts in a tenth of a second, and ends as one does: with its globals alive, through the exit handlers and the
interpreter's end. Imports the modules of its arguments beforehand. Reads a line of JSON for each script, {"script", "out",
"err"}: three paths; what it prints goes to the latter two. With "verdict", a path, the leaks that gpuledger finds at the script's
end are written there: after all exit handlers of the script's own. Answers with the exit code. interpreters.py starts it.
"""

import atexit
import gc
import importlib
import json
import os
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)
gc.collect()
gc.freeze()  # what the imports left would take each script half a second to take down


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
for stream, path in ((1, job["out"]), (2, job["err"])):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
if job.get("verdict"):
    atexit.register(write_verdict, job["verdict"])
sys.argv[:] = [job["script"]]
main = sys.modules["__main__"].__dict__
main["__file__"] = job["script"]  # what a spawned process begins with
with open(job["script"]) as file:
    code = compile(file.read(), job["script"], "exec")
exec(code, main)
