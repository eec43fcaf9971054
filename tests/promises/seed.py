"""Promises about `get` into a directory that holds something, by a machine that never had distd: what is there is a seed."""

import os
import random
import shutil
import threading
import time

from lib import hosts, tree
from lib.network import NODE
from lib.promises import promise
from promises.get import KILLS, end_all, get, is_release
from promises.updates import KIB, node_ends, release, relinked, words

SIZES = {"large": 3 * tree.MIB + 5 * KIB, "second": 2 * tree.MIB, "middle": 700 * KIB, "small": 100 * KIB, "tiny": 9 * KIB}
TOTAL = sum(SIZES.values())


def moved(world):
    """Bytes that the node's interface has received and sent."""
    lines = hosts.run(NODE, "cat", "/proc/net/dev").out.splitlines()
    fields = next(line for line in lines if line.strip().startswith("eth0:")).split(":")[1].split()
    return int(fields[0]) + int(fields[8])


def forget(world):
    """Makes the machine one that never had distd."""
    node_ends(world)
    shutil.rmtree(world.cache, ignore_errors=True)


def counted(world, directory, *more, **options):
    """What a get by such a machine moves."""
    forget(world)
    before = moved(world)
    report = get(world, directory, "--delete", *more, **options)
    assert isinstance(report, dict), report
    node_ends(world)
    return moved(world) - before, report


def updated(world, versions=2):
    """A source at its newest release, published with those before; a copy of the first, and what a get without it moves."""
    source = release(world.dir / "source", 1, SIZES)
    world.published(source)
    first = world.dir / "first"
    shutil.copytree(source, first)
    for version in range(2, versions + 1):
        release(source, version, SIZES)
        world.publish(source, f"v{version}")
    alone, report = counted(world, world.dir / "alone")
    is_release(source, world.dir / "alone")
    assert report["reused_bytes"] == 0
    return source, first, alone


@promise(seconds=180)
def an_older_release_in_the_directory_leaves_the_difference_to_fetch(world):
    source, first, alone = updated(world)
    directory = world.dir / "out"
    shutil.copytree(first, directory)
    seeded, report = counted(world, directory)
    print(f"{seeded} bytes with seeds, {alone} without, {TOTAL} of content: {report}")
    is_release(source, directory)
    assert seeded < alone / 5
    # What is there under other names is as good.
    shutil.rmtree(directory)
    (directory / "elsewhere").mkdir(parents=True)
    for number, name in enumerate(SIZES):
        shutil.copy(first / name, directory / "elsewhere" / str(number))
    seeded, report = counted(world, directory)
    is_release(source, directory)
    assert seeded < alone / 5, seeded


@promise(seconds=180)
def a_release_that_was_skipped_is_a_seed_too(world):
    source, first, alone = updated(world, versions=3)
    directory = world.dir / "out"
    shutil.copytree(first, directory)
    seeded, report = counted(world, directory)
    print(f"{seeded} bytes with seeds, {alone} without: {report}")
    is_release(source, directory)
    assert seeded < alone / 3


@promise(seconds=180)
def a_file_that_somebody_changed_is_a_seed_where_it_was_not(world):
    source, first, alone = updated(world)
    directory = world.dir / "out"
    shutil.copytree(first, directory)
    for name in ("large", "second"):
        content = bytearray((directory / name).read_bytes())
        for at in (100, 300 * KIB, 1500 * KIB):
            content[at : at + 300] = random.Random(at).randbytes(300)
        (directory / name).write_bytes(content)
    seeded, report = counted(world, directory)
    print(f"{seeded} bytes with seeds, {alone} without: {report}")
    is_release(source, directory)
    assert seeded < alone / 4
    # Changed and renamed: what the log has of it is found by all hashes.
    (directory / "large").rename(directory / "renamed")
    for name in SIZES:
        with (directory / name if name != "large" else directory / "renamed").open("wb") as file:
            file.write((first / name).read_bytes())
    with (directory / "renamed").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"somebody was here")
    seeded, report = counted(world, directory)
    print(f"{seeded} bytes with a changed file under another name: {report}")
    is_release(source, directory)
    assert seeded < alone / 4
    # The parts that did not change are not fetched, either.
    shutil.rmtree(directory)
    shutil.copytree(source, directory)
    with (directory / "large").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"somebody was here")
    seeded, report = counted(world, directory)
    print(f"{seeded} bytes to mend one file: {report}")
    is_release(source, directory)
    assert report["written"] == 1 and report["reused_bytes"] > SIZES["large"] - 128 * KIB, report
    assert seeded < alone / 5, seeded


@promise(seconds=180, delay_ms=5)
def files_that_change_meanwhile_do_no_harm(world):
    source, first, _ = updated(world)
    for turn in range(4):
        directory = world.dir / "out"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(first, directory)
        files = [(directory / name).open("r+b") for name in SIZES]
        ended, chance = threading.Event(), random.Random(turn)

        def scribble():
            while not ended.wait(0.01):
                for file in files:
                    # The file that was there, not the one that takes its place.
                    file.seek(chance.randrange(2 * tree.MIB))
                    file.write(b"changed meanwhile")
                    file.flush()

        scribbler = threading.Thread(target=scribble)
        scribbler.start()
        try:
            counted(world, directory)
        finally:
            ended.set()
            scribbler.join()
        for file in files:
            file.close()
        is_release(source, directory)


@promise(seconds=120)
def nothing_outside_is_a_seed(world):
    source, first, alone = updated(world)
    directory, outside = world.dir / "out", world.dir / "outside"
    shutil.copytree(first, outside)
    directory.mkdir()
    for name in SIZES:
        (directory / name).symlink_to(outside / name)
        (directory / f"more-{name}").symlink_to(outside / name)
    (directory / "deep").symlink_to(outside)
    (directory / ".distd-get").mkdir(mode=0o700)
    (directory / ".distd-get/seeds").symlink_to(outside)
    before = {name: (outside / name).read_bytes() for name in SIZES}
    for name in SIZES:
        # So that a read would show.
        os.utime(outside / name, (1000, 2000))
    seeded, report = counted(world, directory)
    is_release(source, directory)
    assert report["reused_bytes"] == 0 and seeded > alone / 2, (seeded, alone, report)
    for name in SIZES:
        stat = os.stat(outside / name)
        assert (stat.st_atime, stat.st_mtime, stat.st_nlink) == (1000, 2000, 1), name
        assert (outside / name).read_bytes() == before[name]
    assert sorted(os.listdir(outside)) == sorted(SIZES)


@promise(seconds=300 + 10 * KILLS)
def killed_at_any_point_the_next_run_still_profits(world):
    source, first, alone = updated(world)
    # A base that goes before everything is made of it.
    (source / "also").write_bytes(relinked((first / "large").read_bytes(), "also"))
    (source / "large").unlink()
    world.publish(source, "v3")
    directory, chance = world.dir / "out", random.Random(11)
    shutil.copytree(first, directory)
    forget(world)
    begin = time.monotonic()
    get(world, directory, "--delete")
    whole = time.monotonic() - begin
    worst = 0
    for turn in range(KILLS):
        forget(world)
        shutil.rmtree(directory)
        shutil.copytree(first, directory)
        before = moved(world)
        command = hosts.start(NODE, world.distd_fs, "get", world.url(), directory, "--delete", "--cache", world.cache)
        time.sleep(chance.uniform(0, whole * 1.1))
        end_all(world)
        command.wait(20)
        get(world, directory, "--delete")
        node_ends(world)
        is_release(source, directory)
        worst = max(worst, moved(world) - before)
    print(f"at most {worst} bytes for both runs together, {alone} without seeds")
    assert worst < alone / 5


@promise(seconds=120)
def without_seeds_nothing_else_is_fetched(world):
    source = release(world.dir / "source", 1, SIZES)
    world.published(source)
    release(source, 2, SIZES)
    world.publish(source, "v2")
    empty, _ = counted(world, world.dir / "one")
    (world.dir / "two").mkdir()
    (world.dir / "two/foreign").write_bytes(random.Random(3).randbytes(200 * KIB))
    foreign, report = counted(world, world.dir / "two")
    print(f"{empty} bytes into an empty directory, {foreign} beside a file of somebody else's")
    assert report["deleted"] == 1
    is_release(source, world.dir / "two")
    assert foreign < empty * 1.1 + 64 * KIB


@promise(seconds=120)
def what_a_pruned_release_shared_is_found_still(world):
    source = world.dir / "source"
    source.mkdir()
    (source / "shared").write_bytes(words("shared", 4 * tree.MIB))
    (source / "other").write_bytes(words("other", 300 * KIB))
    world.published(source)
    directory = world.dir / "out"
    shutil.copytree(source, directory)
    with (source / "shared").open("r+b") as file:
        file.seek(3 * tree.MIB)
        file.write(words("new", 256 * KIB))
    (source / "other").write_bytes(words("another", 300 * KIB))
    world.publish(source, "v2")
    world.origin("prune", "--keep", "1")
    world.origin("verify")
    alone, _ = counted(world, world.dir / "alone")
    begin = time.monotonic()
    seeded, report = counted(world, directory)
    print(f"{seeded} bytes with seeds, {alone} without, {time.monotonic() - begin:.1f} s: {report}")
    is_release(source, directory)
    assert seeded < alone / 2 and time.monotonic() - begin < 30
