//! Honest peers: everything arrives, right, once, soon.

use std::collections::BTreeSet;
use std::time::Duration;

use super::net::{FINE, Log, Net, Weather};
use crate::ppspp::engine::{Class, Event, FetchError};
use crate::unit::{BlockIndex, BlockRange};

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), count)
}

#[test]
fn a_cold_block_costs_two_round_trips_and_five_datagrams() {
    let log = Log::new(1);
    let mut net = Net::new(1, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.nodes[origin].keep_sent = true;
    net.connect(node, origin);
    let fetch = net.nodes[node].fetch(net.now, blocks(77, 1), Class::Waited);
    let took = net.run_until_fetched(node, fetch);
    assert_eq!(took, FINE.delay * 4, "two round trips");
    let (run, _) = net.nodes[node].verified().next().expect("one run");
    assert_eq!(run.bytes(), log.run(run.bin()).bytes());
    // Datagram 2, then (apart from the tune-in) the proof and four chunks.
    let big = net.nodes[origin].sent.iter().filter(|(.., datagram)| datagram.len() > 300).count();
    assert_eq!(big, 5);

    net.nodes[origin].sent.clear();
    let fetch = net.nodes[node].fetch(net.now, blocks(200, 1), Class::Waited);
    assert_eq!(net.run_until_fetched(node, fetch), FINE.delay * 2, "one round trip when open");
}

fn transfer(seed: u64, munros: u64, weather: Weather, class: Class) -> Net {
    let log = Log::new(munros);
    let mut net = Net::new(seed, weather);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), class);
    net.run_until_fetched(node, fetch);
    let mut got = BTreeSet::new();
    for (run, _) in net.nodes[node].verified() {
        assert_eq!(run.bytes(), log.run(run.bin()).bytes());
        for block in run.bin().blocks().expect("blocks").iter() {
            assert!(got.insert(block), "each run is handed out once");
        }
    }
    assert_eq!(got.len() as u64, log.blocks().count);
    net
}

#[test]
fn a_whole_log_arrives_over_a_perfect_link_without_a_byte_too_many() {
    let net = transfer(1, 8, FINE, Class::Background);
    let counters = net.nodes[1].engine.counters(net.nodes[1].swarm);
    assert_eq!(counters.data_received_bytes, 8 << 20);
    assert_eq!((counters.duplicate_bytes, counters.rerequested_runs), (0, 0));
    assert_eq!(net.nodes[0].engine.counters(net.nodes[0].swarm).losses, 0);
    // 63 hashes and a signature a munro, control messages, and headers.
    let overhead = counters.received_bytes as f64 / f64::from(8 << 20);
    assert!(overhead < 1.04, "{overhead}");
}

#[test]
fn a_whole_log_arrives_whatever_the_weather() {
    for (seed, loss, duplication, jitter) in [
        (1, 0.01, 0.0, 0),
        (2, 0.1, 0.0, 0),
        (3, 0.0, 0.1, 3),
        (4, 0.05, 0.05, 10),
        (5, 0.1, 0.1, 2),
    ] {
        let jitter = Duration::from_millis(jitter);
        let weather = Weather { loss, duplication, jitter, ..FINE };
        for class in [Class::Waited, Class::Background] {
            let net = transfer(seed, 3, weather, class);
            let downs: Vec<_> = net.nodes[1]
                .events
                .iter()
                .filter(|event| matches!(event, Event::PeerDown { .. }))
                .collect();
            println!("seed {seed} {class:?}: {:?} {downs:?}", net.now - net.start);
            println!("{:?}", net.nodes[1].engine.counters(net.nodes[1].swarm));
        }
    }
}

#[test]
fn a_fetch_without_peers_fails_at_its_deadline() {
    let log = Log::new(1);
    let mut net = Net::new(1, FINE);
    let node = net.add(&log, None);
    let fetch = net.nodes[node].fetch(net.now, blocks(0, 4), Class::Waited);
    net.run_for(Duration::from_secs(29));
    assert_eq!(net.nodes[node].outcome(fetch), None);
    net.run_for(Duration::from_secs(1));
    let failed = net.nodes[node].events.iter().any(|event| {
        matches!(event, Event::Failed { reason: FetchError::NoPeers, tried, .. } if tried.is_empty())
    });
    assert!(failed);
}
