"""A member of a static swarm as older implementations of RFC 7574 are, written after the RFC alone.

Nothing here is distd's: so that distd is not held against itself. It knows no options 8 and 9 and is silent to who
sends them, sends the hashes of a chunk in datagrams before it, acknowledges one chunk at a time, forgets requests
after 1.5 s, keeps no window but a fixed rate, and asks for chunks by timeouts.

  static_peer.py seed FILE PORT [--sha1] [--rate KIB_PER_S] [--lie data|hash|peaks|length] [--log FILE]
  static_peer.py get ID HOST PORT OUT [--seconds N]
"""

import argparse
import collections
import hashlib
import pathlib
import random
import select
import socket
import struct
import time

CHUNK = 1024
HANDSHAKE, DATA, ACK, HAVE, INTEGRITY, REQUEST, CANCEL, CHOKE, UNCHOKE = 0, 1, 2, 3, 4, 8, 9, 10, 11
FORGET_AFTER = 1.5
RETRY_AFTER = 0.4


class Tree:
    """Section 5.1: every node of the tree, as (layer, offset) -> hash."""

    def __init__(self, content, algorithm):
        self.algorithm = algorithm
        size = len(algorithm(b"").digest())
        self.empty = bytes(size)
        self.chunks = -(-len(content) // CHUNK)
        self.nodes = {}
        width = 1
        while width < self.chunks:
            width *= 2
        row = [algorithm(content[at : at + CHUNK]).digest() for at in range(0, len(content), CHUNK)]
        row += [self.empty] * (width - len(row))
        self.height = 0
        while True:
            self.nodes.update({(self.height, at): node for at, node in enumerate(row)})
            if len(row) == 1:
                break
            row = [self.parent(row[at], row[at + 1]) for at in range(0, len(row), 2)]
            self.height += 1
        self.root = row[0]

    def parent(self, left, right):
        return self.empty if left == right == self.empty else self.algorithm(left + right).digest()


def peaks_of(chunks):
    """Section 5.6.1: one filled node for each 1 of the number of chunks."""
    first, found = 0, []
    for layer in reversed(range(chunks.bit_length())):
        if chunks >> layer & 1:
            found.append((layer, first >> layer))
            first += 1 << layer
    return found


def span(node):
    layer, offset = node
    return offset << layer, ((offset + 1) << layer) - 1


def node_of(first, last):
    count = last - first + 1
    layer = count.bit_length() - 1
    assert count == 1 << layer and first % count == 0, (first, last)
    return layer, first >> layer


class Malformed(Exception):
    pass


def parse_options(data, at):
    """The options that were there before 8 and 9; any other cannot be skipped."""
    found = {}
    while True:
        code = data[at]
        at += 1
        if code == 255:
            return found, at
        if code in (0, 1, 3, 4, 6):
            found[code] = data[at]
            at += 1
        elif code == 2:
            (length,) = struct.unpack_from(">H", data, at)
            found[2] = data[at + 2 : at + 2 + length]
            at += 2 + length
        else:
            raise Malformed(f"option {code}")


def messages(data, hash_bytes):
    """(type, ...) of a datagram behind its channel."""
    at = 4
    while at < len(data):
        kind = data[at]
        at += 1
        if kind == HANDSHAKE:
            (source,) = struct.unpack_from(">I", data, at)
            options, at = parse_options(data, at + 4)
            yield kind, source, options
        elif kind == DATA:
            first, last, stamp = struct.unpack_from(">IIQ", data, at)
            yield kind, first, last, stamp, data[at + 16 :]
            return
        elif kind == ACK:
            first, last, delay = struct.unpack_from(">IIQ", data, at)
            at += 16
            yield kind, first, last, delay
        elif kind in (HAVE, REQUEST, CANCEL):
            first, last = struct.unpack_from(">II", data, at)
            at += 8
            yield kind, first, last
        elif kind == INTEGRITY:
            first, last = struct.unpack_from(">II", data, at)
            yield kind, first, last, data[at + 8 : at + 8 + hash_bytes]
            at += 8 + hash_bytes
        elif kind in (CHOKE, UNCHOKE, 6):
            yield (kind,)
        else:
            raise Malformed(f"message {kind}")


def spec(kind, first, last):
    return struct.pack(">BII", kind, first, last)


class Member:
    def __init__(self, algorithm, root):
        self.algorithm, self.root = algorithm, root
        self.hash_bytes = len(root)

    def handshake(self, source, initiator):
        minimum = b"\x01\x01" if initiator else b""
        swarm = b"\x02" + struct.pack(">H", len(self.root)) + self.root if initiator else b""
        function = 0 if self.hash_bytes == 20 else 2
        return struct.pack(">BI", HANDSHAKE, source) + b"\x00\x01" + minimum + swarm + bytes([3, 1, 4, function, 6, 2, 255])

    def agrees(self, options):
        function = 0 if self.hash_bytes == 20 else 2
        return options.get(3) == 1 and options.get(4) == function and options.get(6) == 2 and options.get(2, self.root) == self.root


class Seeder(Member):
    def __init__(self, content, algorithm, port, rate, lie, log):
        self.tree = Tree(content, algorithm)
        super().__init__(algorithm, self.tree.root)
        self.content, self.rate, self.lie, self.log = content, rate, lie, log
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind(("0.0.0.0", port))
        self.peers = {}
        self.counts = collections.Counter()

    def run(self):
        budget, last = 0.0, time.monotonic()
        while True:
            busy = any(peer["asked"] for peer in self.peers.values())
            readable, _, _ = select.select([self.socket], [], [], 0.002 if busy else 0.2)
            if readable:
                for _ in range(64):
                    try:
                        data, sender = self.socket.recvfrom(2048, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        break
                    try:
                        self.on_datagram(data, sender)
                    except (Malformed, IndexError, struct.error) as error:
                        self.counts[f"dropped: {error}"] += 1
            now = time.monotonic()
            budget = min(budget + (now - last) * self.rate * 1024, 16384)
            last = now
            while budget > 0 and self.send_one(now):
                budget -= CHUNK
            if self.log:
                path = pathlib.Path(self.log + ".new")
                path.write_text(repr(dict(self.counts)))
                path.rename(self.log)

    def on_datagram(self, data, sender):
        (channel,) = struct.unpack_from(">I", data)
        found = list(messages(data, self.hash_bytes))
        if channel == 0:
            kind, source, options = found[0]
            # A datagram 1 of who sends more than it was answered is not served: no heavy payload here.
            if kind == HANDSHAKE and source and options.get(2) == self.root and self.agrees(options):
                own = random.randrange(1, 1 << 32)
                self.peers[own] = {"to": sender, "channel": source, "asked": collections.deque(), "known": set(), "sent": set()}
                answer = struct.pack(">I", source) + self.handshake(own, False) + spec(HAVE, 0, self.tree.chunks - 1)
                self.socket.sendto(answer, sender)
            return
        peer = self.peers.get(channel)
        if not peer or peer["to"] != sender:
            return
        for message in found:
            if message[0] == HANDSHAKE and message[1] == 0:
                del self.peers[channel]
                return
            if message[0] == REQUEST:
                for chunk in range(message[1], min(message[2], self.tree.chunks - 1) + 1):
                    peer["asked"].append((chunk, time.monotonic()))
                    # What is asked for again has not arrived, nor what went before it.
                    if chunk in peer["sent"]:
                        peer["sent"].clear()
                self.counts["requests"] += 1
            elif message[0] == CANCEL:
                gone = range(message[1], message[2] + 1)
                peer["asked"] = collections.deque((c, at) for c, at in peer["asked"] if c not in gone)
            elif message[0] in (ACK, HAVE):
                assert message[2] < self.tree.chunks, message
                peer["known"].update(range(message[1], message[2] + 1))
                self.counts["acks" if message[0] == ACK else "haves"] += 1

    def send_one(self, now):
        for own, peer in list(self.peers.items()):
            while peer["asked"]:
                chunk, at = peer["asked"].popleft()
                if now - at > FORGET_AFTER:
                    self.counts["forgotten"] += 1
                    continue
                self.send(peer, chunk)
                # Its turn is over.
                self.peers[own] = self.peers.pop(own)
                return True
        return False

    def send(self, peer, chunk):
        out, to = struct.pack(">I", peer["channel"]), peer["to"]
        proof = [] if peer["known"] else list(peaks_of(self.tree.chunks))
        tops, node, uncles = set(peaks_of(self.tree.chunks)), (0, chunk), []
        while node not in tops:
            first, last = span((node[0] + 1, node[1] // 2))
            if any(c in peer["known"] or c in peer["sent"] for c in range(first, min(last, first + 4096) + 1)):
                break
            uncles.append((node[0], node[1] ^ 1))
            node = (node[0] + 1, node[1] // 2)
        proof += reversed(uncles)
        wire = b""
        for number, node in enumerate(proof):
            first, last = span(node)
            value = self.tree.nodes[node]
            if self.lie == "hash" and number == len(proof) - 1 and chunk % 7 == 3:
                value = bytes(len(value) - 1) + b"\x01"
            if self.lie == "peaks" and not peer["known"] and number == 0:
                value = bytes(len(value) - 1) + b"\x02"
            if self.lie == "length" and not peer["known"] and number == 0:
                last = (1 << 22) - 1
                value = self.root
            wire += spec(INTEGRITY, first, last) + value
        each = 9 + self.hash_bytes
        for at in range(0, len(wire), 30 * each):
            # In datagrams before the chunk's.
            self.socket.sendto(out + wire[at : at + 30 * each], to)
        data = self.content[chunk * CHUNK : (chunk + 1) * CHUNK]
        if self.lie == "data" and chunk % 5 == 2:
            data = data[:-1] + bytes([data[-1] ^ 1])
        stamp = int(time.time() * 1e6)
        self.socket.sendto(out + spec(DATA, chunk, chunk) + struct.pack(">Q", stamp) + data, to)
        peer["sent"].add(chunk)
        self.counts["chunks"] += 1


class Getter(Member):
    """Fetches everything, chunk by chunk, from one peer."""

    def __init__(self, root, host, port):
        algorithm = hashlib.sha1 if len(root) == 20 else hashlib.sha256
        super().__init__(algorithm, root)
        self.to = (socket.gethostbyname(host), port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.settimeout(0.05)
        self.own, self.channel = random.randrange(1, 1 << 32), None
        self.offered, self.trusted, self.chunks, self.have = {}, {}, None, {}
        self.available = 0
        self.first_order = None

    def run(self, seconds):
        end, asked = time.monotonic() + seconds, {}
        while time.monotonic() < end:
            now = time.monotonic()
            if self.channel is None:
                self.socket.sendto(bytes(4) + self.handshake(self.own, True), self.to)
            elif self.chunks is not None and len(self.have) == self.chunks:
                self.socket.sendto(struct.pack(">IBI", self.channel, HANDSHAKE, 0) + b"\xff", self.to)
                return b"".join(self.have[chunk] for chunk in range(self.chunks))
            else:
                # The first chunk alone, until its peaks have told how many there are.
                wanted = [0] if self.chunks is None else [c for c in range(self.chunks) if c not in self.have][:64]
                late = [c for c in wanted if now - asked.get(c, -9) > RETRY_AFTER]
                for chunk in late:
                    asked[chunk] = now
                    self.socket.sendto(struct.pack(">I", self.channel) + spec(REQUEST, chunk, chunk), self.to)
            self.listen(0.1)
        raise SystemExit(f"after {seconds} s: {len(self.have)} of {self.chunks} chunks")

    def listen(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                data, sender = self.socket.recvfrom(2048)
            except socket.timeout:
                return
            assert sender == self.to and len(data) <= 1472, (sender, len(data))
            (channel,) = struct.unpack_from(">I", data)
            assert channel == self.own, "a datagram for another channel"
            kinds = []
            for message in messages(data, self.hash_bytes):
                kinds.append(message[0])
                self.on_message(*message)
            if DATA in kinds and len(self.have) % 16 == 0:
                return

    def on_message(self, kind, *rest):
        if kind == HANDSHAKE and rest[0]:
            assert self.agrees(rest[1]), rest
            self.channel = rest[0]
        elif kind == HAVE:
            self.available = max(self.available, rest[1] + 1)
        elif kind == INTEGRITY:
            node = node_of(rest[0], rest[1])
            self.offered[node] = rest[2]
        elif kind == DATA:
            self.on_data(rest[0], rest[1], rest[3], rest[2])

    def on_data(self, first, last, payload, stamp):
        assert first == last, "one chunk"
        if self.chunks is None:
            self.find_length()
        if self.chunks is None or first in self.have:
            return
        if self.verifies(first, payload):
            self.have[first] = payload
            delay = (int(time.time() * 1e6) - stamp) % (1 << 64)
            acked = spec(ACK, first, first) + struct.pack(">Q", delay)
            self.socket.sendto(struct.pack(">I", self.channel) + acked, self.to)

    def find_length(self):
        """Section 5.6: the peaks lie side by side from chunk 0 on and fold to the root."""
        peaks, end = [], 0
        while True:
            here = [node for node in self.offered if span(node)[0] == end and (not peaks or node[0] < peaks[-1][0])]
            if not here:
                break
            peaks.append(max(here))
            end = span(peaks[-1])[1] + 1
        if not peaks:
            return
        empty = bytes(self.hash_bytes)
        left, node = list(peaks), peaks[-1]
        value = self.offered[left.pop()]
        height = (end - 1).bit_length()
        known = {peak: self.offered[peak] for peak in peaks}
        while node[0] < height:
            if node[1] % 2 == 0:
                value = self.algorithm(value + empty).digest()
            else:
                value = self.algorithm(self.offered[left.pop()] + value).digest()
            node = (node[0] + 1, node[1] // 2)
            known[node] = value
        if value == self.root and not left:
            self.chunks, self.trusted = end, known
            self.trusted[(height, 0)] = self.root

    def verifies(self, chunk, payload):
        node, value, path = (0, chunk), self.algorithm(payload).digest(), {}
        while node not in self.trusted:
            path[node] = value
            beside = (node[0], node[1] ^ 1)
            other = self.trusted.get(beside, self.offered.get(beside))
            if other is None:
                return False
            path[beside] = other
            both = value + other if node[1] % 2 == 0 else other + value
            node, value = (node[0] + 1, node[1] // 2), self.algorithm(both).digest()
        if self.trusted[node] != value:
            return False
        self.trusted.update(path)
        return True


def main():
    words = argparse.ArgumentParser()
    kinds = words.add_subparsers(dest="kind", required=True)
    seed = kinds.add_parser("seed")
    seed.add_argument("file")
    seed.add_argument("port", type=int)
    seed.add_argument("--sha1", action="store_true")
    seed.add_argument("--rate", type=float, default=8192)
    seed.add_argument("--lie")
    seed.add_argument("--log")
    get = kinds.add_parser("get")
    get.add_argument("id")
    get.add_argument("host")
    get.add_argument("port", type=int)
    get.add_argument("out")
    get.add_argument("--seconds", type=float, default=60)
    given = words.parse_args()
    if given.kind == "seed":
        algorithm = hashlib.sha1 if given.sha1 else hashlib.sha256
        seeder = Seeder(pathlib.Path(given.file).read_bytes(), algorithm, given.port, given.rate, given.lie, given.log)
        print(seeder.root.hex(), flush=True)
        seeder.run()
    else:
        content = Getter(bytes.fromhex(given.id), given.host, given.port).run(given.seconds)
        pathlib.Path(given.out).write_bytes(content)


if __name__ == "__main__":
    main()
