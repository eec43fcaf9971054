"""Running programs on one of the two hosts."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import time


@dataclasses.dataclass(frozen=True)
class Result:
    words: list
    code: int
    out: str
    err: str

    def __str__(self):
        return f"{' '.join(self.words)}: exit {self.code}\nstdout: {self.out}\nstderr: {self.err}"


def run(host, *words, seconds=60, env=None, user=None):
    """Runs a program to its end, which must come within `seconds`, and returns what it said."""
    words = [str(w) if not isinstance(w, bytes) else w for w in words]
    done = subprocess.run(
        _on(host, words, user), capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})}, check=False,
    )
    text = [stream.decode(errors="surrogateescape") for stream in (done.stdout, done.stderr)]
    return Result([str(w) for w in words], done.returncode, *text)


def start(host, *words, out=subprocess.DEVNULL, err=None, env=None):
    """Starts a program that stays; the caller ends it by `kill`."""
    return subprocess.Popen(
        _on(host, [str(w) for w in words], None), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        env={**os.environ, **(env or {})}, start_new_session=True,
    )


def _on(host, words, user):
    # nsenter and not `ip netns exec`: the latter enters a mount namespace of its own as well, and a
    # mount made in there is invisible to the test.
    there = ["nsenter", f"--net=/run/netns/{host}"]
    if user is not None:
        there += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [*there, *words]


def kill(process, number=signal.SIGTERM, seconds=10):
    """Signals a started program and waits for its end; returns its exit code."""
    if process.poll() is None:
        process.send_signal(number)
    return process.wait(seconds)


def state(pid):
    """The letter of /proc/PID/stat (R, S, D, Z ...), or None when there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return None


def until(condition, seconds=10.0, what="the condition"):
    """The first true value of `condition`, asked every 20 ms."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.02)
    return value
