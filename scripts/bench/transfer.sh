#!/usr/bin/env bash
# 1 GiB that no compressor makes smaller, from one host to another (veth, MTU 1500): distd beside nginx + curl,
# an rsync daemon and aria2 (BitTorrent), all in one run. Wall time, its ratio to curl's, CPU-seconds of both ends.
# usage: transfer.sh [--mib N] [--rounds N] [--json]       (1024, 3; the best round of each counts)
#   DISTD_BIN   where distd-origin and distd-fs lie        (default: builds target/release)
source "$(dirname "$0")/alone.sh"
build
alone "$bench/transfer.py" "$@"
