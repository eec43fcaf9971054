//! How a node stands, for `status --json`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ppspp::engine::{PeerReport, PeerState};
use crate::store::Usage;

use super::event_loop::SwarmReport;
use super::swarm::Swarm;

/// A node and all its logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// UDP address that peers reach.
    pub listen: String,
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

/// One peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its UDP address.
    pub address: String,
    /// State of its channel.
    #[serde(with = "PeerStateForm")]
    pub state: PeerState,
    /// Whether this node opened the channel.
    pub outbound: bool,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: Option<u64>,
    /// Bytes of datagrams received from it.
    pub received_bytes: u64,
    /// Bytes of datagrams sent to it.
    pub sent_bytes: u64,
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
        peers: report.peers.into_iter().map(peer_status).collect(),
    }
}

pub(super) fn peer_status(peer: PeerReport) -> PeerStatus {
    PeerStatus {
        address: peer.address.to_string(),
        state: peer.state,
        outbound: peer.outbound,
        rtt_us: peer.rtt.map(|rtt: Duration| rtt.as_micros() as u64),
        received_bytes: peer.received_bytes,
        sent_bytes: peer.sent_bytes,
        outstanding_bytes: peer.outstanding_bytes,
        available_blocks: peer.available_blocks,
        level: peer.level,
    }
}
