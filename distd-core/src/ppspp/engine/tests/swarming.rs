//! Many members: each range leaves the injector once, whoever dies, lies or comes late.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rand::Rng;

use crate::ppspp::engine::{Class, DownReason, Event, FetchId, Role};
use crate::sim::{FINE, Line, Log, Net, Weather};
use crate::unit::{BlockIndex, BlockRange};

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), count)
}

/// 100 Mbit/s, in bytes a second.
const THIN: f64 = 12.5e6;

/// An origin on a thin line, and `count` nodes; everybody dials everybody, themselves included.
fn swarm(seed: u64, log: &Rc<Log>, count: usize, weather: Weather) -> (Net, usize, Vec<usize>) {
    let mut net = Net::new(seed, weather);
    let origin = net.add_origin(log);
    net.nodes[origin].up = Some(Line::new(THIN, net.now));
    let nodes: Vec<usize> = (0..count).map(|_| net.add(log, None)).collect();
    for node in &nodes {
        for other in &nodes {
            net.connect(*node, *other);
        }
        net.connect(*node, origin);
    }
    (net, origin, nodes)
}

fn sent(net: &Net, at: usize) -> u64 {
    net.nodes[at].engine.counters(net.nodes[at].swarm).data_sent_bytes
}

fn fetch_all(net: &mut Net, log: &Log, nodes: &[usize]) -> Vec<(usize, FetchId)> {
    let now = net.now;
    let fetch =
        |node: &usize| (*node, net.nodes[*node].fetch(now, log.blocks(), Class::Background));
    nodes.iter().map(fetch).collect()
}

fn finish(net: &mut Net, log: &Log, fetches: &[(usize, FetchId)]) {
    for (node, fetch) in fetches {
        net.run_until_fetched(*node, *fetch);
        let mut got = BTreeSet::new();
        for (run, _) in net.nodes[*node].verified() {
            got.extend(run.bin().blocks().expect("blocks").iter());
        }
        assert_eq!(got.len() as u64, log.blocks().count);
    }
}

fn copies(net: &Net, log: &Log, at: usize) -> f64 {
    sent(net, at) as f64 / log.blocks().byte_len() as f64
}

#[test]
fn nodes_that_want_the_same_cost_the_origin_one_copy() {
    for (seed, count, weather, most, most_ms) in [
        (1, 4, FINE, 1.1, 2000),
        (2, 8, FINE, 1.1, 2000),
        (3, 8, Weather { loss: 0.01, ..FINE }, 1.5, 4000),
    ] {
        let log = Log::new(16);
        let (mut net, origin, nodes) = swarm(seed, &log, count, weather);
        let fetches = fetch_all(&mut net, &log, &nodes);
        finish(&mut net, &log, &fetches);
        let (took, copies) = (net.now - net.start, copies(&net, &log, origin));
        assert!(copies <= most, "seed {seed}: {copies} copies in {took:?}");
        assert!(took < Duration::from_millis(most_ms), "seed {seed}: {took:?}; ideal is 1.34 s");
        assert_eq!(net.nodes[origin].engine.engine_counters().channels, count as u64);
        for node in nodes {
            let channels = net.nodes[node].engine.engine_counters().channels;
            assert_eq!(channels, count as u64, "one channel to each other and to the origin");
        }
    }
}

#[test]
fn a_large_level_costs_one_copy_though_nobody_knows_many() {
    for (seed, count, known) in [(30, 40, 3), (31, 60, 2)] {
        let log = Log::new(8);
        let mut net = Net::new(seed, FINE);
        let origin = net.add_origin(&log);
        net.nodes[origin].up = Some(Line::new(THIN, net.now));
        let nodes: Vec<usize> = (0..count).map(|_| net.add(&log, None)).collect();
        for (i, node) in nodes.iter().enumerate() {
            net.nodes[*node].keep_runs = false;
            net.connect(*node, origin);
            net.connect(*node, nodes[(i + 1) % count]);
            for _ in 1..known {
                let other = nodes[net.rng.random_range(0..count)];
                net.connect(*node, other);
            }
        }
        net.trains = true;
        let fetches = fetch_all(&mut net, &log, &nodes);
        for (node, fetch) in &fetches {
            net.run_until_fetched(*node, *fetch);
        }
        let (took, copies) = (net.now - net.start, copies(&net, &log, origin));
        assert!(copies <= 1.1, "seed {seed}: {copies} copies in {took:?}");
        assert!(took < Duration::from_secs(3), "seed {seed}: {took:?}; ideal is 0.67 s");
    }
}

#[test]
fn who_has_nobody_above_reads_by_its_equals() {
    let log = Log::new(4);
    let mut net = Net::new(50, FINE);
    let origin = net.add_origin(&log);
    let (lucky, cut_off) = (net.add(&log, None), net.add(&log, None));
    let nowhere = net.add(&log, None);
    net.nodes[nowhere].dead = true;
    net.connect(lucky, origin);
    net.connect(cut_off, nowhere);
    net.connect(cut_off, lucky);
    net.run_for(Duration::from_millis(500));
    for read in 0..64u64 {
        for (node, block) in [(cut_off, read * 16), (lucky, read * 16 + 7)] {
            let fetch = net.nodes[node].fetch(net.now, blocks(block, 1), Class::Waited);
            let took = net.run_until_fetched(node, fetch);
            assert!(took < Duration::from_millis(300), "read {read} of {node}: {took:?}");
        }
    }
}

#[test]
fn an_owner_that_dies_leaves_its_turn_to_others_far_away() {
    let log = Log::new(8);
    let mut net = Net::new(51, FINE);
    let origin = net.add_origin(&log);
    net.nodes[origin].up = Some(Line::new(THIN, net.now));
    // A line: each knows its neighbours alone.
    let nodes: Vec<usize> = (0..6).map(|_| net.add(&log, None)).collect();
    for pair in nodes.windows(2) {
        net.connect(pair[1], pair[0]);
    }
    for node in &nodes {
        net.connect(*node, origin);
        net.nodes[*node].keep_runs = false;
    }
    let fetches = fetch_all(&mut net, &log, &nodes);
    net.run_for(Duration::from_millis(300));
    net.nodes[nodes[5]].dead = true;
    for (node, fetch) in &fetches[..5] {
        net.run_until_fetched(*node, *fetch);
    }
    let (took, copies) = (net.now - net.start, copies(&net, &log, origin));
    assert!(copies <= 1.7, "{copies} copies in {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[test]
fn a_late_comer_gets_everything_from_its_equals() {
    let log = Log::new(4);
    let (mut net, origin, nodes) = swarm(5, &log, 3, FINE);
    let fetches = fetch_all(&mut net, &log, &nodes);
    finish(&mut net, &log, &fetches);
    let before = sent(&net, origin);
    let late = net.add(&log, None);
    net.connect(late, origin);
    for node in nodes {
        net.connect(late, node);
    }
    let fetches = fetch_all(&mut net, &log, &[late]);
    finish(&mut net, &log, &fetches);
    assert_eq!(sent(&net, origin), before, "the origin is asked for nothing");
}

#[test]
fn an_idle_node_fetches_its_share_for_others_and_a_dead_one_costs_little() {
    for dead in [false, true] {
        let log = Log::new(8);
        let (mut net, origin, nodes) = swarm(6, &log, 5, FINE);
        net.run_for(Duration::from_millis(200));
        if dead {
            net.nodes[nodes[4]].dead = true;
        }
        let fetches = fetch_all(&mut net, &log, &nodes[..4]);
        let begin = net.now;
        finish(&mut net, &log, &fetches);
        let (took, copies) = (net.now - begin, copies(&net, &log, origin));
        assert!(copies <= 1.1, "dead {dead}: {copies} copies in {took:?}");
        let most = if dead { 3000 } else { 1200 };
        assert!(took < Duration::from_millis(most), "dead {dead}: {took:?}");
    }
}

#[test]
fn half_of_the_nodes_may_die_midway() {
    let log = Log::new(16);
    let (mut net, origin, nodes) = swarm(7, &log, 8, FINE);
    let fetches = fetch_all(&mut net, &log, &nodes);
    net.run_for(Duration::from_millis(700));
    for node in &nodes[4..] {
        net.nodes[*node].dead = true;
    }
    finish(&mut net, &log, &fetches[..4]);
    let (took, copies) = (net.now - net.start, copies(&net, &log, origin));
    assert!(copies <= 1.5, "{copies} copies in {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn readers_of_the_same_blocks_cost_the_origin_one_copy() {
    let log = Log::new(4);
    let (mut net, origin, nodes) = swarm(8, &log, 8, FINE);
    net.run_for(Duration::from_millis(300));
    let mut slowest = Duration::ZERO;
    for read in 0..60u64 {
        let range = blocks(read * 16 + read % 7, 1 + read % 9);
        let now = net.now;
        let fetches: Vec<(usize, FetchId)> =
            nodes.iter().map(|n| (*n, net.nodes[*n].fetch(now, range, Class::Waited))).collect();
        for (node, fetch) in fetches {
            net.run_until_fetched(node, fetch);
        }
        slowest = slowest.max(net.now - now);
    }
    let wanted: u64 = (0..60).map(|read| 1 + read % 9).sum();
    let copies = sent(&net, origin) as f64 / (wanted * 4096) as f64;
    assert!(copies <= 1.05, "{copies} copies");
    // To the owner, from there to the origin, back, and the owner's word of it: three round trips.
    assert!(slowest <= FINE.delay * 9, "{slowest:?}");
}

#[test]
fn a_reader_waits_for_a_dead_owner_once() {
    let log = Log::new(4);
    let (mut net, _, nodes) = swarm(9, &log, 4, FINE);
    net.run_for(Duration::from_millis(300));
    for node in &nodes[1..] {
        net.nodes[*node].dead = true;
    }
    let mut late = 0;
    for read in 0..40u64 {
        let fetch = net.nodes[nodes[0]].fetch(net.now, blocks(read * 24, 2), Class::Waited);
        let took = net.run_until_fetched(nodes[0], fetch);
        assert!(took < Duration::from_millis(300), "{took:?}");
        late += u32::from(took > Duration::from_millis(60));
    }
    assert!(late <= 3, "{late} reads waited: once for each dead owner at the most");
}

#[test]
fn a_liar_among_equals_is_dropped_at_its_first_lie_and_nobody_else_blamed() {
    for seed in 0..6 {
        let log = Log::new(4);
        let (mut net, _, nodes) = swarm(10 + seed, &log, 5, FINE);
        net.nodes[nodes[0]].tamper = Some(|datagram, _| {
            if datagram.len() > 1000 {
                datagram[700] ^= 4;
            }
        });
        let fetches = fetch_all(&mut net, &log, &nodes);
        finish(&mut net, &log, &fetches);
        let liar = net.nodes[nodes[0]].address;
        for node in &nodes[1..] {
            let node = &net.nodes[*node];
            for (run, from) in node.verified() {
                assert_eq!(run.bytes(), log.run(run.bin()).bytes());
                assert_ne!(from, liar);
            }
            let downs = node.events.iter().filter_map(|event| match event {
                Event::PeerDown { address, reason, .. } => Some((*address, *reason)),
                _ => None,
            });
            for (address, reason) in downs {
                match reason {
                    DownReason::Lied { .. } => assert_eq!(address, liar),
                    DownReason::Superseded | DownReason::Ourselves | DownReason::Closed => {}
                    other => panic!("{address} is blamed: {other}"),
                }
            }
            assert!(node.engine.counters(node.swarm).false_runs <= 1);
        }
    }
}

/// Two relays in front of four nodes that know the origin, too.
fn layered(seed: u64, log: &Rc<Log>) -> (Net, usize, [usize; 2], Vec<usize>) {
    let mut net = Net::new(seed, FINE);
    let origin = net.add_origin(log);
    net.nodes[origin].up = Some(Line::new(THIN, net.now));
    let relays = [net.add_as(log, None, Role::Relay), net.add_as(log, None, Role::Relay)];
    for relay in relays {
        net.connect(relay, origin);
        for other in relays {
            net.connect(relay, other);
        }
    }
    net.run_for(Duration::from_millis(200));
    let nodes: Vec<usize> = (0..4).map(|_| net.add(log, None)).collect();
    for node in &nodes {
        net.connect(*node, origin);
        for other in relays.iter().chain(&nodes) {
            net.connect(*node, *other);
        }
    }
    (net, origin, relays, nodes)
}

fn sent_to(net: &Net, from: usize, to: &[usize]) -> u64 {
    let addresses: Vec<_> = to.iter().map(|at| net.nodes[*at].address).collect();
    let sent = net.nodes[from].sent.iter();
    sent.filter(|(_, to, datagram)| addresses.contains(to) && datagram.len() > 1000).count() as u64
}

#[test]
fn nodes_behind_relays_get_nothing_from_the_origin() {
    for class in [Class::Background, Class::Waited] {
        let log = Log::new(4);
        let (mut net, origin, relays, nodes) = layered(20, &log);
        net.nodes[origin].keep_sent = true;
        // The relays hold nothing and want nothing: they fetch what they are asked for.
        let now = net.now;
        let fetch = |node: &usize| (*node, net.nodes[*node].fetch(now, log.blocks(), class));
        let fetches: Vec<_> = nodes.iter().map(fetch).collect();
        finish(&mut net, &log, &fetches);
        assert_eq!(sent_to(&net, origin, &nodes), 0, "{class:?}");
        let copies = copies(&net, &log, origin);
        assert!(copies <= 1.1, "{class:?}: {copies} copies to the relays");
        let lower: f64 = relays.iter().map(|relay| self::copies(&net, &log, *relay)).sum();
        // Readers who wait long enough for a node of their level take it from the relay.
        let most = if class == Class::Background { 3.0 } else { 4.0 };
        assert!(lower <= most, "{class:?}: {lower} copies from the relays");
    }
}

#[test]
fn nodes_turn_to_the_origin_when_their_relays_die_and_go_on_without_it() {
    let log = Log::new(4);
    let (mut net, origin, relays, nodes) = layered(21, &log);
    let half = blocks(0, 512);
    let now = net.now;
    let fetch = |node: &usize| (*node, net.nodes[*node].fetch(now, half, Class::Background));
    let fetches: Vec<_> = nodes.iter().map(fetch).collect();
    for (node, fetch) in fetches {
        net.run_until_fetched(node, fetch);
    }
    for relay in relays {
        net.nodes[relay].dead = true;
    }
    let fetch = net.nodes[nodes[0]].fetch(net.now, log.blocks(), Class::Background);
    let took = net.run_until_fetched(nodes[0], fetch);
    assert!(took < Duration::from_secs(20), "{took:?}");
    net.nodes[origin].dead = true;
    let fetch = net.nodes[nodes[1]].fetch(net.now, blocks(300, 200), Class::Waited);
    let took = net.run_until_fetched(nodes[1], fetch);
    assert!(took < Duration::from_millis(500), "{took:?}: its equals have it");
}

#[test]
fn a_lone_node_behind_a_relay_gets_a_long_log_from_it_alone() {
    let log = Log::new(26);
    let mut net = Net::new(22, FINE);
    let (origin, relay) = (net.add_origin(&log), net.add_as(&log, None, Role::Relay));
    net.nodes[origin].up = Some(Line::new(THIN, net.now));
    net.connect(relay, origin);
    net.run_for(Duration::from_millis(200));
    let node = net.add(&log, None);
    net.connect(node, origin);
    net.connect(node, relay);
    net.nodes[origin].keep_sent = true;
    let fetches = fetch_all(&mut net, &log, &[node]);
    let begin = net.now;
    finish(&mut net, &log, &fetches);
    let took = net.now - begin;
    assert_eq!(sent_to(&net, origin, &[node]), 0, "in {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}; ideal is 2.2 s");
}

#[test]
fn readers_behind_relays_wait_for_round_trips_and_no_longer() {
    for wait_ms in 0..20 {
        for found in [0, 3, 15, 40, 300].map(Duration::from_millis) {
            let log = Log::new(1);
            let mut net = Net::new(40 + wait_ms, FINE);
            let origin = net.add_origin(&log);
            let relays = [(); 2].map(|()| net.add_as(&log, None, Role::Relay));
            for relay in relays {
                net.connect(relay, relays[0]);
                net.connect(relay, relays[1]);
                net.connect(relay, origin);
            }
            net.run_for(Duration::from_millis(2 * wait_ms));
            let node = net.add(&log, None);
            for other in [relays[0], relays[1], node, origin] {
                net.connect(node, other);
            }
            let fetch = net.nodes[node].fetch(net.now, blocks(200, 1), Class::Waited);
            let begin = net.now;
            net.run_for(found);
            for relay in relays {
                net.connect(relay, node);
            }
            net.run_until_fetched(node, fetch);
            let took = net.now - begin;
            net.run_for(Duration::from_secs(1));
            let next = net.nodes[node].fetch(net.now, blocks(20, 1), Class::Waited);
            let second = net.run_until_fetched(node, next);
            // To the relay, perhaps to its equal, to the origin, and back.
            assert!(took < FINE.delay * 15 + found, "{wait_ms} {found:?}: {took:?}");
            assert!(second < FINE.delay * 15, "{wait_ms} {found:?}: {second:?}");
        }
    }
}
