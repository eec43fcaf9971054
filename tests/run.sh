#!/usr/bin/env bash
# End-to-end tests: real programs, real mounts, real loop devices, two network namespaces a test.
# usage: run.sh [--list] [-v] [-j N] [PATTERN ...]     only the promises MODULE.NAME that contain one of PATTERN
#   DISTD_BIN     where distd-origin and distd-fs lie       (default: target/debug of this tree)
#   DISTD_KILLS   how often `publish` is killed at random     (default 100; the node a quarter as often)
#   DISTD_OPTIONS   what every mount gets besides its own options: with allow_other the kernel shows releases,
#                   and promises about what only the tree view has (user.distd.*, ENOTCONN) do not hold
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin DISTD_BIN=${DISTD_BIN:-$here/../target/debug}
if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=PATH,TMPDIR,DISTD_BIN,DISTD_KILLS,DISTD_SWITCHES,DISTD_OPTIONS python3 -B "$here/run.py" "$@"
fi
exec python3 -B "$here/run.py" "$@"
