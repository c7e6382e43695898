#!/usr/bin/env bash
# Installs what the end-to-end tests need on a Debian machine, and makes their closure S.
#
#   testnet/scripts/prepare.sh [bench]      "bench" adds nginx, wrk, iperf3 and corpus L1
#
# Does nothing that is done already, so it costs a second the next time. Needs root (or sudo) for
# the packages and for /nix/store.
set -euo pipefail
cd "$(dirname "$0")"

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

packages=(nix-bin python3 util-linux curl iproute2 nftables)
corpora=(S)
if [ "${1:-}" = bench ]; then
  packages+=(nginx-light wrk iperf3)
  corpora+=(L1)
fi

missing=()
for package in "${packages[@]}"; do
  # nginx comes in several packages; any of them will do.
  [ "$package" = nginx-light ] && command -v nginx >/dev/null && continue
  dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
    missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "prepare: installing ${missing[*]}" >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    "${missing[@]}" >/dev/null
fi

# A service that a package starts by itself would hold ports and a store lock.
if [[ " ${missing[*]-} " == *" nginx-light "* ]] && [ -d /run/systemd/system ]; then
  as_root systemctl disable --now nginx.service >/dev/null 2>&1 || true
fi

# Made here, as the user: what root makes below is root's, and so would be ~/.cache of a new account.
corpus=${ATTIC_NODE_CORPUS:-${XDG_CACHE_HOME:-$HOME/.cache}/attic-node-corpus}
mkdir -p "$corpus" 2>/dev/null || as_root mkdir -p "$corpus"
for name in "${corpora[@]}"; do
  if [ -s "$corpus/$name.paths" ] && [ -e "$(cat "$corpus/$name.env")" ]; then continue; fi
  echo "prepare: making corpus $name in $corpus" >&2
  # The package index may be older than the packages it names, or absent.
  as_root apt-get -qq update
  as_root env ATTIC_NODE_CORPUS="$corpus" ./make-corpus.sh "$name" >&2
done
