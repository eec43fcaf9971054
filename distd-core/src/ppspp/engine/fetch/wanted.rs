//! Which blocks any fetch wants, when fetches end without them.

use crate::limits::BLOCK_LAYER;
use crate::ppspp::engine::interval::IntervalSet;
use crate::ppspp::engine::limits::RECOUNT_SPANS_MIN;

use super::Ledger;

impl Ledger {
    /// One fetch fewer wants these blocks, and they are not here. What others may want, too, stays.
    pub(super) fn unwant(&mut self, blocks: &IntervalSet) {
        if self.fetches.is_empty() {
            (self.wanted, self.shared) = Default::default();
            return;
        }
        for (start, end) in blocks.iter() {
            let mut alone = IntervalSet::default();
            alone.insert(start, end);
            self.shared.iter_within(start, end).for_each(|(start, end)| alone.remove(start, end));
            alone.iter().for_each(|(start, end)| self.wanted.remove(start, end));
        }
        if self.wanted.len() + self.shared.len() > self.recount_at {
            self.recount();
        }
    }

    /// Blocks that ended fetches shared are of no more interest.
    pub(super) fn recount(&mut self) {
        let (mut wanted, mut shared) = (IntervalSet::default(), IntervalSet::default());
        let mut want = |start: u64, end: u64| {
            wanted.iter_within(start, end).for_each(|(start, end)| shared.insert(start, end));
            wanted.insert(start, end);
        };
        for run in self.runs.values() {
            let chunks = run.bin.chunks();
            want(chunks.start.0 >> BLOCK_LAYER, chunks.end.0 >> BLOCK_LAYER);
        }
        for fetch in self.fetches.values() {
            fetch.todo.iter().for_each(|(start, end)| want(start, end));
        }
        self.recount_at = RECOUNT_SPANS_MIN.max(2 * (wanted.len() + shared.len()));
        (self.wanted, self.shared) = (wanted, shared);
    }
}
