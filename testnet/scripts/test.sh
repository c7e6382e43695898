#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every test of the workspace.
#
#   testnet/scripts/test.sh [arguments for cargo test]
#
# Run as root, or as a user who may use sudo: then the end-to-end tests (real Nix writing to
# /nix/store, a small tmpfs) run as root, and nothing else does.
set -euo pipefail
cd "$(dirname "$0")/../.."

testnet/scripts/prepare.sh
# Clients that the machine does not have; the tests that want them say so where there are none.
testnet/scripts/newer-nix.sh
# An S3 server for the tests of the bucket, unless Garage is there; where neither is, they say so.
testnet/scripts/garage.sh moto || echo "no moto: the tests of the bucket want Garage, or are left out"
# The end-to-end tests start the real binary, which all tests together build; built by itself it
# would have other features, and every dependency would be compiled twice.
cargo test --workspace --no-run
if [ "$(id -u)" = 0 ]; then
  cargo test --workspace --no-fail-fast "$@"
  exit
fi
status=0
cargo test --workspace --exclude testnet --no-fail-fast "$@" || status=$?
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
env "CARGO_TARGET_${host}_RUNNER=$PWD/testnet/scripts/as-root.sh" \
  cargo test -p testnet --no-fail-fast "$@" || status=$?
exit "$status"
