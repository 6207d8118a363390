#!/usr/bin/env bash
# Fuzzes every parser for ten minutes, one after the other; writes bench/results/<date>-<machine>-fuzz.md and .json.
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

usage() { printf 'usage: bench/fuzz.sh [--seconds N] [--out DIR]\n'; }
seconds=600 out=$ROOT/bench/results
while (($#)); do
  case $1 in
    --seconds | --out) (($# > 1)) || { usage >&2; exit 2; } ;;&
    --seconds) seconds=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

setup_lock
setup_debian build check
setup_python
setup_build fuzz fuzz_targets
setup_unlock

scratch=$(mktemp -d "${TMPDIR:-/tmp}/gpuledger-fuzz.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
failed=0
for target in "$ROOT"/build/fuzz/bin/fuzz_*; do
  name=$(basename "$target")
  say "$name, $seconds s"
  GPULEDGER_FUZZ_SECONDS=$seconds "$ROOT/tests/fuzz/run.sh" "$target" </dev/null >"$scratch/$name.log" 2>&1 || failed=1
  tail -n 8 "$scratch/$name.log"
done
"$PYTHON" "$ROOT/bench/fuzz_results.py" --logs "$scratch" --seconds "$seconds" --out "$out" </dev/null
exit "$failed"
