#!/usr/bin/env bash
# run.sh BUILD/bin/fuzz_NAME: seeds the target's corpus and fuzzes for GPULEDGER_FUZZ_SECONDS (60). See README.md here.
set -euo pipefail
target=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$(basename "$target")
work=$(dirname "$target")/../fuzz/$name
mkdir -p "$work/corpus" "$work/found"
python3 "$here/make_corpus.py" "${name#fuzz_}" "$work/corpus"
# What earlier runs found is tried first: libFuzzer reads the folder before it invents anything.
exec "$target" -max_total_time="${GPULEDGER_FUZZ_SECONDS:-60}" -timeout=5 -rss_limit_mb=2048 -max_len=65536 \
  -dict="$here/json.dict" -artifact_prefix="$work/found/" -print_final_stats=1 "$work/corpus"
