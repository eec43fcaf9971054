"""The measuring part of update.sh."""

import argparse
import filecmp
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import bench
from bench import ADDRESS, NODE, ORIGIN, Meter, call, on, serve, stop, until

ETHERNET, IP, UDP = 14, 20, 8
# With timestamps, which every segment but the first two has.
TCP = 32
# Below this share of V2, a pair says little about the ways: it is left out of the means.
NEAR_ZERO = 0.005


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ways", default="rsync,casync,zsync,zchunk,zstd,prefetch,get,seed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    parser.add_argument("trees", type=pathlib.Path, nargs="+")
    options = parser.parse_args()
    if len(options.trees) % 2:
        parser.error("trees come in pairs: V1 V2 [V1 V2]...")
    known = {way.word: way for way in (Rsync, Casync, Zsync, Zchunk, Patch, Prefetch, Get, Seed)}
    ways = [known.get(word) or parser.error(f"no way {word}: one of {', '.join(known)}") for word in options.ways.split(",")]
    bench.link()
    for host in (ORIGIN, NODE):
        # Counters of an interface count what is handed to it: one datagram or segment at a time.
        call("ip", "-n", host, "link", "set", "eth0", "gso_max_segs", "1")
    os.chmod(options.scratch, 0o755)
    rows = []
    for old, new in zip(options.trees[::2], options.trees[1::2]):
        rows += measured(options.scratch, pair_name(old, new), old, new, ways)
    bench.show([*rows, *means(rows)], options.json)


def pair_name(old, new):
    old, new = old.resolve(), new.resolve()
    return old.parent.name if old.parent == new.parent and old.parent.name else f"{old.name} {new.name}"


def measured(scratch, pair, old, new, ways):
    """The rows of one pair."""
    work = scratch / "pair"
    work.mkdir()
    trees, rows = Trees(work, old, new), []
    for way in ways:
        directory = work / way.word
        directory.mkdir()
        ready = way(directory, trees)
        begin = counters()
        try:
            with Meter() as meter:
                ready.fetch(meter)
        except SystemExit as failure:
            ready.close()
            if issubclass(way, Distd):
                raise
            # casync does so on some trees; the others are still worth measuring.
            print(f"{pair}: {way.name} FAILED: {str(failure).strip().splitlines()[-1]}", file=sys.stderr)
            call("rm", "-rf", directory)
            continue
        moved = [now - before for now, before in zip(counters(), begin)]
        payload = moved[0] - moved[1] * (ETHERNET + IP + ready.header)
        ready.check()
        ready.close()
        rows.append({
            "pair": pair, "way": way.name, "MB": payload / 1e6, "MB with IP": (moved[0] - moved[1] * ETHERNET) / 1e6,
            "s": meter.seconds, "CPU-s send": meter.send_cpu_s, "CPU-s receive": meter.receive_cpu_s,
        })
        print(f"{pair}: {way.name}: {payload / 1e6:.2f} MB, {meter.seconds:.1f} s", file=sys.stderr)
        call("rm", "-rf", directory)
    call("rm", "-rf", work)
    for row in rows:
        for peer in (Casync, Rsync):
            bytes_of_peer = [other["MB"] for other in rows if other["way"] == peer.name]
            row[f"x {peer.word}"] = row["MB"] / bytes_of_peer[0] if bytes_of_peer else math.nan
        row["near zero"] = min(other["MB"] for other in rows) < NEAR_ZERO * trees.bytes / 1e6
    return rows


def means(rows):
    """Geometric means over the pairs that move something worth the name."""
    for way in dict.fromkeys(row["way"] for row in rows):
        counted = [row for row in rows if row["way"] == way and not row["near zero"]]
        if len(counted) > 1:
            blank = dict.fromkeys(rows[0], "")
            mean = {key: geometric(row[key] for row in counted) for key in ("x casync", "x rsync")}
            yield {**blank, "pair": f"mean of {len(counted)}", "way": way, **mean}


def geometric(ratios):
    """The geometric mean of those that there are."""
    logarithms = [math.log(ratio) for ratio in ratios if not math.isnan(ratio)]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def counters():
    """Bytes and packets that the node's interface has received and sent."""
    lines = subprocess.run(on(NODE, "cat", "/proc/net/dev"), check=True, capture_output=True, text=True).stdout
    fields = next(line for line in lines.splitlines() if line.strip().startswith("eth0:")).split(":")[1].split()
    return int(fields[0]) + int(fields[8]), int(fields[1]) + int(fields[9])


class Trees:
    """The pair as trees and as tars, which only some ways want."""

    def __init__(self, work, old, new):
        self.work, self.old, self.new = work, old, new
        self.bytes = sum(path.lstat().st_size for path in new.rglob("*") if path.is_file() and not path.is_symlink())

    def same_stamps(self):
        """Whether a file has another content but the size and the time of before, as in packages built reproducibly."""
        for path in self.new.rglob("*"):
            old = self.old / path.relative_to(self.new)
            if path.is_symlink() or not path.is_file() or old.is_symlink() or not old.is_file():
                continue
            now, before = path.stat(), old.stat()
            if (now.st_size, int(now.st_mtime)) == (before.st_size, int(before.st_mtime)) and not filecmp.cmp(path, old, shallow=False):
                return True
        return False

    def tar(self, which):
        tar = self.work / f"{which}.tar"
        if not tar.exists():
            call("tar", "-C", self.old if which == "v1" else self.new, "--sort=name", "-cf", tar, ".")
        return tar


class Way:
    """One way: prepared when made, then one update."""

    header = TCP

    def __init__(self, directory, trees):
        self.directory, self.trees, self.servers = directory, trees, []
        self.out = directory / "out"
        self.prepare()

    def same_tree(self, directory):
        call("diff", "-r", "--no-dereference", self.trees.new, directory)

    def same_tar(self):
        call("cmp", self.trees.tar("v2"), self.out)

    def web(self, root):
        config = self.directory / "nginx.conf"
        areas = " ".join(f"{word}_temp_path {self.directory}/temp-{word};" for word in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config.write_text(f"""daemon off; pid {self.directory}/nginx.pid; error_log {self.directory}/nginx.log; worker_processes 1; user root;
events {{ worker_connections 64; }}
http {{ access_log off; keepalive_requests 1000000; {areas}
  server {{ listen {ADDRESS[ORIGIN]}:8080; root {root}; }} }}
""")
        os.chmod(self.directory, 0o755)
        self.servers.append(serve(ORIGIN, bench.program("nginx"), "-c", config, log=self.directory / "nginx.out"))
        probe = on(NODE, "curl", "-sI", f"http://{ADDRESS[ORIGIN]}:8080/")
        until(lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0, "nginx")
        return f"http://{ADDRESS[ORIGIN]}:8080"

    def close(self):
        for server in self.servers:
            stop(server)


class Rsync(Way):
    word, name = "rsync", "rsync -z (zstd)"

    def prepare(self):
        config = self.directory / "rsyncd.conf"
        config.write_text(f"address = {ADDRESS[ORIGIN]}\nport = 8730\nuse chroot = no\nuid = root\ngid = root\n[share]\npath = {self.trees.new.resolve()}\nread only = yes\n")
        self.servers.append(serve(ORIGIN, bench.program("rsync"), "--daemon", "--no-detach", f"--config={config}", log=self.directory / "rsyncd.out"))
        self.url = f"rsync://{ADDRESS[ORIGIN]}:8730/share/"
        until(lambda: subprocess.run(on(NODE, "rsync", self.url), capture_output=True, check=False).returncode == 0, "rsync daemon")
        call("cp", "-a", self.trees.old, self.out)
        # Its quick check would leave such files as they are.
        self.checksum = self.trees.same_stamps()

    def fetch(self, meter):
        check = ["--checksum"] if self.checksum else []
        meter.run("rsync", "-a", "-z", "--compress-choice=zstd", *check, "--delete", self.url, f"{self.out}/")

    def check(self):
        self.same_tree(self.out)


class Casync(Way):
    word, name = "casync", "casync, seed"

    def prepare(self):
        share = self.directory / "share"
        share.mkdir()
        call(bench.program("casync"), "make", f"--store={share}/default.castr", share / "v2.caidx", self.trees.new)
        self.url = self.web(share)
        call("cp", "-a", self.trees.old, self.directory / "seed")

    def fetch(self, meter):
        meter.run("casync", "extract", f"--store={self.url}/default.castr", f"--seed={self.directory}/seed", f"{self.url}/v2.caidx", self.out)

    def check(self):
        self.same_tree(self.out)


class Zsync(Way):
    word, name = "zsync", "zsync of a tar"

    def prepare(self):
        share = self.directory / "share"
        share.mkdir()
        tar = share / "v2.tar"
        os.link(self.trees.tar("v2"), tar)
        self.url = self.web(share)
        call("zsyncmake", "-o", f"{tar}.zsync", "-u", f"{self.url}/v2.tar", tar)
        self.trees.tar("v1")

    def fetch(self, meter):
        meter.run(bench.program("zsync"), "-q", "-i", self.trees.tar("v1"), "-o", self.out, f"{self.url}/v2.tar.zsync")

    def check(self):
        self.same_tar()


class Zchunk(Way):
    word, name = "zchunk", "zchunk of a tar"

    def prepare(self):
        share = self.directory / "share"
        share.mkdir()
        for which, to in (("v1", self.directory), ("v2", share)):
            call(bench.program("zck"), "-o", to / f"{which}.zck", self.trees.tar(which))
        self.url = self.web(share)
        self.out = self.directory / "v2.zck"

    def fetch(self, meter):
        meter.run("sh", "-c", f"cd {self.directory} && zckdl -s v1.zck {self.url}/v2.zck")

    def check(self):
        call("cmp", self.directory / "share" / "v2.zck", self.out)


class Patch(Way):
    word, name = "zstd", "zstd -3 --patch-from, tars"

    def prepare(self):
        share = self.directory / "share"
        share.mkdir()
        old, new = self.trees.tar("v1"), self.trees.tar("v2")
        call(bench.program("zstd"), "-q", "-3", "--long=31", f"--patch-from={old}", new, "-o", share / "patch")
        self.url = self.web(share)

    def fetch(self, meter):
        meter.run(bench.program("curl"), "-sf", "-o", self.directory / "patch", f"{self.url}/patch")
        meter.run("zstd", "-q", "-d", "--long=31", f"--patch-from={self.trees.tar('v1')}", self.directory / "patch", "-o", self.out)

    def check(self):
        self.same_tar()


class Distd(Way):
    """An origin with both releases; a node that holds the first."""

    header = UDP

    def prepare(self):
        self.origin, self.fs = (pathlib.Path(os.environ["DISTD_BIN"]) / p for p in ("distd-origin", "distd-fs"))
        self.cache, self.point = self.directory / "cache", self.directory / "mnt"
        self.point.mkdir()
        os.environ["DISTD_REPO"] = str(self.directory / "repo")
        self.publish()
        log = self.directory / "serve.out"
        self.servers.append(serve(ORIGIN, self.origin, "serve", "--listen", f"{ADDRESS[ORIGIN]}:7574", log=log))
        identity = until(lambda: re.search(r"distd://([^@\s]+)@", log.read_text()), "distd-origin serve")[1]
        self.url = f"distd://{identity}@{ADDRESS[ORIGIN]}:7574/bench"
        self.hold()
        until(lambda: not bench.cpu_seconds(NODE), "the node's end")

    def publish(self):
        """Publishing is the same for each way: done once."""
        kept = self.trees.work / "repo"
        if not kept.exists():
            call(self.origin, "init")
            for release, tree in (("1", self.trees.old), ("2", self.trees.new)):
                call(self.origin, "publish", tree, "--track", "bench", "--release", release, "-q")
            call("cp", "-a", "--sparse=always", os.environ["DISTD_REPO"], kept)
        else:
            call("cp", "-a", "--sparse=always", kept, os.environ["DISTD_REPO"])

    def run(self, *words):
        call(*on(NODE, self.fs, *words))


class Prefetch(Distd):
    word, name = "prefetch", "distd, mount and prefetch"

    def hold(self):
        self.run("prefetch", "--wait", "-q", "--cache", self.cache, f"{self.url}@1")

    def fetch(self, meter):
        meter.run(self.fs, "mount", self.url, self.point, "-o", f"cache={self.cache},prefetch=none")
        meter.run(self.fs, "prefetch", "--wait", "-q", "--cache", self.cache, self.point)
        status = json.loads(call(*on(NODE, self.fs, "status", "--cache", self.cache, "--json")))
        swarm = {key: value for key, value in status["swarms"][0].items() if key.endswith(("bytes", "frames"))}
        print(json.dumps(swarm), file=sys.stderr)

    def check(self):
        self.same_tree(self.point)
        self.run("umount", self.point)


class Get(Distd):
    word, name = "get", "distd, get"

    def hold(self):
        self.run("get", f"{self.url}@1", self.out, "-q", "--cache", self.cache)

    def fetch(self, meter):
        meter.run(self.fs, "get", self.url, self.out, "-q", "--delete", "--cache", self.cache)

    def check(self):
        self.same_tree(self.out)


class Seed(Get):
    """The first release as plain files, and a cache that never held anything."""

    word, name = "seed", "distd get, seed"

    def hold(self):
        call("cp", "-a", self.trees.old, self.out)


if __name__ == "__main__":
    main()
