# shellcheck shell=bash disable=SC2034  # the scripts that source this use the colours
# Sourced by examples/quickstart.sh, tests/run.sh and bench/run.sh: everything between a fresh checkout and a built preset.
#
#   setup_debian build [check]   installs the missing packages of these groups (debian-packages.txt)
#   setup_python                 .venv with the pinned requirements.txt; nothing to do if it has not changed
#   setup_build PRESET [TARGET…] configures and builds; ninja decides what is out of date
#
# Each says what it does, and nothing when there is nothing to do. A step that fails ends the script with one sentence.

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
# dpkg needs the sbin folders, and a bare environment has neither them nor the CUDA toolkit's usual place.
export PATH="${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/cuda/bin"
# Nothing of the caller's Python gets in, and no library asks a hub for anything.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' CYAN=$'\e[36m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' RED='' GREEN='' CYAN='' PLAIN=''
fi
say() { printf '%s==>%s %s%s%s\n' "$CYAN" "$PLAIN" "$BOLD" "$*" "$PLAIN"; }
die() {
  printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
  exit 1
}

# One set-up at a time in a checkout: a second one waits here.
setup_lock() {
  mkdir -p "$ROOT/build"
  exec 9>"$ROOT/build/.setup.lock"
  flock --nonblock 9 || { say "Waiting for another set-up in this checkout"; flock 9; }
}
setup_unlock() { exec 9>&-; }

setup_debian() {
  local groups=" $* " package group rest missing=()
  command -v dpkg-query >/dev/null || die "this script sets up Debian and its relatives; elsewhere install what" \
    "cmake/debian-packages.txt lists, then: cmake --preset release && cmake --build --preset release"
  while read -r package group rest; do
    [[ -z $package || $package == \#* || $groups != *" $group "* ]] && continue
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done <"$ROOT/cmake/debian-packages.txt"
  ((${#missing[@]})) || return 0

  if ((EUID != 0)); then
    printf '%sMissing Debian packages.%s Run this once, then start again:\n\n' "$BOLD" "$PLAIN" >&2
    printf '  sudo sh -c "apt-get update && apt-get install --yes --no-install-recommends %s"\n\n' "${missing[*]}" >&2
    exit 1
  fi
  say "Installing Debian packages: ${missing[*]}"
  local quiet=(-qq)
  [[ -t 1 ]] && quiet=()
  local install=(apt-get "${quiet[@]}" -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "${missing[@]}")
  export DEBIAN_FRONTEND=noninteractive
  # Lists that are absent or old make the install fail; fetching them is the remedy for both.
  if ! apt-cache show "${missing[@]}" >/dev/null 2>&1 || ! "${install[@]}" </dev/null; then
    apt-get "${quiet[@]}" -o DPkg::Lock::Timeout=300 update
    "${install[@]}" </dev/null || die "apt-get could not install: ${missing[*]}"
  fi
}

setup_python() {
  local stamp=$VENV/.requirements-installed wanted
  wanted=$(sha256sum <"$ROOT/requirements.txt")
  [[ -x $PYTHON && -f $stamp && $(<"$stamp") == "$wanted" ]] && return 0

  # A .venv that was moved, or whose Python was upgraded away, does not start: made anew.
  if ! "$PYTHON" -c 'import pip' >/dev/null 2>&1; then
    say "Making .venv"
    /usr/bin/python3 -m venv --clear "$VENV" || die "python3 -m venv failed (Debian: python3-venv)"
  fi
  say "Installing requirements.txt into .venv (PyTorch is large: about 3 GB to fetch, 5 GB on disk)"
  local bar=off
  [[ -t 1 ]] && bar=on
  "$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar "$bar" \
    --requirement "$ROOT/requirements.txt" </dev/null | sed -u '/^Requirement already satisfied/d; /^  Using cached/d' ||
    die "pip could not install requirements.txt"
  printf '%s\n' "$wanted" >"$stamp"
}

# Leaves the configure step's words in build/PRESET/configure.log; what it left out is shown.
setup_build() {
  local preset=$1 log=$ROOT/build/$1/configure.log fresh=0 targets=()
  shift
  (($#)) && targets=(--target "$@")
  [[ -f $ROOT/build/$preset/build.ninja ]] || fresh=1
  mkdir -p "$ROOT/build/$preset"
  ((fresh)) && say "Configuring preset $preset"
  (cd "$ROOT" && cmake --preset "$preset") >"$log" 2>&1 </dev/null || { cat "$log" >&2; die "cmake --preset $preset failed"; }
  ((fresh)) && sed -n 's/^-- gpuledger: /    /p' "$log"

  # Ninja's dry run is quick and says whether the build has anything to show.
  if ! (cd "$ROOT/build/$preset" && ninja -n "${targets[@]:1}") 2>/dev/null | grep -q 'no work to do'; then
    say "Building preset $preset in build/$preset"
    (cd "$ROOT" && cmake --build --preset "$preset" "${targets[@]}") </dev/null || die "the build failed"
  fi
}
