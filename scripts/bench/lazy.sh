#!/usr/bin/env bash
# Many machines on one bridge mount the same release and read the same tenth of it, each in an order of its own,
# spread over some seconds: what left the origin (payload of DATA), in copies of that tenth and of the metadata.
# usage: lazy.sh [--mib N] [--nodes N] [--mbit N] [--seconds N] [--json]       (256, 16, 100, 8)
#   DISTD_BIN   where distd-origin and distd-fs lie        (default: builds target/release)
source "$(dirname "$0")/alone.sh"
build
alone "$bench/lazy.py" "$@"
