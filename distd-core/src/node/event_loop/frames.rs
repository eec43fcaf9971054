//! What the loop has handed to `unpack`, and what comes back from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::node::reading::{Purpose, ReadId, Way, Work};
use crate::node::unpack::{Haste, Job, JobId};
use crate::ppspp::engine::{Class, SwarmKey};
use crate::tree::VerifiedRun;
use crate::unit::{BlockRange, MunroIndex};

use super::EventLoop;

/// Frames that somebody waits for and that have not come by then, or in half of the time that there is: the
/// plain blocks are fetched, too.
const QUICK_PATIENCE: Duration = Duration::from_secs(5);
/// The same for background work: who brings a release gives up after 90 s without a block.
const PATIENCE: Duration = Duration::from_secs(45);
/// Munros of one log that are remembered to have no frames; beyond, all are forgotten.
const BARREN_MAX: usize = 1 << 16;

/// Munros that have no frames: nothing of them is handed over.
#[derive(Default)]
pub(super) struct Barren(BTreeSet<u64>);

impl Barren {
    fn note(&mut self, munros: Vec<MunroIndex>) {
        if self.0.len() + munros.len() > BARREN_MAX {
            self.0.clear();
        }
        self.0.extend(munros.into_iter().map(|munro| munro.0));
    }

    fn covers(&self, blocks: BlockRange) -> bool {
        let Some(last) = blocks.count.checked_sub(1) else { return true };
        let last = blocks.start.0.saturating_add(last) / 256;
        (blocks.start.munro().0..=last).all(|munro| self.0.contains(&munro))
    }
}

/// One job that was handed over.
pub(super) struct HandedOver {
    key: SwarmKey,
    /// Until when it may take its time.
    due: Instant,
    class: Class,
    deadline: Instant,
    purpose: Purpose,
    read: Option<ReadId>,
    /// Of the queue of whole releases, or the other one; not of a queue.
    bulk: Option<bool>,
    missing: Vec<BlockRange>,
}

/// All jobs that were handed over.
pub(super) struct Unpacking {
    jobs: mpsc::Sender<Job>,
    next: u64,
    under_way: BTreeMap<JobId, HandedOver>,
    dues: BTreeSet<(Instant, JobId)>,
}

impl Unpacking {
    pub(super) fn new(jobs: mpsc::Sender<Job>) -> Self {
        Self { jobs, next: 0, under_way: BTreeMap::new(), dues: BTreeSet::new() }
    }

    /// When the first job's time runs out.
    pub(super) fn first_due(&self) -> Option<Instant> {
        self.dues.first().map(|(due, _)| *due)
    }

    pub(super) fn forget(&mut self, id: JobId) -> Option<HandedOver> {
        let job = self.under_way.remove(&id)?;
        self.dues.remove(&(job.due, id));
        Some(job)
    }

    pub(super) fn forget_swarm(&mut self, key: SwarmKey) {
        self.under_way.retain(|_, job| job.key != key);
        self.dues.retain(|(_, id)| self.under_way.contains_key(id));
    }
}

/// Who wants blocks that are missing.
pub(super) struct Wanted {
    pub(super) way: Way,
    pub(super) deadline: Instant,
    pub(super) purpose: Purpose,
    pub(super) read: Option<ReadId>,
    pub(super) bulk: Option<bool>,
}

impl EventLoop {
    /// Has missing blocks fetched: by frames where those may be fewer bytes, else as they are.
    pub(super) fn fetch(
        &mut self,
        now: Instant,
        key: SwarmKey,
        missing: Vec<BlockRange>,
        wanted: &Wanted,
    ) {
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        let haste = match wanted.way {
            Way::Quick => Haste::Quick,
            Way::Background if wanted.bulk == Some(true) => Haste::Bulk,
            // As background work: what a prefetch has under way is not asked for again.
            Way::Cheap => Haste::Bulk,
            Way::Background => Haste::Background,
            Way::Plain(class) => return self.fetch_plain(now, key, missing, class, wanted),
        };
        let class = haste.class();
        if missing.iter().all(|blocks| joined.barren.covers(*blocks)) {
            return self.fetch_plain(now, key, missing, class, wanted);
        }
        let left = wanted.deadline.saturating_duration_since(now);
        let due = now
            + match haste {
                Haste::Quick => QUICK_PATIENCE.min(left / 2),
                Haste::Bulk if wanted.read.is_some() => PATIENCE.min(left / 2),
                Haste::Background | Haste::Bulk => PATIENCE.min(left),
            };
        let id = JobId(self.unpacking.next);
        let shared = Arc::clone(&joined.shared);
        let job = Job { id, shared, missing: missing.clone(), haste, deadline: due };
        if self.unpacking.jobs.try_send(job).is_err() {
            return self.fetch_plain(now, key, missing, class, wanted);
        }
        self.unpacking.next += 1;
        let (first, last) = (missing.first(), missing.last());
        let hull =
            first.zip(last).map_or(BlockRange::new(crate::unit::BlockIndex(0), 0), |(a, b)| {
                BlockRange::new(a.start, b.end().0 - a.start.0)
            });
        let work = Work::Unpack(id);
        joined.reading.fetch_started(work, hull, wanted.purpose, wanted.read);
        if let Some(bulk) = wanted.bulk {
            joined.prefetching.fetch_started(work, bulk);
        }
        let Wanted { deadline, purpose, read, bulk, .. } = *wanted;
        let job = HandedOver { key, due, class, deadline, purpose, read, bulk, missing };
        self.unpacking.under_way.insert(id, job);
        self.unpacking.dues.insert((due, id));
    }

    fn fetch_plain(
        &mut self,
        now: Instant,
        key: SwarmKey,
        missing: Vec<BlockRange>,
        class: Class,
        wanted: &Wanted,
    ) {
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        for blocks in missing {
            let fetch = self.driver.engine.fetch(now, key, blocks, class, wanted.deadline);
            joined.reading.fetch_started(Work::Fetch(fetch), blocks, wanted.purpose, wanted.read);
            if let Some(bulk) = wanted.bulk {
                joined.prefetching.fetch_started(Work::Fetch(fetch), bulk);
            }
        }
    }

    /// Whether what is missing of the blocks can be had.
    pub(super) fn is_offered(&self, key: SwarmKey, blocks: BlockRange) -> bool {
        let Some(joined) = self.swarms.get(&key) else { return false };
        let missing = joined.shared.log.missing(blocks);
        missing.iter().all(|blocks| self.driver.engine.is_offered(key, *blocks))
    }

    /// A job hands blocks back, or has ended, or both.
    pub(super) fn on_unpacked(
        &mut self,
        now: Instant,
        id: JobId,
        plain: Vec<BlockRange>,
        barren: Vec<MunroIndex>,
        ended: bool,
    ) {
        let Some(job) = self.unpacking.under_way.get(&id) else { return };
        let (key, class) = (job.key, job.class);
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        joined.barren.note(barren);
        let HandedOver { deadline, purpose, read, bulk, .. } = *job;
        let wanted = Wanted { way: Way::Plain(class), deadline, purpose, read, bulk };
        let (log, keeper) = (&joined.shared.log, &self.helpers.keeper);
        let missing = plain.into_iter().flat_map(|blocks| log.missing(blocks));
        let missing = missing.flat_map(|blocks| keeper.not_waiting(key, blocks)).collect();
        self.fetch_plain(now, key, missing, class, &wanted);
        if ended {
            self.unpacking.forget(id);
            self.on_done(now, key, Work::Unpack(id));
        }
    }

    /// Jobs whose time has run out: their blocks are fetched plain.
    pub(super) fn check_dues(&mut self, now: Instant) {
        while let Some((_, id)) =
            self.unpacking.dues.first().copied().filter(|(due, _)| *due <= now)
        {
            let plain = self.unpacking.under_way.get(&id).map(|job| job.missing.clone());
            tracing::debug!(job = id.0, "frames took too long");
            self.unpacking.dues.pop_first();
            self.on_unpacked(now, id, plain.unwrap_or_default(), Vec::new(), true);
        }
    }

    /// A frame was decoded: the run goes to whoever waits for it, and to peers.
    pub(super) fn on_decoded(
        &mut self,
        now: Instant,
        key: SwarmKey,
        run: &VerifiedRun,
        kept: bool,
    ) {
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        joined.reading.on_run(run);
        match run.bin().blocks() {
            Some(blocks) if kept => self.driver.engine.hold(now, key, blocks),
            _ => {
                joined.shared.counters.uncached_runs.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
