"""The measuring part of swarm.sh."""

import argparse
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import bench
from bench import call, on, serve, stop, until
from transfer import MIB, torrent

ORIGIN = "origin"
SWITCH = "switch"
PORT = 7574
DEADLINE_S = 900


def address(host):
    return "10.79.0.1" if host == ORIGIN else f"10.79.0.{10 + int(host[1:])}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--mbit", type=int, default=100)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    options = parser.parse_args()
    (options.scratch / "share").mkdir()
    os.chmod(options.scratch, 0o755)
    content = options.scratch / "share" / "content"
    with content.open("wb") as file:
        for _ in range(options.mib):
            file.write(os.urandom(MIB))
    nodes = [f"n{number}" for number in range(1, options.nodes + 1)]
    bridge([ORIGIN, *nodes], options.mbit)
    rows = []
    for way in (Distd(), Distd(relays=2), Aria(), Curl()):
        if options.only not in way.name:
            continue
        rows.append(measure(way, options, content, nodes))
        print(json.dumps(rows[-1]), file=sys.stderr)
    bench.show(rows, options.json)


def bridge(hosts, origin_mbit):
    """All hosts on one bridge, each with a line of its own; what a host sends is limited where it leaves."""
    call("ip", "netns", "add", SWITCH)
    call("ip", "-n", SWITCH, "link", "add", "name", "br0", "type", "bridge")
    call("ip", "-n", SWITCH, "link", "set", "br0", "up")
    for host in hosts:
        call("ip", "netns", "add", host)
        call("ip", "-n", host, "link", "set", "lo", "up")
        call("ip", "-n", host, "link", "add", "eth0", "mtu", "1500", "type", "veth", "peer", "name", host, "netns", SWITCH)
        call("ip", "-n", SWITCH, "link", "set", host, "master", "br0", "up")
        call("ip", "-n", host, "address", "add", address(host) + "/24", "dev", "eth0")
        call("ip", "-n", host, "link", "set", "eth0", "up")
        mbit, burst = (origin_mbit, "32kb") if host == ORIGIN else (1000, "256kb")
        call("tc", "-n", host, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", f"{mbit}mbit", "burst", burst, "latency", "50ms")


def sent_by_origin():
    """Bytes of frames on the line, what was dropped for lack of room not counted."""
    return json.loads(call("tc", "-n", ORIGIN, "-s", "-j", "qdisc", "show", "dev", "eth0"))[0]["bytes"]


def measure(way, options, content, nodes):
    way.scratch = options.scratch / re.sub(r'\W', '-', way.name)
    way.scratch.mkdir(exist_ok=True)
    way.content, way.nodes = content, nodes
    way.start()
    before, begin = sent_by_origin(), time.monotonic()
    spent = {host: sum(bench.cpu_seconds(host).values()) for host in (ORIGIN, *nodes)}
    way.fetch()
    seconds = time.monotonic() - begin
    sent = sent_by_origin() - before
    cpu = sum(sum(bench.cpu_seconds(host).values()) - spent[host] for host in (ORIGIN, *nodes))
    way.close()
    size = content.stat().st_size
    row = {
        "way": way.name, "payload / content": way.payload() / size if way.payload() is not None else "-",
        "interface / content": sent / size, "s": seconds, "time / ideal": seconds / (size * 8 / options.mbit / 1e6),
        "CPU-s of living": cpu, "notes": way.notes(),
    }
    return row


def together(commands):
    """Runs one command on each host, all at the same time."""
    started = [(host, words, subprocess.Popen(on(host, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)) for host, words in commands]
    for host, words, process in started:
        try:
            said, _ = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            sys.exit(f"{host}: {' '.join(map(str, words))}: not done after {DEADLINE_S} s")
        if process.returncode != 0:
            sys.exit(f"{host}: {' '.join(map(str, words))}: exit {process.returncode}\n{said.decode(errors='replace')[-2000:]}")


class Way:
    def start(self):
        """Servers, before the clock."""

    def payload(self):
        return None

    def notes(self):
        return ""

    def close(self):
        for server in self.servers:
            stop(server)


class Curl(Way):
    name = "nginx + curl"

    def start(self):
        config = self.scratch / "nginx.conf"
        here = self.scratch
        config.write_text(f"""daemon off; pid {here}/nginx.pid; error_log {here}/nginx.log; worker_processes 1; user root;
events {{ worker_connections 64; }}
http {{ access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {here}/nginx-a; proxy_temp_path {here}/nginx-b; fastcgi_temp_path {here}/nginx-c;
  uwsgi_temp_path {here}/nginx-d; scgi_temp_path {here}/nginx-e;
  server {{ listen {address(ORIGIN)}:8080; root {self.content.parent}; }} }}
""")
        self.servers = [serve(ORIGIN, bench.program("nginx"), "-c", config, log=here / "nginx.out")]
        self.url = f"http://{address(ORIGIN)}:8080/content"
        until(lambda: subprocess.run(on(self.nodes[0], "curl", "-sfI", self.url), capture_output=True, check=False).returncode == 0, "nginx")

    def fetch(self):
        together([(node, [bench.program("curl"), "-sf", "-o", "/dev/null", self.url]) for node in self.nodes])


class Aria(Way):
    """BitTorrent; the tracker names everybody to everybody. A node that is done goes on seeding until all are."""

    name = "aria2 (BitTorrent)"
    PORT = 6881

    def start(self):
        self.torrent = self.scratch / "content.torrent"
        self.torrent.write_bytes(torrent(self.content, f"http://{address(ORIGIN)}:8081/announce"))
        peers = ",".join(address(host) for host in (ORIGIN, *self.nodes))
        self.servers = [serve(ORIGIN, sys.executable, "-B", __file__, "tracker", peers, log=self.scratch / "tracker.out")]
        self.command = [bench.program("aria2c"), "--enable-dht=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false", "--quiet", "--file-allocation=none", "--seed-ratio=0.0", f"--listen-port={self.PORT}"]
        seed = [*self.command, "--bt-seed-unverified=true", "--check-integrity=false", f"--dir={self.content.parent}", self.torrent]
        self.servers.append(serve(ORIGIN, *seed, log=self.scratch / "seed.out"))
        time.sleep(2)

    def fetch(self):
        for node in self.nodes:
            place = self.scratch / node
            place.mkdir()
            self.servers.append(serve(node, *self.command, f"--dir={place}", self.torrent, log=self.scratch / f"{node}.out"))
        size = self.content.stat().st_size
        done = lambda node: (self.scratch / node / "content").exists() and (self.scratch / node / "content").stat().st_blocks * 512 >= size  # noqa: E731
        until(lambda: all(map(done, self.nodes)), "aria2", DEADLINE_S)

    def close(self):
        super().close()
        for node in self.nodes:
            call("rm", "-rf", self.scratch / node)


class Tracker(http.server.BaseHTTPRequestHandler):
    """Names everybody to whoever asks."""

    def do_GET(self):
        peers = b"".join(bytes(map(int, peer.split("."))) + Aria.PORT.to_bytes(2, "big") for peer in sys.argv[2].split(","))
        body = b"d8:intervali5e5:peers%d:%se" % (len(peers), peers)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Distd(Way):
    """Each node mounts the release and brings all of it into its cache. SOURCE names everybody to everybody."""

    def __init__(self, relays=0):
        self.relay_count = relays
        self.name = f"distd, {relays} relays in front" if relays else "distd"
        self.origin, self.fs = (pathlib.Path(os.environ["DISTD_BIN"]) / p for p in ("distd-origin", "distd-fs"))

    def start(self):
        os.environ["DISTD_REPO"] = str(self.scratch / "repo")
        call(*on(ORIGIN, self.origin, "init"))
        call(*on(ORIGIN, self.origin, "publish", self.content.parent, "--track", "bench", "--release", "1", "-q"))
        self.log = self.scratch / "serve.out"
        self.server = serve(ORIGIN, self.origin, "-v", "serve", "--listen", f"{address(ORIGIN)}:{PORT}", log=self.log)
        self.servers = [self.server]
        self.id = until(lambda: re.search(r"distd://([^@\s]+)@", self.log.read_text()), "distd-origin serve")[1]
        self.relays, self.leaves = self.nodes[: self.relay_count], self.nodes[self.relay_count :]
        self.end = {}

    def source(self, hosts):
        return f"distd://{self.id}@{','.join(f'{address(host)}:{PORT}' for host in hosts)}/bench"

    def fetch(self):
        for relay in self.relays:
            words = [self.fs, "relay", self.source([ORIGIN, *self.relays]), "--pin", "--cache", self.scratch / relay, "--listen", f"{address(relay)}:{PORT}"]
            log = self.scratch / f"{relay}.out"
            self.servers.append(serve(relay, *words, log=log))
            until(lambda log=log: "relaying" in log.read_text(), "a relay")
        mounts, prefetches = [], []
        for node in self.leaves:
            point, cache = self.scratch / f"{node}.mnt", self.scratch / node
            point.mkdir()
            options = f"cache={cache},prefetch=none,listen={address(node)}:{PORT}"
            mounts.append((node, [self.fs, "mount", self.source([*self.nodes, ORIGIN]), point, "-o", options]))
            prefetches.append((node, [self.fs, "prefetch", "--wait", "-q", "--cache", cache, point]))
        together(mounts)
        together(prefetches)

    def close(self):
        for host in (*self.relays, *self.leaves):
            status = json.loads(call(*on(host, self.fs, "status", "--json", "--cache", self.scratch / host)))["swarms"][0]
            self.end[host] = status
        for node in self.leaves:
            call("cmp", self.scratch / f"{node}.mnt" / "content", self.content)
            call(*on(node, self.fs, "umount", self.scratch / f"{node}.mnt"))
        super().close()
        until(lambda: not any(bench.cpu_seconds(node) for node in self.nodes), "the nodes' end")
        for host in self.nodes:
            call("rm", "-rf", self.scratch / host)

    def payload(self):
        return int(re.findall(r"data_sent_bytes=(\d+)", self.log.read_text())[-1])

    def notes(self):
        from_origin = {host: sum(p["received_bytes"] for p in end["peers"] if p["address"].startswith(address(ORIGIN) + ":")) for host, end in self.end.items()}
        leaves = sum(from_origin[host] for host in self.leaves)
        total = lambda key: sum(end[key] for end in self.end.values())  # noqa: E731
        return f"origin to nodes {leaves / MIB:.1f} MiB; duplicates {total('duplicate_bytes') / MIB:.1f} MiB; asked again {total('rerequested_runs')}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["tracker"]:
        http.server.ThreadingHTTPServer((address(ORIGIN), 8081), Tracker).serve_forever()
    main()
