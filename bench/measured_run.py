"""A command as a process of its own: what it printed, the processor time it took, and the most that was resident of it."""

import json
import subprocess
import sys

# By way of a small Python: the kernel counts what was resident before `exec` to the command, so a large process that starts it
# itself would measure itself.
STARTER = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"exit_code": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode(errors="replace"),
                  "seconds": used.ru_utime + used.ru_stime, "resident_bytes": used.ru_maxrss * 1024}))
"""


def run_json(command):
    """{"result", "seconds", "resident_bytes"}: the JSON object that it printed, processor seconds, peak resident bytes. Exits
    if the command failed."""
    words = [str(word) for word in command]
    done = subprocess.run([sys.executable, "-S", "-c", STARTER, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    measured = json.loads(done.stdout)
    if measured["exit_code"] != 0:
        sys.exit(f"{' '.join(words)} ended with exit code {measured['exit_code']}:\n{measured['stderr'][-4000:]}")
    return {"result": json.loads(measured["stdout"]), "seconds": measured["seconds"], "resident_bytes": measured["resident_bytes"]}
