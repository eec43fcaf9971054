//! The duties of RFC 7574, looked at on the wire. `docs/protocol.md` lists which test shows which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::hostile::{Stranger, blocks, downs};
use crate::limits::{DATAGRAM_BYTES_MAX, MUNRO_LAYER};
use crate::ppspp::codec::{ChannelId, Message, WireProfile, decode, destination};
use crate::ppspp::engine::{Class, DownReason};
use crate::sim::{FINE, Line, Log, Net, Weather};
use crate::unit::{Bin, ChunkRange};

/// A datagram that somebody sent.
struct Said {
    at: Instant,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Said {
    fn channel(&self) -> ChannelId {
        destination(&self.bytes).expect("a channel")
    }

    fn messages(&self) -> Vec<Message<'_>> {
        decode(&self.bytes, &WireProfile::LIVE).expect("every datagram is well-formed").collect()
    }
}

/// An origin, a node that fetches a log of two munros from it, a second node that fetches it from the
/// first: all that they say, in order.
fn session(seed: u64, weather: Weather) -> (Net, Vec<Said>) {
    let log = Log::new(2);
    let mut net = Net::new(seed, weather);
    let (origin, first, second) = (net.add_origin(&log), net.add(&log, None), net.add(&log, None));
    for node in &mut net.nodes {
        node.keep_sent = true;
    }
    net.connect(first, origin);
    net.run_for(Duration::from_millis(200));
    let block = net.nodes[first].fetch(net.now, blocks(77, 1), Class::Waited);
    net.run_until_fetched(first, block);
    let all = net.nodes[first].fetch(net.now, log.blocks(), Class::Background);
    net.run_until_fetched(first, all);
    net.connect(second, first);
    net.run_for(Duration::from_millis(500));
    let all = net.nodes[second].fetch(net.now, log.blocks(), Class::Background);
    net.run_until_fetched(second, all);
    net.run_for(Duration::from_secs(2));
    let (now, swarm) = (net.now, net.nodes[first].swarm);
    net.nodes[first].engine.remove_swarm(now, swarm);
    net.run_for(Duration::from_millis(100));
    let mut said: Vec<Said> = Vec::new();
    for node in &mut net.nodes {
        let from = node.address;
        let sent = std::mem::take(&mut node.sent).into_iter();
        said.extend(sent.map(|(at, to, bytes)| Said { at, from, to, bytes }));
    }
    said.sort_by_key(|said| said.at);
    (net, said)
}

const BAD: Weather = Weather { loss: 0.02, duplication: 0.02, ..FINE };

// Shows C05 C06 C08 C10 C12 (RFC 7574 3.1.1), C11 (RFC 7574 8.4), C14 (RFC 7574 3.11), C52 (RFC
// 7574 6.1.2.4), C58 (RFC 7574 7.2), C59 (RFC 7574 7.4), C60 (RFC 7574 7.5), C63 (RFC 7574 7.10),
// C64 (RFC 7574 7.11), C66 (RFC 7574 8.1).
#[test]
fn channels_open_and_close_as_the_rfc_says() {
    for (seed, weather) in [(1, FINE), (2, BAD), (3, BAD)] {
        let (net, said) = session(seed, weather);
        let mut ids = BTreeSet::new();
        // Who has proved to whom that it gets what is sent to it.
        let mut echoed: BTreeSet<(SocketAddr, SocketAddr)> = BTreeSet::new();
        let mut greeted: BTreeMap<(SocketAddr, SocketAddr), usize> = BTreeMap::new();
        for datagram in &said {
            let (from, to) = (datagram.from, datagram.to);
            let messages = datagram.messages();
            // C66: one IP packet.
            assert!(datagram.bytes.len() <= DATAGRAM_BYTES_MAX);
            let heavy = |message: &Message<'_>| {
                !matches!(message, Message::Handshake(_) | Message::Place { .. } | Message::Have(_))
            };
            match messages.first() {
                Some(Message::Handshake(bye)) if bye.is_closing() => {
                    // C11: the peer's channel, ours 0, no option but the version.
                    assert_ne!(datagram.channel(), ChannelId(0));
                    assert_eq!(messages.len(), 1);
                }
                Some(Message::Handshake(hello)) => {
                    // C14: not zero, and another one for each end of each channel.
                    assert_ne!(hello.source, ChannelId(0));
                    ids.insert((from, hello.source));
                    // C06: RFC 7574 3.1.1: datagrams 1 and 2 carry nothing heavy.
                    assert!(!messages.iter().any(heavy), "{messages:?}");
                    let options = &hello.options;
                    // C58, C60, C63, C64: what each side must say.
                    assert!(options.version == Some(1) && options.integrity.is_some());
                    assert!(options.signature_algorithm.is_some() && options.addressing.is_some());
                    assert!(options.discard_window.is_some() && options.supported.is_some());
                    assert!(options.chunk_bytes.is_some() && options.hash_function.is_some());
                    if datagram.channel() == ChannelId(0) {
                        // C05, C59: the initiator names the swarm, once, and the least version.
                        assert!(options.swarm_id.is_some() && options.minimum_version == Some(1));
                        greeted.insert((from, to), datagram.bytes.len());
                    } else {
                        // C08: an answer, on the initiator's channel; S01: not longer than the question.
                        let question = greeted.get(&(to, from)).expect("it was asked");
                        assert!(datagram.bytes.len() <= *question);
                        echoed.insert((from, to));
                    }
                }
                _ => {
                    // C10: more than a handshake goes only to who has echoed our channel id. The
                    // initiator echoes the responder's with its first datagram after the answer.
                    assert_ne!(datagram.channel(), ChannelId(0));
                    assert!(echoed.contains(&(to, from)) || echoed.contains(&(from, to)));
                    if !echoed.contains(&(to, from)) {
                        let proved = said.iter().any(|other| {
                            other.at <= datagram.at
                                && (other.from, other.to) == (to, from)
                                && other.channel() != ChannelId(0)
                        });
                        assert!(proved, "{from} to {to}: {messages:?}");
                    }
                }
            }
        }
        assert_eq!(ids.len(), 4, "two channels have four ids: {ids:?}");
        let distinct: BTreeSet<ChannelId> = ids.iter().map(|(_, id)| *id).collect();
        assert_eq!(distinct.len(), 4);
        // C12: who leaves says so to both of its peers.
        let first = net.nodes[1].address;
        let byes = said.iter().filter(|datagram| {
            let messages = datagram.messages();
            let bye = matches!(messages[..], [Message::Handshake(bye)] if bye.is_closing());
            datagram.from == first && bye
        });
        assert_eq!(byes.map(|datagram| datagram.to).collect::<BTreeSet<_>>().len(), 2);
    }
}

// Shows C13 (RFC 7574 12.1.2), C52 (RFC 7574 6.1.2.4).
#[test]
fn an_answer_is_answered_at_once() {
    let (net, said) = session(4, FINE);
    let (origin, first) = (net.nodes[0].address, net.nodes[1].address);
    let second_datagram = said.iter().find(|d| d.from == origin).expect("datagram 2");
    let third = said.iter().filter(|d| d.from == first && d.to == origin).nth(1);
    let third = third.expect("datagram 3");
    // C13: RFC 7574 12.1.2: at once, when datagram 2 is there.
    assert_eq!(third.at, second_datagram.at + FINE.delay);
    assert_ne!(third.channel(), ChannelId(0));
    // C52: the rightmost munro and its signature, in the first datagram after the handshake.
    let fourth = said.iter().filter(|d| d.from == origin).nth(1).expect("datagram 4");
    let messages = fourth.messages();
    let signed = messages.iter().find_map(|message| match message {
        Message::SignedIntegrity { chunks, .. } => Some(*chunks),
        _ => None,
    });
    assert_eq!(signed, Some(net.nodes[0].log.newest().munro().bin().chunks()));
}

// Shows C20 C21 (RFC 7574 8.6), C22 (RFC 7574 3.4), C23 C41 (RFC 7574 5.4), C35 (RFC 7574 5.2),
// C37 (RFC 7574 5.3), C50 C51 (RFC 7574 6.1.2.3), C67 (RFC 7574 8.1).
#[test]
fn data_comes_with_its_proof_and_is_acknowledged() {
    for (seed, weather) in [(5, FINE), (6, BAD), (7, BAD)] {
        let (net, said) = session(seed, weather);
        let mut hashes: BTreeSet<(SocketAddr, SocketAddr, Bin)> = BTreeSet::new();
        let mut signed = BTreeSet::new();
        let mut sent: BTreeMap<(SocketAddr, SocketAddr), BTreeSet<u64>> = BTreeMap::new();
        let mut acknowledged: BTreeMap<(SocketAddr, SocketAddr), BTreeSet<u64>> = BTreeMap::new();
        for datagram in &said {
            let link = (datagram.from, datagram.to);
            let messages = datagram.messages();
            let layers: Vec<u32> = messages.iter().filter_map(|m| layer_of(m)).collect();
            // C41: hashes of a block's proof, tallest first. (A datagram may prove several runs.)
            let munros = layers.iter().filter(|layer| **layer == MUNRO_LAYER).count();
            if munros == 1 && layers.len() == 9 {
                assert!(layers.is_sorted_by(|a, b| a >= b), "{layers:?}");
            }
            for (at, message) in messages.iter().enumerate() {
                match message {
                    Message::Integrity { chunks, .. } => {
                        // C23: a node of the tree.
                        let bin = Bin::from_chunks(*chunks).expect("a node");
                        hashes.insert((link.0, link.1, bin));
                        if bin.layer() == MUNRO_LAYER {
                            // C50: a munro's hash and its signature, side by side.
                            let next = messages.get(at + 1);
                            assert!(
                                matches!(next, Some(Message::SignedIntegrity { chunks: of, .. }) if of == chunks),
                                "{next:?}"
                            );
                        }
                    }
                    Message::SignedIntegrity { chunks, .. } => {
                        signed.insert((link.0, link.1, *chunks));
                    }
                    Message::Data { chunks, payload, .. } => {
                        // C20, C21, C67: one whole chunk, at the end.
                        assert_eq!((chunks.count(), payload.len()), (1, 1024));
                        assert_eq!(at + 1, messages.len());
                        let chunk = chunks.start.0;
                        let munro = Bin::from_chunks(*chunks).and_then(Bin::munro).expect("one");
                        let of = munro.bin().chunks();
                        // C51: RFC 7574 6.1.2.3: the signed munro before its first DATA.
                        assert!(signed.contains(&(link.0, link.1, of)), "{chunk}");
                        sent.entry(link).or_default().insert(chunk);
                    }
                    Message::Ack { chunks, .. } => {
                        // C22: only of what was sent.
                        let sent = sent.get(&(link.1, link.0)).expect("something was sent");
                        for chunk in chunks.start.0..chunks.end.0 {
                            assert!(sent.contains(&chunk), "an ACK of {chunk}, which was not sent");
                        }
                        let acked = acknowledged.entry((link.1, link.0)).or_default();
                        acked.extend(chunks.start.0..chunks.end.0);
                    }
                    _ => {}
                }
            }
        }
        let chunks: u64 = net.nodes[0].log.blocks().count * 4;
        let (origin, first, second) =
            (net.nodes[0].address, net.nodes[1].address, net.nodes[2].address);
        for link in [(origin, first), (first, second)] {
            let sent = sent.get(&link).map_or(0, |set| set.len() as u64);
            assert_eq!(sent, chunks, "{link:?}");
            assert_eq!(acknowledged.get(&link).map_or(0, |set| set.len() as u64), chunks);
        }
    }
}

fn layer_of(message: &Message<'_>) -> Option<u32> {
    match message {
        Message::Integrity { chunks, .. } => Bin::from_chunks(*chunks).map(Bin::layer),
        _ => None,
    }
}

// Shows C16 C18 C19 (RFC 7574 3.2), C17 (RFC 7574 4.3.1).
#[test]
fn what_is_held_is_told_to_who_lacks_it_and_only_then() {
    let (net, said) = session(8, FINE);
    let (origin, first, second) =
        (net.nodes[0].address, net.nodes[1].address, net.nodes[2].address);
    let haves = |from: SocketAddr, to: SocketAddr| -> Vec<ChunkRange> {
        let link = said.iter().filter(move |d| d.from == from && d.to == to);
        let have = |message: &Message<'_>| match message {
            Message::Have(chunks) => Some(*chunks),
            _ => None,
        };
        link.flat_map(|d| d.messages().iter().filter_map(have).collect::<Vec<_>>()).collect()
    };
    // C19: RFC 7574 3.2: not to peers that have everything.
    assert!(haves(first, origin).is_empty());
    // C16, C17: all that it has, as one interval.
    let whole = ChunkRange::new(0, net.nodes[0].log.blocks().count * 4).expect("not empty");
    assert!(haves(first, second).contains(&whole), "{:?}", haves(first, second));
    assert!(haves(second, first).iter().all(|chunks| chunks.end.0 <= whole.end.0));
    // C18: the initiator's first datagram announces nothing.
    let opening = said.iter().find(|d| d.from == second).expect("datagram 1");
    assert_eq!(opening.messages().len(), 1);
}

// Shows C24 (RFC 7574 3.7), C26 (RFC 7574 3.8).
#[test]
fn requests_are_served_in_order_and_a_have_or_cancel_ends_them() {
    let log = Log::new(1);
    let mut net = Net::new(9, FINE);
    let origin = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, origin, 1);
    let granule = |at: u64| ChunkRange::new(at * 16, at * 16 + 16).expect("not empty");
    let requests: Vec<Message<'_>> =
        [9, 3, 5, 30, 31, 7].map(|at| Message::Request(granule(at))).into();
    let begin = net.nodes[origin].sent.len();
    // C26: RFC 7574 3.8: a HAVE cancels its sender's requests; S16: a CANCEL of nothing is ignored.
    let ends = [
        Message::Have(granule(30)),
        Message::Cancel(granule(31)),
        Message::Cancel(granule(60)),
        Message::Unchoke,
    ];
    stranger.say(&mut net, origin, &[&requests[..], &ends[..]].concat());
    let (mut seen, mut served) = (begin, Vec::new());
    for _ in 0..20 {
        net.run_for(Duration::from_millis(20));
        let sent =
            net.nodes[origin].sent[seen..].iter().filter_map(|(_, _, datagram)| {
                match decode(datagram, &WireProfile::LIVE).expect("valid").last()? {
                    Message::Data { chunks, .. } => Some(chunks),
                    _ => None,
                }
            });
        let arrived: Vec<ChunkRange> = sent.collect();
        seen = net.nodes[origin].sent.len();
        served.extend(arrived.iter().map(|chunks| chunks.start.0 / 16));
        // The biggest complete interval round each chunk: its granule, once that is there.
        for granule in arrived.chunk_by(|a, b| a.end == b.start) {
            let (first, last) = (granule[0].start.0, granule[granule.len() - 1].end.0);
            let chunks = ChunkRange::new(first - first % 16, last).expect("not empty");
            stranger.say(&mut net, origin, &[Message::Ack { chunks, delay_us: 0 }]);
        }
    }
    served.dedup();
    // C24: RFC 7574 3.7: in the order in which they came.
    assert_eq!(served, [9, 3, 5, 7]);
}

// Shows C09 (RFC 7574 3.1.1).
#[test]
fn a_wrong_channel_is_dropped_and_the_right_one_goes_on() {
    let log = Log::new(1);
    let mut net = Net::new(10, FINE);
    let origin = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, origin, 1);
    let to = net.nodes[origin].address;
    let mut wrong = ChannelId(stranger.remote.0 ^ 1).0.to_be_bytes().to_vec();
    wrong.extend([8; 17]);
    let elsewhere = SocketAddr::from(([192, 0, 2, 77], 9));
    let mut foreign = stranger.remote.0.to_be_bytes().to_vec();
    foreign.push(10);
    let begin = net.nodes[origin].sent.len();
    for _ in 0..100 {
        // C09: RFC 7574 3.1.1(3): MUST discard; S03: a channel belongs to one address.
        net.inject(stranger.address, to, &wrong);
        net.inject(elsewhere, to, &foreign);
    }
    net.run_for(Duration::from_millis(100));
    let quiet = net.nodes[origin].sent[begin..].iter().all(|(_, to, _)| *to != elsewhere);
    assert!(quiet, "who sends to a foreign channel gets no answer");
    let counters = net.nodes[origin].engine.engine_counters();
    assert_eq!((counters.unknown_channel, counters.wrong_address), (100, 100));
    let chunks = ChunkRange::new(0, 4).expect("not empty");
    stranger.say(&mut net, origin, &[Message::Request(chunks)]);
    net.run_for(Duration::from_millis(50));
    let served = net.nodes[origin].sent[begin..].iter().filter(|(_, _, d)| d.len() > 1000).count();
    assert_eq!(served, 4);
}

// Shows C01 C02 (RFC 7574 3).
#[test]
fn who_sends_malformed_datagrams_is_left_and_none_of_them_counts() {
    let log = Log::new(1);
    let mut net = Net::new(11, FINE);
    let origin = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, origin, 1);
    let to = net.nodes[origin].address;
    // A good REQUEST before a message of no known type.
    let mut bad = stranger.remote.0.to_be_bytes().to_vec();
    bad.push(8);
    bad.extend(0u64.to_be_bytes());
    bad.extend(3u64.to_be_bytes());
    bad.push(200);
    let begin = net.nodes[origin].sent.len();
    for _ in 0..20 {
        net.inject(stranger.address, to, &bad);
        net.run_for(Duration::from_millis(20));
    }
    // C01: nothing of such a datagram takes effect. C02: the peer is left.
    assert!(net.nodes[origin].sent[begin..].iter().all(|(_, _, d)| d.len() < 1000));
    assert_eq!(downs(&net, origin), [(stranger.address, DownReason::Malformed)]);
}

// Shows C25 (RFC 7574 3.8).
#[test]
fn who_was_asked_before_is_told_that_it_is_no_longer_wanted() {
    let log = Log::new(1);
    let mut net = Net::new(12, FINE);
    let (slow, quick) = (net.add_origin(&log), net.add_origin(&log));
    let node = net.add(&log, None);
    net.connect(node, slow);
    net.run_for(Duration::from_millis(200));
    // So slow that a second source is asked, and delivers first.
    net.nodes[slow].up = Some(Line::new(3000.0, net.now));
    net.nodes[node].keep_sent = true;
    let fetch = net.nodes[node].fetch(net.now, blocks(0, 4), Class::Waited);
    net.run_for(Duration::from_millis(10));
    net.connect(node, quick);
    net.run_until_fetched(node, fetch);
    net.run_for(Duration::from_millis(100));
    let slow = net.nodes[slow].address;
    let cancelled = net.nodes[node].sent.iter().any(|(_, to, datagram)| {
        let mut messages = decode(datagram, &WireProfile::LIVE).expect("valid");
        *to == slow && messages.any(|message| matches!(message, Message::Cancel(_)))
    });
    // C25: RFC 7574 3.8: SHOULD be sent to who was asked for the same.
    assert!(cancelled);
}
