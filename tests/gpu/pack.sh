# shellcheck shell=bash disable=SC2034  # sourced
# What tests/gpu.sh and bench/gpu.sh share: one folder is filled here, where everything is built, and run from alone on a
# machine with a GPU. Both are called as
#
#   gpu.sh --pack DIR                    builds, and fills DIR
#   gpu.sh --run DIR --out OUT [--fake]  runs what is in DIR: on a GPU, or on the fake driver that DIR carries
#
#   pack_arguments SCRIPT "$@"   reads them; for --run it ends in DIR's SCRIPT, for --pack it returns with $pack set
#   pack_build PROGRAM…          sets up and builds these, and the fake
#   pack_programs PROGRAM…       puts them into an emptied $pack, with their libraries and the fake, without symbols
#   pack_library NAME…           and these, which programs load at run time
#   pack_end                     notes the commit, and refuses a folder over 60 MiB

pack_arguments() {
  local script=$1 run='' out='' fake=() usage
  usage="usage: $0 --pack DIR"$'\n'"       $0 --run DIR --out OUT [--fake]"$'\n'
  pack=''
  shift
  while (($#)); do
    case $1 in
      --pack | --run | --out) (($# > 1)) || { printf '%s' "$usage" >&2; exit 2; } ;;&
      --pack) pack=$2; shift 2 ;;
      --run) run=$2; shift 2 ;;
      --out) out=$2; shift 2 ;;
      --fake) fake=(--fake); shift ;;
      -h | --help) printf '%s' "$usage"; exit 0 ;;
      *) printf '%s' "$usage" >&2; exit 2 ;;
    esac
  done
  if [[ -n $run && -n $out && -z $pack ]]; then
    mkdir -p "$out"
    chmod +x "$run"/bin/* 2>/dev/null || true  # not every way of carrying keeps modes
    exec python3 -B "$run/$script" --dir "$run" --out "$out" "${fake[@]}"
  fi
  [[ -n $pack && -z $run$out ]] || { printf '%s' "$usage" >&2; exit 2; }
}

pack_build() {
  setup_lock
  setup_debian build check
  setup_python
  setup_build release "$@" fake_cuda_driver fake_cudart fake_cublas fake_cublaslt
  setup_unlock
}

pack_programs() {
  local build=$ROOT/build/release program
  say "Packing"
  rm -rf "$pack"
  mkdir -p "$pack/bin" "$pack/lib" "$pack/fake"
  for program in "$@"; do
    strip -o "$pack/bin/$program" "$build/bin/$program"
  done
  # Abseil too: it is part of the C++ interface; elfutils with what it needs. The C and C++ libraries, and PyTorch's, are the other machine's.
  for program in "$@"; do ldd "$build/bin/$program"; done |
    awk '$1 ~ /^lib(absl_|gpuledger|hwy|benchmark|z\.|zstd|png|dw|elf|lzma|bz2)/ && $3 ~ /^\// { print $3 }' | sort -u | xargs cp -Lt "$pack/lib"
  cp -a "$build"/fake_cuda/. "$pack/fake/"
  find "$pack/lib" "$pack/fake" -name '*.so*' -type f -exec strip --strip-unneeded {} +
  mkdir -p "$pack/gpu"
  cp "$ROOT/tests/gpu/pack.sh" "$pack/gpu/"  # where the packed gpu.sh looks for it
  cp "$ROOT/tests/gpu/packed.py" "$pack/"
}

pack_library() {
  local name
  for name in "$@"; do strip --strip-unneeded -o "$pack/lib/lib$name.so.0" "$ROOT/build/release/lib/lib$name.so"; done
}

pack_end() {
  local size
  git -C "$ROOT" describe --always --dirty --exclude '*' >"$pack/commit"
  size=$(du -sm "$pack" | cut -f1)
  ((size <= 60)) || die "$pack holds $size MiB: more than the 60 MiB that can be carried"
  say "$pack: $size MiB"
}
