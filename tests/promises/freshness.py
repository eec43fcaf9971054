"""Promises about how old the newest statement of an origin may be."""

import json
import os
import time

from lib import compare, hosts, tree
from lib.promises import promise

UNVERIFIED = 4


@promise(seconds=90)
def a_head_that_ran_out_is_refused_once_unless_allowed(world):
    """FAULTS H2, H11: only a cache that never saw the track refuses, and names the clock as well."""
    source = tree.small(world.dir / "source")
    world.init()
    settings = world.repo / "repo.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "validity_s": 2}))
    world.publish(source, "v1")
    world.serve()
    time.sleep(4)  # the validity, in whole seconds, counted from the signature at the start of serve
    refused = world.mount(options="timeout=5", code=None)
    assert refused != world.mountpoint and refused.code == UNVERIFIED, refused
    assert "clock" in refused.err and "allow_stale" in refused.err, refused
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    mount = world.mount(options="timeout=5,allow_stale")
    compare.same(source, mount)
    assert world.status()["swarms"][0]["stale"] is True
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    assert os.listdir(world.mount(options="timeout=5")), "what this cache knows is mounted again"
