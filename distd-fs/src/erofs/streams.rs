//! The node's own read-ahead in a log that many readers read at once.
//!
//! The kernel reads the log for all files together, so that a reader is known by where it is and not by
//! a file's number. Otherwise as `fs/readahead.rs`: what is read in order is fetched in advance, in a
//! window that doubles; reads here and there fetch nothing more.

use std::sync::{Mutex, PoisonError};

use distd_core::unit::{BlockIndex, BlockRange};

/// Readers that are followed; the one least recently seen is forgotten first.
const STREAMS_MAX: usize = 64;
/// Blocks that must have been read in order before anything is fetched in advance: 192 KiB.
const RUN_BLOCKS_MIN: u64 = 48;
/// How far ahead is fetched, in blocks: 8 MiB.
const WINDOW_BLOCKS_MAX: u64 = 2048;
/// Requests of one reader arrive by several threads, hence a little out of order: 128 KiB.
const DISORDER_BLOCKS_MAX: u64 = 32;

/// One reader's progress.
#[derive(Clone, Copy, Debug)]
struct Stream {
    next: u64,
    fetched: u64,
    /// Blocks read in order, those that were left out taken off.
    run: u64,
    /// Blocks that were left out, which may only be late.
    gap: u64,
}

/// The readers that are followed, the latest last.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Vec<Stream>>);

impl Streams {
    /// Takes note of a read; what to fetch in advance, below `end`.
    pub(super) fn on_read(&self, read: BlockRange, end: BlockIndex) -> Option<BlockRange> {
        let (start, stop) = (read.start.0, read.end().0);
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let near = |stream: &Stream| {
            start <= stream.next + DISORDER_BLOCKS_MAX && stop + DISORDER_BLOCKS_MAX >= stream.next
        };
        let known = streams.iter().rposition(near).map(|index| streams.remove(index));
        let fresh = Stream { next: start, fetched: stop, run: 0, gap: 0 };
        let mut stream = known.unwrap_or(fresh);
        let left_out = start.saturating_sub(stream.next);
        let late = stop.min(stream.next).saturating_sub(start).min(stream.gap);
        stream.gap = (stream.gap - late + left_out).min(DISORDER_BLOCKS_MAX);
        let fresh = stop.saturating_sub(stream.next.max(start));
        stream.run = (stream.run + fresh + late).saturating_sub(left_out);
        stream.next = stream.next.max(stop);
        stream.fetched = stream.fetched.max(stream.next);
        let window = stream.run.saturating_mul(2).min(WINDOW_BLOCKS_MAX);
        let target = stream.next.saturating_add(window).min(end.0);
        // In steps of half a window, so that the requests stay few and large.
        let step = target.saturating_sub(stream.fetched);
        let due =
            stream.run >= RUN_BLOCKS_MIN && step > 0 && (target == end.0 || step >= window / 2);
        let ahead = due.then(|| BlockRange::new(BlockIndex(stream.fetched), step));
        if due {
            stream.fetched = target;
        }
        if streams.len() >= STREAMS_MAX {
            streams.remove(0);
        }
        streams.push(stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: BlockIndex = BlockIndex(1 << 30);

    fn read(start: u64, count: u64) -> BlockRange {
        BlockRange::new(BlockIndex(start), count)
    }

    #[test]
    fn readers_in_order_are_fetched_for_side_by_side() {
        let (streams, mut fetched) = (Streams::default(), [None; 8]);
        for step in 0..1000 {
            for (reader, fetched) in (0u64..).zip(&mut fetched) {
                let at = (reader << 20) + step * 32;
                let Some(ahead) = streams.on_read(read(at, 32), END) else { continue };
                assert_eq!(
                    ahead.start.0,
                    fetched.unwrap_or(ahead.start.0),
                    "no gap, nothing twice"
                );
                assert!(ahead.start.0 >= at && ahead.end().0 <= at + 32 + WINDOW_BLOCKS_MAX);
                *fetched = Some(ahead.end().0);
            }
        }
        assert!((0u64..).zip(fetched).all(|(reader, end)| end > Some((reader << 20) + 32_000)));
    }

    #[test]
    fn scattered_reads_fetch_nothing_ahead_and_readers_are_bounded() {
        let streams = Streams::default();
        for index in 0..10_000u64 {
            assert_eq!(streams.on_read(read((index * 7919 % 10_007) << 12, 32), END), None);
        }
        assert_eq!(streams.0.lock().expect("not poisoned").len(), STREAMS_MAX);
    }

    #[test]
    fn small_files_here_and_there_in_one_region_are_no_sequence() {
        let streams = Streams::default();
        for index in 0..10_000u64 {
            let ahead = streams.on_read(read(index * 7919 % 10_007, 1 + index % 8), END);
            assert_eq!(ahead, None, "at {index}");
        }
    }

    #[test]
    fn a_little_disorder_is_still_a_sequence() {
        let streams = Streams::default();
        let order = [1u64, 0, 2, 4, 3, 5, 7, 6];
        let ahead = order.into_iter().filter_map(|step| streams.on_read(read(step * 32, 32), END));
        assert!(ahead.count() > 0);
    }

    #[test]
    fn nothing_is_fetched_behind_the_end() {
        let (streams, end) = (Streams::default(), BlockIndex(1000));
        let ahead = |start| streams.on_read(read(start, 32), end);
        let last = (0..960).step_by(32).filter_map(ahead).map(|range| range.end().0).max();
        assert_eq!(last, Some(1000));
    }
}
