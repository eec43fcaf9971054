"""The measuring part of transfer.sh."""

import argparse
import hashlib
import http.server
import os
import pathlib
import re
import subprocess
import sys

import bench
from bench import ADDRESS, NODE, ORIGIN, Meter, call, on, serve, stop, until

MIB = 1 << 20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    options = parser.parse_args()
    scratch = options.scratch
    (scratch / "share").mkdir()
    (scratch / "out").mkdir()
    content = scratch / "share" / "content"
    with content.open("wb") as file:
        for _ in range(options.mib):
            file.write(os.urandom(MIB))
    bench.link()
    ways = [Nginx(scratch), Rsync(scratch), Aria(scratch, content), *Distd.ways(scratch, content)]
    best = {}
    for number in range(options.rounds):
        for way in ways:
            meter = way.round(number)
            print(f"round {number + 1}: {way.name}: {meter.seconds:.2f} s", file=sys.stderr)
            if way.name not in best or meter.seconds < best[way.name].seconds:
                best[way.name] = meter
    for way in ways:
        way.close()
    curl = best[ways[0].name].seconds
    gib = options.mib / 1024
    bench.show(
        [
            {
                "way": way.name, "s": best[way.name].seconds, "x curl": best[way.name].seconds / curl,
                "CPU-s send": best[way.name].send_cpu_s, "CPU-s receive": best[way.name].receive_cpu_s,
                "CPU-s/GiB": (best[way.name].send_cpu_s + best[way.name].receive_cpu_s) / gib,
            }
            for way in ways
        ],
        options.json,
    )


class Way:
    """One way to move the file: a server for the whole run, a client each round."""

    def __init__(self, scratch):
        self.scratch, self.out, self.servers = scratch, scratch / "out" / "content", []

    def round(self, number):
        with Meter() as meter:
            self.fetch(meter, number)
        self.settle(number)
        return meter

    def settle(self, _number):
        if self.out.stat().st_size != (self.scratch / "share" / "content").stat().st_size:
            sys.exit(f"{self.name}: what arrived has another length")
        self.out.unlink()

    def close(self):
        for server in self.servers:
            stop(server)


class Nginx(Way):
    name = "nginx + curl"

    def __init__(self, scratch):
        super().__init__(scratch)
        config = scratch / "nginx.conf"
        config.write_text(f"""daemon off; pid {scratch}/nginx.pid; error_log {scratch}/nginx.log; worker_processes 1; user root;
events {{ worker_connections 64; }}
http {{ access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {scratch}/nginx-a; proxy_temp_path {scratch}/nginx-b; fastcgi_temp_path {scratch}/nginx-c;
  uwsgi_temp_path {scratch}/nginx-d; scgi_temp_path {scratch}/nginx-e;
  server {{ listen {ADDRESS[ORIGIN]}:8080; root {scratch}/share; }} }}
""")
        os.chmod(scratch, 0o755)
        self.servers = [serve(ORIGIN, bench.program("nginx"), "-c", config, log=scratch / "nginx.out")]
        self.url = f"http://{ADDRESS[ORIGIN]}:8080/content"
        until(lambda: subprocess.run(on(NODE, "curl", "-sfI", self.url), capture_output=True, check=False).returncode == 0, "nginx")

    def fetch(self, meter, _number):
        meter.run(bench.program("curl"), "-sf", "-o", self.out, self.url)


class Rsync(Way):
    name = "rsync daemon"

    def __init__(self, scratch):
        super().__init__(scratch)
        config = scratch / "rsyncd.conf"
        config.write_text(f"address = {ADDRESS[ORIGIN]}\nport = 8730\nuse chroot = no\nuid = root\ngid = root\n[share]\npath = {scratch}/share\nread only = yes\n")
        self.servers = [serve(ORIGIN, bench.program("rsync"), "--daemon", "--no-detach", f"--config={config}", log=scratch / "rsyncd.out")]
        self.url = f"rsync://{ADDRESS[ORIGIN]}:8730/share/content"
        until(lambda: subprocess.run(on(NODE, "rsync", self.url), capture_output=True, check=False).returncode == 0, "rsync daemon")

    def fetch(self, meter, _number):
        meter.run("rsync", "--whole-file", self.url, self.out)


class Aria(Way):
    """BitTorrent between two peers that a tracker of three lines has told of each other."""

    name = "aria2 (BitTorrent)"
    PORT = 6881

    def __init__(self, scratch, content):
        super().__init__(scratch)
        self.torrent = scratch / "content.torrent"
        self.torrent.write_bytes(torrent(content, f"http://{ADDRESS[ORIGIN]}:8081/announce"))
        self.servers = [serve(ORIGIN, sys.executable, "-B", __file__, "tracker", log=scratch / "tracker.out")]
        common = [bench.program("aria2c"), "--enable-dht=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false", "--quiet", "--file-allocation=none"]
        self.command = [*common, "--seed-time=0", "--listen-port=6882"]
        seed = [*common, "--seed-ratio=0.0", "--bt-seed-unverified=true", "--check-integrity=false", f"--listen-port={self.PORT}", f"--dir={content.parent}", self.torrent]
        self.servers.append(serve(ORIGIN, *seed, log=scratch / "seed.out"))

    def fetch(self, meter, _number):
        meter.run(*self.command, f"--dir={self.out.parent}", self.torrent)

    def settle(self, number):
        super().settle(number)
        pathlib.Path(str(self.out) + ".aria2").unlink(missing_ok=True)


def torrent(content, tracker):
    def encode(value):
        if isinstance(value, int):
            return b"i%de" % value
        if isinstance(value, dict):
            return b"d" + b"".join(encode(k) + encode(v) for k, v in sorted(value.items())) + b"e"
        value = value.encode() if isinstance(value, str) else value
        return b"%d:%s" % (len(value), value)

    with content.open("rb") as file:
        pieces = b"".join(hashlib.sha1(piece).digest() for piece in iter(lambda: file.read(MIB), b""))
    information = {b"length": content.stat().st_size, b"name": "content", b"piece length": MIB, b"pieces": pieces}
    return encode({b"announce": tracker, b"info": information})


class Tracker(http.server.BaseHTTPRequestHandler):
    """Names the seed to whoever asks."""

    def do_GET(self):
        seed = bytes(map(int, ADDRESS[ORIGIN].split("."))) + Aria.PORT.to_bytes(2, "big")
        body = b"d8:intervali60e5:peers6:" + seed + b"e"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Distd(Way):
    """A cold cache each round; brought into the node's own files, read to /dev/null, or copied to a file."""

    def __init__(self, scratch, name, fetcher, shared):
        super().__init__(scratch)
        self.name, self.fetcher, self.shared = name, fetcher, shared
        self.origin, self.fs = (pathlib.Path(os.environ["DISTD_BIN"]) / p for p in ("distd-origin", "distd-fs"))
        self.point = scratch / "mnt"

    @classmethod
    def ways(cls, scratch, content):
        first = cls(scratch, "distd, mount + read", cls.read, True)
        first.start(content)
        second = cls(scratch, "distd, mount + copy to a file", cls.copy, False)
        third = cls(scratch, "distd, prefetch into the cache", cls.prefetch, False)
        second.url = third.url = first.url
        return [third, first, second]

    def start(self, content):
        self.point.mkdir()
        repo = self.scratch / "repo"
        os.environ["DISTD_REPO"] = str(repo)
        call(*on(ORIGIN, self.origin, "init"))
        call(*on(ORIGIN, self.origin, "publish", content.parent, "--track", "bench", "--release", "1", "-q"))
        log = self.scratch / "serve.out"
        self.servers = [serve(ORIGIN, self.origin, "serve", "--listen", f"{ADDRESS[ORIGIN]}:7574", log=log)]
        identity = until(lambda: re.search(r"distd://([^@\s]+)@", log.read_text()), "distd-origin serve")[1]
        self.url = f"distd://{identity}@{ADDRESS[ORIGIN]}:7574/bench"

    def fetch(self, meter, number):
        self.cache = self.scratch / f"cache-{number}"
        meter.run(self.fs, "mount", self.url, self.point, "-o", f"cache={self.cache},prefetch=none")
        self.fetcher(self, meter)

    def prefetch(self, meter):
        meter.run(self.fs, "prefetch", "--wait", "-q", "--cache", self.cache, self.point)

    def read(self, meter):
        meter.run("dd", f"if={self.point}/content", "of=/dev/null", "bs=1M")

    def copy(self, meter):
        meter.run("dd", f"if={self.point}/content", f"of={self.out}", "bs=1M")

    def settle(self, number):
        if self.out.exists():
            call("cmp", self.out, self.scratch / "share" / "content")
            self.out.unlink()
        call(*on(NODE, self.fs, "umount", self.point))
        until(lambda: not bench.cpu_seconds(NODE), "the node's end")
        call("rm", "-rf", self.cache)


if __name__ == "__main__":
    if sys.argv[1:] == ["tracker"]:
        http.server.ThreadingHTTPServer((ADDRESS[ORIGIN], 8081), Tracker).serve_forever()
    main()
