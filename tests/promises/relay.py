"""Promises about relays: nodes without a mount that hold releases for others."""

import json
import pathlib
import signal
import subprocess

from lib import compare, hosts, tree
from lib.network import NODE, ORIGIN
from lib.promises import promise

PORT = 7574
HERE = "10.77.0.2"


class Relay:
    """A relay on the node's host, with what it says."""

    def __init__(self, world, *words, name="relay"):
        self.world, self.cache, self.path = world, world.dir / f"{name}-cache", world.dir / f"{name}.log"
        self.log = self.path.open("w")
        words = [world.distd_fs, "relay", *words, "--cache", self.cache]
        self.process = hosts.start(NODE, *words, out=self.log, err=self.log)
        world.servers.append(self.process)

    def says(self, text, seconds=30):
        def said():
            assert self.process.poll() is None, f"the relay ended: {self.path.read_text()}"
            return text in self.path.read_text()

        try:
            hosts.until(said, seconds, f"'{text}' of the relay")
        except AssertionError:
            print(self.path.read_text(), json.dumps(self.status()))
            raise

    def status(self):
        return json.loads(hosts.run(NODE, self.world.distd_fs, "status", "--json", "--cache", self.cache).out)

    def stop(self):
        self.world.stop(self.process)
        self.log.close()


def mount_from_relay(world, number=0, port=PORT):
    """A mount on the other host whose SOURCE names the relay alone."""
    point, cache = world.dir / f"below{number}", world.dir / f"below-cache{number}"
    point.mkdir()
    source = f"distd://{world.id}@{HERE}:{port}/stable"
    result = hosts.run(ORIGIN, world.distd_fs, "mount", source, point, "-o", f"cache={cache},timeout=10")
    assert result.code == 0, result
    return point


@promise(seconds=120)
def what_a_relay_holds_is_read_with_the_origin_stopped(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    relay = Relay(world, world.url(), "--pin")
    relay.says("stable@v1 is held whole")
    held = relay.status()["relayed"][0]
    assert held["release"] == "stable@v1" and held["local_bytes"] == held["total_bytes"] > 8 * tree.MIB, held
    world.stop(world.servers[0], signal.SIGKILL)
    mount = mount_from_relay(world)
    compare.same(source, mount)
    subprocess.run(["umount", mount], check=True)
    relay.stop()


@promise(seconds=120)
def a_relay_takes_its_tracks_next_release_and_lets_the_old_one_go(world):
    source = tree.small(world.dir / "source")
    tree.incompressible(source / "old", 4 * tree.MIB, seed="old")
    world.published(source)
    relay = Relay(world, world.url(), "--pin", "--listen", f"{HERE}:7600")
    relay.says("stable@v1 is held whole")
    (source / "old").unlink()
    tree.incompressible(source / "new", 4 * tree.MIB, seed="new")
    world.publish(source, "v2")
    relay.says("stable@v2 is held whole")
    freed = json.loads(hosts.run(NODE, world.distd_fs, "cache", "clean", "--json", "--cache", relay.cache).out)
    assert freed["freed_bytes"] >= 4 * tree.MIB, freed
    world.stop(world.servers[0], signal.SIGKILL)
    mount = mount_from_relay(world, port=7600)
    compare.same(source, mount)
    subprocess.run(["umount", mount], check=True)
    relay.stop()


@promise(seconds=120)
def a_relay_waits_for_its_origin_and_survives_a_kill(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    server = world.servers[0]
    world.stop(server)
    relay = Relay(world, world.url(), "--pin")
    relay.says("relaying at UDP")
    world.serve()
    relay.says("stable@v1 is held whole", 60)
    hosts.run(NODE, world.distd_fs, "cache", "flush", "--cache", relay.cache)
    world.stop(relay.process, signal.SIGKILL)
    world.stop(world.servers[0], signal.SIGKILL)
    relay = Relay(world, world.url(), "--pin")
    relay.says("stable@v1 is held whole")
    compare.same(source, mount_from_relay(world))
    subprocess.run(["umount", world.dir / "below0"], check=True)
    relay.stop()


@promise()
def a_relay_without_a_source_or_with_a_wrong_one_says_so(world):
    world.init()
    assert world.fs("relay", code=None).code == 2
    wrong = world.fs("relay", "no-such.distd", "--cache", world.cache, code=None)
    assert wrong.code == 7 and "no-such.distd" in wrong.err, wrong
    busy = Relay(world, f"distd://{'0' * 64}@10.77.0.1:7574/stable")
    busy.says("relaying at UDP")
    for cache, named in ((world.cache, "7574"), (busy.cache, str(busy.cache))):
        second = world.fs("relay", f"distd://{'0' * 64}@10.77.0.1:7574/stable", "--cache", cache, code=None)
        assert second.code == 8 and named in second.err, second
    assert pathlib.Path(busy.path).read_text().count("relaying") == 1
    busy.stop()
