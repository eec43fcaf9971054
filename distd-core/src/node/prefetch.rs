//! What is fetched before anybody waits for it: what a reader will want next, and whole releases.
//!
//! Two queues, so that what a reader will want next never stands behind a release.

use std::collections::{BTreeSet, VecDeque};

use crate::unit::BlockRange;

use super::reading::{Purpose, Work};
use super::unpack::joined;

/// Fetches under way at one time, of up to [`PREFETCH_BLOCKS`] each.
const FETCHES_MAX: usize = 24;
/// Of these, fetches for whole releases.
const BULK_FETCHES_MAX: usize = 12;
/// Blocks of one piece: 4 MiB.
const PREFETCH_BLOCKS: u64 = 1024;
/// Ranges of one piece: small files that lie together share frames.
const PIECE_RANGES_MAX: usize = 1024;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Ascending, apart from each other.
    pub(super) ranges: Vec<BlockRange>,
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
        if let Some((ranges, purpose)) = self.ahead.take() {
            return Some(Piece { ranges, purpose, bulk: false });
        }
        if self.bulk.fetching.len() >= BULK_FETCHES_MAX {
            return None;
        }
        let (ranges, purpose) = self.bulk.take()?;
        Some(Piece { ranges, purpose, bulk: true })
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
    fn take(&mut self) -> Option<(Vec<BlockRange>, Purpose)> {
        let (_, purpose) = *self.ranges.front()?;
        let (mut ranges, mut room) = (Vec::new(), PREFETCH_BLOCKS);
        while let Some((blocks, _)) = self.ranges.front_mut().filter(|(_, other)| *other == purpose)
            && room > 0
            && ranges.len() < PIECE_RANGES_MAX
        {
            let part = BlockRange::new(blocks.start, blocks.count.min(room));
            *blocks = BlockRange::new(part.end(), blocks.count - part.count);
            if blocks.is_empty() {
                self.ranges.pop_front();
            }
            room -= part.count;
            ranges.push(part);
        }
        ranges.sort_unstable_by_key(|range| range.start);
        Some((joined(&ranges), purpose))
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
        assert_eq!((first.ranges, first.bulk), (vec![range(0, PREFETCH_BLOCKS)], true));
        prefetching.push(vec![range(77, 3)], Purpose::Metadata, false);
        let next = prefetching.next().expect("queued");
        let ranges = vec![range(77, 3)];
        assert_eq!(next, Piece { ranges, purpose: Purpose::Metadata, bulk: false });
        let next = prefetching.next().expect("queued");
        assert_eq!(next.ranges, [range(PREFETCH_BLOCKS, PREFETCH_BLOCKS)]);
    }

    #[test]
    fn small_ranges_go_together_and_in_order() {
        let mut prefetching = Prefetching::default();
        let range = |start, count| BlockRange::new(BlockIndex(start), count);
        prefetching.push(vec![range(9, 1), range(5, 2), range(7, 2)], Purpose::Data, true);
        prefetching.push(vec![range(90, 5000)], Purpose::Data, true);
        let first = prefetching.next().expect("queued");
        assert_eq!(first.ranges, [range(5, 5), range(90, PREFETCH_BLOCKS - 5)]);
    }

    #[test]
    fn the_queues_are_bounded() {
        let mut prefetching = Prefetching::default();
        let range = |at| BlockRange::new(BlockIndex(2 * at), 1);
        prefetching.push((0..QUEUE_MAX as u64 + 5).map(range).collect(), Purpose::Data, true);
        let pieces = std::iter::from_fn(|| prefetching.next());
        assert_eq!(pieces.map(|piece| piece.ranges.len()).sum::<usize>(), QUEUE_MAX);
    }
}
