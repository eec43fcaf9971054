//! One origin's log as jobs share it: its index, which frames are being worked on, what was refused.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::frame::{FrameEntry, MunroFrames, Part};
use crate::node::event_loop::Command;
use crate::node::reading::{Done, Purpose, Way};
use crate::node::swarm::Shared;
use crate::ppspp::engine::Class;
use crate::unit::{BlockIndex, BlockRange, MunroIndex};

use super::Haste;
use super::choice::{Account, View, subtract};
use super::index::{Absent, Index};

/// Frames that were refused and are not tried again.
const REFUSED_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// After a part of the index could not be fetched, it is not tried again for so long.
const LOAD_PAUSE: Duration = Duration::from_secs(2);
/// How long a part of the index may take.
const LOAD_DEADLINE: Duration = Duration::from_secs(15);
/// How often is asked whether anybody has what is waited for.
const OFFERED_INTERVAL: Duration = Duration::from_secs(1);
/// For so long a frame is not tried again that did not come.
const ABSENT_PAUSE: Duration = Duration::from_secs(60);
/// How much later than its deadline a read is given up if the loop does not answer.
const LOOP_SLACK: Duration = Duration::from_secs(5);

/// What all jobs share.
pub(super) struct Pool {
    /// Decoding for whoever waits. One decoding takes less than 3 MiB.
    pub(super) quick: Arc<Semaphore>,
    /// Decoding for background work.
    pub(super) background: Arc<Semaphore>,
    /// KiB of frames of background work that are in memory or on their way there.
    pub(super) frames_kib: Semaphore,
}

/// See [`Pool::frames_kib`].
pub(super) const FRAMES_KIB_MAX: usize = 24 << 10;

impl Pool {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            quick: Arc::new(Semaphore::new(4)),
            // One processor is left to the network.
            background: Arc::new(Semaphore::new((processors - 1).clamp(1, 4))),
            frames_kib: Semaphore::new(FRAMES_KIB_MAX),
        }
    }
}

/// Frames being worked on: by the first block that they make, whether somebody waits for it, and a number
/// of its own. The sender is dropped when the frame is done with, one way or the other.
type Claims = BTreeMap<(u64, bool, u64), (BlockRange, watch::Receiver<()>)>;

/// One origin's log.
pub(super) struct Origin {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Rc<Pool>,
    commands: mpsc::WeakSender<Command>,
    index: RefCell<Index>,
    claims: RefCell<Claims>,
    claims_made: Cell<u64>,
    /// By offset; until when, or for good.
    refused: RefCell<LruCache<u64, Option<Instant>>>,
    /// Parts of the index on their way, by first block.
    loads: RefCell<BTreeMap<u64, watch::Receiver<()>>>,
    load_failed: RefCell<Option<Instant>>,
}

/// A frame that its holder works on, until dropped.
pub(super) struct Claim {
    origin: Rc<Origin>,
    key: (u64, bool, u64),
    _done: watch::Sender<()>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.origin.claims.borrow_mut().remove(&self.key);
    }
}

impl Origin {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: mpsc::WeakSender<Command>,
        pool: Rc<Pool>,
    ) -> Self {
        Self {
            shared,
            pool,
            commands,
            index: RefCell::new(Index::new()),
            claims: RefCell::default(),
            claims_made: Cell::new(0),
            refused: RefCell::new(LruCache::new(REFUSED_MAX)),
            loads: RefCell::default(),
            load_failed: RefCell::default(),
        }
    }

    /// Hands the loop a command; if the loop has ended, nothing is left to do.
    pub(super) async fn tell(&self, command: Command) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.send(command).await;
        }
    }

    /// Reads blocks as they are, from peers where the cache lacks them; `None` if they did not come.
    pub(super) async fn read(
        &self,
        blocks: BlockRange,
        purpose: Purpose,
        class: Class,
        deadline: Instant,
    ) -> Option<Bytes> {
        let (sender, receiver) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            // Whoever gave up waiting has blocks fetched plain instead.
            let _ = sender.send(result);
        });
        let (origin, way) = (self.shared.origin, Way::Plain(class));
        self.tell(Command::Read { origin, blocks, purpose, way, deadline, done }).await;
        let mut receiver = receiver;
        while Instant::now() < deadline + LOOP_SLACK {
            match tokio::time::timeout(OFFERED_INTERVAL, &mut receiver).await {
                Ok(Ok(Ok(bytes))) => return Some(bytes),
                Ok(Ok(Err(error))) => {
                    tracing::debug!(%error, "no frames from there");
                    return None;
                }
                Ok(Err(_)) => return None,
                Err(_) if self.is_offered(blocks).await => {}
                Err(_) => {
                    tracing::debug!(first = %blocks.start, "nobody has the frames any more");
                    return None;
                }
            }
        }
        None
    }

    /// Whether anybody has the blocks, or nobody is there who might.
    async fn is_offered(&self, blocks: BlockRange) -> bool {
        let (answer, receiver) = oneshot::channel();
        self.tell(Command::IsOffered { origin: self.shared.origin, blocks, answer }).await;
        receiver.await.unwrap_or(false)
    }

    /// Fetches a part of the index, once however many ask for it; whether that may have helped.
    pub(super) async fn load(self: &Rc<Self>, absent: Absent, class: Class) -> bool {
        let Absent(blocks) = absent;
        let under_way = self.loads.borrow().get(&blocks.start.0).cloned();
        if let Some(mut under_way) = under_way {
            // The sender sends nothing: it ends.
            let _ = under_way.changed().await;
            return true;
        }
        let failed = *self.load_failed.borrow();
        if failed.is_some_and(|at| at.elapsed() < LOAD_PAUSE) {
            return false;
        }
        let (done, receiver) = watch::channel(());
        self.loads.borrow_mut().insert(blocks.start.0, receiver);
        let deadline = Instant::now() + LOAD_DEADLINE;
        let came = self.read(blocks, Purpose::Metadata, class, deadline).await.is_some();
        self.loads.borrow_mut().remove(&blocks.start.0);
        drop(done);
        if !came {
            *self.load_failed.borrow_mut() = Some(Instant::now());
        }
        came
    }

    /// Fetches in the background what the index lacks of a munro, so that the next reader finds it.
    pub(super) async fn warm(self: Rc<Self>, munro: MunroIndex, parts: Vec<Part>) {
        for part in parts {
            // List, table, record.
            for _ in 0..3 {
                let found = self.index.borrow_mut().frames(&self.shared, munro, part);
                let Err(absent) = found else { break };
                if !self.load(absent, Class::Background).await {
                    return;
                }
            }
        }
    }

    /// The munros among those of `ranges` that have no frames at all.
    pub(super) fn barren(&self, munros: impl Iterator<Item = MunroIndex>) -> Vec<MunroIndex> {
        let mut index = self.index.borrow_mut();
        munros.filter(|munro| index.is_barren(*munro)).collect()
    }

    /// Never tries that frame again.
    pub(super) fn refuse(&self, frame: &FrameEntry) {
        self.refused.borrow_mut().put(frame.range.offset, None);
    }

    /// Does not try that frame for a while, unless its bytes did come.
    pub(super) fn pause(&self, frame: &FrameEntry) {
        if !self.shared.log.missing(frame.range.blocks()).is_empty() {
            self.pause_for_bases(frame);
        }
    }

    /// Does not try that frame for a while: of its bases, something does not come.
    pub(super) fn pause_for_bases(&self, frame: &FrameEntry) {
        let until = Instant::now() + ABSENT_PAUSE;
        self.refused.borrow_mut().put(frame.range.offset, Some(until));
    }

    /// Says that the frame which makes `blocks` is being worked on.
    pub(super) fn claim(self: &Rc<Self>, blocks: BlockRange, waited: bool) -> Claim {
        let (done, receiver) = watch::channel(());
        let number = self.claims_made.get();
        self.claims_made.set(number + 1);
        let key = (blocks.start.0, waited, number);
        self.claims.borrow_mut().insert(key, (blocks, receiver));
        Claim { origin: Rc::clone(self), key, _done: done }
    }

    /// The frames that others work on and that make some of `blocks`. Who waits does not wait for
    /// background work.
    fn claimed(&self, blocks: BlockRange, waited: bool) -> Vec<(BlockRange, watch::Receiver<()>)> {
        let claims = self.claims.borrow();
        let first = blocks.start.0.saturating_sub(FRAME_BLOCKS_MAX);
        claims
            .range((first, false, 0)..(blocks.end().0, false, 0))
            .filter(|((_, quick, _), (made, _))| {
                (*quick || !waited) && !made.intersection(blocks).is_empty()
            })
            .map(|(_, claim)| claim.clone())
            .collect()
    }

    /// Waits until nobody else works on a frame that makes some of `blocks`.
    pub(super) async fn claimed_done(&self, blocks: &[BlockRange], waited: bool) {
        for range in blocks {
            for (_, mut claim) in self.claimed(*range, waited) {
                let _ = claim.changed().await;
            }
        }
    }
}

/// Blocks of the largest bin of a frame.
const FRAME_BLOCKS_MAX: u64 = 1 << (crate::limits::DELTA_FRAME_LAYER - crate::limits::BLOCK_LAYER);

/// A log as one choice sees it.
pub(super) struct Sight<'a> {
    origin: &'a Origin,
    haste: Haste,
    /// By the first munro of an epoch: whether something that lies before it is held.
    older: BTreeMap<u64, bool>,
    /// What of the index was asked for and is not here.
    pub(super) absent: Vec<(MunroIndex, Part, Absent)>,
}

impl<'a> Sight<'a> {
    pub(super) fn new(origin: &'a Origin, haste: Haste) -> Self {
        Self { origin, haste, older: BTreeMap::new(), absent: Vec::new() }
    }

    /// Whether delta frames of the munro may find a base.
    fn has_older(&mut self, munro: MunroIndex) -> bool {
        let epoch = self.origin.index.borrow_mut().epoch(&self.origin.shared, munro);
        let Ok(Some(epoch)) = epoch else { return true };
        let haste = self.haste;
        *self.older.entry(epoch.munro).or_insert_with(|| {
            let before = MunroIndex(epoch.munro).blocks().start.0;
            let shared = &self.origin.shared;
            shared.log.held_blocks(BlockRange::new(BlockIndex(0), before)) > 0
                || (haste != Haste::Quick && shared.lent.begin_before(BlockIndex(before)))
        })
    }
}

impl View for Sight<'_> {
    fn lacking(&mut self, blocks: BlockRange) -> Vec<BlockRange> {
        let mut lacking = self.origin.shared.log.missing(blocks);
        if !lacking.is_empty() {
            for (made, _) in self.origin.claimed(blocks, self.haste == Haste::Quick) {
                lacking = subtract(&lacking, made);
            }
        }
        lacking
    }

    fn out_of_reach(&mut self, blocks: BlockRange) -> Vec<BlockRange> {
        let lacking = self.lacking(blocks);
        // Who waits does not depend on a disk that is not the cache's.
        let is_settled = lacking.is_empty() || self.haste == Haste::Quick;
        if is_settled { lacking } else { self.origin.shared.lent.lacking(lacking) }
    }

    fn frames(&mut self, munro: MunroIndex, part: Part) -> Option<Arc<MunroFrames>> {
        if part == Part::Update && !self.has_older(munro) {
            return None;
        }
        let found = self.origin.index.borrow_mut().frames(&self.origin.shared, munro, part);
        match found {
            Ok(frames) => frames,
            Err(absent) => {
                self.absent.push((munro, part, absent));
                None
            }
        }
    }

    fn price(&mut self, frame: &FrameEntry) -> Option<u64> {
        let refused = self.origin.refused.borrow().peek(&frame.range.offset).copied();
        if refused.is_some_and(|until| until.is_none_or(|until| Instant::now() < until)) {
            return None;
        }
        // Nobody waits longer because of a delta: bases may be long in coming, or gone everywhere.
        if self.haste == Haste::Quick
            && frame.bases.iter().any(|base| !self.out_of_reach(*base).is_empty())
        {
            return None;
        }
        let missing = self.origin.shared.log.missing(frame.range.blocks());
        let bytes = missing.iter().map(|blocks| blocks.byte_len()).sum::<u64>();
        // Of much that lies together, the blocks at the ends serve two frames.
        Some(if self.haste.account() == Account::Shared {
            bytes.min(frame.range.len)
        } else {
            bytes
        })
    }
}
