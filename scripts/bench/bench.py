"""What the benchmarks share: two hosts, a meter for CPU time, a table.

The programs run in private namespaces (see alone.sh), so every process of a network namespace belongs to
that end of the link, and its CPU time can be summed from /proc.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ORIGIN, NODE = "origin", "node"
ADDRESS = {ORIGIN: "10.78.0.1", NODE: "10.78.0.2"}


def link(**relay):
    """The two hosts, joined by a veth pair (MTU 1500)."""
    for host in (ORIGIN, NODE):
        call("ip", "netns", "add", host)
        call("ip", "-n", host, "link", "set", "lo", "up")
    call("ip", "-n", ORIGIN, "link", "add", "eth0", "mtu", "1500", "type", "veth", "peer", "name", "eth0", "mtu", "1500", "netns", NODE)
    for host in (ORIGIN, NODE):
        call("ip", "-n", host, "address", "add", ADDRESS[host] + "/24", "dev", "eth0")
        call("ip", "-n", host, "link", "set", "eth0", "up")


def on(host, *words):
    return ["nsenter", f"--net=/run/netns/{host}", *map(str, words)]


def call(*words, **options):
    """Runs to its end; its words are shown only when it fails."""
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout.decode(errors='replace')[-2000:]}")
    return done.stdout.decode(errors="replace")


def serve(host, *words, log):
    """Starts a server; `stop` ends it."""
    sink = open(log, "wb")
    return subprocess.Popen(on(host, *words), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True)


def stop(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            sys.exit(f"{what}: not within {seconds} s")
        time.sleep(0.05)
    return value


def cpu_seconds(host):
    """CPU time of each living process of a host and of the children that it has waited for."""
    there = os.stat(f"/run/netns/{host}").st_ino
    total = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino != there:
                continue
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        total[pid] = sum(map(int, fields[11:15])) / TICKS_PER_S
    return total


class Meter:
    """Wall time and CPU-seconds of both ends while the block runs. A program that starts and ends within
    the block is counted by `run`."""

    def __enter__(self):
        self.ended = 0.0
        self.before = {host: cpu_seconds(host) for host in (ORIGIN, NODE)}
        self.begin = time.monotonic()
        return self

    def run(self, *words):
        before = os.times()
        call(*on(NODE, *words))
        after = os.times()
        self.ended += after.children_user - before.children_user + after.children_system - before.children_system

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.begin
        spent = {}
        for host in (ORIGIN, NODE):
            spent[host] = sum(now - self.before[host].get(pid, 0) for pid, now in cpu_seconds(host).items())
        self.send_cpu_s, self.receive_cpu_s = spent[ORIGIN], spent[NODE] + self.ended


def program(name):
    """A peer that is not there cannot be measured: that is an error, not a gap in the table."""
    path = shutil.which(name)
    if not path:
        sys.exit(f"no {name}: run scripts/setup.sh --bench")
    return path


def show(rows, as_json):
    """Rows are dictionaries of the same keys; numbers are printed with two places."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    words = [[k for k in rows[0]]] + [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*words)]
    for row in words:
        print("  ".join(w.ljust(width) if i == 0 else w.rjust(width) for i, (w, width) in enumerate(zip(row, widths))))
