"""Promises about prune: releases go with their space, and what stays is whole."""

import json
import os
import random
import signal
import subprocess
import threading
import time

from lib import compare, hosts, tree
from lib.network import NODE, ORIGIN
from lib.promises import promise

KILLS = int(os.environ.get("DISTD_KILLS", "100"))
NO_SUCH_THING = 7


def text(seed, length):
    """Compressible, and nothing of it twice."""
    chance = random.Random(f"text{seed}")
    words = [chance.randbytes(chance.randint(2, 9)).hex().encode() for _ in range(500)]
    made = b""
    while len(made) < length:
        made += b" ".join(chance.choice(words) for _ in range(1000)) + b"%d\n" % chance.getrandbits(60)
    return made[:length]


def release(source, number):
    """What every release holds, what only this one holds, and a file of which little stays."""
    if number == 0:
        source.mkdir()
        (source / "always").write_bytes(tree.random_bytes("always", 2 * tree.MIB))
        (source / "words").write_bytes(text("words", 2 * tree.MIB))
        (source / "shrinking").write_bytes(text("shrinking", 3 * tree.MIB))
    (source / "own").write_bytes(tree.random_bytes(f"own{number}", 2 * tree.MIB))
    (source / "own-words").write_bytes(text(f"own{number}", 2 * tree.MIB))
    with (source / "words").open("r+b") as file:
        file.seek(number * 100_000 % tree.MIB)
        file.write(text(f"change{number}", 20_000))
    # Of every sixteen blocks of the first release two are left: too few for their frames.
    if number == 1:
        blocks = (source / "shrinking").read_bytes()
        step = 16 * 4096
        (source / "shrinking").write_bytes(b"".join(blocks[at : at + 8192] for at in range(0, len(blocks), step)))
    (source / f"file{number}").write_text(f"release {number}\n" * 300)
    return source


def allocated(world):
    return sum(p.stat().st_blocks * 512 for p in (world.repo / "log").iterdir())


def snapshot(world, source, number):
    copy = world.dir / f"copy{number}"
    subprocess.run(["cp", "-a", source, copy], check=True)
    return copy


def some_releases(world, count):
    """`count` releases, v0 and up, and a copy of each one's source."""
    world.init()
    source, copies = world.dir / "source", []
    for number in range(count):
        release(source, number)
        world.publish(source, f"v{number}")
        copies.append(snapshot(world, source, number))
    return source, copies


def prune(world, *words, **options):
    result = world.origin("prune", *words, "--json", **options)
    return json.loads(result.out) if result.code == 0 else result


def equal(world, copies, numbers):
    """A node with nothing in its cache finds each of these releases as its source was."""
    for number in numbers:
        point = world.dir / f"mnt{number}-{len(world.mounts())}"
        point.mkdir()
        world.mount(world.url(release=f"v{number}"), point)
        compare.same(copies[number], point)
        world.umount(point)
        point.rmdir()


@promise(seconds=120)
def what_stays_is_whole_and_the_disk_is_given_back(world):
    source, copies = some_releases(world, 5)
    before = allocated(world)
    would = prune(world, "--keep", "2", "--dry-run")
    assert [x["version"] for x in would["pruned"]] == ["v0", "v1", "v2"], would
    assert allocated(world) == before
    report = prune(world, "--keep", "2")
    assert [x["version"] for x in report["pruned"]] == ["v0", "v1", "v2"], report
    freed = before - allocated(world)
    print(f"{before} bytes, freed {freed}, said {report['freed_bytes']}, foretold {would['freed_bytes']}")
    # Three releases' own files: 2 MiB that nothing compresses, and words.
    assert freed > 3 * 2 * tree.MIB, report
    assert abs(report["freed_bytes"] - would["freed_bytes"]) < tree.MIB, (report, would)
    world.origin("verify")
    again = prune(world, "--keep", "2")
    assert again["pruned"] == [], again
    world.serve()
    equal(world, copies, [3, 4])
    # A publish goes on as ever: against the release before, and with what stays.
    release(source, 5)
    published = world.publish(source, "v5")
    assert published["new_bytes"] < 6 * tree.MIB, published
    copies.append(snapshot(world, source, 5))
    world.origin("verify")
    equal(world, copies, [4, 5])


@promise(seconds=90)
def what_is_left_of_a_hardly_needed_frame_is_kept_plain(world):
    source, copies = some_releases(world, 2)
    (source / "own-words").unlink()
    world.publish(source, "v2")
    copies.append(snapshot(world, source, 2))
    prune(world, "--keep", "1")
    world.origin("verify")
    world.serve()
    equal(world, copies, [2])
    # An update from what a node holds finds its way, too.
    world.mount()
    release(source, 3)
    world.publish(source, "v3")
    hosts.until(lambda: (world.mountpoint / "file3").exists(), 20, "the new release")
    compare.same(source, world.mountpoint)


@promise(seconds=90)
def a_pruned_release_is_told_as_such(world):
    some_releases(world, 3)
    world.serve()
    prune(world, "--keep", "1")
    for words in (["show", "v0"], ["show", "stable@v0"], ["diff", "v0", "v2"], ["diff", "v2", "stable@v0"], ["rollback", "stable", "v0"]):
        result = world.origin(*words, code=NO_SUCH_THING)
        assert "stable@v0 was pruned" in result.err, result
    result = world.mount(world.url(release="v0"), code=None)
    assert result.code == NO_SUCH_THING and "was pruned" in result.err, result
    listed = json.loads(world.origin("list", "--json").out)
    assert [r["pruned"] for r in listed["releases"]] == [True, True, False], listed
    result = world.origin("publish", world.dir / "source", "--track", "stable", "--release", "v0", code=1)
    assert "never change" in result.err, result
    world.origin("prune", code=2)
    result = world.origin("prune", "--keep", "1", "--keep-track", "none", code=NO_SUCH_THING)
    assert "none" in result.err, result


@promise(seconds=90)
def content_that_returns_is_published_anew(world):
    source, copies = some_releases(world, 2)
    world.publish(copies[0], "old", "other")
    prune(world, "--keep-track", "other")
    listed = {(r["track"], r["version"]): r["pruned"] for r in json.loads(world.origin("list", "--json").out)["releases"]}
    assert listed == {("stable", "v0"): True, ("stable", "v1"): False, ("other", "old"): False}, listed
    # What another track holds is not gone: publishing it again stores nothing.
    assert world.publish(copies[0], "v0-again")["new_bytes"] == 0
    # Then it is, and it comes back.
    world.publish(copies[1], "new", "other")
    world.publish(copies[1], "v1-again")
    pruned = prune(world, "--keep", "1")
    assert len(pruned["pruned"]) == 3, pruned
    back = world.publish(copies[0], "v0-back")
    assert back["new_bytes"] > 4 * tree.MIB, back
    world.origin("verify")
    # The same without an index: it is made anew from what is there.
    (world.repo / "index.redb").unlink()
    assert world.publish(copies[1], "v1-back")["new_bytes"] == 0
    world.origin("verify")
    world.serve()
    world.mount(world.url(release="v0-back"))
    compare.same(copies[0], world.mountpoint)
    world.umount()
    world.mount(world.url(release="v1-back"))
    compare.same(copies[1], world.mountpoint)


@promise(seconds=150)
def prune_goes_on_beside_publish_serve_and_reading(world):
    source, copies = some_releases(world, 3)
    world.serve()
    world.mount()
    stop, faults = threading.Event(), []

    def read():
        # The mount follows: whatever release it shows, its files are whole.
        wanted = compare.digest(source / "always")
        while not stop.is_set():
            try:
                if compare.digest(world.mountpoint / "always") != wanted:
                    faults.append("another content")
            except OSError as error:
                faults.append(repr(error))

    def look():
        while not stop.is_set():
            result = world.origin("verify", code=None)
            if result.code != 0:
                faults.append(str(result))

    threads = [threading.Thread(target=read), threading.Thread(target=look)]
    for thread in threads:
        thread.start()
    env = {"DISTD_REPO": str(world.repo)}
    for number in range(3, 11):
        release(source, number)
        words = [world.distd_origin, "prune", "--keep", "2", "-q"]
        pruning = hosts.start(ORIGIN, *words, err=subprocess.PIPE, env=env)
        world.publish(source, f"v{number}")
        assert pruning.wait(60) == 0, pruning.stderr.read()
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]
    copies = {10: snapshot(world, source, 10)}
    world.origin("verify")
    hosts.until(lambda: (world.mountpoint / "file10").exists(), 20, "the newest release")
    compare.same(source, world.mountpoint)
    world.umount()
    equal(world, copies, [10])


@promise(seconds=60 + 3 * KILLS)
def prune_survives_kill_9_at_random_instants(world):
    source, _ = some_releases(world, 3)
    begin = time.monotonic()
    prune(world, "--keep", "2")
    whole = time.monotonic() - begin
    chance, killed, number = random.Random(5), 0, 3
    for kill in range(KILLS):
        release(source, number)
        world.publish(source, f"v{number}")
        words = [world.distd_origin, "prune", "--keep", "2", "-q"]
        process = hosts.start(ORIGIN, *words, err=subprocess.DEVNULL, env={"DISTD_REPO": str(world.repo)})
        time.sleep(chance.uniform(0, whole * 1.05))
        killed += process.poll() is None
        hosts.kill(process, signal.SIGKILL)
        world.origin("verify")
        number += 1
        if kill % 10 == 9:
            # What a killed prune left undone, the next one does.
            prune(world, "--keep", "2")
            room = allocated(world)
            assert room < 40 * tree.MIB, room
    print(f"{killed} of {KILLS} were killed at work")
    assert killed >= KILLS // 3, f"only {killed} of {KILLS} were still at work"
    prune(world, "--keep", "2")
    world.origin("verify")
    world.serve()
    last = snapshot(world, source, number - 1)
    equal(world, {number - 1: last}, [number - 1])
