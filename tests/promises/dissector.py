"""Promises about what Wireshark shows of distd's traffic (contrib/wireshark)."""

import hashlib
import pathlib
import struct
import subprocess
import time

from lib import capture, compare, hosts, tree
from lib.capture import Capture, dissected
from lib.network import ADDRESS, NODE, ORIGIN
from lib.promises import promise

HERE, THERE = "192.0.2.1", "192.0.2.2"
PORT = 7574
HANDSHAKE, DATA, ACK, HAVE, INTEGRITY, SIGNED_INTEGRITY, REQUEST, WANT, HAVE_MAP, PLACE = 0, 1, 2, 3, 4, 7, 8, 14, 16, 17
BROKEN = "_ws.lua.error || _ws.expert.message contains \"Exception\""
BAD = "distd.malformed || _ws.malformed || _ws.lua.error || distd.cut"


def nothing_is_malformed(path):
    bad = dissected(path, "frame.number", "_ws.expert.message", "_ws.lua.text", only=BAD)
    assert not bad, bad[:5]


def read_to_the_end(rows):
    """(UDP length, destination channels, lengths of messages) of each packet."""
    for length, channels, messages in rows:
        found = sum(map(int, messages)) + 4 * len(channels)
        assert int(length[0]) - 8 == found, (length, channels, messages)


@promise(seconds=120)
def a_session_is_shown_to_its_last_byte(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "file", 300 << 10)
    world.published(source)
    path = world.dir / "session.pcap"
    with Capture(ORIGIN, path):
        mount = world.mount(options="prefetch=none")
        uids = hosts.run(NODE, "getfattr", "--only-values", "-n", "user.distd.uids", mount / "file").out
        compare.same(source, mount)
        # A node says half a second after its beginning, at the latest, which swarms it is in.
        time.sleep(0.7)
        world.umount()
        hosts.until(lambda: world.node_pid() is None, what="the node's end")
    nothing_is_malformed(path)
    everything = dissected(path, "frame.number", only="udp")
    shown = dissected(path, "frame.number", only="distd")
    assert shown == everything and len(shown) > 20, f"{len(shown)} of {len(everything)} packets are shown"
    peers = "distd && !distd.lan.nonce"
    read_to_the_end(dissected(path, "udp.length", "distd.channel", "distd.message.length", only=peers))
    swarm = "0f" + world.id
    opening = dissected(path, "distd.option.swarm_id", "distd.option.addressing", only="distd.channel == 0")
    assert opening and set(map(str, opening)) == {str(([swarm], ["4"]))}, opening
    assert {name for names, in dissected(path, "distd.swarm", only=peers) for name in names} == {swarm}
    types = {
        host: {int(t) for row in dissected(path, "distd.type", only=f"{peers} && ip.src == {ADDRESS[host]}") for t in row[0]}
        for host in (ORIGIN, NODE)
    }
    assert {HANDSHAKE, DATA, INTEGRITY, SIGNED_INTEGRITY, PLACE} <= types[ORIGIN] and types[ORIGIN] & {HAVE, HAVE_MAP}, types
    assert {HANDSHAKE, ACK, PLACE} <= types[NODE] and types[NODE] & {REQUEST, WANT}, types
    of_munros = dissected(path, "distd.first", "distd.last", "distd.type", "distd.signed.time", only="distd.type == 7")
    # Each message of a packet has its range, so that they stand side by side.
    for first, last, kinds, signed_at in of_munros:
        assert len(signed_at) == kinds.count("7"), (kinds, signed_at)
        assert any(int(a) % 1024 == 0 and int(b) == int(a) + 1023 for a, b in zip(first, last)), (first, last)
    assert time.strftime("%Y", time.gmtime()) in of_munros[0][3][0], of_munros[0]
    content_is_in(path, (source / "file").read_bytes(), uids)
    assert dissected(path, "distd.lan.port", only="distd.lan.nonce"), "no datagram of the local network"
    closing = dissected(path, "frame.number", only="distd.handshake.closing == 1")
    assert closing, "no goodbye"


def content_is_in(path, content, uids):
    """The chunks that the mount names as the file's, as they went over the wire, are the file."""
    # One DATA at least a packet, and one range for each of its messages: only those of DATA have a time.
    only = f"distd.type == 1 && ip.src == {ADDRESS[ORIGIN]}"
    chunks = {}
    for kinds, first, data in dissected(path, "distd.type", "distd.first", "distd.data.chunk", only=only):
        assert set(kinds) == {"1"} and len(first) == len(data), (kinds, first)
        chunks.update(zip(map(int, first), data))
    blocks = [(int(uid) - 3) // 8 for run in uids.split(",") for uid in run.split("-")]
    wanted = [c for a, b in zip(blocks[::2], blocks[1::2]) for c in range(4 * a, 4 * b + 4)]
    found = b"".join(bytes.fromhex(chunks[c]) for c in wanted)
    assert found[: len(content)] == content, hashlib.sha256(found).hexdigest()


# What follows is written by hand after docs/protocol.md, so that the dissector is not held against itself.


def spec(addressing, first, last):
    """A range of chunks in one of the five notations; bins are of aligned powers of two."""
    if addressing in (0, 3):
        count = last - first + 1
        return struct.pack(">I" if addressing == 0 else ">Q", 2 * first + count - 1)
    if addressing == 1:
        return struct.pack(">QQ", 1024 * first, 1024 * (last + 1) - 1)
    return struct.pack(">II" if addressing == 2 else ">QQ", first, last)


def handshake(source, addressing=4, hash_function=0xB3, algorithm=15, size=1024, swarm=b"\x0f" + bytes(range(32))):
    window = b"\xff" * (4 if addressing in (0, 2) else 8)
    return (
        b"\0" + struct.pack(">I", source) + b"\0\1\1\1\2" + struct.pack(">H", len(swarm)) + swarm + b"\3\3\4" + bytes([hash_function, 5, algorithm])
        + bytes([6, addressing, 7]) + window + b"\x08\x03\xff\xff\xc0\x09" + struct.pack(">I", size) + b"\xff"
    )


def messages(addressing, hash_bytes, signature_bytes):
    """All but HANDSHAKE and DATA, each once, in the order of their type."""
    some, node = spec(addressing, 8, 11), spec(addressing, 1024, 2047)
    return [
        b"\x02" + some + struct.pack(">q", -5),
        b"\x03" + some,
        b"\x04" + node + b"\xaa" * hash_bytes,
        b"\x05" + bytes([192, 0, 2, 9]) + struct.pack(">H", 7001),
        b"\x06",
        b"\x07" + node + struct.pack(">II", 3_970_000_000, 0) + b"\xbb" * signature_bytes,
        b"\x08" + some,
        b"\x09" + some,
        b"\x0a",
        b"\x0b",
        b"\x0c" + b"\x20\x01\x0d\xb8" + bytes(12) + struct.pack(">H", 7002),
        b"\x0d" + struct.pack(">H", 5) + b"\x30\x03\x02\x01\x00",
        b"\x0e" + some + b"\x01" + struct.pack(">I", 1500) + b"\x02",
        b"\x0f" + some,
        b"\x10" + struct.pack(">QQ", 7, 0b1011),
        b"\x11" + struct.pack(">QB", 99, 255),
        b"\x12\x02" + struct.pack(">QBQB", 99, 0, 98, 3),
    ]


def datagram(channel, *parts):
    return struct.pack(">I", channel) + b"".join(parts)


def to(payload, port=PORT):
    return HERE, 40000, THERE, port, payload


def back(payload, port=PORT):
    return THERE, port, HERE, 40000, payload


@promise()
def every_message_is_shown_in_every_notation_on_any_port(world):
    rsa = b"\x08\x03\x01\x00\x01" + bytes(256)
    for addressing in range(5):
        # Lengths other than distd's come from the HANDSHAKE. (A byte range says nothing without the chunks' size.)
        size, port = 1024 if addressing == 1 else 512, 6001 + addressing
        options = {"addressing": addressing, "hash_function": 0, "algorithm": 8, "size": size, "swarm": rsa}
        data = b"\x01" + spec(addressing, 9, 9) + struct.pack(">Q", 77) + b"\xcc" * size
        path = capture.written(world.dir / f"{addressing}.pcap", [
            to(datagram(0, handshake(0xA0A0A0A0, **options), b"\x03" + spec(addressing, 0, 7)), port),
            back(datagram(0xA0A0A0A0, handshake(0xB0B0B0B0, **options)), port),
            to(datagram(0xB0B0B0B0, *messages(addressing, 20, 256), data), port),
            back(datagram(0xA0A0A0A0), port),
            back(datagram(0xA0A0A0A0, b"\0\0\0\0\0\0\1\xff"), port),
        ])
        nothing_is_malformed(path)
        rows = dissected(path, "udp.length", "distd.channel", "distd.message.length")
        assert len(rows) == 5, rows
        read_to_the_end(rows)
        kinds, first, last, count, opened, swarm = dissected(
            path, "distd.type", "distd.first", "distd.last", "distd.count", "distd.opened_in", "distd.swarm"
        )[2]
        assert kinds == [str(k) for k in range(2, 19)] + ["1"], kinds
        assert opened == ["2"] and swarm == [rsa.hex()], (opened, swarm)
        assert first == "8 8 1024 1024 8 8 8 8 9".split() and last == "11 11 2047 2047 11 11 11 11 9".split(), (first, last)
        assert count == "4 4 1024 1024 4 4 4 4 1".split(), count
        words = dissected(path, "distd.ack.delay", "distd.want.class", "distd.want.deadline", "distd.want.hops",
                          "distd.have_map.munro", "distd.place.level", "distd.pex.ipv4", "distd.pex.ipv6", "distd.pex.port",
                          "distd.bin", "distd.circle.count", "distd.circle.hops")[2]
        assert [w[-1] for w in words[:8]] == ["-5", "1", "1500", "2", "7", "255", "192.0.2.9", "2001:db8::"], words
        assert words[8] == ["7001", "7002"] and "3071" in words[9], words
        assert list(words[10:]) == [["2"], ["0", "3"]], words
        columns = [row[0][0] for row in dissected(path, "_ws.col.Info")]
        assert columns[0].startswith("HANDSHAKE a0a0a0a0, HAVE 0-7") and columns[3] == "keep-alive", columns
        assert columns[4].startswith("HANDSHAKE closing"), columns


@promise()
def what_the_codec_refuses_is_marked(world):
    four = lambda first, last: spec(4, first, last)  # noqa: E731
    chunk, some = b"\xcc" * 1024, b"\x01" + spec(4, 9, 9) + bytes(8)
    whole = handshake(0xA0A0A0A0)
    bad = {
        "cut short": [b"\x02" + four(0, 0) + b"1234", b"\x03" + four(0, 0)[:-1], b"\x04" + four(0, 1) + bytes(31)],
        "a CIRCLE of": [b"\x12\x11" + bytes(9 * 17)],
        "not known": [b"\x13", b"\x06\xff", b"\x0e" + four(0, 0) + b"\x02" + bytes(5)],
        "is empty": [b"\x03" + four(5, 4)],
        "beyond the longest log": [b"\x08" + four(0, 1 << 50), b"\x08" + four(1, (1 << 64) - 1), b"\x10" + struct.pack(">QQ", 1 << 40, 1)],
        "no node": [b"\x04" + four(0, 2) + bytes(32), b"\x04" + four(1, 2) + bytes(32), b"\x07" + four(2, 5) + bytes(72)],
        "a DATA of": [b"\x01" + four(1, 2) + bytes(8) + chunk],
        "without bytes": [some],
        "not the last": [some + chunk + b"\x06"],
        "a short chunk": [some + chunk + some + chunk[:-1]],
        "not the first": [b"\x06" + whole],
        "closing HANDSHAKE": [b"\0\0\0\0\0\0\1\1\1\xff"],
        "without a version": [b"\0" + b"1234" + b"\xff"],
        "after option": [b"\0" + b"1234" + b"\0\1\3\3\1\1\xff", b"\0" + b"1234" + b"\0\1\0\1\xff"],
        "is unassigned": [b"\0" + b"1234" + b"\0\1\3\4\xff", b"\0" + b"1234" + b"\0\1\4\5\xff", b"\0" + b"1234" + b"\0\1\6\5\xff"],
        "option 10": [b"\0" + b"1234" + b"\0\1\x0a\xff"],
        "without a chunk addressing": [b"\0" + b"1234" + b"\0\1\7" + bytes(8) + b"\xff"],
        "bitmap of 33": [b"\0" + b"1234" + b"\0\1\x08\x21" + bytes(33) + b"\xff"],
    }
    texts = [(text, body) for text, bodies in bad.items() for body in bodies]
    packets = [to(datagram(0x01020304, body)) for _, body in texts]
    packets += [to(datagram(0)), to(datagram(0, b"\x06")), to(b"\1\2\3")]
    texts += [("channel 0", b""), ("channel 0", b""), ("cut short", b"")]
    path = capture.written(world.dir / "bad.pcap", packets)
    rows = dissected(path, "frame.number", "_ws.expert.message", only="distd.malformed")
    assert [int(number[0]) for number, _ in rows] == list(range(1, len(packets) + 1)), rows
    for (expected, body), (_, said) in zip(texts, rows):
        assert expected in ";".join(said), (expected, body[:40], said)
    assert not dissected(path, "frame.number", only="_ws.lua.error"), "the dissector itself failed"


@promise()
def bytes_that_mean_nothing_never_break_the_dissector(world):
    """Every message and the beginnings of all of them, with each byte changed in turn."""
    parts = [handshake(0xA0A0A0A0), *messages(4, 32, 64), b"\x01" + spec(4, 9, 9) + bytes(1032)]
    packets = []
    for part in parts:
        head = min(len(part), 60)
        packets += [to(datagram(7, part[:length])) for length in range(head)]
        for at in range(head):
            for change in (0x01, 0x80, 0xFF):
                packets.append(to(datagram(7, part[:at] + bytes([part[at] ^ change]) + part[at + 1 :])))
    path = capture.written(world.dir / "mutants.pcap", packets)
    assert len(dissected(path, "frame.number")) == len(packets)
    assert not dissected(path, "_ws.lua.text", only=BROKEN)
    # The same in a capture that holds the first 70 bytes of each packet: what is not there is not malformed.
    cut = capture.written(world.dir / "cut.pcap", [to(datagram(7, parts[-1]))] * 3, snap=70)
    assert len(dissected(cut, "frame.number", only="distd.cut")) == 3
    assert not dissected(cut, "frame.number", only="distd.malformed || _ws.lua.error")


@promise()
def datagrams_that_the_kernel_cuts_are_told_apart(world):
    """A sender's capture shows a batch of datagrams as one packet (UDP_SEGMENT)."""
    data = [b"\x01" + spec(4, chunk, chunk) + struct.pack(">Q", 5) + bytes([chunk]) * 1024 for chunk in range(20)]
    batch = b"".join(datagram(0xC0DE, one) for one in data) + datagram(0xC0DE, b"\x03" + spec(4, 0, 3))
    path = capture.written(world.dir / "batch.pcap", [to(batch)])
    nothing_is_malformed(path)
    (length, channels, lengths), = dissected(path, "udp.length", "distd.channel", "distd.message.length")
    assert len(channels) == 21, channels
    read_to_the_end([(length, channels, lengths)])
    info, = dissected(path, "_ws.col.Info")
    assert "21 datagrams" in info[0][0], info


@promise()
def captures_without_a_handshake_are_read_by_the_preferences(world):
    data = b"\x01" + spec(2, 5, 5) + bytes(8) + b"\xcc" * 512
    proof = b"\x04" + spec(2, 4, 7) + bytes(20) + b"\x07" + spec(2, 4, 7) + struct.pack(">II", 3_970_000_000, 0) + bytes(96)
    path = capture.written(world.dir / "late.pcap", [to(datagram(9, proof, data), 9999)])
    assert not dissected(path, "frame.number"), "a guess at a foreign port"
    words = ["distd.addressing:32-bit chunk ranges", "distd.chunk:512", "distd.hash:20", "distd.signature:96"]
    path = capture.written(path, [to(datagram(9, proof, data))])
    rows = dissected(path, "udp.length", "distd.channel", "distd.message.length", preferences=words)
    read_to_the_end(rows)
    assert not dissected(path, "frame.number", only=BAD, preferences=words)
    assert dissected(path, "frame.number", only="distd.malformed"), "read by distd's own lengths it is no datagram"


@promise()
def the_script_is_lua_of_every_version_that_wireshark_brings(_world):
    """No operators and no library that only one of Lua 5.1 to 5.4 has."""
    text = pathlib.Path(capture.DISSECTOR).read_text(encoding="utf-8")
    code = "\n".join(line.split("--")[0] for line in text.splitlines())
    for word in ("bit32", "bit.", "//", ">>", "<<", "goto ", "math.type", "unpack(", "setfenv", "loadstring", "utf8."):
        assert word not in code, word
    assert subprocess.run(["tshark", "--version"], check=True, capture_output=True, text=True).stdout.count("Lua")
