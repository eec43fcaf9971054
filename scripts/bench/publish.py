"""The measuring part of publish.sh."""

import argparse
import os
import pathlib
import shutil
import sys
import time

import bench


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    parser.add_argument("trees", type=pathlib.Path, nargs=2)
    options = parser.parse_args()
    best = {}
    for number in range(options.rounds):
        for way in (Casync, Distd):
            store = options.scratch / f"{way.__name__}-{number}"
            store.mkdir()
            for label, words in way(store).steps(options.trees):
                row = timed(words)
                row["MB stored"] = stored(store) / 1e6
                key = (way.name, label)
                print(f"round {number + 1}: {way.name}, {label}: {row['s']:.2f} s", file=sys.stderr)
                if key not in best or row["s"] < best[key]["s"]:
                    best[key] = row
            shutil.rmtree(store)
    rows = []
    for (name, label), row in best.items():
        peer = best[Casync.name, label]["s"]
        rows.append({"way": f"{name}, {label}", "s": row["s"], "x casync": row["s"] / peer, "CPU-s": row["CPU-s"], "MB stored": row["MB stored"]})
    bench.show(rows, options.json)


def timed(words):
    before, begin = os.times(), time.monotonic()
    bench.call(*words)
    seconds, after = time.monotonic() - begin, os.times()
    return {"s": seconds, "CPU-s": after.children_user - before.children_user + after.children_system - before.children_system}


def stored(directory):
    return sum(p.lstat().st_blocks * 512 for p in directory.rglob("*"))


class Casync:
    name = "casync make"

    def __init__(self, store):
        self.store = store

    def steps(self, trees):
        for label, tree, index in (("v1", trees[0], "v1"), ("v2", trees[1], "v2"), ("v2 again", trees[1], "again")):
            yield label, [bench.program("casync"), "make", f"--store={self.store}/default.castr", f"{self.store}/{index}.caidx", tree]


class Distd:
    name = "distd-origin publish"

    def __init__(self, store):
        os.environ["DISTD_REPO"] = str(store / "repo")
        self.program = pathlib.Path(os.environ["DISTD_BIN"]) / "distd-origin"
        bench.call(self.program, "init")

    def steps(self, trees):
        for label, tree, release in (("v1", trees[0], "1"), ("v2", trees[1], "2"), ("v2 again", trees[1], "3")):
            yield label, [self.program, "publish", tree, "--track", "bench", "--release", release, "-q"]


if __name__ == "__main__":
    main()
