#!/usr/bin/env bash
# Fetches two successive Debian kernel packages and unpacks them as trees OUT/v1 and OUT/v2 (400 MB each).
# usage: corpus.sh OUT
# The version in directory and file names is made a constant, as a release that is updated in place has it.
set -euo pipefail
out=${1:?usage: corpus.sh OUT}
say() { printf '[corpus] %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
[ ! -e "$out/complete" ] || exit 0
command -v apt-get >/dev/null || die "no apt-get here: give two directories of your own instead"
mkdir -p "$out" && out=$(cd "$out" && pwd)

# Names of the kernel images of the newest series that has at least two of them, oldest first.
pair() {
  apt-cache search --names-only "^linux-image-[0-9.]+-[0-9]+-$(dpkg --print-architecture)\$" | awk '{print $1}' | sort -V \
    | awk '{series = $1; sub(/-[0-9]+-[^-]*$/, "", series); before[series] = last[series]; last[series] = $1; if (before[series]) found = before[series] "\n" $1}
           END {if (found) print found}'
}

names=$(pair)
if [ -z "$names" ]; then
  say "asking for the package lists"
  if [ "$(id -u)" -eq 0 ]; then apt-get update -q >/dev/null; else sudo apt-get update -q >/dev/null; fi || true
  names=$(pair)
fi
[ -n "$names" ] || die "the package lists hold no two kernel images of one series: give two directories of your own instead"

number=1
for name in $names; do
  version=${name#linux-image-} tree=$out/v$number
  say "v$number is $name"
  mkdir -p "$out/$name"
  # Run as root, apt wants to download as another user, who may not write here.
  [ -n "$(find "$out/$name" -name '*.deb' -print -quit)" ] || (cd "$out/$name" && apt-get -q -o APT::Sandbox::User=root download "$name" >/dev/null) \
    || die "apt-get could not download $name: give two directories of your own instead"
  rm -rf "$tree" && mkdir "$tree"
  dpkg -x "$out/$name"/*.deb "$tree"
  find "$tree" -depth -name "*$version*" -print0 | while IFS= read -r -d '' path; do
    base=${path##*/}
    mv "$path" "${path%/*}/${base//"$version"/KERNEL}"
  done
  rm -rf "${out:?}/$name"
  number=$((number + 1))
done
touch "$out/complete"
