//! How a node stands, for `status --json`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ppspp::engine::{Idle, PeerKind, PeerReport, PeerState, SwarmCounters};
use crate::store::Usage;
use crate::unit::BlockRange;

use super::event_loop::SwarmReport;
use super::swarm::Swarm;

/// A node and all its logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// UDP address that peers reach.
    pub listen: String,
    /// Whom it serves: `none`, `local` or `all`.
    #[serde(default)]
    pub serve: String,
    /// Seconds since the node started.
    pub uptime_s: u64,
    /// The cache.
    pub cache: Usage,
    /// One for each origin joined.
    pub swarms: Vec<SwarmStatus>,
}

/// One origin's log. Counts are since the node started, in bytes where not said otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwarmStatus {
    /// The origin's id.
    pub origin: String,
    /// Length of the log by the newest trusted head, in munros; 0 if none is known.
    pub head_munros: u64,
    /// When the newest head was last signed, in Unix seconds.
    pub signed_s: u64,
    /// Whether the newest head's validity has run out.
    pub stale: bool,
    /// Why the last offered head was refused.
    pub problem: Option<String>,
    /// Verified bytes from peers, for metadata.
    pub fetched_metadata_bytes: u64,
    /// Verified bytes from peers, for content of files.
    pub fetched_data_bytes: u64,
    /// Verified bytes from peers, of frames.
    pub fetched_frame_bytes: u64,
    /// Bytes of content and metadata that frames decoded to.
    pub decoded_bytes: u64,
    /// Delta frames decoded.
    pub delta_frames: u64,
    /// Full frames decoded.
    pub full_frames: u64,
    /// Frames that were not used: damaged, or without their bases.
    pub refused_frames: u64,
    /// The same verified bytes from peers, by who sent them, beside what the cache answered.
    #[serde(default)]
    pub sources: SourceStatus,
    /// Bytes answered from the cache without the network.
    pub local_bytes: u64,
    /// Runs that were served but not kept, because the cache's disk is full.
    pub uncached_runs: u64,
    /// Reads that ended in an error.
    pub failed_reads: u64,
    /// Reads that wait now.
    pub waiting_reads: usize,
    /// Bytes of datagrams received.
    pub received_bytes: u64,
    /// Bytes of datagrams sent.
    pub sent_bytes: u64,
    /// Payload of DATA received, duplicates included.
    pub data_received_bytes: u64,
    /// Payload of DATA sent to peers.
    pub data_sent_bytes: u64,
    /// Payload of DATA that was there already.
    pub duplicate_bytes: u64,
    /// Runs that did not verify.
    pub false_runs: u64,
    /// Datagrams dropped as malformed or from a wrong address.
    pub bad_datagrams: u64,
    /// Runs of which something was asked for again.
    pub rerequested_runs: u64,
    /// The peers.
    pub peers: Vec<PeerStatus>,
}

/// Bytes by where they came from: verified payload of peers, and what was local.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// From the origin.
    pub origin_bytes: u64,
    /// From relays, near or not.
    pub relay_bytes: u64,
    /// From nodes of the local network.
    pub lan_bytes: u64,
    /// From nodes elsewhere.
    pub other_bytes: u64,
    /// Answered from the cache without the network.
    pub cache_bytes: u64,
}

/// The peers of one swarm.
#[derive(Clone)]
pub struct SwarmPeers {
    /// Whose log it is.
    pub swarm: Swarm,
    /// What came from where.
    pub sources: SourceStatus,
    /// The peers, and which blocks each says it holds.
    pub peers: Vec<(PeerStatus, Vec<BlockRange>)>,
}

/// One peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its UDP address.
    pub address: String,
    /// By which it is known whatever its address, if it says so.
    #[serde(default)]
    pub id: Option<String>,
    /// What it is: `origin`, `relay`, `lan` (a node that is near), `other` (a node elsewhere).
    #[serde(with = "PeerKindForm")]
    pub kind: PeerKind,
    /// Whether its address is of a private network or of one that this machine is in.
    pub near: bool,
    /// State of its channel.
    #[serde(with = "PeerStateForm")]
    pub state: PeerState,
    /// Why nothing comes from it.
    #[serde(default)]
    pub idle: Option<String>,
    /// How its last channel ended, if it has none.
    #[serde(default)]
    pub reason: Option<String>,
    /// Seconds until it is dialled, or asked, again.
    #[serde(default)]
    pub again_s: Option<u64>,
    /// Whether it is told to ask for nothing, because it asks for too much.
    #[serde(default)]
    pub choked: bool,
    /// Whether it is told what is held here, and gets it.
    #[serde(default)]
    pub served: bool,
    /// Whether this node opened the channel.
    pub outbound: bool,
    /// Seconds since its channel was made.
    #[serde(default)]
    pub age_s: u64,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: Option<u64>,
    /// Bytes of datagrams received from it.
    pub received_bytes: u64,
    /// Bytes of datagrams sent to it.
    pub sent_bytes: u64,
    /// Bytes of datagrams received from it in a second.
    #[serde(default)]
    pub received_bytes_per_s: u64,
    /// Bytes of datagrams sent to it in a second.
    #[serde(default)]
    pub sent_bytes_per_s: u64,
    /// Payload from it that was verified.
    #[serde(default)]
    pub verified_bytes: u64,
    /// Bytes asked of it and not yet there.
    pub outstanding_bytes: u64,
    /// Blocks that it says it holds.
    pub available_blocks: u64,
    /// How far it says that it is from the origin: 0 the origin, 255 a node, relays between.
    #[serde(default)]
    pub level: Option<u8>,
}

/// How [`PeerState`] looks in JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "PeerState", rename_all = "lowercase")]
enum PeerStateForm {
    Opening,
    Open,
    Silent,
    Closed,
    Banned,
}

/// How [`PeerKind`] looks in JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "PeerKind", rename_all = "lowercase")]
enum PeerKindForm {
    Origin,
    Relay,
    Lan,
    Other,
}

/// How [`Idle`] looks in JSON.
fn idle_word(idle: Idle) -> &'static str {
    match idle {
        Idle::NoAnswer => "no_answer",
        Idle::Choked => "choked",
        Idle::Silent => "silent",
        Idle::PassedOver => "passed_over",
        Idle::NothingWanted => "nothing_wanted",
        Idle::NothingToGive => "nothing_to_give",
        Idle::Closed => "closed",
        Idle::Banned => "banned",
    }
}

pub(super) fn swarm_status(swarm: &Swarm, report: SwarmReport) -> SwarmStatus {
    let news = swarm.head_news();
    let trusted = news.trusted.as_deref();
    let counters = &swarm.shared.counters;
    let engine = report.counters;
    SwarmStatus {
        origin: report.origin.to_string(),
        head_munros: trusted.map_or(0, |trusted| trusted.placed.head.munros),
        signed_s: trusted.map_or(0, |trusted| trusted.munro.time().unix_seconds()),
        stale: news.is_stale(),
        problem: news.problem,
        fetched_metadata_bytes: counters.fetched_metadata.load(Ordering::Relaxed),
        fetched_data_bytes: counters.fetched_data.load(Ordering::Relaxed),
        fetched_frame_bytes: counters.fetched_frames.load(Ordering::Relaxed),
        decoded_bytes: counters.decoded.load(Ordering::Relaxed),
        delta_frames: counters.delta_frames.load(Ordering::Relaxed),
        full_frames: counters.full_frames.load(Ordering::Relaxed),
        refused_frames: counters.refused_frames.load(Ordering::Relaxed),
        sources: sources(swarm, &engine),
        local_bytes: counters.local.load(Ordering::Relaxed),
        uncached_runs: counters.uncached_runs.load(Ordering::Relaxed),
        failed_reads: counters.failed_reads.load(Ordering::Relaxed),
        waiting_reads: report.waiting_reads,
        received_bytes: engine.received_bytes,
        sent_bytes: engine.sent_bytes,
        data_received_bytes: engine.data_received_bytes,
        data_sent_bytes: engine.data_sent_bytes,
        duplicate_bytes: engine.duplicate_bytes,
        false_runs: engine.false_runs,
        bad_datagrams: engine.bad_datagrams,
        rerequested_runs: engine.rerequested_runs,
        peers: report.peers.into_iter().map(|peer| peer_status(peer).0).collect(),
    }
}

pub(super) fn swarm_peers(swarm: Swarm, report: SwarmReport) -> SwarmPeers {
    let sources = sources(&swarm, &report.counters);
    SwarmPeers { swarm, sources, peers: report.peers.into_iter().map(peer_status).collect() }
}

fn sources(swarm: &Swarm, counters: &SwarmCounters) -> SourceStatus {
    let from = counters.verified_from;
    SourceStatus {
        origin_bytes: from.origin,
        relay_bytes: from.relay,
        lan_bytes: from.lan,
        other_bytes: from.other,
        cache_bytes: swarm.shared.counters.local.load(Ordering::Relaxed),
    }
}

fn peer_status(peer: PeerReport) -> (PeerStatus, Vec<BlockRange>) {
    let status = PeerStatus {
        address: peer.address.to_string(),
        id: peer.id.map(|id| format!("{id:016x}")),
        kind: peer.kind,
        near: peer.near,
        state: peer.state,
        idle: peer.idle.map(|idle| idle_word(idle).to_owned()),
        reason: peer.down.map(|reason| reason.to_string()),
        again_s: peer.again_in.map(|wait| wait.as_secs()),
        choked: peer.choked,
        served: peer.served,
        outbound: peer.outbound,
        age_s: peer.age.as_secs(),
        rtt_us: peer.rtt.map(|rtt: Duration| rtt.as_micros() as u64),
        received_bytes: peer.received_bytes,
        sent_bytes: peer.sent_bytes,
        received_bytes_per_s: peer.received_rate,
        sent_bytes_per_s: peer.sent_rate,
        verified_bytes: peer.verified_bytes,
        outstanding_bytes: peer.outstanding_bytes,
        available_blocks: peer.available_blocks,
        level: peer.level,
    };
    (status, peer.available)
}
