//! What is wanted: fetches, and the runs that they wait for.
//!
//! ```text
//! fetch A  |-------------------------------|     todo: still an interval
//! fetch B          |-----|
//! runs     [granule][granule][pair][block]       each asked of one source; A and B share one
//! ```
//!
//! A run is a granule where all of its blocks are wanted, else a pair or a block. Waited fetches
//! become runs at once; background fetches stay intervals until a source has room for more.

mod errands;
mod runs;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use crate::limits::{BLOCK_LAYER, GRANULE_LAYER};
use crate::unit::{Bin, BlockRange, ChunkRange};

use super::channel::ChannelIndex;
use super::climb::{Climb, HOPS, Piece, pieces};
use super::event::{Class, FetchId, SwarmKey};
use super::interval::IntervalSet;
use super::limits::{FETCHES_MAX, RECOUNT_SPANS_MIN, RUNS_MAX};
use runs::Carved;

/// A range that somebody asked this engine for.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) class: Class,
    pub(super) deadline: Instant,
    /// Blocks that are no runs yet.
    todo: IntervalSet,
    /// Runs that it waits for.
    runs: usize,
    /// Peers that were asked for it.
    tried: Vec<SocketAddr>,
    /// What was asked for.
    pub(super) blocks: BlockRange,
    /// Peers asked for it, and nobody here.
    errand: bool,
    /// How many more peers may pass a wish for it on.
    hops: u8,
    pub(super) armed: Option<Instant>,
}

/// A run that is wanted.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) bin: Bin,
    pub(super) class: Class,
    /// When the last one that waits gives up.
    pub(super) deadline: Instant,
    waiters: Vec<FetchId>,
    /// Channels that were asked for it.
    pub(super) sources: Vec<ChannelIndex>,
    /// Channels that failed it: asked again only if nobody else has it.
    pub(super) avoid: Vec<ChannelIndex>,
    /// Where it stands in line while it has no source.
    ticket: u64,
    /// How far up it is sought.
    pub(super) climb: Option<Climb>,
}

/// Where a search for background work has come: a fetch, and a block of it.
pub(super) type Sought = (FetchId, u64);

/// A place in the line of runs without a source: class, ticket, first chunk.
pub(super) type Place = (Class, u64, u64);

/// All fetches and runs of a swarm.
#[derive(Debug)]
pub(super) struct Ledger {
    swarm: SwarmKey,
    sequence: u32,
    tickets: u64,
    fetches: BTreeMap<FetchId, Fetch>,
    /// Fetches with a `todo`, by class.
    unplanned: [VecDeque<FetchId>; 2],
    /// By first chunk; they never overlap.
    runs: BTreeMap<u64, Run>,
    /// Runs without a source, in order of service.
    pub(super) pending: BTreeSet<Place>,
    /// Runs that no open channel has: they wait for news.
    parked: BTreeSet<Place>,
    /// Runs in flight that became waited.
    pub(super) upgrades: Vec<u64>,
    /// Runs in flight that are late.
    pub(super) hedges: Vec<u64>,
    /// Timers of fetches that are complete.
    pub(super) disarm: Vec<(FetchId, Instant)>,
    /// Flights that are wanted no more.
    pub(super) withdrawn: Vec<(ChannelIndex, u64)>,
    /// Blocks that some fetch wants, and at least those that two or more do.
    wanted: IntervalSet,
    shared: IntervalSet,
    /// At so many intervals of both they are counted anew.
    recount_at: usize,
    /// Blocks that are fetched for peers, by class, and by how many fetches.
    errands: [IntervalSet; 2],
    errand_count: usize,
    /// Fetches for peers whose timers are not set yet.
    pub(super) arm: Vec<FetchId>,
    /// There is more background work than at the last look.
    pub(super) grown: bool,
}

impl Ledger {
    pub(super) fn new(swarm: SwarmKey) -> Self {
        Self {
            swarm,
            sequence: 0,
            tickets: 0,
            fetches: BTreeMap::new(),
            unplanned: [VecDeque::new(), VecDeque::new()],
            runs: BTreeMap::new(),
            pending: BTreeSet::new(),
            parked: BTreeSet::new(),
            upgrades: Vec::new(),
            hedges: Vec::new(),
            disarm: Vec::new(),
            withdrawn: Vec::new(),
            wanted: IntervalSet::default(),
            shared: IntervalSet::default(),
            recount_at: RECOUNT_SPANS_MIN,
            errands: Default::default(),
            errand_count: 0,
            arm: Vec::new(),
            grown: false,
        }
    }

    /// Whether nothing is wanted.
    pub(super) fn is_idle(&self) -> bool {
        self.fetches.is_empty() && self.runs.is_empty()
    }

    /// A new name for a fetch.
    pub(super) fn next_id(&mut self) -> FetchId {
        loop {
            self.sequence = self.sequence.wrapping_add(1);
            let id = FetchId::new(self.swarm, self.sequence);
            if !self.fetches.contains_key(&id) {
                return id;
            }
        }
    }

    /// Takes a fetch; `false` if there are too many.
    pub(super) fn insert(
        &mut self,
        id: FetchId,
        blocks: BlockRange,
        class: Class,
        deadline: Instant,
    ) -> bool {
        if self.fetches.len() >= FETCHES_MAX {
            return false;
        }
        let (start, end) = (blocks.start.0, blocks.end().0);
        let mut todo = IntervalSet::default();
        todo.insert(start, end);
        self.wanted.iter_within(start, end).for_each(|(start, end)| self.shared.insert(start, end));
        self.wanted.insert(start, end);
        let fetch = Fetch {
            class,
            deadline,
            todo,
            runs: 0,
            tried: Vec::new(),
            blocks,
            errand: false,
            hops: HOPS,
            armed: None,
        };
        self.grown |= class == Class::Background;
        self.fetches.insert(id, fetch);
        self.unplanned[class.index()].push_back(id);
        true
    }

    /// What is left of the background work, in order, cut where stretches end; as many as `count`.
    pub(super) fn background_pieces(&self, count: usize) -> Vec<Piece> {
        let fetches = self.unplanned[Class::Background.index()].iter();
        let todo = fetches.filter_map(|id| self.fetches.get(id)).flat_map(|fetch| {
            let hops = fetch.hops;
            fetch.todo.iter().map(move |(start, end)| Piece { start, end, hops })
        });
        todo.flat_map(pieces).take(count).collect()
    }

    /// How many more peers may pass a wish for this run on.
    pub(super) fn hops(&self, run: &Run) -> u8 {
        let waiters = run.waiters.iter().filter_map(|id| self.fetches.get(id));
        waiters.map(|fetch| fetch.hops).max().unwrap_or(0)
    }

    /// Whether a reader waits for a run that has no source.
    pub(super) fn has_readers(&self) -> bool {
        let is_waited = |place: &Place| place.0 == Class::Waited;
        let waits = |line: &BTreeSet<Place>| line.first().is_some_and(is_waited);
        waits(&self.pending) || waits(&self.parked)
    }

    /// Members of a hint have nothing of these chunks: runs that wait for them look higher.
    pub(super) fn on_miss(&mut self, chunks: ChunkRange, index: ChannelIndex) {
        let from = chunks.start.0.saturating_sub((1 << GRANULE_LAYER) - 1);
        for (_, run) in self.runs.range_mut(from..chunks.end.0) {
            if let Some(climb) = &mut run.climb {
                climb.on_miss(index);
            }
        }
    }

    pub(super) fn run_mut(&mut self, first: u64) -> Option<&mut Run> {
        self.runs.get_mut(&first)
    }

    pub(super) fn fetch_mut(&mut self, id: FetchId) -> Option<&mut Fetch> {
        self.fetches.get_mut(&id)
    }

    pub(super) fn fetch_ids(&self) -> Vec<FetchId> {
        self.fetches.keys().copied().collect()
    }

    pub(super) fn run(&self, first: u64) -> Option<&Run> {
        self.runs.get(&first)
    }

    /// Whether no more runs are made for now.
    pub(super) fn is_full(&self) -> bool {
        self.runs.len() >= RUNS_MAX
    }

    /// Whether anything waits for a source.
    pub(super) fn has_work(&self) -> bool {
        !self.pending.is_empty()
            || self.unplanned.iter().any(|fetches| !fetches.is_empty())
            || !self.upgrades.is_empty()
            || !self.hedges.is_empty()
    }

    /// Makes runs of what readers wait for.
    pub(super) fn expand_waited(&mut self) {
        while let Some(id) = self.unplanned[Class::Waited.index()].front().copied() {
            while let Some((start, end)) = self.fetches.get(&id).and_then(|f| f.todo.first()) {
                if self.runs.len() >= RUNS_MAX {
                    return;
                }
                if let Carved::Created(first) = self.carve(id, start, end) {
                    self.line_up(first);
                }
            }
            self.unplanned[Class::Waited.index()].pop_front();
        }
    }

    /// Makes one run of background work that `available` holds and of which `pick` takes a part; it
    /// has no source yet and stands in no line. The search begins at `from`, and leaves there where the
    /// next one does.
    pub(super) fn next_background(
        &mut self,
        available: &IntervalSet,
        from: &mut Option<Sought>,
        mut pick: impl FnMut(u64, u64) -> Option<(u64, u64)>,
    ) -> Option<u64> {
        let line = &self.unplanned[Class::Background.index()];
        let known = from.and_then(|sought| line.iter().position(|id| *id == sought.0));
        let (mut at, mut block) = (known.unwrap_or(0), 0);
        if known.is_some() {
            block = from.map_or(0, |sought| sought.1);
        }
        while let Some(id) = self.unplanned[Class::Background.index()].get(at).copied() {
            let todo = self.fetches.get(&id).map(|fetch| &fetch.todo);
            if todo.is_none_or(IntervalSet::is_empty) {
                self.unplanned[Class::Background.index()].remove(at);
                continue;
            }
            while let Some((start, end)) =
                self.fetches.get(&id).and_then(|fetch| fetch.todo.next_common(available, block))
            {
                if self.runs.len() >= RUNS_MAX {
                    return None;
                }
                block = end;
                let Some((start, end)) = pick(start, end) else { continue };
                block = start;
                if let Carved::Created(first) = self.carve(id, start, end) {
                    *from = Some((id, block));
                    return Some(first);
                }
            }
            (at, block) = (at + 1, 0);
        }
        None
    }

    /// A run is verified: its fetches are served by it. Gives those that are complete.
    pub(super) fn verified(&mut self, bin: Bin, by: ChannelIndex) -> Vec<FetchId> {
        let mut complete = Vec::new();
        let first = bin.chunks().start.0;
        let run = self.runs.remove(&first);
        let was_wanted = run.is_some();
        if let Some(run) = run {
            let place = (run.class, run.ticket, first);
            self.pending.remove(&place);
            self.parked.remove(&place);
            let others = run.sources.iter().filter(|source| **source != by);
            self.withdrawn.extend(others.map(|other| (*other, first)));
            for id in run.waiters {
                if let Some(fetch) = self.fetches.get_mut(&id) {
                    fetch.runs -= 1;
                    if fetch.runs == 0 && fetch.todo.is_empty() {
                        complete.push(id);
                    }
                }
            }
        }
        let (start, end) = (first >> BLOCK_LAYER, bin.chunks().end.0 >> BLOCK_LAYER);
        if !was_wanted || self.shared.first_within(start, end).is_some() {
            self.trim(start, end, &mut complete);
        }
        self.wanted.remove(start, end);
        self.shared.remove(start, end);
        for id in &complete {
            let armed = self.fetches.get(id).and_then(|fetch| fetch.armed);
            self.disarm.extend(armed.map(|at| (*id, at)));
            self.remove(*id);
        }
        complete
    }

    /// Blocks `start..end` are there: whoever has not planned them yet need not.
    fn trim(&mut self, start: u64, end: u64, complete: &mut Vec<FetchId>) {
        for id in self.unplanned.iter().flatten() {
            if let Some(fetch) = self.fetches.get_mut(id)
                && fetch.todo.first_within(start, end).is_some()
            {
                fetch.todo.remove(start, end);
                if fetch.runs == 0 && fetch.todo.is_empty() {
                    complete.push(*id);
                }
            }
        }
    }

    /// Ends a fetch; runs that nobody waits for any more are withdrawn. Gives the peers asked.
    pub(super) fn remove(&mut self, id: FetchId) -> Option<Vec<SocketAddr>> {
        let fetch = self.fetches.remove(&id)?;
        let (start, end) = (fetch.blocks.start.0, fetch.blocks.end().0);
        if fetch.errand {
            self.errands[fetch.class.index()].remove(start, end);
            self.errand_count -= 1;
        }
        let mut unwanted_blocks = fetch.todo.clone();
        let unplanned = &mut self.unplanned[fetch.class.index()];
        if let Some(at) = unplanned.iter().position(|other| *other == id) {
            unplanned.remove(at);
        }
        if fetch.runs > 0 {
            let mut unwanted = Vec::new();
            // It may have joined a run that begins before it.
            let from = (start << BLOCK_LAYER).saturating_sub((1 << GRANULE_LAYER) - 1);
            for (first, run) in self.runs.range_mut(from..end << BLOCK_LAYER) {
                if let Some(at) = run.waiters.iter().position(|waiter| *waiter == id) {
                    run.waiters.swap_remove(at);
                    if run.waiters.is_empty() {
                        unwanted.push(*first);
                    }
                }
            }
            for first in unwanted {
                if let Some(run) = self.runs.remove(&first) {
                    let place = (run.class, run.ticket, first);
                    self.pending.remove(&place);
                    self.parked.remove(&place);
                    self.withdrawn.extend(run.sources.iter().map(|source| (*source, first)));
                    let chunks = run.bin.chunks();
                    unwanted_blocks
                        .insert(chunks.start.0 >> BLOCK_LAYER, chunks.end.0 >> BLOCK_LAYER);
                }
            }
        }
        self.unwant(&unwanted_blocks);
        Some(fetch.tried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::BlockIndex;

    #[test]
    fn a_run_ends_with_the_last_fetch_that_joined_it() {
        let mut ledger = Ledger::new(SwarmKey(1));
        let mut fetch = |start: u64, count: u64| {
            let id = ledger.next_id();
            let blocks = BlockRange::new(BlockIndex(start), count);
            assert!(ledger.insert(id, blocks, Class::Waited, Instant::now()));
            ledger.expand_waited();
            id
        };
        let (granule, inside) = (fetch(0, 4), fetch(2, 1));
        let other = fetch(100, 1);
        assert_eq!(ledger.runs.len(), 2);
        ledger.remove(granule);
        ledger.remove(inside);
        assert_eq!(ledger.runs.len(), 1);
        assert!(ledger.wanted.first_within(0, 4).is_none() || !ledger.shared.is_empty());
        ledger.recount();
        assert!(ledger.wanted.first_within(0, 4).is_none() && ledger.shared.is_empty());
        ledger.remove(other);
        assert!(ledger.runs.is_empty() && ledger.wanted.is_empty());
    }

    #[test]
    fn what_ended_fetches_shared_does_not_pile_up() {
        let mut ledger = Ledger::new(SwarmKey(1));
        let id = ledger.next_id();
        assert!(ledger.insert(
            id,
            BlockRange::new(BlockIndex(0), 1),
            Class::Waited,
            Instant::now()
        ));
        for block in 1..4 * RECOUNT_SPANS_MIN as u64 {
            let pair = [Class::Background, Class::Waited].map(|class| {
                let id = ledger.next_id();
                let blocks = BlockRange::new(BlockIndex(2 * block), 1);
                assert!(ledger.insert(id, blocks, class, Instant::now()));
                id
            });
            for id in pair {
                ledger.remove(id);
            }
        }
        assert!(ledger.wanted.len() + ledger.shared.len() <= RECOUNT_SPANS_MIN + 2);
    }
}
