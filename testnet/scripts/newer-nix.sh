#!/usr/bin/env bash
# Puts Nix clients newer than the machine's into a cache folder, for tests; installs nothing.
#
#   testnet/scripts/newer-nix.sh [SUITE...]      Debian suites to take nix-bin from: trixie sid
#
# Result, per suite, below ${XDG_CACHE_HOME:-$HOME/.cache}/attic-node-nix:
#   <version>/bin/{nix,nix-store,…}   run that version with its own loader and libraries
#   <version>/packages                the packages it is made of
#   <suite>                           a link to its <version>
# Packages come from the mirror that apt is configured with (else deb.debian.org) and are verified
# by apt, against Debian's signature; apt's state is a private one. What is there already is kept
# (remove the suite's link to look for a newer one). Prints the versions. Says "not available", and
# succeeds, when a suite cannot be had. Needs no root.
set -euo pipefail
export LC_ALL=C

suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(trixie sid)
for suite in "${suites[@]}"; do
  # It becomes the name of a link, and a word of a sources.list.
  if ! [[ $suite =~ ^[a-z][a-z-]*$ ]]; then echo "newer-nix: no such suite: $suite" >&2; exit 2; fi
done

cache=${XDG_CACHE_HOME:-$HOME/.cache}/attic-node-nix
mkdir -p "$cache"
work=$(mktemp -d "$cache/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The mirror of Debian itself, not of its security updates or of another vendor.
configured=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null |
  grep -vE '^[[:space:]]*#' | grep -m 1 -oE '[a-z+]+:[^[:space:]]+/debian/?([[:space:]]|$)' || true)
read -r mirror _ <<<"${configured:-http://deb.debian.org/debian}"
keyring=
for file in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
  if [ -r "$file" ]; then keyring=$file; break; fi
done

# apt-get with the state that `configure` made. The machine's settings, a proxy say, still hold; its
# hooks do not run.
apt_get() {
  apt-get -q -c "$state/apt.conf" "$@"
}

# configure SUITE: an apt that knows this suite alone and believes that nothing is installed.
configure() {
  state=$work/$1
  mkdir -p "$state"/{lists,archives}/partial
  : >"$state/status"
  echo "deb [target=Packages signed-by=$keyring] $mirror $1 main" >"$state/sources.list"
  cat >"$state/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::State::extended_states "$state/extended_states";
Dir::Cache "$state";
Dir::Cache::archives "$state/archives";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
CONF
}

# fetch: the .deb files of nix-bin and of the libraries it needs, verified. Perl, bash, curl and the
# like, which are only for scripts and for the sandbox, are left out.
fetch() {
  local plan wanted
  apt_get update || return
  plan=$(apt_get --simulate install nix-bin) || { echo "$plan"; return 1; }
  mapfile -t wanted < <(
    awk '$1 == "Inst" && $2 ~ /^(lib|zlib|nix-bin$)/ && $2 !~ /perl/ { print $2 }' <<<"$plan")
  (cd "$state/archives" && apt_get download "${wanted[@]}")
}

# unpack: makes $state/new from them.
unpack() {
  local new=$state/new deb loaders program library listed
  mkdir -p "$new/bin" || return
  for deb in "$state"/archives/*.deb; do
    dpkg-deb --extract "$deb" "$new" || return
    echo "${deb##*/}" >>"$new/packages"
  done
  rm -rf "$new"/usr/share "$new"/etc "$new"/var
  loaders=("$new"/usr/lib/*/ld-linux*.so.*)
  [ -x "${loaders[0]}" ] && [ -x "$new/usr/bin/nix" ] || return 1
  # Nix decides by the name it is called by what it is, and calls itself.
  cat >"$new/bin/nix" <<'WRAPPER'
#!/bin/sh
here=$(readlink -f -- "$0") && here=${here%/bin/*} || exit
for loader in "$here"/usr/lib/*/ld-linux*.so.*; do :; done
NIX_BIN_DIR=$here/bin
export NIX_BIN_DIR
exec "$loader" --argv0 "${0##*/}" --library-path "${loader%/*}" "$here/usr/bin/nix" "$@"
WRAPPER
  chmod +x "$new/bin/nix"
  for program in "$new"/usr/bin/nix-*; do
    if [ -L "$program" ]; then ln -s nix "$new/bin/${program##*/}"; fi
  done
  # No library may come from the machine, which would work by chance only.
  library=${loaders[0]%/*}
  listed=$("${loaders[0]}" --library-path "$library" --list "$new/usr/bin/nix") || return
  ! grep -vF -e "$library/" -e linux-vdso <<<"$listed"
}

# version_of DIRECTORY: as the client there says it. `nix --version` opens no store; `nix-store
# --version` would, and a newer Nix adds a table to the machine's database when it opens it.
version_of() {
  local said
  said=$("$1/bin/nix" --version) && [[ $said =~ ^nix\ \(Nix\)\ ([0-9][0-9A-Za-z.+~-]*)$ ]] &&
    echo "${BASH_REMATCH[1]}"
}

# not_available SUITE REASON
not_available() {
  echo "newer-nix: $1: not available: $2"
}

# attempt COMMAND...: whether it succeeds; what it says is in $state/log.
attempt() {
  "$@" >"$state/log" 2>&1
}

# reason: the first error in that log, else its last line.
reason() {
  grep -m 1 -E '^E:|error' "$state/log" || tail -n 1 "$state/log"
}

for suite in "${suites[@]}"; do
  if [ -d "$cache/$suite" ] && version=$(version_of "$cache/$suite"); then
    echo "newer-nix: $suite: $version (kept)"
    continue
  fi
  if ! command -v apt-get >/dev/null || [ -z "$keyring" ]; then
    not_available "$suite" "needs apt and Debian's archive keyring"
    continue
  fi
  configure "$suite"
  if ! attempt fetch; then
    not_available "$suite" "$(reason)"
    continue
  fi
  if ! attempt unpack || ! version=$(version_of "$state/new"); then
    not_available "$suite" "the client does not run here: $(reason)"
    continue
  fi
  # Another run may have been quicker: its result is as good.
  if ! version_of "$cache/$version" >/dev/null 2>&1; then
    rm -rf "${cache:?}/$version"
    mv -T "$state/new" "$cache/$version"
  fi
  ln -sfn "$version" "$cache/$suite"
  echo "newer-nix: $suite: $version"
  rm -rf "$state"
done
echo "newer-nix: clients in $cache"
