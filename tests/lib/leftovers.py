"""What a test may have left behind: mounts, loop devices, processes, namespaces, files."""

import glob
import os
import time

# Another run at the same time is another run's affair.
OURS = f"distd-e2e-{os.getpid()}-"


def of_machine():
    """Seen from outside: whatever bears the name of a scratch directory, and network namespaces."""
    found = {f"mount {line.split()[4]}" for line in _lines("/proc/self/mountinfo") if OURS in line}
    found |= {f"loop device on {backing}" for backing in loops() if OURS in backing}
    found |= {f"file {path}" for path in glob.glob(os.path.join(os.environ.get("TMPDIR", "/var/tmp"), OURS + "*"))}
    found |= {f"file {path}" for path in glob.glob("/sbin/mount.fuse.distd")}
    return found


def of_namespace(scratch):
    """Seen from inside a test's namespaces, where every process but the test itself is the test's."""
    found = {f"mount {line.split()[4]} ({line.split(' - ')[1]})" for line in _lines("/proc/self/mountinfo")}
    found |= {f"loop device on {backing}" for backing in loops() if scratch in backing}
    found |= {f"process {pid}: {words}" for pid, words in processes()}
    found |= {f"network namespace {path}" for path in glob.glob("/run/netns/*")}
    return found


def loops():
    return [line.strip() for path in glob.glob("/sys/block/loop*/loop/backing_file") for line in _lines(path)]


def processes():
    """(pid, command line) of every other process of this PID namespace that is not a zombie."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        words = " ".join(_lines(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
        if words:
            yield int(pid), words


def settle(look, seconds=20.0):
    """What `look` still returns after at most `seconds`: daemons leave a moment after their umount, or when the
    job of a command that was killed has ended (ten seconds)."""
    end = time.monotonic() + seconds
    while (left := look()) and time.monotonic() < end:
        reap()
        time.sleep(0.02)
    return left


def reap():
    """The test is process 1 of its namespace: orphans become its children."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _lines(path):
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.readlines()
    except OSError:
        return []
