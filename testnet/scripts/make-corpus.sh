#!/usr/bin/env bash
# make-corpus.sh - recreate the benchmark corpora on a Debian 12 machine, from
# Debian packages and Debian's own nix-bin (2.8.0) only.  Run as root.
#
#   ATTIC_NODE_CORPUS=/var/tmp/corpus ./make-corpus.sh [S] [L1] [L2]      (default: all three)
#
# Result (deterministic: same .deb files => same /nix/store paths):
#   $CORPUS/debs/*.deb                 the downloaded packages
#   $CORPUS/manifest.sha256            sha256 of every .deb used
#   $CORPUS/{S,L1,L2}.paths            one store path per line (without the env root)
#   $CORPUS/{S,L1,L2}.env              one "env" store path that references all of the set
#                                      (so `nix copy $(cat S.env)` copies the whole closure)
#   $CORPUS/src.paths                  6 reference-free paths made with `nix-store --add`
# S  ~200 small paths (~55 MiB), L1 ~19 large paths (~1.8 GiB),
# L2 = 7 "next version" twins of L1 packages (~0.85 GiB): for dedup measurement.
# References between the paths are the real Debian Depends/Pre-Depends that fall
# inside the corpus (cycles cut in list order), written to nix-support/propagated-build-inputs.
set -euo pipefail
export LC_ALL=C TZ=UTC
CORPUS=${ATTIC_NODE_CORPUS:-${XDG_CACHE_HOME:-$HOME/.cache}/attic-node-corpus}
HERE=$(cd "$(dirname "$0")" && pwd)
SETS=("$@"); [ ${#SETS[@]} -eq 0 ] && SETS=(S L1 L2)
mkdir -p "$CORPUS"/{debs,nixconf,tmp}

cat > "$CORPUS/nixconf/nix.conf" <<'C'
build-users-group =
sandbox = false
filter-syscalls = false
experimental-features = nix-command flakes
substituters =
max-jobs = 2
cores = 1
C
export NIX_CONF_DIR=$CORPUS/nixconf NIX_REMOTE=
unset NIX_PATH || true
mkdir -p /nix/store /nix/var/nix

# ---- package lists. "pkg=ver" is tried first; if that version has left the
# archive, L1 takes the oldest and L2 the newest version that apt knows.
L1="linux-headers-6.1.0-55-common linux-image-6.1.0-55-cloud-amd64-unsigned
libreoffice-core=4:7.4.7-1+deb12u13 libreoffice-common=4:7.4.7-1+deb12u14
libwebkit2gtk-4.1-0=2.50.6-1~deb12u1 openjdk-17-jre-headless=17.0.19+10-1~deb12u2
git=1:2.39.5-0+deb12u2 chromium=150.0.7871.100-1~deb12u1
libllvm14 libllvm15 fonts-noto-cjk cpp-12 gcc-12 g++-12 vim-runtime libboost1.74-dev
golang-1.19-src libicu72 libqt5webenginecore5"
L2="linux-headers-6.1.0-56-common linux-image-6.1.0-56-cloud-amd64-unsigned
libreoffice-core=4:7.4.7-1+deb12u14 libwebkit2gtk-4.1-0=2.50.6-1~deb12u2
openjdk-17-jre-headless=17.0.21.1+2-1~deb12u1 git=1:2.39.5-0+deb12u3
chromium=156.0.8078.79-1~deb12u1"
S=$(cat "$HERE/S.list")

resolve() { # set spec -> pkg=version
  local set=$1 spec=$2 p=${2%%=*} v vs
  vs=$(awk -F' *\\| *' -v p="$p" '/Packages/{sub(/^ +/,"",$1); if($1==p) print $2}' "$CORPUS/tmp/madison" | sort -u)
  if [[ $spec == *=* ]] && grep -qxF -- "${spec#*=}" <<<"$vs"; then echo "$spec"; return; fi
  [ -n "$vs" ] || { echo "no such package: $p" >&2; return 1; }
  v=$(head -1 <<<"$vs")
  local x; for x in $vs; do
    if [ "$set" = L1 ]; then dpkg --compare-versions "$x" lt "$v" && v=$x
    else dpkg --compare-versions "$x" gt "$v" && v=$x; fi; done
  [[ $spec == *=* ]] && echo "note: $spec not available, using $v" >&2
  echo "$p=$v"
}

for set in "${SETS[@]}"; do
  if [ ! -s "$CORPUS/$set.resolved" ]; then
    : > "$CORPUS/tmp/r"
    # shellcheck disable=SC2046
    apt-cache madison $(for spec in ${!set}; do echo "${spec%%=*}"; done) > "$CORPUS/tmp/madison"
    for spec in ${!set}; do resolve "$set" "$spec" >> "$CORPUS/tmp/r"; done
    mv "$CORPUS/tmp/r" "$CORPUS/$set.resolved"
  fi
  # download what is missing
  want=()
  while read -r pv; do
    p=${pv%%=*}; v=${pv#*=}
    compgen -G "$CORPUS/debs/${p}_${v//:/%3a}_*.deb" >/dev/null || want+=("$pv")
  done < "$CORPUS/$set.resolved"
  if [ ${#want[@]} -gt 0 ]; then (cd "$CORPUS/debs" && apt-get -qq -o APT::Sandbox::User=root download "${want[@]}"); fi

  # nix expression; deps come from the .deb control data
  python3 - "$CORPUS" "$set" <<'P'
import sys,os,re,glob,subprocess,hashlib
C,st=sys.argv[1:3]
specs=[l.strip().split('=',1) for l in open(f'{C}/{st}.resolved')]
debs={}
for p,v in specs:
    f=glob.glob(f"{C}/debs/{glob.escape(p)}_{v.replace(':','%3a')}_*.deb")[0]
    debs[p]=(v,f)
def clean(s): return re.sub(r'[^0-9A-Za-z+\-._?=]','-',s)
deps={}
for p,(v,f) in debs.items():
    txt=subprocess.run(['dpkg-deb','-f',f,'Pre-Depends','Depends'],capture_output=True,text=True).stdout
    txt=re.sub(r'^(Pre-)?Depends:','',txt,flags=re.M).replace('\n',',')
    names=[re.split(r'[ (:|]',x.strip())[0] for x in txt.split(',') if x.strip()]
    deps[p]=sorted({n for n in names if n in debs and n!=p})
order=[];state={}
def visit(p):
    if state.get(p)==2: return True
    if state.get(p)==1: return False          # back edge: cut
    state[p]=1
    deps[p]=[d for d in deps[p] if visit(d)]
    state[p]=2; order.append(p); return True
sys.setrecursionlimit(10000)
for p in debs: visit(p)
ident={p:'p%d'%i for i,p in enumerate(order)}
o=open(f'{C}/{st}.nix','w')
o.write('''let mk = name: src: deps: derivation {
  inherit name deps src; system = "x86_64-linux"; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
  args = [ "-ec" "mkdir $out; dpkg-deb -x $src $out; mkdir -p $out/nix-support; echo $deps > $out/nix-support/propagated-build-inputs" ];
};
''')
for p in order:
    v,f=debs[p]
    b=clean(os.path.basename(f).replace('%3a','-'))
    o.write(f'{ident[p]} = mk "{clean(p+"-"+v)}" (builtins.path {{ path = "{f}"; name = "{b}"; }}) [ {" ".join(ident[d] for d in deps[p])} ];\n')
o.write('all = [ '+' '.join(ident[p] for p in order)+' ];\nin { inherit all; env = derivation { name = "corpus-%s-env"; deps = all; system = "x86_64-linux"; builder = "/bin/sh"; PATH = "/usr/bin:/bin"; args = [ "-ec" "mkdir $out; for d in $deps; do echo $d; done > $out/manifest" ]; }; }\n'%st)
print(st,'packages',len(order),'edges',sum(len(d) for d in deps.values()),file=sys.stderr)
P
  nix-build -Q --no-out-link "$CORPUS/$set.nix" -A env > "$CORPUS/$set.env" 2> "$CORPUS/$set.build.log" || { tail -5 "$CORPUS/$set.build.log"; exit 1; }
  nix-store -q --requisites "$(cat "$CORPUS/$set.env")" | grep -v -- "-corpus-$set-env\$" > "$CORPUS/$set.paths"
  ln -sfn "$(cat "$CORPUS/$set.env")" "/nix/var/nix/gcroots/corpus-$set"
done

# a few plain source paths (no references, content addressed)
if [ -s "$CORPUS/S.resolved" ]; then
  : > "$CORPUS/src.paths"
  for p in jq mercurial ruby rsync curl htop; do
    f=$(ls "$CORPUS"/debs/${p}_*.deb | head -1)
    rm -rf "$CORPUS/tmp/src-$p"; mkdir "$CORPUS/tmp/src-$p"; dpkg-deb -x "$f" "$CORPUS/tmp/src-$p"
    nix-store --add "$CORPUS/tmp/src-$p" >> "$CORPUS/src.paths"; rm -rf "$CORPUS/tmp/src-$p"
  done
fi
(cd "$CORPUS/debs" && sha256sum *.deb) > "$CORPUS/manifest.sha256"
for set in "${SETS[@]}"; do
  printf '%s: %d paths, NAR bytes %d\n' "$set" "$(wc -l < "$CORPUS/$set.paths")" \
    "$(xargs nix-store -q --size < "$CORPUS/$set.paths" | awk '{s+=$1}END{print s}')"
done
