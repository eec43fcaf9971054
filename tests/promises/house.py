"""Promises about the tests themselves and about the scripts."""

import pathlib
import subprocess

from lib import hosts, tree
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


@promise(seconds=120)
def the_readmes_commands_work(world):
    """Every line of "Publish and mount" but the installation, with this test's paths in it."""
    tree.small(world.dir / "source")
    text = (TOP / "README.md").read_text(encoding="utf-8")
    blocks = text.partition("On the origin:")[2].partition("In fstab:")[0].split("```")[1::2]
    lines = "".join(blocks).replace("serve &", "serve > serve.log 2>&1 & until grep -q serving serve.log; do sleep 0.1; done").replace("umount /mnt", "cat /mnt/bin/file0 >content; umount /mnt")
    for words, own in (("/var/lib/distd/origin", "repo"), ("/srv/tree", "source"), ("/mnt", "mnt")):
        lines = lines.replace(words, str(world.dir / own))
    lines = lines.replace("ID@HOST", "$(grep -o '[0-9a-f]*@' serve.log | head -n 1)127.0.0.1")
    world.install_helper()
    # The default cache, but not the machine's.
    subprocess.run(["mount", "-t", "tmpfs", "distd-e2e", "/var/cache"], check=True)
    world.overlays.append("/var/cache")
    script = f"set -eux\ncd {world.dir}\nPATH={world.distd_fs.parent}:$PATH\n{lines}\nkill %1; wait %1 || true\n"
    result = hosts.run(ORIGIN, "bash", "-c", script, seconds=60)
    assert result.code == 0, result
    assert (world.dir / "content").read_bytes() == (world.dir / "source/bin/file0").read_bytes(), result
    assert "stable" in result.out and "1.0" in result.out, result
