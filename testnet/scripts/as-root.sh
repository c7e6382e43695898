#!/usr/bin/env bash
# Runs a program as root, with the variables that the tests heed. `cargo test` takes it as a runner.
#
#   testnet/scripts/as-root.sh PROGRAM [ARGUMENT...]
set -euo pipefail

# What lies in the caches of the user is looked for there.
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}
keep=()
for name in $(compgen -e); do
  case $name in
    ATTIC_NODE_* | RUST_* | XDG_CACHE_HOME) keep+=("$name=${!name}") ;;
  esac
done
# Passed on through `env`, since sudoers may forbid `sudo -E`.
exec sudo -- env "${keep[@]}" "$@"
