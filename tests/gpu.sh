#!/usr/bin/env bash
# Everything that wants a GPU, in two steps: built here into one folder, run there from that folder alone.
#
#   tests/gpu.sh --pack DIR              builds, and fills DIR with programs, libraries and Python tests
#   tests/gpu.sh --run DIR --out OUT     runs them; writes OUT/<date>-<gpu>.md and .json, and OUT/log.txt
#   tests/gpu.sh --run DIR --out OUT --fake    the same on the fake driver that DIR carries
#   python3 DIR/torch_on_device.py --dir DIR --out OUT    PyTorch on our allocator: tests and measurements alone
#
# --run needs a driver, python3, and for some of it compute-sanitizer, PyTorch and pytest: what is not there is reported as
# not run. It builds nothing and reaches for no network. The exit code is 0 if all that ran has passed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/pack.sh
source "$here/gpu/pack.sh"
pack_arguments run_on_device.py "$@"

# shellcheck source=cmake/setup.sh
source "$here/../cmake/setup.sh"
programs=(cuda_contract_test cuda_upstream_test cuda_fences_test cuda_stream_test cuda_faults_test cuda_allocator_test cuda_model_test open_cuda
          cuda_peer_test cuda_ipc_test import_memory cuda_pluggable_test
          resource_contract_test resource_deleted_stream_test
          nf4_on_device_test pattern_test remap_test sanitized driver_costs)
command -v nvcc >/dev/null || die "nvcc not found: the kernels of tests/gpu are compiled here (CUDA Toolkit 13)"
pack_build "${programs[@]}" gpuledger_torch gpuledger_torch_cuda
pack_programs "${programs[@]}"
cp "$here/gpu.sh" "$here/gpu/run_on_device.py" "$pack/"
# The tests of PyTorch's memory behaviour, with what switches the fake on.
for folder in torch_cuda fake_cuda; do
  [[ -d $here/torch_cuda ]] || break
  mkdir -p "$pack/python/tests/$folder"
  cp "$here/$folder"/*.py "$pack/python/tests/$folder/"
done
# PyTorch on our allocator: the libraries, the Python package, the measurements (torch_on_device.py).
pack_library gpuledger_torch gpuledger_torch_cuda
cp -r "$here/torch_cuda/ours" "$pack/python/tests/torch_cuda/"
mkdir -p "$pack/python/tracing" "$pack/bench"
cp -r "$ROOT/tracing/python" "$pack/python/tracing/"
cp "$ROOT"/bench/torch_path.py "$ROOT"/bench/torch_workloads.py "$pack/bench/"
cp "$here/gpu/torch_on_device.py" "$pack/"
find "$pack" -name __pycache__ -prune -exec rm -rf {} +
[[ ! -f $here/conftest.py ]] || cp "$here/conftest.py" "$pack/python/tests/"
pack_end
