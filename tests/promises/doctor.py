"""Promises about doctor: it says what is wrong and what to do, and waits for no mount."""

import json
import os
import signal
import subprocess
import time

from lib import hosts, tree
from lib.network import NODE
from lib.promises import promise


def doctor(world, code):
    begin = time.monotonic()
    result = hosts.run(NODE, world.distd_fs, "doctor", "--cache", world.cache, seconds=20)
    assert result.code == code, result
    assert time.monotonic() - begin < 10, "doctor waited"
    return result.out


@promise()
def doctor_finds_nothing_wrong_where_all_is_well(world):
    world.install_helper()
    assert "WRONG" not in doctor(world, 0)
    world.published(tree.small(world.dir / "source"))
    world.mount()
    said = doctor(world, 0)
    assert "1 peers are connected" in said and "1 mounts" in said, said
    told = json.loads(world.fs("doctor", "--json", "--cache", world.cache).out)
    assert all(finding["ok"] for finding in told), told


@promise(seconds=90)
def doctor_names_what_is_wrong_and_what_to_do(world):
    assert "ln -s" in doctor(world, 1), "no mount helper is installed here"
    world.install_helper()
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount(options="timeout=20,background=none")
    # A network that is gone: someone waits in the mount, and doctor does not.
    world.network.unplug()
    waiting = subprocess.Popen(["cat", mount / "big"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    hosts.until(lambda: "no peer answers" in hosts.run(NODE, world.distd_fs, "doctor", "--cache", world.cache).out, 60, "the diagnosis")
    assert "UDP" in doctor(world, 1)
    waiting.kill()
    waiting.wait()
    # A node that was killed leaves a mount that nobody serves.
    os.kill(world.node_pid(), signal.SIGKILL)
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    said = doctor(world, 1)
    assert f"umount --lazy {mount}" in said, said
    world.fs("umount", "--lazy", mount)
    os.chmod(world.cache, 0o755)
    assert f"chmod 700 {world.cache}" in doctor(world, 1)
    os.chmod(world.cache, 0o700)
    assert "WRONG" not in doctor(world, 0)
