#!/usr/bin/env bash
# distd-origin publish beside `casync make` of the same trees, in one run: wall time, CPU-seconds, bytes stored;
# first V1 into an empty store, then V2 beside it, then V2 once more with nothing changed.
# usage: publish.sh [--rounds N] [--json] [V1 V2]      (3; default trees: two successive Debian kernel packages)
#   DISTD_BIN   where distd-origin lies                (default: builds target/release)
source "$(dirname "$0")/alone.sh"
build
trees=0
for word in "$@"; do [ ! -d "$word" ] || trees=$((trees + 1)); done
if [ "$trees" -lt 2 ]; then
  "$top/scripts/corpus.sh" "$top/target/corpus"
  set -- "$@" "$top/target/corpus/v1" "$top/target/corpus/v2"
fi
alone "$bench/publish.py" "$@"
