//! One file that never changes, as a swarm of the RFC (§5): what other implementations speak.
//!
//! ```text
//!   datagrams, time          +-------------+   Transmit
//!   ---------------------->  |             |  ----------------------->
//!   start hold               | StaticSwarm |   branches to read
//!   ---------------------->  |             |  ----------------------->
//!   branches that were read  +-------------+   StaticEvent, next timeout
//! ```
//!
//! An engine without I/O like the log's, and built of its parts: the codec, the table of half-open
//! handshakes, congestion control, what was sent and is to be acknowledged, round trips. Its own is what
//! static content has otherwise: a chunk is verified by itself against the root, ranges have 32 bits, the
//! length may be unknown at first, and peers may be old.
//!
//! | room | noun |
//! |---|---|
//! | `event`, `limits` | what goes in and out; every bound |
//! | `handshake`, `dial` | the options, and how channels come to be |
//! | `channel` | what is kept of a peer |
//! | `content`, `source` | what is here and wanted; what is asked of whom |
//! | `receive` | what each message does |
//! | `serve`, `transmit` | what peers asked for, and in which datagrams it goes |

mod channel;
mod content;
mod dial;
mod event;
mod handshake;
pub mod limits;
mod receive;
mod serve;
mod source;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::ppspp::codec::{ChannelId, WireProfile};
use crate::tree::merkle::{BranchHashes, BranchIndex, ContentShape, MerkleHash, MerkleTree};
use crate::unit::Bin;

use super::Transmit;
use super::half_open::HalfOpenTable;
use channel::Channel;
use content::Content;
use dial::{Liar, Link};
pub use event::{StaticCounters, StaticEvent, StaticOptions, StaticPeer};
pub use handshake::Mismatch;
use serve::Shelved;

/// The engine of one static swarm.
#[derive(Debug)]
pub struct StaticSwarm {
    profile: WireProfile,
    rng: StdRng,
    /// Where our clock of microseconds begins, and at which value.
    clock: (Instant, u64),
    content: Content,
    /// By what peers write in front of their datagrams.
    channels: BTreeMap<ChannelId, Channel>,
    links: BTreeMap<SocketAddr, Link>,
    half_open: HalfOpenTable,
    liars: BTreeMap<SocketAddr, Liar>,
    /// Branches to be served, the one used last at the end.
    shelf: VecDeque<Arc<Shelved>>,
    /// Branches that are being read.
    reading: BTreeSet<BranchIndex>,
    queues: Queues,
    /// Who is served next.
    turn: ChannelId,
    hedge_at: Option<Instant>,
    /// The timers do not run again before this.
    rest_until: Instant,
    counters: StaticCounters,
}

#[derive(Debug, Default)]
struct Queues {
    transmits: VecDeque<Transmit>,
    events: VecDeque<StaticEvent>,
    reads: VecDeque<BranchIndex>,
}

impl StaticSwarm {
    /// A member without peers. `None`: the content is empty or too long, or the tree is another's.
    pub fn new(options: StaticOptions, now: Instant) -> Option<Self> {
        let mut rng = StdRng::from_seed(options.rng_seed);
        // A clock that begins anywhere tells nobody how long this process has been running.
        let clock = (now, u64::from(rng.random::<u32>()) << 16);
        let mut content = Content::new(options.id);
        let mut queues = Queues::default();
        if let Some(bytes) = options.bytes {
            let shape = ContentShape::of_bytes(bytes)?;
            content.settle(shape, bytes);
            if let Some(tree) = options.tree {
                if tree.id() != options.id || tree.shape() != shape {
                    return None;
                }
                content.tree = Some(tree);
                content.held.insert(0, shape.chunks());
            }
            queues.events.push_back(StaticEvent::Settled { bytes });
        }
        Some(Self {
            profile: handshake::profile(options.id.function),
            rng,
            clock,
            content,
            channels: BTreeMap::new(),
            links: BTreeMap::new(),
            half_open: HalfOpenTable::default(),
            liars: BTreeMap::new(),
            shelf: VecDeque::new(),
            reading: BTreeSet::new(),
            queues,
            turn: ChannelId(0),
            hedge_at: None,
            rest_until: now,
            counters: StaticCounters::default(),
        })
    }

    /// Takes hashes that were kept from an earlier attempt, as far as they are the content's.
    pub fn admit(&mut self, kept: &BTreeMap<Bin, MerkleHash>) {
        if let Some(tree) = &mut self.content.tree {
            tree.admit(kept);
        }
    }

    /// Whether it can be told of a branch's bytes whether they are the content's.
    pub fn knows(&self, branch: BranchIndex) -> bool {
        let tree = self.content.tree.as_ref();
        tree.is_some_and(|tree| tree.node(tree.shape().branch_bin(branch)).is_some())
    }

    /// Whether the bytes of a branch that is here are the content's, as far as that can be told.
    pub fn proves(&mut self, branch: BranchIndex, bytes: &[u8]) -> bool {
        if !self.fits(branch, bytes) || !self.knows(branch) {
            return false;
        }
        let Some(tree) = &mut self.content.tree else { return false };
        let hashes = BranchHashes::of(tree.id().function, tree.shape(), branch, bytes);
        tree.admit_branch(&hashes)
    }

    /// Fetches what is not held.
    pub fn start(&mut self, now: Instant) {
        self.content.start();
        self.hedge_at = Some(now + limits::HEDGE_EVERY);
    }

    /// A branch is stored: it is served and announced.
    pub fn hold(&mut self, now: Instant, branch: BranchIndex) {
        self.content.hold(branch);
        for channel in self.channels.values_mut() {
            channel.told.due_at.get_or_insert(now + limits::ANNOUNCE_DELAY);
        }
    }

    /// Hashes above the branches that were proved since this was last asked, to be kept.
    pub fn take_proved(&mut self) -> Vec<(Bin, MerkleHash)> {
        self.content.tree.as_mut().map(MerkleTree::take_news).unwrap_or_default()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<StaticEvent> {
        self.queues.events.pop_front()
    }

    /// A branch to read, to serve it. Answer with [`Self::handle_read`].
    pub fn poll_read(&mut self) -> Option<BranchIndex> {
        self.queues.reads.pop_front()
    }

    /// The bytes of a branch; `None`: it cannot be read. They are held against the tree before they are
    /// served: the file may have been changed.
    pub fn handle_read(&mut self, branch: BranchIndex, bytes: Option<Bytes>) {
        self.reading.remove(&branch);
        let Some(tree) = &self.content.tree else { return };
        let bytes = bytes.filter(|bytes| self.fits(branch, bytes));
        let hashes = bytes
            .as_ref()
            .map(|bytes| BranchHashes::of(tree.id().function, tree.shape(), branch, bytes));
        match (bytes, hashes.filter(|hashes| tree.proves(hashes))) {
            (Some(bytes), Some(hashes)) => {
                if self.shelf.len() >= limits::SHELF_MAX {
                    self.shelf.pop_front();
                }
                self.shelf.push_back(Arc::new(Shelved { bytes, hashes }));
            }
            _ => self.forget_branch(branch),
        }
    }

    /// The content's length, once it is known.
    pub fn bytes(&self) -> Option<u64> {
        self.content.bytes
    }

    /// Chunks that are here, and all there are.
    pub fn progress(&self) -> (u64, Option<u64>) {
        (self.content.chunks_here(), self.content.shape().map(ContentShape::chunks))
    }

    /// Whether everything is stored.
    pub fn is_complete(&self) -> bool {
        self.content.is_complete()
    }

    /// What was moved.
    pub fn counters(&self) -> StaticCounters {
        self.counters
    }

    /// Who there is, and how they stand.
    pub fn peers(&self) -> Vec<StaticPeer> {
        let mut peers: Vec<StaticPeer> = self.channels.values().map(Self::peer).collect();
        for (address, link) in &self.links {
            if let Some(peer) = peers.iter_mut().find(|peer| peer.address == *address) {
                peer.is_source = true;
                peer.verified_bytes += link.verified_bytes;
                peer.data_sent_bytes += link.data_sent_bytes;
                (peer.down, peer.mismatch) = (link.down, link.mismatch);
            } else {
                peers.push(link.peer(*address));
            }
        }
        peers
    }

    fn peer(channel: &Channel) -> StaticPeer {
        StaticPeer {
            address: channel.address,
            is_source: false,
            is_open: channel.is_open(),
            mismatch: None,
            down: None,
            ambiguous: channel.source.sounding.ambiguous,
            unproved_chunks: channel.source.unproved,
            has_chunks: channel.source.availability.count(),
            is_choking: channel.source.is_choking,
            verified_bytes: channel.source.verified_bytes,
            data_sent_bytes: channel.serve.data_sent_bytes,
            rtt: channel.rtt.smoothed(),
        }
    }

    /// Whether a branch has so many bytes.
    fn fits(&self, branch: BranchIndex, bytes: &[u8]) -> bool {
        let chunks = self.content.shape().and_then(|shape| shape.branch_chunks(branch));
        let (Some(chunks), Some(total)) = (chunks, self.content.bytes) else { return false };
        let len = chunks.count() * crate::limits::CHUNK_BYTES;
        bytes.len() as u64 == len.min(total.saturating_sub(branch.byte_offset()))
    }

    fn clock_us(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.clock.0).as_micros() as u64;
        self.clock.1.wrapping_add(elapsed)
    }
}
