"""More hosts: nodes on a bridge with the origin, whose line is thin."""

import json
import subprocess

from lib import hosts
from lib.network import ADDRESS, ORIGIN

PORT = 7574
SWITCH = "switch"


class Bridge:
    """Use as a context manager. What the origin sends to the bridge is limited to `mbit`."""

    def __init__(self, world, count, mbit=100):
        self.world, self.mbit = world, mbit
        self.names = [f"n{number}" for number in range(1, count + 1)]

    def __enter__(self):
        _ip("netns", "add", SWITCH)
        _ip("-n", SWITCH, "link", "add", "name", "br0", "type", "bridge")
        _ip("-n", SWITCH, "link", "set", "br0", "up")
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            self._plug(name, "eth0")
            _ip("-n", name, "route", "add", ADDRESS[ORIGIN], "via", self.address(ORIGIN))
        self._plug(ORIGIN, "swarm0")
        words = ["rate", f"{self.mbit}mbit", "burst", "32kb", "latency", "50ms"]
        subprocess.run(["tc", "-n", ORIGIN, "qdisc", "add", "dev", "swarm0", "root", "tbf", *words], check=True)
        return self

    def __exit__(self, *_):
        _ip("-n", ORIGIN, "link", "delete", "swarm0")
        for name in (*self.names, SWITCH):
            _ip("netns", "delete", name)

    def _plug(self, host, interface):
        _ip("-n", host, "link", "add", interface, "type", "veth", "peer", "name", host, "netns", SWITCH)
        _ip("-n", SWITCH, "link", "set", host, "master", "br0", "up")
        _ip("-n", host, "address", "add", self.address(host) + "/24", "dev", interface)
        _ip("-n", host, "link", "set", interface, "up")

    def address(self, host):
        return "10.78.0.1" if host == ORIGIN else f"10.78.0.{10 + int(host[1:])}"

    def source(self, names, origin=True):
        """SOURCE with the origin's address and those of these nodes."""
        addresses = [f"{self.address(name)}:{PORT}" for name in names]
        if origin:
            addresses.append(f"{ADDRESS[ORIGIN]}:{PORT}")
        return f"distd://{self.world.id}@{','.join(addresses)}/stable"

    def sent_by_origin(self):
        """Bytes of frames on the origin's line to the bridge."""
        words = ["tc", "-n", ORIGIN, "-s", "-j", "qdisc", "show", "dev", "swarm0"]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)[0]["bytes"]

    def mount(self, name, source, options="prefetch=none"):
        point, cache = self.world.dir / f"{name}.mnt", self.cache(name)
        point.mkdir(exist_ok=True)
        options = f"cache={cache},listen={self.address(name)}:{PORT},timeout=20,{options}"
        result = hosts.run(name, self.world.distd_fs, "mount", source, point, "-o", options)
        assert result.code == 0, result
        return point

    def cache(self, name):
        return self.world.dir / f"{name}.cache"

    def fs(self, name, *words, **options):
        result = hosts.run(name, self.world.distd_fs, *words, "--cache", self.cache(name), **options)
        assert result.code == 0, result
        return result

    def status(self, name):
        return json.loads(self.fs(name, "status", "--json").out)["swarms"][0]

    def received_from_origin(self, name):
        """Bytes of datagrams that a node had from the origin on the channel that is open."""
        peers = self.status(name)["peers"]
        return sum(p["received_bytes"] for p in peers if p["address"].startswith(ADDRESS[ORIGIN] + ":"))


def _ip(*words):
    subprocess.run(["ip", *words], check=True)
