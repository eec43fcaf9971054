//! What goes in and comes out of a static swarm's engine.

use std::net::SocketAddr;
use std::time::Duration;

use crate::tree::merkle::{BranchIndex, ContentId, MerkleTree};

use super::super::DownReason;
use super::Mismatch;

/// A static swarm to take part in.
#[derive(Debug)]
pub struct StaticOptions {
    /// Seed of all chance: channel ids above all, so 32 bytes from a cryptographic source.
    pub rng_seed: [u8; 32],
    /// The content's name.
    pub id: ContentId,
    /// The content's length, if it was told by whom the name came from; else it is found by peak hashes.
    pub bytes: Option<u64>,
    /// The whole tree of who has all the content: a seeder.
    pub tree: Option<MerkleTree>,
}

/// What happened.
#[derive(Debug)]
pub enum StaticEvent {
    /// The content's length is known and proved. Nothing is fetched before
    /// [`super::StaticSwarm::start`].
    Settled {
        /// Its length.
        bytes: u64,
    },
    /// All chunks of a branch arrived and are verified: to be stored, then
    /// [`super::StaticSwarm::hold`].
    Branch {
        /// Which one.
        branch: BranchIndex,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A branch that was read to be served is not the content's any more: it is fetched anew, or not served.
    Spoiled {
        /// Which one.
        branch: BranchIndex,
    },
    /// A channel is open.
    PeerUp {
        /// To whom.
        address: SocketAddr,
    },
    /// A channel is gone.
    PeerDown {
        /// To whom.
        address: SocketAddr,
        /// Why.
        reason: DownReason,
    },
}

/// How a source or peer stands.
#[derive(Clone, Debug)]
pub struct StaticPeer {
    /// Where it is.
    pub address: SocketAddr,
    /// It was named as a source; others have come by themselves.
    pub is_source: bool,
    /// Its channel is open.
    pub is_open: bool,
    /// Its options are not the swarm's.
    pub mismatch: Option<Mismatch>,
    /// Why its last channel was lost.
    pub down: Option<DownReason>,
    /// The length that it claims and that cannot be told from a forgery.
    pub ambiguous: Option<u64>,
    /// Chunks from it that could not be proved, nor proved false: hashes that fit were lacking.
    pub unproved_chunks: u64,
    /// Chunks that it says it has.
    pub has_chunks: u64,
    /// It answers no requests for now.
    pub is_choking: bool,
    /// Bytes of chunks from it that were verified.
    pub verified_bytes: u64,
    /// Bytes of chunks that were sent to it, repetitions included.
    pub data_sent_bytes: u64,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

/// What was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaticCounters {
    /// Datagrams that came, and their bytes.
    pub received_datagrams: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Datagrams that went out.
    pub sent_datagrams: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Bytes of chunks that were sent.
    pub data_sent_bytes: u64,
    /// Bytes of chunks that were verified.
    pub verified_bytes: u64,
    /// Bytes of chunks that came and were here already, or nobody had asked for.
    pub duplicate_bytes: u64,
    /// Chunks that could not be verified for want of hashes.
    pub hashless: u64,
    /// Chunks that were asked for again.
    pub rerequested: u64,
    /// Handshakes that were met with silence.
    pub refused_handshakes: u64,
    /// Datagrams that make no sense, or for no channel.
    pub bad_datagrams: u64,
}
