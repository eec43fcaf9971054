"""Promises about a mount that follows its track."""

import errno
import hashlib
import mmap
import os
import statistics
import subprocess
import threading
import time

from lib import compare, hosts, tree
from lib.promises import promise

KIB = 1 << 10
# 10000 for the long run.
SWITCHES = int(os.environ.get("DISTD_SWITCHES", "200"))


def version(path):
    return os.getxattr(path, "user.distd.version").decode()


def shows(mount, release, seconds=5.0):
    """Waits until the mount shows a release; how long that took."""
    begin = time.monotonic()
    hosts.until(lambda: version(mount) == release, seconds, f"{release} on the mount")
    return time.monotonic() - begin


def of_mount(world, mount):
    return next(m for m in world.status()["mounts"] if m["directory"] == str(mount))


def two_releases(world, make):
    """Publishes v1 and v2 of what `make(root, release)` makes; the track stands at v1."""
    sources = {}
    for release in ("v1", "v2"):
        sources[release] = world.dir / release
        make(sources[release], release)
    world.init()
    world.publish(sources["v1"], "v1")
    world.publish(sources["v2"], "v2")
    world.origin("rollback", "stable", "v1")
    world.serve()
    return sources


def plain(root, release):
    for directory in ("bin", "lib", "srv/db"):
        (root / directory).mkdir(parents=True)
        for number in range(4):
            length = (300 + 100 * number) * KIB
            (root / directory / f"f{number}").write_bytes(tree.random_bytes(f"{release}{directory}{number}", length))
    (root / "only-in" / release).mkdir(parents=True)
    (root / f"new-in-{release}").write_text(release)
    (root / "same").write_text("the same in both\n")


def digest_below(directory, name):
    with open(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@promise(seconds=300 + SWITCHES)
def every_file_equals_one_release_under_many_switches(world):
    """A reader sees a file of the old release or of the new one, never a mixture."""
    sources = two_releases(world, plain)
    mount = world.mount()
    names = [p.relative_to(sources["v1"]) for p in sorted(sources["v1"].rglob("f*")) if p.is_file()]
    right = {str(n): {r: compare.digest(sources[r] / n) for r in sources} for n in names}
    ends, faults, counts = threading.Event(), [], [0] * 8

    def read(reader):
        turn = reader
        while not ends.is_set():
            name = str(names[turn % len(names)])
            turn += 1
            try:
                if turn % 3 == 0:
                    # A directory below the root is of one release for as long as it is open.
                    parent = os.open(mount / os.path.dirname(name), os.O_RDONLY | os.O_DIRECTORY)
                    try:
                        found = {d: digest_below(parent, d) for d in sorted(os.listdir(parent)) if d != "db"}
                    finally:
                        os.close(parent)
                    of = [r for r in right if os.path.dirname(r) == os.path.dirname(name)]
                    matches = any(all(found[os.path.basename(n)] == right[n][r] for n in of) for r in sources)
                elif turn % 3 == 1:
                    with open(mount / name, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                        found = hashlib.sha256(mapped).hexdigest()
                    matches = found in right[name].values()
                else:
                    found = compare.digest(mount / name)
                    matches = found in right[name].values()
                if not matches:
                    faults.append(f"{name}: {found} is of no release")
                counts[reader] += 1
            except OSError as error:
                faults.append(f"{name}: {error}")

    readers = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for reader in readers:
        reader.start()
    delays, stands = [], "v1"
    try:
        for _ in range(SWITCHES):
            stands = "v2" if stands == "v1" else "v1"
            world.origin("rollback", "stable", stands)
            try:
                delays.append(shows(mount, stands, 20))
            except AssertionError as error:
                faults.append(str(error))
            if faults:
                break
    finally:
        ends.set()
        for reader in readers:
            reader.join(60)
    assert not faults, f"{len(faults)} faults, the first: {faults[0]}"
    assert of_mount(world, mount)["switches"] == SWITCHES
    print(f"{SWITCHES} switches, {sum(counts)} readings; visible after {statistics.median(delays):.3f} s "
          f"(median), {max(delays):.3f} s (longest)")
    assert statistics.median(delays) < 1
    compare.same(sources[stands], mount)


@promise(seconds=120)
def a_new_release_appears_within_a_second(world):
    source = world.dir / "source"
    plain(source, "v1")
    world.published(source)
    mount = world.mount()
    (source / "new").write_text("new\n")
    (source / "bin" / "f0").unlink()
    before = os.stat(mount).st_ino
    assert not (mount / "new").exists()
    world.publish(source, "v2")
    took = shows(mount, "v2")
    assert took < 1, f"visible {took:.2f} s after publish"
    compare.same(source, mount)
    assert os.stat(mount).st_ino == before and "new" in os.listdir(mount)
    world.origin("rollback", "stable", "v1")
    shows(mount, "v1")
    assert not (mount / "new").exists() and (mount / "bin" / "f0").exists()
    compare.exactly(mount, mount)


@promise(seconds=120)
def what_is_open_or_used_keeps_its_release(world):
    sources = two_releases(world, plain)
    mount = world.mount()
    file = open(mount / "bin" / "f3", "rb")
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    directory = os.open(mount / "lib", os.O_RDONLY | os.O_DIRECTORY)
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    shell = subprocess.Popen(["sh", "-c", f"cd {mount}/srv/db && read x && sha256sum f1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    hosts.until(lambda: os.readlink(f"/proc/{shell.pid}/cwd") == str(mount / "srv/db"), what="the shell's directory")
    number = os.fstat(file.fileno()).st_ino
    world.origin("rollback", "stable", "v2")
    shows(mount, "v2")
    assert hashlib.sha256(mapped).hexdigest() == compare.digest(sources["v1"] / "bin" / "f3")
    assert hashlib.file_digest(file, "sha256").hexdigest() == compare.digest(sources["v1"] / "bin" / "f3")
    assert digest_below(directory, "f2") == compare.digest(sources["v1"] / "lib" / "f2")
    assert shell.communicate(b"\n", timeout=20)[0].split()[0].decode() == compare.digest(sources["v1"] / "srv/db/f1")
    assert digest_below(root, "bin/f3") == compare.digest(sources["v2"] / "bin" / "f3"), "the root follows"
    assert os.stat(mount / "bin" / "f3").st_ino != number, "one number for two files"
    assert sorted(os.listdir(root)) == sorted(os.listdir(sources["v2"]))
    mapped.close()
    file.close()
    os.close(directory)
    os.close(root)


@promise(seconds=120)
def a_listing_is_of_one_release_from_beginning_to_end(world):
    def make(root, release):
        root.mkdir()
        for number in range(4000):
            (root / f"{release}-{number:05}-{'x' * 40}").touch()

    two_releases(world, make)
    mount = world.mount()
    with os.scandir(mount) as entries:
        names = [next(entries).name]
        world.origin("rollback", "stable", "v2")
        shows(mount, "v2")
        names += [entry.name for entry in entries]
    assert len(names) == len(set(names)) == 4000 and all(name.startswith("v1-") for name in names)
    assert all(name.startswith("v2-") for name in os.listdir(mount))
    # What the old listing named is not there any more, and does not come back by having been listed.
    assert not (mount / names[-1]).exists()


@promise(seconds=120)
def what_is_mounted_below_stays_and_the_directories_above_follow(world):
    sources = two_releases(world, plain)
    mount = world.mount()
    subprocess.run(["mount", "-t", "tmpfs", "below", mount / "srv" / "db"], check=True)
    (mount / "srv" / "db" / "mine").write_text("mine\n")
    directory = os.open(mount / "srv", os.O_RDONLY | os.O_DIRECTORY)
    for release in ("v2", "v1", "v2"):
        world.origin("rollback", "stable", release)
        shows(mount, release)
        assert os.path.ismount(mount / "srv" / "db") and (mount / "srv" / "db" / "mine").read_text() == "mine\n"
        assert version(mount / "srv") == version(directory) == release
        assert compare.digest(mount / "bin" / "f0") == compare.digest(sources[release] / "bin" / "f0")
    os.close(directory)
    subprocess.run(["umount", mount / "srv" / "db"], check=True)
    assert compare.digest(mount / "srv/db/f1") == compare.digest(sources["v2"] / "srv/db/f1")


@promise(seconds=120)
def hold_and_release_switch_by_hand(world):
    two_releases(world, plain)
    mount = world.mount(options="hold")
    world.origin("rollback", "stable", "v2")
    hosts.until(lambda: of_mount(world, mount)["newest"] == "v2", what="the news")
    time.sleep(0.5)
    held = of_mount(world, mount)
    assert (held["release"], held["follows"], version(mount)) == ("v1", "held", "v1")
    assert "the newest is v2" in world.fs("status", "--cache", world.cache).out
    world.fs("release", "--once", mount, "--cache", world.cache)
    assert (version(mount), of_mount(world, mount)["follows"]) == ("v2", "held")
    world.origin("rollback", "stable", "v1")
    time.sleep(0.5)
    assert version(mount) == "v2"
    world.fs("release", mount, "--cache", world.cache)
    assert (version(mount), of_mount(world, mount)["follows"]) == ("v1", "track")
    world.fs("hold", mount / "bin", "--cache", world.cache)
    world.origin("rollback", "stable", "v2")
    time.sleep(0.5)
    assert version(mount) == "v1"


@promise(seconds=120)
def a_pinned_release_never_switches(world):
    two_releases(world, plain)
    mount = world.mount(world.url(release="v1"))
    world.origin("rollback", "stable", "v2")
    hosts.until(lambda: of_mount(world, mount)["newest"] == "v2", what="the news")
    time.sleep(0.5)
    assert version(mount) == "v1" and of_mount(world, mount)["follows"] == "pinned"
    refused = world.fs("release", mount, "--cache", world.cache, code=2)
    assert "mount the track" in refused.err, refused.err


@promise(seconds=120)
def with_the_origin_gone_the_mount_stays_at_its_release_and_catches_up_later(world):
    sources = two_releases(world, plain)
    mount = world.mount(options="timeout=3")
    compare.same(sources["v1"], mount)
    world.stop(world.servers[0])
    world.origin("rollback", "stable", "v2")
    time.sleep(1)
    assert version(mount) == "v1"
    compare.same(sources["v1"], mount)
    world.serve()
    shows(mount, "v2", 40)
    compare.same(sources["v2"], mount)
    try:
        (mount / "x").touch()
    except OSError as error:
        assert error.errno == errno.EROFS
