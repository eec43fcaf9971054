"""Two hosts, `origin` and `node`, as network namespaces with one link between them."""

import pathlib
import subprocess
import sys

ORIGIN, NODE = "origin", "node"
ADDRESS = {ORIGIN: "10.77.0.1", NODE: "10.77.0.2"}
RELAY = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "bench" / "relay.py"


class Network:
    """A veth pair; with any of `link` (delay_ms, rate_mbit, loss, flip), the relay of scripts/bench."""

    def __init__(self, link):
        self.relay = None
        for host in (ORIGIN, NODE):
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
        if link:
            self._start_relay(link)
        else:
            _ip("-n", ORIGIN, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", NODE)
            for host in (ORIGIN, NODE):
                _ip("-n", host, "address", "add", ADDRESS[host] + "/24", "dev", "eth0")
                _ip("-n", host, "link", "set", "eth0", "up")

    def _start_relay(self, link):
        command = [sys.executable, "-B", str(RELAY)]
        command += ["--left", f"{ORIGIN},eth0,{ADDRESS[ORIGIN]}/24", "--right", f"{NODE},eth0,{ADDRESS[NODE]}/24"]
        for name, value in link.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        self.relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self.relay.stdout.readline() != "ready\n":
            raise RuntimeError("the relay did not come up")

    def unplug(self, host=NODE):
        """The link goes dead: whatever is sent gets no answer, and no error either."""
        _ip("-n", host, "link", "set", "eth0", "down")

    def plug(self, host=NODE):
        _ip("-n", host, "link", "set", "eth0", "up")

    def received_bytes(self, host=NODE):
        """Bytes that came in over the host's interface since it was made, headers included."""
        path = "/sys/class/net/eth0/statistics/rx_bytes"
        # /sys shows the namespace of whoever mounted it.
        script = f"mount -t sysfs sysfs /sys && cat {path}"
        words = ["nsenter", f"--net=/run/netns/{host}", "unshare", "--mount", "sh", "-c", script]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    def close(self):
        if self.relay:
            self.relay.terminate()
            self.relay.wait(10)
            self.relay.stdout.close()
        for host in (ORIGIN, NODE):
            _ip("netns", "delete", host)


def _ip(*words):
    subprocess.run(["ip", *words], check=True)
