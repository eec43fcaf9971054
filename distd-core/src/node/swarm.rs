//! One origin's log as this node sees it: the handle that file systems and commands hold.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::frame::FrameDecoders;
use crate::head::Head;
use crate::keys::OriginId;
use crate::limits::{BLOCK_BYTES, NODE_BYTES_MAX};
use crate::store::CachedLog;
use crate::tree::SignedMunro;
use crate::unit::{BlockRange, ByteRange, MunroIndex};

use super::clock::unix_now_s;
use super::event_loop::Command;
use super::follow::{TrustedHead, decode_fork, encode_fork};
use super::reading::{Done, Purpose, ReadError, Way};
use super::seeds::{LentSeeds, Seeds};

/// Reads that may wait at one time in one node; a further one is refused.
const READS_MAX: usize = 16_384;
/// Longest single read: the longest metadata node, whatever its alignment.
const READ_BLOCKS_MAX: u64 = NODE_BYTES_MAX / BLOCK_BYTES + 1;

/// How much later than its deadline a blocking read returns if the node's loop does not answer.
const LOOP_SLACK: Duration = Duration::from_secs(5);

/// Name of the state file, and of the pin, that keep the trusted head.
const HEAD_STATE: &str = "head";
/// Name of the state file that keeps the evidence of a fork; who has cleared it up removes the file.
const FORK_STATE: &str = "fork";

/// Counts of one swarm, in bytes where not said otherwise.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Verified bytes that came from peers, for metadata.
    pub(super) fetched_metadata: AtomicU64,
    /// Verified bytes that came from peers, for content of files.
    pub(super) fetched_data: AtomicU64,
    /// Verified bytes that came from peers, of frames.
    pub(super) fetched_frames: AtomicU64,
    /// Bytes that frames decoded to.
    pub(super) decoded: AtomicU64,
    /// Delta frames decoded.
    pub(super) delta_frames: AtomicU64,
    /// Full frames decoded.
    pub(super) full_frames: AtomicU64,
    /// Frames that did not give what the origin signed, or whose bases were gone.
    pub(super) refused_frames: AtomicU64,
    /// Bytes answered from the cache without the network.
    pub(super) local: AtomicU64,
    /// Runs that the cache's disk refused (full): served, not kept.
    pub(super) uncached_runs: AtomicU64,
    /// Reads that failed.
    pub(super) failed_reads: AtomicU64,
}

/// What is known of the log's head.
#[derive(Clone, Debug, Default)]
pub struct HeadNews {
    /// The newest head that this node believes.
    pub trusted: Option<Arc<TrustedHead>>,
    /// Whether a peer has been heard on the matter since the node joined.
    pub heard: bool,
    /// Why the last offer was refused, if it was.
    pub problem: Option<String>,
}

impl HeadNews {
    /// Whether the newest head's validity has run out by this machine's clock.
    pub fn is_stale(&self) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.is_stale_at(unix_now_s()))
    }
}

/// State that the handle and the event loop share.
pub(super) struct Shared {
    pub(super) origin: OriginId,
    pub(super) log: Arc<CachedLog>,
    pub(super) counters: Counters,
    /// Reads submitted and not yet answered, of the whole node.
    pub(super) waiting: Arc<AtomicUsize>,
    /// Blocks that lie elsewhere, unverified.
    pub(super) lent: LentSeeds,
    pub(super) decoders: FrameDecoders,
    news: Mutex<HeadNews>,
    changed: Condvar,
    head: watch::Sender<Option<Arc<TrustedHead>>>,
}

impl Shared {
    pub(super) fn new(origin: OriginId, log: Arc<CachedLog>, waiting: Arc<AtomicUsize>) -> Self {
        let (counters, changed) = (Counters::default(), Condvar::new());
        let (news, head) = (Mutex::default(), watch::Sender::default());
        let (lent, decoders) = (LentSeeds::default(), FrameDecoders::default());
        Self { origin, log, counters, waiting, lent, decoders, news, changed, head }
    }

    fn news(&self) -> MutexGuard<'_, HeadNews> {
        // Nothing panics while it holds the lock; a poisoned one still holds a whole value.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest head that is believed.
    pub(super) fn trusted(&self) -> Option<Arc<TrustedHead>> {
        self.news().trusted.clone()
    }

    /// The head that the cache has kept, proved anew.
    pub(super) fn load_head(&self) -> Option<TrustedHead> {
        let bytes = self.log.load(HEAD_STATE).unwrap_or_else(|error| {
            tracing::warn!(%error, "the trusted head cannot be read from the cache; asking peers");
            None
        })?;
        let trusted = TrustedHead::decode(&self.origin, &bytes);
        if trusted.is_none() {
            tracing::warn!(origin = %self.origin, "the head kept in the cache is not the origin's");
        }
        trusted
    }

    /// Keeps the head: old or new, never neither (the state file is replaced atomically).
    pub(super) fn save_head(&self, trusted: &TrustedHead) {
        let Some(bytes) = trusted.encode() else { return };
        if let Err(error) = self.log.save(HEAD_STATE, &bytes) {
            tracing::warn!(%error, "the trusted head cannot be kept in the cache");
        }
        let block = Head::block(trusted.placed.head.munros);
        if let Err(error) = self.log.pin(HEAD_STATE, &[BlockRange::new(block, 1)]) {
            tracing::warn!(%error, "the head's block cannot be pinned");
        }
    }

    /// The munro of which the origin signed two contents, if that was ever seen: a node that is started
    /// again accepts no more heads than before.
    pub(super) fn load_fork(&self) -> Option<MunroIndex> {
        let bytes = self.log.load(FORK_STATE).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is known of forks cannot be read from the cache");
            None
        })?;
        decode_fork(&self.origin, &bytes)
    }

    /// Keeps the evidence of a fork.
    pub(super) fn save_fork(&self, known: &SignedMunro, claimed: &SignedMunro) {
        if let Err(error) = self.log.save(FORK_STATE, &encode_fork(known, claimed)) {
            tracing::error!(%error, "the evidence of the fork cannot be kept");
        }
    }

    /// Says that there was a fork.
    pub(super) fn tell_fork(&self, munro: MunroIndex) {
        self.update_news(|news| {
            news.heard = true;
            news.problem = Some(format!(
                "fork at munro {munro}: two contents signed; no new head is accepted"
            ));
        });
    }

    /// Publishes what became of the head.
    pub(super) fn update_news(&self, update: impl FnOnce(&mut HeadNews)) {
        let mut news = self.news();
        update(&mut news);
        let trusted = news.trusted.clone();
        drop(news);
        self.changed.notify_all();
        self.head.send_if_modified(|head| {
            let modified = *head != trusted;
            *head = trusted;
            modified
        });
    }
}

/// One origin's log as this node sees it. Cheap to clone; all methods may be called from any thread.
#[derive(Clone)]
pub struct Swarm {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Swarm {
    /// Whose log it is.
    pub fn origin(&self) -> OriginId {
        self.shared.origin
    }

    /// The newest head that this node believes, and how it stands.
    pub fn head_news(&self) -> HeadNews {
        self.shared.news().clone()
    }

    /// Changes of the trusted head.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<TrustedHead>>> {
        self.shared.head.subscribe()
    }

    /// Waits until a peer has told the newest head, or one that should know better is silent about it;
    /// at most `patience`. Blocks the calling thread.
    pub fn wait_head(&self, patience: Duration) -> HeadNews {
        let news = self.shared.news();
        // Peers that answer without knowing a head leave the wait to those who do.
        let unheard =
            |news: &mut HeadNews| !news.heard || news.trusted.is_none() && news.problem.is_none();
        let (news, _) = self
            .shared
            .changed
            .wait_timeout_while(news, patience, unheard)
            .unwrap_or_else(PoisonError::into_inner);
        news.clone()
    }

    /// Waits for a head of more than `munros`, at most `patience`. Blocks the calling thread.
    pub fn wait_newer_head(&self, munros: u64, patience: Duration) -> HeadNews {
        let known = |news: &mut HeadNews| {
            news.trusted.as_ref().is_none_or(|trusted| trusted.placed.head.munros <= munros)
        };
        let news = self.shared.news();
        let (news, _) = self
            .shared
            .changed
            .wait_timeout_while(news, patience, known)
            .unwrap_or_else(PoisonError::into_inner);
        news.clone()
    }

    /// Reads blocks if the cache has them all, without waiting for the network. `false`: something is
    /// missing and `out` holds nothing of meaning.
    ///
    /// # Panics
    /// If `out` is not `blocks.byte_len()` long.
    pub fn read_now(&self, blocks: BlockRange, out: &mut [u8]) -> Result<bool, ReadError> {
        assert_eq!(out.len() as u64, blocks.byte_len(), "the buffer holds the blocks");
        let complete = self.shared.log.read_blocks(blocks, out)?.is_empty();
        if complete {
            self.shared.counters.local.fetch_add(blocks.byte_len(), Ordering::Relaxed);
        }
        Ok(complete)
    }

    /// Reads blocks, from peers where the cache lacks them. Returns at once; `done` is called once,
    /// from a thread of the node, at the latest a little after `deadline`.
    pub fn read(
        &self,
        blocks: BlockRange,
        purpose: Purpose,
        deadline: Instant,
        done: impl FnOnce(Result<Bytes, ReadError>) + Send + 'static,
    ) {
        self.read_by(Way::Quick, blocks, purpose, deadline, done);
    }

    fn read_by(
        &self,
        way: Way,
        blocks: BlockRange,
        purpose: Purpose,
        deadline: Instant,
        done: impl FnOnce(Result<Bytes, ReadError>) + Send + 'static,
    ) {
        let waiting = Arc::clone(&self.shared.waiting);
        let before = waiting.fetch_add(1, Ordering::AcqRel);
        let done: Done = Box::new(move |result| {
            waiting.fetch_sub(1, Ordering::AcqRel);
            done(result);
        });
        if before >= READS_MAX {
            return done(Err(ReadError::Busy { waiting: before }));
        }
        if blocks.count > READ_BLOCKS_MAX {
            let (offset, len) = (blocks.byte_offset(), blocks.byte_len());
            return done(Err(ReadError::OutOfBounds { offset, len }));
        }
        let origin = self.shared.origin;
        let command = Command::Read { origin, blocks, purpose, way, deadline, done };
        if let Err(error) = self.commands.try_send(command) {
            let (error, command) = match error {
                mpsc::error::TrySendError::Full(c) => (ReadError::Busy { waiting: before }, c),
                mpsc::error::TrySendError::Closed(c) => (ReadError::Stopping, c),
            };
            if let Command::Read { done, .. } = command {
                done(Err(error));
            }
        }
    }

    /// Reads blocks and waits. Not for threads that answer the kernel.
    pub fn read_blocking(
        &self,
        blocks: BlockRange,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        self.read_blocking_by(Way::Quick, blocks, purpose, deadline)
    }

    /// The same for who reads much in order: rather in few bytes than a little sooner.
    pub fn read_blocking_cheaply(
        &self,
        blocks: BlockRange,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        self.read_blocking_by(Way::Cheap, blocks, purpose, deadline)
    }

    fn read_blocking_by(
        &self,
        way: Way,
        blocks: BlockRange,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.read_by(way, blocks, purpose, deadline, move |result| {
            // Nobody listens any more only if the caller's thread is gone.
            let _ = sender.send(result);
        });
        // The deadline is kept by the node's loop; the slack is for a loop that is stuck.
        let patience = deadline.saturating_duration_since(Instant::now()) + LOOP_SLACK;
        match receiver.recv_timeout(patience) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(ReadError::Stopping),
            Err(RecvTimeoutError::Timeout) => {
                Err(ReadError::Deadline { blocks, tried: Vec::new() })
            }
        }
    }

    /// Reads a metadata node's bytes and waits.
    pub fn read_bytes_blocking(
        &self,
        range: ByteRange,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let bytes = self.read_blocking(checked_blocks(range)?, Purpose::Metadata, deadline)?;
        Ok(cut(&bytes, range))
    }

    /// Brings blocks into the cache in the background. Best effort: what exceeds the queue or the
    /// quota is left out.
    pub fn prefetch(&self, ranges: Vec<BlockRange>, purpose: Purpose) {
        self.queue(ranges, purpose, false);
    }

    /// Brings content into the cache in the background, after what readers and [`Self::prefetch`] ask
    /// for. Best effort: who wants all of it asks again for what is still not held.
    pub fn fetch_bulk(&self, ranges: Vec<BlockRange>) {
        self.queue(ranges, Purpose::Data, true);
    }

    fn queue(&self, ranges: Vec<BlockRange>, purpose: Purpose, bulk: bool) {
        let origin = self.shared.origin;
        if self.commands.try_send(Command::Prefetch { origin, ranges, purpose, bulk }).is_err() {
            tracing::debug!("prefetch left out: the node is busy or stopping");
        }
    }

    /// Has updates made of what lies in files outside of the cache, until the answer is dropped.
    pub fn lend(&self, seeds: &Arc<Seeds>) -> Lent {
        self.shared.lent.take(Arc::clone(seeds));
        Lent { shared: Arc::clone(&self.shared), seeds: Arc::clone(seeds) }
    }

    /// How many of the blocks are here.
    pub fn held_blocks(&self, blocks: BlockRange) -> u64 {
        self.shared.log.held_blocks(blocks)
    }

    /// Verified bytes that came from peers since the node joined.
    pub fn fetched_bytes(&self) -> u64 {
        let Counters { fetched_metadata, fetched_data, fetched_frames, .. } = &self.shared.counters;
        let all = [fetched_metadata, fetched_data, fetched_frames];
        all.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The log in the cache: pins, eviction, state files.
    pub fn cached(&self) -> &Arc<CachedLog> {
        &self.shared.log
    }
}

/// Seeds that are lent to a swarm, until dropped.
pub struct Lent {
    shared: Arc<Shared>,
    seeds: Arc<Seeds>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shared.lent.give_back(&self.seeds);
    }
}

/// The blocks that hold `range`, if it lies within the longest log and node.
pub fn checked_blocks(range: ByteRange) -> Result<BlockRange, ReadError> {
    let ByteRange { offset, len } = range;
    match range.end() {
        Some(_) if len <= NODE_BYTES_MAX => Ok(range.blocks()),
        _ => Err(ReadError::OutOfBounds { offset, len }),
    }
}

/// The bytes of `range` out of the blocks that hold it.
pub fn cut(blocks: &Bytes, range: ByteRange) -> Bytes {
    let start = (range.offset % BLOCK_BYTES) as usize;
    blocks.slice(start..start + range.len as usize)
}
