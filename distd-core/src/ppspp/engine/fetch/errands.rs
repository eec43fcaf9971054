//! What is fetched because peers asked for it.

use std::time::Instant;

use crate::limits::{BLOCK_LAYER, GRANULE_LAYER};
use crate::ppspp::engine::climb::Piece;
use crate::ppspp::engine::event::{Class, FetchId};
use crate::ppspp::engine::interval::IntervalSet;
use crate::ppspp::engine::limits::{ERRANDS_MAX, ERRANDS_WAITED_BLOCKS_MAX, FETCHES_MAX};
use crate::unit::{BlockIndex, BlockRange};

use super::Ledger;

impl Ledger {
    /// Fetches blocks `start..end` for peers, as far as that is not under way; `false` if peers have
    /// asked for too much already. What is under way in the background is fetched again as waited.
    pub(in crate::ppspp::engine) fn insert_errand(
        &mut self,
        piece: Piece,
        class: Class,
        deadline: Instant,
    ) -> bool {
        let Piece { start, end, hops } = piece;
        let mut lacking = IntervalSet::default();
        lacking.insert(start, end);
        let mut take = |others: &IntervalSet| {
            others.iter_within(start, end).for_each(|(start, end)| lacking.remove(start, end));
        };
        take(&self.errands[Class::Waited.index()]);
        if class == Class::Background {
            take(&self.errands[Class::Background.index()]);
        }
        if lacking.is_empty() {
            return true;
        }
        if class == Class::Background {
            let is_wanted = |(start, end)| self.wanted.first_within(start, end).is_some();
            if lacking.iter().any(is_wanted) {
                let mut take = |others: &IntervalSet| {
                    others
                        .iter_within(start, end)
                        .for_each(|(start, end)| lacking.remove(start, end));
                };
                let ids = self.unplanned[Class::Background.index()].iter();
                ids.filter_map(|id| self.fetches.get(id)).for_each(|fetch| take(&fetch.todo));
            }
        }
        let waited = self.errands[Class::Waited.index()].count() + lacking.count();
        if self.errand_count + lacking.len() > ERRANDS_MAX
            || self.fetches.len() + lacking.len() > FETCHES_MAX
            || class == Class::Waited && waited > ERRANDS_WAITED_BLOCKS_MAX
        {
            return false;
        }
        for (start, end) in lacking.iter() {
            let id = self.next_id();
            let blocks = BlockRange::new(BlockIndex(start), end - start);
            self.insert(id, blocks, class, deadline);
            if let Some(fetch) = self.fetches.get_mut(&id) {
                (fetch.errand, fetch.hops) = (true, hops);
            }
            self.errands[class.index()].insert(start, end);
            self.errand_count += 1;
            self.arm.push(id);
        }
        true
    }

    /// What of `awaited` within `blocks` nothing here fetches any more.
    pub(in crate::ppspp::engine) fn unfetched(
        &self,
        awaited: &IntervalSet,
        blocks: BlockRange,
    ) -> IntervalSet {
        let (start, end) = (blocks.start.0, blocks.end().0);
        let mut left = IntervalSet::default();
        awaited.iter_within(start, end).for_each(|(start, end)| left.insert(start, end));
        if left.is_empty() {
            return left;
        }
        for others in &self.errands {
            others.iter_within(start, end).for_each(|(start, end)| left.remove(start, end));
        }
        let is_wanted = |(start, end)| self.wanted.first_within(start, end).is_some();
        if !left.iter().any(is_wanted) {
            return left;
        }
        let todo = self.unplanned.iter().flatten().filter_map(|id| self.fetches.get(id));
        for others in todo.map(|fetch| &fetch.todo) {
            others.iter_within(start, end).for_each(|(start, end)| left.remove(start, end));
        }
        let from = (start << BLOCK_LAYER).saturating_sub((1 << GRANULE_LAYER) - 1);
        for run in self.runs.range(from..end << BLOCK_LAYER).map(|(_, run)| run.bin.chunks()) {
            left.remove(run.start.0 >> BLOCK_LAYER, run.end.0 >> BLOCK_LAYER);
        }
        left
    }

    /// Whether anything is fetched for peers.
    pub(in crate::ppspp::engine) fn has_errands(&self) -> bool {
        self.errand_count > 0
    }

    /// Fetches for peers, at least as urgent, of which `offered` says of no part that somebody has it.
    pub(in crate::ppspp::engine) fn hopeless_errands(
        &self,
        least: Class,
        offered: impl Fn(u64, u64) -> bool,
    ) -> Vec<FetchId> {
        let fetches = self.fetches.iter();
        let errands = fetches.filter(|(_, fetch)| fetch.errand && fetch.class <= least);
        let hopeless =
            errands.filter(|(_, fetch)| !offered(fetch.blocks.start.0, fetch.blocks.end().0));
        hopeless.map(|(id, _)| *id).collect()
    }
}
