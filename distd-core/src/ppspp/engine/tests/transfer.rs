//! Honest peers: everything arrives, right, once, soon.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ppspp::engine::{Class, DownReason, Event, FetchError, Role};
use crate::sim::{FINE, Log, Net, Weather};
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

// Shows C39 (RFC 7574 5.3).
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

// Shows C38 C40 (RFC 7574 5.3).
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
        let weather = Weather { jitter, loss, duplication, ..FINE };
        for class in [Class::Waited, Class::Background] {
            let net = transfer(seed, 3, weather, class);
            let blamed = net.nodes[1].events.iter().any(|event| {
                matches!(event, Event::PeerDown { reason, .. } if *reason != DownReason::Superseded)
            });
            assert!(!blamed, "an honest peer is never blamed");
            let took = net.now - net.start;
            assert!(took < Duration::from_secs(20), "seed {seed} {class:?}: {took:?}");
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

#[test]
fn two_fetches_of_one_block_share_its_run() {
    let log = Log::new(1);
    let mut net = Net::new(1, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    net.run_for(Duration::from_millis(100));
    let one = net.nodes[node].fetch(net.now, blocks(9, 1), Class::Background);
    let two = net.nodes[node].fetch(net.now, blocks(8, 4), Class::Waited);
    let gone = net.nodes[node].fetch(net.now, blocks(8, 8), Class::Waited);
    let now = net.now;
    net.nodes[node].engine.cancel(now, gone);
    net.run_until_fetched(node, one);
    net.run_until_fetched(node, two);
    assert_eq!(net.nodes[node].outcome(gone), Some(false));
    net.run_for(Duration::from_secs(1));
    let counters = net.nodes[node].engine.counters(net.nodes[node].swarm);
    assert_eq!(counters.data_received_bytes, 4 * 4096, "each chunk came once");
}

#[test]
fn a_reader_overtakes_prefetch() {
    let log = Log::new(8);
    let mut net = Net::new(1, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    let bulk = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.nodes[node].outcome(bulk), None);
    // The last block of what is in flight, and one far behind it.
    for block in [7 * 256 + 3, 8 * 256 - 1] {
        let read = net.nodes[node].fetch(net.now, blocks(block, 1), Class::Waited);
        let took = net.run_until_fetched(node, read);
        assert!(took <= FINE.delay * 4, "{took:?}");
    }
    net.run_until_fetched(node, bulk);
}

#[test]
fn a_reader_in_step_with_prefetch_asks_for_nothing_twice() {
    let log = Log::new(8);
    let mut net = Net::new(1, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    let bulk = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    net.run_for(Duration::from_millis(30));
    for start in (0..8 * 256).step_by(32) {
        let read = net.nodes[node].fetch(net.now, blocks(start, 32), Class::Waited);
        net.run_until_fetched(node, read);
    }
    net.run_until_fetched(node, bulk);
    let counters = net.nodes[node].engine.counters(net.nodes[node].swarm);
    assert_eq!((counters.duplicate_bytes, counters.rerequested_runs), (0, 0));
    assert_eq!(net.nodes[origin].engine.counters(net.nodes[origin].swarm).losses, 0);
}

#[test]
fn several_sources_share_the_work() {
    let log = Log::new(8);
    let mut net = Net::new(2, FINE);
    let sources: Vec<usize> = (0..3).map(|_| net.add_origin(&log)).collect();
    let node = net.add(&log, None);
    for source in &sources {
        net.connect(node, *source);
    }
    net.run_for(Duration::from_millis(100));
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    net.run_until_fetched(node, fetch);
    for source in sources {
        let from = net.nodes[source].address;
        let runs = net.nodes[node].verified().filter(|(_, by)| *by == from).count();
        assert!(runs > 60, "{runs} of 512 runs");
    }
}

// Shows C54 (RFC 7574 6.1.2.4).
#[test]
fn a_new_munro_reaches_everyone_through_everyone_and_is_fetched() {
    let log = Log::new(2);
    let mut net = Net::new(3, FINE);
    let first = blocks(0, 256);
    let origin = net.add_origin(&log);
    // The origin has published the first munro only.
    net.restart_with(origin, 50, log.munro(0), first);
    let relay = net.add(&log, None);
    let leaf = net.add(&log, None);
    net.connect(relay, origin);
    net.connect(leaf, relay);
    net.run_for(Duration::from_secs(1));
    let heard = |net: &Net, at: usize| {
        let events = net.nodes[at].events.iter();
        let munros = events.filter_map(|event| match event {
            Event::Newest { munro, .. } => Some(*munro),
            _ => None,
        });
        munros.collect::<Vec<_>>()
    };
    assert_eq!(heard(&net, relay), [log.munro(0)], "tune-in");
    assert_eq!(heard(&net, leaf), [log.munro(0)], "forwarded after verifying");
    let (now, swarm) = (net.now, net.nodes[origin].swarm);
    net.nodes[origin].engine.publish(now, swarm, log.munro(1), blocks(256, 256));
    net.run_for(FINE.delay * 2);
    assert_eq!(heard(&net, relay).last(), Some(&log.munro(1)), "pushed at once");
    assert_eq!(heard(&net, leaf).last(), Some(&log.munro(1)));
    // The relay fetches its last block, the leaf gets it from there.
    for at in [relay, leaf] {
        let fetch = net.nodes[at].fetch(net.now, blocks(511, 1), Class::Waited);
        let took = net.run_until_fetched(at, fetch);
        assert!(took < Duration::from_millis(50), "{took:?}");
    }
    let heartbeat = log.heartbeat(60);
    let (now, swarm) = (net.now, net.nodes[origin].swarm);
    net.nodes[origin].engine.publish(now, swarm, heartbeat, blocks(256, 256));
    net.run_for(FINE.delay * 3);
    assert_eq!(heard(&net, leaf).last(), Some(&heartbeat), "a heartbeat is passed on");
    // Once it is held, the munro is repeated no more.
    let sent = |net: &Net| net.nodes[origin].engine.counters(net.nodes[origin].swarm).sent_bytes;
    let before = sent(&net);
    net.run_for(Duration::from_secs(120));
    assert!(sent(&net) - before < 200, "{}", sent(&net) - before);
}

#[test]
fn a_fetch_that_waits_is_served_as_soon_as_somebody_has_it() {
    let log = Log::new(1);
    let mut net = Net::new(4, FINE);
    let (peer, node) = (net.add(&log, None), net.add(&log, None));
    net.connect(node, peer);
    let fetch = net.nodes[node].fetch(net.now, blocks(30, 2), Class::Waited);
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.nodes[node].outcome(fetch), None);
    let now = net.now;
    net.nodes[peer].store(now, blocks(28, 8));
    let took = net.run_until_fetched(node, fetch);
    assert!(took < Duration::from_millis(40), "{took:?}");
}

#[test]
fn who_has_nothing_to_do_rests() {
    let log = Log::new(2);
    let mut net = Net::new(17, FINE);
    let origin = net.add_origin(&log);
    let relays = [(); 3].map(|()| net.add_as(&log, None, Role::Relay));
    let nodes = [(); 4].map(|()| net.add(&log, None));
    // Relays that boot together stand beside each other before they stand below each other.
    for pair in relays.windows(2) {
        net.connect(pair[1], pair[0]);
    }
    net.run_for(Duration::from_millis(60));
    net.connect(relays[0], origin);
    for node in nodes {
        net.connect(node, origin);
        net.connect(node, relays[2]);
        net.connect(node, nodes[0]);
    }
    let fetch = net.nodes[nodes[0]].fetch(net.now, log.blocks(), Class::Background);
    net.run_until_fetched(nodes[0], fetch);
    for step in 1..3 {
        let (now, swarm) = (net.now, net.nodes[origin].swarm);
        let end = BlockRange::new(log.blocks().start, 0);
        net.nodes[origin].engine.publish(now, swarm, log.heartbeat(step), end);
        net.run_for(Duration::from_secs(5));
        let before = net.steps;
        net.run_for(Duration::from_secs(50));
        let steps = net.steps - before;
        assert!(steps < 2000, "{steps} in 50 s, by 8 members and about 16 channels");
    }
}

// Shows C12 (RFC 7574 3.1.1).
#[test]
fn leaving_says_goodbye_and_ends_fetches() {
    let log = Log::new(1);
    let mut net = Net::new(5, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    net.run_for(Duration::from_millis(100));
    let fetch = net.nodes[node].fetch(net.now, blocks(0, 1), Class::Waited);
    let now = net.now;
    net.nodes[node].engine.close_all(now);
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.nodes[node].outcome(fetch), Some(false));
    assert_eq!(net.nodes[origin].engine.engine_counters().channels, 0);
    assert_eq!(net.nodes[node].engine.engine_counters().channels, 0);
}

// Shows C15 (RFC 7574 3.12).
#[test]
fn a_dead_peer_is_dropped_and_an_idle_one_kept_alive() {
    let log = Log::new(1);
    let mut net = Net::new(6, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    net.run_for(Duration::from_secs(600));
    assert_eq!(net.nodes[origin].engine.engine_counters().channels, 1);
    net.nodes[node].dead = true;
    net.run_for(Duration::from_secs(400));
    assert_eq!(net.nodes[origin].engine.engine_counters().channels, 0);
    net.nodes[node].dead = false;
    net.run_for(Duration::from_secs(200));
    assert_eq!(net.nodes[origin].engine.engine_counters().channels, 1, "dialled again");
}

#[test]
fn a_granule_is_put_together_from_peers_that_hold_parts_of_it() {
    let log = Log::new(1);
    let mut net = Net::new(7, FINE);
    let parts = [blocks(16, 1), blocks(17, 2), blocks(19, 13)];
    let holders: Vec<usize> = parts.iter().map(|part| net.add(&log, Some(*part))).collect();
    let node = net.add(&log, None);
    for holder in holders {
        net.connect(node, holder);
    }
    net.run_for(Duration::from_millis(100));
    for class in [Class::Waited, Class::Background] {
        let fetch = net.nodes[node].fetch(net.now, blocks(16, 16), class);
        let took = net.run_until_fetched(node, fetch);
        assert!(took < Duration::from_millis(50), "{took:?}");
    }
}
