"""Promises about mount(8), fstab and the mount helper."""

import os
import pathlib
import signal
import subprocess
import time

from lib import compare, hosts, tree
from lib.facts import settled
from lib.network import NODE
from lib.promises import promise


def distd_mounts(world):
    """(source, point, type) of each distd mount of this test."""
    rows = [line.split(" ") for line in pathlib.Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    return [(r[0], r[1], r[2]) for r in rows if r[1].startswith(str(world.dir)) and ("fuse" in r[2] or r[0].startswith("distd://"))]


def nodes(world):
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_node(world, pid)]


def is_node(world, pid):
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return program == os.path.realpath(world.distd_fs)


def helped(world):
    """A served release and the helper in place; returns (source tree, options)."""
    world.install_helper()
    source = tree.small(world.dir / "source")
    world.published(source)
    return source, f"cache={world.cache}"


def mount8(world, *words, code=0):
    result = hosts.run(NODE, "mount", *words)
    assert result.code == code, f"expected exit {code}: {result}"
    return result


@promise()
def mount_t_fuse_distd_shows_the_release(world):
    source, options = helped(world)
    mount8(world, "-t", "fuse.distd", world.url(), world.mountpoint, "-o", options)
    assert distd_mounts(world) == [(world.url(), str(world.mountpoint), "fuse.distd")]
    compare.same(source, world.mountpoint)
    subprocess.run(["umount", world.mountpoint], check=True)
    assert not distd_mounts(world)
    hosts.until(lambda: not nodes(world), what="the node's end after umount")


@promise()
def mount_a_twice_mounts_once(world):
    source, options = helped(world)
    fstab = world.dir / "fstab"
    generic = "ro,_netdev,nofail,allow_other,x-systemd.automount,noatime"
    fstab.write_text(f"{world.url()} {world.mountpoint} fuse.distd {generic},{options} 0 0\n", encoding="ascii")
    for _ in range(2):
        mount8(world, "-a", "-T", fstab)
        assert len(distd_mounts(world)) == 1, distd_mounts(world)
    compare.same(source, world.mountpoint)
    mount8(world, "-a", "-T", fstab, "-O", "_netdev")
    assert len(distd_mounts(world)) == 1
    assert len(nodes(world)) == 1


@promise()
def same_source_and_directory_again_is_success(world):
    helped(world)
    world.mount()
    world.mount()
    assert len(distd_mounts(world)) == 1 and len(nodes(world)) == 1


@promise()
def two_mounts_join_one_node(world):
    source, _ = helped(world)
    world.publish(source, "v2", "beta", code=None)
    world.mount()
    second = world.dir / "second"
    second.mkdir()
    world.mount(world.url(release="v1"), second)
    assert len(nodes(world)) == 1, nodes(world)
    compare.same(source, world.mountpoint)
    compare.same(source, second)
    world.umount()
    compare.same(source, second)
    assert len(nodes(world)) == 1
    world.umount(second)
    hosts.until(lambda: not nodes(world), what="the node's end after the last umount")


@promise()
def helper_takes_what_mount_passes(world):
    source, options = helped(world)
    helper = "/sbin/mount.fuse.distd"
    assert hosts.run(NODE, helper, world.url(), world.mountpoint, "-f", "-o", f"ro,{options}").code == 0
    assert not distd_mounts(world), "-f mounted"
    generic = "rw,noexec,nosuid,nodev,noatime,relatime,_netdev,nofail,user,auto,x-foo=bar,comment=x,defaults"
    for flags in ((), ("-n",), ("-v",), ("-s", "-n", "-v")):
        result = hosts.run(NODE, helper, world.url(), world.mountpoint, *flags, "-o", f"{generic},{options}")
        assert result.code == 0, result
        compare.same(source, world.mountpoint)
        world.umount()
    unknown = f"no_such_option=1,{options}"
    assert hosts.run(NODE, helper, world.url(), world.mountpoint, "-o", unknown).code == 1
    assert not distd_mounts(world)
    assert hosts.run(NODE, helper, world.url(), world.mountpoint, "-s", "-o", unknown).code == 0


@promise()
def helper_returns_the_codes_of_mount8(world):
    _, options = helped(world)
    helper = "/sbin/mount.fuse.distd"
    assert hosts.run(NODE, helper).code == 1
    assert hosts.run(NODE, helper, "not-a-source", world.mountpoint, "-o", options).code == 1
    for source in (world.url("no-such-track"), world.url(release="v99")):
        result = hosts.run(NODE, helper, source, world.mountpoint, "-o", options)
        assert result.code == 32 and result.err.strip(), result
    mount8(world, "-t", "fuse.distd", world.url("no-such-track"), world.mountpoint, "-o", options, code=32)
    assert not distd_mounts(world)
    hosts.until(lambda: not nodes(world), what="the end of nodes whose mount failed")


@promise()
def mount_keeps_no_pipe_open(world):
    """`x=$(mount ...)` must return: the daemon closes what it inherits."""
    helped(world)
    words = ["nsenter", "--net=/run/netns/node", world.distd_fs, "mount", world.url(), world.mountpoint, "-o", f"cache={world.cache}"]
    done = subprocess.run(words, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done
    pid = nodes(world)[0]
    inherited = [os.readlink(f"/proc/{pid}/fd/{n}") for n in ("0", "1", "2")]
    assert all(not x.startswith("pipe:") for x in inherited), inherited
    assert os.getsid(pid) != os.getsid(0), "the node shares its starter's session"


@promise()
def foreground_mount_ends_with_its_signal(world):
    source, _ = helped(world)
    words = [world.distd_fs, "mount", world.url(), world.mountpoint, "-o", f"cache={world.cache}", "--foreground"]
    process = hosts.start(NODE, *words)
    hosts.until(lambda: distd_mounts(world), what="the mount")
    compare.same(source, world.mountpoint)
    assert hosts.kill(process) == 0
    assert not distd_mounts(world)


@promise(seconds=120)
def a_mount_that_is_held_keeps_its_release_and_a_new_one_shows_the_newest(world):
    source = tree.small(world.dir / "source")
    (source / "lib/version").write_text("one")
    world.published(source)
    mount = world.mount(options="hold")
    (source / "lib/version").write_text("two, and longer")
    (source / "lib/new").write_text("new")
    world.publish(source, "v2")
    pinned = world.dir / "pinned"
    pinned.mkdir()
    world.mount(world.url(release="v2"), pinned)
    compare.same(source, pinned)
    assert (mount / "lib/version").read_text() == "one" and not (mount / "lib/new").exists()
    assert os.getxattr(mount, "user.distd.version") == b"v1"
    assert os.getxattr(pinned, "user.distd.version") == b"v2"
    world.umount()
    world.mount()
    compare.same(source, mount)


@promise(seconds=120)
def an_unprivileged_user_mounts(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    everybodys_fuse(world)
    home = world.dir / "home"
    (home / "mnt").mkdir(parents=True)
    for path in (home, home / "mnt"):
        os.chown(path, 1000, 1000)
    os.chmod(world.dir, 0o755)
    words = [world.distd_fs, "mount", world.url(), home / "mnt", "-o", f"cache={home}/cache"]
    result = hosts.run(NODE, *words, user=1000, env={"HOME": str(home)})
    assert result.code == 0, result
    assert hosts.run(NODE, "cmp", source / "big", home / "mnt/big", user=1000).code == 0
    assert hosts.run(NODE, world.distd_fs, "umount", home / "mnt", user=1000).code == 0



@promise()
def sigterm_to_the_node_unmounts_and_makes_durable(world):
    source, _ = helped(world)
    compare.same(source, world.mount())
    pid = world.node_pid()
    os.kill(pid, signal.SIGTERM)
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    assert not distd_mounts(world)
    world.mount()
    assert compare.digest(world.mountpoint / "big") == compare.digest(source / "big")
    assert settled(world) < 64 << 10, "what was fetched before SIGTERM was not durable"


@promise(seconds=120)
def a_mount_right_after_its_umount_is_there(world):
    """The node may be anywhere between the kernel's unmount and its own end."""
    world.published(tree.small(world.dir / "source"))
    for _ in range(25):
        mount = world.mount(options="background=none")
        assert len(distd_mounts(world)) == 1 and (mount / "bin/file0").exists()
        world.umount()


@promise()
def busy_mounts_stay_unless_taken_lazily(world):
    source, _ = helped(world)
    mount = world.mount()
    with (mount / "big").open("rb") as file:
        refused = world.fs("umount", mount, code=None)
        assert refused.code != 0 and refused.err.strip(), refused
        compare.same(source, mount)
        world.fs("umount", "--lazy", mount)
        assert not distd_mounts(world)
        # While the old session lives on, the directory can be mounted on again.
        compare.same(source, world.mount())
        world.umount()
        assert len(file.read()) == 8 * tree.MIB, "an open file goes on after a lazy umount"
    hosts.until(lambda: world.node_pid() is None, what="the node's end")


@promise()
def forced_umount_frees_what_waits(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "large", 8 * tree.MIB)
    world.published(source)
    mount = world.mount(options="timeout=60")
    settled(world)
    world.network.unplug()
    waiting = subprocess.Popen(["cat", mount / "large"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    world.fs("umount", "--force", mount)
    assert waiting.wait(5) != 0
    assert not distd_mounts(world)


@promise()
def options_bind_the_mount(world):
    helped(world)
    mount = world.mount(options="noexec")
    flags = next(r.split(" ")[3] for r in pathlib.Path("/proc/mounts").read_text().splitlines() if r.split(" ")[1] == str(mount))
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(flags.split(",")), flags
    world.umount()
    full = world.dir / "full"
    full.mkdir()
    (full / "hidden").touch()
    assert "hidden" not in os.listdir(world.mount(point=full, options="nonempty"))


def everybodys_fuse(world):
    """/dev/fuse as udev makes it on most machines, for this test alone."""
    device = world.dir / "fuse"
    os.mknod(device, 0o020666, os.makedev(10, 229))
    os.chmod(device, 0o666)
    subprocess.run(["mount", "--bind", device, "/dev/fuse"], check=True)
    world.overlays.append("/dev/fuse")
