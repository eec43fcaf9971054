//! What goes over the wire, against the text of RFC 7574 and the ways of older implementations.

use super::*;
use crate::ppspp::codec::{
    Addressing, Encoder, Handshake, HashFunction, IntegrityMethod, Message, MessageSet, Options,
    WireProfile, decode,
};
use crate::unit::ChunkRange;

const STRANGER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)), 9);

fn old_options(id: &ContentId) -> Options<'_> {
    Options {
        version: Some(1),
        minimum_version: Some(1),
        swarm_id: Some(id.as_bytes()),
        integrity: Some(IntegrityMethod::Merkle),
        hash_function: Some(HashFunction::Sha256),
        addressing: Some(Addressing::Chunk32),
        ..Options::default()
    }
}

fn datagram(channel: u32, messages: &[Message<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, ChannelId(channel), &WireProfile::STATIC, 1472);
    for message in messages {
        encoder.push(message).expect("it fits");
    }
    bytes
}

/// Hands a datagram of the stranger over, and gives what it is answered at once.
fn ask(engine: &mut StaticSwarm, now: Instant, question: &[u8]) -> Vec<Vec<u8>> {
    engine.handle_datagrams(now, STRANGER, question, question.len());
    answers(engine, now)
}

fn answers(engine: &mut StaticSwarm, now: Instant) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    while let Some(transmit) = engine.poll_transmit(now) {
        assert_eq!(transmit.to, STRANGER);
        answers.extend(transmit.datagrams().map(<[u8]>::to_vec));
    }
    answers
}

fn seeder(file: &[u8]) -> (StaticSwarm, ContentId, Instant) {
    let (tree, now) = (grown(MerkleFunction::Sha256, file), Instant::now());
    let (id, bytes) = (tree.id(), Some(file.len() as u64));
    let options = StaticOptions { rng_seed: [3; 32], id, bytes, tree: Some(tree) };
    (StaticSwarm::new(options, now).expect("a swarm"), id, now)
}

/// Opens a channel by hand; the seeder's id of it.
fn opened(engine: &mut StaticSwarm, id: &ContentId, now: Instant, options: Options<'_>) -> u32 {
    let _ = id;
    let source = ChannelId(77);
    let question = datagram(0, &[Message::Handshake(Handshake { source, options })]);
    let answer = ask(engine, now, &question);
    assert_eq!(answer.len(), 1);
    match decode(&answer[0], &WireProfile::STATIC).expect("a datagram").next() {
        Some(Message::Handshake(handshake)) => handshake.source.0,
        other => panic!("{other:?}"),
    }
}

// Shows C06, C07 (RFC 7574 3.1.1), C32 (RFC 7574 4.1.1), C33 (RFC 7574 5), C61 (RFC 7574 7.6).
#[test]
fn a_static_handshake_is_answered_in_kind_or_not_at_all() {
    let file = content(300_000, 1);
    let (mut engine, id, now) = seeder(&file);
    for modern in [false, true] {
        let supported = modern.then_some(MessageSet::STANDARD);
        let options =
            Options { chunk_bytes: modern.then_some(1024), supported, ..old_options(&id) };
        let source = ChannelId(5 + u32::from(modern));
        let question = datagram(0, &[Message::Handshake(Handshake { source, options })]);
        let answer = ask(&mut engine, now, &question);
        assert_eq!(answer.len(), 1);
        assert!(answer[0].len() <= question.len(), "no more than was asked");
        let messages: Vec<_> = decode(&answer[0], &WireProfile::STATIC).expect("valid").collect();
        let Message::Handshake(handshake) = messages[0] else { panic!("{messages:?}") };
        // Older implementations cannot read what they do not know.
        assert_eq!(handshake.options.chunk_bytes.is_some(), modern);
        assert_eq!(handshake.options.supported.is_some(), modern);
        assert_eq!(handshake.options.hash_function, Some(HashFunction::Sha256));
        assert_eq!(handshake.options.addressing, Some(Addressing::Chunk32));
        assert_eq!(handshake.options.discard_window, None);
        assert_eq!(messages[1], Message::Have(ChunkRange::new(0, 293).expect("all")));
    }
    let other: &[u8] = &[1; 32];
    let good = old_options(&id);
    let bad = [
        Options { swarm_id: Some(other), ..good },
        Options { swarm_id: None, ..good },
        Options { integrity: Some(IntegrityMethod::UnifiedMerkle), ..good },
        Options { hash_function: Some(HashFunction::Sha1), ..good },
        Options { addressing: Some(Addressing::Chunk64), ..good },
        Options { chunk_bytes: Some(4096), ..good },
        Options { minimum_version: Some(2), ..good },
    ];
    for (at, options) in (0..).zip(bad) {
        let source = ChannelId(100 + at);
        let question = datagram(0, &[Message::Handshake(Handshake { source, options })]);
        assert!(ask(&mut engine, now, &question).is_empty(), "{options:?}");
    }
}

#[test]
fn a_hundred_thousand_spoofed_handshakes_take_no_memory_and_get_no_more_than_they_sent() {
    let (mut engine, id, now) = seeder(&content(300_000, 1));
    let (mut sent, mut got) = (0, 0);
    for at in 0..100_000u32 {
        let source = ChannelId(at + 1);
        let question =
            datagram(0, &[Message::Handshake(Handshake { source, options: old_options(&id) })]);
        let from = SocketAddr::from((at.wrapping_mul(0x9e37_79b9).to_be_bytes(), 1000));
        engine.handle_datagrams(now, from, &question, question.len());
        sent += question.len();
        while let Some(transmit) = engine.poll_transmit(now) {
            got += transmit.payload.len();
        }
    }
    assert!(got <= sent && engine.channels.is_empty(), "{got} for {sent}");
    assert!(engine.half_open.len() <= crate::ppspp::engine::limits::HALF_OPEN_MAX);
}

// Shows C34 (RFC 7574 5), C42 (RFC 7574 5.6.2), C36 (RFC 7574 5.3), C20 (RFC 7574 8.6).
#[test]
fn peaks_come_first_then_uncles_from_the_top_then_the_chunk() {
    let file = content(7162, 2);
    let (mut engine, id, now) = seeder(&file);
    let channel = opened(&mut engine, &id, now, old_options(&id));
    let want = |start, end| Message::Request(ChunkRange::new(start, end).expect("some"));
    let mut sent = ask(&mut engine, now, &datagram(channel, &[want(0, 1)]));
    let branch = engine.poll_read().expect("a read");
    engine.handle_read(branch, Some(Bytes::from(file.clone())));
    sent.extend(answers(&mut engine, now));
    let nodes = |datagram: &[u8]| -> Vec<(u64, u64)> {
        let messages = decode(datagram, &WireProfile::STATIC).expect("valid");
        messages
            .filter_map(|message| match message {
                Message::Integrity { chunks, .. } => Some((chunks.start.0, chunks.end.0 - 1)),
                Message::Data { chunks, payload, .. } => {
                    let at = chunks.start.0 as usize * 1024;
                    assert_eq!(payload, &file[at..file.len().min(at + 1024)]);
                    None
                }
                _ => None,
            })
            .collect()
    };
    // RFC 7574 5.6.2: the peaks 3, 9, 12, then the uncles of chunk 0 within its peak: 5, 2.
    let last = sent.last().expect("a chunk");
    assert_eq!(nodes(last), [(0, 3), (4, 5), (6, 6), (2, 3), (1, 1)]);
    // Chunk 4 needs its sibling; chunk 6 is a peak; chunk 1 is known to be proved.
    let sent = ask(&mut engine, now, &datagram(channel, &[want(4, 5), want(6, 7), want(1, 2)]));
    let nodes: Vec<_> = sent.iter().map(|datagram| nodes(datagram)).collect();
    assert_eq!(nodes, [vec![(5, 5)], vec![], vec![]]);
}

#[test]
fn what_is_asked_for_again_comes_with_all_of_its_hashes() {
    let file = content(1 << 20, 3);
    let (mut engine, id, now) = seeder(&file);
    let channel = opened(&mut engine, &id, now, old_options(&id));
    let want = |start, end| Message::Request(ChunkRange::new(start, end).expect("some"));
    let count = |sent: &[Vec<u8>]| -> usize {
        let messages = sent.iter().flat_map(|d| decode(d, &WireProfile::STATIC).expect("valid"));
        messages.filter(|message| matches!(message, Message::Integrity { .. })).count()
    };
    ask(&mut engine, now, &datagram(channel, &[want(0, 2)]));
    let branch = engine.poll_read().expect("a read");
    engine.handle_read(branch, Some(Bytes::from(file[..BRANCH_BYTES].to_vec())));
    let first = answers(&mut engine, now);
    assert_eq!(count(&first), 1 + 10);
    let later = now + Duration::from_millis(300);
    let again = ask(&mut engine, later, &datagram(channel, &[want(0, 2)]));
    assert_eq!(count(&again), 1 + 10, "nothing was acknowledged");
    let acked = Message::Ack { chunks: ChunkRange::new(0, 1).expect("one"), delay_us: 5 };
    let third = ask(
        &mut engine,
        later + Duration::from_millis(300),
        &datagram(channel, &[acked, want(1, 2)]),
    );
    assert_eq!(count(&third), 0, "the sibling of what it has is known");
}

#[test]
fn an_initiator_that_is_not_answered_leaves_new_options_out_after_a_second() {
    let id = grown(MerkleFunction::Sha1, b"x").id();
    let mut now = Instant::now();
    let begin = now;
    let options = StaticOptions { rng_seed: [4; 32], id, bytes: None, tree: None };
    let mut engine = StaticSwarm::new(options, now).expect("a swarm");
    engine.connect(now, STRANGER);
    let mut seen = Vec::new();
    while now < begin + Duration::from_secs(8) {
        for datagram in answers(&mut engine, now) {
            let message = decode(&datagram, &WireProfile::STATIC).expect("valid").next();
            let Some(Message::Handshake(handshake)) = message else { panic!("{message:?}") };
            assert_eq!(
                handshake.options.chunk_bytes.is_some(),
                handshake.options.supported.is_some()
            );
            seen.push((now - begin, handshake.options.chunk_bytes.is_some()));
        }
        now = engine.poll_timeout().expect("another attempt");
        engine.handle_timeout(now);
    }
    let second = Duration::from_secs(1);
    assert!(seen.iter().filter(|(at, _)| *at < second).all(|(_, modern)| *modern), "{seen:?}");
    assert!(seen.iter().any(|(at, modern)| !modern && *at < 2 * second), "{seen:?}");
    assert!(seen.iter().any(|(at, modern)| *modern && *at > second), "{seen:?}");
}

#[test]
fn a_peer_with_other_parameters_is_told_goodbye_and_named() {
    let id = grown(MerkleFunction::Sha256, b"x").id();
    let now = Instant::now();
    let options = StaticOptions { rng_seed: [5; 32], id, bytes: None, tree: None };
    let mut engine = StaticSwarm::new(options, now).expect("a swarm");
    engine.connect(now, STRANGER);
    let first = answers(&mut engine, now);
    let Some(Message::Handshake(ours)) =
        decode(&first[0], &WireProfile::STATIC).expect("valid").next()
    else {
        panic!("no handshake");
    };
    let options = Options { hash_function: Some(HashFunction::Sha1), ..old_options(&id) };
    let answer =
        datagram(ours.source.0, &[Message::Handshake(Handshake { source: ChannelId(8), options })]);
    let goodbye = ask(&mut engine, now, &answer);
    let message = decode(&goodbye[0], &WireProfile::STATIC).expect("valid").next();
    assert!(matches!(message, Some(Message::Handshake(handshake)) if handshake.is_closing()));
    let mismatch = engine.peers()[0].mismatch.expect("it is named");
    assert_eq!((mismatch.option, mismatch.expected, mismatch.found), ("hash function", 2, Some(0)));
}

#[test]
fn a_glutton_of_a_static_swarm_is_choked_and_told_so_again() {
    let file = content(200_000, 4);
    let (mut engine, id, now) = seeder(&file);
    let channel = opened(&mut engine, &id, now, old_options(&id));
    // Every other chunk, from the end, so that nothing merges.
    let mut said = Vec::new();
    for _ in 0..100 {
        for part in (0..98)
            .map(|at| ChunkRange::new(2 * at, 2 * at + 1).expect("one"))
            .collect::<Vec<_>>()
            .chunks(90)
        {
            let messages: Vec<_> =
                part.iter().flat_map(|c| [Message::Cancel(*c), Message::Request(*c)]).collect();
            for messages in messages.chunks(100) {
                said.extend(ask(&mut engine, now, &datagram(channel, messages)));
            }
        }
    }
    let kinds = |said: &[Vec<u8>], wanted: &Message<'_>| {
        said.iter()
            .flat_map(|d| decode(d, &WireProfile::STATIC).expect("valid"))
            .filter(|m| m == wanted)
            .count()
    };
    assert!(kinds(&said, &Message::Choke) >= 2);
    let later = now + Duration::from_secs(1);
    engine.handle_timeout(later);
    assert_eq!(kinds(&answers(&mut engine, later), &Message::Unchoke), 1);
}

#[test]
fn a_later_handshake_does_not_change_what_chunks_are() {
    let id = grown(MerkleFunction::Sha256, b"x").id();
    let mut now = Instant::now();
    let options = StaticOptions { rng_seed: [5; 32], id, bytes: None, tree: None };
    let mut engine = StaticSwarm::new(options, now).expect("a swarm");
    engine.connect(now, STRANGER);
    let question = answers(&mut engine, now).remove(0);
    let message = decode(&question, &WireProfile::STATIC).expect("valid").next();
    let Some(Message::Handshake(handshake)) = message else { panic!("{message:?}") };
    let (ours, source) = (handshake.source.0, ChannelId(77));
    let answer = Message::Handshake(Handshake { source, options: old_options(&id) });
    ask(&mut engine, now, &datagram(ours, &[answer]));
    // Other addressing, and a chunk that this swarm's cannot name.
    let far = (1u64 << 40).to_be_bytes();
    let other = [&ours.to_be_bytes()[..], &[0, 0, 0, 0, 77, 6, 4, 0xff, 3], &far, &far].concat();
    let bad = engine.counters.bad_datagrams;
    for question in [[&ours.to_be_bytes()[..], &other[4..]].concat(), other] {
        ask(&mut engine, now, &question);
    }
    assert_eq!(engine.counters.bad_datagrams, bad + 2);
    // Nor one that no content has.
    let last = ChunkRange::new(u32::MAX.into(), 1 << 32).expect("one");
    ask(&mut engine, now, &datagram(ours, &[Message::Have(last)]));
    for _ in 0..20 {
        now += Duration::from_millis(250);
        engine.handle_timeout(now);
        for said in answers(&mut engine, now) {
            let asks = decode(&said, &WireProfile::STATIC).expect("valid");
            assert!(asks.into_iter().all(|message| !matches!(message, Message::Request(_))));
        }
    }
}

#[test]
fn a_request_for_more_than_is_queued_is_served_as_far_as_there_is_room() {
    let file = content(200_000, 6);
    let (mut engine, id, now) = seeder(&file);
    let channel = opened(&mut engine, &id, now, old_options(&id));
    let all = ChunkRange::new(0, u32::MAX.into()).expect("many");
    let said: Vec<_> = (0..3)
        .flat_map(|_| ask(&mut engine, now, &datagram(channel, &[Message::Request(all)])))
        .collect();
    let said = said.iter().flat_map(|d| decode(d, &WireProfile::STATIC).expect("valid"));
    assert!(!said.into_iter().any(|message| message == Message::Choke));
}

#[test]
fn requests_that_are_not_answered_are_made_again_before_long() {
    let file = content(100_000, 5);
    let tree = grown(MerkleFunction::Sha256, &file);
    let (id, mut now) = (tree.id(), Instant::now());
    let options = StaticOptions { rng_seed: [6; 32], id, bytes: Some(100_000), tree: None };
    let mut engine = StaticSwarm::new(options, now).expect("a swarm");
    engine.start(now);
    engine.connect(now, STRANGER);
    let first = answers(&mut engine, now);
    let Some(Message::Handshake(ours)) =
        decode(&first[0], &WireProfile::STATIC).expect("valid").next()
    else {
        panic!("no handshake");
    };
    let have = Message::Have(ChunkRange::new(0, 98).expect("all"));
    let handshake =
        Message::Handshake(Handshake { source: ChannelId(8), options: old_options(&id) });
    let begin = now;
    let mut asked = Vec::new();
    let mut said = ask(&mut engine, now, &datagram(ours.source.0, &[handshake, have]));
    while now < begin + Duration::from_secs(2) {
        for datagram in said {
            for message in decode(&datagram, &WireProfile::STATIC).expect("valid") {
                if let Message::Request(chunks) = message {
                    asked.push((now - begin, chunks.count()));
                }
            }
        }
        now = engine.poll_timeout().expect("it goes on");
        engine.handle_timeout(now);
        said = answers(&mut engine, now);
    }
    assert!(asked.len() >= 3 && asked[0].1 >= 64, "{asked:?}");
    assert!(asked[1].0 <= Duration::from_millis(300), "{asked:?}");
}
