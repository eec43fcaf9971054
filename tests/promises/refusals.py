"""Promises about bad input: a clear error, the right exit code, no panic, nothing half-made."""

import os
import pathlib
import signal
import subprocess
import time

from lib import hosts, tree
from lib.network import NODE, ORIGIN
from lib.promises import promise

FAILURE, USAGE, UNVERIFIED, UNREACHABLE, NO_SUCH, BUSY = 1, 2, 4, 6, 7, 8


def refused(result, *codes, naming=""):
    """A clear error: its exit code, some words, the culprit's name, and no panic."""
    assert result.code in codes, f"expected exit {codes}: {result}"
    assert result.err.strip(), f"no word about why: {result}"
    assert "panicked" not in result.err and "RUST_BACKTRACE" not in result.err, result
    assert naming in result.err, f"the error does not name {naming!r}: {result}"


def refused_mount(world, source, *codes, point=None, naming="", options="timeout=2"):
    result = world.mount(source, point, options, code=None, seconds=30)
    assert not isinstance(result, pathlib.Path), f"{source} was mounted"
    refused(result, *codes, naming=naming)
    assert not world.mounts(), "half a mount"


@promise(seconds=120)
def sources_that_lead_nowhere_are_refused(world):
    world.published(tree.small(world.dir / "source"))
    wrong_id = world.id[:-6] + ("aaaaaa" if not world.id.endswith("aaaaaa") else "bbbbbb")
    refused_mount(world, world.url(identity=wrong_id), USAGE, UNREACHABLE, FAILURE)
    refused_mount(world, world.url(port=7999), UNREACHABLE, naming="7999")
    refused_mount(world, f"distd://{world.id}@10.77.0.99:7574/stable", UNREACHABLE, naming="10.77.0.99")
    refused_mount(world, f"distd://{world.id}@no-such-host.invalid:7574/stable", UNREACHABLE, FAILURE, naming="no-such-host.invalid")
    refused_mount(world, world.url("no-such-track"), NO_SUCH, naming="no-such-track")
    refused_mount(world, world.url(release="v99"), NO_SUCH, naming="v99")
    hosts.until(lambda: world.node_pid() is None, what="the end of nodes whose mount failed")


@promise(seconds=60)
def sources_that_are_none_are_refused(world):
    world.published(tree.small(world.dir / "source"))
    at = f"{world.id}@10.77.0.1:7574"
    malformed = ["", "stable", "http://x/y", "distd://", f"distd://{at}", f"distd://{at}/", f"distd://{world.id}/stable",
                 f"distd://x@10.77.0.1:7574/stable", f"distd://{world.id}@:7574/stable", f"distd://{world.id}@10.77.0.1:99999/stable",
                 f"distd://{at}/stable@", f"distd://{at}/{'t' * 5000}", f"distd://{at}/a/b", str(world.dir / "no.distd")]
    for source in malformed:
        refused_mount(world, source, USAGE, NO_SUCH, FAILURE)


@promise(seconds=60)
def directories_that_cannot_be_mounted_on_are_refused(world):
    world.published(tree.small(world.dir / "source"))
    refused_mount(world, world.url(), NO_SUCH, FAILURE, point=world.dir / "not-there", naming="not-there")
    full = world.dir / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    refused_mount(world, world.url(), FAILURE, BUSY, point=full, naming="full")
    assert (full / "precious").read_text() == "x"
    refused_mount(world, world.url(), FAILURE, NO_SUCH, point=full / "precious", naming="precious")


@promise(seconds=60)
def a_cache_below_the_mount_point_is_refused(world):
    """FAULTS F13: the node would wait for itself."""
    world.published(tree.small(world.dir / "source"))
    world.cache = world.mountpoint / "cache"
    refused_mount(world, world.url(), USAGE, FAILURE)


@promise(seconds=120)
def repositories_that_are_none_are_refused(world):
    source = tree.small(world.dir / "source")
    for verb in (["publish", source, "--track", "t", "--release", "r"], ["list"], ["verify"], ["serve"], ["show", "v1"], ["diff", "a", "b"]):
        refused(world.origin(*verb, code=None), NO_SUCH, FAILURE, naming=str(world.repo))
    assert not world.repo.exists(), "a command that failed made a repository"
    world.init()
    refused(world.origin("init", code=None), FAILURE, BUSY, naming=str(world.repo))
    world.repo = world.dir / "not-a-repo"
    world.repo.mkdir()
    (world.repo / "x").write_text("x")
    refused(world.origin("list", code=None), NO_SUCH, FAILURE, naming="not-a-repo")
    refused(world.origin("init", code=None), FAILURE, BUSY, naming="not-a-repo")


@promise(seconds=60)
def publish_refuses_what_it_cannot_publish(world):
    source = tree.small(world.dir / "source")
    world.init()
    publish = lambda *words: world.origin("publish", *words, code=None)  # noqa: E731
    refused(publish(world.dir / "not-there", "--track", "t", "--release", "r"), NO_SUCH, FAILURE, naming="not-there")
    refused(publish(source, "--track", "t"), USAGE, naming="release")
    refused(publish(source, "--track", "x" * 500, "--release", "r"), USAGE, FAILURE)
    for label in ("", "a/b", "a@b", "new\nline"):
        refused(publish(source, "--track", "t", "--release", label), USAGE, FAILURE)
    world.publish(source, "v1")
    (source / "more").write_text("x")
    refused(publish(source, "--track", "stable", "--release", "v1"), FAILURE, BUSY, naming="v1")
    for verb in (["show", "v9"], ["diff", "v1", "v9"]):
        refused(world.origin(*verb, code=None), NO_SUCH, naming="v9")


@promise(seconds=120)
def a_second_publisher_is_told_who_holds_the_lock(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "large", 64 * tree.MIB)
    world.init()
    words = [world.distd_origin, "publish", source, "--track", "stable", "--release", "v1"]
    first = hosts.start(ORIGIN, *words, out=subprocess.DEVNULL, err=subprocess.DEVNULL, env={"DISTD_REPO": str(world.repo)})

    def locked():
        return any(f" {first.pid} " in line for line in pathlib.Path("/proc/locks").read_text().splitlines())

    hosts.until(locked, 10, "the first publisher's lock")
    os.kill(first.pid, signal.SIGSTOP)
    begin = time.monotonic()
    refused(world.publish(source, "v2", code=None), BUSY, naming=str(first.pid))
    assert time.monotonic() - begin < 5
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(60) == 0
    world.origin("verify")


@promise(seconds=120)
def a_file_that_changes_while_it_is_published_is_named(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "steady", 8 * tree.MIB)
    tree.incompressible(source / "changing", 96 * tree.MIB)
    world.init()
    writer = "import sys, time\nf = open(sys.argv[1], 'r+b')\nwhile True:\n f.seek(90 << 20); f.write(b'%d' % time.time_ns()); f.flush(); time.sleep(0.0005)\n"
    changing = subprocess.Popen(["python3", "-c", writer, source / "changing"])
    time.sleep(0.3)
    result = world.publish(source, "v1", code=None)
    changing.kill()
    changing.wait()
    refused(result, FAILURE, naming="changing")
    assert "v1" not in world.origin("list").out
    world.publish(source, "v2")
    world.origin("verify")


@promise(seconds=60)
def an_unreadable_file_is_named(world):
    source = tree.small(world.dir / "source")
    (source / "forbidden").write_text("x")
    (source / "forbidden").chmod(0)
    os.chmod(world.dir, 0o777)
    user = {"user": 1000}
    world.origin("init", **user)
    result = world.origin("publish", source, "--track", "stable", "--release", "v1", code=None, **user)
    refused(result, FAILURE, naming="forbidden")
    assert "v1" not in world.origin("list", **user).out
    (source / "forbidden").chmod(0o644)
    world.origin("publish", source, "--track", "stable", "--release", "v1", **user)


@promise(seconds=180)
def metainfo_files_cut_or_altered_are_refused(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    sound = world.dir / "sound.distd"
    world.origin("metainfo", "--track", "stable", "--address", "10.77.0.1:7574", "--output", sound)
    content = sound.read_bytes()
    world.mount(str(sound))
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    bad = world.dir / "bad.distd"
    for length in sorted({0, 1, 2, len(content) // 3, len(content) // 2, len(content) - 1}):
        bad.write_bytes(content[:length])
        refused_mount(world, str(bad), FAILURE, UNVERIFIED, USAGE, naming="bad.distd")
    for altered in (content + b"x", b"\xc1" + content[1:], bytes(len(content)), b"\xdd\xff\xff\xff\xff" + content, os.urandom(4096), bytes(1 << 20)):
        bad.write_bytes(altered)
        refused_mount(world, str(bad), FAILURE, UNVERIFIED, USAGE, naming="bad.distd")
    # Any one byte altered: refused, or it still names the same origin and track; never a panic, never another tree.
    for place in range(0, len(content), max(1, len(content) // 16)):
        bad.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
        result = world.mount(str(bad), None, "timeout=1", code=None, seconds=30)
        if isinstance(result, pathlib.Path):
            assert (result / "empty").exists()
            world.umount()
        else:
            refused(result, FAILURE, USAGE, UNVERIFIED, UNREACHABLE, NO_SUCH)


@promise(seconds=60)
def usage_errors_exit_2_and_help_exits_0(world):
    for program in (world.distd_origin, world.distd_fs):
        for words in ((), ("no-such-verb",), ("--no-such-option",)):
            refused(hosts.run(NODE, program, *words), USAGE)
        for words in (("--help",), ("--version",), ("help",)):
            result = hosts.run(NODE, program, *words)
            assert result.code == 0 and result.out.strip(), result
    for verb in (("mount",), ("mount", world.dir), ("umount",)):
        refused(world.fs(*verb, code=None), USAGE)


@promise(seconds=60)
def a_broken_pipe_is_no_panic(world):
    world.init()
    source = tree.many(world.dir / "source", 200, 20)
    world.publish(source, "v1")
    script = f"DISTD_REPO={world.repo} {world.distd_origin} show v1 --json | head -c 1 >/dev/null; {world.distd_origin} --help | head -c 1 >/dev/null"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "panicked" not in done.stderr, done.stderr


@promise(seconds=60)
def umount_of_what_is_not_mounted_is_refused(world):
    refused(world.fs("umount", world.mountpoint, code=None), NO_SUCH, FAILURE, naming=str(world.mountpoint))
    refused(world.fs("status", "--cache", world.cache, code=None), NO_SUCH, FAILURE)
