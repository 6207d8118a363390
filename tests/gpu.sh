#!/usr/bin/env bash
# Everything that wants a GPU, in two steps: built here into one folder, run there from that folder alone.
#
#   tests/gpu.sh --pack DIR              builds, and fills DIR with programs, libraries and Python tests
#   tests/gpu.sh --run DIR --out OUT     runs them; writes OUT/<date>-<gpu>.md and .json, and OUT/log.txt
#   tests/gpu.sh --run DIR --out OUT --fake    the same on the fake driver that DIR carries
#
# --run needs a driver, python3, and for some of it compute-sanitizer, PyTorch and pytest: what is not there is reported as
# not run. It builds nothing and reaches for no network. The exit code is 0 if all that ran has passed.
set -euo pipefail

usage() {
  printf 'usage: tests/gpu.sh --pack DIR\n       tests/gpu.sh --run DIR --out OUT [--fake]\n'
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pack='' run='' out='' fake=()
while (($#)); do
  case $1 in
    --pack | --run | --out) (($# > 1)) || { usage >&2; exit 2; } ;;&
    --pack) pack=$2; shift 2 ;;
    --run) run=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --fake) fake=(--fake); shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

if [[ -n $run && -n $out && -z $pack ]]; then
  mkdir -p "$out"
  chmod +x "$run"/bin/* 2>/dev/null || true  # not every way of carrying keeps modes
  exec python3 -B "$run/run_on_device.py" --dir "$run" --out "$out" "${fake[@]}"
fi
[[ -n $pack && -z $run$out ]] || { usage >&2; exit 2; }

# shellcheck source=cmake/setup.sh
source "$here/../cmake/setup.sh"
programs=(cuda_contract_test cuda_upstream_test cuda_fences_test cuda_stream_test cuda_faults_test cuda_model_test open_cuda
          nf4_on_device_test pattern_test remap_test sanitized driver_costs)
command -v nvcc >/dev/null || die "nvcc not found: the kernels of tests/gpu are compiled here (CUDA Toolkit 13)"
setup_lock
setup_debian build check
setup_python
setup_build release "${programs[@]}" fake_cuda_driver
setup_unlock

say "Packing"
build=$ROOT/build/release
rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/lib" "$pack/fake" "$pack/python/tests"
for program in "${programs[@]}"; do
  strip -o "$pack/bin/$program" "$build/bin/$program"
done
# Abseil too: it is part of the C++ interface. The C and C++ libraries are the other machine's.
for program in "${programs[@]}"; do ldd "$build/bin/$program"; done | awk '$1 ~ /^lib(absl|gpuledger|hwy)/ { print $3 }' |
  sort -u | xargs cp -Lt "$pack/lib"
cp -a "$build"/fake_cuda/. "$pack/fake/"
find "$pack/lib" "$pack/fake" -name '*.so*' -type f -exec strip --strip-unneeded {} +
cp "$here/gpu.sh" "$here/gpu/run_on_device.py" "$pack/"
# The tests of PyTorch's memory behaviour, with what switches the fake on.
for folder in torch_cuda fake_cuda; do
  [[ -d $here/torch_cuda ]] || break
  mkdir -p "$pack/python/tests/$folder"
  cp "$here/$folder"/*.py "$pack/python/tests/$folder/"
done
[[ ! -f $here/conftest.py ]] || cp "$here/conftest.py" "$pack/python/tests/"
git -C "$ROOT" describe --always --dirty --exclude '*' >"$pack/commit"
size=$(du -sm "$pack" | cut -f1)
((size <= 60)) || die "$pack holds $size MiB: more than the 60 MiB that can be carried"
say "$pack: $size MiB"
