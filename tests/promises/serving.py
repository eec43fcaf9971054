"""Promises about whom a node serves (`-o serve=`)."""

import json
import subprocess

from lib import compare, hosts, tree
from lib.bridge import PORT, SWITCH, Bridge
from lib.network import ADDRESS, ORIGIN
from lib.promises import promise

# Two networks that are not private, with a router between them: n1 and n2 in one, n3 in the other.
HERE = {"n1": "203.0.113.11", "n2": "203.0.113.12"}
THERE = {"n3": "198.51.100.13"}
ADDRESSES = {**HERE, **THERE}
ROUTERS = {"203.0.113.0/24": "203.0.113.254", "198.51.100.0/24": "198.51.100.254"}


def ip(host, *words):
    subprocess.run(["ip", "-n", host, *words], check=True)


def routed(bridge):
    """Gives the hosts of a bridge public addresses, and none but these."""
    for network, router in ROUTERS.items():
        ip(SWITCH, "address", "add", f"{router}/24", "dev", "br0")
        for host in ADDRESSES:
            if (host in HERE) == network.startswith("203"):
                ip(host, "address", "flush", "dev", "eth0")
                ip(host, "address", "add", f"{ADDRESSES[host]}/24", "dev", "eth0")
                ip(host, "route", "add", "default", "via", router)
    words = ["nsenter", f"--net=/run/netns/{SWITCH}", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
    subprocess.run(words, check=True)
    ip(SWITCH, "route", "add", ADDRESS[ORIGIN], "via", bridge.address(ORIGIN), "onlink", "dev", "br0")
    for network in ROUTERS:
        ip(ORIGIN, "route", "add", network, "dev", "swarm0")


def mount(bridge, name, source, options, code=0):
    point = bridge.world.dir / f"{name}.mnt"
    point.mkdir(exist_ok=True)
    options = f"cache={bridge.cache(name)},listen={ADDRESSES[name]}:{PORT},timeout=5,prefetch=none,{options}"
    result = hosts.run(name, bridge.world.distd_fs, "mount", source, point, "-o", options)
    assert result.code == code, result
    return point


def of_node(bridge, name):
    return f"distd://{bridge.world.id}@{ADDRESSES[name]}:{PORT}/stable"


def peers(bridge, name):
    (swarm,) = json.loads(bridge.fs(name, "peers", "--json").out)["swarms"]
    return {p["address"].rpartition(":")[0]: p for p in swarm["peers"]}


def refused(bridge, name, by):
    """Whether a relay that names only that node as its source is sent away by it."""
    words = ["relay", "--nolan", of_node(bridge, by), "--cache", bridge.dir_of(name), "--listen", f"{ADDRESSES[name]}:{PORT + 1}"]
    relay = hosts.start(name, bridge.world.distd_fs, *words, out=subprocess.DEVNULL, err=subprocess.DEVNULL)
    try:
        ask = [bridge.world.distd_fs, "peers", "--json", "--cache", bridge.dir_of(name)]

        def told():
            result = hosts.run(name, *ask)
            swarms = json.loads(result.out)["swarms"] if result.code == 0 else []
            found = [p for swarm in swarms for p in swarm["peers"] if p["address"].startswith(ADDRESSES[by] + ":")]
            return found[0] if found and found[0]["state"] in ("open", "closed") else None

        peer = hosts.until(told, 10, "an answer")
        print(name, by, peer)
        assert peer["state"] == "open" or "does not serve" in peer["reason"] and peer["again_s"] > 40, peer
        return peer["state"] == "closed"
    finally:
        hosts.kill(relay)


@promise(seconds=120)
def a_mount_serves_its_own_networks_and_sends_others_away(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    with Bridge(world, 3) as bridge:
        bridge.dir_of = lambda name: world.dir / f"{name}.relay-cache"
        routed(bridge)
        everything = bridge.source([])
        first = mount(bridge, "n1", everything, "nolan")
        compare.same(source, first)
        assert "serves its local networks" in bridge.fs("n1", "status").out
        # A neighbour of the same network gets everything from it, a stranger nothing.
        assert not refused(bridge, "n2", "n1") and refused(bridge, "n3", "n1")
        mount(bridge, "n3", of_node(bridge, "n1"), "nolan", code=6)
        second = mount(bridge, "n2", of_node(bridge, "n1"), "nolan")
        compare.same(source, second)
        assert peers(bridge, "n1")[ADDRESSES["n2"]]["served"]
        third = mount(bridge, "n3", everything, "nolan,serve=all")
        compare.same(source, third)
        assert peers(bridge, "n3")[ADDRESS[ORIGIN]]["near"], "10.0.0.0/8 is private"
        for point in (first, second, third):
            subprocess.run(["umount", point], check=True)


@promise(seconds=120)
def a_mount_that_serves_nobody_reads_all_the_same(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    with Bridge(world, 3) as bridge:
        bridge.dir_of = lambda name: world.dir / f"{name}.relay-cache"
        routed(bridge)
        alone = mount(bridge, "n1", bridge.source([]), "serve=none")
        compare.same(source, alone)
        assert bridge.status("n1")["data_sent_bytes"] == 0
        assert "serves nobody" in bridge.fs("n1", "status").out
        assert refused(bridge, "n2", "n1") and refused(bridge, "n3", "n1")
        open_to_all = mount(bridge, "n2", bridge.source([]), "nolan,serve=all")
        compare.same(source, open_to_all)
        far = mount(bridge, "n3", of_node(bridge, "n2"), "nolan")
        compare.same(source, far)
        # It serves its own networks only, and fetches from wherever it is served.
        giver = peers(bridge, "n3")[ADDRESSES["n2"]]
        assert giver["verified_bytes"] > 8 * tree.MIB and giver["kind"] == "other" and not giver["served"], giver
        assert bridge.status("n3")["data_sent_bytes"] == 0 == peers(bridge, "n2")[ADDRESSES["n3"]]["available_blocks"]
        for point in (alone, open_to_all, far):
            subprocess.run(["umount", point], check=True)


@promise()
def a_wrong_audience_is_named(world):
    world.init()
    wrong = world.mount(source=f"distd://{'0' * 64}@10.77.0.1:7574/stable", options="serve=friends", code=2)
    assert "serve=friends" in wrong.err and "none, local or all" in wrong.err, wrong
    wrong = world.fs("relay", "--serve", "none", f"distd://{'0' * 64}@10.77.0.1:7574/stable", code=2)
    assert "local or all" in wrong.err, wrong


@promise(seconds=60)
def neighbours_find_each_other_in_a_network_that_is_not_private_too(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    with Bridge(world, 3) as bridge:
        routed(bridge)
        points = [mount(bridge, name, bridge.source([]), "lan") for name in ("n1", "n2")]
        both = lambda: all(ADDRESSES[other] in peers(bridge, name) for name, other in (("n1", "n2"), ("n2", "n1")))  # noqa: E731
        hosts.until(both, 20, "two nodes that see each other")
        for point in points:
            subprocess.run(["umount", point], check=True)
