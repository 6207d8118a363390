#!/usr/bin/env python3
"""From one table of symbols: the exports of a fake CUDA library, its look-up table and its "not supported" stubs.

    symbols.py TABLE --headers cuda.h… --out DIR --name driver --namespace fake_cuda --result CUresult --include FILE

writes into DIR
    NAME_functions.h    declares what the library has to define: one function in the namespace for each implemented symbol
                        (one for cuMemcpy, cuMemcpy_ptds and cuMemcpy_ptsz together, see below)
    NAME_exports.cc     the exported functions: each calls its implementation through `Enter`
    NAME_table.cc       `kSymbols`, every row of the table with its address, and the stubs
    NAME.map            version script: exactly these symbols, under the version node if one is given

README.md here describes the table. Signatures come from the vendor's headers; a symbol that is implemented and not
declared there is an error, so the table cannot drift from the headers it is built with.
"""

import argparse
import csv
import pathlib
import re
import sys

PER_THREAD = ("_ptds", "_ptsz")  # the default stream that such a symbol means is the calling thread's own
FIELDS = ["symbol", "since", "suffix", "family", "flags", "implemented"]
FLAGS = {"early": "kEarly", "unsafe": "kUnsafeInCapture", "thread": "kThreadOnly"}


class Row:
    def __init__(self, fields, where):
        self.symbol, self.suffix, self.family = fields["symbol"], fields["suffix"], fields["family"]
        self.since, self.implemented = int(fields["since"]), fields["implemented"]
        self.flags = fields["flags"].split()
        if self.suffix and not self.symbol.endswith(self.suffix):
            raise SystemExit(f"{where}: {self.symbol} does not end in {self.suffix}")
        if self.implemented not in ("yes", "no", "own") or set(self.flags) - set(FLAGS):
            raise SystemExit(f"{where}: {self.symbol}: implemented is yes, no or own; flags are {', '.join(FLAGS)}")
        self.base = self.symbol.removesuffix(self.suffix)
        self.per_thread = self.suffix.endswith(PER_THREAD)
        self.function = self.symbol[: -len(PER_THREAD[0])] if self.per_thread else self.symbol


def read_table(path):
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != FIELDS:
            raise SystemExit(f"{path}: the columns are {','.join(FIELDS)}")
        rows = [Row(fields, f"{path}:{reader.line_num}") for fields in reader]
    seen = set()
    for row in rows:
        if row.symbol in seen:
            raise SystemExit(f"{path}: {row.symbol} is there twice")
        seen.add(row.symbol)
    return rows


def read_signatures(paths):
    """{(base, since): parameters} of typedefs PFN_base_vSINCE, and {(name, None): parameters} of prototypes."""
    signatures = {}
    for path in paths:
        text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", pathlib.Path(path).read_text(), flags=re.S)
        for name, since, parameters in re.findall(r"\*\s*PFN_(\w+?)_v(\d+)\)\s*\(([^;]*)\)\s*;", text):
            signatures.setdefault((name, int(since)), parameters)
        for name, parameters in re.findall(r"\b\w+\s+(?:CUDAAPI|CUDARTAPI|CUDARTAPI_CDECL)\s+(\w+)\s*\(([^;{]*)\)\s*;", text):
            signatures.setdefault((name, None), parameters)
    return signatures


def parameters_of(row, signatures):
    """[(declaration, name)], from the typedef of that version or else from the prototype."""
    text = signatures.get((row.base, row.since), signatures.get((row.function, None)))
    if text is None:
        raise SystemExit(f"{row.symbol}, since {row.since}: no signature in the headers")
    text = re.sub(r"\s*__dv\([^)]*\)|\s*=\s*[^,]+", "", text)  # default arguments
    result = []
    for declaration in (part.strip() for part in text.split(",")):
        if declaration in ("", "void"):
            continue
        declaration = " ".join(declaration.split())
        result.append((declaration, re.search(r"(\w+)\s*(?:\[\w*\])?$", declaration)[1]))
    return result


def functions_header(options, rows, signatures):
    lines = [f"// Generated from {options.table.name}: what {options.name}_exports.cc calls.", "#pragma once", "",
             f'#include "{options.include}"', '#include "symbol.h"', "", f"namespace {options.namespace} {{", "",
             "extern const fake_cuda::Symbol kSymbols[];", "extern const unsigned kSymbolCount;", ""]
    declared = set()
    for row in rows:
        if row.implemented == "yes" and row.function not in declared:
            declared.add(row.function)
            parameters = ", ".join(declaration for declaration, _ in parameters_of(row, signatures))
            lines.append(f"{options.result} {row.function}({parameters});")
    return lines + ["", f"}}  // namespace {options.namespace}"]


def exports(options, rows, signatures):
    lines = [f"// Generated from {options.table.name}: the exported functions.", f'#include "{options.name}_functions.h"', ""]
    for index, row in enumerate(rows):
        if row.implemented != "yes":
            continue
        parameters = parameters_of(row, signatures)
        declarations = ", ".join(declaration for declaration, _ in parameters)
        arguments = ", ".join(name for _, name in parameters)
        lines += [f'extern "C" __attribute__((visibility("default"))) {options.result} {row.symbol}({declarations}) {{',
                  f"  return {options.namespace}::Enter({options.namespace}::kSymbols[{index}], "
                  f"[&] {{ return {options.namespace}::{row.function}({arguments}); }}"
                  f"{', ' if arguments else ''}{arguments});", "}"]
    return lines


def table(options, rows):
    """Knows no CUDA header: here every symbol is a function without parameters, of which only the address matters."""
    lines = [f"// Generated from {options.table.name}: stubs, and the table of all symbols.", '#include "symbol.h"', "",
             f"namespace {options.namespace} {{", "extern const fake_cuda::Symbol kSymbols[];",
             "int Unsupported(const fake_cuda::Symbol& symbol);", "}", ""]
    for index, row in enumerate(rows):
        if row.implemented == "no":
            lines.append(f'extern "C" __attribute__((visibility("default"))) int {row.symbol}() '
                         f"{{ return {options.namespace}::Unsupported({options.namespace}::kSymbols[{index}]); }}")
        else:
            lines.append(f'extern "C" int {row.symbol}();')
    lines += ["", f"namespace {options.namespace} {{", "", "using namespace fake_cuda;", "", "const Symbol kSymbols[] = {"]
    for row in rows:
        flags = " | ".join(["0"] + [FLAGS[flag] for flag in row.flags] + (["kPerThread"] if row.per_thread else []) +
                           ([] if row.implemented == "no" else ["kImplemented"]))
        lines.append(f'    {{"{row.symbol}", "{row.base}", "{row.family}", {row.since}, {flags}, '
                     f"reinterpret_cast<void*>(&::{row.symbol})}},")
    return lines + ["};", f"extern const unsigned kSymbolCount = {len(rows)};", "", f"}}  // namespace {options.namespace}"]


def version_script(options, rows):
    names = "".join(f"    {name};\n" for name in [row.symbol for row in rows] + options.also)
    return [f"{options.version_node + ' ' if options.version_node else ''}{{\n  global:\n{names}  local: *;\n}};"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("--headers", nargs="+", required=True, help="where the signatures are, the first one wins")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--name", required=True, help="first part of the names of the files")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--result", required=True, help="what each function returns, such as CUresult")
    parser.add_argument("--include", required=True, help="declares Enter and includes the vendor's header")
    parser.add_argument("--version-node", default="")
    parser.add_argument("--also", nargs="*", default=[], help="exported beside the table")
    options = parser.parse_args()

    rows, signatures = read_table(options.table), read_signatures(options.headers)
    options.out.mkdir(parents=True, exist_ok=True)
    for file, lines in ((f"{options.name}_functions.h", functions_header(options, rows, signatures)),
                        (f"{options.name}_exports.cc", exports(options, rows, signatures)),
                        (f"{options.name}_table.cc", table(options, rows)),
                        (f"{options.name}.map", version_script(options, rows))):
        (options.out / file).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
