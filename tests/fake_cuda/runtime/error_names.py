#!/usr/bin/env python3
"""error_names.py driver_types.h OUT: the names and numbers of cudaError, as rows of a C++ table."""

import pathlib
import re
import sys

header, out = map(pathlib.Path, sys.argv[1:])
text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", header.read_text(), flags=re.S)
body = re.search(r"enum\s+(?:__device_builtin__\s+)?cudaError\s*\{(.*?)\}", text, re.S)
errors = re.findall(r"\b(cuda\w+)\s*=\s*(\d+)", body[1])
if not errors:
    raise SystemExit(f"{header}: no enumeration cudaError")
out.write_text("".join(f'{{{number}, "{name}"}},\n' for name, number in errors))
