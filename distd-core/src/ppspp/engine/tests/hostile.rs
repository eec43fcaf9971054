//! Dishonest, broken and silent peers: reads end right, nothing grows, nobody honest is blamed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;

use crate::keys::OriginKey;
use crate::ppspp::codec::{
    ChannelId, Encoder, Handshake, HashFunction, Message, Options, Seat, SeatList, WireClass,
    WireProfile, decode,
};
use crate::ppspp::engine::limits::{
    AWAITED_BLOCKS_MAX, ERRANDS_MAX, HALF_OPEN_MAX, PLACES_MAX, STRAYS_MAX,
};
use crate::ppspp::engine::{Class, DownReason, Event, Role, handshake};
use crate::sim::{FINE, Log, Net, Weather};
use crate::tree::{NodeHash, VerifiedMunro};
use crate::unit::{BlockIndex, BlockRange, ChunkRange, MunroIndex};

pub(super) fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), count)
}

pub(super) fn downs(net: &Net, at: usize) -> Vec<(SocketAddr, DownReason)> {
    let events = net.nodes[at].events.iter();
    events
        .filter_map(|event| match event {
            Event::PeerDown { address, reason, .. } => Some((*address, *reason)),
            _ => None,
        })
        .collect()
}

/// A peer written by hand: an address, a channel, and whatever it says.
pub(super) struct Stranger {
    pub(super) address: SocketAddr,
    pub(super) remote: ChannelId,
}

impl Stranger {
    /// Opens a channel to `at` as RFC 7574 says.
    pub(super) fn open(net: &mut Net, at: usize, last_octet: u8) -> Self {
        Self::open_at(net, at, SocketAddr::from((Ipv4Addr::new(192, 0, 2, last_octet), 9)))
    }

    /// The same from an address of one's choice.
    pub(super) fn open_at(net: &mut Net, at: usize, address: SocketAddr) -> Self {
        let (to, id) = (net.nodes[at].address, net.nodes[at].log.key.id().swarm_id());
        net.nodes[at].keep_sent = true;
        net.inject(address, to, &handshake::datagram_1(ChannelId(99), &id));
        net.run_for(Duration::from_millis(50));
        let answer = net.nodes[at].sent.iter().rev().find(|(_, to, _)| *to == address);
        let (.., answer) = answer.expect("an answer");
        let first = decode(answer, &WireProfile::LIVE).expect("valid").next();
        let Some(Message::Handshake(Handshake { source, .. })) = first else {
            panic!("no handshake: {first:?}");
        };
        let stranger = Self { address, remote: source };
        stranger.say(net, at, &[]);
        net.run_for(Duration::from_millis(50));
        stranger
    }

    pub(super) fn say(&self, net: &mut Net, at: usize, messages: &[Message<'_>]) {
        let mut datagram = Vec::new();
        let mut encoder = Encoder::new(&mut datagram, self.remote, &WireProfile::LIVE, 1472);
        for message in messages {
            encoder.push(message).expect("fits");
        }
        let to = net.nodes[at].address;
        net.inject(self.address, to, &datagram);
    }
}

#[test]
fn false_seats_and_wishes_that_may_not_be_passed_on_cost_the_origin_little() {
    let log = Log::new(4);
    let mut net = Net::new(77, FINE);
    let origin = net.add_origin(&log);
    let nodes: Vec<usize> = (0..6).map(|_| net.add(&log, None)).collect();
    for node in &nodes {
        for other in nodes.iter().chain([&origin]) {
            net.connect(*node, *other);
        }
    }
    net.run_for(Duration::from_millis(300));
    let mut liars = Vec::new();
    for node in &nodes {
        liars.push((*node, Stranger::open_at(&mut net, *node, "10.9.9.9:9".parse().expect("one"))));
    }
    let place = Message::Place { id: 5, level: 255 };
    let everything = ChunkRange::new(0, 4096).expect("not empty");
    let wish = Message::Want {
        chunks: everything,
        class: WireClass::Background,
        deadline_ms: 60_000,
        hops: 1,
    };
    let say = |net: &mut Net, round: u64| {
        let seats = (0..4).map(|i| Seat { id: 1000 * round + i, hops: 1 });
        let seats: SeatList = [Seat { id: 5, hops: 0 }].into_iter().chain(seats).collect();
        for (node, liar) in &liars {
            liar.say(net, *node, &[place, Message::Circle(seats.as_seats()), wish]);
        }
    };
    say(&mut net, 1);
    net.run_for(Duration::from_secs(1));
    let sent =
        |net: &Net| net.nodes[origin].engine.counters(net.nodes[origin].swarm).data_sent_bytes;
    // What it asks of everybody each fetches as far as it is its own turn.
    let bytes = log.blocks().byte_len();
    assert!(sent(&net) <= bytes + bytes / 4, "{} of {bytes}", sent(&net));
    let now = net.now;
    let fetches: Vec<_> = nodes
        .iter()
        .map(|node| (*node, net.nodes[*node].fetch(now, log.blocks(), Class::Background)))
        .collect();
    for round in 2..60 {
        say(&mut net, round);
        net.run_for(Duration::from_millis(500));
    }
    for (node, fetch) in fetches {
        assert_eq!(net.nodes[node].outcome(fetch), Some(true), "{node}");
    }
}

#[test]
fn a_liar_is_closed_at_its_first_lie_and_the_honest_peer_delivers() {
    for seed in 0..10 {
        let log = Log::new(2);
        let mut net = Net::new(seed, FINE);
        let (liar, honest) = (net.add_origin(&log), net.add_origin(&log));
        let node = net.add(&log, None);
        net.nodes[liar].tamper = Some(|datagram, rng| {
            if datagram.len() > 1000 && rng.random_bool(0.05) {
                let at = rng.random_range(40..datagram.len());
                datagram[at] ^= 1 << rng.random_range(0..8);
            }
        });
        net.connect(node, liar);
        net.connect(node, honest);
        let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
        net.run_until_fetched(node, fetch);
        for (run, _) in net.nodes[node].verified() {
            assert_eq!(run.bytes(), log.run(run.bin()).bytes());
        }
        let liar = net.nodes[liar].address;
        let downs = downs(&net, node);
        assert!(
            matches!(downs[..], [(address, DownReason::Lied { .. })] if address == liar),
            "{downs:?}"
        );
        let counters = net.nodes[node].engine.counters(net.nodes[node].swarm);
        assert_eq!(counters.false_runs, 1);
    }
}

#[test]
fn the_only_source_is_tried_again_after_a_bit_flipped_on_the_way() {
    for seed in 0..5 {
        let log = Log::new(2);
        let mut net = Net::new(seed, FINE);
        let only = net.add_origin(&log);
        let node = net.add(&log, None);
        net.nodes[only].tamper = Some(|datagram, rng| {
            if datagram.len() > 1000 && rng.random_bool(0.001) {
                datagram[500] ^= 1;
            }
        });
        net.connect(node, only);
        let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
        net.run_until_fetched(node, fetch);
        for (run, _) in net.nodes[node].verified() {
            assert_eq!(run.bytes(), log.run(run.bin()).bytes());
        }
    }
}

#[test]
fn false_hashes_are_a_lie_too() {
    for seed in 0..10 {
        let log = Log::new(1);
        let mut net = Net::new(seed, FINE);
        let (liar, honest) = (net.add_origin(&log), net.add_origin(&log));
        let node = net.add(&log, None);
        net.nodes[liar].tamper = Some(|datagram, rng| {
            // A proof: the munro, its signature, uncles.
            if datagram.len() > 300 && datagram.len() < 1000 {
                let uncle = 4 + 49 + 89 + 49 * rng.random_range(0..3usize);
                datagram[uncle + 20] ^= 1;
            }
        });
        net.connect(node, liar);
        net.run_for(Duration::from_millis(100));
        let fetch = net.nodes[node].fetch(net.now, blocks(5, 1), Class::Waited);
        net.run_for(Duration::from_millis(12));
        net.connect(node, honest);
        net.run_until_fetched(node, fetch);
        let liar = net.nodes[liar].address;
        assert!(
            matches!(downs(&net, node)[..], [(address, DownReason::Lied { .. })] if address == liar)
        );
    }
}

#[test]
fn a_silent_source_gives_way_to_another() {
    let log = Log::new(2);
    let mut net = Net::new(3, FINE);
    let (silent, honest) = (net.add_origin(&log), net.add_origin(&log));
    let node = net.add(&log, None);
    // It shakes hands, says HAVE and never sends data.
    net.nodes[silent].tamper = Some(|datagram, _| {
        if datagram.len() > 200 {
            datagram.clear();
        }
    });
    net.connect(node, silent);
    net.run_for(Duration::from_millis(100));
    net.connect(node, honest);
    net.run_for(Duration::from_millis(100));
    for i in 0..50 {
        let fetch = net.nodes[node].fetch(net.now, blocks(i * 7, 1), Class::Waited);
        let took = net.run_until_fetched(node, fetch);
        assert!(took < Duration::from_millis(400), "read {i} took {took:?}");
    }
    assert!(downs(&net, node).iter().all(|(address, _)| *address != net.nodes[honest].address));
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    let took = net.run_until_fetched(node, fetch);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_source_that_dies_midway_gives_way_to_another() {
    let log = Log::new(4);
    let mut net = Net::new(4, FINE);
    let (one, other) = (net.add_origin(&log), net.add_origin(&log));
    let node = net.add(&log, None);
    net.connect(node, one);
    net.connect(node, other);
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    net.run_for(Duration::from_millis(80));
    assert!(net.nodes[node].verified().count() > 0);
    net.nodes[one].dead = true;
    let took = net.run_until_fetched(node, fetch);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn an_origin_that_restarts_is_found_again_at_once() {
    let log = Log::new(4);
    let mut net = Net::new(5, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    net.run_for(Duration::from_millis(80));
    net.restart(origin, 77);
    let took = net.run_until_fetched(node, fetch);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_false_announcement_is_met_with_miss_and_asked_elsewhere() {
    let log = Log::new(1);
    let mut net = Net::new(6, FINE);
    let (broken, honest) = (net.add_origin(&log), net.add_origin(&log));
    let node = net.add(&log, None);
    net.nodes[broken].disk_fails = true;
    net.connect(node, broken);
    net.connect(node, honest);
    net.run_for(Duration::from_millis(100));
    for class in [Class::Waited, Class::Background] {
        let range = if class == Class::Waited { blocks(3, 9) } else { log.blocks() };
        let fetch = net.nodes[node].fetch(net.now, range, class);
        let took = net.run_until_fetched(node, fetch);
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    assert!(downs(&net, node).is_empty(), "nobody is blamed");
    // What is released is missed, too.
    let now = net.now;
    let swarm = net.nodes[honest].swarm;
    net.nodes[honest].engine.release(now, swarm, log.blocks());
    let fetch = net.nodes[node].fetch(net.now, blocks(0, 1), Class::Waited);
    net.run_for(Duration::from_secs(31));
    assert_eq!(net.nodes[node].outcome(fetch), Some(false));
}

#[test]
fn spoofed_handshakes_get_no_more_than_they_send_and_leave_nothing() {
    let log = Log::new(1);
    let mut net = Net::new(7, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    let id = log.key.id().swarm_id();
    let now = net.now;
    let mut asked: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for i in 0..50_000u32 {
        let from = SocketAddr::from((Ipv4Addr::from(i.wrapping_mul(2_654_435_761)), 7574));
        let mut question = handshake::datagram_1(ChannelId(i + 1), &id);
        if i % 7 == 0 {
            // Garbage behind the handshake, or a datagram cut short.
            question.truncate(question.len() - 1);
        }
        *asked.entry(from).or_default() += question.len();
        net.nodes[origin].engine.handle_datagram(now, from, &question);
        while let Some(transmit) = net.nodes[origin].engine.poll_transmit(now) {
            let budget = asked.get_mut(&transmit.to).expect("an answer to nobody");
            *budget = budget.checked_sub(transmit.payload.len()).expect("more than it sent");
        }
    }
    let counters = net.nodes[origin].engine.engine_counters();
    assert!(counters.half_open <= HALF_OPEN_MAX as u64);
    assert_eq!(counters.channels, 0);
    // An honest peer still joins.
    net.connect(node, origin);
    let fetch = net.nodes[node].fetch(net.now, blocks(0, 1), Class::Waited);
    assert!(net.run_until_fetched(node, fetch) < Duration::from_millis(300));
}

// Shows C07 (RFC 7574 3.1.1).
#[test]
fn options_that_are_not_the_swarms_are_met_with_silence() {
    let log = Log::new(1);
    let mut net = Net::new(8, FINE);
    let origin = net.add_origin(&log);
    let from = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
    let id = log.key.id().swarm_id();
    let other = OriginKey::from_seed(&[1; 32]).id().swarm_id();
    let mut sha256 = handshake::datagram_1(ChannelId(5), &id);
    let at = sha256.iter().position(|byte| *byte == HashFunction::Blake3.code()).expect("0xB3");
    sha256[at] = HashFunction::Sha256.code();
    let mut random = vec![0; 100];
    net.rng.fill(&mut random[4..]);
    let options = Options { version: Some(1), ..Options::default() };
    let mut bare = Vec::new();
    let handshake = Message::Handshake(Handshake { source: ChannelId(7), options });
    let mut encoder = Encoder::new(&mut bare, ChannelId(0), &WireProfile::LIVE, 1472);
    encoder.push(&handshake).expect("fits");
    let no_swarm = handshake::datagram_1(ChannelId(5), &other);
    let mut no_channel = handshake::datagram_1(ChannelId(5), &id);
    no_channel[5..9].fill(0);
    let bad = [no_swarm, sha256, random, bare, no_channel, vec![], vec![0; 4], vec![1; 3]];
    for datagram in bad {
        net.nodes[origin].engine.handle_datagram(net.now, from, &datagram);
        assert_eq!(net.nodes[origin].engine.poll_transmit(net.now), None, "{datagram:?}");
    }
    assert_eq!(net.nodes[origin].engine.engine_counters().half_open, 0);
}

#[test]
fn two_engines_fed_garbage_fall_silent() {
    for seed in 0..20 {
        let log = Log::new(1);
        let weather = Weather { duplication: 0.2, ..FINE };
        let mut net = Net::new(seed, weather);
        let (one, other) = (net.add_origin(&log), net.add(&log, None));
        net.connect(other, one);
        net.connect(one, other);
        net.nodes[one].keep_sent = true;
        net.run_for(Duration::from_millis(60));
        // Everything that was said, with bits flipped, in both directions.
        let said = std::mem::take(&mut net.nodes[one].sent);
        let (a, b) = (net.nodes[one].address, net.nodes[other].address);
        for (_, _, datagram) in said.iter().cycle().take(300) {
            let mut datagram = datagram.clone();
            for _ in 0..net.rng.random_range(0..4) {
                let at = net.rng.random_range(0..datagram.len());
                datagram[at] ^= 1 << net.rng.random_range(0..8);
            }
            net.inject(a, b, &datagram);
            net.inject(b, a, &datagram);
        }
        net.run_for(Duration::from_secs(150));
        let sent = |net: &Net| -> u64 {
            net.nodes.iter().map(|node| node.engine.counters(node.swarm).sent_datagrams).sum()
        };
        let before = sent(&net);
        net.run_for(Duration::from_secs(60));
        let after = sent(&net) - before;
        assert!(after <= 40, "seed {seed}: {after} datagrams in a minute of silence");
    }
}

#[test]
fn data_that_nobody_asked_for_closes_the_channel() {
    let log = Log::new(1);
    let mut net = Net::new(9, FINE);
    let node = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, node, 1);
    let payload = [7; 1024];
    let chunks = ChunkRange::new(0, 1).expect("one");
    let flood = Message::Data { chunks, timestamp_us: 0, payload: &payload };
    for _ in 0..STRAYS_MAX {
        stranger.say(&mut net, node, &[flood]);
    }
    net.run_for(Duration::from_millis(100));
    assert_eq!(downs(&net, node), []);
    stranger.say(&mut net, node, &[flood]);
    net.run_for(Duration::from_millis(100));
    assert_eq!(downs(&net, node), [(stranger.address, DownReason::Flooded)]);
    assert_eq!(net.nodes[node].engine.engine_counters().channels, 0);
}

// Shows C47 (RFC 7574 6.1.2.1), C53 (RFC 7574 6.1.2.4).
#[test]
fn a_forged_munro_closes_the_channel_and_what_is_no_news_is_not_checked() {
    let log = Log::new(1);
    let mut net = Net::new(10, FINE);
    let node = net.add_origin(&log);
    let say = |net: &mut Net, stranger: &Stranger, munro: &VerifiedMunro, forged: bool| {
        let mut signed = munro.signed();
        signed.signature[5] ^= u8::from(forged);
        let chunks = signed.munro.bin().chunks();
        let messages = [
            Message::Integrity { chunks, hash: &signed.hash.0 },
            Message::SignedIntegrity { chunks, time: signed.time, signature: &signed.signature },
        ];
        stranger.say(net, node, &messages);
        net.run_for(Duration::from_millis(20));
    };
    let stranger = Stranger::open(&mut net, node, 1);
    let munro = |index: u64| {
        let hash = NodeHash([index as u8; 32]);
        VerifiedMunro::sign(&log.key, MunroIndex(index), hash, Log::time(index))
    };
    for index in 1..100 {
        say(&mut net, &stranger, &munro(index), false);
    }
    let newest = |net: &Net| {
        net.nodes[node].events.iter().filter(|e| matches!(e, Event::Newest { .. })).count()
    };
    assert_eq!(newest(&net), 99, "as many as the origin signs");
    net.run_for(Duration::from_secs(61));
    // Not newer, and the same again: not looked at.
    say(&mut net, &stranger, &munro(3), true);
    say(&mut net, &stranger, &munro(8), false);
    assert_eq!(downs(&net, node), []);
    say(&mut net, &stranger, &munro(150), true);
    assert_eq!(downs(&net, node), [(stranger.address, DownReason::ForgedMunro)]);
    assert_eq!(newest(&net), 99);
}

#[test]
fn a_fork_is_kept_as_evidence() {
    let log = Log::new(1);
    let mut net = Net::new(11, FINE);
    let node = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, node, 1);
    let forked =
        VerifiedMunro::sign(&log.key, MunroIndex(0), NodeHash([9; 32]), Log::time(5)).signed();
    let chunks = forked.munro.bin().chunks();
    let messages = [
        Message::Integrity { chunks, hash: &forked.hash.0 },
        Message::SignedIntegrity { chunks, time: forked.time, signature: &forked.signature },
    ];
    stranger.say(&mut net, node, &messages);
    net.run_for(Duration::from_millis(50));
    let evidence = net.nodes[node].events.iter().find_map(|event| match event {
        Event::Fork { known, claimed, .. } => Some((*known, *claimed)),
        _ => None,
    });
    assert_eq!(evidence, Some((log.newest().signed(), forked)));
}

// Shows C28 (RFC 7574 3.9).
#[test]
fn a_glutton_is_choked_and_its_queue_dropped() {
    let log = Log::new(1);
    let mut net = Net::new(12, FINE);
    let node = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, node, 1);
    let now = net.now;
    let swarm = net.nodes[node].swarm;
    net.nodes[node].engine.hold(now, swarm, blocks(0, 1 << 30));
    net.nodes[node].sent.clear();
    let everything = ChunkRange::new(0, 1 << 32).expect("many");
    stranger.say(&mut net, node, &[Message::Request(everything)]);
    net.run_for(Duration::from_millis(20));
    let choked = net.nodes[node].sent.iter().any(|(.., datagram)| {
        let mut messages = decode(datagram, &WireProfile::LIVE).expect("valid");
        messages.any(|message| message == Message::Choke)
    });
    assert!(choked);
    net.run_for(Duration::from_secs(1));
    let unchoked = net.nodes[node].sent.iter().any(|(.., datagram)| {
        let mut messages = decode(datagram, &WireProfile::LIVE).expect("valid");
        messages.any(|message| message == Message::Unchoke)
    });
    assert!(unchoked);
    let counters = net.nodes[node].engine.counters(net.nodes[node].swarm);
    assert_eq!(counters.data_sent_bytes, 0);
}

#[test]
fn a_peer_that_understands_no_extension_is_served() {
    let log = Log::new(1);
    let mut net = Net::new(13, FINE);
    let node = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, node, 1);
    let chunks = ChunkRange::new(16, 32).expect("a granule");
    stranger.say(&mut net, node, &[Message::Request(chunks)]);
    net.run_for(Duration::from_millis(100));
    let sent = &net.nodes[node].sent;
    let data = sent.iter().filter(|(.., datagram)| datagram.len() == 1053).count();
    assert_eq!(data, 16);
}

#[test]
fn nothing_is_left_of_peers_that_come_and_go() {
    let log = Log::new(1);
    let mut net = Net::new(14, FINE);
    let node = net.add_origin(&log);
    for i in 0..200 {
        let stranger = Stranger::open(&mut net, node, i as u8);
        let chunks = ChunkRange::new(0, 1024).expect("some");
        stranger.say(&mut net, node, &[Message::Request(chunks), Message::Have(chunks)]);
        if i % 2 == 0 {
            net.run_for(Duration::from_millis(20));
            stranger.say(&mut net, node, &[Message::Handshake(Handshake::closing())]);
        }
    }
    net.run_for(Duration::from_secs(400));
    let counters = net.nodes[node].engine.engine_counters();
    assert_eq!(counters.channels, 0);
    assert_eq!(net.nodes[node].engine.read_bytes, 0);
    assert!(net.nodes[node].engine.reads.is_empty());
    assert!(net.nodes[node].engine.by_channel_id.is_empty());
}

// Shows C27 (RFC 7574 3.9).
#[test]
fn a_choke_sends_runs_elsewhere_and_an_unchoke_brings_them_back() {
    let log = Log::new(1);
    let mut net = Net::new(15, FINE);
    let node = net.add(&log, None);
    let stranger = Stranger::open(&mut net, node, 1);
    let all = ChunkRange::new(0, 1024).expect("some");
    stranger.say(&mut net, node, &[Message::Have(all)]);
    net.run_for(Duration::from_millis(20));
    let asked = |net: &mut Net| {
        let sent = std::mem::take(&mut net.nodes[node].sent);
        let wants = sent.iter().filter(|(_, to, _)| *to == stranger.address);
        let wants = wants.flat_map(|(.., datagram)| {
            decode(datagram, &WireProfile::LIVE).expect("valid").collect::<Vec<_>>()
        });
        wants.filter(|message| matches!(message, Message::Want { .. })).count()
    };
    let fetch = net.nodes[node].fetch(net.now, blocks(0, 1), Class::Waited);
    net.run_for(Duration::from_millis(10));
    assert_eq!(asked(&mut net), 1);
    stranger.say(&mut net, node, &[Message::Choke]);
    net.run_for(Duration::from_millis(10));
    asked(&mut net);
    net.run_for(Duration::from_millis(500));
    // RFC 7574 3.9: a choked peer MUST NOT send new requests.
    assert_eq!(asked(&mut net), 0);
    stranger.say(&mut net, node, &[Message::Unchoke]);
    net.run_for(Duration::from_millis(10));
    assert_eq!(asked(&mut net), 1);
    stranger.say(&mut net, node, &[Message::Choke]);
    net.run_for(Duration::from_millis(10));
    let honest = net.add_origin(&log);
    net.connect(node, honest);
    assert!(net.run_until_fetched(node, fetch) < Duration::from_millis(50));
}

#[test]
fn a_source_that_drips_is_hedged() {
    let log = Log::new(1);
    let mut net = Net::new(16, FINE);
    let (slow, honest) = (net.add_origin(&log), net.add_origin(&log));
    let node = net.add(&log, None);
    // One chunk in a hundred gets through, so that something always arrives.
    net.nodes[slow].tamper = Some(|datagram, rng| {
        if datagram.len() == 1053 && rng.random_bool(0.99) {
            datagram.clear();
        }
    });
    net.connect(node, slow);
    net.run_for(Duration::from_millis(100));
    net.connect(node, honest);
    net.run_for(Duration::from_millis(100));
    let mut slowest = Duration::ZERO;
    for i in 0..32 {
        let fetch = net.nodes[node].fetch(net.now, blocks(i * 4, 4), Class::Waited);
        slowest = slowest.max(net.run_until_fetched(node, fetch));
    }
    assert!(slowest < Duration::from_millis(300), "{slowest:?}");
}

/// The stranger says that it is a node.
fn stand(stranger: &Stranger, net: &mut Net, at: usize) {
    stranger.say(net, at, &[Message::Place { id: 77, level: 255 }]);
}

/// A wish for `blocks`.
fn wish(blocks: BlockRange, class: WireClass, deadline_ms: u32) -> Message<'static> {
    let chunks = blocks.chunks().expect("blocks");
    Message::Want { chunks, class, deadline_ms, hops: 3 }
}

/// Blocks of which `at` has told the stranger that it does not fetch them.
fn missed(net: &Net, at: usize, stranger: &Stranger) -> BTreeSet<u64> {
    let sent = net.nodes[at].sent.iter().filter(|(_, to, _)| *to == stranger.address);
    let messages =
        sent.flat_map(|(.., datagram)| decode(datagram, &WireProfile::LIVE).expect("ok"));
    let misses = messages.filter_map(|message| match message {
        Message::Miss(chunks) => Some(chunks.start.0 / 4..chunks.end.0.div_ceil(4)),
        _ => None,
    });
    misses.flatten().collect()
}

#[test]
fn wishes_of_a_peer_never_keep_readers_here_from_fetching() {
    let log = Log::new(4);
    let mut net = Net::new(30, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    net.run_for(Duration::from_millis(100));
    let stranger = Stranger::open(&mut net, node, 1);
    stand(&stranger, &mut net, node);
    net.nodes[origin].disk_fails = true;
    for round in 0..300u64 {
        let wishes: Vec<_> = (0..50u64)
            .map(|i| match i % 5 {
                0 => wish(blocks(2000 + round * 50 + i, 1), WireClass::Waited, 60_000),
                1 => wish(blocks(round * 3, 1), WireClass::Waited, 60_000),
                2 => wish(blocks(0, 64), WireClass::Background, 60_000),
                _ => wish(blocks(0, 64), WireClass::Waited, 60_000),
            })
            .collect();
        stranger.say(&mut net, node, &wishes);
        net.run_for(Duration::from_millis(2));
    }
    net.nodes[origin].disk_fails = false;
    let fetch = net.nodes[node].fetch(net.now, blocks(901, 4), Class::Waited);
    let took = net.run_until_fetched(node, fetch);
    assert!(took < Duration::from_secs(1), "{took:?}");
    net.run_for(Duration::from_secs(62));
    let ended = |event: &&Event| matches!(event, Event::Fetched { .. } | Event::Failed { .. });
    let ended = net.nodes[node].events.iter().filter(ended).count();
    assert!(ended <= ERRANDS_MAX / 2, "{ended} fetches for a peer that wished a few blocks");
    assert!(missed(&net, node, &stranger).contains(&2000), "behind the end of the log");
}

#[test]
fn a_wish_in_vain_is_answered_and_makes_room_for_others() {
    let log = Log::new(18);
    let mut net = Net::new(31, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    net.run_for(Duration::from_millis(100));
    let stranger = Stranger::open(&mut net, node, 1);
    stand(&stranger, &mut net, node);
    net.nodes[origin].dead = true;
    let all = blocks(0, AWAITED_BLOCKS_MAX);
    stranger.say(&mut net, node, &[wish(all, WireClass::Background, 300)]);
    net.run_for(Duration::from_millis(100));
    assert!(missed(&net, node, &stranger).is_empty(), "it is being sought");
    stranger.say(&mut net, node, &[wish(blocks(4200, 3), WireClass::Background, 300)]);
    net.run_for(Duration::from_millis(100));
    let too_many = missed(&net, node, &stranger);
    assert_eq!(too_many, (4200..4203).collect::<BTreeSet<u64>>());
    net.run_for(Duration::from_millis(400));
    assert_eq!(missed(&net, node, &stranger).len() as u64, AWAITED_BLOCKS_MAX + 3);
    net.nodes[node].sent.clear();
    net.nodes[origin].dead = false;
    stranger.say(&mut net, node, &[wish(all, WireClass::Background, 5000)]);
    net.run_for(Duration::from_secs(4));
    assert!(missed(&net, node, &stranger).is_empty());
    assert!(net.nodes[node].stored.len() >= AWAITED_BLOCKS_MAX);
}

#[test]
fn who_says_that_it_is_the_origin_makes_nobody_wait() {
    let log = Log::new(4);
    let mut net = Net::new(32, FINE);
    let (origin, relay) = (net.add_origin(&log), net.add_as(&log, None, Role::Relay));
    net.connect(relay, origin);
    net.run_for(Duration::from_millis(100));
    let stranger = Stranger::open(&mut net, relay, 1);
    // The level that it claims is that of the origin, whom nobody has dialled here.
    stranger.say(&mut net, relay, &[Message::Place { id: 5, level: 0 }]);
    let before = net.nodes[relay].sent.len();
    let fetch = net.nodes[relay].fetch(net.now, blocks(100, 1), Class::Waited);
    assert!(
        net.run_until_fetched(relay, fetch) < Duration::from_millis(150),
        "nobody waits for it"
    );
    let sent = net.nodes[relay].sent[before..].iter().filter(|(_, to, _)| *to == stranger.address);
    let wants = sent.filter(|(.., datagram)| {
        let messages = decode(datagram, &WireProfile::LIVE).expect("valid");
        messages.into_iter().any(|message| matches!(message, Message::Want { .. }))
    });
    assert_eq!(wants.count(), 0, "nor asks it for anything");
}

#[test]
fn who_tells_one_place_after_the_other_is_sent_away() {
    let log = Log::new(4);
    let mut net = Net::new(33, FINE);
    let node = net.add_origin(&log);
    let stranger = Stranger::open(&mut net, node, 1);
    for level in 0..=PLACES_MAX as u8 {
        stranger.say(&mut net, node, &[Message::Place { id: 5, level }]);
    }
    net.run_for(Duration::from_millis(50));
    let gone = |event: &Event| matches!(event, Event::PeerDown { reason: DownReason::Flooded, .. });
    assert!(net.nodes[node].events.iter().any(gone));
}

#[test]
fn a_relay_that_is_cut_off_says_so_at_once() {
    let log = Log::new(4);
    let mut net = Net::new(34, FINE);
    let (origin, relay) = (net.add_origin(&log), net.add_as(&log, None, Role::Relay));
    net.connect(relay, origin);
    net.run_for(Duration::from_millis(100));
    let stranger = Stranger::open(&mut net, relay, 1);
    stand(&stranger, &mut net, relay);
    net.nodes[origin].dead = true;
    net.run_for(Duration::from_secs(200));
    net.nodes[relay].sent.clear();
    let again = Stranger::open(&mut net, relay, 2);
    stand(&again, &mut net, relay);
    again.say(&mut net, relay, &[wish(blocks(0, 64), WireClass::Background, 30_000)]);
    net.run_for(Duration::from_millis(500));
    assert_eq!(missed(&net, relay, &again).len(), 64);
    again.say(&mut net, relay, &[wish(blocks(64, 64), WireClass::Background, 30_000)]);
    net.run_for(Duration::from_millis(500));
    assert_eq!(missed(&net, relay, &again).len(), 128, "nor does it take another time");
}
