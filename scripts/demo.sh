#!/usr/bin/env bash
# The main job, on real input: publishes two releases of a tree, serves them, mounts one, reads, compares it with its
# source, loop-mounts an EROFS image that lies in it, goes on to the second release, and shows what was fetched.
# usage: demo.sh [V1 V2]     two successive releases of a tree      (default: two Debian kernel packages, 400 MB each)
# Needs root or sudo (loop mounts). Leaves nothing behind but target/.
set -Eeuo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
export PATH=$PATH:/usr/sbin:/sbin
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }
trap 'printf "demo: line %s failed: %s\n" "$LINENO" "$BASH_COMMAND" >&2' ERR

if [ "${DEMO_READY:-}" != yes ]; then
  case $# in
    0) set -- "$top/target/corpus/v1" "$top/target/corpus/v2" fetch ;;
    2) [ -d "$1" ] && [ -d "$2" ] || die "V1 and V2 must be directories" ;;
    *) die "usage: demo.sh [V1 V2]" ;;
  esac
  say "Setting up: packages, release build, a real release pair"
  "$top/scripts/setup.sh"
  (cd "$top" && cargo build --release --locked --quiet)
  [ "${3-}" != fetch ] || "$top/scripts/corpus.sh" "$top/target/corpus"
  # A mount namespace of its own: whatever happens, no mount of the demo stays on the machine.
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  exec "${as_root[@]}" env DEMO_READY=yes PATH="$PATH" unshare --mount --propagation private bash "$0" "$(realpath "$1")" "$(realpath "$2")"
fi

v1=$1 v2=$2
PATH=$top/target/release:$PATH
work=$(mktemp -d "${TMPDIR:-/var/tmp}/distd-demo-XXXXXX")
export DISTD_REPO=$work/repo
cache=$work/cache mnt=$work/mnt image=$work/image serve_pid=''

cleanup() {
  set +e
  mountpoint -q "$image" && umount "$image"
  mountpoint -q "$mnt" && distd-fs umount "$mnt"
  if [ -n "$serve_pid" ]; then kill "$serve_pid" && wait "$serve_pid"; fi
  mountpoint -q "$mnt" && umount -l "$mnt"
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
mkdir -p "$mnt" "$image" "$work/releases"

fetched() { distd-fs status --cache "$cache" --json | python3 -c "import json, sys; print(sum(s[\"fetched_metadata_bytes\"] + s[\"fetched_data_bytes\"] + s[\"fetched_frame_bytes\"] for s in json.load(sys.stdin)[\"swarms\"]))"; }
human() { numfmt --to=iec-i --suffix=B --format='%.1f' "$1"; }
# What a step fetched: runs the rest of its arguments in between.
costs() {
  local what=$1 before after
  shift
  before=$(fetched)
  "$@"
  after=$(fetched)
  printf '%s: fetched %s\n' "$what" "$(human $((after - before)))"
}
compare() {
  local differs
  differs=$(rsync -aHAX --checksum --dry-run --itemize-changes --delete "$1/" "$2/")
  [ -z "$differs" ] || die "mount and source differ: $differs"
  printf 'rsync --checksum finds no difference between %s and the mount\n' "${1##*/}"
}

say "Two releases: each tree, and in it an EROFS image of a part of it"
for v in v1 v2; do
  tree=$work/releases/$v
  cp -a --reflink=auto "${!v}" "$tree"
  largest=$(du -k "$tree" | sort -rn | awk -F '\t' 'NR == 1 { third = $1 / 3 } !found && $1 < third { print $2; found = 1 }')
  [ -n "$largest" ] || largest=$tree
  # Without inline tails every file of the image lies on whole blocks, which the log holds already.
  mkfs.erofs --quiet -Enoinline_data "$work/image.erofs" "$largest" >/dev/null
  mv "$work/image.erofs" "$tree/image.erofs"
  printf '%s: %s files, %s, image of %s\n' "$v" "$(find "$tree" -type f | wc -l)" "$(du -sh "$tree" | cut -f1)" "${largest#"$tree"/}"
  printf '%s\n' "$largest" >"$work/largest-$v"
done

say "The origin: init, publish v1 and v2, serve"
distd-origin init
distd-origin publish "$work/releases/v1" --track stable --release v1
time distd-origin publish "$work/releases/v2" --track stable --release v2
distd-origin list
distd-origin diff v1 v2 | tail -n 3
# Port 0 lets the kernel choose one that is free.
distd-origin serve --listen 127.0.0.1:0 >"$work/serve.log" 2>&1 &
serve_pid=$!
url=''
for _ in $(seq 100); do
  url=$(grep -o 'distd://[^ /]*' "$work/serve.log" | head -n 1) || true
  [ -z "$url" ] || break
  kill -0 "$serve_pid" 2>/dev/null || die "serve ended: $(cat "$work/serve.log")"
  sleep 0.1
done
[ -n "$url" ] || die "serve did not say where it listens"
printf 'serving at %s\n' "$url"

say "A node: mount v1, with an empty cache"
time distd-fs mount "$url/stable@v1" "$mnt" -o "cache=$cache,background=none"
printf 'fetched for the mount: %s\n' "$(human "$(fetched)")"
big=$(find "$mnt" -type f -name '*.ko*' -size +1M -print -quit)
[ -n "$big" ] || big=$(find "$mnt" -type f -size +64k ! -name image.erofs -print -quit)
costs "ls -lR of all" sh -c "ls -lR '$mnt' | wc -l"
costs "4 KiB of ${big#"$mnt"/}" sh -c "head -c 4096 '$big' | wc -c"
costs "the same 4 KiB again" sh -c "head -c 4096 '$big' | wc -c"

say "The EROFS image in the mount, loop-mounted"
costs "mount and ls -lR of the image" sh -c "mount -o loop,ro '$mnt/image.erofs' '$image' && ls -lR '$image' | wc -l"
costs "all of the image" compare "$(cat "$work/largest-v1")" "$image"
umount "$image"

say "All of v1, compared with its source"
costs "the rest of v1 (the image's blocks were its files' blocks)" compare "$work/releases/v1" "$mnt"
distd-fs umount "$mnt"

say "The update: v2, on the same cache"
distd-fs mount "$url/stable" "$mnt" -o "cache=$cache,background=none"
costs "all of v2" compare "$work/releases/v2" "$mnt"
size=$(du -sb "$work/releases/v2" | cut -f1)
printf 'of %s in v2, %s came over the network; the rest was in the cache\n' "$(human "$size")" "$(human "$(fetched)")"
distd-fs status --cache "$cache"

say "Offline: the origin stops, what was read stays"
kill "$serve_pid" && wait "$serve_pid" || true
serve_pid=''
compare "$work/releases/v2" "$mnt"
distd-fs umount "$mnt"
say "Done"
