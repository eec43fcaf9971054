#!/usr/bin/env bash
# What an update moves: a machine that holds V1 gets V2. distd (prefetch of a mount; get; get of a machine
# that has V1 as plain files only) beside rsync -z, casync with a
# seed, zsync and zchunk of a tar, and zstd --patch-from of the tars, all in one run, for each pair of trees.
# Bytes are those of UDP or TCP payload, received and sent; beside them the same with IP headers, wall time, CPU-seconds.
# usage: update.sh [--ways WAY,...] [--json] [V1 V2]...    default pairs: v1 and v2 of each directory of $DISTD_CORPORA,
#                                                       else two successive Debian kernel packages
#   WAY         prefetch get seed rsync casync zsync zchunk zstd
#   DISTD_BIN   where distd-origin and distd-fs lie         (default: builds target/release)
source "$(dirname "$0")/alone.sh"
build
trees=0
for word in "$@"; do [ ! -d "$word" ] || trees=$((trees + 1)); done
if [ "$trees" -lt 2 ] && [ -n "${DISTD_CORPORA:-}" ]; then
  for corpus in "$DISTD_CORPORA"/*/; do
    [ ! -d "$corpus/v1" ] || [ ! -d "$corpus/v2" ] || set -- "$@" "${corpus%/}/v1" "${corpus%/}/v2"
  done
elif [ "$trees" -lt 2 ]; then
  "$top/scripts/corpus.sh" "$top/target/corpus"
  set -- "$@" "$top/target/corpus/v1" "$top/target/corpus/v2"
fi
alone "$bench/update.py" "$@"
