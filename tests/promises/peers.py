"""Promises about what `distd-fs peers` tells, and about counters by source."""

import json
import os
import signal
import subprocess

from lib import compare, facts, hosts, tree
from lib.bridge import PORT, Bridge
from lib.network import ADDRESS, NODE, ORIGIN
from lib.promises import promise

SOURCES = ("origin_bytes", "relay_bytes", "lan_bytes", "other_bytes")


def peers(world):
    return json.loads(world.fs("peers", "--json", "--cache", world.cache).out)["swarms"]


def the_origin(world):
    (swarm,) = peers(world)
    (origin,) = [p for p in swarm["peers"] if p["address"] == f"{ADDRESS[ORIGIN]}:{PORT}"]
    return swarm, origin


# Shows C73 (RFC 7574 11).
@promise()
def peers_tell_who_is_where_what_they_have_and_why_nothing_comes(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    compare.same(source, world.mount())
    facts.settled(world)
    swarm, origin = the_origin(world)
    assert swarm["origin"] == world.id and swarm["releases"] == ["stable@v1"], swarm
    assert swarm["wanted_bytes"] > 8 * tree.MIB and origin["has_bytes"] == swarm["wanted_bytes"], swarm
    expected = {"kind": "origin", "level": 0, "near": True, "state": "open", "outbound": True, "idle": "nothing_wanted"}
    assert {key: origin[key] for key in expected} == expected, origin
    assert len(origin["id"]) == 16 and 0 < origin["rtt_us"] < 1_000_000, origin
    assert origin["verified_bytes"] == facts.fetched_bytes(world.status()), origin
    told = world.fs("peers", "--cache", world.cache).out
    for part in (world.id, "stable@v1", f"{ADDRESS[ORIGIN]}:{PORT}", "origin", "100 %", "idle: nothing is wanted"):
        assert part in told, told
    world.stop(world.servers[0])
    gone = lambda: (lambda p: p if p["state"] == "closed" else None)(the_origin(world)[1])  # noqa: E731
    origin = hosts.until(gone, 10, "the origin's goodbye")
    assert origin["idle"] == "closed" and origin["reason"] and origin["again_s"] <= 10, origin
    told = world.fs("peers", "--cache", world.cache).out
    assert "not connected" in told and origin["reason"] in told, told


@promise(seconds=120)
def received_bytes_are_counted_by_who_sent_them(world):
    source = world.dir / "source"
    source.mkdir()
    for name in ("first", "second", "third"):
        tree.incompressible(source / name, 4 * tree.MIB, seed=name)
    world.published(source)
    with Bridge(world, 3) as bridge:
        words = ["relay", "--nolan", "--pin", bridge.source([]), "--cache", bridge.cache("n1"), "--listen", f"{bridge.address('n1')}:{PORT}"]
        relay = hosts.start("n1", world.distd_fs, *words, out=subprocess.DEVNULL, err=subprocess.DEVNULL)
        world.servers.append(relay)
        held = lambda: (bridge.cache("n1") / "control.sock").exists() and all_held(bridge)  # noqa: E731
        hosts.until(held, 30, "the relay's release")
        by = {"n1": sources(bridge, "n1")}
        below = bridge.mount("n2", bridge.source(["n1"], origin=False), "nolan,prefetch=none")
        (below / "first").read_bytes()
        by["n2"] = sources(bridge, "n2")
        beside = bridge.mount("n3", bridge.source(["n2"]), "nolan,prefetch=none")
        assert (beside / "first").read_bytes() == (source / "first").read_bytes()
        by["n3"] = sources(bridge, "n3")
        (beside / "first").read_bytes()
        print(by)
        assert by["n1"]["origin_bytes"] > 12 * tree.MIB and by["n1"]["relay_bytes"] == by["n1"]["lan_bytes"] == 0, by
        assert by["n2"]["relay_bytes"] > 4 * tree.MIB and by["n2"]["origin_bytes"] == by["n2"]["lan_bytes"] == 0, by
        assert by["n3"]["lan_bytes"] >= 4 * tree.MIB and by["n3"]["relay_bytes"] == 0, by
        told = bridge.fs("n2", "status").out
        assert "received from the LAN 0 B, relays 4." in told, told
        for point in (below, beside):
            subprocess.run(["umount", point], check=True)
        world.stop(relay)


def all_held(bridge):
    relayed = json.loads(bridge.fs("n1", "status", "--json").out)["relayed"]
    return relayed and all(r["local_bytes"] == r["total_bytes"] for r in relayed)


def sources(bridge, name):
    """Counters by source; together they are what was fetched, for the node and for each swarm."""
    status = json.loads(bridge.fs(name, "status", "--json").out)
    for part in (status, *status["swarms"]):
        fetched = part["fetched_metadata_bytes"] + part["fetched_data_bytes"] + part["fetched_frame_bytes"]
        assert sum(part["sources"][key] for key in SOURCES) == fetched, part
        assert part["sources"]["cache_bytes"] == part["local_bytes"], part
    return status["sources"]


@promise()
def peers_are_watched_until_interrupted_or_nobody_reads(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    world.mount()
    watching = watch(world, "--json")
    lines = [json.loads(watching.stdout.readline()) for _ in range(2)]
    assert all(line["swarms"][0]["origin"] == world.id for line in lines), lines
    assert hosts.kill(watching, signal.SIGINT) == 0
    watching.stdout.close()
    watching = watch(world)
    assert watching.stdout.readline().startswith(b"origin "), "no table"
    watching.stdout.close()
    assert watching.wait(10) == 0, "whoever closed the pipe wants no more"
    for words in (["--watch"], []):
        result = world.fs("peers", *words, "--cache", world.dir / "no-cache", code=None)
        assert result.code == 7 and "no-cache" in result.err, result


def watch(world, *words):
    words = [world.distd_fs, "peers", "--watch", *words, "--cache", world.cache]
    command = ["nsenter", f"--net=/run/netns/{NODE}", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=os.environ)
