"""Counts with callgrind what a hit costs, and compares it with the number pinned in instruction_budget.txt.

    instruction_budget.py PROGRAM           exit code 1 if it is more than 5 % away, in either direction
    instruction_budget.py PROGRAM --pin     writes the number of today into the file

Counted, not timed: the same program gives the same number on a busy machine. What the compiler makes of the same source
may differ; the file says which one the number is of.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

PINNED = pathlib.Path(__file__).with_name("instruction_budget.txt")
COUNT = 100_000
TOLERANCE = 0.05


def instructions_per_pair(program):
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "callgrind.out"
        done = subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no",
                               "--toggle-collect=CountedPairs", str(program), str(COUNT)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=300)
        if done.returncode != 0:
            why = ": a hit made an upstream call" if done.returncode == 1 else ""
            sys.exit(f"{program} ended with {done.returncode}{why}\n{done.stderr}")
        total = re.search(r"^(?:summary|totals): (\d+)", out.read_text(errors="replace"), re.MULTILINE)
    if total is None or int(total[1]) == 0:
        sys.exit(f"callgrind counted nothing:\n{done.stderr}")
    return int(total[1]) / COUNT


def compiler(program):
    """Of the program, as the compiler has noted it there: "GCC: (Debian 12.2.0-14) 12.2.0"."""
    comment = subprocess.run(["readelf", "-p", ".comment", str(program)], capture_output=True, text=True).stdout
    found = re.search(r"GCC: [^\n]*|[^\n]*clang[^\n]*", comment)
    return found[0].strip() if found else "unknown compiler"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--pin", action="store_true")
    options = parser.parse_args()
    measured = instructions_per_pair(options.program)
    text = PINNED.read_text()
    if options.pin:
        text = re.sub(r"^pair 512 B: .*", f"pair 512 B: {measured:.0f}   {compiler(options.program)}", text, flags=re.MULTILINE)
        PINNED.write_text(text)
        print(f"pinned: {measured:.1f} instructions a pair")
        return 0
    pinned = int(re.search(r"^pair 512 B: (\d+)", text, re.MULTILINE)[1])
    change = measured / pinned - 1
    print(f"{measured:.1f} instructions a pair, {pinned} pinned: {change:+.1%}")
    if abs(change) <= TOLERANCE:
        return 0
    print(f"A hit of 512 B costs {'more' if change > 0 else 'less'} than what is pinned in {PINNED.name}, with "
          f"{compiler(options.program)}. If that is meant: cmake --build --preset release --target pin_instruction_budget")
    return 1


if __name__ == "__main__":
    sys.exit(main())
