//! One swarm: an origin on a thin line, relays in layers, nodes that all want the same release.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use distd_core::ppspp::engine::{Class, FetchId, Role};
use distd_core::sim::{Line, Log, Net, Weather};
use rand::Rng;
use serde::Serialize;

/// Nodes of one relay of the lowest layer; relays of one relay above.
const BELOW_RELAY: usize = 100;
const BELOW_UPPER: usize = 10;
/// Relays that a node or a relay below knows.
const RELAYS_KNOWN: usize = 2;
/// Equals that everybody dials: with those who dial it a node has twice as many, and 32 at the most.
const EQUALS_DIALLED: usize = 12;
const EQUALS_MAX: usize = 30;
/// An origin's own bound of channels (`CHANNELS_INBOUND_MAX` of the engine) is a little higher.
const DIAL_ORIGIN_MAX: usize = 2000;
/// Everybody begins within this time.
const SPREAD: Duration = Duration::from_secs(1);
/// Nobody takes longer.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What is simulated.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) layers: usize,
    pub(crate) mib: u64,
    pub(crate) mbit: u64,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) shape: Shape,
    pub(crate) relays: usize,
    /// Payload of DATA that the origin sent, duplicates included, in copies of the release.
    pub(crate) copies: f64,
    /// Bytes of all its datagrams, in the same unit.
    pub(crate) egress: f64,
    /// Payload that nodes received, in copies for each.
    pub(crate) received: f64,
    /// Time from a node's begin until it has all, in times that the origin's line takes for one copy.
    pub(crate) median: f64,
    pub(crate) slowest: f64,
    /// Seconds of virtual time until all have all.
    pub(crate) seconds: f64,
    pub(crate) digest: Option<String>,
}

struct Member {
    at: usize,
    begins: Instant,
    fetch: Option<FetchId>,
    took: Option<Duration>,
}

/// Runs the swarm until every node has everything.
pub(crate) fn measure(shape: Shape, digest: bool) -> Result<Row, String> {
    let log = Log::new(shape.mib);
    let weather = Weather {
        delay: Duration::from_millis(1),
        jitter: Duration::from_micros(200),
        loss: 0.0,
        duplication: 0.0,
    };
    let mut net = Net::new(shape.seed, weather);
    net.trains = true;
    if digest {
        net.keep_digest();
    }
    let line = shape.mbit as f64 * 1e6 / 8.0;
    let origin = net.add_origin(&log);
    net.nodes[origin].up = Some(Line::new(line, net.now));
    let mut above = vec![vec![origin]];
    for count in relays(shape) {
        let relays = (0..count).map(|_| net.add_as(&log, None, Role::Relay)).collect();
        above.push(relays);
    }
    let relays = above.iter().skip(1).map(Vec::len).sum();
    above.push((0..shape.nodes).map(|_| net.add(&log, None)).collect());
    for level in 1..above.len() {
        join(&mut net, &above[level - 1], &above[level], line * 10.0);
    }
    let nodes = above.pop().unwrap_or_default();
    let mut members: Vec<Member> = nodes
        .into_iter()
        .map(|at| {
            let wait = SPREAD.mul_f64(net.rng.random());
            Member { at, begins: net.now + wait, fetch: None, took: None }
        })
        .collect();
    let before = net.nodes[origin].engine.counters(net.nodes[origin].swarm);
    run(&mut net, &log, &mut members)?;
    let bytes = log.blocks().byte_len() as f64;
    let after = net.nodes[origin].engine.counters(net.nodes[origin].swarm);
    let received = members.iter().map(|member| &net.nodes[member.at]);
    let received: u64 =
        received.map(|node| node.engine.counters(node.swarm).data_received_bytes).sum();
    let mut times: Vec<Duration> = members.iter().filter_map(|member| member.took).collect();
    times.sort_unstable();
    let in_copies = |time: Duration| time.as_secs_f64() / (bytes / line);
    Ok(Row {
        shape,
        relays,
        copies: (after.data_sent_bytes - before.data_sent_bytes) as f64 / bytes,
        egress: (after.sent_bytes - before.sent_bytes) as f64 / bytes,
        received: received as f64 / bytes / members.len() as f64,
        median: in_copies(times[times.len() / 2]),
        slowest: in_copies(times[times.len() - 1]),
        seconds: (net.now - net.start).as_secs_f64(),
        digest: net.digest().map(|digest| digest.to_hex().to_string()),
    })
}

/// How many relays there are, from the highest layer down.
fn relays(shape: Shape) -> Vec<usize> {
    let lowest = shape.nodes.div_ceil(BELOW_RELAY).max(RELAYS_KNOWN);
    match shape.layers {
        0 | 1 => Vec::new(),
        2 => vec![lowest],
        _ => vec![lowest.div_ceil(BELOW_UPPER).max(RELAYS_KNOWN), lowest],
    }
}

/// Everybody of a level dials some of the level above, and some equals.
fn join(net: &mut Net, above: &[usize], level: &[usize], line: f64) {
    let mut degree = vec![0; level.len()];
    for (i, at) in level.iter().enumerate() {
        let now = net.now;
        let node = &mut net.nodes[*at];
        (node.up, node.down) = (Some(Line::new(line, now)), Some(Line::new(line, now)));
        node.keep_runs = false;
        if above.len() > 1 || i < DIAL_ORIGIN_MAX {
            for relay in 0..RELAYS_KNOWN.min(above.len()) {
                net.connect(*at, above[(i * above.len() / level.len() + relay) % above.len()]);
            }
        }
        let mut dialled = BTreeSet::from([i]);
        let wanted = EQUALS_DIALLED.min(level.len() - 1) + 1;
        for _ in 0..4 * wanted {
            let other = net.rng.random_range(0..level.len());
            let free = degree[i] < EQUALS_MAX && degree[other] < EQUALS_MAX;
            if dialled.len() < wanted && free && dialled.insert(other) {
                net.connect(*at, level[other]);
                degree[i] += 1;
                degree[other] += 1;
            }
        }
    }
}

fn run(net: &mut Net, log: &Log, members: &mut [Member]) -> Result<(), String> {
    let until = net.now + PATIENCE;
    let mut left = members.len();
    while left > 0 {
        let soon = (net.now + Duration::from_millis(10)).min(until);
        while net.step(soon) {}
        for member in members.iter_mut().filter(|member| member.took.is_none()) {
            match member.fetch {
                None if member.begins <= net.now => {
                    let deadline = until;
                    let now = net.now;
                    let node = &mut net.nodes[member.at];
                    let (swarm, blocks) = (node.swarm, log.blocks());
                    member.fetch =
                        Some(node.engine.fetch(now, swarm, blocks, Class::Background, deadline));
                }
                None => {}
                Some(fetch) => match net.nodes[member.at].outcome(fetch) {
                    Some(true) => {
                        member.took = Some(net.now - member.begins);
                        left -= 1;
                    }
                    Some(false) => return Err(format!("node {} did not get it", member.at)),
                    None => {}
                },
            }
        }
        if net.now >= until {
            return Err(format!("{left} nodes have not got it in an hour"));
        }
    }
    Ok(())
}
