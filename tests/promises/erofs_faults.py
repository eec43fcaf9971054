"""Promises about releases that the kernel shows, when what carries them breaks: helpers, superblocks, nodes."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from lib import compare, hosts, tree
from lib.promises import promise
from promises.erofs_view import VIEW, by_erofs, lines, of_mounts, shows, version
from promises.follow import of_mount, plain, two_releases


@contextlib.contextmanager
def injected(world, what):
    """As long as this lasts, a fault in the node and the helpers that it starts (strace -e inject)."""
    call = what.split(":")[0]
    words = ["strace", "-f", "-qq", "-o", world.dir / "strace", "-p", str(world.node_pid()), "-e", f"trace={call}", "-e", f"inject={what}"]
    tracer = subprocess.Popen(words)
    hosts.until(lambda: traced(world.node_pid()), 10, "strace")
    try:
        yield
    finally:
        # Not politely: one that delays a process which was killed meanwhile does not end.
        tracer.kill()
        tracer.wait(20)


def traced(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return "TracerPid:\t0" not in status


def helper():
    """The process that mounts."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"attach"]:
                return int(pid)
    raise AssertionError("no helper runs")


def connection(mount):
    """Number of the kernel's connection to the node, of the mount's record."""
    for path in pathlib.Path("/run/distd").glob("*.mount"):
        record = json.loads(path.read_text())
        if record["request"]["directory"] == str(mount):
            return record["connection"]
    raise AssertionError(f"no record of {mount}")


def break_off(mount):
    """As if the files below the mount had crashed: the kernel's connection to them is aborted."""
    with tempfile.TemporaryDirectory() as point:
        subprocess.run(["mount", "-t", "fusectl", "none", point], check=True)
        pathlib.Path(point, str(connection(mount)), "abort").write_text("1")
        subprocess.run(["umount", point], check=True)


@promise(seconds=120)
def a_switch_whose_helper_fails_half_way_is_finished_or_told(world):
    sources = two_releases(world, plain)
    mount = by_erofs(world)
    file = (mount / "bin" / "f3").open("rb")
    # The helper dies between the new mount's coming and the old one's going.
    with injected(world, "move_mount:delay_exit=60s:when=1"):
        world.origin("rollback", "stable", "v2")
        hosts.until(lambda: len(lines(mount)) == 2, 10, "both mounts")
        os.kill(helper(), signal.SIGKILL)
    shows(world, mount, "v2", 20)
    assert len(lines(mount)) == 1, lines(mount)
    compare.same(sources["v2"], mount)
    # The old mount cannot be taken away, by nobody: that is told, and not done again and again.
    with injected(world, "umount2:error=EPERM:when=1"):
        world.origin("rollback", "stable", "v1")
        hosts.until(lambda: "by hand" in (of_mount(world, mount)["trouble"] or ""), 10, "the trouble")
        time.sleep(2)
    assert len(lines(mount)) == 2 and version(world, mount) == "v2", lines(mount)
    compare.same(sources["v2"], mount)
    for _ in range(2):
        subprocess.run(["umount", "--lazy", mount], check=True)
    by_erofs(world)
    compare.same(sources["v1"], mount)
    assert file.read() == (sources["v1"] / "bin" / "f3").read_bytes()
    file.close()


@promise(seconds=120)
def a_mount_whose_helper_never_answers_is_known_or_not_there(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    other = world.dir / "other"
    other.mkdir()
    world.mount(point=other, options=f"{VIEW},timeout=2")
    # In its place, and the helper hangs: after its patience the node looks for itself.
    with injected(world, "move_mount:delay_exit=60s:when=1"):
        by_erofs(world, "timeout=2")
    assert len(lines(world.mountpoint)) == 1
    compare.same(source, world.mountpoint)
    assert of_mounts(world) == {str(other), str(world.mountpoint)}
    world.umount()
    # Not yet in its place.
    with injected(world, "move_mount:delay_enter=60s:when=1"):
        failed = world.mount(options=f"{VIEW},timeout=2", code=1, seconds=60)
        assert "did not mount EROFS" in failed.err, failed
    assert not lines(world.mountpoint) and of_mounts(world) == {str(other)}
    # What the others lie on is as it was.
    compare.same(source, other)
    by_erofs(world, "timeout=2")


@promise(seconds=120)
def files_that_broke_are_replaced_below_all_their_mounts(world):
    sources = two_releases(world, plain)
    mount, pinned, covered = by_erofs(world), world.dir / "pinned", world.dir / "covered"
    for point in (pinned, covered):
        point.mkdir()
        world.mount(world.url(release="v1"), point, VIEW)
    subprocess.run(["mount", "-t", "tmpfs", "below", covered / "srv" / "db"], check=True)
    (covered / "srv" / "db" / "precious").write_text("kept")
    before = connection(mount)
    break_off(mount)
    # What is asked for anew is right when the command is done, at once.
    subprocess.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], check=True)
    world.mount(options=VIEW)
    compare.same(sources["v1"], mount)
    hosts.until(lambda: not of_mount(world, pinned)["broken"], 10, "the other mount")
    compare.same(sources["v1"], pinned)
    hosts.until(lambda: before != connection(mount) == connection(pinned), 5, "one superblock for both")
    # Nothing is lost that others mounted below: it waits, and says for what.
    hosts.until(lambda: of_mount(world, covered)["trouble"], 10, "the trouble of the third")
    assert "/srv/db" in of_mount(world, covered)["trouble"]
    assert "/srv/db" in world.mount(world.url(release="v1"), covered, VIEW, code=8).err
    assert (covered / "srv" / "db" / "precious").read_text() == "kept"
    subprocess.run(["umount", covered / "srv" / "db"], check=True)
    hosts.until(lambda: not of_mount(world, covered)["broken"], 10, "the third mount")
    compare.same(sources["v1"], covered)
    # They follow, and end, as before.
    world.origin("rollback", "stable", "v2")
    shows(world, mount, "v2")
    compare.same(sources["v2"], mount)
    break_off(mount)
    for point in (mount, pinned, covered):
        world.fs("umount", "--lazy", point)
    hosts.until(lambda: world.node_pid() is None, 20, "the node's end")
    assert not list(pathlib.Path("/run/distd").glob("*.mount"))


@promise(seconds=120)
def a_node_that_was_killed_is_replaced_by_the_next(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount, other, plainly = by_erofs(world), world.dir / "other", world.dir / "tree"
    for point in (other, plainly):
        point.mkdir()
    world.mount(point=other, options=VIEW)
    world.mount(point=plainly, options="view=tree")
    busy = subprocess.Popen(
        ["sh", "-c", f"while :; do cat {mount}/big {other}/big {plainly}/big > /dev/null 2>&1; done"], start_new_session=True
    )
    held = (mount / "lib/a/file0").open("rb")
    pid = world.node_pid()
    os.kill(pid, signal.SIGKILL)
    hosts.until(lambda: hosts.state(pid) in (None, "Z"), what="the node's end")
    begin = time.monotonic()
    world.mount(options=VIEW)
    compare.same(source, mount)
    hosts.until(lambda: of_mounts(world) == {str(mount), str(other), str(plainly)}, 5, "all mounts")
    for point in (other, plainly):
        compare.same(source, point)
    assert time.monotonic() - begin < 5 and [len(lines(point)) for point in (mount, other, plainly)] == [1, 1, 1]
    held.close()
    os.killpg(busy.pid, signal.SIGKILL)
    assert hosts.until(lambda: busy.poll() is not None, 2, "the reader's end")


@promise(seconds=120)
def what_is_mounted_below_a_dead_mount_is_kept(world):
    sources = two_releases(world, plain)
    mount = by_erofs(world)
    subprocess.run(["mount", "-t", "tmpfs", "below", mount / "srv" / "db"], check=True)
    (mount / "srv" / "db" / "precious").write_text("kept")
    pid = world.node_pid()
    os.kill(pid, signal.SIGKILL)
    hosts.until(lambda: hosts.state(pid) in (None, "Z"), what="the node's end")
    failed = world.mount(options=VIEW, code=8)
    assert "/srv/db" in failed.err, failed
    assert (mount / "srv" / "db" / "precious").read_text() == "kept"
    hosts.until(lambda: "/srv/db" in world.status()["left"].get(str(mount), ""), 10, "what the node waits for")
    assert "dead mount on" in world.fs("status", "--cache", world.cache).out
    subprocess.run(["umount", mount / "srv" / "db"], check=True)
    hosts.until(lambda: of_mounts(world) == {str(mount)}, 15, "the mount")
    assert len(lines(mount)) == 1 and version(world, mount) == "v1" and not world.status()["left"]
    compare.same(sources["v1"], mount)


def without_image(root):
    """What has no EROFS image: the maps of these files' blocks are longer than any that are made."""
    for number in range(33):
        with (root / f"sparse{number}").open("wb") as file:
            file.seek(4096)
            file.write(b"in its second block")
            file.truncate(1 << 30)


@promise(seconds=180)
def a_release_without_an_image_is_taken_by_the_node_itself_or_refused_aloud(world):
    sources = two_releases(world, plain)
    automatic, asked = world.mount(options="view=auto,allow_other"), world.dir / "asked"
    asked.mkdir()
    world.mount(point=asked, options=VIEW)
    assert of_mount(world, automatic)["view"] == "erofs"
    file = (automatic / "bin" / "f3").open("rb")
    without_image(sources["v2"])
    assert world.publish(sources["v2"], "v3")["no_image"]
    hosts.until(lambda: of_mount(world, automatic)["release"] == "v3", 20, "v3")
    status = of_mount(world, automatic)
    assert status["view"] == "tree" and "no metadata image" in status["view_why"], status
    assert [kind for _, kind, _ in lines(automatic)] == ["fuse.distd"], lines(automatic)
    for name in ("bin/f3", "srv/db/f1", "same"):
        assert compare.digest(automatic / name) == compare.digest(sources["v2"] / name)
    assert file.read() == (sources["v1"] / "bin" / "f3").read_bytes()
    file.close()
    # By hand it is refused, and told where one looks.
    hosts.until(lambda: of_mount(world, asked)["trouble"], 10, "the refusal")
    assert "no metadata image" in of_mount(world, asked)["trouble"] and version(world, asked) == "v1"
    assert "no metadata image" in world.fs("status", "--cache", world.cache).out
    # What follows is taken by both.
    for sparse in sources["v2"].glob("sparse*"):
        sparse.unlink()
    assert world.publish(sources["v2"], "v4")["no_image"] is None
    for mount in (automatic, asked):
        hosts.until(lambda: of_mount(world, mount)["release"] == "v4", 40, f"v4 on {mount}")
        compare.same(sources["v2"], mount)
    for point in (automatic, asked):
        world.umount(point)
    hosts.until(lambda: world.node_pid() is None, what="the node's end")


@promise(seconds=120)
def bind_mounts_and_other_namespaces_keep_their_release_and_hold_nothing_up(world):
    sources = two_releases(world, plain)
    mount, bound = by_erofs(world), world.dir / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", mount / "srv", bound], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "below", bound / "db"], check=True)
    inside = f"mount -t tmpfs below {mount}/lib && echo kept > {mount}/lib/precious && echo ready && exec sleep 1000"
    words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", inside]
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "ready\n"
    world.origin("rollback", "stable", "v2")
    shows(world, mount, "v2")
    compare.same(sources["v2"], mount)
    # Both go on as they were.
    assert (bound / "db").is_mount() and sorted(os.listdir(bound)) == ["db"]
    there = f"/proc/{other.pid}/root{mount}"
    assert pathlib.Path(there, "lib", "precious").read_text() == "kept\n"
    assert compare.digest(f"{there}/bin/f3") == compare.digest(sources["v1"] / "bin" / "f3")
    assert of_mount(world, mount)["kept"] == 1 and "older releases" in world.fs("status", "--cache", world.cache).out
    for release in ("v1", "v2"):
        world.origin("rollback", "stable", release)
        shows(world, mount, release)
    other.kill()
    other.wait()
    other.stdout.close()
    for point in (bound / "db", bound):
        subprocess.run(["umount", point], check=True)
    hosts.until(lambda: of_mount(world, mount)["kept"] == 0, 10, "the end of what was kept")
