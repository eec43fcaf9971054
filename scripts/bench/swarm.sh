#!/usr/bin/env bash
# One origin on a line of 100 Mbit/s, many machines at 1 Gbit/s on the same bridge, all of which want the same
# content: distd beside aria2 (BitTorrent) and nginx + curl, all in one run. What left the origin, in copies of the
# content (payload of DATA, and bytes on its interface), and the time until the last one is done, in ideal times
# (content / line rate). The last way has two relays in front of two nodes less.
# usage: swarm.sh [--mib N] [--nodes N] [--mbit N] [--only PART-OF-A-NAME] [--json]       (256, 8, 100, all)
#   DISTD_BIN   where distd-origin and distd-fs lie        (default: builds target/release)
source "$(dirname "$0")/alone.sh"
build
alone "$bench/swarm.py" "$@"
