"""Runs one promise inside fresh namespaces, and fails it for what it leaves behind.

usage: alone.py MODULE NAME SCRATCH      (started by run.py through unshare; never by hand)
"""

import os
import pathlib
import signal
import subprocess
import sys
import traceback

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(TESTS)

from lib import leftovers, promises  # noqa: E402
from lib.world import World  # noqa: E402


def main():
    module, name, scratch = sys.argv[1:]
    stop_unless_alone()
    subprocess.run(["mount", "-t", "tmpfs", "distd-e2e", "/run"], check=True)
    # `ip netns` binds /run/netns over itself unless it is a mount already.
    os.makedirs("/run/netns")
    subprocess.run(["mount", "-t", "tmpfs", "distd-e2e", "/run/netns"], check=True)
    subprocess.run(["mount", "-t", "fusectl", "none", "/sys/fs/fuse/connections"], check=False, capture_output=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.umask(0o022)
    # A shell's background job ignores it, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    promise = promises.load(module, name)
    before = leftovers.of_namespace(scratch)
    try:
        with World(pathlib.Path(scratch), promise.link) as world:
            promise.run(world)
        left = leftovers.settle(lambda: leftovers.of_namespace(scratch) - before)
    except BaseException:  # noqa: B902  a promise that exits has not held either
        traceback.print_exc()
        return 1
    if left:
        print("left behind: " + "; ".join(sorted(left)))
        return 1
    return 0


def stop_unless_alone():
    """Started by hand, the mounts below would land on the machine itself."""
    if os.getpid() != 1:
        sys.exit("alone.py runs as the first process of a PID namespace: use tests/run.sh")


if __name__ == "__main__":
    sys.exit(main())
