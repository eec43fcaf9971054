"""Promises about being killed, and about calls that fail, at any moment."""

import os
import random
import signal
import subprocess
import time

from lib import compare, hosts, tree
from lib.network import NODE, ORIGIN
from lib.promises import promise

KILLS = int(os.environ.get("DISTD_KILLS", "100"))
WRITING_CALLS = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "fsync", "fdatasync", "sync_file_range", "ftruncate", "fallocate",
                 "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "link", "linkat")


def change(source, round_number):
    """Every round's publish has something new, something changed and something gone to do."""
    (source / f"new-{round_number}").write_bytes(tree.random_bytes(f"n{round_number}", tree.MIB))
    with (source / "big").open("r+b") as file:
        file.seek(round_number * 4096 % (7 * tree.MIB))
        file.write(tree.random_bytes(f"c{round_number}", 300_000))
    (source / f"new-{round_number - 3}").unlink(missing_ok=True)


def releases(world):
    return world.origin("list", "--json").out


def publishing(world, source, release, *before):
    env = {"DISTD_REPO": str(world.repo)}
    words = [*before, world.distd_origin, "publish", source, "--track", "stable", "--release", release, "-q"]
    return hosts.start(ORIGIN, *words, err=subprocess.DEVNULL, env=env)


@promise(seconds=60 + 4 * KILLS)
def publish_survives_kill_9_at_random_instants(world):
    source = tree.small(world.dir / "source")
    world.init()
    world.publish(source, "v0")
    change(source, 0)
    begin = time.monotonic()
    world.publish(source, "v1")
    whole = time.monotonic() - begin
    chance, killed = random.Random(11), 0
    for number in range(KILLS):
        change(source, number + 1)
        before = releases(world)
        process = publishing(world, source, f"k{number}")
        time.sleep(chance.uniform(0, whole * 1.05))
        killed += process.poll() is None
        hosts.kill(process, signal.SIGKILL)
        after = releases(world)
        if after != before:
            assert f"k{number}" in after, "neither the old head nor the new one"
        world.origin("verify")
        world.publish(source, f"after-{number}")
    print(f"{killed} of {KILLS} were killed at work")
    assert killed >= KILLS // 2, f"only {killed} of {KILLS} were still at work"
    world.serve()
    compare.same(source, world.mount())


# Shows C49 (RFC 7574 6.1.2.3).
@promise(seconds=420)
def publish_survives_kill_9_at_each_writing_call(world):
    each_call(world, "signal=KILL", range(1, 4))


@promise(seconds=420)
def publish_survives_each_failing_call(world):
    each_call(world, "error=EIO", (1, 2))
    each_call(world, "error=ENOSPC", (1, 2))


def each_call(world, fault, instants):
    """strace makes the n-th call of each kind fail, or kills there; the old head must stand."""
    if not world.repo.exists():
        source = tree.small(world.dir / "source")
        (source / "big").write_bytes(tree.random_bytes("each", 2 * tree.MIB))
        world.init()
        world.publish(source, "v0")
    source = world.dir / "source"
    hit = 0
    for call in WRITING_CALLS:
        for instant in instants:
            (source / "changing").write_bytes(tree.random_bytes(f"{fault}{call}{instant}", 20_000))
            release = f"{fault}-{call}-{instant}".replace("=", "-")
            before = releases(world)
            trace = world.dir / "trace"
            inject = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={instant}"]
            process = publishing(world, source, release, *inject)
            code = process.wait(60)
            if "INJECTED" in trace.read_text(errors="replace") or "killed by SIGKILL" in trace.read_text(errors="replace"):
                hit += 1
            after = releases(world)
            assert after == before or release in after, f"{release}: neither the old head nor the new one"
            assert code != 101, f"{release}: panic"
            world.origin("verify")
    print(f"{fault}: {hit} faults struck")
    assert hit >= 10, f"only {hit} faults struck"
    world.publish(source, f"last-{fault}".replace("=", "-"))
    world.origin("verify")


@promise(seconds=60 + 3 * KILLS)
def node_survives_kill_9_under_load(world):
    source = tree.small(world.dir / "source")
    for name in ("x", "y", "z"):
        tree.incompressible(source / name, 6 * tree.MIB, seed=name)
    world.published(source)
    chance = random.Random(12)
    for _ in range(KILLS // 4):
        mount = world.mount()
        reader = subprocess.Popen(["sh", "-c", f"cat {mount}/*"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 0.3))
        world.kill_node()
        reader.kill()
        reader.wait(5)
    mount = world.mount()
    compare.same(source, mount)


@promise(seconds=120)
def a_dead_mount_is_replaced_by_the_next(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    os.kill(world.node_pid(), signal.SIGKILL)
    hosts.until(lambda: hosts.run(NODE, "ls", mount).code != 0, what="ENOTCONN")
    world.mount()
    compare.same(source, mount)
    assert len(world.mounts()) == 1, world.mounts()


@promise(seconds=120)
def serve_killed_and_started_again_serves(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    world.stop(world.servers[0], signal.SIGKILL)
    world.serve()
    compare.same(source, mount)
