#!/usr/bin/env bash
# The benchmarks that want a GPU, in two steps: built here into one folder, run there from that folder alone.
#
#   bench/gpu.sh --pack DIR              builds, and fills DIR; the traces to replay come from the folder GPULEDGER_TRACES
#   bench/gpu.sh --run DIR --out OUT     runs them; writes OUT/<date>-<gpu>-bench.md and .json, and OUT/log.txt
#   bench/gpu.sh --run DIR --out OUT --fake    the same on the fake CUDA that DIR carries
#
# --run needs a driver and a python3 with PyTorch for CUDA 13. It builds nothing and reaches for no network. The exit code
# is 0 if all that DIR holds has run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
common=$here/gpu/pack.sh  # in a packed folder
[[ -f $common ]] || common=$here/../tests/gpu/pack.sh
# shellcheck source=tests/gpu/pack.sh
source "$common"
pack_arguments gpu_bench.py "$@"

# shellcheck source=cmake/setup.sh
source "$here/../cmake/setup.sh"
pack_build torch_cuda_bench gpuledger_cli gpuledger_torch_cuda
pack_programs torch_cuda_bench gpuledger
pack_library gpuledger_torch_cuda
cp "$here/gpu.sh" "$here/gpu_bench.py" "$here/hot_path.py" "$pack/"
if [[ -n ${GPULEDGER_TRACES:-} ]]; then
  mkdir -p "$pack/traces"
  cp "$GPULEDGER_TRACES"/*.trace.gz "$pack/traces/"
fi
pack_end
