#!/usr/bin/env bash
# What a mounted release costs once its data is local: distd's two views beside kernel EROFS on a local file (by loop and
# file-backed), squashfuse, erofsfuse and casync mount, all on one tree in one run. Each way is mounted anew, with the
# kernel's caches of it empty and what it lies on in the page cache, and asked for: a first pass of find over all files, a second
# one; the large file in order, first and again; 4 KiB of it here and there; all files of the tree, with the daemon's CPU-seconds.
# usage: mount.sh [--files N] [--mib N] [--rounds N] [--ways WAY,...] [--json]       (100000, 512, 3)
#   WAY         tree erofs loop file squashfuse erofsfuse casync
#   DISTD_BIN   where distd-origin and distd-fs lie         (default: builds target/release)
source "$(dirname "$0")/alone.sh"
build
alone "$bench/mount.py" "$@"
