"""Promises about many machines that want the same of an origin on a thin line."""

import concurrent.futures
import random
import signal
import subprocess

from lib import compare, hosts, tree
from lib.bridge import Bridge
from lib.promises import promise


def at_once(names, action):
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(action, names))


def unmount(points):
    for point in points:
        subprocess.run(["umount", point], check=True)


def prefetch_all(bridge, names, points):
    at_once(names, lambda name: bridge.fs(name, "prefetch", "--wait", "-q", points[name], seconds=120))


@promise(seconds=180)
def four_nodes_cost_the_origin_one_copy(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "content", 24 * tree.MIB)
    world.published(source)
    with Bridge(world, 4) as bridge:
        everybody = bridge.source(bridge.names)
        points = dict(zip(bridge.names, at_once(bridge.names, lambda name: bridge.mount(name, everybody))))
        before = bridge.sent_by_origin()
        prefetch_all(bridge, bridge.names, points)
        copies = (bridge.sent_by_origin() - before) / (24 * tree.MIB)
        print(f"{copies:.3f} copies")
        assert copies <= 1.3, copies
        # A node that comes later has it from the others, also while the origin is gone.
        world.stop(world.servers[0], signal.SIGKILL)
        for name in bridge.names:
            compare.same(source, points[name])
        unmount(points.values())


@promise(seconds=180)
def nodes_behind_relays_get_nothing_from_the_origin_and_go_on_when_the_relays_die(world):
    source = world.dir / "source"
    source.mkdir()
    for name in ("one", "two"):
        tree.incompressible(source / name, 12 * tree.MIB, seed=name)
    world.published(source)
    with Bridge(world, 4) as bridge:
        relays, nodes = bridge.names[:2], bridge.names[2:]
        started = []
        for name in relays:
            words = [world.distd_fs, "relay", bridge.source(relays), "--cache", bridge.cache(name), "--listen", f"{bridge.address(name)}:7574"]
            started.append(hosts.start(name, *words))
            world.servers.append(started[-1])
        hosts.until(lambda: all(hosts.run(name, world.distd_fs, "status", "--cache", bridge.cache(name)).code == 0 for name in relays), 20, "the relays")
        before = bridge.sent_by_origin()
        points = {name: bridge.mount(name, bridge.source(bridge.names)) for name in nodes}
        at_once(nodes, lambda name: bridge.fs(name, "prefetch", "--wait", "-q", points[name] / "one", seconds=120))
        copies = (bridge.sent_by_origin() - before) / (12 * tree.MIB)
        received = {name: bridge.received_from_origin(name) for name in nodes}
        print(f"{copies:.3f} copies, from the origin {received}")
        assert copies <= 1.3, copies
        assert all(bytes_ < 64 << 10 for bytes_ in received.values()), received
        for relay in started:
            world.stop(relay, signal.SIGKILL)
        at_once(nodes, lambda name: bridge.fs(name, "prefetch", "--wait", "-q", points[name] / "two", seconds=120))
        world.stop(world.servers[0], signal.SIGKILL)
        for name in nodes:
            compare.same(source, points[name])
        unmount(points.values())


@promise(seconds=180)
def readers_of_the_same_tenth_cost_the_origin_little_more_than_it(world):
    source, part = world.dir / "source", 256 << 10
    source.mkdir()
    for number in range(240):
        tree.incompressible(source / str(number), part, seed=number)
    world.published(source)
    wanted = random.Random(5).sample(range(240), 24)
    with Bridge(world, 6) as bridge:
        everybody = bridge.source(bridge.names)
        points = dict(zip(bridge.names, at_once(bridge.names, lambda name: bridge.mount(name, everybody))))
        before = bridge.sent_by_origin()

        def read(name):
            order = wanted if int(name[1:]) % 2 else wanted[::-1]
            return {number: (points[name] / str(number)).read_bytes() for number in order}

        results = at_once(bridge.names, read)
        copies = (bridge.sent_by_origin() - before) / (part * len(wanted))
        print(f"{copies:.3f} copies of what was read")
        for number in wanted:
            want = (source / str(number)).read_bytes()
            assert all(result[number] == want for result in results)
        assert copies <= 1.5, copies
        unmount(points.values())


@promise(seconds=120)
def nodes_of_one_network_find_each_other_and_one_that_does_not_want_to_is_not_found(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "content", 4 * tree.MIB)
    world.published(source)
    with Bridge(world, 3) as bridge:
        names, alone = bridge.source([]), "n3"
        points = {name: bridge.mount(name, names, "prefetch=none" + (",nolan" if name == alone else "")) for name in bridge.names}
        levels = lambda name: sorted(p["level"] for p in bridge.status(name)["peers"] if p["state"] == "open")  # noqa: E731
        hosts.until(lambda: all(levels(name) == [0, 255] for name in ("n1", "n2")), 20, "two nodes that see each other")
        bridge.fs("n1", "prefetch", "--wait", "-q", points["n1"], seconds=60)
        assert levels(alone) == [0]
        world.stop(world.servers[0], signal.SIGKILL)
        compare.same(source, points["n2"])
        unmount(points.values())
