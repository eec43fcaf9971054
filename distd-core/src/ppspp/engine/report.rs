//! How peers stand, for people: who they are, what comes from them, and why nothing does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::unit::{BlockIndex, BlockRange};

use super::Engine;
use super::channel::{Channel, State};
use super::event::{Class, DownReason, SwarmKey};
use super::swarm::Swarm;
use super::turns::{INJECTOR, NODE};

/// What a peer is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerKind {
    /// It publishes the log, as it says itself.
    Origin,
    /// It fetches for those below it, as it says itself.
    Relay,
    /// A node that is near.
    Lan,
    /// A node elsewhere.
    Other,
}

/// Payload that was verified, by what delivered it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceBytes {
    /// The origin.
    pub origin: u64,
    /// Relays, near or not.
    pub relay: u64,
    /// Nodes of the local network.
    pub lan: u64,
    /// Nodes elsewhere.
    pub other: u64,
}

impl SourceBytes {
    pub(super) fn add(&mut self, kind: PeerKind, bytes: u64) {
        *match kind {
            PeerKind::Origin => &mut self.origin,
            PeerKind::Relay => &mut self.relay,
            PeerKind::Lan => &mut self.lan,
            PeerKind::Other => &mut self.other,
        } += bytes;
    }
}

/// How far a peer's channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Datagram 1 was sent.
    Opening,
    /// Both addresses are proved.
    Open,
    /// Open, but it leaves requests unanswered: asked last.
    Silent,
    /// There is no channel: it is dialled again later.
    Closed,
    /// It lied: it is not talked to for a while.
    Banned,
}

/// Why nothing comes from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It has not answered the handshake yet.
    NoAnswer,
    /// It answers no requests for now (RFC 7574 §3.9).
    Choked,
    /// It leaves requests unanswered.
    Silent,
    /// It let us wait in vain for what it was to fetch: it is passed over for a while.
    PassedOver,
    /// Nothing is wanted of anybody.
    NothingWanted,
    /// It has nothing of what is wanted.
    NothingToGive,
    /// Its channel has ended.
    Closed,
    /// It lied.
    Banned,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Its address.
    pub address: SocketAddr,
    /// Its channel's state.
    pub state: PeerState,
    /// Whether the channel was opened from here.
    pub outbound: bool,
    /// What it is.
    pub kind: PeerKind,
    /// Whether its address is of a private network or of our own.
    pub near: bool,
    /// By which it is known whatever its address (message PLACE).
    pub id: Option<u64>,
    /// How far it says that it is from the injector: 0 is the injector, 255 a node.
    pub level: Option<u8>,
    /// Smoothed round-trip time, if measured.
    pub rtt: Option<Duration>,
    /// Bytes of datagrams received.
    pub received_bytes: u64,
    /// Bytes of datagrams sent.
    pub sent_bytes: u64,
    /// Bytes received in a second.
    pub received_rate: u64,
    /// Bytes sent in a second.
    pub sent_rate: u64,
    /// Payload from it that was verified.
    pub verified_bytes: u64,
    /// Bytes asked for and not yet there.
    pub outstanding_bytes: u64,
    /// Blocks that it says it holds.
    pub available_blocks: u64,
    /// Which; only where they were asked for.
    pub available: Vec<BlockRange>,
    /// Why nothing comes from it.
    pub idle: Option<Idle>,
    /// How its last channel ended, if it has none.
    pub down: Option<DownReason>,
    /// How long this will go on: until it is dialled, or asked, again.
    pub again_in: Option<Duration>,
    /// Whether we have told it to ask for nothing for now (CHOKE): it asks for too much.
    pub choked: bool,
    /// Whether it is told what is held here, and gets it.
    pub served: bool,
    /// How long there has been a channel.
    pub age: Duration,
}

impl Engine {
    /// The peers of a swarm: those with a channel, those that are to be dialled again, those that
    /// lied. `ranges`: also which blocks they say they hold.
    pub fn peers(&self, now: Instant, key: SwarmKey, ranges: bool) -> Vec<PeerReport> {
        let Some(swarm) = self.swarms.get(&key) else { return Vec::new() };
        let channels = self.channels.iter().filter(|(_, channel)| channel.swarm == key);
        let mut reports: Vec<PeerReport> =
            channels.map(|(_, channel)| with_channel(now, swarm, channel, ranges)).collect();
        let mut shown: BTreeSet<SocketAddr> = reports.iter().map(|report| report.address).collect();
        let bans = self.bans.iter().filter(|(_, ban)| ban.swarm == key && ban.until > now);
        for (address, ban) in bans {
            if shown.insert(*address) {
                let mut report = self.without_channel(*address, PeerState::Banned);
                report.idle = Some(Idle::Banned);
                report.again_in = Some(ban.until.saturating_duration_since(now));
                reports.push(report);
            }
        }
        for (address, link) in &swarm.links {
            if link.channel.is_none() && shown.insert(*address) {
                let mut report = self.without_channel(*address, PeerState::Closed);
                report.idle = Some(Idle::Closed);
                report.down = link.down;
                report.again_in = link.armed.map(|at| at.saturating_duration_since(now));
                reports.push(report);
            }
        }
        reports
    }

    fn without_channel(&self, address: SocketAddr, state: PeerState) -> PeerReport {
        let near = self.config.networks.hold(address.ip());
        PeerReport {
            address,
            state,
            outbound: true,
            kind: kind(None, near),
            near,
            id: None,
            level: None,
            rtt: None,
            received_bytes: 0,
            sent_bytes: 0,
            received_rate: 0,
            sent_rate: 0,
            verified_bytes: 0,
            outstanding_bytes: 0,
            available_blocks: 0,
            available: Vec::new(),
            idle: None,
            down: None,
            again_in: None,
            choked: false,
            served: self.config.serves(address),
            age: Duration::ZERO,
        }
    }
}

impl Channel {
    /// What the peer is to us.
    pub(super) fn kind(&self) -> PeerKind {
        kind(self.place.map(|place| place.level), self.near)
    }
}

fn kind(level: Option<u8>, near: bool) -> PeerKind {
    match level {
        Some(INJECTOR) => PeerKind::Origin,
        Some(NODE) | None if near => PeerKind::Lan,
        Some(NODE) | None => PeerKind::Other,
        Some(_) => PeerKind::Relay,
    }
}

fn with_channel(now: Instant, swarm: &Swarm, channel: &Channel, ranges: bool) -> PeerReport {
    let (source, traffic) = (&channel.source, &channel.traffic);
    let spans = source.availability.iter();
    let block_range = |(start, end)| BlockRange::new(BlockIndex(start), end - start);
    let available: Vec<BlockRange> =
        if ranges { spans.map(block_range).collect() } else { Vec::new() };
    let idle = idle(now, swarm, channel);
    let until = source.passed_over_until().filter(|_| idle == Some(Idle::PassedOver));
    PeerReport {
        address: channel.address,
        state: match channel.state {
            State::Open | State::Unconfirmed if source.is_silent() => PeerState::Silent,
            State::Open | State::Unconfirmed => PeerState::Open,
            State::Opening => PeerState::Opening,
        },
        outbound: channel.outbound,
        kind: channel.kind(),
        near: channel.near,
        id: channel.place.map(|place| place.id),
        level: channel.place.map(|place| place.level),
        rtt: channel.rtt.is_known().then(|| channel.rtt.smoothed()),
        received_bytes: traffic.received.total(),
        sent_bytes: traffic.sent.total(),
        received_rate: traffic.received.rate(now),
        sent_rate: traffic.sent.rate(now),
        verified_bytes: traffic.verified_bytes,
        outstanding_bytes: source.outstanding,
        available_blocks: source.availability.iter().map(|(start, end)| end - start).sum(),
        available,
        idle,
        down: None,
        again_in: until.map(|until| until.saturating_duration_since(now)),
        choked: channel.serve.is_choked(now),
        served: channel.served,
        age: now.saturating_duration_since(traffic.since),
    }
}

fn idle(now: Instant, swarm: &Swarm, channel: &Channel) -> Option<Idle> {
    let source = &channel.source;
    Some(if channel.state == State::Opening {
        Idle::NoAnswer
    } else if source.choked {
        Idle::Choked
    } else if source.is_silent() {
        Idle::Silent
    } else if source.is_idle(now, Class::Waited) {
        Idle::PassedOver
    } else if source.outstanding > 0 {
        return None;
    } else if swarm.ledger.is_idle() {
        Idle::NothingWanted
    } else if source.availability.is_empty() || source.dry == swarm.turns.epoch {
        Idle::NothingToGive
    } else {
        return None;
    })
}
