#!/usr/bin/env bash
# Checks that no crate of the workspace imports what it must not:
#
#   cli -> node -> p2p -> store core,  node -> store backends,  nothing -> testnet
#
# A build of the whole workspace unifies features and would hide a leak, so each crate is checked
# alone, and its dependencies are looked through by name.
set -euo pipefail
cd "$(dirname "$0")/../.."

failed=0

# refuse <what it is called> <cargo tree arguments> -- <names it must not depend on>
refuse() {
  local what=$1 tree name
  shift
  local args=()
  while [ "$1" != -- ]; do args+=("$1"); shift; done
  shift
  tree=$(cargo tree --quiet --edges normal,build --prefix none --format '{p}' "${args[@]}")
  for name in "$@"; do
    if grep -qE "^$name v" <<<"$tree"; then
      echo "import rule: $what must not depend on $name" >&2
      failed=1
    fi
  done
}

run_time=(tokio axum hyper libp2p aws-sdk-s3 sled rustix)
refuse "store core" --package attic-store --no-default-features -- "${run_time[@]}"
refuse "store" --package attic-store --all-features -- libp2p axum clap attic-p2p attic-node-core
refuse "p2p" --package attic-p2p -- sled axum aws-sdk-s3 clap attic-node-core
refuse "node" --package attic-node-core -- clap indicatif attic-node testnet
# What cli names itself; through node it may reach everything.
refuse "cli" --package attic-node --depth 1 -- libp2p sled axum attic-p2p testnet

if [ "$(cargo tree --quiet --workspace --edges normal,build,dev --invert testnet --prefix none | wc -l)" != 1 ]; then
  echo "import rule: nothing may depend on testnet" >&2
  failed=1
fi

cargo check --quiet --package attic-store --no-default-features
for crate in attic-store attic-p2p attic-node-core attic-node testnet; do
  cargo check --quiet --package "$crate"
done
[ "$failed" = 0 ] && echo "import rule: holds"
exit "$failed"
