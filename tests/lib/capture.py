"""Captures of traffic, and what tshark with distd's dissector says of them."""

import ipaddress
import os
import pathlib
import signal
import struct
import subprocess
import time

from lib import hosts

DISSECTOR = pathlib.Path(__file__).resolve().parents[2] / "contrib" / "wireshark" / "distd.lua"
RAW_IP = 101


class Capture:
    """All UDP on a host's interface while the context lasts."""

    def __init__(self, host, path, interface="eth0"):
        self.host, self.path, self.interface = host, path, interface

    def __enter__(self):
        words = ["dumpcap", "-q", "-P", "-i", self.interface, "-f", "udp", "-B", "64", "-w", self.path]
        self.log = self.path.with_suffix(".log").open("w+")
        self.process = hosts.start(self.host, *words, out=self.log, err=self.log)
        hosts.until(lambda: "File:" in self._said(), 20, "dumpcap's file")
        return self

    def __exit__(self, *_):
        # What the kernel still holds when dumpcap ends is lost.
        time.sleep(1.2)
        hosts.kill(self.process, signal.SIGINT)
        said = self._said()
        assert "dropped" in said and " 0/" not in said, said
        self.log.close()

    def _said(self):
        return pathlib.Path(self.log.name).read_text()


def written(path, datagrams, snap=65535):
    """A capture file of (source address, port, destination address, port, payload); packets are cut at `snap`."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snap, RAW_IP))
        for second, (source, source_port, to, to_port, payload) in enumerate(datagrams):
            udp = struct.pack(">HHHH", source_port, to_port, 8 + len(payload), 0) + payload
            addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(to).packed
            ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
            packet = ip + udp
            file.write(struct.pack("<IIII", second, 0, min(len(packet), snap), len(packet)) + packet[:snap])
    return path


def dissected(path, *fields, only="distd", preferences=()):
    """For each packet that the filter lets through, the values of each field, in order."""
    words = ["tshark", "-n", "-X", f"lua_script:{DISSECTOR}", "-r", path, "-Y", only, "-T", "fields", "-E", "aggregator=;"]
    for field in fields:
        words += ["-e", field]
    for preference in preferences:
        words += ["-o", preference]
    # Nobody's own plugins or preferences.
    env = {**os.environ, "HOME": str(path.parent), "LC_ALL": "C.UTF-8"}
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=120, check=False, env=env)
    errors = [line for line in done.stderr.splitlines() if "Running as user" not in line and line.strip()]
    assert done.returncode == 0 and not errors, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [tuple([value for value in column.split(";") if value] for column in row) for row in rows]
