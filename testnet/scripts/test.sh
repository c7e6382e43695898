#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every test of the workspace.
#
#   testnet/scripts/test.sh [arguments for cargo test]
#
# Run as root, or as a user who may use sudo: then the tests that need root (real Nix writing to
# /nix/store, a small tmpfs) say that they were left out.
set -euo pipefail
cd "$(dirname "$0")/../.."

testnet/scripts/prepare.sh
# The end-to-end tests start the real binary, which `cargo test` alone does not build.
cargo build --workspace --bins
cargo test --workspace --no-fail-fast "$@"
