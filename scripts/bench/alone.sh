# Sourced: goes on as root in PID, mount and network namespaces of its own, so that nothing outlives the bench.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$bench/../.." && pwd)

# alone PROGRAM ARGUMENT...
alone() {
  local root=()
  [ "$(id -u)" -eq 0 ] || root=(sudo)
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/distd-bench-XXXXXX")
  trap '"${root[@]}" rm -rf "$scratch"' EXIT
  "${root[@]}" env PATH="$PATH" DISTD_BIN="${DISTD_BIN:-$top/target/release}" unshare --mount --pid --net --fork --kill-child=KILL \
    --mount-proc --propagation private bash -euc '
      mount -t tmpfs bench /run && mkdir /run/netns && mount -t tmpfs bench /run/netns && ip link set lo up
      # bash stays process 1 and reaps what daemons leave to it.
      python3 -B "$@" & wait "$!"' alone "$@" --scratch "$scratch"
}

build() {
  "$top/scripts/setup.sh" --bench
  [ -n "${DISTD_BIN:-}" ] || (cd "$top" && cargo build --quiet --release --locked)
}
