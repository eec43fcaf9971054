"""Promises about publish and what it stores, and about what tells of releases."""

import json
import os
import shutil
import signal
import subprocess
import time

from lib import compare, facts, hosts, tree
from lib.network import NODE, ORIGIN
from lib.promises import promise
from promises import updates


def inventory(directory):
    """Sizes and allocation of everything below a directory that is more than a lock or an index."""
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name not in ("lock", "index.redb"))
    return {str(p): (p.stat().st_size, p.stat().st_blocks) for p in files}


def stored(world):
    return sum(p.stat().st_blocks * 512 for p in world.repo.rglob("*") if p.is_file())


@promise(seconds=120)
def shared_blocks_are_stored_once(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "base", 16 * tree.MIB)
    world.init()
    world.publish(source, "v1")
    before = stored(world)
    shutil.copy(source / "base", source / "copy")
    (source / "moved").mkdir()
    shutil.copy(source / "base", source / "moved/again")
    (source / "prefixed").write_bytes(bytes(8192) + (source / "base").read_bytes()[: 8 * tree.MIB])
    second = world.publish(source, "v2")
    assert facts.new_bytes(second) < tree.MIB, second
    assert stored(world) - before < 4 * tree.MIB, stored(world) - before


@promise(seconds=120)
def publish_of_an_unchanged_tree_reads_nothing_and_makes_no_release(world):
    source = tree.small(world.dir / "source")
    world.init()
    # A file that changed within the second before its first publish may change again unseen: not remembered.
    time.sleep(1.1)
    world.publish(source, "v1")
    releases = world.origin("list", "--json").out
    trace = world.dir / "trace"
    calls = "trace=read,pread64,preadv,preadv2,readv,mmap,copy_file_range,sendfile"
    words = ["strace", "-f", "-y", "-qq", "-o", trace, "-e", calls]
    words += [world.distd_origin, "publish", source, "--track", "stable", "--release", "v2"]
    result = hosts.run(ORIGIN, *words, env={"DISTD_REPO": str(world.repo)})
    assert result.code == 0, result
    assert "nothing" in (result.out + result.err).lower() or "unchanged" in (result.out + result.err).lower(), result
    read = [line for line in trace.read_text(errors="replace").splitlines() if f"<{source}/" in line]
    assert not read, f"{len(read)} reads of an unchanged tree: {read[:3]}"
    assert world.origin("list", "--json").out == releases


@promise(seconds=120)
def a_change_that_keeps_size_and_mtime_is_found(world):
    """The stat cache looks at ctime too: a file put back under its old mtime is read again."""
    source = tree.small(world.dir / "source")
    world.init()
    world.publish(source, "v1")
    before = (source / "big").stat()
    with (source / "big").open("r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    os.utime(source / "big", ns=(before.st_atime_ns, before.st_mtime_ns))
    world.publish(source, "v2")
    world.serve()
    compare.same(source, world.mount())


@promise(seconds=120)
def dry_run_tells_and_touches_nothing(world):
    source = tree.small(world.dir / "source")
    world.init()
    world.publish(source, "v1")
    tree.incompressible(source / "more", 3 * tree.MIB, seed=9)
    before = inventory(world.repo)
    told = world.publish(source, "v2", "stable", "--dry-run")
    assert 3 * tree.MIB <= facts.new_bytes(told) < 4 * tree.MIB, told
    assert inventory(world.repo) == before, set(inventory(world.repo).items()) ^ set(before.items())
    done = world.publish(source, "v2")
    assert facts.new_bytes(done) >= 3 * tree.MIB


@promise(seconds=120)
def diff_names_exactly_what_differs(world):
    source = tree.small(world.dir / "source")
    world.init()
    world.publish(source, "v1")
    (source / "lib/a/file1").write_bytes(b"changed")
    (source / "lib/b/file0").unlink()
    (source / "added").mkdir()
    (source / "added/new").write_bytes(b"new")
    os.chmod(source / "bin/file2", 0o700)
    os.setxattr(source / "bin/file1", "user.x", b"y")
    world.publish(source, "v2")
    text = world.origin("diff", "v1", "v2").out
    for name in ("lib/a/file1", "lib/b/file0", "added/new", "bin/file2", "bin/file1"):
        assert name in text, f"diff does not name {name}: {text}"
    for name in ("lib/a/file0", "lib/b/file1", "big", "empty", "bin/file0"):
        assert name not in text, f"diff names {name}, which is the same: {text}"
    told = world.origin("diff", "v1", "v2", "--json").out
    names = {os.path.normpath(row["path"]).lstrip("/") for row in facts.changes(json.loads(told))}
    assert names >= {"lib/a/file1", "lib/b/file0", "added/new", "bin/file2", "bin/file1"}, names
    assert not names & {"big", "empty", "lib/a/file0"}, names
    assert "big" not in world.origin("diff", "v2", "v2").out


@promise(seconds=120)
def list_and_show_tell_of_each_release(world):
    source = tree.small(world.dir / "source")
    world.init()
    assert json.loads(world.origin("list", "--json").out) is not None
    world.publish(source, "v1", "stable", "-m", "the first")
    (source / "more").write_text("x")
    world.publish(source, "v2", "beta")
    listed = world.origin("list", "--json").out
    assert json.loads(listed) and all(x in listed for x in ("v1", "v2", "stable", "beta")), listed
    text = world.origin("list").out
    assert all(x in text for x in ("v1", "v2", "stable", "beta")), text
    shown = world.origin("show", "v1", "--json").out
    assert json.loads(shown) and "the first" in shown, shown
    assert "v1" in world.origin("show", "v1").out


@promise(seconds=120)
def rollback_brings_back_the_old_tree(world):
    source = tree.small(world.dir / "source")
    old = world.dir / "old"
    subprocess.run(["cp", "-a", source, old], check=True)
    world.published(source)
    (source / "big").write_bytes(b"a bad release")
    (source / "extra").write_text("x")
    world.publish(source, "v2")
    mount = world.mount()
    compare.same(source, mount)
    world.umount()
    world.origin("rollback", "--track", "stable", "--to", "v1")
    world.mount()
    compare.same(old, mount)
    world.origin("verify")
    world.publish(source, "v3")
    world.origin("verify")


@promise(seconds=120)
def publish_ends_when_the_running_serve_has_announced_it(world):
    source = tree.small(world.dir / "source")
    world.init()
    server = world.serve()
    for number in range(3):
        (source / "number").write_text(str(number))
        assert world.publish(source, f"v{number}")["announced"] is True
        point, cache = world.dir / f"mount{number}", world.dir / f"cache{number}"
        point.mkdir()
        hosts.run(NODE, world.distd_fs, "mount", world.url(), point, "-o", f"cache={cache}")
        assert (point / "number").read_text() == str(number)
        compare.same(source, point)
    # A server that hangs costs a publish its patience, and a warning.
    os.kill(server.pid, signal.SIGSTOP)
    (source / "number").write_text("late")
    begin = time.monotonic()
    result = world.origin("publish", source, "--track", "stable", "--release", "late")
    assert 1.5 < time.monotonic() - begin < 20 and "announced" in result.err, result
    os.kill(server.pid, signal.SIGCONT)
    world.stop(server)
    (source / "number").write_text("alone")
    assert world.publish(source, "alone")["announced"] is None, "no server runs"


@promise(seconds=120)
def a_single_file_is_a_release(world):
    world.init()
    tree.incompressible(world.dir / "image.bin", 5 * tree.MIB)
    world.publish(world.dir / "image.bin", "v1")
    world.serve()
    mount = world.mount()
    assert os.listdir(mount) == ["image.bin"]
    assert compare.digest(mount / "image.bin") == compare.digest(world.dir / "image.bin")


@promise(seconds=120)
def publish_warns_about_what_others_could_not_read(world):
    source = tree.small(world.dir / "source")
    (source / "private").write_text("x")
    (source / "private").chmod(0o600)
    world.init()
    result = world.origin("publish", source, "--track", "stable", "--release", "v1")
    assert "private" in result.err or "readable" in result.err.lower() or "world" in result.err.lower(), result


@promise(seconds=60)
def the_key_is_its_owners_alone(world):
    world.init()
    keys = [p for p in world.repo.rglob("*") if "key" in p.name and p.is_file()]
    assert keys
    for key in keys:
        assert key.stat().st_mode & 0o077 == 0, f"{key}: {oct(key.stat().st_mode)}"
    secret = next(k for k in keys if "pub" not in k.name)
    secret.chmod(0o644)
    source = tree.small(world.dir / "source")
    refused = world.publish(source, "v1", code=None)
    assert not isinstance(refused, dict), "a key that others can read was used"
    assert str(secret) in refused.err, refused


@promise(seconds=120)
def a_tree_of_links_out_of_itself_stays_inside(world):
    source = world.dir / "source"
    source.mkdir()
    (source / "etc").symlink_to("/etc")
    (source / "up").symlink_to("../..")
    (source / "loop").symlink_to("loop")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)
    assert sorted(os.listdir(mount)) == ["etc", "loop", "up"]


@promise(seconds=240)
def a_source_that_races_leaks_nothing(world):
    """FAULTS O5: a directory that turns into a link to elsewhere is never followed."""
    source, outside = world.dir / "source", world.dir / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"foreign bytes " * 1000)
    world.init()
    flipper = (
        "import os, sys\nd, o = sys.argv[1:]\n"
        "while True:\n os.rename(d + '/a', d + '/b'); os.symlink(o, d + '/a'); os.unlink(d + '/a'); os.rename(d + '/b', d + '/a')\n"
    )
    (source / "a").mkdir(parents=True)
    (source / "a/secret").write_bytes(b"own bytes")
    racing = subprocess.Popen(["python3", "-c", flipper, source, outside], stderr=subprocess.DEVNULL)
    try:
        for number in range(40):
            world.publish(source, f"v{number}", code=None)
    finally:
        racing.kill()
        racing.wait()
    for path in world.repo.rglob("*"):
        if path.is_file():
            assert b"foreign bytes" not in path.read_bytes(), f"{path} holds what lies outside the tree"


@promise(seconds=120)
def what_an_update_will_cost_is_told_and_is_right(world):
    source = updates.held(world)
    for version in (2, 3, 4, 5):
        updates.release(source, version, updates.SIZES)
        published = world.publish(source, f"v{version}")
    told = {row["version"]: row for row in published["updates"]}
    assert list(told) == ["v4", "v3", "v2"], told
    # An update from further back goes through the frames of those between.
    fetched = {version: row["frame_bytes"] + row["plain_bytes"] + row["index_bytes"] for version, row in told.items()}
    assert fetched["v4"] < fetched["v3"] < fetched["v2"] < sum(updates.SIZES.values()) // 2, fetched
    assert told["v4"]["chained_bytes"] == 0 < told["v2"]["chained_bytes"], told
    for version, row in told.items():
        said = json.loads(world.origin("diff", version, "v5", "--cost", "--json").out)["cost"]
        assert said == {key: value for key, value in row.items() if key != "version"}, (said, row)
    # The node holds v1.
    cost = json.loads(world.origin("diff", "v1", "v5", "--cost", "--json").out)["cost"]
    expected = cost["frame_bytes"] + cost["plain_bytes"] + cost["index_bytes"]
    updates.prefetch(world, world.mount(options="prefetch=none"))
    moved = updates.swarm(world)["received_bytes"]
    print(f"expected {expected}, moved {moved}: {cost}")
    assert expected * 0.8 < moved < expected * 1.3 + 200_000, (expected, moved)
