//! Hostile peers by seeds: every read is right, liars go at their first lie, nobody honest is blamed.

use std::net::SocketAddr;
use std::time::Duration;

use distd_core::ppspp::engine::{Class, DownReason, Event, FetchId};
use distd_core::sim::{Log, Net, Tamper, Weather};
use rand::Rng;
use rand::rngs::SmallRng;

/// Longer than any of the cases may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Datagrams longer than this carry content.
const CONTENT_BYTES: usize = 1000;

/// Who the reader has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// One of ten peers sends false content.
    LiarsTenth,
    /// Every second one.
    LiarsHalf,
    /// Nine of ten.
    LiarsNine,
    /// All but one fall silent after the handshake.
    Silent,
    /// Five hundred strangers dial the reader and send noise; five honest peers.
    Attackers,
}

impl Case {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::LiarsTenth, Self::LiarsHalf, Self::LiarsNine, Self::Silent, Self::Attackers];

    /// Honest peers, and others.
    fn peers(self) -> (usize, usize) {
        match self {
            Self::LiarsTenth => (9, 1),
            Self::LiarsHalf => (5, 5),
            Self::LiarsNine | Self::Silent => (1, 9),
            Self::Attackers => (5, 500),
        }
    }
}

/// Runs one seed; how long the read took, in virtual time.
pub(crate) fn run(case: Case, seed: u64) -> Result<Duration, String> {
    let log = Log::new(1);
    let weather = Weather {
        delay: Duration::from_millis(3),
        jitter: Duration::from_millis(1),
        loss: 0.002,
        duplication: 0.002,
    };
    let mut net = Net::new(seed, weather);
    let (honest_count, other_count) = case.peers();
    let reader = net.add(&log, None);
    let honest: Vec<usize> = (0..honest_count).map(|_| net.add_origin(&log)).collect();
    let others: Vec<usize> = (0..other_count).map(|_| net.add_origin(&log)).collect();
    for peer in &honest {
        net.connect(reader, *peer);
    }
    for other in &others {
        net.nodes[*other].tamper = tamper(case);
        match case {
            Case::Attackers => net.connect(*other, reader),
            _ => net.connect(reader, *other),
        }
    }
    net.run_for(Duration::from_millis(100));
    if case == Case::Silent {
        for other in &others {
            net.nodes[*other].dead = true;
        }
    }
    let now = net.now;
    let class = if net.rng.random() { Class::Waited } else { Class::Background };
    let fetch = net.nodes[reader].fetch(now, log.blocks(), class);
    let took = finish(&mut net, reader, fetch)?;
    check(&net, &log, reader, &honest, &others)?;
    Ok(took)
}

fn tamper(case: Case) -> Option<Tamper> {
    match case {
        Case::Silent => None,
        Case::Attackers => Some(|datagram, rng| noise(datagram, rng)),
        Case::LiarsTenth | Case::LiarsHalf | Case::LiarsNine => {
            Some(|datagram, rng| lie(datagram, rng))
        }
    }
}

/// Some content, or a hash before it, is not what was signed.
fn lie(datagram: &mut [u8], rng: &mut SmallRng) {
    if datagram.len() > CONTENT_BYTES && rng.random_bool(0.3) {
        let at = rng.random_range(datagram.len() - CONTENT_BYTES..datagram.len());
        datagram[at] ^= 1 << rng.random_range(0..8);
    }
}

/// Anything behind the channel's id.
fn noise(datagram: &mut [u8], rng: &mut SmallRng) {
    if datagram.len() > 4 && rng.random_bool(0.5) {
        let at = rng.random_range(4..datagram.len());
        rng.fill(&mut datagram[at..]);
    }
}

fn finish(net: &mut Net, reader: usize, fetch: FetchId) -> Result<Duration, String> {
    let (begin, until) = (net.now, net.now + PATIENCE);
    loop {
        match net.nodes[reader].outcome(fetch) {
            Some(true) => return Ok(net.now - begin),
            Some(false) => return Err("the read failed".to_owned()),
            None if !net.step(until) => return Err("the read never ended".to_owned()),
            None => {}
        }
    }
}

fn check(
    net: &Net,
    log: &Log,
    reader: usize,
    honest: &[usize],
    others: &[usize],
) -> Result<(), String> {
    let node = &net.nodes[reader];
    let mut blocks = 0;
    for (run, from) in node.verified() {
        blocks += run.bin().blocks().map_or(0, |blocks| blocks.count);
        if run.bytes() != log.run(run.bin()).bytes() {
            return Err(format!("{} of {from} is not what was published", run.bin()));
        }
    }
    if blocks < log.blocks().count {
        return Err(format!("{blocks} blocks of {}", log.blocks().count));
    }
    let ends = |address: SocketAddr| {
        node.events.iter().filter_map(move |event| match event {
            Event::PeerDown { address: of, reason, .. } if *of == address => Some(*reason),
            _ => None,
        })
    };
    let lied = |address: SocketAddr| {
        ends(address).filter(|why| matches!(why, DownReason::Lied { .. })).count()
    };
    for peer in honest.iter().map(|at| net.nodes[*at].address) {
        if let Some(reason) = ends(peer).next() {
            return Err(format!("{peer} is honest and was sent away: {reason}"));
        }
    }
    for peer in others.iter().map(|at| net.nodes[*at].address) {
        if lied(peer) > 1 {
            return Err(format!("{peer} lied twice"));
        }
    }
    let false_runs = node.engine.counters(node.swarm).false_runs;
    if false_runs > others.len() as u64 {
        return Err(format!("{false_runs} false runs of {} liars", others.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_is_right_and_only_liars_are_blamed() {
        for case in Case::ALL {
            let seeds = if case == Case::Attackers { 0..2 } else { 0..40 };
            for seed in seeds {
                let outcome = run(case, seed);
                assert!(outcome.is_ok(), "{case:?}, seed {seed}: {outcome:?}");
            }
        }
    }
}
