#!/usr/bin/env bash
# What a release costs its origin and how long it takes, by number of nodes and layers: the real engine in virtual
# time (distd-sim). Draws the curves into docs/scale.svg.
# usage: scale.sh [OPTIONS OF distd-sim scale ...]      e.g. --nodes 10,100 --layers 1,2 --json      (10,100,1000; 1,2,3)
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$top"
exec cargo run --quiet --release --locked -p distd-sim -- scale --chart docs/scale.svg "$@"
