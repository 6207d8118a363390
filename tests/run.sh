#!/usr/bin/env bash
# All tests: sets up, builds, runs. See README.md here.
# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

usage() {
  printf 'usage: tests/run.sh [--preset release|debug|asan|tsan|thread-safety|fuzz]\n'
  printf 'release (the default): C++ and Python tests; debug, asan, tsan: C++ tests; thread-safety: the build is the test\n'
  printf 'fuzz: each parser for GPULEDGER_FUZZ_SECONDS (60)\n'
}
preset=release
while (($#)); do
  case $1 in
    --preset) (($# > 1)) || { usage >&2; exit 2; }
      preset=$2; shift 2 ;;
    --preset=*) preset=${1#*=}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
case $preset in release | debug | asan | tsan | thread-safety | fuzz) ;; *) usage >&2; exit 2 ;; esac

setup_lock
setup_debian build check
setup_python
if [[ $preset == fuzz ]]; then setup_build fuzz fuzz_targets; else setup_build "$preset"; fi
setup_unlock

# A test run without a component would be green for what it did not test. nvcc alone may be missing.
if left_out=$(grep '^-- gpuledger: .*left out' "$ROOT/build/$preset/configure.log" | grep -v 'nvcc not found'); then
  die "tests/run.sh runs no half of the tests: ${left_out#-- gpuledger: }"
fi
if [[ $preset == thread-safety ]]; then
  say "Thread-safety analysis: no findings"
  exit 0
fi

cd "$ROOT"
export GPULEDGER_BINARY=$ROOT/build/$preset/bin/gpuledger
export GPULEDGER_LIBRARY=$ROOT/build/$preset/lib/libgpuledger.so
export GPULEDGER_TORCH_LIBRARY=$ROOT/build/$preset/lib/libgpuledger_torch.so
export GPULEDGER_TORCH_CUDA_LIBRARY=$ROOT/build/$preset/lib/libgpuledger_torch_cuda.so
export GPULEDGER_FAKE_CUDA=$ROOT/build/$preset/fake_cuda
failed=0
say "C++ tests, preset $preset"
ctest --preset "$preset" </dev/null 2>&1 | tee "$ROOT/build/$preset/ctest.log" || failed=1
closing=$(grep -E '^[0-9]+% tests passed' "$ROOT/build/$preset/ctest.log") || closing='ctest ended without a result'

if [[ $preset == release ]]; then
  say "Python tests"
  # pytest closes with its own line; ctest's is repeated before it, so that both are the last ones.
  "$PYTHON" -m pytest --numprocesses "$(($(nproc) < 4 ? $(nproc) : 4))" --dist loadfile --color="$([[ -n $BOLD ]] && echo yes || echo no)" tests </dev/null 2>&1 |
    tee "$ROOT/build/$preset/pytest.log" || failed=1
  closing+=$'\n'$(tail -n 1 "$ROOT/build/$preset/pytest.log")
fi
say "Results, preset $preset"
printf '%s\n' "$closing"
exit "$failed"
