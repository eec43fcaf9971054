"""The measuring part of mount.sh."""

import argparse
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import time

import bench
from bench import ADDRESS, NODE, ORIGIN, call, on, program, serve, stop, until

MIB = 1 << 20
READS = 20_000
SMALL = (0, 200, 900, 2500, 5000, 12_000)


def main():
    known = {way.word: way for way in (Tree, Erofs, Loop, File, Squashfuse, Erofsfuse, Casync)}
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(known))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    options = parser.parse_args()
    ways = [known.get(word) or parser.error(f"no way {word}: one of {', '.join(known)}") for word in options.ways.split(",")]
    bench.link()
    os.chmod(options.scratch, 0o755)
    source = grown(options.scratch / "source", options.files, options.mib)
    rows = []
    for way in ways:
        if way is Erofsfuse and not shutil.which(way.word):
            # Not every distribution has it as a package.
            print("no erofsfuse here: left out", file=sys.stderr)
            continue
        work = options.scratch / way.word
        work.mkdir()
        ready = way(work, source)
        rounds = [measured(ready, options) for _ in range(options.rounds)]
        ready.close()
        shutil.rmtree(work)
        rows.append({"way": way.title, **{key: statistics.median(r[key] for r in rounds) for key in rounds[0]}})
    bench.show(rows, options.json)


def grown(root, files, mib):
    """Directories of 100 small files, and one large file."""
    chance = random.Random(1)
    pool = chance.randbytes(max(SMALL) + files)
    for number in range(files):
        directory = root / f"d{number // 10_000:03}" / f"s{number // 100:05}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        (directory / f"f{number:06}").write_bytes(pool[number : number + SMALL[number % len(SMALL)]])
    with (root / "large").open("wb") as file:
        for _ in range(mib):
            file.write(chance.randbytes(MIB))
    return root


def measured(way, options):
    """One mount, asked for everything. Rates, so that more is better, but for the seconds of CPU."""
    point = way.directory / "mnt"
    point.mkdir(exist_ok=True)
    call("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")
    for path in way.behind():
        call("sh", "-c", f"find {path} -type f -exec cat {{}} + > /dev/null")
    way.mount(point)
    try:
        row = {
            "first find/s": options.files / seconds("find", point, "-size", "+1000000"),
            "find/s": options.files / seconds("find", point, "-size", "+1000000"),
            "first MB/s": options.mib * MIB / 1e6 / seconds("cat", point / "large"),
            "MB/s": options.mib * MIB / 1e6 / seconds("cat", point / "large"),
            "random 4K/s": at_random(point / "large"),
        }
        before = daemon_cpu_s(way)
        row["tree s"] = seconds("sh", "-c", f"find {point} -type f -print0 | xargs -0 cat")
        row["daemon CPU s"] = daemon_cpu_s(way) - before
        return row
    finally:
        way.umount(point)


def seconds(*words):
    begin = time.monotonic()
    subprocess.run(on(NODE, *words), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def at_random(path):
    """Blocks of a file here and there, as often a second; all of them were read before."""
    file, size = os.open(path, os.O_RDONLY), os.path.getsize(path)
    chance = random.Random(2)
    places = [chance.randrange(size // 4096) * 4096 for _ in range(READS)]
    begin = time.monotonic()
    for at in places:
        os.pread(file, 4096, at)
    took = time.monotonic() - begin
    os.close(file)
    return READS / took


def daemon_cpu_s(way):
    """Of the programs that answer the kernel, not of the kernel's own threads."""
    spent = 0
    for pid in way.daemons():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        spent += sum(map(int, fields[11:13])) / bench.TICKS_PER_S
    return spent


def running(name):
    """The processes of a program."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.path.basename(words[0]).decode(errors="replace") == name:
            yield int(pid)


class Distd:
    """A view of distd's, everything local."""

    def __init__(self, directory, source):
        binaries = pathlib.Path(os.environ["DISTD_BIN"]).resolve()
        self.directory, self.origin, self.fs = directory, binaries / "distd-origin", binaries / "distd-fs"
        self.cache, repo = directory / "cache", directory / "repo"
        os.environ["DISTD_REPO"] = str(repo)
        call(self.origin, "init")
        call(self.origin, "publish", source, "--track", "stable", "--release", "v1")
        log = directory / "serve.log"
        self.server = serve(ORIGIN, self.origin, "serve", "--listen", f"{ADDRESS[ORIGIN]}:7574", log=log)
        self.identity = until(lambda: re.search(r"distd://([^@\s]+)@", log.read_text()), "the URL of serve")[1]
        self.url = f"distd://{self.identity}@{ADDRESS[ORIGIN]}:7574/stable"
        call(*on(NODE, self.fs, "prefetch", "--wait", "--cache", self.cache, self.url), timeout=900)

    def behind(self):
        until(lambda: not list(running("distd-fs")), "the last node's end")
        return [self.cache]

    def mount(self, point):
        call(*on(NODE, self.fs, "mount", self.url, point, "-o", f"cache={self.cache},prefetch=none,allow_other,view={self.word}"))

    def umount(self, point):
        call("umount", point)

    def daemons(self):
        return running("distd-fs")

    def close(self):
        stop(self.server)


class Tree(Distd):
    word, title = "tree", "distd, view=tree"


class Erofs(Distd):
    word, title = "erofs", "distd, view=erofs"


class Image:
    """An image of the tree as a local file."""

    def __init__(self, directory, source):
        self.directory, self.image = directory, directory / "image"
        self.make(source)

    def make(self, source):
        call(program("mkfs.erofs"), "--quiet", "-Enoinline_data", self.image, source)

    def behind(self):
        return [self.image]

    def umount(self, point):
        call("umount", point)

    def daemons(self):
        return running(self.word)

    def close(self):
        pass


class Loop(Image):
    word, title = "loop", "kernel EROFS, loop"

    def mount(self, point):
        call("mount", "-t", "erofs", "-o", "loop,ro", self.image, point)


class File(Image):
    word, title = "file", "kernel EROFS, file"

    def mount(self, point):
        # mount(8) always takes a loop device.
        libc = "import ctypes, sys; c = ctypes.CDLL(None, use_errno=True); sys.exit(c.mount(*map(str.encode, sys.argv[1:4]), 1, None) and ctypes.get_errno())"
        call(sys.executable, "-c", libc, self.image, point, "erofs")


class Squashfuse(Image):
    word, title = "squashfuse", "squashfuse, not compressed"

    def make(self, source):
        call(program("mksquashfs"), source, self.image, "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")

    def mount(self, point):
        call(program("squashfuse"), self.image, point)


class Erofsfuse(Image):
    word, title = "erofsfuse", "erofsfuse"

    def mount(self, point):
        call(program("erofsfuse"), self.image, point)


class Casync:
    word, title = "casync", "casync mount, local store"

    def __init__(self, directory, source):
        self.directory, self.index, self.store = directory, directory / "tree.caidx", directory / "store.castr"
        call(program("casync"), "make", f"--store={self.store}", self.index, source)
        self.process = None

    def behind(self):
        return [self.store]

    def mount(self, point):
        words = [program("casync"), "mount", f"--store={self.store}", self.index, point]
        self.process = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: os.path.ismount(point), "casync's mount", 60)

    def umount(self, point):
        call("umount", point)
        self.process.wait(30)

    def daemons(self):
        return [self.process.pid]

    def close(self):
        pass


if __name__ == "__main__":
    main()
