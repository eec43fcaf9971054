"""Promises about single files as static swarms of RFC 7574 (`distd-fs swarm`), alone and with older implementations."""

import hashlib
import json
import pathlib
import signal
import sys

from lib import hosts, tree
from lib.capture import Capture, dissected
from lib.network import ADDRESS, NODE, ORIGIN
from lib.promises import promise

PORT = 7574
PEER = pathlib.Path(__file__).resolve().parents[1] / "lib" / "static_peer.py"
BAD = "distd.malformed || _ws.malformed || _ws.lua.error"


class Process:
    """A program that stays, with what it says."""

    def __init__(self, world, host, name, *words):
        self.world, self.path = world, world.dir / f"{name}.log"
        self.log = self.path.open("w")
        self.process = hosts.start(host, *words, out=self.log, err=(world.dir / f"{name}.err").open("w"))
        world.servers.append(self.process)

    def said(self, parse, what):
        def found():
            assert self.process.poll() is None, f"{what} ended: {self.path.read_text()} {self.errors()}"
            return parse(self.path.read_text())

        return hosts.until(found, 60, what)

    def errors(self):
        return self.path.with_suffix(".err").read_text()

    def stop(self, number=signal.SIGTERM):
        self.world.stop(self.process, number)
        self.log.close()


def json_of(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def seed(world, file, *words, port=PORT, host=ORIGIN):
    """Seeds a file; the process, and what it said."""
    listen = f"{ADDRESS[host]}:{port}"
    process = Process(world, host, f"seed-{port}", world.distd_fs, "swarm", "seed", file, "--listen", listen, "--json", *words)
    return process, process.said(json_of, "the seeder")


def old_seed(world, file, *words, port=PORT):
    process = Process(world, ORIGIN, f"old-{port}", sys.executable, "-B", PEER, "seed", file, str(port), *words)
    return process, process.said(lambda text: text.strip() or None, "the older seeder")


def get(world, identity, output, *words, sources=(PORT,), code=0, seconds=120, host=NODE):
    addresses = ",".join(f"{ADDRESS[ORIGIN]}:{port}" for port in sources)
    result = hosts.run(
        host, world.distd_fs, "swarm", "get", f"{identity}@{addresses}", "-o", output, "--json", *words, seconds=seconds
    )
    assert result.code == code, result
    return json.loads(result.out) if code == 0 else result


def file_of(world, name, length):
    path = world.dir / name
    path.write_bytes(tree.random_bytes(name, length))
    return path


def same(one, other):
    assert pathlib.Path(one).read_bytes() == pathlib.Path(other).read_bytes(), f"{other} is not {one}"
    left = [p.name for p in pathlib.Path(other).parent.iterdir() if p.name.startswith(pathlib.Path(other).name + ".part")]
    assert not left, left


@promise(seconds=180)
def files_of_any_length_arrive_by_either_hash_function(world):
    port = PORT
    for function, digits in (("sha256", 64), ("sha1", 40)):
        for length in (1, 1024, 1025, tree.MIB + 1):
            port += 1
            file, copy = file_of(world, f"{function}-{length}", length), world.dir / f"copy-{function}-{length}"
            seeder, said = seed(world, file, "--hash", function, port=port)
            assert len(said["id"]) == digits and said["bytes"] == length and said["port"] == port, said
            told = ["--length", str(length)] if length % 2 else []
            got = get(world, said["id"], copy, *told, sources=[port])
            same(file, copy)
            assert got["bytes"] == length and got["duplicate_bytes"] == 0, got
            seeder.stop()
    empty = world.dir / "empty"
    empty.touch()
    said = json.loads(hosts.run(ORIGIN, world.distd_fs, "swarm", "seed", empty, "--json").out)
    assert said["id"] == "0" * 64 and said["bytes"] == 0, said
    get(world, said["id"], world.dir / "copy-empty", "--timeout", "1")
    assert (world.dir / "copy-empty").stat().st_size == 0
    one = file_of(world, "one", 1)
    assert hashlib.sha256(one.read_bytes()).hexdigest() == seed(world, one, port=7700)[1]["id"]


@promise(seconds=180)
def a_large_file_arrives_once_and_is_shown_by_wireshark(world):
    file, copy = file_of(world, "large", 64 * tree.MIB), world.dir / "copy"
    seeder, said = seed(world, file)
    got = get(world, said["id"], copy)
    same(file, copy)
    print(f"64 MiB in {got['seconds']:.2f} s: {64 / got['seconds']:.0f} MiB/s")
    assert got["duplicate_bytes"] <= 64 * tree.MIB * 0.02 and got["received_bytes"] < 64 * tree.MIB * 1.2, got
    again = get(world, said["id"], copy)
    assert again["resumed_bytes"] == 64 * tree.MIB, again
    short, path = file_of(world, "short", 300_000), world.dir / "session.pcap"
    seeder.stop()
    seeder, said = seed(world, short)
    with Capture(ORIGIN, path):
        get(world, said["id"], world.dir / "copy-short")
    same(short, world.dir / "copy-short")
    bad = dissected(path, "frame.number", "_ws.expert.message", "_ws.lua.text", only=BAD)
    assert not bad, bad[:5]
    opening = dissected(path, "distd.option.swarm_id", "distd.option.addressing", only="distd.channel == 0")
    assert set(map(str, opening)) == {str(([said["id"]], ["2"]))}, opening
    assert {int(t) for row in dissected(path, "distd.type", only="distd") for t in row[0]} >= {0, 1, 2, 3, 4, 8}


@promise(seconds=240)
def older_implementations_are_fetched_from_and_served(world):
    port = PORT
    for words, length in (([], 1), ([], 1025), (["--sha1"], 300_077), ([], 2 * tree.MIB), (["--sha1"], 7 * 1024)):
        port += 1
        file, copy = file_of(world, f"old-{port}", length), world.dir / f"copy-{port}"
        older, identity = old_seed(world, file, *words, "--log", str(world.dir / f"counts-{port}"), port=port)
        get(world, identity, copy, sources=[port])
        same(file, copy)
        counts = (world.dir / f"counts-{port}").read_text()
        # It was silent to options 8 and 9 until they were left out.
        assert "option 8" in counts, counts
        older.stop()
        function = "sha1" if words else "sha256"
        seeder, said = seed(world, file, "--hash", function, port=port)
        assert said["id"] == identity, "both make the same tree"
        back = world.dir / f"back-{port}"
        fetched = hosts.run(NODE, sys.executable, "-B", PEER, "get", identity, ADDRESS[ORIGIN], str(port), back, seconds=100)
        assert fetched.code == 0, fetched
        same(file, back)
        seeder.stop()


@promise(seconds=120)
def what_an_older_implementation_forgets_is_asked_for_again_and_not_much_more(world):
    file, copy, log = file_of(world, "slow", 1_200_000), world.dir / "copy", world.dir / "counts"
    _, identity = old_seed(world, file, "--rate", "120", "--log", str(log))
    got = get(world, identity, copy)
    same(file, copy)
    counts = eval(log.read_text())  # of our own making
    chunks = -(-1_200_000 // 1024)
    # A machine that compiles beside the test makes both of them late.
    assert chunks <= counts["chunks"] <= chunks * 2.5 and got["seconds"] < 45, (counts, got)


@promise(seconds=240)
def liars_are_dropped_and_the_file_is_right(world):
    file = file_of(world, "file", 3 * tree.MIB)
    _, said = seed(world, file)
    for number, lie in enumerate(("data", "hash", "peaks", "length")):
        port = 7600 + number
        liar, identity = old_seed(world, file, "--lie", lie, port=port)
        assert identity == said["id"]
        copy = world.dir / f"copy-{lie}"
        got = get(world, identity, copy, sources=[port, PORT])
        same(file, copy)
        lied = {peer["address"]: peer["lied"] for peer in got["peers"]}
        assert not lied[f"{ADDRESS[ORIGIN]}:{PORT}"], lied
        if lie != "length":
            alone = get(world, identity, world.dir / f"alone-{lie}", "--timeout", "3", sources=[port], code=4)
            assert "not this content's" in alone.err and f":{port}" in alone.err, alone
            assert not (world.dir / f"alone-{lie}").exists()
        liar.stop()


@promise(seconds=180)
def a_get_that_is_killed_goes_on_where_it_was(world):
    file, copy = file_of(world, "file", 24 * tree.MIB), world.dir / "copy"
    _, identity = old_seed(world, file, "--rate", str(3 * 1024))
    addresses = f"{identity}@{ADDRESS[ORIGIN]}:{PORT}"
    part, hashes = world.dir / "copy.part", world.dir / "copy.part.hashes"
    for kills in range(3):
        process = Process(world, NODE, f"get-{kills}", world.distd_fs, "swarm", "get", addresses, "-o", copy)
        before = hashes.stat().st_size if hashes.exists() else 0
        hosts.until(lambda: hashes.exists() and hashes.stat().st_size > before + 4000, 60, "progress")
        if kills == 0:
            busy = get(world, identity, copy, "--timeout", "5", code=8)
            assert "another process" in busy.err, busy
        process.stop(signal.SIGKILL)
        assert part.exists() and not copy.exists()
    with part.open("r+b") as damaged:
        for offset in range(0, 24 * tree.MIB, 1_000_000):
            damaged.seek(offset)
            damaged.write(b"lies")
    process = Process(world, NODE, "get-again", world.distd_fs, "swarm", "get", addresses, "-o", copy)
    before = hashes.stat().st_size
    hosts.until(lambda: hashes.stat().st_size > before + 400, 30, "progress")
    process.stop(signal.SIGINT)
    assert "goes on with it" in process.errors(), process.errors()
    got = get(world, identity, copy)
    same(file, copy)
    fetched = sum(peer["verified_bytes"] for peer in got["peers"])
    assert got["resumed_bytes"] > 2 * tree.MIB and fetched == got["bytes"] - got["resumed_bytes"], got


@promise(seconds=180, rate_mbit=60)
def getters_fetch_from_one_another(world):
    length = 16 * tree.MIB
    file = file_of(world, "file", length)
    _, said = seed(world, file)
    ports = (7601, 7602, 7603)
    started = []
    for number, port in enumerate(ports):
        others = [f"{ADDRESS[NODE]}:{other}" for other in ports[:number]]
        source = f"{said['id']}@" + ",".join([f"{ADDRESS[ORIGIN]}:{PORT}", *others])
        listen = f"{ADDRESS[NODE]}:{port}"
        words = ["swarm", "get", source, "-o", world.dir / f"copy-{port}", "--listen", listen, "--json"]
        started.append(Process(world, NODE, f"get-{port}", world.distd_fs, *words))
    from_seeder = from_others = 0
    for port, process in zip(ports, started):
        assert process.process.wait(150) == 0, process.errors()
        same(file, world.dir / f"copy-{port}")
        peers = json.loads(process.path.read_text())["peers"]
        for peer in peers:
            is_seeder = peer["address"] == f"{ADDRESS[ORIGIN]}:{PORT}"
            from_seeder += peer["verified_bytes"] * is_seeder
            from_others += peer["verified_bytes"] * (not is_seeder)
    print(f"the seeder gave {from_seeder / length:.2f} copies to three")
    assert from_seeder < 2.8 * length and from_others > length / 8, (from_seeder, from_others)


@promise(seconds=120)
def what_cannot_be_fetched_is_told_with_what_to_do(world):
    file, copy = file_of(world, "file", 5000), world.dir / "copy"
    _, said = seed(world, file)
    wrong = get(world, "12" * 32, copy, "--timeout", "2", code=6)
    for word in ("nothing arrived for 2 s", f"{ADDRESS[ORIGIN]}:{PORT}", "no answer", "check the id"):
        assert word in wrong.err, (word, wrong)
    nobody = get(world, said["id"], copy, "--timeout", "2", sources=[7999], code=6)
    assert "no answer" in nobody.err, nobody
    assert get(world, said["id"], copy, "--length", "9999", "--timeout", "2", code=4).err.count("--length right?") == 1
    for unfinished in world.dir.glob("copy.part*"):
        unfinished.unlink()
    copy.write_bytes(b"mine")
    taken = get(world, said["id"], copy, code=1)
    assert "is not this content" in taken.err and copy.read_bytes() == b"mine", taken
    copy.unlink()
    (world.dir / "copy.part").write_bytes(b"a browser's")
    taken = get(world, said["id"], copy, "--timeout", "5", code=1)
    assert "is not of this content" in taken.err and (world.dir / "copy.part").read_bytes() == b"a browser's", taken
    for words, code in ((["swarm", "get", "xyz@host:1", "-o", copy], 2), (["swarm", "seed", world.dir / "none"], 7), (["swarm", "seed", world.dir], 1)):
        assert hosts.run(NODE, world.distd_fs, *words).code == code, words
    ambiguous = file_of(world, "ambiguous", 1024 + 64)
    _, said = seed(world, ambiguous, port=7601)
    refused = get(world, said["id"], copy.with_name("b"), "--timeout", "2", sources=[7601], code=4)
    assert "--length" in refused.err and "1088" in refused.err, refused
    get(world, said["id"], copy.with_name("b"), "--length", "1088", sources=[7601])
    same(ambiguous, copy.with_name("b"))


# Shows C06, C10 (RFC 7574 3.1.1).
@promise(seconds=120)
def spoofed_handshakes_of_a_static_swarm_get_no_more_than_they_sent_and_take_no_memory(world):
    file = file_of(world, "file", 300_000)
    seeder, said = seed(world, file)
    script = world.dir / "flood.py"
    script.write_text(FLOOD)

    def memory():
        status = pathlib.Path(f"/proc/{seeder.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def flood(count):
        result = hosts.run(NODE, sys.executable, "-B", script, ADDRESS[ORIGIN], str(PORT), said["id"], str(count), seconds=100)
        assert result.code == 0, result
        return json.loads(result.out)

    flood(10_000)
    before = memory()
    told = flood(40_000)
    assert 0 < told["received"] <= told["sent"] and told["longest"] <= told["question"], told
    assert memory() < before + 2048, (before, memory())
    get(world, said["id"], world.dir / "copy")
    same(file, world.dir / "copy")


FLOOD = '''
import json, os, random, socket, struct, sys
host, port, identity, count = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), int(sys.argv[4])
sent = received = longest = 0
for number in range(count // 100):
    flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flood.setblocking(False)
    for _ in range(100):
        question = struct.pack(">IBI", 0, 0, random.randrange(1, 1 << 32)) + bytes([0, 1, 1, 1, 2, 0, 32]) + identity
        question += bytes([3, 1, 4, 2, 6, 2, 255])
        sent += flood.sendto(question, (host, port))
        try:
            while True:
                answer = flood.recv(2048)
                received, longest = received + len(answer), max(longest, len(answer))
        except BlockingIOError:
            pass
    flood.close()
print(json.dumps({"sent": sent, "received": received, "longest": longest, "question": len(question)}))
'''
