#!/usr/bin/env bash
# Puts real S3 servers into cache folders, for tests; installs nothing elsewhere. Needs no root.
#
#   testnet/scripts/garage.sh [garage] [moto]      both, unless one is named
#
# Result:
#   ${XDG_CACHE_HOME:-$HOME/.cache}/attic-node-garage/bin/garage   Garage, built from source: about 25
#                                                                  minutes on two processors
#   ${XDG_CACHE_HOME:-$HOME/.cache}/attic-node-moto/bin/moto_server   a second implementation, from PyPI
# What is there already is kept. Then
#
#   ATTIC_NODE_TEST_S3=1 testnet/scripts/test.sh s3_server
#
# runs the tests that want them, and fails where one is missing; without the variable they say so.
set -euo pipefail
export LC_ALL=C

garage_version=2.5.0
moto_version=5.2.5
cache=${XDG_CACHE_HOME:-$HOME/.cache}

garage() {
  local root=$cache/attic-node-garage
  if "$root/bin/garage" --version >/dev/null 2>&1; then
    echo "garage: $("$root/bin/garage" --version) (kept)"
    return
  fi
  # Not from within the checkout, whose toolchain and settings are those of the node. The folder that
  # it is built in lies beside the result, and goes when that is there.
  mkdir -p "$root"
  (cd "$root" && env -u CARGO_TARGET_DIR -u RUSTFLAGS -u RUSTUP_TOOLCHAIN cargo install garage \
    --version "$garage_version" --locked --no-default-features \
    --features bundled-libs,sqlite,lmdb --root "$root" --target-dir "$root/build")
  rm -rf "$root/build"
  "$root/bin/garage" --version
}

moto() {
  local root=$cache/attic-node-moto
  if [ -x "$root/bin/moto_server" ]; then
    echo "moto: kept"
    return
  fi
  # Complete or not there. Not made elsewhere and moved: a virtual environment names its own folder.
  made=$root
  rm -rf "$made"
  trap 'rm -rf "${made:?}"' EXIT
  python3 -m venv "$made"
  # What its server needs for S3 alone; its own extra "server" brings everything of AWS.
  "$made/bin/pip" install --quiet --disable-pip-version-check \
    "moto[s3]==$moto_version" flask flask-cors
  "$made/bin/python" -c 'import moto.server'
  trap - EXIT
  echo "moto: $moto_version in $root"
}

wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(moto garage)
for name in "${wanted[@]}"; do
  case $name in
    garage | moto) "$name" ;;
    *) echo "garage.sh: no such server: $name" >&2; exit 2 ;;
  esac
done
