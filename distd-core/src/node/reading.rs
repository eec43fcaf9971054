//! Reads that wait for the network, and the fetches that they and prefetching have under way.
//!
//! A read is the blocks wanted, a buffer, and what to do when all are there. Fetches are the engine's;
//! several may serve one read. Nothing here waits.

use std::collections::{BTreeMap, btree_map};
use std::net::SocketAddr;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::limits::BLOCK_BYTES;
use crate::ppspp::engine::{Class, FetchId};
use crate::store::ReadError as StoreError;
use crate::tree::VerifiedRun;
use crate::unit::BlockRange;

use super::unpack::JobId;

/// What a read is for: counted apart, so that a user sees what metadata costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Heads, release records, directory nodes, extent lists.
    Metadata,
    /// Content of files.
    Data,
    /// Frames, of which blocks are made.
    Frames,
}

/// How missing blocks may be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Somebody waits: by frames if that is fewer bytes and takes no longer.
    Quick,
    /// Somebody waits who would rather have few bytes moved than wait a little less.
    Cheap,
    /// Nobody waits: in the fewest bytes.
    Background,
    /// As they are: what frames are made with themselves.
    Plain(Class),
}

/// What is under way: a fetch of the engine's, or blocks being made of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Fetch(FetchId),
    Unpack(JobId),
}

/// Why blocks could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nobody delivered in time.
    #[error(
        "blocks {}..{} did not arrive by the deadline; peers tried: {}",
        blocks.start, blocks.end(), Peers(tried)
    )]
    Deadline {
        /// What was wanted.
        blocks: BlockRange,
        /// Who was asked.
        tried: Vec<SocketAddr>,
    },
    /// More reads wait than a node keeps.
    #[error("{waiting} reads wait already; the network is slower than the readers")]
    Busy {
        /// Reads waiting.
        waiting: usize,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// A reference that lies outside the log.
    #[error(
        "bytes {offset}+{len} lie beyond the longest log: the metadata that names them is wrong"
    )]
    OutOfBounds {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The cache's disk fails.
    #[error("the cache cannot be read: {0}")]
    Cache(#[from] StoreError),
}

struct Peers<'a>(&'a [SocketAddr]);

impl std::fmt::Display for Peers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none, for nobody who is connected offers them");
        }
        for (i, peer) in self.0.iter().enumerate() {
            write!(f, "{}{peer}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Called once with what a read comes to.
pub(super) type Done = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

/// A read that waits.
pub(super) struct Waiting {
    pub(super) blocks: BlockRange,
    pub(super) deadline: Instant,
    pub(super) purpose: Purpose,
    pub(super) way: Way,
    pub(super) done: Done,
    buffer: BytesMut,
    filled: Vec<bool>,
    outstanding: usize,
    fetches_left: u32,
}

/// Times that a read goes to the network, for blocks that its cache lost between the fetch and the
/// answer (evicted, damaged).
const FETCHES_MAX: u32 = 4;

/// A number for each waiting read, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReadId(u64);

/// One piece of work under way.
struct Fetching {
    blocks: BlockRange,
    purpose: Purpose,
    read: Option<ReadId>,
}

/// All waiting reads and fetches of one log.
#[derive(Default)]
pub(super) struct Reading {
    next: u64,
    waiting: BTreeMap<ReadId, Waiting>,
    fetching: BTreeMap<Work, Fetching>,
    /// Fetches by their first block, to find those that a run touches.
    by_block: BTreeMap<u64, Vec<Work>>,
    /// Longest fetch ever entered, in blocks: how far back `by_block` must be searched.
    longest: u64,
}

impl Waiting {
    pub(super) fn new(
        blocks: BlockRange,
        deadline: Instant,
        purpose: Purpose,
        way: Way,
        done: Done,
    ) -> Self {
        let buffer = BytesMut::zeroed(blocks.byte_len() as usize);
        let filled = vec![false; blocks.count as usize];
        let (outstanding, fetches_left) = (0, FETCHES_MAX);
        Self { blocks, deadline, purpose, way, done, buffer, filled, outstanding, fetches_left }
    }

    /// Copies what the run has of the blocks wanted.
    fn fill(&mut self, run: &VerifiedRun) {
        let Some(blocks) = run.bin().blocks() else { return };
        let common = self.blocks.intersection(blocks);
        if common.is_empty() {
            return;
        }
        let from = ((common.start.0 - blocks.start.0) * BLOCK_BYTES) as usize;
        let to = ((common.start.0 - self.blocks.start.0) * BLOCK_BYTES) as usize;
        let len = common.byte_len() as usize;
        self.buffer[to..to + len].copy_from_slice(&run.bytes()[from..from + len]);
        let first = (common.start.0 - self.blocks.start.0) as usize;
        self.filled[first..first + common.count as usize].fill(true);
    }

    /// The blocks not there yet, as runs.
    pub(super) fn unfilled(&self) -> Vec<BlockRange> {
        let mut runs: Vec<BlockRange> = Vec::new();
        for (block, _) in self.blocks.iter().zip(&self.filled).filter(|(_, filled)| !**filled) {
            match runs.last_mut() {
                Some(last) if last.end() == block => last.count += 1,
                _ => runs.push(BlockRange::new(block, 1)),
            }
        }
        runs
    }

    /// The buffer's part for `blocks`, to be filled from the cache.
    pub(super) fn part_mut(&mut self, blocks: BlockRange) -> &mut [u8] {
        let start = ((blocks.start.0 - self.blocks.start.0) * BLOCK_BYTES) as usize;
        &mut self.buffer[start..start + blocks.byte_len() as usize]
    }

    /// Marks `blocks` as filled from the cache, all but the `missing` ones among them.
    pub(super) fn mark_filled_but(&mut self, blocks: BlockRange, missing: &[BlockRange]) {
        let range = |part: BlockRange| {
            let first = (part.start.0 - self.blocks.start.0) as usize;
            first..first + part.count as usize
        };
        self.filled[range(blocks)].fill(true);
        for part in missing {
            self.filled[range(*part)].fill(false);
        }
    }

    /// Whether the read may go to the network (once more).
    pub(super) fn may_fetch(&mut self) -> bool {
        let left = self.fetches_left.checked_sub(1);
        self.fetches_left = left.unwrap_or(0);
        left.is_some()
    }

    /// The bytes, for whoever waited.
    pub(super) fn finish(self) -> (Done, Bytes) {
        (self.done, self.buffer.freeze())
    }
}

impl Reading {
    /// Number of waiting reads.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes in a read whose fetches follow by [`Self::fetch_started`].
    pub(super) fn wait(&mut self, waiting: Waiting) -> ReadId {
        let id = ReadId(self.next);
        self.next += 1;
        self.waiting.insert(id, waiting);
        id
    }

    /// Work on blocks has begun, for a read or (`None`) for the cache alone.
    pub(super) fn fetch_started(
        &mut self,
        fetch: Work,
        blocks: BlockRange,
        purpose: Purpose,
        read: Option<ReadId>,
    ) {
        if let Some(waiting) = read.and_then(|id| self.waiting.get_mut(&id)) {
            waiting.outstanding += 1;
        }
        self.longest = self.longest.max(blocks.count);
        self.by_block.entry(blocks.start.0).or_default().push(fetch);
        self.fetching.insert(fetch, Fetching { blocks, purpose, read });
    }

    /// A run was verified: gives it to every read that wants a part of it. Returns what it was
    /// fetched for.
    pub(super) fn on_run(&mut self, run: &VerifiedRun) -> Purpose {
        let Some(blocks) = run.bin().blocks() else { return Purpose::Data };
        let mut purpose = None;
        let first = blocks.start.0.saturating_sub(self.longest);
        for fetch in self.by_block.range(first..blocks.end().0).flat_map(|(_, fetches)| fetches) {
            let Some(fetching) = self.fetching.get(fetch) else { continue };
            if fetching.blocks.intersection(blocks).is_empty() {
                continue;
            }
            // A block of a frame is nothing else; one that somebody reads as content counts as that.
            purpose = match (purpose, fetching.purpose) {
                (Some(Purpose::Frames), _) | (_, Purpose::Frames) => Some(Purpose::Frames),
                (Some(Purpose::Data), _) => purpose,
                (_, other) => Some(other),
            };
            if let Some(waiting) = fetching.read.and_then(|id| self.waiting.get_mut(&id)) {
                waiting.fill(run);
            }
        }
        purpose.unwrap_or(Purpose::Data)
    }

    /// A fetch ended well. Returns the read that it was the last one of.
    pub(super) fn on_fetched(&mut self, fetch: Work) -> Option<Waiting> {
        let id = self.forget(fetch)?.read?;
        let waiting = self.waiting.get_mut(&id)?;
        waiting.outstanding -= 1;
        if waiting.outstanding == 0 { self.waiting.remove(&id) } else { None }
    }

    /// A fetch failed, and the read with it, if one waited for it.
    pub(super) fn on_failed(&mut self, fetch: Work) -> (Option<Waiting>, Vec<Work>) {
        let Some(id) = self.forget(fetch).and_then(|fetching| fetching.read) else {
            return (None, Vec::new());
        };
        let waiting = self.waiting.remove(&id);
        let others: Vec<Work> =
            self.fetching.iter().filter(|(_, f)| f.read == Some(id)).map(|(f, _)| *f).collect();
        for other in &others {
            self.forget(*other);
        }
        (waiting, others)
    }

    /// Whether the fetch is one of this log's.
    pub(super) fn is_fetching(&self, fetch: Work) -> bool {
        self.fetching.contains_key(&fetch)
    }

    fn forget(&mut self, fetch: Work) -> Option<Fetching> {
        let fetching = self.fetching.remove(&fetch)?;
        if let btree_map::Entry::Occupied(mut entry) = self.by_block.entry(fetching.blocks.start.0)
        {
            entry.get_mut().retain(|other| *other != fetch);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        Some(fetching)
    }

    /// Ends everything: the node is stopping.
    pub(super) fn drain(&mut self) -> Vec<Done> {
        self.fetching.clear();
        self.by_block.clear();
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.done).collect()
    }
}
