"""Runs each promise in namespaces of its own and prints what held.

A promise is a function marked `@promise` in tests/promises/. It runs as process 2 of a fresh PID, mount and
network namespace (see lib/alone.py), so whatever it does to /run, /sbin or the network is seen by nobody
else and is gone when it ends, however it ends.
"""

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from lib import leftovers  # noqa: E402
from lib.promises import discover  # noqa: E402

NEEDED_PROGRAMS = (
    "unshare nsenter mount umount losetup ip fusermount3 mkfs.erofs mkfs.ext4 rsync "
    "getfattr setfattr getfacl setfacl setcap strace dpkg dpkg-deb systemd-analyze cmp find tc tshark dumpcap"
).split()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what promises that hold print, too")
    parser.add_argument("-j", "--jobs", type=int, default=(os.cpu_count() or 1) + 1)
    parser.add_argument("patterns", nargs="*")
    arguments = parser.parse_args()
    promises = [p for p in discover() if not arguments.patterns or any(x in f"{p.module}.{p.name}" for x in arguments.patterns)]
    if arguments.list:
        for promise in promises:
            print(f"{promise.module}.{promise.name}")
        return 0
    stop_unless_runnable(promises)
    before = leftovers.of_machine()
    with programs_for_everybody():
        failures = run_all(promises, arguments.jobs, arguments.verbose)
    left = leftovers.of_machine() - before
    if left:
        print("FAIL nothing_is_left_behind: " + "; ".join(sorted(left)))
        failures.append("nothing_is_left_behind")
    for name in failures:
        print(f"again with: tests/run.sh {name}")
    print(f"e2e: {len(promises) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


@contextlib.contextmanager
def programs_for_everybody():
    """Some promises are about other users: a checkout that only root may enter is no place for their programs."""
    binaries = pathlib.Path(os.environ["DISTD_BIN"]).resolve()
    if all(place.stat().st_mode & 0o001 for place in (binaries, *binaries.parents)):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="distd-bin-", dir=os.environ.get("TMPDIR", "/var/tmp")) as copies:
        os.chmod(copies, 0o755)
        for binary in ("distd-origin", "distd-fs"):
            shutil.copy2(binaries / binary, copies)
        os.environ["DISTD_BIN"] = copies
        yield


def stop_unless_runnable(promises):
    """A test that cannot run has failed: nothing is skipped."""
    problems = [f"no program {p}: run scripts/setup.sh" for p in NEEDED_PROGRAMS if not shutil.which(p)]
    binaries = pathlib.Path(os.environ["DISTD_BIN"])
    for binary in ("distd-origin", "distd-fs"):
        if not os.access(binaries / binary, os.X_OK):
            problems.append(f"no {binaries / binary}: run cargo build")
    if os.geteuid() != 0:
        problems.append("not root: mounts and namespaces need it")
    if not promises:
        problems.append("no promise of that name: see --list")
    if problems:
        print("e2e cannot run: " + "; ".join(problems))
        print(f"e2e: 0 passed, {max(1, len(promises))} failed")
        sys.exit(1)


def run_all(promises, jobs, verbose):
    failures = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        # Promises mostly wait. The long ones first, so that none of them is left over at the end.
        by_length = sorted(promises, key=lambda p: -p.seconds)
        runs = {pool.submit(run_one, p): p for p in by_length}
        for run in concurrent.futures.as_completed(runs):
            promise, (held, seconds, output) = runs[run], run.result()
            print(f"{'ok  ' if held else 'FAIL'} {seconds:6.1f} s  {promise.module}.{promise.name}", flush=True)
            if not held:
                failures.append(promise.name)
            if output.strip() and (verbose or not held):
                print("     | " + output.strip().replace("\n", "\n     | "), flush=True)
    return failures


def run_one(promise):
    """(held, seconds, output) of one promise; its deadline ends every process of its namespace."""
    scratch = tempfile.mkdtemp(prefix=leftovers.OURS, dir=os.environ.get("TMPDIR", "/var/tmp"))
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL", "--mount-proc"]
    command += ["--propagation", "private", sys.executable, "-B", str(HERE / "lib" / "alone.py")]
    command += [promise.module, promise.name, scratch]
    begin = time.monotonic()
    output = pathlib.Path(scratch, "output")
    with output.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True)
        try:
            held = process.wait(promise.seconds) == 0
            verdict = ""
        except subprocess.TimeoutExpired:
            held, verdict = False, f"\nnot done after {promise.seconds} s"
            process.kill()
            process.wait(30)
    text = output.read_text(errors="replace")[-6000:] + verdict
    shutil.rmtree(scratch, ignore_errors=True)
    return held, time.monotonic() - begin, text


if __name__ == "__main__":
    sys.exit(main())
