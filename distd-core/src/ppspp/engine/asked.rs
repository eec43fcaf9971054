//! What a peer has asked for and nothing was done about yet: ranges, never lists of chunks.

use std::collections::VecDeque;

use crate::unit::ChunkRange;

use super::interval::IntervalSet;

/// Chunks in the order in which they were asked for (RFC 7574 §3.7), each of them once.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// In order of arrival. Parts that are not `queued` (any more) are skipped.
    ranges: VecDeque<ChunkRange>,
    queued: IntervalSet,
    chunks: u64,
}

impl Asked {
    /// Queues what is not queued yet.
    pub(super) fn push(&mut self, chunks: ChunkRange) {
        let (mut at, end) = (chunks.start.0, chunks.end.0);
        while at < end {
            let (known, until) = self.queued.first_within(at, end).unwrap_or((end, end));
            if let Some(fresh) = ChunkRange::new(at, known) {
                self.ranges.push_back(fresh);
                self.chunks += fresh.count();
                self.queued.insert(at, known);
            }
            at = until;
        }
    }

    /// Chunks that are no longer wanted, or were dealt with.
    pub(super) fn forget(&mut self, chunks: ChunkRange) {
        while let Some((start, end)) = self.queued.first_within(chunks.start.0, chunks.end.0) {
            self.queued.remove(start, end);
            self.chunks -= end - start;
        }
    }

    /// What is queued of the oldest range: the first stretch of it.
    pub(super) fn front(&mut self) -> Option<ChunkRange> {
        loop {
            let front = *self.ranges.front()?;
            if let Some((start, end)) = self.queued.first_within(front.start.0, front.end.0) {
                return ChunkRange::new(start, end);
            }
            self.ranges.pop_front();
        }
    }

    /// Whether all of `chunks` is queued.
    pub(super) fn contains(&self, chunks: ChunkRange) -> bool {
        self.queued.contains(chunks.start.0, chunks.end.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    /// Chunks queued.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Ranges remembered.
    pub(super) fn ranges(&self) -> usize {
        self.ranges.len()
    }
}
