"""What the programs' `--json` calls the figures that the tests ask for: the one place that knows."""

import time

from lib import hosts


def fetched_bytes(status):
    """Verified bytes from peers since the node started, metadata included."""
    return sum(s["fetched_metadata_bytes"] + s["fetched_data_bytes"] + s["fetched_frame_bytes"] for s in status["swarms"])


def new_bytes(publish):
    return publish["new_bytes"]


def settled(world):
    """The count of fetched bytes once the metadata that comes in the background is there."""
    last = [-1, time.monotonic()]

    def quiet():
        now = world.fetched_bytes()
        if now != last[0]:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > 0.5

    hosts.until(quiet, 20, "the end of background fetches")
    return last[0]


def changes(diff):
    """The rows of `diff --json`, each with a path."""
    return diff["changes"]
