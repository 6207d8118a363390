"""Interpreters that have imported PyTorch, one for each environment: scripts run in forks of them (script_runner.py)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).resolve().with_name("script_runner.py")
MOST = 4  # alive at once
alive: dict[tuple, subprocess.Popen] = {}  # the one that was used longest ago first


def end(interpreter: subprocess.Popen) -> None:
    interpreter.stdin.close()
    code = interpreter.wait(timeout=60)
    interpreter.stdout.close()
    assert code == 0, f"an interpreter that ran scripts ended with {code}"


def end_all() -> None:
    while alive:
        end(alive.pop(next(iter(alive))))


def interpreter_for(environment: dict[str, str], modules: tuple[str, ...]) -> subprocess.Popen:
    key = (modules, *sorted(environment.items()))
    interpreter = alive.pop(key, None)
    if interpreter is None:
        while len(alive) >= MOST:
            end(alive.pop(next(iter(alive))))
        interpreter = subprocess.Popen([sys.executable, str(RUNNER), *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True, env=environment)
    alive[key] = interpreter
    return interpreter


def run(script: Path, environment: dict[str, str] | None = None, modules: tuple[str, ...] = ("torch",), verdict: Path | None = None,
        seconds: float = 300) -> subprocess.CompletedProcess:
    """Runs the script to its end, as a program of its own. subprocess.TimeoutExpired if it takes too long."""
    environment = dict(os.environ if environment is None else environment)
    environment.pop("PYTEST_CURRENT_TEST", None)  # would be another environment in each test
    interpreter = interpreter_for(environment, modules)
    out, err = script.with_suffix(".out"), script.with_suffix(".err")
    job = {"script": str(script), "out": str(out), "err": str(err), "verdict": str(verdict or "")}
    with contextlib.suppress(BrokenPipeError):
        interpreter.stdin.write(json.dumps(job) + "\n")
        interpreter.stdin.flush()
    if not select.select([interpreter.stdout], [], [], seconds)[0]:
        interpreter.kill()
        alive.clear()
        raise subprocess.TimeoutExpired(str(script), seconds)
    code = interpreter.stdout.readline()
    if not code:  # in this environment already the imports fail: the program says so itself
        alive.popitem()
        interpreter.stdout.close()
        return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds,
                              env=environment)
    return subprocess.CompletedProcess([str(script)], int(code), out.read_text(errors="replace"), err.read_text(errors="replace"))
