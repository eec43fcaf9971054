//! What is fetched before anybody waits for it: what a reader will want next, and whole releases.
//!
//! Two queues, so that what a reader will want next never stands behind a release.

use std::collections::{BTreeSet, VecDeque};

use crate::unit::BlockRange;

use super::reading::{Purpose, Work};

/// Fetches under way at one time, of up to [`PREFETCH_BLOCKS`] each.
const FETCHES_MAX: usize = 16;
/// Of these, fetches for whole releases.
const BULK_FETCHES_MAX: usize = 6;
/// Blocks of one fetch: 4 MiB.
const PREFETCH_BLOCKS: u64 = 1024;
/// Ranges that wait in each queue; what is beyond is left out (prefetching is best effort).
const QUEUE_MAX: usize = 65_536;

/// One queue and its fetches under way.
#[derive(Default)]
struct Queue {
    ranges: VecDeque<(BlockRange, Purpose)>,
    fetching: BTreeSet<Work>,
}

/// The queues of one log.
#[derive(Default)]
pub(super) struct Prefetching {
    ahead: Queue,
    bulk: Queue,
}

/// A piece to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) blocks: BlockRange,
    pub(super) purpose: Purpose,
    pub(super) bulk: bool,
}

impl Prefetching {
    /// Queues ranges; `bulk` for those of a whole release.
    pub(super) fn push(&mut self, ranges: Vec<BlockRange>, purpose: Purpose, bulk: bool) {
        let queue = &mut self.queue(bulk).ranges;
        let room = QUEUE_MAX.saturating_sub(queue.len());
        queue.extend(ranges.into_iter().take(room).map(|blocks| (blocks, purpose)));
    }

    /// The next piece whose fetch may start now.
    pub(super) fn next(&mut self) -> Option<Piece> {
        if self.ahead.fetching.len() + self.bulk.fetching.len() >= FETCHES_MAX {
            return None;
        }
        if let Some((blocks, purpose)) = self.ahead.take() {
            return Some(Piece { blocks, purpose, bulk: false });
        }
        if self.bulk.fetching.len() >= BULK_FETCHES_MAX {
            return None;
        }
        let (blocks, purpose) = self.bulk.take()?;
        Some(Piece { blocks, purpose, bulk: true })
    }

    /// Work on a piece, or a part of it, has begun.
    pub(super) fn fetch_started(&mut self, fetch: Work, bulk: bool) {
        self.queue(bulk).fetching.insert(fetch);
    }

    /// It has ended.
    pub(super) fn fetch_ended(&mut self, fetch: Work) {
        self.ahead.fetching.remove(&fetch);
        self.bulk.fetching.remove(&fetch);
    }

    fn queue(&mut self, bulk: bool) -> &mut Queue {
        if bulk { &mut self.bulk } else { &mut self.ahead }
    }
}

impl Queue {
    fn take(&mut self) -> Option<(BlockRange, Purpose)> {
        let (blocks, purpose) = self.ranges.front_mut()?;
        let piece = BlockRange::new(blocks.start, blocks.count.min(PREFETCH_BLOCKS));
        let purpose = *purpose;
        *blocks = BlockRange::new(piece.end(), blocks.count - piece.count);
        if blocks.is_empty() {
            self.ranges.pop_front();
        }
        Some((piece, purpose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::BlockIndex;

    #[test]
    fn what_a_reader_will_want_overtakes_a_release() {
        let mut prefetching = Prefetching::default();
        let range = |start, count| BlockRange::new(BlockIndex(start), count);
        prefetching.push(vec![range(0, 10_000)], Purpose::Data, true);
        let first = prefetching.next().expect("queued");
        assert_eq!((first.blocks, first.bulk), (range(0, PREFETCH_BLOCKS), true));
        prefetching.push(vec![range(77, 3)], Purpose::Metadata, false);
        let next = prefetching.next().expect("queued");
        assert_eq!(next, Piece { blocks: range(77, 3), purpose: Purpose::Metadata, bulk: false });
        assert_eq!(prefetching.next().map(|piece| piece.blocks.start.0), Some(PREFETCH_BLOCKS));
    }

    #[test]
    fn the_queues_are_bounded() {
        let mut prefetching = Prefetching::default();
        let many = vec![BlockRange::new(BlockIndex(0), 1); QUEUE_MAX + 5];
        prefetching.push(many, Purpose::Data, true);
        assert_eq!(std::iter::from_fn(|| prefetching.next()).count(), QUEUE_MAX);
    }
}
