"""One origin, one node, a link, a repository and a cache: where every test begins."""

import json
import os
import pathlib
import re
import signal
import subprocess

from lib import facts, hosts
from lib.network import ADDRESS, NODE, ORIGIN, Network

PORT = 7574


class World:
    """Use as a context manager. On the way out mounts are unmounted and servers are stopped; a node that
    then stays is a fault that leftovers.py reports."""

    def __init__(self, scratch, link):
        self.dir = scratch
        self.network = Network(link)
        self.repo = scratch / "repo"
        self.cache = scratch / "cache"
        self.mountpoint = scratch / "mnt"
        self.mountpoint.mkdir()
        self.servers = []
        self.overlays = []
        binaries = pathlib.Path(os.environ["DISTD_BIN"]).resolve()
        self.distd_origin, self.distd_fs = binaries / "distd-origin", binaries / "distd-fs"

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for server in self.servers:
            hosts.kill(server, signal.SIGTERM if not any(failure) else signal.SIGKILL)
        for point in reversed(self.mounts()):
            lazily = ["-l"] if any(failure) else []
            subprocess.run(["umount", *lazily, point], check=not any(failure), timeout=20)
        for overlay in self.overlays:
            subprocess.run(["umount", "-l", overlay], check=True)
        self.network.close()

    def mounts(self):
        """Mount points below the scratch directory, oldest first."""
        lines = pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
        return [p for p in points if p.startswith(str(self.dir) + "/")]

    # The origin's side.

    def origin(self, *words, code=0, **options):
        """distd-origin on its host; its exit code must be `code` (None: whatever)."""
        result = hosts.run(ORIGIN, self.distd_origin, *words, **{**options, "env": {**os.environ, "DISTD_REPO": str(self.repo)}})
        assert code is None or result.code == code, f"expected exit {code}: {result}"
        return result

    def init(self):
        self.origin("init")

    def publish(self, source, release, track="stable", *more, **options):
        """Publishes and returns what `--json` said."""
        result = self.origin("publish", source, "--track", track, "--release", release, "--json", *more, **options)
        return json.loads(result.out) if result.code == 0 else result

    def serve(self, port=PORT, *more):
        """Starts `serve` and returns once it is ready; `self.id` and `self.url()` work from then on."""
        log = (self.dir / f"serve-{len(self.servers)}.log").open("w+", encoding="utf-8")
        env = {"DISTD_REPO": str(self.repo)}
        server = hosts.start(ORIGIN, self.distd_origin, "serve", "--listen", f"{ADDRESS[ORIGIN]}:{port}", *more, out=log, err=log, env=env)
        self.servers.append(server)

        def announced():
            assert server.poll() is None, f"serve ended: {pathlib.Path(log.name).read_text()}"
            return re.search(r"distd://([^@\s]+)@", pathlib.Path(log.name).read_text())

        self.id = hosts.until(announced, 15, "the URL of serve")[1]
        return server

    def stop(self, server, number=signal.SIGTERM):
        self.servers.remove(server)
        hosts.kill(server, number)

    def url(self, track="stable", release=None, port=PORT, identity=None):
        at = f"@{release}" if release else ""
        return f"distd://{identity or self.id}@{ADDRESS[ORIGIN]}:{port}/{track}{at}"

    # The node's side.

    def fs(self, *words, code=0, **options):
        """distd-fs on its host, with this world's cache."""
        result = hosts.run(NODE, self.distd_fs, *words, **options)
        assert code is None or result.code == code, f"expected exit {code}: {result}"
        return result

    def mount(self, source=None, point=None, options="", code=0, **more):
        """Mounts with this world's cache and returns the mount point."""
        point = point or self.mountpoint
        besides = os.environ.get("DISTD_OPTIONS", "")
        options = ",".join(x for x in (f"cache={self.cache}", besides, options) if x)
        result = self.fs("mount", self.url() if source is None else source, point, "-o", options, code=code, **more)
        return point if result.code == 0 else result

    def umount(self, point=None):
        self.fs("umount", point or self.mountpoint)

    def node_pid(self):
        """The process that serves this world's cache, or None."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                net = os.readlink(f"/proc/{pid}/ns/net")
            except OSError:
                continue
            if b"distd-fs" in words.split(b"\0")[0] and net == self._net(NODE):
                return int(pid)
        return None

    def kill_node(self):
        """kill -9 of the node, and of the dead mounts that it leaves."""
        pid = self.node_pid()
        assert pid, "no node runs"
        os.kill(pid, signal.SIGKILL)
        hosts.until(lambda: hosts.state(pid) in (None, "Z"), what="the node's end")
        for point in reversed(self.mounts()):
            subprocess.run(["umount", "-l", point], check=True)

    def status(self):
        """`distd-fs status --json` of this world's node."""
        return json.loads(self.fs("status", "--json", "--cache", self.cache).out)

    def fetched_bytes(self):
        """Payload bytes that this world's node has received from peers since it started."""
        return facts.fetched_bytes(self.status())

    def published(self, source, release="v1"):
        """The usual beginning: a repository with one release, served."""
        self.init()
        self.publish(source, release)
        self.serve()

    # The machine.

    def disk(self, name, mebibytes):
        """A file system of its own, that small."""
        image, point = self.dir / f"{name}.ext4", self.dir / name
        with image.open("wb") as file:
            file.truncate(mebibytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        point.mkdir()
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        return point

    def install_helper(self):
        """/sbin/mount.fuse.distd, for this test alone: an overlay over the machine's directory."""
        layer = self.dir / "sbin"
        layer.mkdir()
        (layer / "mount.fuse.distd").symlink_to(self.distd_fs)
        real = os.path.realpath("/sbin")
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={layer}:{real}", real], check=True)
        self.overlays.append(real)

    @staticmethod
    def _net(host):
        there = os.stat(f"/run/netns/{host}")
        return f"net:[{there.st_ino}]"
