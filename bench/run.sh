#!/usr/bin/env bash
# Runs every benchmark beside its peer and writes bench/results/<date>-<machine>.md and .json. See README.md here.
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

usage() { printf 'usage: bench/run.sh [--repetitions N] [--out DIR]\n'; }
repetitions=5 out=$ROOT/bench/results
while (($#)); do
  case $1 in
    --repetitions | --out) (($# > 1)) || { usage >&2; exit 2; } ;;&
    --repetitions) repetitions=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

setup_lock
setup_debian build check bench
setup_python
setup_build release allocator_bench torch_cuda_bench codec_bench trace_bench trace_writer record_loop record_loop_library gpuledger_cli \
  gpuledger_torch_cuda fake_cuda_driver fake_cudart fake_cublas fake_cublaslt
setup_unlock

scratch=$(mktemp -d "${TMPDIR:-/tmp}/gpuledger-bench.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
# Interleaved at random, so that a busy minute meets every program alike.
say "Allocator and ledger, $repetitions repetitions"
"$ROOT/build/release/bin/allocator_bench" --benchmark_repetitions="$repetitions" --benchmark_min_time=0.2 \
  --benchmark_enable_random_interleaving=true --benchmark_display_aggregates_only=true \
  --benchmark_out="$scratch/allocator.json" --benchmark_out_format=json </dev/null
say "Hot path beside PyTorch's CUDA allocator, on the fake CUDA, $repetitions repetitions"
"$PYTHON" "$ROOT/bench/hot_path.py" --program "$ROOT/build/release/bin/torch_cuda_bench" --fake "$ROOT/build/release/fake_cuda" \
  --library "$ROOT/build/release/lib/libgpuledger_torch_cuda.so" --out "$scratch/hot_path.json" --repetitions "$repetitions" </dev/null
say "PyTorch under its own allocator and under ours, on the fake CUDA, $repetitions repetitions"
"$PYTHON" "$ROOT/bench/torch_path.py" --fake "$ROOT/build/release/fake_cuda" --library "$ROOT/build/release/lib/libgpuledger_torch_cuda.so" \
  --out "$scratch/torch_path.json" --repetitions "$repetitions" </dev/null
say "4-bit codec, $repetitions repetitions"
"$ROOT/build/release/bin/codec_bench" --benchmark_repetitions="$repetitions" --benchmark_min_time=0.2 \
  --benchmark_enable_random_interleaving=true --benchmark_display_aggregates_only=true \
  --benchmark_out="$scratch/codec.json" --benchmark_out_format=json </dev/null
say "Recording beside heaptrack and memray, $repetitions repetitions"
"$PYTHON" -m pip install --disable-pip-version-check --quiet memray==1.20.0 </dev/null || say "memray is left out: pip could not install it"
"$PYTHON" "$ROOT/bench/record_table.py" --build "$ROOT/build/release" --repetitions "$repetitions" --out "$scratch/record.json" </dev/null
say "Replays, codec and loads beside PyTorch, bitsandbytes and transformers, $repetitions repetitions"
"$PYTHON" "$ROOT/bench/collect.py" --allocator "$scratch/allocator.json" --hot-path "$scratch/hot_path.json" --torch-path "$scratch/torch_path.json" \
  --codec "$scratch/codec.json" --record "$scratch/record.json" --gpuledger "$ROOT/build/release/bin/gpuledger" --scratch "$scratch" --repetitions "$repetitions" --out "$out" </dev/null
