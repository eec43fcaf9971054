"""Promises about the tests themselves and about the scripts."""

import pathlib
import subprocess

from lib import hosts
from lib.network import ADDRESS, NODE, ORIGIN
from lib.promises import promise

TOP = pathlib.Path(__file__).resolve().parents[2]

ECHO = """import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("%s", 9)); print("ready", flush=True)
while True: s.sendto(*s.recvfrom(2000))
"""
ASK = """import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
begin = time.monotonic(); s.sendto(b"x", ("%s", 9)); s.recvfrom(2000); print((time.monotonic() - begin) * 1000)
"""


@promise(delay_ms=5)
def the_relay_delays_by_what_it_says(_world):
    echo = hosts.start(ORIGIN, "python3", "-c", ECHO % ADDRESS[ORIGIN], out=subprocess.PIPE)
    echo.stdout.readline()
    hosts.run(NODE, "python3", "-c", ASK % ADDRESS[ORIGIN])
    round_trip_ms = min(float(hosts.run(NODE, "python3", "-c", ASK % ADDRESS[ORIGIN]).out) for _ in range(5))
    hosts.kill(echo)
    echo.stdout.close()
    # The upper bound leaves room for a machine that compiles beside the test.
    assert 10 <= round_trip_ms < 30, round_trip_ms


@promise()
def both_hosts_reach_each_other_and_nobody_else(_world):
    assert hosts.run(NODE, "ip", "route").out.split()[0] == "10.77.0.0/24"
    for host, other in ((NODE, ORIGIN), (ORIGIN, NODE)):
        connect = f"import socket; s = socket.socket(); s.settimeout(2); print(s.connect_ex(('{ADDRESS[other]}', 9)))"
        assert hosts.run(host, "python3", "-c", connect).out.strip() == "111", "refused means: reached"


@promise()
def scripts_are_sound_shell(_world):
    scripts = [p for d in ("scripts", "tests", "contrib", ".ci") for p in (TOP / d).rglob("*") if p.is_file()]
    for script in scripts:
        if script.read_bytes().startswith(b"#!/usr/bin/env bash"):
            done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            stops = ("set -euo", "set -Eeuo", "set -uo", "alone.sh", "exec ")
            assert any(x in script.read_text() for x in stops), f"{script} goes on after an error"
