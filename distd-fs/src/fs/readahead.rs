//! The node's own read-ahead: a reader that goes through a file in order is fetched for in advance.
//!
//! The kernel's read-ahead is kept small, because for a mapped file it is also what one page fault
//! reads around itself (figures in `mount.rs`). What hides the network's latency
//! is this: once a file is read in order, the blocks that come next are asked for in the background,
//! in a window that doubles up to 8 MiB. A single read, or reads here and there, ask for nothing.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

/// Files whose readers are followed; the one least recently read is forgotten first.
const STREAMS_MAX: usize = 1024;
/// Bytes that must have been read in order before anything is fetched in advance: above the first
/// window that the kernel reads for `head -c 4096` (16 KiB) and for one page fault (128 KiB).
const RUN_BYTES_MIN: u64 = 192 << 10;
/// How far ahead is fetched, in bytes.
const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// The kernel's requests of one reader arrive by several threads, hence a little out of order.
const DISORDER_BYTES_MAX: u64 = 256 << 10;

/// One reader's progress through a file.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// End of what was read.
    next: u64,
    /// End of what was fetched in advance.
    fetched: u64,
    /// Bytes read in order.
    run: u64,
}

/// The readers that are followed.
#[derive(Debug)]
pub(crate) struct ReadAhead(Mutex<LruCache<u64, Stream>>);

impl Default for ReadAhead {
    fn default() -> Self {
        let most = NonZeroUsize::new(STREAMS_MAX).unwrap_or(NonZeroUsize::MIN);
        Self(Mutex::new(LruCache::new(most)))
    }
}

impl ReadAhead {
    /// Takes note of a read of `read` in a file of `size` bytes; what to fetch in advance.
    pub(crate) fn on_read(&self, file: u64, read: Range<u64>, size: u64) -> Option<Range<u64>> {
        let fresh = Stream { next: read.end, fetched: read.end, run: read.end - read.start };
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stream =
            streams.get_or_insert_mut(file, || Stream { next: read.start, run: 0, ..fresh });
        let in_order = read.start <= stream.next + DISORDER_BYTES_MAX
            && read.end + DISORDER_BYTES_MAX >= stream.next;
        if !in_order {
            *stream = fresh;
            return None;
        }
        // Only what is new counts: page faults here and there in one region are no sequence.
        stream.run += read.end.saturating_sub(stream.next.max(read.start));
        stream.next = stream.next.max(read.end);
        stream.fetched = stream.fetched.max(stream.next);
        if stream.run < RUN_BYTES_MIN {
            return None;
        }
        let window = stream.run.saturating_mul(2).min(WINDOW_BYTES_MAX);
        let target = stream.next.saturating_add(window).min(size);
        // In steps of half a window, so that the requests stay few and large.
        let step = target.saturating_sub(stream.fetched);
        if step == 0 || (target < size && step < window / 2) {
            return None;
        }
        let ahead = stream.fetched..target;
        stream.fetched = target;
        Some(ahead)
    }

    /// Forgets a file.
    pub(crate) fn forget(&self, file: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop(&file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_is_fetched_for_once_and_to_the_end() {
        let (readahead, size) = (ReadAhead::default(), 64 << 20);
        let mut fetched = None;
        for start in (0..size).step_by(128 << 10) {
            if let Some(range) = readahead.on_read(7, start..start + (128 << 10), size) {
                assert_eq!(range.start, fetched.unwrap_or(range.start), "no gap, nothing twice");
                assert!(range.start >= start && range.end <= start + (16 << 20));
                fetched = Some(range.end);
            }
        }
        assert_eq!(fetched, Some(size));
    }

    #[test]
    fn a_little_disorder_is_still_a_sequence() {
        let readahead = ReadAhead::default();
        let read = |start: u64| readahead.on_read(7, start << 17..(start + 1) << 17, 1 << 30);
        let ahead: Vec<_> = [1, 0, 3, 2, 4].into_iter().filter_map(read).collect();
        assert!(!ahead.is_empty());
    }

    #[test]
    fn single_and_scattered_reads_fetch_nothing_ahead() {
        let (readahead, size) = (ReadAhead::default(), 1 << 40);
        assert_eq!(readahead.on_read(1, 0..16 << 10, size), None);
        for index in 0..1000u64 {
            let start = (index * 7919 % 1009) << 30;
            assert_eq!(readahead.on_read(2, start..start + (128 << 10), size), None);
        }
    }

    #[test]
    fn the_number_of_files_followed_is_bounded() {
        let readahead = ReadAhead::default();
        (0..100_000).for_each(|file| assert!(readahead.on_read(file, 0..4096, 1 << 20).is_none()));
        assert_eq!(readahead.0.lock().expect("not poisoned").len(), STREAMS_MAX);
    }
}
