//! What goes in and comes out of the engine: its identifiers, options, events and reports.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;

use crate::keys::SwarmId;
use crate::tree::{SignedMunro, VerifiedMunro, VerifiedRun};
use crate::unit::{Bin, BlockRange};

use super::networks::Networks;
use super::report::SourceBytes;

/// A swarm of this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmKey(pub(super) u32);

/// A fetch of this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub(super) u64);

impl FetchId {
    /// The upper half names the swarm, so that a fetch is found without a table.
    pub(super) const fn new(swarm: SwarmKey, sequence: u32) -> Self {
        Self(((swarm.0 as u64) << 32) | sequence as u64)
    }
    pub(super) const fn swarm(self) -> SwarmKey {
        SwarmKey((self.0 >> 32) as u32)
    }
}

/// A read that the engine asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub(super) u64);

/// Who waits for a run. The order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits: paced, warm, first at every sender.
    Waited,
    /// Prefetch and bulk: whatever capacity is left.
    Background,
}

impl Class {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Waited => 0,
            Self::Background => 1,
        }
    }
}

/// What a member of a swarm is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It publishes the log, and fetches nothing.
    Injector,
    /// It fetches for those below it.
    Relay,
    /// It fetches for itself, and its share of what its equals want.
    Node,
}

/// Whom a member serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// Nobody: it takes and gives nothing.
    None,
    /// Those that are near ([`Networks`]).
    #[default]
    Local,
    /// Everybody.
    All,
}

impl Audience {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Local, Self::All];

    /// Its word on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Local => "local",
            Self::All => "all",
        }
    }

    /// Whether it is for a peer that is near, or far.
    pub(super) const fn takes(self, near: bool) -> bool {
        match self {
            Self::None => false,
            Self::Local => near,
            Self::All => true,
        }
    }
}

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Seed of all chance: channel ids above all, so 32 bytes from a cryptographic source.
    pub rng_seed: [u8; 32],
    /// Bytes that may be asked for and not yet there, of all sources together.
    pub receive_bytes_max: u64,
    /// Bytes read from disk for peers and not yet sent, of all peers together.
    pub read_bytes_max: u64,
    /// The networks that this machine is in.
    pub networks: Networks,
    /// Whom it serves, in every swarm.
    pub audience: Audience,
    /// Whom it asks for other peers, and tells of them (RFC 7574 §3.10).
    pub exchange: Audience,
}

/// Limits in bytes a second; `None`: as much as lines and congestion control give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Datagrams of data sent to peers.
    pub upload: Option<NonZeroU64>,
    /// Blocks asked of peers, whether somebody waits for them or not.
    pub download: Option<NonZeroU64>,
}

impl EngineConfig {
    /// Whether peers at an address are served. This is the only place that says so.
    pub(super) fn serves(&self, address: SocketAddr) -> bool {
        self.audience.takes(self.networks.hold(address.ip()))
    }

    /// The default budgets, in no network; it serves everybody.
    pub const fn new(rng_seed: [u8; 32]) -> Self {
        let (receive_bytes_max, read_bytes_max) =
            (super::limits::RECEIVE_BYTES_MAX, super::limits::READ_BYTES_MAX);
        Self {
            rng_seed,
            receive_bytes_max,
            read_bytes_max,
            networks: Networks::none(),
            audience: Audience::All,
            exchange: Audience::Local,
        }
    }
}

/// A swarm to take part in.
#[derive(Clone, Debug)]
pub struct SwarmOptions {
    /// Its id: the origin's key.
    pub id: SwarmId,
    /// The rightmost signed munro known so far.
    pub newest: Option<VerifiedMunro>,
    /// What is stored here already.
    pub held: Vec<BlockRange>,
    /// Whether to answer requests and announce what is held.
    pub serve: bool,
    /// What it is to the others.
    pub role: Role,
}

/// A batch of datagrams for one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// One datagram, or several of equal length one after the other.
    pub payload: Vec<u8>,
    /// Length of each of several datagrams; the last may be shorter. `None`: one datagram.
    pub segment_bytes: Option<usize>,
}

impl Transmit {
    /// The datagrams, one by one.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.payload.chunks(self.segment_bytes.unwrap_or(self.payload.len()).max(1))
    }
}

/// Names a run that is being hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashId {
    pub(super) channel: super::channel::ChannelIndex,
    /// The flight's first chunk.
    pub(super) first: u64,
    pub(super) serial: u64,
    /// What the last chunk took on its way, for the acknowledgement.
    pub(super) delay_us: u64,
}

/// A run that arrived, to be hashed on whichever thread has time ([`crate::tree::HashedRun::new`]).
/// Answer with [`super::Engine::handle_hashed`]. There are as many at most as runs in flight.
#[derive(Clone, Debug)]
pub struct HashRequest {
    /// Names the answer.
    pub id: HashId,
    /// Which run it claims to be.
    pub bin: Bin,
    /// Its bytes, as many as the bin has.
    pub bytes: Bytes,
}

/// A run to read, to serve a peer. Answer with [`super::Engine::handle_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// Names the answer.
    pub id: DiskId,
    /// Whose log.
    pub swarm: SwarmKey,
    /// An aligned run of blocks, 256 KiB at most.
    pub bin: Bin,
}

/// Why a fetch ended without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Peers were asked, and none delivered in time.
    #[error("no peer delivered it by the deadline")]
    Deadline,
    /// No peer could be asked until the deadline.
    #[error("no peer that has it was reachable by the deadline")]
    NoPeers,
    /// [`super::Engine::cancel`], or the swarm was removed.
    #[error("the fetch was cancelled")]
    Cancelled,
    /// Too many fetches at the same time; retry when others have ended.
    #[error("too many fetches at the same time")]
    TooMany,
}

/// Why a channel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// The peer said goodbye.
    #[error("closed by the peer")]
    Closed,
    /// Nothing was heard for too long.
    #[error("dead: nothing heard for {:.1} s", silence.as_secs_f64())]
    Dead {
        /// How long.
        silence: Duration,
    },
    /// It sent bytes or hashes that the origin did not sign. The address is banned for a while.
    #[error("sent false data for bin {bin}")]
    Lied {
        /// The run.
        bin: Bin,
    },
    /// It sent a munro whose signature is not the origin's. The address is banned for a while.
    #[error("sent a munro with a false signature")]
    ForgedMunro,
    /// It sent too much that nobody had asked for.
    #[error("sent data that nobody asked for")]
    Flooded,
    /// It sent a datagram that is no sequence of messages.
    #[error("sent a malformed datagram")]
    Malformed,
    /// It holds another log under the same key.
    #[error("holds a forked log")]
    Forked,
    /// A newer channel with the same address took its place.
    #[error("superseded by a newer channel")]
    Superseded,
    /// The swarm was removed here.
    #[error("the swarm was left")]
    Left,
    /// The address is our own.
    #[error("it is this node itself")]
    Ourselves,
    /// It answered the handshake with a goodbye.
    #[error("it does not serve this machine")]
    Refused,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A run arrived and is proved. Each run once, before the [`Event::Fetched`] that it completes.
    Verified {
        /// In which swarm.
        swarm: SwarmKey,
        /// The run.
        run: VerifiedRun,
        /// Who delivered it.
        from: SocketAddr,
    },
    /// All runs of a fetch were handed out.
    Fetched {
        /// Which fetch.
        fetch: FetchId,
    },
    /// A fetch ended without all its runs.
    Failed {
        /// Which fetch.
        fetch: FetchId,
        /// Why.
        reason: FetchError,
        /// The peers that were asked.
        tried: Vec<SocketAddr>,
    },
    /// A newer rightmost munro, or a later signature of the same; the signature holds. The engine
    /// has no wall clock: a time in the future is for the caller to refuse.
    Newest {
        /// In which swarm.
        swarm: SwarmKey,
        /// The munro.
        munro: VerifiedMunro,
        /// Who sent it.
        from: SocketAddr,
    },
    /// A peer told of another one, which is dialled.
    Found {
        /// Where.
        swarm: SwarmKey,
        /// Its address.
        address: SocketAddr,
    },
    /// Two hashes, both validly signed, for one position: keep both as evidence.
    Fork {
        /// In which swarm.
        swarm: SwarmKey,
        /// What was known.
        known: SignedMunro,
        /// What came.
        claimed: SignedMunro,
        /// Who sent it.
        from: SocketAddr,
    },
    /// A channel is open both ways.
    PeerUp {
        /// In which swarm.
        swarm: SwarmKey,
        /// Its address.
        address: SocketAddr,
    },
    /// A channel ended.
    PeerDown {
        /// In which swarm.
        swarm: SwarmKey,
        /// Its address.
        address: SocketAddr,
        /// Why.
        reason: DownReason,
        /// Something that it was sent had not been acknowledged.
        unacknowledged: bool,
    },
}

/// What a swarm has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmCounters {
    /// Datagrams received on channels.
    pub received_datagrams: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Datagrams sent, handshakes included.
    pub sent_datagrams: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Payload of DATA received, duplicates included.
    pub data_received_bytes: u64,
    /// Payload of DATA sent, retransmissions included.
    pub data_sent_bytes: u64,
    /// Payload of runs that were verified.
    pub verified_bytes: u64,
    /// The same by what delivered it.
    pub verified_from: SourceBytes,
    /// Payload of DATA that was there already.
    pub duplicate_bytes: u64,
    /// DATA that nobody asked for.
    pub stray_datagrams: u64,
    /// Malformed datagrams, and those from an address that is not the channel's.
    pub bad_datagrams: u64,
    /// Runs that were asked for.
    pub requested_runs: u64,
    /// Runs of which something was asked for again.
    pub rerequested_runs: u64,
    /// Runs asked of a second source because the first was late.
    pub hedged_runs: u64,
    /// Runs that did not verify.
    pub false_runs: u64,
    /// MISS messages received.
    pub missed: u64,
    /// Losses that this side noticed as a sender.
    pub losses: u64,
}

/// What an engine did with datagrams that belong to no swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounters {
    /// Datagrams for a channel that does not exist here.
    pub unknown_channel: u64,
    /// Datagrams whose address is not their channel's.
    pub wrong_address: u64,
    /// Handshakes with a swarm or options that are not ours, malformed ones, and those beyond a
    /// bound.
    pub refused_handshakes: u64,
    /// Half-open handshakes at the moment.
    pub half_open: u64,
    /// Channels at the moment.
    pub channels: u64,
}
